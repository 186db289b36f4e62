"""Answers that other processes have on this disk are written to Postgres by whoever finds them.

What a dead process left is adopted at start, and again and again. Whatever process has it, dead, frozen or cut off
from Postgres: it is looked up for the very accounts that are about to be asked about once more. So an account whose
answer lies on this disk is not asked before that answer is saved (G2). Every record goes through the same
compare-and-set as a live answer, so writing it twice does no harm.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from store import settlement
from store.answers import SavedTokens
from store.engine import is_about_the_data
from store.orphans import Orphan, find, orphans
from tokenfleet import telemetry
from tokenfleet.jobs import AccountId
from tokenfleet.telemetry import Event

BATCH: Final = 500


async def adopt_orphans(engine: AsyncEngine, root: Path, *, actor: str) -> int:
    """Write the answers of every dead process's journal below ``root``; returns how many records it held.

    A journal is removed only after all of it is in Postgres. One that somebody else is adopting is passed over.
    Raises SQLAlchemy's ``DBAPIError`` when Postgres is away; the journal then stays for the next try.
    """
    total = 0
    for orphan in orphans(root):
        try:
            count, recovered = await _write(engine, orphan, actor)
            for damage in orphan.damage:
                telemetry.alarm(
                    Event.JOURNAL_DAMAGED,
                    segment=damage.path.name,
                    offset=damage.offset,
                    reason=damage.reason,
                )
            orphan.discard()
        finally:
            orphan.release()
        if count:
            telemetry.logger().warning(
                Event.JOURNAL_REPLAYED.value,
                journal=orphan.directory.name,
                records=count,
                recovered=recovered,
            )
        total += count
    return total


async def consult_journals(
    engine: AsyncEngine, root: Path, wanted: Mapping[AccountId, int], *, actor: str
) -> frozenset[AccountId]:
    """Write the answers on this disk that were asked for with the ``wanted`` generations; returns their accounts.

    For accounts whose last attempt was never settled: its process may live, frozen or cut off from Postgres, with
    the answer in its journal. Raises SQLAlchemy's ``DBAPIError`` when Postgres is away.
    """
    answers = await asyncio.to_thread(find, root, wanted)
    if not answers:
        return frozenset()
    await _save(engine, answers, lambda _: None, actor)
    accounts = frozenset(answer.account_id for answer in answers)
    telemetry.logger().warning(Event.JOURNAL_CONSULTED.value, account_ids=sorted(accounts))
    return accounts


async def _write(engine: AsyncEngine, orphan: Orphan, actor: str) -> tuple[int, int]:
    """Return how many records there were, and how many of them Postgres had not had."""
    count = recovered = 0
    batch: dict[int, SavedTokens] = {}
    for record in orphan:
        count += 1
        # One account once in a statement: an older answer of the same account goes first.
        if record.account_id in batch or len(batch) >= BATCH:
            recovered += await _save(engine, list(batch.values()), orphan.refuse, actor)
            batch = {}
        batch[record.account_id] = record
    if batch:
        recovered += await _save(engine, list(batch.values()), orphan.refuse, actor)
    return count, recovered


async def _save(
    engine: AsyncEngine, batch: list[SavedTokens], refuse: Callable[[str], None], actor: str
) -> int:
    """Save ``batch``; what Postgres refuses for itself is kept for a person, and its company is saved.

    Or else one bad record would keep this machine's workers from ever asking again.
    """
    try:
        async with engine.begin() as connection:
            result = await connection.run_sync(settlement.save_refreshed, batch, actor=actor)
    except DBAPIError as error:
        if not is_about_the_data(error):
            raise
        if len(batch) == 1:
            state = getattr(error.orig, "sqlstate", None)
            async with engine.begin() as connection:
                await connection.run_sync(
                    settlement.quarantine,
                    batch[0].account_id,
                    batch[0].epoch,
                    code=f"answer_refused_{state}",
                    actor=actor,
                )
            refuse(f"Postgres refuses the answer of account {batch[0].account_id}: SQLSTATE {state}")
            return 0
        middle = len(batch) // 2
        first = await _save(engine, batch[:middle], refuse, actor)
        return first + await _save(engine, batch[middle:], refuse, actor)
    return len(result.saved) + len(result.candidates)
