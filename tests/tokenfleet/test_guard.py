"""The guard's arithmetic: never more than the limit in a window, and what is usual cannot be taught too much."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenfleet.guard import LEAST_LIMIT, WINDOW, Window, learned, limit_of

NOON = datetime(2026, 3, 10, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("accounts", "usual", "limit"),
    [
        (1, 0.0, 20),
        (1_000, 0.0, 20),
        (10_000, 0.0, 100),
        (10_050, 0.0, 101),
        (1_000, 12.0, 36),
        # What is usual never raises it above a twentieth of the accounts.
        (1_000, 400.0, 50),
        (100, 400.0, 20),
    ],
)
def test_the_limit_is_twenty_or_a_hundredth_or_three_times_the_usual(
    accounts: int, usual: float, limit: int
) -> None:
    assert limit_of(accounts, usual) == limit


def test_windows_without_rejections_are_learned_from_as_well() -> None:
    busy = Window(NOON, 20, 20, 10.0)
    soon, late = (busy.following(NOON + WINDOW * count, accounts=1_000).usual for count in (1, 100))
    assert soon == pytest.approx(10.5)
    assert late < 0.1
    assert learned(0.0, 40, windows=1) == pytest.approx(2.0)


def test_a_window_that_an_incident_ended_teaches_nothing() -> None:
    ended = Window(None, 0, None, 3.0)
    assert ended.following(NOON, accounts=1_000).usual == 3.0


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 60), st.integers(0, 900)), max_size=40),
    st.integers(1, 5_000),
)
def test_no_window_lets_more_pass_than_its_limit(batches: list[tuple[int, int]], accounts: int) -> None:
    window, now, passed = Window(), NOON, 0
    for count, seconds in batches:
        now += timedelta(seconds=seconds)
        if window.is_over(now):
            window, passed = window.following(now, accounts=accounts), 0
        assert window.limit is not None
        assert window.limit <= max(LEAST_LIMIT, accounts / 20 + 1)
        admitted = window.admitting(count)
        assert (admitted is None) == (passed + count > window.limit)
        if admitted is not None:
            window, passed = admitted, passed + count
