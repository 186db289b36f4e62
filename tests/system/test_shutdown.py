"""Being told to stop: what is in flight is finished and saved, the rest is done by others at once, nothing hangs."""

from __future__ import annotations

import signal
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from redis import Redis
from sqlalchemy import Connection, text

import workers.engine
from embedded.valkey import EmbeddedValkey
from sandbox.faults import FaultKind, FaultRule
from sandbox.selection import Stage
from store import apps, schedule
from store.journal import Journal, JournalUnwritable
from store.schedule import Attempt
from tests.support.fleet import Fleet, eventually
from tests.support.processes import PLAIN_WORKER, SCHEDULER, SHORT_LADDER, WORKER, Member, Processes
from tests.support.racing import in_background
from tokenfleet.jobs import REFRESH_QUEUE, RefreshJob
from tokenfleet.settings import Tunables
from workers.room import ROOM_SECONDS

PATIENT = {"http_timeout_seconds": "60", "lease_seconds": "130", "claim_seconds": "140"}
"""Settings under which a request that the test holds for a while does not end by itself."""
HELD_WITHIN_SECONDS = 30


@pytest.fixture
def short_patience(monkeypatch: pytest.MonkeyPatch) -> float:
    """Shorten how long a stop waits for a Postgres that is away; return how long that is in all, with time to spare."""
    monkeypatch.setattr(workers.engine, "GIVE_UP_SECONDS", 0.4)
    monkeypatch.setattr(workers.engine, "STRAGGLER_SECONDS", 0.2)
    monkeypatch.setattr(workers.engine, "CLOSE_SECONDS", 0.2)
    return 1.5


def singly(jobs: list[RefreshJob]) -> list[RefreshJob]:
    """Return a job of its own for each account."""
    return [replace(job, job_id=str(uuid4()), accounts=(pair,)) for job in jobs for pair in job.accounts]


def has_stopped_listening(member: Member) -> bool:
    """Answer whether Celery's part is over: what is left is to wait for answers."""
    return member.health()[0] == 0


@pytest.mark.parametrize(
    ("words", "signals"),
    [
        (WORKER, (signal.SIGINT, signal.SIGINT, signal.SIGQUIT, signal.SIGINT, signal.SIGTERM)),
        (PLAIN_WORKER, (signal.SIGTERM, signal.SIGTERM, signal.SIGQUIT, signal.SIGQUIT)),
    ],
    ids=["tokenfleet worker", "celery worker"],
)
def test_a_worker_told_to_stop_again_and_again_saves_what_it_asked_and_leaves_the_rest_to_others(
    fleet: Fleet, run: Processes, redis_url: str, words: tuple[str, ...], signals: tuple[signal.Signals, ...]
) -> None:
    [first] = run.fleet(words, **PATIENT)
    asked = fleet.connect(*(f"asked-{number}" for number in range(20)))
    with fleet.server.hold(prefix="asked-"):
        fleet.publish(fleet.claim())
        fleet.server.wait_for_held(len(asked), HELD_WITHIN_SECONDS)
        later = fleet.connect(*(f"later-{number}" for number in range(20)))
        jobs = singly(fleet.claim())
        order, *repeated = signals
        first.process.send_signal(order)
        for job in jobs:
            # Before Celery has noticed, while it waits for its threads, after it has let go of the broker.
            fleet.publish([job])
            time.sleep(0.05)
        eventually(lambda: has_stopped_listening(first), what="the worker has let go of the broker")
        for number in repeated:
            first.process.send_signal(number)
        run.fleet(SCHEDULER, WORKER)
        # Their claims live for 30 s: nobody has waited for that.
        eventually(
            lambda: fleet.server.ledger().refreshes == len(later), within=20, what="others do the rest"
        )
        assert first.process.poll() is None
    assert first.wait() == 0, first.text()
    assert [event["started"] for event in first.events("job.started")] == [len(asked)]
    eventually(lambda: fleet.strays() == [])
    assert fleet.column(
        "SELECT count(*) FROM tokenfleet.refresh_schedule WHERE claimed_until IS NOT NULL"
    ) == [0]
    ledger = fleet.server.ledger()
    assert (ledger.refreshes, ledger.presented_twice) == (len(asked + later), 0), ledger.violations
    assert ledger.rotations_lost == 0
    assert not list(fleet.settings.journal_dir.glob(f"*-{first.process.pid}-*")), "its journal is settled"
    assert "Traceback" not in first.text()
    with Redis.from_url(redis_url) as redis:
        assert redis.llen(REFRESH_QUEUE) == 0


