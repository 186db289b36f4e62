"""Group commit: results wait at most a few milliseconds for company and are written in one transaction.

Invariants kept here:

* Nothing that was added is dropped. While Postgres is away, or refuses to write at all, the batch waits and is
  written again; every statement is idempotent, so a commit whose outcome is unknown needs no special case.
* One result never takes its company down. A batch that meets a locked row or a value that Postgres does not hold
  is split. What waits for a lock goes on waiting beside the others; what is refused for itself stays in the
  journal, and its account is quarantined: its token in Postgres is spent, so it must not be asked again.
* The order after an answer is: journal (by the caller), Postgres, lease released, metrics.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from store import candidates, returns, revocations, settlement, transitions, unknowns, visits
from store.answers import SavedTokens
from store.candidates import Promotion
from store.engine import is_about_the_data, is_contention, is_too_slow
from store.journal import Journal, Segment
from store.leases import Leases
from store.rejection import Rejection
from store.rejections import reject
from store.revocations import RevocationMade
from store.settlement import Deferral
from store.unknowns import UnknownAnswer
from store.visits import Visited
from tokenfleet import telemetry
from tokenfleet.jobs import AccountId
from tokenfleet.policy import ROTATION_LOST
from tokenfleet.telemetry import Event
from workers.app_results import AppEffects
from workers.results import Result, Settled, Unasked

MAX_BATCH: Final = 500
LOCK_TIMEOUT_MS: Final = 1_000
"""How long a batch waits for a row that somebody else has locked, before it is split to find that row."""
RETRY_SECONDS: Final = (0.05, 0.1, 0.25, 0.5)
"""Pauses between tries while Postgres is away: short, so that an answer in hand lands before anybody else starts
its account again."""


_MOVING: Final = (SavedTokens, Rejection, Promotion, Visited, RevocationMade)
"""Results that lock their accounts' token sets, each kind in a statement of its own; of deferrals, those that may have
to be told of do."""


@dataclass(slots=True)
class _Entry:
    """One attempt's results: written together, in one transaction."""

    results: tuple[Result, ...]
    segment: Segment | None
    done: asyncio.Future[bool]
    """True when the results are in Postgres, False when it refuses them for what they are."""


