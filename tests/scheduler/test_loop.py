"""What one tick claims and publishes, on real Postgres and real Redis."""

from __future__ import annotations

import base64
import json
import time
from pathlib import Path

from prometheus_client import REGISTRY
from redis import Redis
from sqlalchemy import text

from sandbox.tokens import ACCESS_TOKEN_PREFIX, REFRESH_TOKEN_PREFIX
from scheduler.loop import MAX_WAITING_JOBS, PROBE_SPACING, TickResult
from store import apps
from store.circuits import KEY_PREFIX as CIRCUIT_PREFIX
from tests.scheduler.stage import (
    at_once,
    claims,
    connect,
    execute,
    hold,
    jobs,
    make_scheduler,
    messages,
    published,
    set_rate,
)
from tests.support.fleet import Fleet
from tokenfleet.jobs import MAX_BATCH, REFRESH_QUEUE, AccountId, AppId, RefreshJob


def milliseconds_from_now(seconds: float) -> int:
    return int((time.time() + seconds) * 1000)


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


def test_replaced_credentials_are_probed_at_once_by_one_account(fleet: Fleet, redis: Redis) -> None:
    connect(fleet, 10)
    hold(fleet)
    scheduler = make_scheduler(fleet, redis)
    scheduler.tick()
    assert scheduler.tick().claimed == 0
    fleet.register(fleet.server.config.client_secret)
    assert scheduler.tick().claimed == 1


def test_an_app_with_a_rate_has_no_more_outstanding_than_four_seconds_of_it_and_its_burst(
    fleet: Fleet, redis: Redis, tmp_path: Path
) -> None:
    """Whoever ticks, however often: the pace itself is kept where requests are sent."""
    ids = connect(fleet, 200)
    execute(
        fleet,
        "UPDATE tokenfleet.refresh_schedule SET next_refresh_at = now() - interval '1 h' + account_id * interval '1 s'",
    )
    set_rate(fleet, tmp_path / "providers", "requests_per_second = 20\nburst = 5")
    first, second = make_scheduler(fleet, redis), make_scheduler(fleet, redis)
    claimed = sum(result.claimed for _ in range(3) for result in at_once(first.tick, second.tick))
    assert claimed == 4 * 20 + 5
    assert {account_id for account_id, _ in published(redis)} == set(ids[:85]), "the most urgent ones"


def test_an_app_whose_circuit_is_open_gets_nothing_half_open_one_account_and_then_more_each_second(
    fleet: Fleet, redis: Redis
) -> None:
    connect(fleet, 100)
    key = f"{CIRCUIT_PREFIX}{fleet.app.app_id}"
    scheduler = make_scheduler(fleet, redis)
    redis.hset(key, mapping={"until": milliseconds_from_now(60), "openings": 1})
    assert scheduler.tick().claimed == 0
    redis.hset(key, mapping={"until": milliseconds_from_now(0)})
    assert scheduler.tick().claimed == 1
    assert scheduler.tick().claimed == 0, "the trial is out"
    redis.hset(key, mapping={"until": 0, "closed_at": milliseconds_from_now(-2)})
    claimed = 1 + scheduler.tick().claimed
    assert 40 <= claimed < 80
    redis.hset(key, mapping={"closed_at": milliseconds_from_now(-5)})
    assert claimed + scheduler.tick().claimed == 100


def test_an_app_nobody_knows_the_pace_of_is_not_met_by_everybody_at_once_after_a_pause(
    fleet: Fleet, redis: Redis
) -> None:
    connect(fleet, 100)
    execute(fleet, "UPDATE tokenfleet.oauth_apps SET paused_until = now() - interval '1 second'")
    scheduler = make_scheduler(fleet, redis)
    assert 20 <= scheduler.tick().claimed < 50
    execute(fleet, "UPDATE tokenfleet.oauth_apps SET paused_until = now() - interval '10 seconds'")
    assert 50 < scheduler.tick().claimed <= 80


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
    """Neither is a probe used up meanwhile."""
    connect(fleet, 10)
    set_rate(fleet, tmp_path / "providers", "requests_per_second = 0.01\nburst = 5")
    redis.rpush(REFRESH_QUEUE, *[b"a job that waits"] * (MAX_WAITING_JOBS + 1))
    scheduler = make_scheduler(fleet, redis)
    for _ in range(3):
        assert scheduler.tick() == TickResult(0, 0, False)
    assert scheduler.health().status == "degraded"
    assert "start workers" in scheduler.health().hampering[0]
    redis.delete(REFRESH_QUEUE)
    assert scheduler.tick().claimed == 6
    assert scheduler.health().status == "healthy"


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
