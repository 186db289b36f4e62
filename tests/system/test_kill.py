"""``kill -9`` at the two worst moments: while the provider thinks, and between its answer and the commit."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from sqlalchemy import text

from sandbox.config import SandboxConfig
from sandbox.selection import Stage
from store import records
from store.journal import segments
from tests.support.fleet import Fleet, eventually
from tests.support.processes import SCHEDULER, SHORT_LADDER, WORKER, Member, Processes


@pytest.fixture
def sandbox_config(request: pytest.FixtureRequest) -> SandboxConfig:
    config = getattr(request, "param", None)
    return config if isinstance(config, SandboxConfig) else SandboxConfig()


def on_disk(fleet: Fleet) -> dict[str, int]:
    """Return how many answers stand in each worker's journal."""
    return {
        directory.name: sum(1 for path in segments(directory) for _ in records.read(path, []))
        for directory in fleet.settings.journal_dir.iterdir()
    }


def in_charge_first(workers: Sequence[Member]) -> list[Member]:
    """Return the worker that has begun the one job there was, and the other one."""
    return sorted(workers, key=lambda worker: not worker.events("job.started"))


@pytest.mark.parametrize(
    ("stage", "sandbox_config"),
    [
        (Stage.BEFORE_DECIDING, SandboxConfig()),
        (Stage.AFTER_DECIDING, SandboxConfig(grace_seconds=30)),
    ],
    ids=["before the provider acted", "after it acted, within its grace"],
    indirect=["sandbox_config"],
)
def test_the_accounts_of_a_killed_worker_are_picked_up_by_another(
    fleet: Fleet, run: Processes, stage: Stage
) -> None:
    scheduler, *workers = run.fleet(SCHEDULER, WORKER, WORKER, **SHORT_LADDER)
    with fleet.server.hold(stage=stage):
        ids = fleet.connect(*(f"customer-{number}" for number in range(20)))
        fleet.server.wait_for_held(len(ids))
        victim, heir = in_charge_first(workers)
        victim.kill()
    eventually(lambda: min(fleet.generations().values()) == 2, what="all are fresh")
    assert fleet.strays() == []
    assert {fleet.row(account_id).status for account_id in ids} == {"active"}
    ledger = fleet.server.ledger()
    assert ledger.presented_twice == 0, ledger.violations
    assert ledger.rejected == 0
    assert ledger.rotations_recovered == (len(ids) if stage is Stage.AFTER_DECIDING else 0)
    assert heir.events("job.started")
    assert [scheduler.stop(), heir.stop()] == [0, 0]


def test_an_answer_that_was_lost_with_its_worker_is_told_as_rotation_lost(
    fleet: Fleet, run: Processes
) -> None:
    """The provider rotated, has no grace, and nobody has the successor: only the customer can mend that."""
    _, *workers = run.fleet(SCHEDULER, WORKER, WORKER, **SHORT_LADDER)
    with fleet.server.hold(stage=Stage.AFTER_DECIDING):
        [account_id] = fleet.connect("customer")
        fleet.server.wait_for_held(1)
        in_charge_first(workers)[0].kill()
    eventually(lambda: fleet.row(account_id).status == "needs_reauth")
    assert fleet.row(account_id).status_reason == "rotation_lost"
    assert fleet.told(account_id) == ["integrated_account:authentication_error"]
    ledger = fleet.server.ledger()
    assert (ledger.presented_twice, ledger.replays_after_loss) == (0, 1)


def test_what_a_killed_worker_had_on_disk_is_saved_by_a_sibling_before_anybody_asks_again(
    fleet: Fleet, run: Processes
) -> None:
    """The claims expire 3 s after the requests began, so that is all the time there is."""
    members = run.fleet(SCHEDULER, WORKER, WORKER, **SHORT_LADDER)
    with fleet.engine.connect() as blocker:
        with fleet.server.hold(stage=Stage.AFTER_DECIDING):
            ids = fleet.connect(*(f"customer-{number}" for number in range(20)))
            fleet.server.wait_for_held(len(ids))
            # Nothing can be committed from here on.
            blocker.execute(text("LOCK TABLE tokenfleet.token_sets IN ACCESS EXCLUSIVE MODE"))
        eventually(lambda: fleet.server.ledger().refreshes == len(ids), what="the answers have left")
        eventually(lambda: len(ids) in on_disk(fleet).values(), what="they are on disk")
        [journal] = (name for name, count in on_disk(fleet).items() if count)
        [victim] = (member for member in members if f"-{member.process.pid}-" in journal)
        victim.kill()
        blocker.rollback()
    assert max(fleet.generations().values()) == 1, "none of them is in the database"
    eventually(lambda: min(fleet.generations().values()) == 2, what="the sibling has saved them")
    assert fleet.strays() == []
    ledger = fleet.server.ledger()
    assert (ledger.refreshes, ledger.presented_twice) == (len(ids), 0), ledger.violations
