"""What was appended reaches the disk, also while Postgres takes nothing and after the disk refused."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import text

from sandbox.selection import Stage
from store.journal import Journal, JournalUnwritable
from tests.support.fleet import Fleet, eventually
from workers.flushing import Flusher


class WatchedJournal(Journal):
    """Counts its flushes, and refuses as many as it is told to."""

    flushes = 0
    refusals = 0
    on_flush: Callable[[], object] = staticmethod(lambda: None)

    def sync(self) -> None:
        self.flushes += 1
        self.on_flush()
        if self.flushes <= self.refusals:
            raise JournalUnwritable("No space left on device")
        super().sync()


def flush(journal: WatchedJournal, *, times: int, notes: int = 1) -> None:
    """Let a flusher work until it has flushed so often, each time after so many notes."""

    async def work() -> None:
        loop, flushed = asyncio.get_running_loop(), asyncio.Event()
        journal.on_flush = lambda: loop.call_soon_threadsafe(flushed.set)
        flusher = Flusher(journal, wait_seconds=0.01)
        running = asyncio.create_task(flusher.run())
        async with asyncio.timeout(10):
            for _ in range(times):
                flushed.clear()
                for _ in range(notes):
                    flusher.note()
                await flushed.wait()
        running.cancel()

    asyncio.run(work())


def test_appends_that_come_together_are_flushed_together(tmp_path: Path) -> None:
    journal = WatchedJournal(tmp_path, "journal")
    flush(journal, times=1, notes=20)
    assert journal.flushes == 1
    journal.close()


def test_a_disk_that_refuses_ends_no_flusher(tmp_path: Path) -> None:
    journal = WatchedJournal(tmp_path, "journal")
    journal.refusals = 2
    flush(journal, times=3)
    assert journal.flushes == 3
    journal.close()


def test_an_answer_is_on_the_disk_while_postgres_takes_nothing(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut in a long outage must not take what came in meanwhile."""
    flushed: list[int] = []
    flush = Journal.sync

    def watched(journal: Journal) -> None:
        waiting = journal.unsettled()
        flush(journal)
        flushed.append(waiting)

    first, second = fleet.connect("first", "second")
    with fleet.worker() as worker, fleet.engine.connect() as blocker:
        with fleet.server.hold(stage=Stage.AFTER_DECIDING, subjects=["second"]):
            jobs = [worker.submit(job) for job in fleet.claim(count=2)]
            fleet.server.wait_for_held(1)
            eventually(lambda: fleet.row(first).generation == 2, what="the first one is saved")
            blocker.execute(text("LOCK TABLE tokenfleet.token_sets IN ACCESS EXCLUSIVE MODE"))
            monkeypatch.setattr(Journal, "sync", watched)
        eventually(lambda: flushed != [], what="the second answer is flushed")
        assert flushed[-1] == 1
        blocker.rollback()
        for job in jobs:
            job.result(30)
    assert fleet.row(second).generation == 2
