"""The scheduler's loop while servers come and go, and what wakes and stops it."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY
from redis import Redis
from sqlalchemy import create_engine, text

from embedded.valkey import EmbeddedValkey
from scheduler import loop
from scheduler.loop import TickResult
from store import schedule
from store.engine import make_engine
from tests.scheduler.stage import (
    claims,
    connect,
    execute,
    make_scheduler,
    published,
    running,
    set_rate,
    wait_until_published,
)
from tests.support.builders import let_claims_expire, start
from tests.support.fleet import Fleet, eventually

NOBODY_LISTENS = "redis://127.0.0.1:1/0"


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


def test_while_redis_is_away_claims_go_on_and_the_health_says_so(
    fleet: Fleet, redis: Redis, tmp_path: Path
) -> None:
    connect(fleet, 50)
    set_rate(fleet, tmp_path / "providers", "requests_per_second = 0.01\nburst = 8")
    with Redis.from_url(NOBODY_LISTENS) as away:
        scheduler = make_scheduler(fleet, away)
        assert scheduler.tick().claimed == 9
    assert scheduler.health().status == "degraded"
    assert len(published(redis)) == 9


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


def test_after_an_outage_claims_that_were_started_are_taken_over_last(fleet: Fleet, redis: Redis) -> None:
    """Whoever started them may have the answer in hand, and needs a moment to land it."""
    [started] = connect(fleet, 1, "started")
    [job] = fleet.claim()
    assert start(fleet.engine, job)
    engine = make_engine(fleet.settings.database_url, application_name="scheduler under test")
    scheduler = make_scheduler(fleet, redis, engine=engine, tick_seconds=0.05, claim_seconds=6)
    with running(scheduler):
        eventually(
            lambda: (
                fleet.column(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND application_name = 'scheduler under test'"
                )
                != []
            ),
            what="it has connected, and lost that",
        )
        eventually(lambda: scheduler.health().fatal == ("Postgres does not answer",))
        let_claims_expire(fleet.engine)
        [untouched] = connect(fleet, 1, "untouched")
        wait_until_published(redis, untouched, 1)
        assert started not in dict(published(redis))
        wait_until_published(redis, started, 2)
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


def test_a_tick_that_waits_for_a_silent_postgres_is_seen_in_the_health(
    fleet: Fleet, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing fails, so nothing is raised: what a lock that nobody gives back looks like from here."""
    monkeypatch.setattr(loop, "SLOW_TICK_SECONDS", 0.2)
    scheduler = make_scheduler(fleet, redis)
    with fleet.engine.connect() as somebody:
        somebody.execute(text("LOCK TABLE tokenfleet.oauth_apps IN ACCESS EXCLUSIVE MODE"))
        with running(scheduler):
            eventually(lambda: scheduler.health().status == "unhealthy", what="the wait is seen")
            [sentence] = scheduler.health().fatal
            assert sentence.startswith("a tick has waited for ")
            somebody.rollback()
            eventually(lambda: scheduler.health().status == "healthy", what="the tick goes on")
