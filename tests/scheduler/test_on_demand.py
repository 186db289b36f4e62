"""What readers ask for between two ticks: claimed and published at once, and never around what an app is kept from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client import REGISTRY
from redis import Redis
from sqlalchemy import text

from scheduler.loop import Scheduler
from scheduler.on_demand import OnDemand, requested_app
from scheduler.publisher import Publisher
from store.circuits import KEY_PREFIX as CIRCUIT_PREFIX
from store.engine import make_engine
from tests.scheduler.stage import claims, connect, execute, hold, make_scheduler, published, running, set_rate
from tests.support.fleet import CLAIM, Fleet, eventually
from tokenfleet.broker import make_celery
from tokenfleet.jobs import ON_DEMAND_QUEUE, REFRESH_QUEUE, AccountId

LATER = (
    "UPDATE tokenfleet.refresh_schedule SET next_refresh_at = now() + interval '1 hour', claimed_until = NULL"
)


@contextmanager
def make_on_demand(fleet: Fleet, scheduler: Scheduler) -> Iterator[OnDemand]:
    engine = make_engine(fleet.settings.database_url, application_name="on demand")
    publisher = Publisher(make_celery(fleet.settings), claim=CLAIM)
    try:
        yield OnDemand(engine, publisher, scheduler.open_apps, claim=CLAIM)
    finally:
        engine.dispose()


@contextmanager
def started(on_demand: OnDemand) -> Iterator[None]:
    on_demand.start()
    try:
        yield
    finally:
        on_demand.stop()
        on_demand.join(10)


def listens(fleet: Fleet) -> bool:
    # What an idle connection has done last.
    listeners = (
        "SELECT count(*) FROM pg_stat_activity "
        "WHERE application_name = 'on demand' AND state = 'idle' AND query LIKE 'LISTEN%'"
    )
    return fleet.column(listeners) != [0]


def ask(fleet: Fleet, *account_ids: AccountId, validity: str = "2 days") -> list[str]:
    with fleet.engine.begin() as connection:
        return [
            connection.execute(
                text("SELECT answer FROM tokenfleet_v1.request_refresh(:id, CAST(:validity AS interval))"),
                {"id": each, "validity": validity},
            ).scalar_one()
            for each in account_ids
        ]


def queued(redis: Redis, queue: str) -> int:
    return int(redis.llen(queue))


def wait_until_queued(redis: Redis, count: int) -> None:
    eventually(lambda: queued(redis, ON_DEMAND_QUEUE) == count, within=10, what="it is published")


def test_a_request_is_published_without_a_tick_on_the_queue_that_is_looked_into_first(
    fleet: Fleet, redis: Redis
) -> None:
    [account_id] = fleet.connect("customer")
    execute(fleet, LATER)
    scheduler = make_scheduler(fleet, redis, tick_seconds=60)
    ticks = "tokenfleet_tick_seconds_count"
    with (
        make_on_demand(fleet, scheduler) as on_demand,
        running(scheduler),
        started(on_demand),
    ):
        eventually(lambda: bool(scheduler.open_apps()) and listens(fleet), what="both have begun")
        before = REGISTRY.get_sample_value(ticks)
        for number in range(1, 4):
            assert ask(fleet, account_id) == ["requested"]
            wait_until_queued(redis, number)
            execute(fleet, LATER + ", requested_at = NULL")
        assert on_demand.trouble() is None
        assert REGISTRY.get_sample_value(ticks) == before, "the ticks go on as they would"
    assert queued(redis, REFRESH_QUEUE) == 0


def test_whom_nobody_took_on_demand_goes_the_ordinary_way_with_the_next_claim(
    fleet: Fleet, redis: Redis
) -> None:
    """There may be workers of the release before only, which do not know the queue."""
    [account_id] = fleet.connect("customer")
    execute(fleet, LATER)
    ask(fleet, account_id)
    scheduler = make_scheduler(fleet, redis)
    assert scheduler.tick().published == 1
    assert (queued(redis, ON_DEMAND_QUEUE), published(redis)) == (1, [])
    execute(fleet, "UPDATE tokenfleet.refresh_schedule SET claimed_until = now() - interval '1 ms'")
    assert scheduler.tick().published == 1
    assert (queued(redis, ON_DEMAND_QUEUE), published(redis)) == (1, [(account_id, 2)])


@pytest.mark.parametrize("kept_by", ["pause", "hold", "circuit", "incident"])
def test_nothing_is_claimed_on_demand_for_an_app_that_is_kept_from_asking(
    fleet: Fleet, redis: Redis, kept_by: str
) -> None:
    accounts = connect(fleet, 3)
    execute(fleet, LATER)
    assert ask(fleet, *accounts) == ["requested"] * 3
    match kept_by:
        case "pause":
            execute(fleet, "UPDATE tokenfleet.oauth_apps SET paused_until = now() + interval '1 hour'")
        case "hold":
            hold(fleet)
        case "circuit":
            redis.hset(f"{CIRCUIT_PREFIX}{fleet.app.app_id}", mapping={"until": 2**60, "openings": 1})
        case "incident":
            execute(fleet, "UPDATE tokenfleet.oauth_apps SET rejections_in_row = 1000")
            execute(
                fleet,
                "INSERT INTO tokenfleet.provider_incidents (app_id, kind, code, sample_at) "
                "SELECT id, 'mass_rejection', 'x', now() + interval '1 hour' FROM tokenfleet.oauth_apps",
            )
    scheduler = make_scheduler(fleet, redis)
    with make_on_demand(fleet, scheduler) as on_demand:
        probes = scheduler.tick().claimed
        assert on_demand.serve({fleet.app.app_id}) == 0
    assert len(claims(fleet)) == probes == (1 if kept_by == "hold" else 0)


def test_a_storm_of_requests_has_a_share_of_its_apps_window_and_the_due_ones_the_rest(
    fleet: Fleet, redis: Redis, tmp_path: Path
) -> None:
    set_rate(fleet, tmp_path / "providers", "requests_per_second = 10\nburst = 1")
    wanted = connect(fleet, 60, "wanted")
    execute(fleet, LATER)
    due = connect(fleet, 60, "due")
    assert ask(fleet, *wanted) == ["requested"] * 60
    scheduler = make_scheduler(fleet, redis)
    assert scheduler.tick().claimed == 41  # Four seconds of its rate, and the burst.
    with make_on_demand(fleet, scheduler) as on_demand:
        assert on_demand.serve({fleet.app.app_id}) == 0
    claimed = {account_id for account_id, _ in claims(fleet)}
    assert (len(claimed & {*wanted}), len(claimed & {*due})) == (10, 31)


def test_what_cannot_be_published_is_given_back_and_the_health_says_so(fleet: Fleet, redis: Redis) -> None:
    [account_id] = fleet.connect("customer")
    execute(fleet, LATER)
    scheduler = make_scheduler(fleet, redis)
    scheduler.tick()
    ask(fleet, account_id)
    fleet.settings = replace(fleet.settings, broker_url="redis://127.0.0.1:1/0")
    with make_on_demand(fleet, scheduler) as on_demand:
        on_demand.stop()
        assert on_demand.serve({fleet.app.app_id}) == 1
    assert claims(fleet) == set()
    assert on_demand.trouble() == "the broker does not answer; requests of readers wait for it"


def test_only_a_request_of_an_app_is_taken_for_one() -> None:
    assert requested_app("requested 17") == 17
    # Any role may send whatever it likes: no payload ends the scheduler that reads it.
    odd = ("requested x", "requested -1", "requested ²", "requested " + "9" * 7900, "requested 17 18")
    for payload in ("", "requested", "requested ", "due 17", *odd):
        assert requested_app(payload) is None


def test_readers_are_told_what_the_definition_says(fleet: Fleet, redis: Redis, tmp_path: Path) -> None:
    [account_id] = fleet.connect("customer")
    described = "SELECT renews || ' ' || probes || ' ' || (minimum_age IS NULL) FROM tokenfleet.oauth_apps"
    assert fleet.column(described) == [None]
    execute(fleet, LATER)
    make_scheduler(fleet, redis).tick()
    assert fleet.column(described) == ["true true true"]
    execute(fleet, "UPDATE tokenfleet.oauth_apps SET renews = false")
    assert ask(fleet, account_id) == ["unreachable"]
