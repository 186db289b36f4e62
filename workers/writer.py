"""Group commit: results wait at most a few milliseconds for company and are written in one transaction.

Invariants kept here:

* Nothing that was added is dropped. While Postgres is away the batch waits and is written again; every
  statement is idempotent, so a commit whose outcome is unknown needs no special case.
* A result that Postgres refuses for itself never takes its company down: the batch is split, the culprit is
  left in the journal, and an alarm is raised.
* The order after an answer is: journal (by the caller), Postgres, lease released, metrics.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from store import apps, settlement
from store.engine import is_outage
from store.journal import Journal, JournalUnwritable, Segment
from store.leases import Leases
from store.settlement import Deferral, Rejection, SavedTokens
from tokenfleet import telemetry
from tokenfleet.jobs import AccountId, AppId
from tokenfleet.telemetry import Event

MAX_BATCH: Final = 500
RETRY_SECONDS: Final = (0.05, 0.1, 0.25, 0.5)
"""Pauses between tries while Postgres is away: short, so that an answer in hand lands before anybody else starts
its account again."""


@dataclass(frozen=True, slots=True)
class AppPaused:
    """The provider asked for a pause of this whole app."""

    app_id: AppId
    until: datetime


@dataclass(frozen=True, slots=True)
class AppHeld:
    """The provider rejects this app's registration, at this generation of its credentials."""

    app_id: AppId
    generation: int
    code: str


@dataclass(frozen=True, slots=True)
class AppRecovered:
    """A held app's probe succeeded."""

    app_id: AppId


Settled = SavedTokens | Deferral | Rejection
Result = Settled | AppPaused | AppHeld | AppRecovered


@dataclass(slots=True)
class _Entry:
    """One attempt's results: written together, in one transaction."""

    results: tuple[Result, ...]
    segment: Segment | None
    done: asyncio.Future[None]


@dataclass(slots=True)
class _Written:
    """What a transaction did, reported only after its commit."""

    flipped: frozenset[AccountId] = frozenset()
    candidates: frozenset[AccountId] = frozenset()
    held: list[AppHeld] = field(default_factory=list)
    recovered: list[AppRecovered] = field(default_factory=list)


