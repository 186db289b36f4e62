"""The group writer beside others who lock many accounts."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from redis.asyncio import Redis
from sqlalchemy import Engine, text

from store import transitions
from store.engine import make_async_engine
from store.journal import Journal
from store.keys import Vault
from store.leases import Leases
from tests.support.builders import (
    answer,
    claim,
    deferral,
    job_of,
    make_account,
    make_app,
    rejection,
    start,
    state_of,
)
from tests.support.racing import in_background, wait_until_blocked
from tokenfleet.settings import Settings
from tokenfleet_client.contract import AccountStatus
from workers.results import Result
from workers.writer import GroupWriter


async def write(settings: Settings, root: Path, results: list[Result]) -> bool:
    """Write results as one batch, and wait until they are in."""
    engine = make_async_engine(settings.database_url, application_name="writer", pool_size=1)
    async with Redis.from_url(settings.redis_url) as redis:
        leases = Leases(redis, life_seconds=30)
        journal = Journal(root, "writer")
        writer = GroupWriter(
            engine, journal, leases, owner="writer", wait_seconds=0.01, probe_after=timedelta(seconds=30)
        )
        done = [writer.add(result) for result in results]
        writing = asyncio.create_task(writer.run())
        written = all(await asyncio.gather(*done))
        writer.close()
        await writing
    await engine.dispose()
    return written


@pytest.mark.parametrize("is_rejected", [True, False])
def test_a_batch_of_answers_and_rejections_locks_its_accounts_in_one_run(
    engine: Engine, vault: Vault, settings: Settings, tmp_path: Path, is_rejected: bool
) -> None:
    """An operator who has the rejected account, or the failing one, and wants the answered one next, gets it.

    Nobody is in a deadlock.
    """
    app_id = make_app(engine, vault)
    first, second = (make_account(engine, vault, app_id) for _ in range(2))
    refused, good = sorted(
        start(engine, job_of(app_id, claim(engine, app_id))), key=lambda attempt: attempt.account_id
    )
    batch: list[Result] = [
        answer(vault, second, epoch=good.epoch, generation=1),
        rejection(first, epoch=refused.epoch, generation=1)
        if is_rejected
        else replace(deferral(refused), expired=True),
    ]
    with engine.begin() as operator:
        transitions.lock(operator, [first])
        writing = in_background(lambda: asyncio.run(write(settings, tmp_path, batch)))
        wait_until_blocked(engine)
        operator.execute(text("SET LOCAL lock_timeout = '200ms'"))
        transitions.lock(operator, [second])
    assert writing.result()
    status = AccountStatus.NEEDS_REAUTH if is_rejected else AccountStatus.ACTIVE
    assert state_of(engine, vault, first).status is status
    assert state_of(engine, vault, second).generation == 2
