"""The scheduler's tick and its loop, on real Postgres and real Redis. The broker's queue is read raw."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY
from redis import Redis
from sqlalchemy import Engine, create_engine, text

from embedded.valkey import EmbeddedValkey
from providers import load_registry
from sandbox.definition import definition_toml
from sandbox.tokens import ACCESS_TOKEN_PREFIX, REFRESH_TOKEN_PREFIX
from scheduler.loop import MAX_WAITING_JOBS, PROBE_SPACING, Scheduler, TickResult
from scheduler.publisher import Publisher
from store import apps, schedule
from store.engine import make_engine
from store.limits import Budgets
from tests.support.fleet import Fleet, eventually
from tokenfleet.broker import make_celery
from tokenfleet.jobs import MAX_BATCH, REFRESH_QUEUE, AccountId, AppId, Epoch, RefreshJob

NOBODY_LISTENS = "redis://127.0.0.1:1/0"


@pytest.fixture
def redis(redis_url: str) -> Iterator[Redis]:
    with Redis.from_url(redis_url) as redis:
        yield redis


def make_scheduler(
    fleet: Fleet, redis: Redis, *, engine: Engine | None = None, **tunables: float
) -> Scheduler:
    """One more scheduler of the fleet, on the test's connections unless it is given an engine of its own."""
    settings = fleet.settings
    adjusted = settings.tunables.model_copy(update=tunables)
    publisher = Publisher(make_celery(settings), claim=timedelta(seconds=adjusted.claim_seconds))
    return Scheduler(engine or fleet.engine, fleet.registry, Budgets(redis), publisher, adjusted)


@contextmanager
def running(scheduler: Scheduler) -> Iterator[threading.Thread]:
    """Run a scheduler's loop on a thread until the block ends."""
    thread = threading.Thread(target=scheduler.run, name="scheduler")
    thread.start()
    try:
        yield thread
    finally:
        scheduler.stop()
        thread.join(10)
        assert not thread.is_alive(), "the scheduler did not stop"


def messages(redis: Redis) -> list[Any]:
    """Return what stands in the broker's queue, oldest first."""
    raw: Any = redis.lrange(REFRESH_QUEUE, 0, -1)
    return [json.loads(message) for message in reversed(raw)]


def jobs(redis: Redis) -> list[RefreshJob]:
    """Return the jobs in the broker's queue, oldest first."""
    bodies = (json.loads(base64.b64decode(message["body"])) for message in messages(redis))
    return [RefreshJob.parse(arguments) for arguments, _, _ in bodies]


def published(redis: Redis) -> list[tuple[AccountId, Epoch]]:
    """Return every account and epoch in the broker's queue."""
    return [pair for job in jobs(redis) for pair in job.accounts]


def wait_until_published(redis: Redis, account_id: AccountId, epoch: int) -> None:
    eventually(lambda: (account_id, epoch) in published(redis), within=10, what="it is published")


def claims(fleet: Fleet) -> set[tuple[int, int]]:
    """Return every claimed account and its epoch."""
    with fleet.engine.connect() as connection:
        rows = connection.execute(
            text(
                "SELECT account_id, claim_epoch FROM tokenfleet.refresh_schedule "
                "WHERE claimed_until > clock_timestamp()"
            )
        )
        return {(row.account_id, row.claim_epoch) for row in rows}


def connect(fleet: Fleet, count: int, prefix: str = "customer") -> list[AccountId]:
    return fleet.connect(*(f"{prefix}-{number}" for number in range(count)))


def execute(fleet: Fleet, statement: str, **parameters: object) -> None:
    with fleet.engine.begin() as connection:
        connection.execute(text(statement), parameters)


def set_rate(fleet: Fleet, providers: Path, rate: str) -> None:
    """Give the sandbox's definition a ``[rate]`` table."""
    definition = definition_toml(fleet.server.url, fleet.server.config)
    (providers / "sandbox.toml").write_text(f"{definition}\n[rate]\n{rate}\n")
    fleet.registry = load_registry(providers, allow_http=True)