def test_a_provider_that_hangs_delays_a_stop_until_the_http_timeout_and_no_longer(
    fleet: Fleet, run: Processes
) -> None:
    [worker] = run.fleet(WORKER, **SHORT_LADDER)
    fleet.server.add_faults(FaultRule(kind=FaultKind.HANG, stage=Stage.BEFORE_DECIDING))
    ids = fleet.connect("first", "second")
    fleet.publish(fleet.claim(claim=timedelta(seconds=float(SHORT_LADDER["claim_seconds"]))))
    eventually(lambda: fleet.server.ledger().open_requests == len(ids), what="they are asked about")
    assert worker.stop() == 0, worker.text()
    for account_id in ids:
        row = fleet.row(account_id)
        assert (row.status, row.claimed, row.last_error) == ("active", False, "timeout")
    fleet.server.clear_faults()
    fleet.make_due(*ids)
    with fleet.worker() as heir:
        heir.run(fleet.claim())
    assert fleet.strays() == []
    assert fleet.server.ledger().presented_twice == 0


def test_a_worker_told_to_stop_without_redis_saves_its_answers(
    fleet: Fleet, run: Processes, tmp_path: Path
) -> None:
    with EmbeddedValkey(tmp_path / "redis") as redis:
        [worker] = run.fleet(WORKER, redis_url=redis.url, **PATIENT)
        with fleet.server.hold():
            fleet.settings = replace(fleet.settings, redis_url=redis.url, broker_url=redis.url)
            [account_id] = fleet.connect("customer")
            fleet.publish(fleet.claim())
            fleet.server.wait_for_held(1, HELD_WITHIN_SECONDS)
            redis.stop()
            worker.process.terminate()
            eventually(lambda: has_stopped_listening(worker), what="Celery has given up on the broker")
        assert worker.wait() == 0, worker.text()
    assert fleet.strays() == []
    assert fleet.row(account_id).claimed is False


def test_a_stop_waits_for_a_slow_provider_even_while_postgres_is_away(
    fleet: Fleet, short_patience: float
) -> None:
    """The journal can keep an answer for the next worker, but not one that has not come yet."""
    [account_id] = fleet.connect("customer")
    with fleet.worker() as worker, fleet.engine.connect() as blocker:
        with fleet.server.hold():
            worker.submit(fleet.claim()[0])
            fleet.server.wait_for_held(1, HELD_WITHIN_SECONDS)
            stopping = in_background(worker.stop)
            blocker.execute(text("LOCK TABLE tokenfleet.token_sets IN ACCESS EXCLUSIVE MODE"))
            patience_ends = time.monotonic() + short_patience
            eventually(lambda: time.monotonic() > patience_ends)
            assert not stopping.done()
        stopping.result(20)
        blocker.rollback()
    assert fleet.row(account_id).generation == 1
    assert fleet.server.ledger().refreshes == 1, "the answer was not cut off"
    with fleet.worker():
        assert fleet.strays() == [], "the next worker lands it before it takes a job"
    assert fleet.server.ledger().presented_twice == 0


def test_a_stop_never_gives_up_on_an_answer_that_is_in_memory_only(
    fleet: Fleet, short_patience: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Journal, __: object) -> None:
        raise JournalUnwritable("no space left on device")

    fleet.connect("customer")
    with fleet.worker() as worker, fleet.engine.connect() as blocker:
        monkeypatch.setattr(Journal, "append", refuse)
        with fleet.server.hold():
            worker.submit(fleet.claim()[0])
            fleet.server.wait_for_held(1, HELD_WITHIN_SECONDS)
            blocker.execute(text("LOCK TABLE tokenfleet.token_sets IN ACCESS EXCLUSIVE MODE"))
            stopping = in_background(worker.stop)
        patience_ends = time.monotonic() + short_patience
        eventually(lambda: time.monotonic() > patience_ends)
        assert not stopping.done()
        blocker.rollback()
        stopping.result(20)
    assert fleet.strays() == []


