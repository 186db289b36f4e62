"""How many accounts may be asked about at once: one provider that hangs must not occupy the whole process."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from typing import Final

from tokenfleet.jobs import AppId

ROOM_SECONDS: Final = 5.0
ROOM_SHARE: Final = 1 / 6
"""How long a job waits for room before it is postponed: the smaller of the two, since its claims are running."""


class Room:
    """Room in this process, and per app. Runs on one event loop."""

    def __init__(self, capacity: int, app_capacity: int, *, claim_seconds: float) -> None:
        self._capacity = capacity
        self._app_capacity = app_capacity
        self._wait_seconds = min(ROOM_SECONDS, claim_seconds * ROOM_SHARE)
        self._taken: Counter[AppId] = Counter()
        self._freed = asyncio.Condition()
        self._closed = False

    async def enter(self, app_id: AppId, count: int) -> bool:
        """Wait a moment for room for ``count``; False when there is none, or the app has used up its share."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._wait_seconds), self._freed:
                while not self._closed and (
                    not self._taken[app_id] or self._taken[app_id] + count <= self._app_capacity
                ):
                    if not self._taken.total() or self._taken.total() + count <= self._capacity:
                        self._taken[app_id] += count
                        return True
                    await self._freed.wait()
        return False

    async def close(self) -> None:
        """Let nobody in any more; who waits is told at once."""
        async with self._freed:
            self._closed = True
            self._freed.notify_all()

    async def leave(self, app_id: AppId, count: int) -> None:
        """Give room back."""
        async with self._freed:
            self._taken[app_id] -= count
            self._freed.notify_all()
