"""A Postgres of the test's own is shut down as by a crash, under a running fleet, and comes back by recovery."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from embedded.postgres import EmbeddedPostgres
from sandbox.selection import Stage
from store import migrate
from store.engine import make_engine
from tests.support.fleet import Fleet, eventually
from tests.support.processes import SCHEDULER, WORKER, Member, Processes


@pytest.fixture
def postgres(tmp_path: Path) -> Iterator[EmbeddedPostgres]:
    """A server whose commits are durable, unlike those of the test run's."""
    with EmbeddedPostgres(tmp_path / "postgres", extra_settings={"shared_buffers": "16MB"}) as server:
        yield server


@pytest.fixture
def database_url(postgres: EmbeddedPostgres) -> str:
    engine = make_engine(postgres.url, application_name="test")
    migrate.upgrade(engine)
    engine.dispose()
    return postgres.url


def is_unwell(member: Member) -> bool:
    """Answer whether /healthz says 503, for Postgres."""
    status, problems = member.health()
    return status == 503 and any("Postgres" in each for each in problems)


def test_a_fleet_outlives_an_immediate_restart_of_postgres(
    fleet: Fleet, run: Processes, postgres: EmbeddedPostgres
) -> None:
    members = run.fleet(SCHEDULER, WORKER)
    saved = fleet.connect(*(f"saved-{number}" for number in range(10)))
    eventually(lambda: set(fleet.generations().values()) == {2}, what="their answers are committed")
    with fleet.server.hold(stage=Stage.AFTER_DECIDING):
        in_hand = fleet.connect(*(f"in-hand-{number}" for number in range(10)))
        fleet.server.wait_for_held(len(in_hand))
        os.kill(postgres.pid, signal.SIGQUIT)
        eventually(lambda: not postgres.is_running, what="Postgres has ended")
    for member in members:
        eventually(partial(is_unwell, member), what="each says what is wrong")
    assert fleet.server.ledger().refreshes == len(saved + in_hand)

    postgres.start()
    fleet.engine.dispose()
    for member in members:
        eventually(member.is_well, what="/healthz says 200 again")
    eventually(lambda: set(fleet.generations().values()) == {2}, what="the answers in hand have landed")
    assert fleet.strays() == []
    assert fleet.server.ledger().refreshes == len(saved + in_hand)
    fleet.make_due(*saved, *in_hand)
    # Far sooner than a claim expires: the first job meets connections that died meanwhile, and is not dropped.
    eventually(lambda: set(fleet.generations().values()) == {3}, what="the work goes on by itself")
    assert [member.stop() for member in members] == [0, 0]
    assert not any("Traceback" in member.text() for member in members)
    ledger = fleet.server.ledger()
    assert (ledger.presented_twice, ledger.rejected) == (0, 0), ledger.violations
    assert fleet.strays() == []
