"""Webhook endpoints: where events are sent, which ones, and the secrets that they are signed with.

Invariants kept here:

* A secret is sealed for its endpoint and generation under the refresh ring, which readers are not given, and leaves
  this module in the clear only once: when it is made.
* Replacing a secret never lets a receiver down: the one before goes on signing for :data:`OVERLAP`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import Connection, text

from tokenfleet.delivery_policy import DisabledReason
from tokenfleet.jobs import EndpointId
from tokenfleet_client.envelope import Binding, DataKeys, Ring
from tokenfleet_client.secret import Secret
from tokenfleet_client.webhooks import new_secret

OVERLAP: Final = timedelta(hours=24)
DEFAULT_CONCURRENCY: Final = 50
REMOVED_AT_ONCE: Final = 10_000

_COLUMNS: Final = """
    id, url, description, event_types, tenants, environments, concurrency, mean_ms, failures, failing_since,
    last_error, last_success_at, retry_at, disabled_at, disabled_reason, created_at
"""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One receiver. A filter that is None lets everything pass."""

    endpoint_id: EndpointId
    url: str
    description: str | None
    event_types: tuple[str, ...] | None
    """Names of events, or ``<group>:*``."""
    tenants: tuple[str, ...] | None
    environments: tuple[str, ...] | None
    concurrency: int
    """Requests at once, fleet-wide."""
    mean_ms: int
    failures: int
    """In a row, whatever was sent."""
    failing_since: datetime | None
    last_error: str | None
    last_success_at: datetime | None
    retry_at: datetime | None
    disabled_at: datetime | None
    disabled_reason: DisabledReason | None
    created_at: datetime


def secret_binding(endpoint_id: int, generation: int) -> Binding:
    """Return where the secret of one endpoint's generation stands."""
    return Binding(Ring.REFRESH, f"webhook_endpoint:{endpoint_id}", "secret", generation)


def add(
    connection: Connection,
    refresh_keys: DataKeys,
    *,
    url: str,
    description: str | None = None,
    event_types: Sequence[str] | None = None,
    tenants: Sequence[str] | None = None,
    environments: Sequence[str] | None = None,
    concurrency: int = DEFAULT_CONCURRENCY,
) -> tuple[Endpoint, Secret]:
    """Create an endpoint; returns it and its secret, which nobody can look up later.

    It is sent what happens from now on. ``url`` has been checked (``tokenfleet.receiver_urls``).
    """
    row = connection.execute(
        text(f"""
            INSERT INTO tokenfleet.webhook_endpoints
                (url, description, event_types, tenants, environments, concurrency)
            VALUES (:url, :description, CAST(:event_types AS text[]), CAST(:tenants AS text[]),
                    CAST(:environments AS text[]), :concurrency)
            RETURNING {_COLUMNS}
        """),
        {
            "url": url,
            "description": description,
            "event_types": _list(event_types),
            "tenants": _list(tenants),
            "environments": _list(environments),
            "concurrency": concurrency,
        },
    ).one()
    endpoint = _endpoint(row)
    return endpoint, _install(connection, refresh_keys, endpoint.endpoint_id, 1)


def load(connection: Connection, endpoint_id: EndpointId) -> Endpoint | None:
    """Return an endpoint, or None when there is none such."""
    rows = connection.execute(
        text(f"SELECT {_COLUMNS} FROM tokenfleet.webhook_endpoints WHERE id = :id"), {"id": endpoint_id}
    )
    return next((_endpoint(row) for row in rows), None)


def all_endpoints(connection: Connection) -> list[Endpoint]:
    """Return every endpoint, the oldest first."""
    rows = connection.execute(text(f"SELECT {_COLUMNS} FROM tokenfleet.webhook_endpoints ORDER BY id"))
    return [_endpoint(row) for row in rows]


def pending_counts(connection: Connection) -> dict[EndpointId, int]:
    """Return how many deliveries wait for each endpoint that has any."""
    rows = connection.execute(
        text("""
            SELECT endpoint_id, count(*) AS waiting FROM tokenfleet.webhook_deliveries
            WHERE state = 'pending' GROUP BY endpoint_id
        """)
    )
    return {EndpointId(row.endpoint_id): row.waiting for row in rows}


def sealed_secrets(connection: Connection, endpoint_id: EndpointId) -> list[tuple[int, bytes]]:
    """Return generation and sealed secret of all that sign now, the newest first."""
    rows = connection.execute(
        text("""
            SELECT generation, secret FROM tokenfleet.webhook_secrets
            WHERE endpoint_id = :id AND (expires_at IS NULL OR expires_at > clock_timestamp())
            ORDER BY generation DESC
        """),
        {"id": endpoint_id},
    )
    return [(row.generation, bytes(row.secret)) for row in rows]


