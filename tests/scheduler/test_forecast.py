"""The coming hour as arithmetic: who is asked sooner, and what is left of the rate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from scheduler.forecast import LEAST_WINDOW, capacities, flatten, slack, without
from store.coming_hour import Shift, Visits

BUCKETS = 12


@st.composite
def visits(draw: st.DrawFn) -> list[Visits]:
    """What is due of one app, at most one row for each bucket and permission, as the database counts it."""
    due = st.integers(0, BUCKETS - 1)
    pairs = draw(
        st.lists(due.flatmap(lambda d: st.tuples(st.just(d), st.integers(0, d))), unique=True, max_size=20)
    )
    return [Visits(due, earliest, draw(st.integers(1, 30))) for due, earliest in pairs]


rooms = st.lists(st.integers(0, 20), min_size=BUCKETS, max_size=BUCKETS)
unlimited = visits().map(lambda found: [Visits(each.due, 0, each.accounts) for each in found])


def after(found: Sequence[Visits], shifts: Sequence[Shift]) -> dict[tuple[int, int, int], int]:
    """How many accounts of each row (due, permitted) are asked in which bucket then."""
    asked = Counter({(each.due, each.earliest, each.due): each.accounts for each in merged(found)})
    for shift in shifts:
        asked[shift.due, shift.earliest, shift.due] -= shift.accounts
        asked[shift.due, shift.earliest, shift.target] += shift.accounts
    return {place: count for place, count in asked.items() if count}


def merged(found: Sequence[Visits]) -> list[Visits]:
    totals = Counter[tuple[int, int]]()
    for each in found:
        totals[each.due, each.earliest] += each.accounts
    return [Visits(due, earliest, count) for (due, earliest), count in totals.items()]


def by_bucket(asked: dict[tuple[int, int, int], int]) -> list[int]:
    totals = Counter[int]()
    for (_, _, bucket), count in asked.items():
        totals[bucket] += count
    return [totals[bucket] for bucket in range(BUCKETS)]


@given(visits(), rooms)
def test_visits_only_move_earlier_and_never_before_they_are_permitted(
    found: list[Visits], room: list[int]
) -> None:
    for shift in flatten(found, room):
        assert shift.accounts > 0
        assert 0 <= shift.earliest <= shift.target < shift.due


@given(visits(), rooms)
def test_nobody_is_lost_and_nobody_is_moved_twice(found: list[Visits], room: list[int]) -> None:
    asked = after(found, flatten(found, room))
    assert min(asked.values(), default=0) >= 0
    assert sum(asked.values()) == sum(each.accounts for each in found)


@given(visits(), rooms)
def test_who_stays_where_too_many_are_had_no_room_anywhere(found: list[Visits], room: list[int]) -> None:
    asked = after(found, flatten(found, room))
    load = by_bucket(asked)
    for due, earliest, bucket in asked:
        if bucket == due and load[bucket] > room[bucket]:
            assert all(load[passed] >= room[passed] for passed in range(earliest, due))


@given(unlimited, rooms)
def test_no_bucket_is_above_its_capacity_unless_even_the_first_is_full(
    found: list[Visits], room: list[int]
) -> None:
    load = by_bucket(after(found, flatten(found, room)))
    if any(count > capacity for count, capacity in zip(load, room, strict=True)):
        assert load[0] >= room[0]


@given(visits(), rooms)
def test_nobody_moves_further_than_he_must(found: list[Visits], room: list[int]) -> None:
    """Each token that is renewed early loses a part of its life: every bucket that is passed over is full."""
    shifts = flatten(found, room)
    load = by_bucket(after(found, shifts))
    for shift in shifts:
        assert all(load[passed] >= room[passed] for passed in range(shift.target + 1, shift.due + 1))


@given(visits(), rooms)
def test_moving_fills_no_bucket_above_its_capacity(found: list[Visits], room: list[int]) -> None:
    shifts = flatten(found, room)
    before, load = by_bucket(after(found, [])), by_bucket(after(found, shifts))
    for bucket in range(BUCKETS):
        assert load[bucket] <= max(room[bucket], before[bucket])


@given(unlimited, rooms)
def test_those_who_expire_latest_are_asked_latest(found: list[Visits], room: list[int]) -> None:
    """Among the moved, whoever was due later is still asked later."""
    shifts = flatten(merged(found), room)
    for one in shifts:
        for other in shifts:
            if one.due < other.due:
                assert one.target <= other.target


def test_nothing_moves_where_everybody_has_room() -> None:
    assert flatten([Visits(bucket, 0, 9) for bucket in range(BUCKETS)], [9] * BUCKETS) == []


def test_a_spike_fills_the_time_just_before_it() -> None:
    assert flatten([Visits(8, 0, 25)], [10] * BUCKETS) == [Shift(8, 0, 6, 5), Shift(8, 0, 7, 10)]


def test_whoever_may_be_asked_only_now_has_the_room_of_whoever_can_go_earlier() -> None:
    shifts = flatten([Visits(5, 5, 10), Visits(5, 0, 10)], [10] * BUCKETS)
    assert shifts == [Shift(5, 0, 4, 10)]
    # The later ones may not go before bucket 5, so those who were due there make room.
    assert sorted(
        flatten([Visits(6, 5, 20), Visits(5, 0, 10)], [10] * BUCKETS), key=lambda each: each.due
    ) == [
        Shift(5, 0, 4, 10),
        Shift(6, 5, 5, 10),
    ]


def test_an_hour_that_is_too_full_is_left_as_it_is() -> None:
    """Asking everybody at once would only delay those who expire soonest."""
    assert flatten([Visits(bucket, 0, 20) for bucket in range(BUCKETS)], [10] * BUCKETS) == []


@given(st.floats(0.001, 50), st.integers(1, 400))
def test_a_rate_below_one_in_ten_seconds_is_not_lost_in_rounding(per_bucket: float, count: int) -> None:
    found = capacities(per_bucket, count)
    assert len(found) == count
    assert abs(sum(found) - per_bucket * count) <= 1


@given(st.integers(0, 300), rooms)
def test_the_late_come_first_and_leave_what_they_do_not_take(late: int, room: list[int]) -> None:
    left = without(late, room)
    assert sum(room) - sum(left) == min(late, sum(room))
    assert all(0 <= each <= whole for each, whole in zip(left, room, strict=True))
    # Nobody is let in before all of them are through.
    begun = [bucket for bucket, each in enumerate(left) if each]
    assert not begun or sum(room[: begun[0] + 1]) >= late


def test_the_slack_is_what_the_fullest_stretch_leaves() -> None:
    assert slack([], 10, BUCKETS) == 1
    assert slack([Visits(bucket, 0, 6) for bucket in range(BUCKETS)], 10, BUCKETS) == 0.4
    # Everything within two minutes at once: it can be begun at once, but there is only so much time.
    assert slack([Visits(11, 0, 90)], 10, BUCKETS) == 0.25
    assert slack([Visits(11, 0, 180)], 10, BUCKETS) == -0.5
    # Not before the last minute, though: half of that will be late.
    assert slack([Visits(11, 6, 120)], 10, BUCKETS) == -1


def test_ten_busy_seconds_are_no_lack_of_rate() -> None:
    assert LEAST_WINDOW * 10 == 60
    assert slack([Visits(3, 3, 30)], 10, BUCKETS) == 0.5


@given(visits(), st.integers(1, 20))
def test_a_slack_below_nothing_means_that_no_plan_can_help(found: list[Visits], per_bucket: int) -> None:
    if slack(found, per_bucket, BUCKETS) < 0:
        load = by_bucket(after(found, flatten(found, [per_bucket] * BUCKETS)))
        assert max(load) > per_bucket
