"""Rate headers: what an answer says of the requests that are left, and of when there will be more."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from providers.exchange import Answer, Failure, FailureKind
from providers.registry import Provider
from tests.providers.definitions import provider
from tokenfleet.outcome import Throttled

NOW: Final = datetime(2026, 1, 15, 12, tzinfo=UTC)
MINUTE: Final = timedelta(minutes=1)
EPOCH: Final = int(NOW.timestamp())


@cache
def limited(reset_format: str = "seconds") -> Provider:
    headers = f'remaining_header = "X-Left"\nreset_header = "X-Reset"\nreset_format = "{reset_format}"'
    return provider(f"[rate]\n{headers}")


@pytest.mark.parametrize(
    ("reset_format", "value"),
    [
        ("seconds", "60"),
        ("epoch_seconds", str(EPOCH + 60)),
        ("epoch_milliseconds", f"{EPOCH + 60}000"),
        ("iso8601", "2026-01-15T12:01:00Z"),
        ("iso8601", "2026-01-15T12:01:00"),
    ],
)
def test_an_answer_that_leaves_no_request_pauses_until_the_reset(reset_format: str, value: str) -> None:
    answer = Answer(200, {"x-left": "0", "x-reset": value})
    assert limited(reset_format).used_up_for(answer, now=NOW) == MINUTE
    plenty = Answer(200, {"x-left": "17", "x-reset": value})
    assert limited(reset_format).used_up_for(plenty, now=NOW) is None


def test_a_throttled_answer_without_retry_after_lasts_until_the_reset() -> None:
    said = Answer(429, {"x-reset": "60"}, b"")
    assert limited().read(said, now=NOW) == Throttled("http_429", MINUTE)
    both = Answer(429, {"x-reset": "60", "retry-after": "5"}, b"")
    assert limited().read(both, now=NOW) == Throttled("http_429", timedelta(seconds=5))
    neither = Answer(429, {}, b"")
    assert limited().read(neither, now=NOW) == Throttled("http_429", None)


def test_a_definition_that_names_no_headers_reads_none() -> None:
    assert provider().used_up_for(Answer(200, {"x-left": "0", "x-reset": "60"}), now=NOW) is None


@given(
    reset_format=st.sampled_from(["seconds", "epoch_seconds", "epoch_milliseconds", "iso8601"]),
    left=st.text(max_size=12) | st.sampled_from(["0", "-1", "nan", "inf", "1e999"]),
    reset=st.text(max_size=25) | st.floats().map(str) | st.integers().map(str) | st.datetimes().map(str),
)
def test_whatever_a_header_says_is_read_without_an_error(reset_format: str, left: str, reset: str) -> None:
    """It is read between an answer and the next request."""
    wait = limited(reset_format).used_up_for(Answer(200, {"x-left": left, "x-reset": reset}), now=NOW)
    assert wait is None or timedelta(0) <= wait <= timedelta(days=366)


def test_where_there_was_no_answer_there_are_no_headers() -> None:
    assert limited().used_up_for(Failure(FailureKind.ANSWER_LOST, "timeout"), now=NOW) is None
