"""The disk of the journal: full, gone and back under a worker that lives; damaged, or brought to another machine."""

from __future__ import annotations

import resource
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from redis import Redis
from sqlalchemy import text

import store.journal
import workers.engine
from sandbox.selection import Stage
from store import records
from store.journal import segments
from store.orphans import orphans
from tests.support.builders import let_claims_expire
from tests.support.fleet import Fleet, eventually
from tests.support.processes import SCHEDULER, SHORT_LADDER, WORKER, Member, Processes
from tokenfleet import telemetry
from tokenfleet.telemetry import Event

UNWRITABLE = "the journal cannot be written"


def is_unwell(member: Member) -> bool:
    """Answer whether /healthz says 503, for the journal."""
    status, problems = member.health()
    return status == 503 and any(UNWRITABLE in each for each in problems)


def on_disk(root: Path) -> int:
    """Return how many whole answers stand in the journals below ``root``."""
    paths = [path for each in root.iterdir() for path in segments(each)]
    return sum(1 for path in paths for _ in records.read(path, []))


@contextmanager
def unsaved(fleet: Fleet) -> Iterator[None]:
    """Let answers come and no answer be committed."""
    with fleet.engine.connect() as blocker:
        blocker.execute(text("LOCK TABLE tokenfleet.account_events IN SHARE MODE"))
        yield
        blocker.rollback()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the files of another process")
