"""What became of deliveries, for people: read only.

The statements rely on ``ix_webhook_deliveries_endpoint_id``, ``ix_webhook_deliveries_event_id`` and
``ix_webhook_attempts_delivery_id``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import Connection, text

from tokenfleet.delivery_policy import DeliveryState
from tokenfleet.jobs import DeliveryId, EndpointId

_DELIVERIES = text("""
    SELECT d.id, d.endpoint_id, d.event_id, o.event_type, d.subject, d.state, d.attempts, d.last_status, d.last_error,
           d.last_duration_ms, o.created_at AS happened_at, d.finished_at, d.next_attempt_at
    FROM tokenfleet.webhook_deliveries d JOIN tokenfleet.outbox o ON o.id = d.event_id
    WHERE (CAST(:endpoint_id AS bigint) IS NULL OR d.endpoint_id = :endpoint_id)
      AND (CAST(:event_id AS uuid) IS NULL OR d.event_id = :event_id)
      AND (CAST(:state AS text) IS NULL OR d.state = :state)
    ORDER BY d.id DESC LIMIT :limit
""")

_DISABLED = text("""
    SELECT DISTINCT e.id
    FROM tokenfleet.webhook_deliveries d JOIN tokenfleet.webhook_endpoints e ON e.id = d.endpoint_id
    WHERE d.id = ANY (CAST(:ids AS bigint[])) AND e.disabled_at IS NOT NULL ORDER BY e.id
""")

_ATTEMPTS = text("""
    SELECT delivery_id, at, status, error, duration_ms FROM tokenfleet.webhook_attempts
    WHERE delivery_id = ANY (CAST(:ids AS bigint[])) ORDER BY delivery_id, at
""")


@dataclass(frozen=True, slots=True)
class LoggedDelivery:
    """One delivery and its last attempt. ``event_id`` is the webhook id."""

    delivery_id: DeliveryId
    endpoint_id: EndpointId
    event_id: UUID
    event_type: str
    subject: str
    state: DeliveryState
    attempts: int
    last_status: int | None
    last_error: str | None
    last_duration_ms: int | None
    happened_at: datetime
    finished_at: datetime | None
    next_attempt_at: datetime | None
    """None while an earlier event of the same account is pending, and when it is finished."""


@dataclass(frozen=True, slots=True)
class LoggedAttempt:
    """One request. ``error`` is None when it was a delivery; ``status`` is None when nothing was answered."""

    delivery_id: DeliveryId
    at: datetime
    status: int | None
    error: str | None
    duration_ms: int


def of_deliveries(
    connection: Connection,
    *,
    endpoint_id: EndpointId | None = None,
    event_id: UUID | None = None,
    state: DeliveryState | None = None,
    limit: int,
) -> list[LoggedDelivery]:
    """Return the newest ``limit`` deliveries that pass the filters, the newest first."""
    rows = connection.execute(
        _DELIVERIES,
        {
            "endpoint_id": endpoint_id,
            "event_id": event_id,
            "state": None if state is None else state.value,
            "limit": limit,
        },
    )
    found: list[LoggedDelivery] = []
    for row in rows:
        values = dict(row._mapping)
        found.append(
            LoggedDelivery(
                delivery_id=DeliveryId(values.pop("id")),
                **values | {"state": DeliveryState(row.state)},
            )
        )
    return found


def of_attempts(connection: Connection, delivery_ids: Sequence[DeliveryId]) -> list[LoggedAttempt]:
    """Return every attempt that is still in the log at these deliveries, the oldest first."""
    return [
        LoggedAttempt(**row._mapping) for row in connection.execute(_ATTEMPTS, {"ids": list(delivery_ids)})
    ]


def disabled_among(connection: Connection, delivery_ids: Sequence[DeliveryId]) -> list[EndpointId]:
    """Return the endpoints of these deliveries that are disabled: nothing is sent to them."""
    rows = connection.execute(_DISABLED, {"ids": list(delivery_ids)})
    return [EndpointId(row.id) for row in rows]
