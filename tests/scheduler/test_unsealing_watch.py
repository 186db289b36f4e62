"""A scheduler raises one alarm for a spike of openings, shows it while it lasts, and forgets what is old."""

from __future__ import annotations

from datetime import timedelta

from prometheus_client import REGISTRY
from sqlalchemy import Engine

from scheduler.unsealing_watch import UnsealingWatch
from tests.support.builders import column
from tests.support.unsealings import let_pass, remember, report
from tokenfleet import telemetry
from tokenfleet.telemetry import Event
from tokenfleet_client.unsealings import Purpose

DAY = timedelta(days=1)


def alarms() -> float:
    labels = {"event": Event.UNSEALING_SPIKE.value}
    return REGISTRY.get_sample_value("tokenfleet_alarms_total", labels) or 0.0


def shown(engine: Engine) -> float | None:
    role = column(engine, "SELECT session_user::text")[0]
    labels = {"purpose": "read", "database_role": role}
    return REGISTRY.get_sample_value("tokenfleet_unsealing_spikes", labels)


def watch(engine: Engine) -> UnsealingWatch:
    return UnsealingWatch(engine, retention_days=30)


def test_a_spike_is_told_once_however_many_look_and_shown_by_all_while_it_lasts(engine: Engine) -> None:
    remember(engine, Purpose.READ, {40 * DAY: 5} | {days * DAY: 100 for days in range(1, 8)})
    before = alarms()
    watch(engine).look()
    assert (alarms(), shown(engine)) == (before, None)
    assert column(engine, "SELECT count(*) FROM tokenfleet.unsealings") == [7], "one was past retention"

    report(engine, "thief", 50_000)
    one, other = watch(engine), watch(engine)
    for each in (one, other, watch(engine)):
        each.look()
        assert (alarms(), shown(engine)) == (before + 1, 1.0)

    let_pass(engine, timedelta(minutes=20))
    one.look()
    assert shown(engine) == 1.0, "it looks once a minute"
    one._look_at = 0.0
    one.look()
    assert (alarms(), shown(engine)) == (before + 1, None)


def test_a_second_spike_is_told_again(engine: Engine) -> None:
    remember(engine, Purpose.READ, {days * DAY: 100 for days in range(1, 8)})
    before = alarms()
    for expected in (1, 2):
        report(engine, "thief", 50_000)
        watch(engine).look()
        assert alarms() == before + expected
        let_pass(engine, timedelta(minutes=20))
        last = watch(engine)
        last.look()
        # Whatever this process showed is its own to take away.
        telemetry.UNSEALING_SPIKES.clear()
