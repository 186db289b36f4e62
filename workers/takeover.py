"""Who takes over an account first looks whether its answer is there, and looks again right before asking.

The attempt before was started and never settled: its worker may be dead, frozen or cut off from Postgres, with an
answer in its journal. Invariant (G2): what was answered is not presented again, as far as this disk and Postgres can
tell. Two looks, because a worker that was frozen may wake up while we wait for a slot. Nobody else pays for them, and
a crash, which leaves hundreds of doubtful accounts, not hundreds of times: a look reads every journal on this disk.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence

from sqlalchemy.ext.asyncio import AsyncEngine

from store import schedule
from store.schedule import Attempt
from tokenfleet import telemetry
from tokenfleet.jobs import AccountId
from tokenfleet.telemetry import Event
from workers.governor import LastLook

Consult = Callable[[Mapping[AccountId, int]], Awaitable[frozenset[AccountId]]]
"""Writes the answers that any process here has, dead or alive, for accounts at these generations; returns whose."""


class Lookout:
    """Finds answers to what is about to be asked. One per worker process."""

    def __init__(self, engine: AsyncEngine, consult: Consult) -> None:
        self._engine = engine
        self._consult = consult
        self._waiting: list[Attempt] = []
        self._next: asyncio.Task[frozenset[AccountId]] | None = None
        self._looking = asyncio.Lock()

    async def answered(self, attempts: Sequence[Attempt]) -> frozenset[AccountId]:
        """Return the accounts of ``attempts`` that must not be asked about now: their earlier answer turned up.

        Or nobody can tell: these wait for their next claim.
        """
        doubtful = {attempt.account_id: attempt.generation for attempt in attempts if attempt.is_unsettled}
        if not doubtful:
            return frozenset()
        try:
            answered = await self._consult(doubtful)
            # A journal that is gone now has just been written to Postgres.
            async with self._engine.connect() as connection:
                return answered | await connection.run_sync(schedule.moved_since, doubtful)
        except Exception as error:  # noqa: BLE001
            # The others of this job have been started and are owed their requests.
            telemetry.logger().warning(Event.JOURNAL_UNREADABLE.value, error=type(error).__name__)
            return frozenset(doubtful)

    def last_look(self, attempt: Attempt) -> LastLook | None:
        """Return what is to be asked right before the request; None for an attempt that nobody made before."""
        if not attempt.is_unsettled:
            return None

        async def look() -> bool:
            return attempt.account_id not in await self._answered_now(attempt)

        return look

    async def _answered_now(self, attempt: Attempt) -> frozenset[AccountId]:
        """Take part in the next look, which begins after this: whoever asks while one is under way shares it."""
        self._waiting.append(attempt)
        if self._next is None:
            self._next = asyncio.create_task(self._look())
        return await asyncio.shield(self._next)

    async def _look(self) -> frozenset[AccountId]:
        async with self._looking:
            attempts, self._waiting, self._next = self._waiting, [], None
            return await self.answered(attempts)
