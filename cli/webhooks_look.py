"""``tokenfleet webhooks list|deliveries``: endpoints and how they do, deliveries and what was answered."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final
from uuid import UUID

import click

from cli.output import counted, dated, json_option, moment, print_json, print_table
from cli.webhook_references import ID, find_endpoint

if TYPE_CHECKING:
    from store.delivery_log import LoggedAttempt, LoggedDelivery
    from store.endpoints import Endpoint

STATES: Final = ("pending", "delivered", "failed")


@dataclass(frozen=True, slots=True)
class EndpointView:
    """One endpoint as programs see it. ``state`` is ``ready``, ``failing`` or ``disabled``."""

    endpoint_id: int
    url: str
    description: str | None
    event_types: tuple[str, ...] | None
    tenants: tuple[str, ...] | None
    environments: tuple[str, ...] | None
    concurrency: int
    state: str
    disabled_reason: str | None
    disabled_at: datetime | None
    failing_since: datetime | None
    failures: int
    last_error: str | None
    retry_at: datetime | None
    last_success_at: datetime | None
    waiting: int
    created_at: datetime


@dataclass(frozen=True, slots=True)
class DeliveryView:
    """One delivery as programs see it, with its attempts when they were asked for."""

    delivery: LoggedDelivery
    attempts: tuple[LoggedAttempt, ...] | None


@click.command("list")
@json_option
def list_endpoints(as_json: bool) -> None:
    """List endpoints: what they are sent, how many events wait for them, which ones fail or are disabled.

    \b
    Example:
      tokenfleet webhooks list
    """
    from cli.session import database, load_settings
    from store import endpoints
    from store.engine import database_now

    with database(load_settings()) as engine, engine.connect() as connection:
        now = database_now(connection)
        waiting = endpoints.pending_counts(connection)
        found = [
            _view(each, waiting.get(each.endpoint_id, 0)) for each in endpoints.all_endpoints(connection)
        ]
    if as_json:
        print_json(found)
        return
    if not found:
        click.echo("No endpoint yet: 'tokenfleet webhooks add URL' adds one.")
        return
    print_table(
        (">id", "url", "sent", ">waiting", "last success", "state"),
        (
            (
                str(each.endpoint_id),
                each.url if each.description is None else f"{each.url} ({each.description})",
                _sent(each),
                f"{each.waiting:,}",
                dated(each.last_success_at, now) or "never",
                _state(each, now),
            )
            for each in found
        ),
    )


def _view(endpoint: Endpoint, waiting: int) -> EndpointView:
    state = "disabled" if endpoint.disabled_at else "failing" if endpoint.failures else "ready"
    return EndpointView(
        endpoint_id=endpoint.endpoint_id,
        url=endpoint.url,
        description=endpoint.description,
        event_types=endpoint.event_types,
        tenants=endpoint.tenants,
        environments=endpoint.environments,
        concurrency=endpoint.concurrency,
        state=state,
        disabled_reason=None if endpoint.disabled_reason is None else endpoint.disabled_reason.value,
        disabled_at=endpoint.disabled_at,
        failing_since=endpoint.failing_since,
        failures=endpoint.failures,
        last_error=endpoint.last_error,
        retry_at=endpoint.retry_at,
        last_success_at=endpoint.last_success_at,
        waiting=waiting,
        created_at=endpoint.created_at,
    )


def _sent(endpoint: EndpointView) -> str:
    filters = (
        ("", endpoint.event_types),
        ("tenant ", endpoint.tenants),
        ("environment ", endpoint.environments),
    )
    chosen = [name + ", ".join(values) for name, values in filters if values]
    return "; ".join(chosen) or "everything"


def _state(endpoint: EndpointView, now: datetime) -> str:
    from tokenfleet.delivery_policy import DISABLED_AFTER, TOLERATED_FAILURES

    match endpoint.disabled_reason:
        case "gone":
            return f"disabled {dated(endpoint.disabled_at, now)}: it answered 410 (gone)"
        case "failing":
            return f"disabled {dated(endpoint.disabled_at, now)}: it failed for days ({endpoint.last_error})"
        case "operator":
            return f"disabled {dated(endpoint.disabled_at, now)} by an operator"
        case "removed":
            return "being removed: run 'tokenfleet webhooks remove' again"
    if endpoint.failures:
        since = dated(endpoint.failing_since, now)
        told = f"failing since {since}: {endpoint.last_error}, {counted(endpoint.failures, 'time')} in a row"
        if endpoint.failures < TOLERATED_FAILURES or endpoint.failing_since is None:
            return told
        return f"{told}; disabled {dated(endpoint.failing_since + DISABLED_AFTER, now)} if that lasts"
    return "ready"


@click.command("deliveries")
@click.option("--endpoint", "endpoint_id", type=ID, help="Only of this endpoint.")
@click.option("--event-id", type=click.UUID, help="Only of this event (the webhook-id).")
@click.option("--state", type=click.Choice(STATES), help="Only those that stand there.")
@click.option("--attempts", "with_attempts", is_flag=True, help="Show every attempt, not only the last one.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=20, show_default=True, help="How many.")
@json_option
def list_deliveries(
    endpoint_id: int | None,
    event_id: UUID | None,
    state: str | None,
    with_attempts: bool,
    limit: int,
    as_json: bool,
) -> None:
    """Show deliveries, the newest first: what was sent, how often, what was answered and after how long.

    \b
    Examples:
      tokenfleet webhooks deliveries --endpoint 3 --state failed
      tokenfleet webhooks deliveries --event-id 5f0c3c1e-5a2b-4c1c-8d83-2f6f3f0f9d11 --attempts
    """
    from cli.session import database, load_settings
    from store import delivery_log
    from store.engine import database_now
    from tokenfleet.delivery_policy import DeliveryState
    from tokenfleet.jobs import EndpointId

    with database(load_settings()) as engine, engine.connect() as connection:
        now = database_now(connection)
        if endpoint_id is not None:
            find_endpoint(connection, endpoint_id)
        found = delivery_log.of_deliveries(
            connection,
            endpoint_id=None if endpoint_id is None else EndpointId(endpoint_id),
            event_id=event_id,
            state=None if state is None else DeliveryState(state),
            limit=limit,
        )
        attempts = (
            delivery_log.of_attempts(connection, [each.delivery_id for each in found])
            if with_attempts
            else []
        )
    views = [
        DeliveryView(
            each,
            tuple(one for one in attempts if one.delivery_id == each.delivery_id) if with_attempts else None,
        )
        for each in found
    ]
    if as_json:
        print_json(views)
        return
    if not views:
        click.echo("No delivery matches.")
        return
    rows: list[tuple[str, ...]] = []
    for view in views:
        each = view.delivery
        rows.append(
            (
                str(each.delivery_id),
                str(each.endpoint_id),
                moment(each.happened_at),
                each.event_type,
                each.subject,
                _progress(each, now),
                str(each.attempts),
                _answer(each.last_status, each.last_error),
                _took(each.last_duration_ms),
            )
        )
        rows.extend(
            ("", "", moment(one.at), "", "", "", "", _answer(one.status, one.error), _took(one.duration_ms))
            for one in view.attempts or ()
        )
    headings = (">delivery", ">endpoint", "happened", "event", "about", "state", ">attempts", "answer", ">ms")
    print_table(headings, rows)


def _progress(delivery: LoggedDelivery, now: datetime) -> str:
    if delivery.state.value != "pending":
        return f"{delivery.state.value} {moment(delivery.finished_at)}"
    if delivery.next_attempt_at is None:
        return "pending: waits for an earlier event"
    return f"pending: due {dated(delivery.next_attempt_at, now)}"


def _answer(status: int | None, error: str | None) -> str:
    words = [str(status)] if status is not None else []
    if error is not None and error != f"http_{status}":
        words.append(error)
    return " ".join(words)


def _took(duration_ms: int | None) -> str:
    return "" if duration_ms is None else f"{duration_ms:,}"