class GroupWriter:
    """The one place where a worker writes. Runs on the worker's event loop."""

    def __init__(
        self,
        engine: AsyncEngine,
        journal: Journal,
        leases: Leases,
        *,
        owner: str,
        wait_seconds: float,
        probe_after: timedelta,
    ) -> None:
        self._engine = engine
        self._journal = journal
        self._leases = leases
        self._owner = owner
        self._wait_seconds = wait_seconds
        self._probe_after = probe_after
        self._pending: list[_Entry] = []
        self._wake = asyncio.Event()
        self._closing = False
        self.available = True
        """False while Postgres refuses writes: no new refresh may start."""

    def add(self, *results: Result, segment: Segment | None = None) -> asyncio.Future[None]:
        """Queue the results of one attempt; the future is done when they are in Postgres.

        ``segment`` is where the journal holds the answer among them.
        """
        entry = _Entry(results, segment, asyncio.get_running_loop().create_future())
        self._pending.append(entry)
        self._wake.set()
        return entry.done

    async def run(self) -> None:
        """Write until :meth:`close` was called and everything is written."""
        while True:
            await self._wake.wait()
            if len(self._pending) < MAX_BATCH and not self._closing:
                await asyncio.sleep(self._wait_seconds)
            self._wake.clear()
            batch, self._pending = self._pending[:MAX_BATCH], self._pending[MAX_BATCH:]
            if self._pending:
                self._wake.set()
            if batch:
                await self._write(batch)
            elif self._closing:
                return
            if self._closing:
                self._wake.set()

    def close(self) -> None:
        """Stop after what is queued is written."""
        self._closing = True
        self._wake.set()

    async def _write(self, batch: list[_Entry]) -> None:
        """Write ``batch``, however long Postgres is away; split it when one of its results is refused."""
        for attempt in itertools.count():
            began = time.perf_counter()
            try:
                syncing = asyncio.get_running_loop().run_in_executor(None, self._sync, batch)
                try:
                    async with self._engine.begin() as connection:
                        written = await connection.run_sync(self._apply, batch)
                finally:
                    await syncing
            except DBAPIError as error:
                if not is_outage(error):
                    await self._isolate(batch, error)
                    return
                await self._wait_for_postgres(batch, attempt, error)
            except OSError as error:
                await self._wait_for_postgres(batch, attempt, error)
            else:
                telemetry.COMMIT_SECONDS.observe(time.perf_counter() - began)
                telemetry.COMMIT_SIZE.observe(len(batch))
                if not self.available:
                    self.available = True
                    telemetry.logger().warning(Event.STORE_RECOVERED.value, batch=len(batch))
                await self._after_commit(batch, written)
                return

    def _sync(self, batch: list[_Entry]) -> None:
        if any(entry.segment is not None for entry in batch):
            try:
                self._journal.sync()
            except JournalUnwritable as error:
                telemetry.alarm(Event.JOURNAL_UNWRITABLE, reason=str(error))

    def _apply(self, connection: Connection, batch: list[_Entry]) -> _Written:
        """Write every result of the batch inside the caller's transaction."""
        written = _Written()
        results = [result for entry in batch for result in entry.results]
        if answers := [result for result in results if isinstance(result, SavedTokens)]:
            saved = settlement.save_refreshed(connection, answers, actor=self._owner)
            written.candidates = saved.candidates
        if deferrals := [result for result in results if isinstance(result, Deferral)]:
            settlement.defer(connection, deferrals, actor=self._owner)
        if rejections := [result for result in results if isinstance(result, Rejection)]:
            written.flipped = settlement.reject(connection, rejections, actor=self._owner)
        if pauses := [result for result in results if isinstance(result, AppPaused)]:
            moments = [pause.until for pause in pauses]
            apps.pause_until(connection, [pause.app_id for pause in pauses], moments)
        for held in {result.app_id: result for result in results if isinstance(result, AppHeld)}.values():
            if apps.hold(
                connection, held.app_id, held.code, generation=held.generation, probe_after=self._probe_after
            ):
                written.held.append(held)
        for well in {result for result in results if isinstance(result, AppRecovered)}:
            if apps.end_hold(connection, well.app_id):
                written.recovered.append(well)
        return written

    async def _after_commit(self, batch: list[_Entry], written: _Written) -> None:
        settled = Counter(entry.segment for entry in batch if entry.segment is not None)
        for segment, count in settled.items():
            self._journal.settle(segment, count)
        telemetry.JOURNAL_UNSETTLED.set(self._journal.unsettled())
        # First, so that nobody renews the leases that are given back next.
        for entry in batch:
            if not entry.done.done():
                entry.done.set_result(None)
        await self._leases.give_back(_accounts(batch), self._owner)
        for held in written.held:
            telemetry.alarm(Event.APP_HELD, app_id=held.app_id, code=held.code)
        for well in written.recovered:
            telemetry.logger().warning(Event.APP_RESUMED.value, app_id=well.app_id)
        for account_id in written.flipped:
            telemetry.logger().warning(Event.ACCOUNT_NEEDS_REAUTH.value, account_id=account_id)
        for account_id in written.candidates:
            telemetry.alarm(Event.ACCOUNT_TROUBLED, account_id=account_id, code="lost_race")

    async def _isolate(self, batch: list[_Entry], error: DBAPIError) -> None:
        """One result is unacceptable to Postgres: write the others, leave that one in the journal."""
        if len(batch) > 1:
            middle = len(batch) // 2
            await self._write(batch[:middle])
            await self._write(batch[middle:])
            return
        entry = batch[0]
        telemetry.alarm(
            Event.RECORD_REFUSED,
            account_ids=_accounts(batch),
            sqlstate=getattr(error.orig, "sqlstate", None),
            journalled=entry.segment is not None,
        )
        if not entry.done.done():
            entry.done.set_result(None)
        await self._leases.give_back(_accounts(batch), self._owner)

    async def _wait_for_postgres(self, batch: list[_Entry], attempt: int, error: Exception) -> None:
        """Pause, and keep the leases meanwhile: these accounts were answered, and their claims may run out."""
        if self.available:
            self.available = False
            cause = error.orig if isinstance(error, DBAPIError) else error
            telemetry.logger().error(
                Event.STORE_UNAVAILABLE.value,
                error=type(cause).__name__,
                sqlstate=getattr(cause, "sqlstate", None),
            )
        await self._leases.take(_accounts(batch), self._owner)
        await asyncio.sleep(RETRY_SECONDS[min(attempt, len(RETRY_SECONDS) - 1)])


def _accounts(batch: Sequence[_Entry]) -> list[AccountId]:
    return [
        result.account_id
        for entry in batch
        for result in entry.results
        if isinstance(result, SavedTokens | Deferral | Rejection)
    ]
