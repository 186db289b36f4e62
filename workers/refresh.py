"""One job: which of its accounts may be asked about, and who performs them. Hops 3 to 5.

Invariants kept here:

* An account is attempted only after its claim was started in Postgres (``store.schedule.start``) and with
  what was read then.
* No new attempt starts that could not be saved: not while Postgres or the journal refuses writes.
* Nobody asks about an account whose answer is here and not in Postgres yet, even when its claim has expired
  meanwhile: not this process, which remembers; not a sibling, because the lease is kept alive; and not who takes
  over from a process that died or is frozen, because it looks into that one's journal.
* One provider that hangs occupies only its share of this process, and few of its threads; what does not fit, and
  whom its app's pace, pause or circuit would keep waiting, is postponed before anything is started.
"""

from __future__ import annotations

import asyncio
import contextlib
from datetime import timedelta
from typing import Final
from uuid import UUID

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from providers import Registry
from providers.transport import boottime
from store import apps, schedule
from store.journal import Journal
from store.keys import Vault
from store.leases import Leases
from store.schedule import Attempt
from tokenfleet import telemetry
from tokenfleet.guard import SAMPLES
from tokenfleet.jobs import AccountId, RefreshJob
from tokenfleet.settings import Tunables
from tokenfleet.telemetry import Event
from tokenfleet_client.contract import AccountStatus
from workers.attempt import Asker
from workers.credentials import open_credentials
from workers.governor import Governor
from workers.key_renewal import KeyRenewal
from workers.pacing import NotNow
from workers.portions import POSTPONE, Portions
from workers.probing import Going, Prober
from workers.results import Unasked
from workers.revoke import Revoker
from workers.room import Room, Seats
from workers.settling import Asking, Judged
from workers.takeover import Lookout
from workers.transactions import Transactions
from workers.writer import GroupWriter

APP_SHARE: Final = 0.8
"""Part of a process's provider calls, of those that the other apps leave, that one app may occupy."""

RENEWALS_PER_LEASE: Final = 3

SAVING_SECONDS: Final = 2.0
SAVING_SHARE: Final = 0.1
"""Part of a claim that is left for saving an answer which came at the last moment: the smaller of the two, since
a short claim must not be all saving and no asking."""


def reserve_seconds(tunables: Tunables) -> float:
    """Return how much of a claim must be left when a request leaves: a whole call, and the saving of its answer."""
    return tunables.http_timeout_seconds + min(SAVING_SECONDS, tunables.claim_seconds * SAVING_SHARE)


