"""Who takes the next slot: in any order of arrivals, and in a storm of requests. Pure."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st

from store.claiming import REQUESTED_SHARE
from workers.lines import LATE_SECONDS, LATE_SHARE, Line, Waiter

NOBODYS_SLOT = cast("asyncio.Future[Any]", None)


def waiter(
    number: int, due_at: float, *, is_requested: bool = False, by: float = 1e9, was_due: bool | None = None
) -> Waiter:
    """Somebody who became due at a moment of the line's clock; by a request, unless it is said that it was before."""
    was_due = not is_requested if was_due is None else was_due
    return Waiter(due_at, number, by, NOBODYS_SLOT, is_requested, due_at + LATE_SECONDS, was_due)


def simulated(arrivals: list[tuple[float, bool]], *, interval: float) -> list[tuple[float, Waiter]]:
    """Return who leaves when, where one slot is free each ``interval``."""
    line, left, clock = Line(), list[tuple[float, Waiter]](), 0.0
    waiting = [
        waiter(number, at, is_requested=is_requested) for number, (at, is_requested) in enumerate(arrivals)
    ]
    waiting.sort(key=lambda each: each.urgency)
    while waiting or len(line):
        while waiting and waiting[0].urgency <= clock:
            line.add(waiting.pop(0))
        if len(line):
            left.append((clock, line.pop(clock)))
        clock += interval
    return left


def test_a_storm_of_requests_makes_nobody_late_whom_the_rate_could_serve_in_time() -> None:
    """5,000 requests at once at an app of 100/s of which its own accounts take 95."""
    storm = [(1.0, True)] * 5000
    due = [(number / 95, False) for number in range(95 * 60)]
    left = simulated(storm + due, interval=0.01)
    lateness = [at - who.urgency for at, who in left if not who.is_requested]
    assert max(lateness) <= LATE_SECONDS + 0.1
    assert len(lateness) == len(due)
    # While both wait, and nobody is late, one in four is a request; what is left over is theirs as well.
    first = [who.is_requested for at, who in left if 1.0 <= at < 2.0]
    assert sum(first) == len(first) // REQUESTED_SHARE
    assert len(left) == len(storm) + len(due)
    # Nor do the requests starve meanwhile.
    assert len([at for at, who in left if who.is_requested and at < 30]) >= 29 * 100 // LATE_SHARE


def test_a_request_does_not_wait_behind_a_crowd_that_is_due() -> None:
    line = Line()
    for number in range(500):
        line.add(waiter(number, 9.0 + number / 1000))
    assert line.ahead_of(is_requested=True) == 0
    line.add(waiter(900, 10.0, is_requested=True))
    line.add(waiter(901, 10.0, is_requested=True))
    order = [line.pop(10.0).is_requested for _ in range(8)]
    assert order == [True, False, False, False, True, False, False, False]


def test_who_has_been_due_for_too_long_goes_before_all_requests_but_a_few() -> None:
    line = Line()
    for number in range(2 * LATE_SHARE):
        line.add(waiter(number, 0.0))
        line.add(waiter(number, -1.0, is_requested=True))
    first, *others = [line.pop(LATE_SECONDS).is_requested for _ in range(2 * LATE_SHARE)]
    assert first
    assert sum(others) == 1
    assert others.index(True) == LATE_SHARE - 1


def test_who_was_due_before_a_reader_asked_goes_no_later_for_that() -> None:
    """After an outage all are late, and readers ask for those that they need: each third here."""
    line = Line()
    for number in range(60):
        line.add(waiter(number, number / 60, is_requested=number % 3 == 0, was_due=True))
    for number in range(100, 160):
        line.add(waiter(number, -1.0, is_requested=True))
    order = [line.pop(2 * LATE_SECONDS) for _ in range(120)]
    places = {each.number: place for place, each in enumerate(order)}
    # Of a storm that came before one in twenty goes between; who is merely due is passed by nobody else.
    assert all(places[number] <= number * LATE_SHARE / (LATE_SHARE - 1) + 1 for number in range(60))
    assert sorted(places) == [*range(60), *range(100, 160)]
    assert len(line) == 0


kinds = st.lists(st.tuples(st.floats(0, 20), st.booleans()), min_size=1, max_size=60)


@given(arrivals=kinds, interval=st.sampled_from([0.05, 0.5, 3.0]))
def test_everybody_leaves_once_and_each_kind_in_its_order(
    arrivals: list[tuple[float, bool]], interval: float
) -> None:
    left = simulated(arrivals, interval=interval)
    assert sorted(who.number for _, who in left) == list(range(len(arrivals)))
    assert all(at >= who.urgency for at, who in left)
    for is_requested in (True, False):
        kind = [(at, who) for at, who in left if who.is_requested is is_requested]
        for index, (at, who) in enumerate(kind):
            # Nobody of the same kind who was there and more urgent left after it.
            assert not [other for _, other in kind[index + 1 :] if other.urgency < who.urgency <= at]


@given(arrivals=kinds, now=st.floats(0, 30))
def test_nobody_expects_a_slot_later_than_the_last_of_the_line(
    arrivals: list[tuple[float, bool]], now: float
) -> None:
    line = Line()
    for number, (at, is_requested) in enumerate(arrivals):
        was_due = not is_requested or number % 2 == 0
        line.add(waiter(number, at, is_requested=is_requested, by=at + 5, was_due=was_due))
    for is_requested in (True, False):
        assert 0 <= line.ahead_of(is_requested=is_requested) <= len(line)
    hopeless = line.without_hope(now)
    assert {each.number for each in hopeless} == {
        number for number, (at, _) in enumerate(arrivals) if at + 5 < now
    }
    assert len(line) + len(hopeless) == len(arrivals)
    assert len(line.clear()) == len(arrivals) - len(hopeless)
    assert len(line) == 0
