"""What schedulers do while an app has an incident: samples in their turn, and only those once it is silent."""

from __future__ import annotations

from redis import Redis

from store.incidents import Resolution
from tests.scheduler.stage import at_once, connect, execute, hold, make_scheduler, published
from tests.support.fleet import Fleet
from tests.support.incidents import provoke, reject, resolve, set_apart
from tokenfleet.guard import SAMPLES


def its_turn(fleet: Fleet) -> None:
    execute(fleet, "UPDATE tokenfleet.provider_incidents SET sample_at = now()")


def test_healthy_accounts_go_on_and_samples_are_taken_in_turn_by_one_scheduler(
    fleet: Fleet, redis: Redis
) -> None:
    ids = connect(fleet, 40)
    incident_id = provoke(fleet.engine, ids[:25])
    reject(fleet.engine, [ids[0]], after_success=True)
    first, second = make_scheduler(fleet, redis), make_scheduler(fleet, redis)
    at_once(first.tick, second.tick)
    assert {account_id for account_id, _ in published(redis)} == set(ids[25:])
    its_turn(fleet)
    for _ in range(3):
        at_once(first.tick, second.tick)
    samples = [account_id for account_id, _ in published(redis)][15:]
    assert 1 <= len(samples) == len(set(samples)) <= SAMPLES
    assert set(samples) <= set(set_apart(fleet.engine, incident_id))


def test_an_app_that_has_fallen_silent_is_only_sampled(fleet: Fleet, redis: Redis) -> None:
    ids = connect(fleet, 40)
    provoke(fleet.engine, ids[:25])
    scheduler = make_scheduler(fleet, redis)
    assert scheduler.tick().claimed == 0
    its_turn(fleet)
    assert 2 <= scheduler.tick().claimed <= 2 * SAMPLES
    asked = {account_id for account_id, _ in published(redis)}
    assert asked & set(ids[:25])
    assert asked & set(ids[25:])
    assert scheduler.tick().claimed == 0


def test_a_paused_app_is_not_sampled(fleet: Fleet, redis: Redis) -> None:
    provoke(fleet.engine, connect(fleet, 25))
    execute(fleet, "UPDATE tokenfleet.oauth_apps SET paused_until = now() + interval '1 hour'")
    its_turn(fleet)
    assert make_scheduler(fleet, redis).tick().claimed == 0


def test_a_resolved_incident_is_worked_off_and_everybody_claimed(fleet: Fleet, redis: Redis) -> None:
    ids = connect(fleet, 25)
    incident_id = provoke(fleet.engine, ids)
    resolve(fleet.engine, incident_id, Resolution.DISMISSED)
    assert make_scheduler(fleet, redis).tick().claimed == len(ids)
    assert set_apart(fleet.engine, incident_id) == []


def test_a_held_app_whose_accounts_are_all_set_apart_is_probed_by_one_of_them(
    fleet: Fleet, redis: Redis
) -> None:
    """Its probes and the turns of its incident need not come together."""
    ids = connect(fleet, 25)
    provoke(fleet.engine, ids)
    hold(fleet)
    execute(fleet, "UPDATE tokenfleet.provider_incidents SET sample_at = now() + interval '7 s'")
    scheduler = make_scheduler(fleet, redis)
    assert scheduler.tick().claimed == 1
    [(probe, _)] = published(redis)
    assert probe in ids
    its_turn(fleet)
    assert scheduler.tick().claimed == 0


def test_a_held_app_that_only_rejects_is_probed_by_one_account_and_no_samples(
    fleet: Fleet, redis: Redis
) -> None:
    ids = connect(fleet, 30)
    provoke(fleet.engine, ids[:25])
    hold(fleet)
    its_turn(fleet)
    assert make_scheduler(fleet, redis).tick().claimed == 1
    [(probe, _)] = published(redis)
    assert probe in ids[25:]