class Refresher:
    """Runs jobs on the worker's event loop."""

    def __init__(
        self,
        engine: AsyncEngine,
        registry: Registry,
        vault: Vault,
        leases: Leases,
        asker: Asker,
        writer: GroupWriter,
        journal: Journal,
        governor: Governor,
        *,
        owner: str,
        tunables: Tunables,
        lookout: Lookout,
        key_renewal: KeyRenewal,
        prober: Prober,
        revoker: Revoker,
    ) -> None:
        self._transactions = Transactions(engine)
        self._portions = Portions(self._transactions, leases, owner)
        self._registry = registry
        self._vault = vault
        self._leases = leases
        self._asker = asker
        self._prober = prober
        self._revoker = revoker
        self._writer = writer
        self._journal = journal
        self._governor = governor
        self._owner = owner
        self._claim = timedelta(seconds=tunables.claim_seconds)
        self._reserve_seconds = reserve_seconds(tunables)
        self._room = Room(tunables.max_in_flight, APP_SHARE, claim_seconds=tunables.claim_seconds)
        self._seats = Seats(tunables.worker_threads)
        self._running: set[asyncio.Task[None]] = set()
        self._stopping = False
        self._lookout = lookout
        self._key_renewal = key_renewal
        self._busy: set[AccountId] = set()
        self._renewal_seconds = tunables.lease_seconds / RENEWALS_PER_LEASE

    async def run(self, job: RefreshJob) -> None:
        """Refresh the accounts of ``job`` that are still ours to refresh.

        Returns when all are settled, or sooner where they are slow (``workers.room.Seats``): those go on and
        are waited for by :meth:`drain`. Nothing is lost by an early return: the claim, not the message,
        remembers them.
        """
        can_save = self._writer.available and self._journal.trouble is None
        entered = 0
        if not self._is_stopping() and can_save:
            entered = await self._room.enter(job.app_id, len(job.accounts))
        if self._is_stopping():
            await self._room.leave(job.app_id, entered)
            await self._transactions.run(schedule.release, job)
            return
        try:
            job = await self._portions.first(job, entered, POSTPONE)
            attempts = await self._begin(job) if entered else []
        except BaseException:
            await self._room.leave(job.app_id, entered)
            raise
        await self._room.leave(job.app_id, entered - len(attempts))
        self._running.update(attempts)
        for attempt in attempts:
            attempt.add_done_callback(self._running.discard)
        if attempts:
            await self._seats.wait(attempts)

    def stop(self) -> None:
        """Ask about nobody any more: jobs are given back at once, for others. Safe in a signal handler.

        What was begun goes on; :meth:`drain` waits for it.
        """
        self._stopping = True

    async def hurry(self) -> None:
        """After :meth:`stop`, let jobs that wait for room and accounts that wait for a slot be given back now."""
        self._governor.close()
        await self._room.close()

    def _is_stopping(self) -> bool:
        # It changes while we wait, at any await.
        return self._stopping

    async def drain(self) -> None:
        """Return when every attempt has ended."""
        while self._running:
            await asyncio.wait(set(self._running))

    async def keep_leases(self) -> None:
        """Renew the leases of all that is not settled, for ever: Postgres may be away for longer than a lease."""
        while True:
            await asyncio.sleep(self._renewal_seconds)
            if self._busy:
                await self._leases.take(sorted(self._busy), self._owner)

    async def _begin(self, job: RefreshJob) -> list[asyncio.Task[None]]:
        app = await self._transactions.run(apps.load, job.app_id)
        # A held app is asked about one account at a time: the probe. Nothing may fail between start and attempt,
        # so provider and credentials are looked up before.
        may_ask = app is not None and not app.is_paused and (app.held_since is None or len(job.accounts) == 1)
        # Only samples are asked, of those who were set apart and of the others: what was published before that is not.
        may_ask &= app is None or not app.is_sampled or len(job.accounts) <= 2 * SAMPLES
        if app is None or not may_ask or app.provider not in self._registry:
            await self._transactions.run(schedule.release, job)
            return []
        sealed = (app.client_secret, app.client_certificate)
        if any(map(self._key_renewal.lacks_key_of_secret, sealed)) and (
            wait := await self._key_renewal.renew()
        ):
            await self._transactions.run(schedule.postpone, job, wait=timedelta(seconds=wait))
            return []
        provider, client = self._registry.get(app.provider), open_credentials(self._vault, app)
        hopeful, later = await self._governor.foresee(
            job.app_id, provider, len(job.accounts), is_requested=job.is_requested
        )
        job = await self._portions.first(job, hopeful, timedelta(seconds=later.seconds))
        leased = await self._portions.leased(await self._portions.without(job, self._busy))
        if not leased.accounts:
            return []
        if self._is_stopping():
            await self._transactions.run(schedule.release, leased)
            await self._leases.give_back([account_id for account_id, _ in leased.accounts], self._owner)
            return []
        # The claim is counted from before the statement, the database's time from after it: both on the safe side.
        claimed_at = boottime()
        attempts = await self._transactions.run(schedule.start, leased, claim=self._claim)
        read_at = boottime()
        attempts = await self._readable(await self._without_answered(attempts))
        self._busy.update(attempt.account_id for attempt in attempts)
        started = {attempt.account_id for attempt in attempts}
        unused = [account_id for account_id, _ in leased.accounts if account_id not in started]
        await self._leases.give_back(unused, self._owner)
        telemetry.logger().info(
            Event.JOB_STARTED.value if attempts else Event.JOB_DROPPED.value,
            job_id=job.job_id,
            app_id=job.app_id,
            claimed=len(job.accounts),
            started=len(attempts),
        )
        if self._is_stopping():
            await self._give_back(attempts)
            return []
        if not attempts:
            return []
        asking = Asking(
            job_id=UUID(job.job_id),
            app=app,
            provider=provider,
            client=client,
            read_at=read_at,
            # Enough of the claim must be left for a whole call, or we do not ask.
            send_before=claimed_at + self._claim.total_seconds() - self._reserve_seconds,
        )
        return [asyncio.create_task(self._perform(asking, attempt)) for attempt in attempts]

    async def _without_answered(self, attempts: list[Attempt]) -> list[Attempt]:
        """Return ``attempts`` without those whose earlier answer turns up at the last moment."""
        answered = await self._lookout.answered(attempts)
        for attempt in attempts:
            if attempt.account_id in answered:
                await self._abandon(attempt)
        return [attempt for attempt in attempts if attempt.account_id not in answered]

    async def _readable(self, attempts: list[Attempt]) -> list[Attempt]:
        """Return ``attempts`` without those that wait for the keys under which a sibling has sealed them."""
        strange = [attempt for attempt in attempts if self._key_renewal.lacks_key_of(attempt)]
        if not strange or not (wait := await self._key_renewal.renew()):
            return attempts
        # Not waited for: the others of this job have been started and are owed their requests.
        self._writer.add(*(Unasked(each.account_id, each.epoch, wait) for each in strange))
        waiting = {each.account_id for each in strange}
        return [attempt for attempt in attempts if attempt.account_id not in waiting]

    async def _abandon(self, attempt: Attempt) -> None:
        """Give back a claim under which nothing was sent; if that fails, it ends by itself."""
        with contextlib.suppress(SQLAlchemyError, OSError):
            await self._transactions.run(schedule.abandon, attempt.account_id, attempt.epoch)

    async def _give_back(self, attempts: list[Attempt]) -> None:
        """Give back what was started and not asked, because the order to stop came in between."""
        for attempt in attempts:
            await self._abandon(attempt)
        given_back = [attempt.account_id for attempt in attempts]
        self._busy.difference_update(given_back)
        await self._leases.give_back(given_back, self._owner)

    async def _perform(self, asking: Asking, attempt: Attempt) -> None:
        telemetry.IN_FLIGHT.inc()
        try:
            ended = await self._visit(asking, attempt)
            if isinstance(ended, Judged):
                await self._asker.settle(asking, attempt, ended)
            elif ended is not None:
                await self._writer.add(Unasked(attempt.account_id, attempt.epoch, ended.seconds))
        except Exception as error:  # noqa: BLE001
            # A fault of ours. The account waits longer each time; the alarm brings a person.
            name = f"{attempt.account_id}-{attempt.epoch}"
            telemetry.alarm(Event.ATTEMPT_FAILED, attempt=name, error=type(error).__name__)
            await self._asker.fail(asking, attempt)
        finally:
            self._busy.discard(attempt.account_id)
            telemetry.IN_FLIGHT.dec()
            await self._room.leave(asking.app.app_id, 1)

    async def _visit(self, asking: Asking, attempt: Attempt) -> Judged | NotNow | None:
        """Make the visit that ``attempt`` is for; return what is left to settle, or when it is worth another try."""
        if attempt.status is AccountStatus.REVOKED:
            return await self._revoker.visit(asking, attempt)
        going = await self._prober.visit(asking, attempt)
        if not isinstance(going, Going):
            return going
        return await self._asker.perform(going.asking, going.attempt, self._lookout.last_look(attempt))
