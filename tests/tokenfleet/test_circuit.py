"""The rules of the circuit, on a clock of the test's own."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tokenfleet.circuit import (
    FIRST_OPEN_MS,
    JITTER,
    LONGEST_OPEN_MS,
    TRIAL_MS,
    Circuit,
    CircuitState,
    Memory,
    Report,
    Trial,
    open_ms,
)

START = 1_000_000_000
DOWN = Report(answers=10, outages=10)


def opened(at: int = START) -> Circuit:
    circuit = Circuit()
    assert circuit.report(DOWN, at).state is CircuitState.OPEN
    return circuit


def test_it_opens_with_ten_outages_that_are_half_of_what_was_heard() -> None:
    circuit = Circuit()
    assert circuit.report(Report(answers=9, outages=9), START).state is CircuitState.CLOSED
    assert circuit.report(Report(answers=11), START + 1).state is CircuitState.CLOSED
    assert circuit.report(Report(answers=1, outages=1), START + 2).state is CircuitState.CLOSED, "10 of 21"
    assert circuit.report(Report(answers=1, outages=1), START + 3).state is CircuitState.OPEN, "11 of 22"


def test_outages_of_more_than_half_a_minute_ago_are_forgotten() -> None:
    circuit = Circuit()
    circuit.report(Report(answers=9, outages=9), START)
    assert circuit.report(Report(answers=9, outages=9), START + 35_000).state is CircuitState.CLOSED


def test_what_the_provider_says_however_unpleasant_is_no_outage() -> None:
    circuit = Circuit()
    for moment in range(100):
        assert circuit.report(Report(answers=50), START + moment).state is CircuitState.CLOSED


def test_a_tenants_dead_host_alone_opens_nothing_and_a_cloud_that_is_down_does() -> None:
    circuit = Circuit()
    one = Report(answers=50, outages=50, varies=True, failing=["dead"])
    for moment in range(20):
        assert circuit.report(one, START + moment).state is CircuitState.CLOSED
    others = Report(answers=2, varies=True, answering=["a", "b"])
    circuit.report(others, START + 21)
    two = Report(answers=20, outages=20, varies=True, failing=["dead", "dead as well"])
    assert circuit.report(two, START + 22).state is CircuitState.CLOSED, "as many answer"
    more = Report(answers=5, outages=5, varies=True, failing=["a"])
    assert circuit.report(more, START + 23).state is CircuitState.OPEN


def test_one_trial_at_a_time_and_its_answer_closes_the_circuit() -> None:
    circuit = opened()
    wanted = Report(wants_trial=True)
    assert not circuit.report(wanted, START + 1000).trial_granted, "not while it is open"
    assert circuit.report(wanted, START + 5000).trial_granted
    assert not circuit.report(wanted, START + 5001).trial_granted
    closed = circuit.report(Report(trial=Trial.ANSWERED), START + 5200)
    assert (closed.state, closed.closed_for_ms) == (CircuitState.CLOSED, 0)


def test_a_trial_whose_worker_died_is_followed_by_another_and_an_unused_one_at_once() -> None:
    circuit = opened()
    wanted = Report(wants_trial=True)
    assert circuit.report(wanted, START + 5000).trial_granted
    assert circuit.report(Report(trial=Trial.UNUSED, wants_trial=True), START + 5100).trial_granted
    assert not circuit.report(wanted, START + 5100 + TRIAL_MS - 1).trial_granted
    assert circuit.report(wanted, START + 5100 + TRIAL_MS).trial_granted


def test_an_outage_of_the_trial_opens_it_for_twice_as_long_up_to_a_minute() -> None:
    circuit, now, lengths = opened(), START, []
    for _ in range(6):
        remaining = circuit.report(Report(), now).remaining_ms
        lengths.append(remaining)
        now += remaining
        circuit.report(Report(wants_trial=True), now)
        circuit.report(Report(trial=Trial.OUTAGE), now)
    assert lengths == [5_000, 10_000, 20_000, 40_000, 60_000, 60_000]


def test_a_circuit_that_opens_again_soon_after_it_closed_goes_on_doubling() -> None:
    circuit = opened()
    circuit.report(Report(wants_trial=True), START + 5000)
    circuit.report(Report(trial=Trial.ANSWERED), START + 5000)
    assert circuit.report(DOWN, START + 10_000).remaining_ms == 10_000


def test_late_failures_do_not_open_again_what_waits_for_its_trial() -> None:
    circuit = opened()
    for moment in (1000, 5000, 6000):
        circuit.report(DOWN, START + moment)
    assert circuit.report(Report(wants_trial=True), START + 6001).trial_granted


def test_what_somebody_remembers_is_put_back_where_it_was_forgotten_and_not_where_it_closed() -> None:
    memory = Memory(remaining_ms=4000, openings=3, trial_left_ms=0)
    forgotten = Circuit()
    standing = forgotten.report(Report(memory=memory), START)
    assert (standing.state, standing.remaining_ms, standing.openings) == (CircuitState.OPEN, 4000, 3)
    closed = opened()
    closed.report(Report(wants_trial=True), START + 5000)
    closed.report(Report(trial=Trial.ANSWERED), START + 5000)
    assert closed.report(Report(memory=memory), START + 5500).state is CircuitState.CLOSED


@given(openings=st.integers(-5, 10_000), chance=st.floats(0, 1))
def test_an_opening_lasts_from_four_seconds_to_a_minute(openings: int, chance: float) -> None:
    assert FIRST_OPEN_MS * (1 - JITTER) - 1 <= open_ms(openings, chance) <= LONGEST_OPEN_MS
