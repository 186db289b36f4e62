"""Logs and metrics: closed sets, bounded labels, and never a secret, however it gets near a log line."""

from __future__ import annotations

import io
import json
import logging
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import prometheus_client
import pytest
import structlog

from tokenfleet import telemetry
from tokenfleet.settings import Tunables
from tokenfleet.telemetry import Event
from tokenfleet_client.envelope import DataKeys, KeyEncryptionKey, Ring
from tokenfleet_client.secret import PLACEHOLDER, Secret

PLANTED = "planted-example-value"


@dataclass(frozen=True, slots=True)
class Holder:
    """Something that carries a secret, as a token set does."""

    name: str
    token: Secret


@pytest.fixture(params=["json", "console"])
def tunables(request: pytest.FixtureRequest) -> Tunables:
    return Tunables(log_format=request.param, log_level="debug")


@pytest.fixture
def configured(tunables: Tunables, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], str]]:
    """Logging as a process has it; yields a function that returns what was logged."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    standard_error = io.StringIO()
    monkeypatch.setattr(sys, "stderr", standard_error)
    telemetry.configure_logging(tunables)
    yield standard_error.getvalue
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.contextvars.clear_contextvars()
    structlog.reset_defaults()


def raise_near_a_revealed_value(message: object) -> None:
    """Fail in a frame whose variables hold the value in the clear, as the code that sends it has to."""
    revealed = Secret(PLANTED).reveal()
    headers = {"authorization": revealed}
    assert headers["authorization"] == revealed
    raise ValueError("cannot send", message)


def log_fields() -> None:
    telemetry.logger().info(Event.ACCOUNT_SETTLED.value, token=Secret(PLANTED))


def log_nested_fields() -> None:
    held = {"tokens": [Secret(PLANTED)], "holder": Holder("example", Secret(PLANTED))}
    telemetry.logger().warning(Event.ACCOUNT_TROUBLED.value, held=held)


def log_an_alarm() -> None:
    telemetry.alarm(Event.ATTEMPT_FAILED, error=repr(ValueError(Secret(PLANTED))))


def log_bound_context() -> None:
    structlog.contextvars.bind_contextvars(token=Secret(PLANTED))
    telemetry.logger().info(Event.JOB_STARTED.value)


def log_keys() -> None:
    kek = KeyEncryptionKey("example", PLANTED.encode()[:8] * 4)
    ring = DataKeys(Ring.ACCESS, {1: PLANTED.encode()[:8] * 4}, 1)
    telemetry.logger().info(Event.PROCESS_STARTED.value, kek=kek, ring=ring, token=Secret(PLANTED))


def log_an_exception_of_ours() -> None:
    try:
        raise_near_a_revealed_value(Secret(PLANTED))
    except ValueError:
        telemetry.logger().error(Event.ATTEMPT_FAILED.value, exc_info=True)


def log_by_a_library() -> None:
    logging.getLogger("celery.worker").warning("job %s %r", Secret(PLANTED), Holder("x", Secret(PLANTED)))


def log_an_exception_by_a_library() -> None:
    try:
        raise_near_a_revealed_value(Secret(PLANTED))
    except ValueError:
        logging.getLogger("celery.app.trace").exception("task failed")


@pytest.mark.parametrize(
    "log",
    [
        log_fields,
        log_nested_fields,
        log_an_alarm,
        log_bound_context,
        log_keys,
        log_an_exception_of_ours,
        log_by_a_library,
        log_an_exception_by_a_library,
    ],
)
def test_a_secret_never_shows_in_a_log_line(configured: Callable[[], str], log: Callable[[], None]) -> None:
    log()
    logged = configured()
    assert PLACEHOLDER in logged
    assert PLANTED not in logged
    assert PLANTED[:8] not in logged


@pytest.mark.parametrize("log", [log_an_exception_of_ours, log_an_exception_by_a_library])
def test_an_exception_is_logged_with_its_traceback(
    configured: Callable[[], str], log: Callable[[], None]
) -> None:
    log()
    logged = configured()
    assert "Traceback (most recent call last)" in logged
    assert "raise_near_a_revealed_value" in logged


@pytest.mark.parametrize("tunables", [Tunables(log_format="json")], ids=["json"])
def test_every_json_line_is_one_object_with_an_event_a_level_and_a_moment(
    configured: Callable[[], str],
) -> None:
    log_fields()
    log_an_exception_of_ours()
    log_by_a_library()
    log_an_exception_by_a_library()
    lines = configured().splitlines()
    assert len(lines) == 4
    for line in lines:
        entry = json.loads(line)
        assert entry["event"]
        assert entry["level"] in {"info", "warning", "error"}
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", entry["timestamp"])


@pytest.mark.parametrize("tunables", [Tunables(log_level="warning")], ids=["warning"])
def test_what_is_below_the_level_is_not_logged(configured: Callable[[], str]) -> None:
    telemetry.logger().info(Event.JOB_STARTED.value)
    logging.getLogger("celery").info("an ordinary line")
    assert configured() == ""


@pytest.mark.parametrize("tunables", [Tunables(log_level="debug")], ids=["debug"])
def test_libraries_are_heard_only_when_something_is_wrong(configured: Callable[[], str]) -> None:
    logging.getLogger("celery").info("an ordinary line")
    logging.getLogger("celery").warning("something is wrong")
    assert [json.loads(line)["event"] for line in configured().splitlines()] == ["something is wrong"]


def test_an_alarm_is_counted_by_its_event(configured: Callable[[], str]) -> None:
    def counted() -> float:
        labels = {"event": Event.JOURNAL_DAMAGED.value}
        return prometheus_client.REGISTRY.get_sample_value("tokenfleet_alarms_total", labels) or 0.0

    before = counted()
    telemetry.alarm(Event.JOURNAL_DAMAGED, segment="0000000000000001.segment")
    assert counted() == before + 1
    assert Event.JOURNAL_DAMAGED.value in configured()


def test_events_are_dotted_constants() -> None:
    assert [event for event in Event if not re.fullmatch(r"[a-z_]+\.[a-z_]+", event.value)] == []


def metrics() -> list[Any]:
    return [
        value
        for value in vars(telemetry).values()
        if isinstance(value, prometheus_client.metrics.MetricWrapperBase)
    ]


def test_metrics_carry_our_name_and_a_sentence() -> None:
    described = [metric.describe()[0] for metric in metrics()]
    assert len(described) > 10
    for family in described:
        assert family.name.startswith("tokenfleet_")
        assert family.documentation.endswith(".")


def test_labels_are_bounded() -> None:
    labels = {name for metric in metrics() for name in metric._labelnames}
    bounded = {"provider", "environment", "app", "kind", "outcome", "event", "purpose", "verdict"}
    assert labels <= bounded | {"database_role"}