def rotate_secret(
    connection: Connection,
    refresh_keys: DataKeys,
    endpoint_id: EndpointId,
    *,
    overlap: timedelta = OVERLAP,
) -> Secret:
    """Give an endpoint a new secret and return it; those before sign for ``overlap`` beside it, no longer.

    Expired ones are forgotten. The endpoint exists: its row is locked, so that two rotations take turns.
    """
    connection.execute(
        text("SELECT id FROM tokenfleet.webhook_endpoints WHERE id = :id FOR NO KEY UPDATE"),
        {"id": endpoint_id},
    ).one()
    connection.execute(
        text("""
            DELETE FROM tokenfleet.webhook_secrets
            WHERE endpoint_id = :id AND expires_at <= clock_timestamp()
        """),
        {"id": endpoint_id},
    )
    connection.execute(
        text("""
            UPDATE tokenfleet.webhook_secrets
            SET expires_at = least(expires_at, clock_timestamp() + CAST(:overlap AS interval))
            WHERE endpoint_id = :id
        """),
        {"id": endpoint_id, "overlap": overlap},
    )
    newest: int = connection.execute(
        text("SELECT max(generation) FROM tokenfleet.webhook_secrets WHERE endpoint_id = :id"),
        {"id": endpoint_id},
    ).scalar_one()
    return _install(connection, refresh_keys, endpoint_id, newest + 1)


def disable(connection: Connection, endpoint_id: EndpointId, reason: DisabledReason) -> bool:
    """Send an endpoint nothing any more; what waits for it is kept. Answers whether it was enabled."""
    return (
        connection.execute(
            text("""
                UPDATE tokenfleet.webhook_endpoints SET disabled_at = now(), disabled_reason = :reason
                WHERE id = :id AND disabled_at IS NULL
            """),
            {"id": endpoint_id, "reason": reason.value},
        ).rowcount
        == 1
    )


def enable(connection: Connection, endpoint_id: EndpointId) -> bool:
    """Send an endpoint again what waits for it, at once, and what happens from now on.

    Answers whether it was disabled.
    """
    # Before its row, as in store.deliveries.settle and what follows there.
    connection.execute(
        text("""
            UPDATE tokenfleet.webhook_deliveries SET next_attempt_at = now()
            WHERE endpoint_id = :id AND next_attempt_at > now()
              AND EXISTS (SELECT FROM tokenfleet.webhook_endpoints e
                          WHERE e.id = :id AND e.disabled_at IS NOT NULL AND e.disabled_reason <> 'removed')
        """),
        {"id": endpoint_id},
    )
    return (
        connection.execute(
            text("""
                UPDATE tokenfleet.webhook_endpoints
                SET disabled_at = NULL, disabled_reason = NULL, failures = 0, failing_since = NULL, retry_at = NULL
                WHERE id = :id AND disabled_at IS NOT NULL AND disabled_reason <> 'removed'
            """),
            {"id": endpoint_id},
        ).rowcount
        == 1
    )


def remove_some(connection: Connection, endpoint_id: EndpointId) -> bool:
    """Remove a part of a disabled endpoint; answers whether it is gone. Call again, each time in a new transaction.

    In parts, because an endpoint may have millions of deliveries, and nobody should wait for their end.
    """
    removed = connection.execute(
        text("""
            WITH part AS (
                SELECT id FROM tokenfleet.webhook_deliveries WHERE endpoint_id = :id LIMIT :at_once
            ), attempts AS (
                DELETE FROM tokenfleet.webhook_attempts a USING part WHERE a.delivery_id = part.id
            )
            DELETE FROM tokenfleet.webhook_deliveries d USING part WHERE d.id = part.id
        """),
        {"id": endpoint_id, "at_once": REMOVED_AT_ONCE},
    ).rowcount
    if removed == REMOVED_AT_ONCE:
        return False
    connection.execute(text("DELETE FROM tokenfleet.webhook_endpoints WHERE id = :id"), {"id": endpoint_id})
    return True


def _install(
    connection: Connection, refresh_keys: DataKeys, endpoint_id: EndpointId, generation: int
) -> Secret:
    secret = new_secret()
    connection.execute(
        text("""
            INSERT INTO tokenfleet.webhook_secrets (endpoint_id, generation, secret)
            VALUES (:id, :generation, :secret)
        """),
        {
            "id": endpoint_id,
            "generation": generation,
            "secret": refresh_keys.seal(secret.reveal(), secret_binding(endpoint_id, generation)),
        },
    )
    return secret


def _list(values: Sequence[str] | None) -> list[str] | None:
    return sorted(set(values)) if values else None


def _endpoint(row: Any) -> Endpoint:
    values = dict(row._mapping)
    for name in ("event_types", "tenants", "environments"):
        values[name] = None if values[name] is None else tuple(values[name])
    reason = values["disabled_reason"]
    return Endpoint(
        endpoint_id=EndpointId(values.pop("id")),
        **values | {"disabled_reason": None if reason is None else DisabledReason(reason)},
    )
