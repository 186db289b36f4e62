"""The arithmetic of the pace, against the provider's own words: in any window of w seconds at most rate * w + burst."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tokenfleet.pace import HORIZON_US, LEAST_JITTER_US, SECOND_US, Pace, claim_window, ramp, take

rates = st.floats(0.001, 100_000)
bursts = st.integers(1, 500)


def arrivals_of(pace: Pace, steps: list[tuple[float, int, float]], start: int) -> list[int]:
    """Return when requests arrive for whom slots were taken, after a long silence.

    Each step: after so many intervals, for so many, so late within the jitter.
    """
    now, arrival, arrivals = start, 0, []
    for passes, wanted, late in steps:
        now += int(passes * pace.interval_us)
        arrival, slots = take(arrival, now, wanted, pace)
        arrivals += [
            now + slots.offset_us(index) + int(pace.jitter_us * late) for index in range(slots.count)
        ]
    return sorted(arrivals)


@given(
    steps=st.lists(
        st.tuples(st.floats(0, 3) | st.floats(0, 100), st.integers(1, 12), st.sampled_from([0.0, 0.5, 1.0])),
        min_size=2,
        max_size=25,
    ),
    rate=rates,
    burst=st.integers(1, 12) | bursts,
    start=st.integers(10**9, 10**15),
)
@example(steps=[(0, 10, 1.0), *[(1, 1, 0.0)] * 9], rate=10.0, burst=10, start=10**9)
@example(steps=[(0, 1, 1.0), (1, 1, 0.0)], rate=1.0, burst=1, start=10**9)
@example(steps=[(0, 1, 1.0), (1, 1, 0.0), (1, 1, 0.0)], rate=100.0, burst=2, start=10**9)
def test_in_no_window_does_more_arrive_than_the_rate_allows_plus_one_burst(
    steps: list[tuple[float, int, float]], rate: float, burst: int, start: int
) -> None:
    """However late each request is within the jitter, and however the slots were asked for."""
    spacing = SECOND_US / Fraction(rate)
    most = Fraction(-1)
    for number, moment in enumerate(arrivals_of(Pace.of(rate, burst), steps, start)):
        # Between request i and this one lie at least (number - i + 1 - burst) intervals: the same, for the worst i.
        behind = moment - start - number * spacing
        most = max(most, behind)
        # A microsecond for the rounding of the lateness.
        assert most - behind <= (burst - 1) * spacing + 1


@given(rate=rates, burst=bursts, start=st.integers(0, 10**15), wanted=st.integers(1, 1000))
def test_whoever_knows_nothing_of_what_was_taken_grants_nothing_that_could_have_been(
    rate: float, burst: int, start: int, wanted: int
) -> None:
    """A memory that is lost in the middle of a burst costs slowness, not a second burst."""
    pace = Pace.of(rate, burst)
    _, before = take(start - 10**12, start, 10**6, pace)
    last = before.offset_us(before.count - 1)
    _, after = take(None, start, wanted, pace)
    assert after.offset_us(0) >= last + pace.interval_us


@given(rate=st.floats(1, 1000), burst=st.integers(2, 100))
def test_a_steady_app_gets_its_rate_unless_that_is_finer_than_the_jitter_and_an_idle_one_half_of_its_burst(
    rate: float, burst: int
) -> None:
    pace = Pace.of(rate, burst)
    assert pace.interval_us <= max(SECOND_US / rate, LEAST_JITTER_US) + 1
    _, slots = take(0, 10**12, 10**6, pace)
    at_once = sum(slots.offset_us(index) == 0 for index in range(slots.count))
    assert at_once >= min(burst // 2, pace.tolerance_us // pace.interval_us + 1)


@given(rate=st.floats(0.001, 100_000), burst=bursts, early=st.integers(0, 10**9))
def test_a_moment_from_another_clock_holds_nobody_up_for_long(rate: float, burst: int, early: int) -> None:
    """After a failover Redis may tell another time."""
    pace = Pace.of(rate, burst)
    _, slots = take(10**12 + early, 10**12, 1, pace)
    assert slots.offset_us(0) <= HORIZON_US + pace.interval_us


@pytest.mark.parametrize(
    ("rate", "burst", "limit", "window"),
    [(None, 1, 2000, 2000), (20.0, 5, 2000, 85), (0.05, 1, 2000, 2), (1500.0, 1500, 2000, 2000)],
)
def test_a_window_is_four_seconds_of_the_rate_and_the_burst(
    rate: float | None, burst: int, limit: int, window: int
) -> None:
    assert claim_window(rate, burst, limit) == window


@given(st.floats(-10, 1e6), st.floats(0, 1e6))
def test_a_ramp_begins_with_ten_and_never_goes_down(moment: float, later: float) -> None:
    assert ramp(0) == 10
    assert ramp(moment) <= ramp(moment + later)
    assert ramp(1) == 20
    assert ramp(8) == 2560
