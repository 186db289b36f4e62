"""What is a spike of openings, and what is none: however the numbers fall."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenfleet.unsealing import (
    EXPLAINED_BY_RECORD,
    EXPLAINED_BY_WORK,
    FACTOR,
    LEAST,
    LEAST_DAYS,
    PER_ATTEMPT,
    USUAL_DAYS,
    Openings,
    expected_of,
    is_spike,
)
from tokenfleet_client.unsealings import Purpose

COUNTS = st.integers(0, 10**9)
OPENINGS = st.builds(
    Openings,
    purpose=st.sampled_from(Purpose),
    opened=COUNTS,
    busiest=st.lists(COUNTS, max_size=USUAL_DAYS + 1),
    days=st.floats(0, 400),
    attempts=COUNTS,
    on_record=st.booleans(),
)
LEARNED = sorted(set(Purpose) - EXPLAINED_BY_WORK)


def reading(opened: int, *busiest: int, days: float = 30) -> Openings:
    return Openings(Purpose.READ, opened, busiest, days)


@given(OPENINGS, COUNTS)
def test_more_openings_never_make_a_spike_less_of_one(openings: Openings, more: int) -> None:
    assert is_spike(openings) <= is_spike(replace(openings, opened=openings.opened + more))


@given(OPENINGS, COUNTS)
def test_more_work_and_a_busier_past_never_make_a_spike(openings: Openings, more: int) -> None:
    busier = [each + more for each in openings.busiest]
    calmer = replace(
        openings, attempts=openings.attempts + more, busiest=[*busier, more], on_record=openings.on_record
    )
    assert is_spike(calmer) <= is_spike(openings)


@given(OPENINGS)
def test_a_lasting_spike_ends_later_than_a_new_one_begins(openings: Openings) -> None:
    assert is_spike(openings) <= is_spike(openings, lasting=True)


@given(OPENINGS, st.randoms())
def test_the_order_of_days_says_nothing(openings: Openings, chance: object) -> None:
    assert expected_of(openings) == expected_of(replace(openings, busiest=sorted(openings.busiest)))


@given(OPENINGS)
def test_a_few_openings_are_nobodys_spike(openings: Openings) -> None:
    assert not is_spike(replace(openings, opened=min(openings.opened, 50)))


@given(OPENINGS)
def test_what_happened_on_two_days_is_usual(openings: Openings) -> None:
    assert not is_spike(replace(openings, busiest=[*openings.busiest, openings.opened, openings.opened]))


@given(OPENINGS)
def test_one_day_teaches_nothing(openings: Openings) -> None:
    """Whoever took everything yesterday has not made it usual."""
    calm = replace(openings, busiest=[10] * 7)
    assert expected_of(replace(calm, busiest=[*calm.busiest, 10**9])) == expected_of(calm)


@pytest.mark.parametrize("purpose", LEARNED)
def test_a_young_installation_is_quiet_about_what_it_cannot_know_yet(purpose: Purpose) -> None:
    young = Openings(purpose, 10**6, days=LEAST_DAYS - 0.1)
    assert not is_spike(young)
    assert is_spike(replace(young, days=LEAST_DAYS))


@pytest.mark.parametrize("purpose", sorted(EXPLAINED_BY_WORK))
def test_what_a_worker_opens_needs_work_that_explains_it_from_the_first_day(purpose: Purpose) -> None:
    caught_up = Openings(purpose, 400_000, attempts=100_000)
    assert not is_spike(caught_up), "an outage that is caught up with"
    assert is_spike(Openings(purpose, LEAST + 1)), "nobody was refreshed"
    assert is_spike(replace(caught_up, opened=LEAST + PER_ATTEMPT * 100_000 + 1))


@pytest.mark.parametrize("purpose", sorted(EXPLAINED_BY_RECORD))
def test_a_bulk_command_is_explained_by_the_audit_log_and_by_nothing_less(purpose: Purpose) -> None:
    bulk = Openings(purpose, 10**7, days=30, on_record=True)
    assert not is_spike(bulk)
    assert is_spike(replace(bulk, on_record=False))
    assert is_spike(Openings(Purpose.EXPORT, 10**5, days=30, on_record=True)), (
        "an export is told all the same"
    )


def test_a_reader_that_takes_everything_is_a_spike_and_a_nightly_job_is_not() -> None:
    daily = [900, 1100, 1000, 950, 1050, 990, 1010]
    assert is_spike(reading(100_000, *daily))
    assert not is_spike(reading(FACTOR * 1050, *daily))
    assert is_spike(reading(FACTOR * 1050 + 1, *daily))
    nightly = [40_000, 41_000, 39_500]
    assert not is_spike(reading(60_000, *nightly))
    assert is_spike(reading(150_000, *nightly))
    weekly = [70_000, 300, 310, 290, 305, 300, 295, 70_000]
    assert not is_spike(reading(71_000, *weekly))