@dataclass(slots=True)
class _Written:
    """What a transaction did, reported only after its commit."""

    flipped: frozenset[AccountId] = frozenset()
    candidates: frozenset[AccountId] = frozenset()
    promoted: frozenset[AccountId] = frozenset()
    apps: AppEffects = field(default_factory=AppEffects)


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
        self._waiting: set[asyncio.Task[None]] = set()
        self.available = True
        """False while Postgres refuses writes: no new refresh may start."""
        self.in_memory_only = 0
        """Answers that are neither in Postgres nor on disk: who ends this process now loses them."""

    def add(self, *results: Result, segment: Segment | None = None) -> asyncio.Future[bool]:
        """Queue the results of one attempt; the future is True when they are in Postgres, False if it refuses them.

        ``segment`` is where the journal holds the answer among them.
        """
        entry = _Entry(results, segment, asyncio.get_running_loop().create_future())
        if segment is None and any(isinstance(result, SavedTokens) for result in results):
            self.in_memory_only += 1
            entry.done.add_done_callback(self._is_safe)
        self._pending.append(entry)
        self._wake.set()
        return entry.done

    def _is_safe(self, _: asyncio.Future[bool]) -> None:
        self.in_memory_only -= 1

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
            elif self._closing and not self._waiting:
                return
            elif self._closing:
                await asyncio.wait(self._waiting)
            if self._closing:
                self._wake.set()

    def close(self) -> None:
        """Stop after what is queued is written."""
        self._closing = True
        self._wake.set()

    async def _write(self, batch: list[_Entry]) -> None:
        """Write ``batch``, however long Postgres is away; split it when one of its results stands in the way."""
        for attempt in itertools.count():
            began = time.perf_counter()
            try:
                written = await self._commit(batch)
            except DBAPIError as error:
                if is_about_the_data(error) or is_contention(error):
                    if is_too_slow(error):
                        self._note_outage(error)
                    await self._split(batch, error)
                    return
                await self._wait(attempt, error)
            except (SQLAlchemyError, OSError) as error:
                await self._wait(attempt, error)
            except Exception as error:  # noqa: BLE001
                # A fault of ours. This task must go on: who else would write what is in hand?
                telemetry.alarm(Event.WRITER_FAILED, error=type(error).__name__)
                await self._wait(attempt, error)
            else:
                telemetry.COMMIT_SECONDS.observe(time.perf_counter() - began)
                telemetry.COMMIT_SIZE.observe(len(batch))
                if not self.available:
                    self.available = True
                    telemetry.logger().warning(Event.STORE_RECOVERED.value, batch=len(batch))
                await self._after_commit(batch, written)
                return

    async def _commit(self, batch: list[_Entry]) -> _Written:
        async with self._engine.begin() as connection:
            return await connection.run_sync(self._apply, batch)

    def _apply(self, connection: Connection, batch: list[_Entry]) -> _Written:
        """Write every result of the batch inside the caller's transaction."""
        written = _Written()
        results = [result for entry in batch for result in entry.results]
        moving = [
            result
            for result in results
            if isinstance(result, _MOVING) or (isinstance(result, Deferral) and result.expired)
        ]
        if len({type(result) for result in moving}) > 1:
            # All at once: kind after kind they would be locked in several runs, and whoever locks many in one run, an
            # operator or an import, would meet us half-way.
            transitions.lock(connection, sorted({result.account_id for result in moving}))
        if answers := [result for result in results if isinstance(result, SavedTokens)]:
            saved = settlement.save_refreshed(connection, answers, actor=self._owner)
            written.candidates = saved.candidates
            written.apps.resolved += saved.recovered
        if deferrals := [result for result in results if isinstance(result, Deferral)]:
            settlement.defer(connection, deferrals, actor=self._owner)
        if rejections := [result for result in results if isinstance(result, Rejection)]:
            rejected = reject(connection, rejections, actor=self._owner)
            written.flipped = rejected.flipped
            written.apps.opened += rejected.opened
        if promotions := [result for result in results if isinstance(result, Promotion)]:
            written.promoted = candidates.promote(connection, promotions, actor=self._owner)
        if visits_made := [result for result in results if isinstance(result, Visited)]:
            written.apps.resolved += visits.settle(connection, visits_made, actor=self._owner)
        if revocations_made := [result for result in results if isinstance(result, RevocationMade)]:
            revocations.settle(connection, revocations_made, actor=self._owner)
        if unasked := [result for result in results if isinstance(result, Unasked)]:
            returns.give_back(
                connection, [(each.account_id, each.epoch, each.wait_seconds) for each in unasked]
            )
        written.apps.write(connection, results, actor=self._owner, probe_after=self._probe_after)
        if unknown := [result for result in results if isinstance(result, UnknownAnswer)]:
            # Last: its rows are shared with every other worker, and the locks are short.
            unknowns.record(connection, unknown)
        return written

    async def _after_commit(self, batch: list[_Entry], written: _Written) -> None:
        settled = Counter(entry.segment for entry in batch if entry.segment is not None)
        for segment, count in settled.items():
            self._journal.settle(segment, count)
        telemetry.JOURNAL_UNSETTLED.set(self._journal.unsettled())
        # First, so that nobody renews the leases that are given back next.
        for entry in batch:
            if not entry.done.done():
                entry.done.set_result(True)
        await self._leases.give_back(_accounts(batch), self._owner)
        written.apps.tell()
        for rejection in _rejections(batch):
            if rejection.account_id in written.flipped:
                telemetry.logger().warning(
                    Event.ACCOUNT_NEEDS_REAUTH.value, account_id=rejection.account_id, reason=rejection.reason
                )
                if rejection.reason == ROTATION_LOST:
                    telemetry.ROTATIONS_LOST.inc()
        for account_id in written.candidates:
            telemetry.alarm(Event.CANDIDATE_KEPT, account_id=account_id)
        for account_id in written.promoted:
            telemetry.logger().warning(Event.CANDIDATE_PROMOTED.value, account_id=account_id)

    async def _split(self, batch: list[_Entry], error: DBAPIError) -> None:
        """Write what can be written; set apart the one entry that waits for a lock or is refused for itself."""
        if len(batch) > 1:
            middle = len(batch) // 2
            await self._write(batch[:middle])
            await self._write(batch[middle:])
        elif is_contention(error):
            task = asyncio.create_task(self._wait_for_lock(batch))
            self._waiting.add(task)
            task.add_done_callback(self._waiting.discard)
        else:
            await self._refuse(batch[0], error)

    async def _wait_for_lock(self, batch: list[_Entry]) -> None:
        await asyncio.sleep(RETRY_SECONDS[-1])
        await self._write(batch)

    async def _refuse(self, entry: _Entry, error: DBAPIError) -> None:
        """Postgres does not hold this answer: keep it in the journal, and ask its account no more."""
        state = getattr(error.orig, "sqlstate", None)
        telemetry.alarm(
            Event.RECORD_REFUSED,
            account_ids=_accounts([entry]),
            sqlstate=state,
            journalled=entry.segment is not None,
        )
        for attempt in itertools.count():
            try:
                async with self._engine.begin() as connection:
                    for result in entry.results:
                        if isinstance(result, Settled):
                            await connection.run_sync(
                                settlement.quarantine,
                                result.account_id,
                                result.epoch,
                                code=f"answer_refused_{state}",
                                actor=self._owner,
                            )
                break
            except (SQLAlchemyError, OSError) as refused:
                await self._wait(attempt, refused)
        self.available = True
        if not entry.done.done():
            entry.done.set_result(False)
        await self._leases.give_back(_accounts([entry]), self._owner)

    async def _wait(self, attempt: int, error: Exception) -> None:
        """Pause. Meanwhile ``Refresher.keep_leases`` keeps these accounts, whose claims may run out, from others."""
        self._note_outage(error)
        await asyncio.sleep(RETRY_SECONDS[min(attempt, len(RETRY_SECONDS) - 1)])

    def _note_outage(self, error: Exception) -> None:
        """Let no new refresh start until something was written."""
        if self.available:
            self.available = False
            cause = error.orig if isinstance(error, DBAPIError) else error
            telemetry.logger().error(
                Event.STORE_UNAVAILABLE.value,
                error=type(cause).__name__,
                sqlstate=getattr(cause, "sqlstate", None),
            )


def _rejections(batch: Sequence[_Entry]) -> list[Rejection]:
    return [result for entry in batch for result in entry.results if isinstance(result, Rejection)]


def _accounts(batch: Sequence[_Entry]) -> list[AccountId]:
    return [result.account_id for entry in batch for result in entry.results if isinstance(result, Settled)]