def hold(fleet: Fleet) -> None:
    """Hold the app, its probe due at once."""
    with fleet.engine.begin() as connection:
        began = apps.hold(
            connection,
            fleet.app.app_id,
            "invalid_client",
            generation=fleet.app.generation,
            probe_after=timedelta(0),
        )
    assert began


def at_once(*functions: Callable[[], TickResult]) -> list[TickResult]:
    """Call ``functions`` on threads that leave together."""
    barrier = threading.Barrier(len(functions))
    results: list[TickResult] = []

    def call(function: Callable[[], TickResult]) -> None:
        barrier.wait()
        results.append(function())

    threads = [threading.Thread(target=call, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(results) == len(functions)
    return results


def test_what_is_due_is_claimed_and_published_and_nothing_else(fleet: Fleet, redis: Redis) -> None:
    due = connect(fleet, 5)
    [later] = fleet.connect("later")
    execute(
        fleet,
        "UPDATE tokenfleet.refresh_schedule SET next_refresh_at = now() + interval '1 hour' "
        "WHERE account_id = :id",
        id=later,
    )
    result = make_scheduler(fleet, redis).tick()
    assert result == TickResult(claimed=5, published=1, more=False)
    assert set(published(redis)) == claims(fleet) == {(account_id, 1) for account_id in due}


def test_jobs_hold_at_most_a_hundred_accounts_of_one_app_the_most_urgent_first(
    fleet: Fleet, redis: Redis
) -> None:
    ids = connect(fleet, 250)
    with fleet.engine.begin() as connection:
        other = apps.register(
            connection,
            fleet.vault.refresh,
            provider="sandbox",
            environment="production",
            name="other",
            client_id="other-client",
            client_secret=None,
            variables={},
        )
        moved = {"app": other.app_id, "ids": ids[:120]}
        connection.execute(text("UPDATE tokenfleet.accounts SET app_id = :app WHERE id = ANY (:ids)"), moved)
        connection.execute(
            text("UPDATE tokenfleet.refresh_schedule SET app_id = :app WHERE account_id = ANY (:ids)"), moved
        )
        connection.execute(
            text(
                "UPDATE tokenfleet.refresh_schedule "
                "SET next_refresh_at = now() - account_id * interval '1 second'"
            )
        )
    make_scheduler(fleet, redis).tick()
    found = jobs(redis)
    assert [(job.app_id, len(job.accounts)) for job in found] == [
        (app_id, size)
        for app_id, sizes in ((fleet.app.app_id, (65, 65)), (other.app_id, (60, 60)))
        for size in sizes
    ]
    assert max(len(job.accounts) for job in found) <= MAX_BATCH
    by_app: dict[AppId, list[AccountId]] = {job.app_id: [] for job in found}
    for job in found:
        by_app[job.app_id] += [account_id for account_id, _ in job.accounts]
    assert by_app == {
        fleet.app.app_id: sorted(ids[120:], reverse=True),
        other.app_id: sorted(ids[:120], reverse=True),
    }


def test_a_message_holds_ids_and_epochs_and_nothing_else(fleet: Fleet, redis: Redis) -> None:
    [account_id] = fleet.connect("customer-with-a-name")
    make_scheduler(fleet, redis).tick()
    [message] = messages(redis)
    [job] = jobs(redis)
    arguments, keywords, embedded = json.loads(base64.b64decode(message["body"]))
    assert arguments == [job.job_id, fleet.app.app_id, [account_id], [1]]
    assert keywords == {}
    assert not any(embedded.values())
    everything = json.dumps(message) + json.dumps(arguments)
    for secret in (ACCESS_TOKEN_PREFIX, REFRESH_TOKEN_PREFIX, "customer-with-a-name"):
        assert secret not in everything
    assert fleet.server.config.client_secret.reveal() not in everything


def test_two_schedulers_never_claim_one_account_both(fleet: Fleet, redis: Redis) -> None:
    ids = connect(fleet, 300)
    first, second = make_scheduler(fleet, redis), make_scheduler(fleet, redis)
    results = at_once(first.tick, second.tick)
    results += at_once(first.tick, second.tick)
    assert sum(result.claimed for result in results) == 300
    assert sorted(account_id for account_id, _ in published(redis)) == sorted(ids)


def test_an_expired_claim_is_due_again_under_a_new_epoch(fleet: Fleet, redis: Redis) -> None:
    [account_id] = fleet.connect("customer")
    scheduler = make_scheduler(fleet, redis)
    scheduler.tick()
    assert scheduler.tick().claimed == 0
    execute(fleet, "UPDATE tokenfleet.refresh_schedule SET claimed_until = now()")
    scheduler.tick()
    assert published(redis) == [(account_id, 1), (account_id, 2)]


def test_a_paused_app_is_left_alone_until_its_moment(fleet: Fleet, redis: Redis) -> None:
    connect(fleet, 3)
    scheduler = make_scheduler(fleet, redis)
    execute(fleet, "UPDATE tokenfleet.oauth_apps SET paused_until = now() + interval '1 hour'")
    assert scheduler.tick() == TickResult(0, 0, False)
    execute(fleet, "UPDATE tokenfleet.oauth_apps SET paused_until = now()")
    assert scheduler.tick().claimed == 3


def test_a_held_app_gets_one_account_per_spacing_however_many_schedulers_tick(
    fleet: Fleet, redis: Redis
) -> None:
    connect(fleet, 10)
    hold(fleet)
    first, second = make_scheduler(fleet, redis), make_scheduler(fleet, redis)
    for _ in range(3):
        at_once(first.tick, second.tick)
    assert [len(job.accounts) for job in jobs(redis)] == [1]
    [seconds] = fleet.column("SELECT EXTRACT(epoch FROM probe_at - now())::float FROM tokenfleet.oauth_apps")
    assert PROBE_SPACING.total_seconds() - 10 < seconds <= PROBE_SPACING.total_seconds()
    execute(fleet, "UPDATE tokenfleet.oauth_apps SET probe_at = now()")
    for _ in range(3):
        at_once(first.tick, second.tick)
    assert [len(job.accounts) for job in jobs(redis)] == [1, 1]


def test_replacing_the_credentials_ends_the_hold_for_everybody(fleet: Fleet, redis: Redis) -> None:
    connect(fleet, 10)
    hold(fleet)
    scheduler = make_scheduler(fleet, redis)
    scheduler.tick()
    fleet.register(fleet.server.config.client_secret)
    assert scheduler.tick().claimed == 9


def test_all_schedulers_together_keep_to_an_apps_rate(fleet: Fleet, redis: Redis, tmp_path: Path) -> None:
    connect(fleet, 200)
    set_rate(fleet, tmp_path / "providers", "requests_per_second = 20\nburst = 5")
    first, second = make_scheduler(fleet, redis), make_scheduler(fleet, redis)
    began = time.monotonic()
    claimed = sum(result.claimed for result in at_once(first.tick, second.tick))
    assert 5 <= claimed <= 5 + 20 * (time.monotonic() - began) + 1
    while time.monotonic() < began + 0.6:
        claimed += sum(result.claimed for result in at_once(first.tick, second.tick))
    elapsed = time.monotonic() - began
    assert 20 * elapsed - 5 <= claimed <= 5 + 20 * elapsed + 1


def test_what_the_rate_granted_and_nobody_needed_is_given_back(
    fleet: Fleet, redis: Redis, tmp_path: Path
) -> None:
    set_rate(fleet, tmp_path / "providers", "requests_per_second = 0.01\nburst = 5")
    scheduler = make_scheduler(fleet, redis)
    connect(fleet, 1, "early")
    assert scheduler.tick().claimed == 1
    assert scheduler.tick().claimed == 0
    connect(fleet, 10, "late")
    assert scheduler.tick().claimed == 4


def test_one_app_never_has_more_outstanding_than_its_window(
    fleet: Fleet, redis: Redis, tmp_path: Path
) -> None:
    connect(fleet, 50)
    set_rate(fleet, tmp_path / "providers", "max_outstanding = 20")
    scheduler = make_scheduler(fleet, redis)
    assert scheduler.tick() == TickResult(claimed=20, published=1, more=True)
    assert scheduler.tick().claimed == 0
    [job] = jobs(redis)
    done = RefreshJob(job.job_id, job.app_id, job.accounts[:7])
    with fleet.worker() as worker:
        worker.run([done])
    assert scheduler.tick().claimed == 7


def test_nothing_is_claimed_while_too_many_jobs_wait_for_workers(
    fleet: Fleet, redis: Redis, tmp_path: Path
) -> None:
    """Neither is a probe or a part of the rate used up meanwhile."""
    connect(fleet, 10)
    set_rate(fleet, tmp_path / "providers", "requests_per_second = 0.01\nburst = 5")
    redis.rpush(REFRESH_QUEUE, *[b"a job that waits"] * (MAX_WAITING_JOBS + 1))
    scheduler = make_scheduler(fleet, redis)
    for _ in range(3):
        assert scheduler.tick() == TickResult(0, 0, False)
    assert scheduler.health().status == "degraded"
    assert "start workers" in scheduler.health().hampering[0]
    redis.delete(REFRESH_QUEUE)
    assert scheduler.tick().claimed == 5
    assert scheduler.health().status == "healthy"


def test_an_idle_scheduler_keeps_its_connections(fleet: Fleet, redis: Redis) -> None:
    scheduler = make_scheduler(fleet, redis)

    def connections() -> int:
        stats: Any = redis.info("stats")
        return int(stats["total_connections_received"])

    scheduler.tick()
    before = connections()
    for _ in range(10):
        scheduler.tick()
    assert connections() == before


def test_an_app_without_a_definition_is_left_alone_and_reported_once(fleet: Fleet, redis: Redis) -> None:
    known = connect(fleet, 3)
    [stranger] = fleet.connect("stranger")
    with fleet.engine.begin() as connection:
        unknown = apps.register(
            connection,
            fleet.vault.refresh,
            provider="withdrawn",
            environment="production",
            name="default",
            client_id="client",
            client_secret=None,
            variables={},
        )
    execute(
        fleet,
        "UPDATE tokenfleet.refresh_schedule SET app_id = :app WHERE account_id = :id",
        app=unknown.app_id,
        id=stranger,
    )

    def alarms() -> float:
        return (
            REGISTRY.get_sample_value("tokenfleet_alarms_total", {"event": "app.definition_missing"}) or 0.0
        )

    before = alarms()
    scheduler = make_scheduler(fleet, redis)
    for _ in range(3):
        scheduler.tick()
    assert {account_id for account_id, _ in published(redis)} == set(known)
    assert alarms() == before + 1
    assert fleet.row(stranger).status == "active"


def test_claims_that_cannot_be_published_are_given_back_at_once(fleet: Fleet, redis: Redis) -> None:
    ids = connect(fleet, 150)
    working = fleet.settings
    fleet.settings = replace(working, broker_url=NOBODY_LISTENS)
    scheduler = make_scheduler(fleet, redis)
    ticking = threading.Thread(target=scheduler.tick)
    ticking.start()
    try:
        eventually(lambda: scheduler.health().status == "unhealthy", what="the scheduler notices")
        assert scheduler.health().fatal == ("the broker does not answer; nothing is claimed",)
        assert claims(fleet) == set()
    finally:
        scheduler.stop()
        ticking.join(20)
    assert not ticking.is_alive()
    fleet.settings = working
    make_scheduler(fleet, redis).tick()
    assert sorted(published(redis)) == [(account_id, 2) for account_id in ids]


def test_a_broker_that_goes_away_and_comes_back_is_no_end(fleet: Fleet, redis: Redis, tmp_path: Path) -> None:
    with EmbeddedValkey(tmp_path / "broker") as broker, Redis.from_url(broker.url) as queue:
        fleet.settings = replace(fleet.settings, broker_url=broker.url)
        scheduler = make_scheduler(fleet, redis)
        assert scheduler.tick() == TickResult(0, 0, False)
        broker.stop()
        assert scheduler.tick() == TickResult(0, 0, False)
        broker.start()
        [account_id] = fleet.connect("customer")
        assert scheduler.tick() == TickResult(claimed=1, published=1, more=False)
        assert published(queue) == [(account_id, 1)]


def test_while_redis_is_away_an_apps_pace_is_a_quarter_and_the_health_says_so(
    fleet: Fleet, redis: Redis, tmp_path: Path
) -> None:
    connect(fleet, 50)
    set_rate(fleet, tmp_path / "providers", "requests_per_second = 0.01\nburst = 8")
    with Redis.from_url(NOBODY_LISTENS) as away:
        scheduler = make_scheduler(fleet, away)
        assert scheduler.tick().claimed == 2
    assert scheduler.health().status == "degraded"
    assert len(published(redis)) == 2


def test_a_request_wakes_the_scheduler_at_once(fleet: Fleet, redis: Redis) -> None:
    [account_id] = fleet.connect("customer")
    execute(fleet, "UPDATE tokenfleet.refresh_schedule SET next_refresh_at = now() + interval '1 hour'")
    ticks = "tokenfleet_tick_seconds_count"
    before = REGISTRY.get_sample_value(ticks) or 0.0
    with running(make_scheduler(fleet, redis, tick_seconds=60)):
        eventually(lambda: (REGISTRY.get_sample_value(ticks) or 0.0) > before, what="the first tick")
        delays = []
        for epoch in range(1, 6):
            with fleet.engine.begin() as connection:
                schedule.request_refresh(connection, [account_id])
            began = time.monotonic()
            wait_until_published(redis, account_id, epoch)
            delays.append(time.monotonic() - began)
            execute(
                fleet,
                "UPDATE tokenfleet.refresh_schedule "
                "SET claimed_until = NULL, next_refresh_at = now() + interval '1 hour'",
            )
    assert sorted(delays)[2] < 0.1


def test_the_loop_outlives_the_loss_of_its_connections(fleet: Fleet, redis: Redis) -> None:
    engine = make_engine(fleet.settings.database_url, application_name="scheduler under test")
    with running(make_scheduler(fleet, redis, engine=engine, tick_seconds=0.05)) as thread:
        for number in range(2):
            [account_id] = connect(fleet, 1, f"round-{number}")
            wait_until_published(redis, account_id, 1)
            lost = fleet.column(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND application_name = 'scheduler under test'"
            )
            assert lost
        [account_id] = connect(fleet, 1, "last")
        wait_until_published(redis, account_id, 1)
        assert thread.is_alive()
    engine.dispose()


def test_the_health_recovers_with_postgres_even_when_nothing_is_due(
    fleet: Fleet, redis: Redis, servers: dict[str, str]
) -> None:
    execute(fleet, "UPDATE tokenfleet.oauth_apps SET paused_until = now() + interval '1 hour'")
    name = fleet.engine.url.database
    scheduler = make_scheduler(fleet, redis, tick_seconds=0.05)
    admin = create_engine(servers["TOKENFLEET_DATABASE_URL"], isolation_level="AUTOCOMMIT")
    with running(scheduler):
        eventually(lambda: scheduler.health().status == "healthy")
        with admin.connect() as connection:
            connection.execute(text(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false"))
            try:
                connection.execute(
                    text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :name"),
                    {"name": name},
                )
                eventually(lambda: scheduler.health().fatal == ("Postgres does not answer",))
            finally:
                connection.execute(text(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true"))
        eventually(lambda: scheduler.health().status == "healthy", what="the health recovers")
    admin.dispose()


def test_a_stopped_scheduler_leaves_nothing_half_done(fleet: Fleet, redis: Redis) -> None:
    scheduler = make_scheduler(fleet, redis)
    with running(scheduler):
        connect(fleet, 400)
    assert set(published(redis)) == claims(fleet)
