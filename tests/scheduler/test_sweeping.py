"""Accounts that nobody asks about: their expired tokens are told of, once, whatever keeps us from asking."""

from __future__ import annotations

from datetime import timedelta

import pytest
from redis import Redis
from sqlalchemy import text

from scheduler.sweeping import EVERY, ExpirySweep, gated_apps
from store import announcements, apps
from store.engine import database_now
from tests.scheduler.stage import at_once, connect, execute, hold, make_scheduler
from tests.support.fleet import Fleet
from tokenfleet.jobs import AppId

FAILING = "integrated_account:refresh_failing"


def told(fleet: Fleet) -> list[str]:
    return fleet.column(f"SELECT event_type FROM tokenfleet.outbox WHERE event_type = '{FAILING}'")


def expire(fleet: Fleet) -> None:
    execute(fleet, "UPDATE tokenfleet.token_sets SET expires_at = now() - interval '1 second'")


@pytest.mark.parametrize("gate", ["paused", "held"])
def test_expired_accounts_of_an_app_that_is_not_asked_are_told_of_once_by_all_schedulers(
    fleet: Fleet, redis: Redis, gate: str
) -> None:
    # The first tick of all makes the partitions of the history.
    make_scheduler(fleet, redis).tick()
    connect(fleet, 3)
    [paused, fresh] = fleet.connect("paused-by-an-operator", "fresh")
    if gate == "paused":
        execute(fleet, "UPDATE tokenfleet.oauth_apps SET paused_until = now() + interval '1 hour'")
    else:
        hold(fleet)
        execute(fleet, "UPDATE tokenfleet.oauth_apps SET probe_at = now() + interval '1 hour'")
    expire(fleet)
    execute(fleet, "UPDATE tokenfleet.accounts SET status = 'paused' WHERE id = :id", id=paused)
    execute(
        fleet,
        "UPDATE tokenfleet.token_sets SET expires_at = now() + interval '1 hour' WHERE account_id = :id",
        id=fresh,
    )
    at_once(make_scheduler(fleet, redis).tick, make_scheduler(fleet, redis).tick)
    make_scheduler(fleet, redis).tick()
    assert told(fleet) == [FAILING] * 3
    assert fleet.column("SELECT DISTINCT status FROM tokenfleet.accounts ORDER BY status") == [
        "active",
        "paused",
    ]


def test_accounts_of_an_app_that_is_asked_are_left_to_their_workers(fleet: Fleet, redis: Redis) -> None:
    connect(fleet, 2)
    expire(fleet)
    make_scheduler(fleet, redis).tick()
    assert told(fleet) == []


def test_while_somebody_holds_the_history_nobody_is_told_and_claims_go_on(fleet: Fleet, redis: Redis) -> None:
    connect(fleet, 2)
    expire(fleet)
    scheduler = make_scheduler(fleet, redis)
    execute(fleet, "UPDATE tokenfleet.oauth_apps SET paused_until = now() + interval '1 hour'")
    with fleet.engine.connect() as somebody:
        somebody.execute(text("LOCK TABLE tokenfleet.account_events IN SHARE MODE"))
        scheduler.tick()
        assert told(fleet) == []
        execute(fleet, "UPDATE tokenfleet.oauth_apps SET paused_until = NULL")
        assert scheduler.tick().claimed == 2


def test_accounts_that_an_incident_set_apart_are_told_of_although_they_are_not_scheduled(
    fleet: Fleet, redis: Redis
) -> None:
    connect(fleet, 2)
    expire(fleet)
    execute(
        fleet,
        "INSERT INTO tokenfleet.provider_incidents (app_id, kind, code) "
        "VALUES (:app_id, 'mass_rejection', 'invalid_grant')",
        app_id=fleet.app.app_id,
    )
    execute(fleet, "UPDATE tokenfleet.refresh_schedule SET next_refresh_at = NULL, incident_id = 1")
    make_scheduler(fleet, redis).tick()
    assert told(fleet) == [FAILING] * 2


def test_an_app_behind_an_open_circuit_is_gated_too_and_a_sweep_tells_a_bounded_number(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(announcements, "SWEPT_AT_ONCE", 2)
    connect(fleet, 3)
    expire(fleet)
    sweep = ExpirySweep(owner="scheduler")
    with fleet.engine.begin() as connection:
        now = database_now(connection)
        known = apps.all_apps(connection)
        assert gated_apps(known, now) == frozenset()
        gated = gated_apps(known, now, circuits_open={fleet.app.app_id, AppId(999)})
        assert gated == {fleet.app.app_id}
        assert sweep.run(connection, gated, now) == 2
        # One that was full is followed by another one as soon as it has rested; then there is a pause.
        assert sweep.run(connection, gated, now) == 0
        later = now + timedelta(minutes=5)
        assert sweep.run(connection, gated, later) == 1
        execute_more = "UPDATE tokenfleet.refresh_schedule SET expiry_told = false"
        connection.exec_driver_sql(execute_more)
        assert not sweep.is_due(later + EVERY / 2)
        assert sweep.run(connection, gated, later + timedelta(minutes=5)) == 2
