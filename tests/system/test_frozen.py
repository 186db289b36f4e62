"""A worker that is frozen past its lease and its claim (SIGSTOP, a paused virtual machine), and wakes up."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
from sqlalchemy import text

from sandbox.config import SandboxConfig
from sandbox.selection import Stage
from store import records
from store.journal import segments
from tests.support.builders import let_claims_expire
from tests.support.fleet import Fleet, eventually
from tests.support.processes import SCHEDULER, SHORT_LADDER, WORKER, Member, Processes

LONG_CLAIM = SHORT_LADDER | {"claim_seconds": "30"}
"""Claims expire when the test says so."""
SUBJECTS = tuple(f"customer-{number}" for number in range(20))


@pytest.fixture
def sandbox_config(request: pytest.FixtureRequest) -> SandboxConfig:
    config = getattr(request, "param", None)
    return config if isinstance(config, SandboxConfig) else SandboxConfig()


@contextmanager
def frozen(member: Member) -> Iterator[None]:
    """Stop a process where it stands, and let it go on after the block."""
    member.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        member.process.send_signal(signal.SIGCONT)


def in_charge(workers: Sequence[Member]) -> Member:
    """Return the worker that has begun the one job there is."""
    [worker] = [worker for worker in workers if worker.events("job.started")]
    return worker


def on_disk(fleet: Fleet) -> int:
    journals = fleet.settings.journal_dir.iterdir()
    return sum(1 for journal in journals for path in segments(journal) for _ in records.read(path, []))


def test_what_a_frozen_worker_has_on_disk_is_saved_by_a_sibling_and_nobody_asks_again(
    fleet: Fleet, run: Processes
) -> None:
    scheduler, *workers = run.fleet(SCHEDULER, WORKER, WORKER, **SHORT_LADDER)
    with fleet.engine.connect() as blocker:
        with fleet.server.hold(stage=Stage.AFTER_DECIDING):
            fleet.connect(*SUBJECTS)
            fleet.server.wait_for_held(len(SUBJECTS))
            # Nothing can be committed from here on.
            blocker.execute(text("LOCK TABLE tokenfleet.token_sets IN ACCESS EXCLUSIVE MODE"))
        eventually(lambda: on_disk(fleet) == len(SUBJECTS), what="the answers are on disk")
        sleeper = in_charge(workers)
        with frozen(sleeper):
            blocker.rollback()
            eventually(lambda: min(fleet.generations().values()) == 2, what="a sibling has saved them")
    eventually(sleeper.is_well, what="it is awake")
    assert fleet.strays() == []
    assert [member.stop() for member in (scheduler, *workers)] == [0, 0, 0]
    assert fleet.column("SELECT count(*) FROM tokenfleet.token_candidates") == [0]
    ledger = fleet.server.ledger()
    assert (ledger.refreshes, ledger.presented_twice) == (len(SUBJECTS), 0), ledger.violations
    assert fleet.column("SELECT DISTINCT status FROM tokenfleet.accounts") == ["active"]
    assert fleet.column("SELECT count(*) FROM tokenfleet.outbox") == [0]


@pytest.mark.parametrize("sandbox_config", [SandboxConfig(grace_seconds=60)], indirect=True)
def test_an_answer_that_sleeps_past_its_claim_overwrites_nothing_and_is_kept(
    fleet: Fleet, run: Processes
) -> None:
    """The provider answers the second presentation too, within its grace; the first answer comes last."""
    scheduler, *workers = run.fleet(SCHEDULER, WORKER, WORKER, **LONG_CLAIM)
    with fleet.server.hold(stage=Stage.AFTER_DECIDING):
        ids = fleet.connect(*SUBJECTS)
        fleet.server.wait_for_held(len(ids))
        sleeper = in_charge(workers)
        sleeper.process.send_signal(signal.SIGSTOP)
    with frozen(sleeper):
        eventually(lambda: fleet.server.ledger().refreshes == len(ids), what="the answers are in its sockets")
        fleet.declare_lost(dict(zip(SUBJECTS, ids, strict=True)))
        let_claims_expire(fleet.engine)
        eventually(lambda: min(fleet.generations().values()) == 2, what="the sibling has asked again")
        saved = {account_id: fleet.row(account_id).access_token for account_id in ids}
    eventually(
        lambda: fleet.column("SELECT count(*) FROM tokenfleet.token_candidates") == [len(ids)],
        what="the sleeper has kept its answers apart",
    )
    assert {account_id: fleet.row(account_id).access_token for account_id in ids} == saved
    assert [member.stop() for member in (scheduler, *workers)] == [0, 0, 0]
    ledger = fleet.server.ledger()
    assert (ledger.presented_twice, ledger.replays_after_loss) == (0, len(ids)), ledger.violations
    assert fleet.column("SELECT DISTINCT status FROM tokenfleet.accounts") == ["active"]


def test_a_worker_that_sleeps_in_the_middle_of_starting_keeps_nobody_out_and_asks_with_no_stale_claim(
    fleet: Fleet, run: Processes
) -> None:
    [scheduler] = run.fleet(SCHEDULER, **LONG_CLAIM)
    fleet.connect(*SUBJECTS)
    eventually(lambda: set(epochs(fleet)) == {1}, what="all are claimed")
    with fleet.engine.connect() as blocker:
        blocker.execute(text("SELECT 1 FROM tokenfleet.refresh_schedule FOR UPDATE"))
        [sleeper] = run.fleet(WORKER, **LONG_CLAIM)
        eventually(lambda: has_worker_in(fleet, "wait_event_type = 'Lock'"), what="it is starting the claims")
        with frozen(sleeper):
            blocker.rollback()
            eventually(lambda: has_worker_in(fleet, "state = 'idle in transaction'"), what="it has the rows")
            let_claims_expire(fleet.engine)
            eventually(lambda: set(epochs(fleet)) == {2}, what="Postgres has ended its transaction")
    eventually(lambda: min(fleet.generations().values()) == 2, what="all are fresh")
    assert fleet.strays() == []
    ledger = fleet.server.ledger()
    assert (ledger.refreshes, ledger.presented_twice) == (len(SUBJECTS), 0), ledger.violations
    assert [scheduler.stop(), sleeper.stop()] == [0, 0]


def has_worker_in(fleet: Fleet, state: str) -> bool:
    """Answer whether a worker's reading connection is in this state."""
    return bool(
        fleet.column(
            "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() "
            f"AND application_name LIKE 'tokenfleet worker%' AND {state}"
        )
    )


def epochs(fleet: Fleet) -> list[int]:
    return fleet.column("SELECT claim_epoch FROM tokenfleet.refresh_schedule")
