"""What a receiver's answer means: total, and as Standard Webhooks 1.0 asks."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenfleet.delivery_policy import JITTER, LONGEST_PAUSE, RETRY_DELAYS, DeliveryState, Reply, judge

replies = st.builds(
    Reply,
    status=st.none() | st.integers(100, 599),
    error=st.none() | st.sampled_from(["timeout", "redirect"]),
    retry_after=st.none() | st.timedeltas(timedelta(days=-2), timedelta(days=400)),
)


@given(reply=replies, attempts=st.integers(1, 20), jitter=st.floats(0, 1))
def test_every_answer_ends_a_delivery_or_has_a_next_moment(
    reply: Reply, attempts: int, jitter: float
) -> None:
    verdict = judge(reply, attempts=attempts, jitter=jitter)

    succeeded = reply.status is not None and 200 <= reply.status < 300
    assert (verdict.state is DeliveryState.DELIVERED) == succeeded
    assert (verdict.error is None) == succeeded
    assert (verdict.wait is not None) == (verdict.state is DeliveryState.PENDING)
    assert verdict.is_gone == (reply.status == 410)
    if verdict.wait is not None:
        assert attempts <= len(RETRY_DELAYS)
        delay = RETRY_DELAYS[attempts - 1]
        assert verdict.wait >= delay * (1 - JITTER) - timedelta(microseconds=1)
        assert verdict.wait <= max(delay * (1 + JITTER), LONGEST_PAUSE) + timedelta(microseconds=1)
    if verdict.pause is not None:
        assert reply.status in {429, 503}
        assert timedelta(0) <= verdict.pause <= LONGEST_PAUSE


def test_the_retries_begin_after_five_seconds_and_end_after_about_three_days() -> None:
    assert RETRY_DELAYS[0] == timedelta(seconds=5)
    assert timedelta(days=3) < sum(RETRY_DELAYS, timedelta(0)) < timedelta(days=3.5)
    assert list(RETRY_DELAYS) == sorted(RETRY_DELAYS)


@pytest.mark.parametrize("status", [301, 302, 307, 404, 500, 502, 504])
def test_anything_else_is_a_failure_that_is_tried_again(status: int) -> None:
    assert judge(Reply(status), attempts=1, jitter=0.5).error == f"http_{status}"
    assert judge(Reply(status), attempts=1, jitter=0.5).wait == timedelta(seconds=5)
    assert judge(Reply(status), attempts=len(RETRY_DELAYS) + 1, jitter=0.5).state is DeliveryState.FAILED