def test_a_full_disk_stops_a_worker_and_costs_no_answer_and_room_lets_it_go_on(
    fleet: Fleet, run: Processes
) -> None:
    """No file of the worker may grow: not its journal, not the log that is on the same disk."""
    scheduler, worker = run.fleet(SCHEDULER, WORKER, **SHORT_LADDER)
    with fleet.server.hold(stage=Stage.AFTER_DECIDING):
        [in_hand] = fleet.connect("in hand")
        fleet.server.wait_for_held(1)
        soft, hard = resource.prlimit(worker.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(worker.process.pid, resource.RLIMIT_FSIZE, (0, hard))
    eventually(lambda: fleet.row(in_hand).generation == 2, what="the answer is saved all the same")
    eventually(lambda: is_unwell(worker), what="/healthz says so")
    [waiting] = fleet.connect("waiting")
    epoch = "SELECT claim_epoch FROM tokenfleet.refresh_schedule WHERE account_id = :id"
    eventually(lambda: fleet.column(epoch, id=waiting)[0] > 1, what="its first claim has led to nothing")
    assert fleet.server.ledger().refreshes == 1

    resource.prlimit(worker.process.pid, resource.RLIMIT_FSIZE, (soft, hard))
    eventually(lambda: fleet.row(waiting).generation == 2, what="the work goes on")
    eventually(worker.is_well, what="/healthz says 200")
    assert [scheduler.stop(), worker.stop()] == [0, 0]
    assert fleet.strays() == []
    assert fleet.server.ledger().presented_twice == 0


def test_a_journal_that_is_removed_under_a_worker_is_made_anew_and_found_after_its_death(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers.engine, "HOUSEKEEPING_SECONDS", 0.1)
    root = fleet.settings.journal_dir
    [in_hand], jobs = fleet.connect("in hand"), fleet.claim()
    with fleet.worker() as worker:
        # A file where the directory was: nothing can be written, whoever tries.
        with fleet.server.hold(stage=Stage.AFTER_DECIDING):
            asking = worker.submit(jobs[0])
            fleet.server.wait_for_held(1)
            shutil.rmtree(root)
            root.touch()
        asking.result(30)
        assert fleet.row(in_hand).generation == 2, "the answer is saved all the same"
        eventually(lambda: any(UNWRITABLE in each for each in worker.engine.problems()[0]))
        [waiting], jobs = fleet.connect("waiting"), fleet.claim()
        worker.run(jobs)
        assert fleet.server.ledger().refreshes == 1

        root.unlink()
        eventually(lambda: worker.engine.problems() == ([], []), what="/healthz says 200")
        let_claims_expire(fleet.engine)
        with unsaved(fleet):
            asking = worker.submit(fleet.claim()[0])
            eventually(
                lambda: root.is_dir() and on_disk(root) == 1, what="the new directory holds the answer"
            )
            brought = shutil.copytree(root, root.with_name("brought"))
        asking.result(30)
    [orphan] = orphans(brought)
    assert [answer.account_id for answer in orphan] == [waiting]
    orphan.release()
    assert {fleet.row(each).generation for each in (in_hand, waiting)} == {2}
    assert fleet.strays() == []
    assert fleet.server.ledger().presented_twice == 0


def test_a_journal_brought_to_another_machine_is_replayed_there_and_only_what_was_damaged_is_lost(
    fleet: Fleet, run: Processes, redis_url: str, tmp_path: Path
) -> None:
    """Of five answers the first is corrupt, and the end of the last was never written."""
    disk = tmp_path / "disk"
    [victim] = run.fleet(WORKER, journal_dir=str(disk))
    subjects = [f"customer-{number}" for number in range(5)]
    ids = fleet.connect(*subjects)
    with unsaved(fleet):
        fleet.publish(fleet.claim())
        eventually(lambda: disk.is_dir() and on_disk(disk) == len(ids), what="the answers are on disk")
        victim.kill()
    [segment] = (path for each in disk.iterdir() for path in segments(each))
    first, *_, last = records.read(segment, [])
    content = bytearray(segment.read_bytes())
    content[100] ^= 1
    segment.write_bytes(content[:-3])
    lost = [ids.index(answer.account_id) for answer in (first, last)]
    # They died with the process that had them: only so much is known to whoever counts presentations.
    fleet.declare_lost({subjects[position]: ids[position] for position in lost})

    alarms = telemetry.ALARMS.labels(Event.JOURNAL_DAMAGED.value)
    before = alarms._value.get()
    fleet.settings = replace(fleet.settings, journal_dir=disk.rename(tmp_path / "another-machine"))
    with fleet.worker() as heir:
        saved = [fleet.row(each).generation == 2 for each in ids]
        assert [position for position, there in enumerate(saved) if not there] == sorted(lost)
        assert alarms._value.get() == before + 2
        assert len(list((fleet.settings.journal_dir / "damaged").iterdir())) == 1
        let_claims_expire(fleet.engine)
        with Redis.from_url(redis_url) as redis:
            redis.flushall()  # The victim's leases have expired, too.
        heir.run(fleet.claim())
    reasons = [fleet.row(each).status_reason for each in ids]
    assert [position for position, reason in enumerate(reasons) if reason] == sorted(lost)
    assert {reasons[position] for position in lost} == {"rotation_lost"}
    ledger = fleet.server.ledger()
    assert (ledger.presented_twice, ledger.replays_after_loss) == (0, len(lost)), ledger.violations


def test_a_commit_that_a_failover_lost_is_brought_back_by_the_journal_of_a_killed_worker(
    fleet: Fleet,
) -> None:
    """A stand-in for a standby that lagged: the rows are put back to what they were before the answer was saved."""
    tables = ("token_sets", "refresh_schedule", "account_events")
    [account_id] = fleet.connect("customer")
    with fleet.worker() as worker:
        with fleet.server.hold(stage=Stage.AFTER_DECIDING):
            running = worker.submit(fleet.claim()[0])
            fleet.server.wait_for_held(1)
            with fleet.engine.begin() as connection:
                for table in tables:
                    connection.execute(text(f"CREATE TABLE was_{table} AS TABLE tokenfleet.{table}"))
        running.result(30)
        assert fleet.row(account_id).generation == 2
        left = shutil.copytree(fleet.settings.journal_dir, fleet.settings.home / "left-by-kill-9")
    with fleet.engine.begin() as connection:
        for table in tables:
            connection.execute(text(f"DELETE FROM tokenfleet.{table}"))
            connection.execute(text(f"INSERT INTO tokenfleet.{table} TABLE was_{table}"))
    assert fleet.strays() == ["customer"]

    fleet.settings = replace(fleet.settings, journal_dir=left)
    with fleet.worker():
        assert fleet.row(account_id).generation == 2
    assert fleet.strays() == []


def test_segments_in_which_all_is_committed_are_removed_while_the_worker_goes_on(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store.journal, "SEGMENT_BYTES", 2000)
    ids = fleet.connect(*(f"customer-{number}" for number in range(20)))

    def files() -> int:
        return sum(len(segments(each)) for each in fleet.settings.journal_dir.iterdir())

    with fleet.worker() as worker:
        with unsaved(fleet):
            running = [worker.submit(job) for job in fleet.claim()]
            eventually(lambda: on_disk(fleet.settings.journal_dir) == len(ids), what="they are on disk")
            assert files() > 3
        for each in running:
            each.result(30)
        eventually(lambda: files() == 1, what="the one that is written to is left")
    assert not list(fleet.settings.journal_dir.iterdir())
    assert fleet.strays() == []