def test_the_order_to_stop_between_start_and_request_gives_the_account_back(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    [account_id] = fleet.connect("customer")
    start = schedule.start
    with fleet.worker() as worker:

        def start_and_be_told(connection: Connection, job: RefreshJob, *, claim: timedelta) -> list[Attempt]:
            worker.engine.stop_asking()
            return start(connection, job, claim=claim)

        monkeypatch.setattr(schedule, "start", start_and_be_told)
        worker.run(fleet.claim())
        row = fleet.row(account_id)
        assert (row.claimed, row.unanswered, row.generation) == (False, 0, 1)
        [again] = fleet.claim()
        worker.run([again])
        assert fleet.row(account_id).claimed is False, "nor is another job begun"
        worker.stop()
        worker.engine.stop_asking()
    assert fleet.server.subject("customer").presented == 0


def test_a_job_that_waits_for_room_is_given_back_at_once(fleet: Fleet) -> None:
    fleet.settings = replace(fleet.settings, tunables=Tunables(max_in_flight=1, allow_http_providers=True))
    [asked] = fleet.connect("asked")
    with fleet.worker() as worker, fleet.server.hold():
        worker.submit(fleet.claim()[0])
        fleet.server.wait_for_held(1, HELD_WITHIN_SECONDS)
        # An app that has nothing in flight waits for others to make room.
        with fleet.engine.begin() as connection:
            fleet.app = apps.register(
                connection,
                fleet.vault.refresh,
                provider="sandbox",
                environment="production",
                name="another",
                client_id=fleet.server.config.client_id,
                client_secret=fleet.server.config.client_secret,
                variables={},
            )
        [waiting] = fleet.connect("waiting")
        running = worker.submit(fleet.claim()[0])
        began = time.monotonic()
        worker.engine.stop_asking()
        running.result(10)
        assert time.monotonic() - began < ROOM_SECONDS
        assert fleet.row(waiting).claimed is False
    assert fleet.row(asked).generation == 2


def test_a_job_that_waits_for_a_frozen_postgres_does_not_keep_a_worker_from_stopping(
    fleet: Fleet, short_patience: float
) -> None:
    fleet.connect("customer")
    with fleet.worker() as worker, fleet.engine.connect() as blocker:
        jobs = fleet.claim()
        blocker.execute(text("LOCK TABLE tokenfleet.oauth_apps IN ACCESS EXCLUSIVE MODE"))
        running = worker.submit(jobs[0])
        worker.engine.stop_asking()
        # Much sooner than the lock timeout (10 s), and as soon where there is none.
        running.result(3 * short_patience)
        blocker.rollback()


def test_a_scheduler_told_to_stop_ends_at_once(fleet: Fleet, run: Processes) -> None:
    [scheduler] = run.fleet(SCHEDULER, tick_seconds="60")
    fleet.connect("customer")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
        scheduler.process.send_signal(number)
    # It is waited for much less than a tick lasts.
    assert scheduler.wait() == 0
    assert "Traceback" not in scheduler.text()


def test_a_scheduler_told_to_stop_in_mid_claim_sends_what_it_has_claimed(
    fleet: Fleet, run: Processes
) -> None:
    [scheduler] = run.fleet(SCHEDULER)
    pause = "UPDATE tokenfleet.oauth_apps SET paused_until = "
    execute(fleet, pause + "'infinity'")
    ids = fleet.connect(*(f"customer-{number}" for number in range(30)))
    with fleet.engine.connect() as blocker:
        blocker.execute(text("LOCK TABLE tokenfleet.refresh_schedule IN SHARE MODE"))
        execute(fleet, pause + "NULL")
        # Not just blocked: while the app is paused, what waits for the lock may be the sweep for expired tokens.
        claiming = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
            "AND wait_event_type = 'Lock' AND query LIKE '%WITH allowance AS%'"
        )
        eventually(lambda: fleet.column(claiming) == [1], what="the scheduler is in the middle of a claim")
        scheduler.process.terminate()
        blocker.rollback()
    assert scheduler.wait() == 0, scheduler.text()
    claimed = "SELECT count(*) FROM tokenfleet.refresh_schedule WHERE claimed_until IS NOT NULL"
    assert fleet.column(claimed) == [len(ids)]
    run.fleet(WORKER)
    eventually(lambda: min(fleet.generations().values()) == 2, within=10, what="every claim became a job")


def execute(fleet: Fleet, statement: str) -> None:
    with fleet.engine.begin() as connection:
        connection.execute(text(statement))
