"""Who of those who wait for one app's slots takes the next one. Pure.

Accounts that a reader waits for go ahead of those that are merely due, but not at their cost. Invariants kept here:

* Within each of the two kinds, who has been due for longest goes first. Who was due before a reader asked for it is of
  both kinds and goes when it is its turn in either: being wanted makes nobody late.
* While both kinds wait, one slot in :data:`~store.claiming.REQUESTED_SHARE` is for a requested account, and the first
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

from store.claiming import REQUESTED_SHARE

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
    was_due: bool = field(default=True, compare=False)
    """Not brought forward by a request: those who are not requested are all due."""
    has_left: bool = field(default=False, compare=False)


class Line:
    """Those who wait, in the order in which they go."""

    def __init__(self) -> None:
        self._due: list[Waiter] = []
        self._requested: list[Waiter] = []
        # Who has left one of the two stays in the other until it is at its head.
        self._all = self._count_due = self._count_requested = 0
        self._since_requested = LATE_SHARE
        """Slots that went to others since a requested account had one."""

    def __len__(self) -> int:
        return self._all

    def add(self, waiter: Waiter) -> None:
        """Let somebody wait."""
        if waiter.was_due:
            heapq.heappush(self._due, waiter)
        if waiter.is_requested:
            heapq.heappush(self._requested, waiter)
        self._count(waiter, 1)

    def pop(self, now: float) -> Waiter:
        """Return who takes the next slot. Somebody waits."""
        for kind in (self._due, self._requested):
            while kind and kind[0].has_left:
                heapq.heappop(kind)
        if self._requested and (not self._due or self._is_turn_of_requested(now)):
            self._since_requested = 0
            waiter = heapq.heappop(self._requested)
        else:
            self._since_requested += 1
            waiter = heapq.heappop(self._due)
        self._leave(waiter)
        return waiter

    def ahead_of(self, *, is_requested: bool) -> float:
        """Return how many slots go to others before one who joins now, if nobody joins after."""
        if is_requested:
            return min(self._count_requested * REQUESTED_SHARE, self._all)
        return min(self._count_due * REQUESTED_SHARE / (REQUESTED_SHARE - 1) + 1, self._all)

    def slots_for_each(self, *, is_requested: bool) -> float:
        """Return how many slots pass for each one of a kind, the others taken in."""
        if is_requested:
            return float(REQUESTED_SHARE) if self._count_due else 1.0
        return REQUESTED_SHARE / (REQUESTED_SHARE - 1) if self._count_requested else 1.0

    def without_hope(self, free_at: float) -> list[Waiter]:
        """Remove and return who would wait for nothing, no slot being free before ``free_at``."""
        hopeless = [waiter for waiter in self._everybody() if waiter.by < free_at]
        for waiter in hopeless:
            self._leave(waiter)
        if hopeless:
            self._due = [waiter for waiter in self._due if not waiter.has_left]
            self._requested = [waiter for waiter in self._requested if not waiter.has_left]
            heapq.heapify(self._due)
            heapq.heapify(self._requested)
        return hopeless

    def clear(self) -> list[Waiter]:
        """Remove and return everybody."""
        everybody = self._everybody()
        for waiter in everybody:
            self._leave(waiter)
        self._due, self._requested = [], []
        return everybody

    def _everybody(self) -> list[Waiter]:
        not_due = (waiter for waiter in self._requested if not waiter.was_due)
        return [waiter for waiter in (*self._due, *not_due) if not waiter.has_left]

    def _leave(self, waiter: Waiter) -> None:
        waiter.has_left = True
        self._count(waiter, -1)

    def _count(self, waiter: Waiter, change: int) -> None:
        self._all += change
        self._count_due += change if waiter.was_due else 0
        self._count_requested += change if waiter.is_requested else 0

    def _is_turn_of_requested(self, now: float) -> bool:
        share = LATE_SHARE if self._due[0].late_from <= now else REQUESTED_SHARE
        return self._since_requested >= share - 1
