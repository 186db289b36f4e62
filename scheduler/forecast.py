"""Whether one app's rate is enough for the coming hour, and who had better be asked sooner so that it is.

Pure arithmetic on counts. A visit moves to an earlier bucket only, never to before the moment it is permitted, and
only as far as it has to: every bucket that it passes over is full. A token that is renewed early has a shorter life,
so nothing moves while nothing is above capacity, and what has no room anywhere stays where it was: moving it would
only push in front of those who expire sooner.

What is refreshed within the hour is due again, perhaps still within it. That is not counted: the next minute sees it.
Nor does what is late already lessen the slack: after an outage it says nothing of the rate, and goes by itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import Final

from store.coming_hour import Shift, Visits

LEAST_WINDOW: Final = 6
"""Buckets: what is due within a minute may take that minute, for tokens are renewed a minute before they expire."""


def capacities(per_bucket: float, count: int) -> list[int]:
    """Return how many whole requests each bucket takes at ``per_bucket`` on average, which may be less than one."""
    totals = [int(per_bucket * number) for number in range(count + 1)]
    return [after - before for before, after in pairwise(totals)]


def without(late: int, capacity: Sequence[int]) -> list[int]:
    """Return what is left of each bucket's capacity when ``late`` visits are made first."""
    rooms: list[int] = []
    for each in capacity:
        taken = min(late, each)
        late -= taken
        rooms.append(each - taken)
    return rooms


def flatten(visits: Sequence[Visits], capacity: Sequence[int]) -> list[Shift]:
    """Return who moves where, so that no bucket is above its capacity if that is possible.

    Backwards in time, each bucket takes first what is permitted no sooner, then its own, then the latest of what did
    not fit into later ones. So the moved keep their order, and nobody moves past a bucket with room.
    """
    due: list[list[Visits]] = [[] for _ in capacity]
    for each in visits:
        due[each.due].append(each)
    shifts: list[Shift] = []
    waiting: list[Visits] = []
    left: Counter[int] = Counter()
    for bucket in reversed(range(len(capacity))):
        room = capacity[bucket]
        candidates = due[bucket] + waiting
        waiting = []
        # Most buckets have room for all that is due in them.
        if sum(each.accounts for each in candidates) > room:
            candidates.sort(key=lambda each: (-each.earliest, each.due != bucket, -each.due))
        for each in candidates:
            taken = min(each.accounts, room)
            room -= taken
            if taken and each.due != bucket:
                shifts.append(Shift(each.due, each.earliest, bucket, taken))
            rest = each.accounts - taken
            if rest and each.earliest < bucket:
                waiting.append(Visits(each.due, each.earliest, rest))
            else:
                left[each.due] += rest
    return list(_worthwhile(shifts, left))


def _worthwhile(shifts: Sequence[Shift], left: Counter[int]) -> Iterator[Shift]:
    """Yield the shifts that help: not those into a bucket whose own visits made room, and then found none.

    ``left`` counts, by the bucket they are due in, those for whom there was no room.
    """
    for shift in sorted(shifts, key=lambda each: (each.target, -each.due)):
        back = min(shift.accounts, left[shift.target])
        left[shift.target] -= back
        left[shift.due] += back
        if back < shift.accounts:
            yield replace(shift, accounts=shift.accounts - back)


def slack(visits: Sequence[Visits], per_bucket: float, buckets: int) -> float:
    """Return the least part of the rate that is left over, in whatever stretch of a minute or more it is least.

    That is (capacity - demand) / capacity, the demand of a stretch being what must be asked within it: due by its end,
    and not permitted before its beginning. 1 when nothing is due; below 0 there is more to ask than the rate allows,
    however early one begins: -0.5 means half as much again.
    """
    by_earliest: dict[int, list[Visits]] = {}
    for each in visits:
        by_earliest.setdefault(each.earliest, []).append(each)
    demand = [0] * buckets
    least = 1.0
    for first in sorted(by_earliest, reverse=True):
        for each in by_earliest[first]:
            demand[each.due] += each.accounts
        most = max(
            total / max(length, LEAST_WINDOW)
            for length, total in enumerate(accumulate(demand[first:]), start=1)
        )
        least = min(least, 1 - most / per_bucket)
    return least
