"""Waiting for a slot: the requests of paced apps leave at the moments that ``store.limits`` gives out.

Invariants kept here:

* Nobody leaves before his slot, and the most urgent of those who wait here takes the next one.
* Slots are taken for about a tenth of a second at a time, by one call for all who wait; so a pause, or somebody more
  urgent, waits for no more than that.
* Who would have to wait for too long is told so at once, and holds up nobody.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from store.limits import Limits, Rate, Taken
from tokenfleet.jobs import AppId
from tokenfleet.pace import SECOND_US

LONGEST_WAIT_SECONDS: Final = 5.0
"""An account whose slot is further away is given back: its claim is running."""
POSTPONE_SECONDS: Final = 2.0
"""How soon an account is worth another look whose app lets nobody pass now."""
LEAD_SECONDS: Final = 0.005
"""How long before the first free slot the next ones are taken."""
LEAST_SLEEP_SECONDS: Final = 0.002
SLOW_ANSWER_SECONDS: Final = 0.25
"""Slots that this process hears of so late are over: it slept, and the others have gone on meanwhile."""
MOST_SLOW_ANSWERS: Final = 2
"""In a row; where Redis always takes that long, everybody is late by the same."""


@dataclass(frozen=True, slots=True)
class NotNow:
    """Nobody may be sent now; it is worth another try in ``seconds``."""

    seconds: float


@dataclass(slots=True, order=True)
class _Waiter:
    urgency: float
    number: int
    by: float = field(compare=False)
    slot: asyncio.Future[float | NotNow] = field(compare=False)


@dataclass(slots=True)
class _Line:
    """Those who wait for one app's slots. ``free_at`` is when the next slot is free, as far as we know."""

    rate: Rate
    waiting: list[_Waiter] = field(default_factory=list)
    free_at: float = 0.0
    slow_answers: int = 0
    serving: asyncio.Task[None] | None = None

    @property
    def interval(self) -> float:
        return self.rate.pace.interval_us / SECOND_US

    def begins(self, now: float) -> float:
        """Return from when on slots follow one another; before now where some of the burst is left."""
        return max(self.free_at, now - self.rate.pace.tolerance_us / SECOND_US)


class Pacer:
    """Slots for the requests of one worker process. Runs on one event loop."""

    def __init__(
        self,
        limits: Limits,
        *,
        clock: Callable[[], float],
        paused_seconds: Callable[[AppId], float],
        on_pause: Callable[[AppId, float], None],
    ) -> None:
        """``paused_seconds`` tells for how long this process knows an app to be paused; ``on_pause`` is told of a pause
        that others know of.
        """
        self._limits = limits
        self._clock = clock
        self._paused_seconds = paused_seconds
        self._on_pause = on_pause
        self._lines: dict[AppId, _Line] = {}
        self._numbers = itertools.count()
        self._telling: set[asyncio.Task[Taken]] = set()

    async def slot(self, app_id: AppId, rate: Rate, *, urgency: float, by: float) -> float | NotNow:
        """Wait for a slot and return its moment, which has come; or how long there will be none.

        The least ``urgency`` goes first. ``by`` is the moment after which a slot is of no use.
        """
        line = self._line(app_id, rate)
        by = min(by, self._clock() + LONGEST_WAIT_SECONDS)
        now = self._clock()
        expected = line.begins(now) + len(line.waiting) * line.interval
        if expected > by:
            return NotNow(expected - now)
        waiter = _Waiter(urgency, next(self._numbers), by, asyncio.get_running_loop().create_future())
        heapq.heappush(line.waiting, waiter)
        if line.serving is None:
            line.serving = asyncio.create_task(self._serve(app_id, line))
        moment = await waiter.slot
        if not isinstance(moment, NotNow):
            # A timer may be a little early.
            while (left := moment - self._clock()) > 0:  # noqa: ASYNC110
                await asyncio.sleep(left)
        return moment

    def expect(self, app_id: AppId, rate: Rate, count: int) -> tuple[int, NotNow]:
        """Return how many of ``count`` more can hope for a slot in time, and when the others should come again."""
        line, now = self._line(app_id, rate), self._clock()
        first = line.begins(now) + len(line.waiting) * line.interval
        hopeful = int((now + LONGEST_WAIT_SECONDS - first) / line.interval) + 1
        hopeful = min(max(hopeful, 0), count)
        # They are claimed, sent and started once more meanwhile, so they come a little early.
        wait = first + hopeful * line.interval - now - LONGEST_WAIT_SECONDS / 2
        return hopeful, NotNow(max(wait, LONGEST_WAIT_SECONDS / 2))

    def refuse(self, app_id: AppId, seconds: float) -> None:
        """Send everybody away who waits for a slot of this app."""
        line = self._lines.get(app_id)
        if line is not None:
            waiting, line.waiting = line.waiting, []
            for waiter in waiting:
                _tell(waiter, NotNow(seconds))

    def refuse_all(self) -> None:
        """Send everybody away."""
        for app_id in self._lines:
            self.refuse(app_id, 0.0)

    def announce(self, app_id: AppId, rate: Rate) -> None:
        """Tell the other workers at once of a pause that this process knows of."""
        telling = asyncio.create_task(
            self._limits.take(app_id, rate, 0, paused_seconds=self._paused_seconds(app_id))
        )
        self._telling.add(telling)
        telling.add_done_callback(self._telling.discard)

    def _line(self, app_id: AppId, rate: Rate) -> _Line:
        line = self._lines.get(app_id)
        if line is None or line.rate != rate:
            line = self._lines.setdefault(app_id, _Line(rate))
            line.rate = rate
        return line

    async def _serve(self, app_id: AppId, line: _Line) -> None:
        try:
            while line.waiting:
                pause = await self._serve_once(app_id, line)
                await asyncio.sleep(pause)
        finally:
            line.serving = None
            self.refuse(app_id, POSTPONE_SECONDS)

    async def _serve_once(self, app_id: AppId, line: _Line) -> float:
        """Take slots for those who wait; returns how long to wait before the next ones are taken."""
        asked_at = self._clock()
        taken = await self._limits.take(
            app_id, line.rate, len(line.waiting), paused_seconds=self._paused_seconds(app_id)
        )
        if taken.paused_seconds > 0:
            self._on_pause(app_id, taken.paused_seconds)
            self.refuse(app_id, POSTPONE_SECONDS)
            return 0.0
        is_slow = self._clock() - asked_at > SLOW_ANSWER_SECONDS
        if is_slow and line.slow_answers < MOST_SLOW_ANSWERS:
            line.slow_answers += 1
            return 0.0
        line.slow_answers = 0
        line.free_at = taken.moment(taken.slots.count)
        for index in range(taken.slots.count):
            moment = taken.moment(index)
            while line.waiting:
                waiter = heapq.heappop(line.waiting)
                if waiter.by >= moment:
                    _tell(waiter, moment)
                    break
                _tell(waiter, NotNow(moment - self._clock()))
        hopeless = [waiter for waiter in line.waiting if waiter.by < line.free_at]
        if hopeless:
            line.waiting = [waiter for waiter in line.waiting if waiter.by >= line.free_at]
            heapq.heapify(line.waiting)
        for waiter in hopeless:
            _tell(waiter, NotNow(line.free_at - self._clock()))
        return max(line.free_at - LEAD_SECONDS - self._clock(), LEAST_SLEEP_SECONDS)


def _tell(waiter: _Waiter, answer: float | NotNow) -> None:
    if not waiter.slot.done():
        waiter.slot.set_result(answer)
