"""How webhooks are doing, in numbers, for ``status`` and ``doctor``: read only, and cheap however much waits.

Of each endpoint at most :data:`COUNTED` waiting deliveries are counted, in ``ix_webhook_deliveries_pending``, and the
first that is due is found in ``ix_webhook_deliveries_due``.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import Connection, text

from tokenfleet.delivery_policy import DISABLED_AFTER, TOLERATED_FAILURES, DisabledReason
from tokenfleet.jobs import EndpointId

COUNTED: Final = 10_000

_ENDPOINTS: Final = text("""
    SELECT e.id, e.failures, e.failing_since, e.last_error, e.disabled_at, e.disabled_reason, w.waiting,
           CASE WHEN e.disabled_at IS NULL AND (e.retry_at IS NULL OR e.retry_at <= now()) THEN d.due_since END
               AS due_since
    FROM tokenfleet.webhook_endpoints e
    CROSS JOIN LATERAL (
        SELECT count(*) AS waiting FROM (
            SELECT FROM tokenfleet.webhook_deliveries p
            WHERE p.endpoint_id = e.id AND p.state = 'pending' LIMIT :counted) part
    ) w
    CROSS JOIN LATERAL (
        SELECT min(f.next_attempt_at) AS due_since FROM tokenfleet.webhook_deliveries f
        WHERE f.endpoint_id = e.id AND f.next_attempt_at <= now()
    ) d
    WHERE e.disabled_reason IS DISTINCT FROM 'removed'
    ORDER BY e.id
""")


@dataclass(frozen=True, slots=True)
class TroubledEndpoint:
    """One that fails whatever it is sent, or was disabled by itself; not one that an operator disabled."""

    endpoint_id: EndpointId
    failing_since: datetime | None
    failures: int
    last_error: str | None
    disabled_at: datetime | None
    disabled_reason: DisabledReason | None
    disabled_next: datetime | None
    """When it is disabled if it goes on like this; None when it is."""


@dataclass(frozen=True, slots=True)
class WebhooksOverview:
    """All endpoints together. ``waiting`` is a lower bound when ``is_more``: nobody counts millions."""

    endpoints: int
    disabled: int
    """By operators as well."""
    troubled: tuple[TroubledEndpoint, ...]
    waiting: int
    is_more: bool
    due_since: datetime | None
    """Since when the first delivery waits that an endpoint would be sent now. Those on their way count."""

    @property
    def failing(self) -> tuple[TroubledEndpoint, ...]:
        """Those that are tried still."""
        return tuple(each for each in self.troubled if each.disabled_at is None)


def read_webhooks(connection: Connection) -> WebhooksOverview:
    """Return how webhooks are doing now."""
    rows = connection.execute(_ENDPOINTS, {"counted": COUNTED}).all()
    troubled = tuple(
        TroubledEndpoint(
            endpoint_id=EndpointId(row.id),
            failing_since=row.failing_since,
            failures=row.failures,
            last_error=row.last_error,
            disabled_at=row.disabled_at,
            disabled_reason=DisabledReason(row.disabled_reason) if row.disabled_reason else None,
            disabled_next=row.failing_since + DISABLED_AFTER
            if row.failing_since and not row.disabled_at
            else None,
        )
        for row in rows
        if row.disabled_reason in {DisabledReason.GONE, DisabledReason.FAILING}
        or (row.disabled_at is None and row.failures >= TOLERATED_FAILURES)
    )
    return WebhooksOverview(
        endpoints=len(rows),
        disabled=sum(row.disabled_at is not None for row in rows),
        troubled=troubled,
        waiting=sum(row.waiting for row in rows),
        is_more=any(row.waiting >= COUNTED for row in rows),
        due_since=min((row.due_since for row in rows if row.due_since), default=None),
    )
