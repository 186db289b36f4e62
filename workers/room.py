"""How much one app may have of this process: one provider that hangs must not occupy it, nor the jobs of others.

Two things are scarce. *Room* is the number of accounts that are asked about at once: an app may have a share of what
the others leave, so that however many providers hang, some of it stays free; what does not fit is postponed at once.
*Seats* are the pool's threads: a job waits on its thread for its slow accounts, but only as long as few others do.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, deque
from collections.abc import Collection
from typing import Any, Final

from tokenfleet.jobs import AppId

ROOM_SECONDS: Final = 5.0
ROOM_SHARE: Final = 1 / 6
"""How long a job waits for room before it is postponed: the smaller of the two, since its claims are running."""
STUCK_SECONDS: Final = 0.25
"""An app none of whose places came free for so long is not waited for."""

SEATS_SHARE: Final = 1 / 4
"""Part of the threads on which jobs may wait for slow accounts."""
STRAGGLER_SECONDS: Final = 2.0
"""A job stops waiting for its slowest accounts after this long at most; they finish on their own."""


class Room:
    """Room in this process, and per app. Runs on one event loop."""

    def __init__(self, capacity: int, app_share: float, *, claim_seconds: float) -> None:
        """``app_share`` is the part that one app may have of what the others leave."""
        self._capacity = capacity
        self._app_share = app_share
        self._wait_seconds = min(ROOM_SECONDS, claim_seconds * ROOM_SHARE)
        self._taken: Counter[AppId] = Counter()
        self._moved: dict[AppId, float] = {}
        """When a place of each app that has any last came free, or the first was taken."""
        self._freed = asyncio.Condition()
        self._closed = False

    async def enter(self, app_id: AppId, count: int) -> int:
        """Return for how many of ``count`` there is room, which is theirs now.

        Waits a moment while the app's own places come free. Where they do not, its provider hangs: whoever waits for it
        here keeps a thread from the jobs of others, and is told at once that there is no room.
        """
        now = asyncio.get_running_loop().time
        ends = now() + self._wait_seconds
        async with self._freed:
            while not self._closed:
                mine = self._taken[app_id]
                free = self._capacity - self._taken.total()
                share = max(int((free + mine) * self._app_share), 1)
                entered = min(count, share - mine, free)
                # Not one by one: what does not enter is postponed.
                if entered >= min(count, max(share // 2, 1)):
                    if not mine:
                        self._moved[app_id] = now()
                    self._taken[app_id] += entered
                    return entered
                until = min(ends, self._moved[app_id] + STUCK_SECONDS if mine else ends)
                try:
                    async with asyncio.timeout(until - now()):
                        await self._freed.wait()
                except TimeoutError:
                    break
        return 0

    async def close(self) -> None:
        """Let nobody in any more; who waits is told at once."""
        async with self._freed:
            self._closed = True
            self._freed.notify_all()

    async def leave(self, app_id: AppId, count: int) -> None:
        """Give room back."""
        async with self._freed:
            self._taken[app_id] -= count
            self._moved[app_id] = asyncio.get_running_loop().time()
            if not self._taken[app_id]:
                del self._taken[app_id], self._moved[app_id]
            self._freed.notify_all()


class Seats:
    """Threads on which jobs wait for their slow accounts. Runs on one event loop."""

    def __init__(self, threads: int) -> None:
        self._count = max(1, int(threads * SEATS_SHARE))
        self._leaving: deque[asyncio.Future[None]] = deque()

    async def wait(self, attempts: Collection[asyncio.Task[Any]]) -> None:
        """Return when all have ended, after a while, or when others need the seat: who sits longest goes first."""
        leave = asyncio.get_running_loop().create_future()
        self._leaving.append(leave)
        if len(self._leaving) > self._count:
            _ask_to_leave(self._leaving.popleft())
        ended = asyncio.ensure_future(asyncio.wait(attempts, timeout=STRAGGLER_SECONDS))
        try:
            await asyncio.wait({ended, leave}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ended.cancel()
            with contextlib.suppress(ValueError):
                self._leaving.remove(leave)


def _ask_to_leave(seat: asyncio.Future[None]) -> None:
    if not seat.done():
        seat.set_result(None)
