"""Who of those who wait for one app's slots takes the next one. Pure.

Accounts that a reader waits for go ahead of those that are merely due, but not at their cost. Invariants kept here:

* Within each of the two kinds, who has been due for longest goes first.
* While both kinds wait, one slot in :data:`~store.schedule.REQUESTED_SHARE` is for a requested account, and the first
  one does not wait for its turn.
* Who has been due for :data:`LATE_SECONDS` goes before requested ones, but for one slot in :data:`LATE_SHARE`: a storm
  of requests makes nobody's token expire (G1), and an app that is late for good still has a place for whom a reader
  waits for.
"""

from __future__ import annotations

import asyncio
import heapq
from dataclasses import dataclass, field
from typing import Final

from store.schedule import REQUESTED_SHARE

LATE_SECONDS: Final = 5.0
"""How long after its due moment an account yields to requested ones. Readers are owed 30 s, and the margin of the
shortest lives leaves 10 s beside that (``tokenfleet.tokens``): half of these."""
LATE_SHARE: Final = 20


@dataclass(frozen=True, slots=True)
class NotNow:
    """Nobody may be sent now; it is worth another try in ``seconds``."""

    seconds: float


@dataclass(slots=True, order=True)
class Waiter:
    """Waits for a slot until ``by``. The least ``urgency`` goes first; from ``late_from`` on, before requested ones."""

    urgency: float
    number: int
    by: float = field(compare=False)
    slot: asyncio.Future[float | NotNow] = field(compare=False)
    is_requested: bool = field(default=False, compare=False)
    late_from: float = field(default=float("inf"), compare=False)


class Line:
    """Those who wait, in the order in which they go."""

    def __init__(self) -> None:
        self._due: list[Waiter] = []
        self._requested: list[Waiter] = []
        self._since_requested = LATE_SHARE
        """Slots that went to others since a requested account had one."""

    def __len__(self) -> int:
        return len(self._due) + len(self._requested)

    def add(self, waiter: Waiter) -> None:
        """Let somebody wait."""
        heapq.heappush(self._requested if waiter.is_requested else self._due, waiter)

    def pop(self, now: float) -> Waiter:
        """Return who takes the next slot. Somebody waits."""
        if self._requested and (not self._due or self._is_turn_of_requested(now)):
            self._since_requested = 0
            return heapq.heappop(self._requested)
        self._since_requested += 1
        return heapq.heappop(self._due)

    def ahead_of(self, *, is_requested: bool) -> float:
        """Return how many slots go to others before one who joins now, if nobody joins after."""
        due, requested = len(self._due), len(self._requested)
        if is_requested:
            return min(requested * REQUESTED_SHARE, requested + due)
        return min(due * REQUESTED_SHARE / (REQUESTED_SHARE - 1) + 1, requested + due)

    def slots_for_each(self, *, is_requested: bool) -> float:
        """Return how many slots pass for each one of a kind, the others taken in."""
        if is_requested:
            return float(REQUESTED_SHARE) if self._due else 1.0
        return REQUESTED_SHARE / (REQUESTED_SHARE - 1) if self._requested else 1.0

    def without_hope(self, free_at: float) -> list[Waiter]:
        """Remove and return who would wait for nothing, no slot being free before ``free_at``."""
        hopeless = [waiter for waiter in (*self._due, *self._requested) if waiter.by < free_at]
        if hopeless:
            self._due = [waiter for waiter in self._due if waiter.by >= free_at]
            self._requested = [waiter for waiter in self._requested if waiter.by >= free_at]
            heapq.heapify(self._due)
            heapq.heapify(self._requested)
        return hopeless

    def clear(self) -> list[Waiter]:
        """Remove and return everybody."""
        everybody = [*self._due, *self._requested]
        self._due, self._requested = [], []
        return everybody

    def _is_turn_of_requested(self, now: float) -> bool:
        share = LATE_SHARE if self._due[0].late_from <= now else REQUESTED_SHARE
        return self._since_requested >= share - 1
