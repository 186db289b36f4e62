"""A gate that keeps token requests waiting until told, so that a test makes an interleaving, not luck.

Promise: once :meth:`Gate.wait_for_held` has returned, so many requests stand still at the stage that was
named, and none of them moves before it is released. Requests wait on the server's event loop; the one who
waits for them may be in any thread.
"""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass, field

from sandbox.selection import Selection, Stage


@dataclass(slots=True, eq=False)
class Hold:
    """Requests of ``selection`` wait at ``stage`` until ``released`` is set."""

    stage: Stage
    selection: Selection
    released: asyncio.Event = field(default_factory=asyncio.Event)


class Gate:
    """The holds in force. All but :meth:`wait_for_held` and ``held`` belong to the event loop's thread."""

    def __init__(self) -> None:
        self.holds: list[Hold] = []
        self._held = 0
        self._changed = threading.Condition()

    @property
    def held(self) -> int:
        """How many requests are waiting now."""
        return self._held

    def hold(self, stage: Stage, selection: Selection) -> Hold:
        """Let requests wait from now on."""
        hold = Hold(stage, selection)
        self.holds.append(hold)
        return hold

    def release(self, hold: Hold | None = None) -> None:
        """Let the requests of ``hold`` go on, or those of every hold. Releasing twice changes nothing."""
        released = [hold] if hold is not None else list(self.holds)
        for each in released:
            each.released.set()
        self.holds = [each for each in self.holds if each not in released]

    async def passage(self, stage: Stage, subject: str) -> None:
        """Return when nothing holds ``subject`` back at ``stage``."""
        for hold in tuple(self.holds):
            if hold.stage is stage and hold.selection.includes(subject):
                self._count(1)
                try:
                    await hold.released.wait()
                finally:
                    self._count(-1)

    def wait_for_held(self, count: int, timeout_seconds: float) -> None:
        """Block until at least ``count`` requests are waiting. Never call it on the event loop's thread.

        Raises :class:`TimeoutError` when they do not come in time.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._held >= count, timeout_seconds):
                raise TimeoutError(f"{self._held} of {count} requests were held after {timeout_seconds} s")

    def _count(self, change: int) -> None:
        with self._changed:
            self._held += change
            self._changed.notify_all()
