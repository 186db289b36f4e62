"""Schedulers look at the coming hour once a minute, one at a time, and let some accounts be due sooner."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path

from prometheus_client import REGISTRY
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from scheduler.coming_hour import CARRIED_OUT, ComingHour
from scheduler.watch import Watch
from store import apps
from store.coming_hour import BUCKET, take_turn
from tests.scheduler.stage import connect, execute, hold, set_rate
from tests.support.builders import column
from tests.support.fleet import Fleet
from tokenfleet.circuit import CircuitState, Standing
from tokenfleet.jobs import AccountId, AppId
from tokenfleet.telemetry import Event

MINUTE = timedelta(minutes=1)


def due_in(fleet: Fleet, wait: timedelta, *account_ids: AccountId) -> None:
    """Let accounts be due together, at one moment."""
    execute(
        fleet,
        "UPDATE tokenfleet.refresh_schedule SET next_refresh_at = now() + :wait WHERE account_id = ANY (:ids)",
        wait=wait,
        ids=list(account_ids),
    )


def a_minute_passes(fleet: Fleet) -> None:
    execute(fleet, "UPDATE tokenfleet.oauth_apps SET budget_slack_at = budget_slack_at - interval '1 minute'")


def slack(fleet: Fleet) -> float | None:
    [found] = column(fleet.engine, "SELECT budget_slack FROM tokenfleet.oauth_apps")
    assert found is None or isinstance(found, float)
    return found


def waits(fleet: Fleet) -> list[datetime]:
    return column(
        fleet.engine, "SELECT next_refresh_at FROM tokenfleet.refresh_schedule ORDER BY next_refresh_at"
    )


def alarms() -> float:
    labels = {"event": Event.APP_OVERBOOKED.value}
    return REGISTRY.get_sample_value("tokenfleet_alarms_total", labels) or 0.0


def test_a_spike_that_the_rate_cannot_take_is_spread_over_the_time_before_it(
    fleet: Fleet, tmp_path: Path
) -> None:
    """At 2 a second, 18 of 20 are planned with in ten seconds; 40 are due at once, two minutes from now."""
    set_rate(fleet, tmp_path / "providers", "requests_per_second = 2")
    due_in(fleet, timedelta(seconds=95), *connect(fleet, 40))
    [before] = set(waits(fleet))
    assert ComingHour(fleet.engine, fleet.registry).look() == 22
    moved = [before - moment for moment in waits(fleet)]
    assert sum(wait == timedelta(0) for wait in moved) == 18
    assert sum(timedelta(0) < wait <= 2 * BUCKET for wait in moved) >= 18
    assert max(moved) <= 3 * BUCKET
    # Ten buckets of 20 are to come until then, and 40 accounts.
    assert slack(fleet) == 0.8


def test_what_can_wait_for_a_later_look_is_not_moved_yet(fleet: Fleet, tmp_path: Path) -> None:
    set_rate(fleet, tmp_path / "providers", "requests_per_second = 2")
    due_in(fleet, (CARRIED_OUT + 3) * BUCKET, *connect(fleet, 30))
    before = waits(fleet)
    assert ComingHour(fleet.engine, fleet.registry).look() == 0
    assert waits(fleet) == before


def test_it_is_looked_at_once_a_minute_whoever_looks(fleet: Fleet, tmp_path: Path) -> None:
    set_rate(fleet, tmp_path / "providers", "requests_per_second = 2")
    one, other = (ComingHour(fleet.engine, fleet.registry) for _ in range(2))
    ids = connect(fleet, 40)
    due_in(fleet, MINUTE, *ids)
    assert one.look() > 0
    due_in(fleet, MINUTE, *ids)
    assert (one.look(), other.look()) == (0, 0)
    a_minute_passes(fleet)
    assert other.look() > 0


def test_two_schedulers_that_look_together_move_nobody_twice(fleet: Fleet, tmp_path: Path) -> None:
    set_rate(fleet, tmp_path / "providers", "requests_per_second = 2")
    due_in(fleet, MINUTE, *connect(fleet, 40))
    barrier = threading.Barrier(2)
    moved: list[int] = []

    def look() -> None:
        hour = ComingHour(fleet.engine, fleet.registry)
        barrier.wait()
        moved.append(hour.look())

    threads = [threading.Thread(target=look) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(moved) == [0, 22]


def test_while_another_scheduler_looks_nothing_is_counted_or_moved(fleet: Fleet, tmp_path: Path) -> None:
    set_rate(fleet, tmp_path / "providers", "requests_per_second = 2")
    due_in(fleet, MINUTE, *connect(fleet, 40))
    with fleet.engine.begin() as another:
        assert take_turn(another)
        assert ComingHour(fleet.engine, fleet.registry).look() == 0
    assert slack(fleet) is None


def test_an_app_that_may_not_be_asked_is_reckoned_with_and_not_moved(fleet: Fleet, tmp_path: Path) -> None:
    set_rate(fleet, tmp_path / "providers", "requests_per_second = 2")
    due_in(fleet, MINUTE, *connect(fleet, 40))
    hold(fleet)
    assert ComingHour(fleet.engine, fleet.registry).look() == 0
    assert slack(fleet) is not None


def test_what_is_late_takes_its_time_first_and_says_nothing_of_the_rate(fleet: Fleet, tmp_path: Path) -> None:
    """After an outage of a minute: nobody is moved into the minute that the late ones need."""
    set_rate(fleet, tmp_path / "providers", "requests_per_second = 2")
    due_in(fleet, -MINUTE, *connect(fleet, 18 * 6))
    due_in(fleet, timedelta(seconds=95), *connect(fleet, 40, prefix="later"))
    before = waits(fleet)
    assert ComingHour(fleet.engine, fleet.registry).look() == 22
    now = column(fleet.engine, "SELECT now()")[0]
    moved = [moment for moment in waits(fleet) if moment not in before]
    assert min(moved) > now + timedelta(seconds=45)
    assert slack(fleet) == 0.8


def test_an_app_without_a_rate_has_no_slack(fleet: Fleet) -> None:
    connect(fleet, 3)
    assert ComingHour(fleet.engine, fleet.registry).look() == 0
    assert slack(fleet) is None


def test_a_rate_that_is_too_little_raises_one_alarm_until_it_is_enough(fleet: Fleet, tmp_path: Path) -> None:
    set_rate(fleet, tmp_path / "providers", "requests_per_second = 1")
    hour = ComingHour(fleet.engine, fleet.registry)
    ids = connect(fleet, 90)
    before = alarms()
    for expected in (1, 1):
        due_in(fleet, timedelta(seconds=55), *ids)
        hour.look()
        a_minute_passes(fleet)
        assert slack(fleet) == -0.5
        assert alarms() == before + expected
    due_in(fleet, timedelta(minutes=30), *ids)
    hour.look()
    assert slack(fleet) == 0.95
    a_minute_passes(fleet)
    due_in(fleet, timedelta(seconds=55), *ids)
    hour.look()
    assert alarms() == before + 2


def opened(app_ids: Sequence[AppId]) -> dict[AppId, Standing]:
    return dict.fromkeys(app_ids, Standing(CircuitState.OPEN))


def closed(app_ids: Sequence[AppId]) -> dict[AppId, Standing]:
    return dict.fromkeys(app_ids, Standing())


def gauge(name: str, fleet: Fleet, **labels: str) -> float | None:
    known = {"provider": fleet.app.provider, "environment": fleet.app.environment, "app": fleet.app.name}
    return REGISTRY.get_sample_value(name, known | labels)


def test_the_gauges_tell_what_stands_between_an_app_and_its_provider(fleet: Fleet, tmp_path: Path) -> None:
    set_rate(fleet, tmp_path / "providers", "requests_per_second = 1")
    due_in(fleet, timedelta(seconds=55), *connect(fleet, 90))
    hold(fleet)
    with fleet.engine.begin() as connection:
        apps.pause_until(
            connection, [fleet.app.app_id], [column(fleet.engine, "SELECT now() + interval '1 h'")[0]]
        )
        connection.execute(
            text(
                "INSERT INTO tokenfleet.provider_incidents (app_id, kind, code) "
                "VALUES (:id, 'mass_rejection', 'invalid_grant')"
            ),
            {"id": fleet.app.app_id},
        )
    hour = ComingHour(fleet.engine, fleet.registry)
    Watch(fleet.engine, hour, opened).look()
    assert gauge("tokenfleet_budget_slack", fleet) == -0.5
    assert gauge("tokenfleet_apps_held", fleet) == 1
    assert gauge("tokenfleet_apps_paused", fleet) == 1
    assert gauge("tokenfleet_circuits_open", fleet) == 1
    assert gauge("tokenfleet_incidents_open", fleet, kind="mass_rejection") == 1
    assert gauge("tokenfleet_incidents_open", fleet, kind="client_rejected") == 0


def test_an_app_that_is_gone_is_not_told_of_any_more(fleet: Fleet) -> None:
    watch = Watch(fleet.engine, ComingHour(fleet.engine, fleet.registry), closed)
    watch.look()
    assert gauge("tokenfleet_apps_held", fleet) == 0
    with fleet.engine.begin() as connection:
        apps.remove(connection, fleet.app.app_id)
    watch.look()
    assert gauge("tokenfleet_apps_held", fleet) is None


def test_a_circuit_that_nobody_can_read_is_not_told_of(fleet: Fleet) -> None:
    hour = ComingHour(fleet.engine, fleet.registry)
    readings: list[Mapping[AppId, Standing] | None] = [opened([fleet.app.app_id]), None]
    watch = Watch(fleet.engine, hour, lambda _app_ids: readings.pop(0))
    watch.look()
    assert gauge("tokenfleet_circuits_open", fleet) == 1
    watch.look()
    assert gauge("tokenfleet_circuits_open", fleet) is None
    assert gauge("tokenfleet_apps_held", fleet) == 0


def test_registrations_of_single_accounts_are_one_line_of_a_metric(fleet: Fleet) -> None:
    execute(
        fleet,
        "UPDATE tokenfleet.oauth_apps SET account_external_id = 'customer-7', name = 'account:customer-7', "
        "held_since = now(), held_code = 'invalid_client'",
    )
    Watch(fleet.engine, ComingHour(fleet.engine, fleet.registry), closed).look()
    assert gauge("tokenfleet_apps_held", fleet, app="account") == 1
    assert gauge("tokenfleet_apps_held", fleet, app="account:customer-7") is None


def test_the_thread_survives_a_postgres_that_is_away(fleet: Fleet) -> None:
    looked = threading.Semaphore(0)

    class Unlucky(ComingHour):
        def look(self) -> int:
            looked.release()
            if first.is_set():
                return super().look()
            first.set()
            raise OperationalError("SELECT 1", {}, Exception("the server is away"))

    first = threading.Event()
    watch = Watch(fleet.engine, Unlucky(fleet.engine, fleet.registry), closed, every_seconds=0.01)
    watch.start()
    try:
        assert looked.acquire(timeout=10)
        assert looked.acquire(timeout=10)
        assert watch.problem() is None
    finally:
        watch.stop()
    assert watch.problem() is None


def test_a_thread_that_does_not_run_is_told(fleet: Fleet) -> None:
    watch = Watch(fleet.engine, ComingHour(fleet.engine, fleet.registry), closed)
    assert watch.problem() is not None
