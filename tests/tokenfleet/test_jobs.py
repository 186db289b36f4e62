"""The wire contract: what is sent is what is read, and anything else is refused."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenfleet import jobs
from tokenfleet.jobs import MAX_BATCH, AccountId, AppId, Epoch, MalformedJob, RefreshJob

JOB_ID = "00000000-0000-4000-8000-000000000001"

ids = st.integers(1, 2**63 - 1)
refresh_jobs = st.builds(
    RefreshJob,
    job_id=st.uuids().map(str),
    app_id=ids.map(AppId),
    accounts=st.lists(st.tuples(ids.map(AccountId), ids.map(Epoch)), max_size=MAX_BATCH).map(tuple),
)
json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)


def test_the_names_on_the_wire_are_these() -> None:
    assert jobs.REFRESH_TASK == "tokenfleet.refresh"
    assert jobs.REFRESH_QUEUE == "refresh"
    assert jobs.REQUESTED_TASK == "tokenfleet.refresh_requested"
    assert jobs.ON_DEMAND_QUEUE == "on_demand"
    assert jobs.DELIVER_TASK == "tokenfleet.deliver_webhooks"
    assert jobs.WEBHOOK_QUEUE == "webhooks"
    assert jobs.QUEUES == ("refresh", "on_demand", "webhooks")


@given(job=refresh_jobs)
def test_a_job_survives_the_wire(job: RefreshJob) -> None:
    assert RefreshJob.parse(json.loads(json.dumps(job.payload()))) == job


@given(job=refresh_jobs)
def test_a_job_may_arrive_as_positional_arguments(job: RefreshJob) -> None:
    assert RefreshJob.parse(tuple(job.payload())) == job


def test_a_payload_has_this_shape() -> None:
    pairs = ((AccountId(7), Epoch(3)), (AccountId(9), Epoch(1)))
    assert RefreshJob(JOB_ID, AppId(2), pairs).payload() == [JOB_ID, 2, [7, 9], [3, 1]]


@given(arguments=st.lists(json_values, max_size=5))
def test_anything_else_is_a_malformed_job_and_never_a_crash(arguments: list[Any]) -> None:
    try:
        job = RefreshJob.parse(arguments)
    except MalformedJob:
        return
    assert job.payload() == arguments


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param([], id="nothing"),
        pytest.param([JOB_ID, 1, [1]], id="epochs missing"),
        pytest.param([JOB_ID, 1, [1], [1], []], id="one too many"),
        pytest.param([JOB_ID, 1, [1, 2], [1]], id="fewer epochs than ids"),
        pytest.param([JOB_ID, "1", [1], [1]], id="app id as text"),
        pytest.param([JOB_ID, True, [1], [1]], id="app id as truth"),
        pytest.param([JOB_ID, 1, [True], [1]], id="account id as truth"),
        pytest.param([JOB_ID, 1, [1.0], [1]], id="account id as a float"),
        pytest.param([JOB_ID, 1, ["1"], [1]], id="account id as text"),
        pytest.param([JOB_ID, 1, [1], [None]], id="no epoch"),
        pytest.param([JOB_ID, 1, {"1": 1}, [1]], id="ids as an object"),
        pytest.param([None, 1, [1], [1]], id="no job id"),
        pytest.param(["job-1", 1, [1], [1]], id="job id is not a UUID"),
        pytest.param([JOB_ID, 1, [1] * (MAX_BATCH + 1), [1] * (MAX_BATCH + 1)], id="too many accounts"),
    ],
)
def test_a_message_of_another_shape_is_refused(arguments: list[Any]) -> None:
    with pytest.raises(MalformedJob, match=r"tokenfleet\.refresh takes"):
        RefreshJob.parse(arguments)


def test_a_refusal_does_not_repeat_the_message() -> None:
    with pytest.raises(MalformedJob) as refusal:
        RefreshJob.parse(["planted-value", {"token": "planted-value"}])
    assert "planted-value" not in str(refusal.value)


def test_every_job_id_can_be_stored_as_a_uuid() -> None:
    job = RefreshJob.parse([JOB_ID, 1, [], []])
    assert str(uuid.UUID(job.job_id)) == JOB_ID
