"""Waiting for a slot: the requests of paced apps leave at the moments that ``store.limits`` gives out.

Invariants kept here:

* Nobody leaves before his slot, and the most urgent of those who wait here takes the next one (``workers.lines``).
* Slots are taken for about a tenth of a second at a time, by one call for all who wait; so a pause, or somebody more
  urgent, waits for no more than that.
* Who would have to wait for too long is told so at once, and holds up nobody.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from store.limits import Limits, Rate, Taken
from tokenfleet.jobs import AppId
from tokenfleet.pace import SECOND_US
from workers.lines import LATE_SECONDS, Line, NotNow, Waiter

__all__ = ["LONGEST_WAIT_SECONDS", "POSTPONE_SECONDS", "NotNow", "Pacer"]

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


@dataclass(slots=True)
class _Slots:
    """One app's slots and who waits for them. ``free_at`` is when the next one is free, as far as we know."""

    rate: Rate
    waiting: Line = field(default_factory=Line)
    free_at: float = 0.0
    slow_answers: int = 0
    serving: asyncio.Task[None] | None = None

    @property
    def interval(self) -> float:
        return self.rate.pace.interval_us / SECOND_US

    def begins(self, now: float) -> float:
        """Return from when on slots follow one another; before now where some of the burst is left."""
        return max(self.free_at, now - self.rate.pace.tolerance_us / SECOND_US)

    def expected(self, now: float, *, is_requested: bool) -> float:
        """Return when somebody who joins now can expect a slot."""
        return self.begins(now) + self.waiting.ahead_of(is_requested=is_requested) * self.interval


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
        self._lines: dict[AppId, _Slots] = {}
        self._numbers = itertools.count()
        self._telling: set[asyncio.Task[Taken]] = set()

    async def slot(
        self,
        app_id: AppId,
        rate: Rate,
        *,
        urgency: float,
        by: float,
        is_requested: bool = False,
        was_due: bool = True,
        overdue_seconds: float = 0.0,
    ) -> float | NotNow:
        """Wait for a slot and return its moment, which has come; or how long there will be none.

        The least ``urgency`` goes first. ``by`` is the moment after which a slot is of no use. ``is_requested`` says
        that a reader waits for it, ``was_due`` that it was due before.
        """
        line = self._line(app_id, rate)
        by = min(by, self._clock() + LONGEST_WAIT_SECONDS)
        now = self._clock()
        kinds = {is_requested} | ({False} if was_due else set())
        expected = min(line.expected(now, is_requested=kind) for kind in kinds)
        if expected > by:
            return NotNow(expected - now)
        slot: asyncio.Future[float | NotNow] = asyncio.get_running_loop().create_future()
        late_from = now + LATE_SECONDS - overdue_seconds
        waiter = Waiter(urgency, next(self._numbers), by, slot, is_requested, late_from, was_due)
        line.waiting.add(waiter)
        if line.serving is None:
            line.serving = asyncio.create_task(self._serve(app_id, line))
        moment = await waiter.slot
        if not isinstance(moment, NotNow):
            # A timer may be a little early.
            while (left := moment - self._clock()) > 0:  # noqa: ASYNC110
                await asyncio.sleep(left)
        return moment

    def expect(
        self, app_id: AppId, rate: Rate, count: int, *, is_requested: bool = False
    ) -> tuple[int, NotNow]:
        """Return how many of ``count`` more can hope for a slot in time, and when the others should come again."""
        line, now = self._line(app_id, rate), self._clock()
        first = line.expected(now, is_requested=is_requested)
        interval = line.interval * line.waiting.slots_for_each(is_requested=is_requested)
        hopeful = int((now + LONGEST_WAIT_SECONDS - first) / interval) + 1
        hopeful = min(max(hopeful, 0), count)
        # They are claimed, sent and started once more meanwhile, so they come a little early.
        wait = first + hopeful * interval - now - LONGEST_WAIT_SECONDS / 2
        return hopeful, NotNow(max(wait, LONGEST_WAIT_SECONDS / 2))

    def refuse(self, app_id: AppId, seconds: float) -> None:
        """Send everybody away who waits for a slot of this app."""
        line = self._lines.get(app_id)
        if line is not None:
            for waiter in line.waiting.clear():
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

    def _line(self, app_id: AppId, rate: Rate) -> _Slots:
        line = self._lines.get(app_id)
        if line is None or line.rate != rate:
            line = self._lines.setdefault(app_id, _Slots(rate))
            line.rate = rate
        return line

    async def _serve(self, app_id: AppId, line: _Slots) -> None:
        try:
            while line.waiting:
                pause = await self._serve_once(app_id, line)
                await asyncio.sleep(pause)
        finally:
            line.serving = None
            self.refuse(app_id, POSTPONE_SECONDS)

    async def _serve_once(self, app_id: AppId, line: _Slots) -> float:
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
                waiter = line.waiting.pop(self._clock())
                if waiter.by >= moment:
                    _tell(waiter, moment)
                    break
                _tell(waiter, NotNow(moment - self._clock()))
        for waiter in line.waiting.without_hope(line.free_at):
            _tell(waiter, NotNow(line.free_at - self._clock()))
        return max(line.free_at - LEAD_SECONDS - self._clock(), LEAST_SLEEP_SECONDS)


def _tell(waiter: Waiter, answer: float | NotNow) -> None:
    if not waiter.slot.done():
        waiter.slot.set_result(answer)
