"""Warm shutdown: what is in flight is finished and saved, what was not begun is left to others."""

from __future__ import annotations

import time
from dataclasses import replace
from uuid import uuid4

import pytest
from redis import Redis

from tests.support.fleet import Fleet, eventually
from tests.support.processes import PLAIN_WORKER, SCHEDULER, WORKER, Processes
from tokenfleet.jobs import REFRESH_QUEUE


@pytest.mark.parametrize("words", [WORKER, PLAIN_WORKER], ids=["tokenfleet worker", "celery worker"])
def test_a_worker_told_to_stop_waits_for_its_answers_and_saves_them(
    fleet: Fleet, run: Processes, words: tuple[str, ...]
) -> None:
    [worker] = run.fleet(words)
    ids = fleet.connect(*(f"customer-{number}" for number in range(20)))
    with fleet.server.hold():
        fleet.publish(fleet.claim())
        fleet.server.wait_for_held(len(ids))
        worker.process.terminate()
        # It listens no more: Celery's part is over, and it waits for the answers only.
        eventually(lambda: worker.health()[0] == 0, what="the worker is stopping")
        assert worker.process.poll() is None
    assert worker.wait() == 0, worker.text()
    assert fleet.strays() == []
    assert {fleet.row(account_id).claimed for account_id in ids} == {False}
    ledger = fleet.server.ledger()
    assert (ledger.refreshes, ledger.presented_twice) == (len(ids), 0)
    assert not list(fleet.settings.journal_dir.iterdir()), "its journal is settled and gone"
    assert "Traceback" not in worker.text()


def test_jobs_that_a_stopping_worker_has_not_begun_are_done_by_another(
    fleet: Fleet, run: Processes, redis_url: str
) -> None:
    [first] = run.fleet(WORKER, worker_threads="1")
    ids = fleet.connect(*(f"customer-{number}" for number in range(10)))
    with fleet.server.hold():
        [claimed] = fleet.claim()
        fleet.publish([replace(claimed, job_id=str(uuid4()), accounts=(pair,)) for pair in claimed.accounts])
        fleet.server.wait_for_held(1)
        first.process.terminate()
        eventually(lambda: first.health()[0] == 0, what="the worker is stopping")
    assert first.wait() == 0, first.text()
    done = fleet.server.ledger().refreshes
    assert 1 <= done < len(ids)
    with Redis.from_url(redis_url) as redis:
        assert redis.llen(REFRESH_QUEUE) == len(ids) - done
    run.fleet(WORKER)
    # Far sooner than their claims expire: the messages were left, not lost.
    eventually(lambda: fleet.server.ledger().refreshes == len(ids), within=10)
    eventually(lambda: fleet.strays() == [])
    assert fleet.server.ledger().presented_twice == 0


def test_a_scheduler_told_to_stop_ends_at_once(fleet: Fleet, run: Processes) -> None:
    [scheduler] = run.fleet(SCHEDULER, tick_seconds="60")
    fleet.connect("customer")
    began = time.monotonic()
    assert scheduler.stop() == 0
    assert time.monotonic() - began < 2
    assert "Traceback" not in scheduler.text()
