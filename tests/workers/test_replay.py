"""What a dead process left on disk, written to Postgres by a worker that finds it."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any, TypeVar

import pytest
from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncEngine

from store.answers import SavedTokens
from store.engine import make_async_engine
from store.journal import Journal
from store.keys import Vault
from tests.support.builders import answer, let_claims_expire, make_accounts, make_app, start, state_of
from tests.support.fleet import Fleet, eventually
from tokenfleet.jobs import AccountId
from tokenfleet.settings import Settings
from workers.replay import adopt_orphans

R = TypeVar("R")

NO_BIGINT = 2**63


@pytest.fixture
def ids(engine: Engine, vault: Vault) -> list[AccountId]:
    return make_accounts(engine, vault, make_app(engine, vault), 5)


def leave_behind(settings: Settings, *answers: SavedTokens) -> None:
    """Write a journal and die."""
    journal = Journal(settings.journal_dir, "dead")
    for each in answers:
        journal.append(each)
    assert journal._lock is not None
    os.close(journal._lock)
    os.close(journal._descriptor)


def with_engine(settings: Settings, use: Callable[[AsyncEngine], Coroutine[Any, Any, R]]) -> R:
    """Run ``use`` with a worker's engine."""

    async def run() -> R:
        engine = make_async_engine(settings.database_url, application_name="test", pool_size=1)
        try:
            return await use(engine)
        finally:
            await engine.dispose()

    return asyncio.run(run())


def adopt(settings: Settings) -> int:
    return with_engine(settings, lambda engine: adopt_orphans(engine, settings.journal_dir, actor="test"))


def test_an_answer_that_postgres_refuses_is_kept_for_a_person_and_its_company_is_saved(
    engine: Engine, vault: Vault, settings: Settings, ids: list[AccountId]
) -> None:
    answers = [answer(vault, account_id, epoch=1, generation=1) for account_id in ids]
    answers[2] = replace(answers[2], generation=NO_BIGINT)
    leave_behind(settings, *answers)
    assert adopt(settings) == len(ids)
    assert [state_of(engine, vault, account_id).generation for account_id in ids] == [2, 2, 1, 2, 2]
    assert [path.name for path in settings.journal_dir.iterdir()] == ["damaged"]
    assert adopt(settings) == 0


def test_an_account_is_asked_only_after_the_journals_of_the_dead_were_read(fleet: Fleet) -> None:
    """The answer was left after the worker had started, and the next job comes before its housekeeping."""
    [account_id] = fleet.connect("customer")
    [first] = fleet.claim()
    assert start(fleet.engine, first)
    let_claims_expire(fleet.engine)
    with fleet.worker() as worker:
        leave_behind(
            fleet.settings, answer(fleet.vault, account_id, epoch=first.accounts[0][1], generation=1)
        )
        worker.run(fleet.claim())
        assert fleet.server.ledger().refreshes == 0, "its token was spent for the answer on disk"
    assert fleet.row(account_id).generation == 2


def test_leases_of_what_is_not_settled_are_kept_alive(fleet: Fleet) -> None:
    """A sibling asks for the lease long after the first one's would have ended, and is refused."""
    tunables = fleet.settings.tunables.model_copy(
        update={"http_timeout_seconds": 5.0, "lease_seconds": 0.3, "claim_seconds": 30.0}
    )
    fleet.settings = replace(fleet.settings, tunables=tunables)
    [account_id] = fleet.connect("customer")
    with fleet.worker() as first, fleet.worker() as second:
        with fleet.server.hold():
            running = first.submit(fleet.claim()[0])
            fleet.server.wait_for_held(1)
            began = time.monotonic()
            eventually(lambda: time.monotonic() > began + 1, what="three lives of a lease have passed")
            let_claims_expire(fleet.engine)
            second.run(fleet.claim())
        running.result(30)
    assert (fleet.server.ledger().refreshes, fleet.server.ledger().presented_twice) == (1, 0)
    assert fleet.row(account_id).generation == 2
