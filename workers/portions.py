"""Which part of a job a process may begin now; the rest waits, durably, for its next claim.

Invariant: what is left out is postponed before anything of the job is started, so nobody takes it for an attempt whose
answer was lost.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import replace
from datetime import timedelta
from typing import Final

from store import schedule
from store.leases import Leases
from tokenfleet import telemetry
from tokenfleet.jobs import AccountId, RefreshJob
from workers.transactions import Transactions

POSTPONE: Final = timedelta(seconds=2)
"""How long an account waits whose lease somebody else holds, or whose app has no room here."""


class Portions:
    """Takes portions of jobs. One per worker process."""

    def __init__(self, transactions: Transactions, leases: Leases, owner: str) -> None:
        self._transactions = transactions
        self._leases = leases
        self._owner = owner

    async def first(self, job: RefreshJob, count: int, wait: timedelta) -> RefreshJob:
        """Return the ``count`` most urgent accounts of ``job``; the others are postponed for ``wait``."""
        if count >= len(job.accounts):
            return job
        later = replace(job, accounts=job.accounts[count:])
        await self._transactions.run(schedule.postpone, later, wait=wait)
        return replace(job, accounts=job.accounts[:count])

    async def without(self, job: RefreshJob, busy: AbstractSet[AccountId]) -> RefreshJob:
        """Return ``job`` without ``busy`` accounts of this process, whose answer may be unsaved still."""
        accounts = {account_id for account_id, _ in job.accounts}
        if accounts.isdisjoint(busy):
            return job
        await self._transactions.run(schedule.postpone, _part(job, accounts & busy), wait=POSTPONE)
        return _part(job, accounts - busy)

    async def leased(self, job: RefreshJob) -> RefreshJob:
        """Return the part of ``job`` whose leases are ours; the rest is postponed."""
        ids = [account_id for account_id, _ in job.accounts]
        if not ids:
            return job
        taken = await self._leases.take(ids, self._owner)
        if taken is None:
            # Redis is away. The fence in Postgres keeps the promise; the lease was politeness.
            telemetry.LEASES_SKIPPED.inc()
            return job
        if len(taken) == len(ids):
            return job
        await self._transactions.run(schedule.postpone, _part(job, set(ids) - taken), wait=POSTPONE)
        return _part(job, taken)


def _part(job: RefreshJob, keep: AbstractSet[AccountId]) -> RefreshJob:
    accounts = tuple(pair for pair in job.accounts if pair[0] in keep)
    return replace(job, accounts=accounts)
