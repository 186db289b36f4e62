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


ages = st.timedeltas(timedelta(0), timedelta(days=30))
LONG_AGO = timedelta(days=30)


@given(reply=replies, attempts=st.integers(1, 20), age=ages, jitter=st.floats(0, 1))
def test_every_answer_ends_a_delivery_or_has_a_next_moment(
    reply: Reply, attempts: int, age: timedelta, jitter: float
) -> None:
    verdict = judge(reply, attempts=attempts, age=age, jitter=jitter)

    succeeded = reply.status is not None and 200 <= reply.status < 300
    assert (verdict.state is DeliveryState.DELIVERED) == succeeded
    assert (verdict.error is None) == succeeded
    assert (verdict.wait is not None) == (verdict.state is DeliveryState.PENDING)
    assert verdict.is_gone == (reply.status == 410)
    if verdict.wait is not None:
        delay = RETRY_DELAYS[min(attempts, len(RETRY_DELAYS)) - 1]
        assert verdict.wait >= RETRY_DELAYS[0] * (1 - JITTER) - timedelta(microseconds=1)
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
    first = judge(Reply(status), attempts=1, age=timedelta(0), jitter=0.5)
    assert (first.error, first.wait) == (f"http_{status}", timedelta(seconds=5))
    last = judge(Reply(status), attempts=len(RETRY_DELAYS) + 1, age=LONG_AGO, jitter=0.5)
    assert last.state is DeliveryState.FAILED


@pytest.mark.parametrize("jitter", [0.0, 0.5, 1.0])
def test_the_plan_is_ten_attempts_each_as_late_as_it_says(jitter: float) -> None:
    age, waits = timedelta(0), list[timedelta]()
    for attempts in range(1, len(RETRY_DELAYS) + 1):
        verdict = judge(Reply(500), attempts=attempts, age=age, jitter=jitter)
        assert verdict.wait is not None
        waits.append(verdict.wait)
        age += verdict.wait
    assert waits == [delay * (1 - JITTER + 2 * JITTER * jitter) for delay in RETRY_DELAYS]
    assert judge(Reply(500), attempts=10, age=age, jitter=jitter).state is DeliveryState.FAILED


@pytest.mark.parametrize("attempts", [2, 10, 1000])
def test_attempts_that_came_early_shorten_nothing(attempts: int) -> None:
    """An endpoint that comes and goes brings what was put off forward, again and again."""
    young = judge(Reply(500), attempts=attempts, age=timedelta(seconds=3), jitter=0.5)
    assert young.wait == RETRY_DELAYS[0]
    later = judge(Reply(500), attempts=max(attempts, 4), age=timedelta(minutes=50), jitter=0.5)
    assert later.wait == RETRY_DELAYS[3]
