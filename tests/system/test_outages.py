"""Servers that go away while the fleet works, and servers that were never there."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine, text

from embedded.valkey import EmbeddedValkey
from sandbox.selection import Stage
from tests.support.fleet import Fleet, eventually
from tests.support.processes import SCHEDULER, SHORT_LADDER, WORKER, Member, Processes

CLAIM_SECONDS = float(SHORT_LADDER["claim_seconds"])


@pytest.fixture
def admin(servers: dict[str, str]) -> Iterator[Engine]:
    """Postgres by another database than the fleet's."""
    engine = create_engine(servers["TOKENFLEET_DATABASE_URL"], isolation_level="AUTOCOMMIT")
    yield engine
    engine.dispose()


@contextmanager
def postgres_away(fleet: Fleet, admin: Engine) -> Iterator[None]:
    """End every connection to the fleet's database, and refuse new ones until the block ends."""
    name = fleet.engine.url.database
    with admin.connect() as connection:
        connection.execute(text(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false"))
        try:
            connection.execute(
                text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :name"),
                {"name": name},
            )
            yield
        finally:
            connection.execute(text(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true"))


def is_unwell(member: Member, problem: str) -> bool:
    """Answer whether /healthz says 503 and why."""
    status, problems = member.health()
    return status == 503 and any(problem in each for each in problems)


def test_answers_outlast_a_postgres_that_is_away_for_longer_than_their_claims(
    fleet: Fleet, run: Processes, admin: Engine
) -> None:
    """The claims expire meanwhile, so a sibling could ask again: it must not, the answers are already here."""
    members = run.fleet(SCHEDULER, WORKER, WORKER, **SHORT_LADDER)
    workers = members[1:]
    with ExitStack() as outage:
        with fleet.server.hold(stage=Stage.AFTER_DECIDING):
            ids = fleet.connect(*(f"customer-{number}" for number in range(20)))
            fleet.server.wait_for_held(len(ids))
            began = time.monotonic()
            outage.enter_context(postgres_away(fleet, admin))
        eventually(lambda: any(is_unwell(worker, "answers wait in the journal") for worker in workers))
        for member in members:
            eventually(partial(is_unwell, member, "Postgres"), what="each says what is wrong")
        eventually(lambda: time.monotonic() > began + CLAIM_SECONDS, what="the claims have expired")
    eventually(lambda: min(fleet.generations().values()) == 2, what="the answers are in the database")
    for member in members:
        eventually(member.is_well, what="/healthz says 200 again")
    assert fleet.strays() == []
    ledger = fleet.server.ledger()
    assert (ledger.refreshes, ledger.presented_twice) == (len(ids), 0), ledger.violations
    assert {fleet.row(account_id).status for account_id in ids} == {"active"}
    assert [member.stop() for member in members] == [0, 0, 0]
    assert not any("Traceback" in member.text() for member in members)


def test_while_an_answer_waits_for_postgres_nobody_asks_again(fleet: Fleet, run: Processes) -> None:
    """Only the writes wait here: claims expire, are made anew and reach a worker that could ask."""
    run.fleet(SCHEDULER, WORKER, WORKER, **SHORT_LADDER)
    with fleet.engine.connect() as blocker:
        with fleet.server.hold(stage=Stage.AFTER_DECIDING):
            ids = fleet.connect(*(f"customer-{number}" for number in range(20)))
            fleet.server.wait_for_held(len(ids))
            blocker.execute(text("LOCK TABLE tokenfleet.account_events IN SHARE MODE"))
        eventually(lambda: fleet.server.ledger().refreshes == len(ids), what="the answers have left")
        claims = "SELECT min(claim_epoch) FROM tokenfleet.refresh_schedule"
        eventually(lambda: fleet.column(claims)[0] >= 3, what="they are claimed again and again")
        assert max(fleet.generations().values()) == 1
        blocker.rollback()
    eventually(lambda: min(fleet.generations().values()) == 2, what="the answers are in the database")
    assert fleet.strays() == []
    ledger = fleet.server.ledger()
    assert (ledger.refreshes, ledger.presented_twice) == (len(ids), 0), ledger.violations


def test_without_a_broker_claims_are_given_back_and_the_work_goes_on_when_it_returns(
    fleet: Fleet, run: Processes, tmp_path: Path
) -> None:
    with EmbeddedValkey(tmp_path / "broker") as broker:
        scheduler, worker = run.fleet(SCHEDULER, WORKER, broker_url=broker.url)
        broker.stop()
        ids = fleet.connect("first", "second")
        eventually(lambda: is_unwell(scheduler, "the broker does not answer"))
        assert {fleet.row(account_id).claimed for account_id in ids} == {False}
        assert fleet.server.ledger().refreshes == 0
        broker.start()
        eventually(
            lambda: fleet.server.ledger().refreshes == len(ids), within=30, what="they are asked about"
        )
        eventually(lambda: fleet.strays() == [])
        eventually(scheduler.is_well, what="/healthz says 200 again")
        assert worker.stop() == 0
        broker.stop()
        fleet.make_due(*ids)
        eventually(lambda: is_unwell(scheduler, "the broker does not answer"))
        began = time.monotonic()
        assert scheduler.stop() == 0
        assert time.monotonic() - began < 6, "kombu alone would try for 12 s"
    assert "Traceback" not in scheduler.text()
    assert fleet.server.ledger().presented_twice == 0
