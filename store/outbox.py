"""Events and who is to hear of them: from rows of the outbox to a delivery for each endpoint. Hop 9, first half.

Invariants kept here:

* An event is relayed once: its deliveries and the mark on its row are one statement. Its id is the webhook id for
  ever, however often it is delivered or replayed.
* Of one subject (an account, or an incident), one delivery per endpoint is due at a time, the earliest that is
  pending; the later ones wait without a moment. Who appends to that line takes :data:`ORDER_LOCK` alone, who finishes
  a delivery and moves the line up (``store.deliveries.settle``) shares it; so the two never miss each other.
* An account's events are relayed in the order in which they happened: whoever tells of an account holds its lock until
  the commit, so the later event has the larger ``sequence`` and is visible later; and one process relays at a time.

The statements rely on ``ix_outbox_waiting`` and ``ix_webhook_deliveries_pending``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Connection, text

from tokenfleet.jobs import DeliveryId, EndpointId

RELAYED_AT_ONCE: Final = 1000
PRUNED_AT_ONCE: Final = 5000
ORDER_LOCK: Final = 7_305_811_061
_TURN_LOCK: Final = 7_305_811_062
_END_OF_TIME: Final = datetime.max.replace(tzinfo=UTC)

SUBJECT: Final = """
    CASE WHEN o.account_id IS NOT NULL THEN 'account:' || o.account_id
         ELSE split_part(o.event_type, ':', 1) || ':' || COALESCE(o.payload ->> 'id', o.id::text) END
"""
_MATCHES: Final = """
    (e.event_types IS NULL OR o.event_type = ANY (e.event_types)
     OR split_part(o.event_type, ':', 1) || ':*' = ANY (e.event_types))
    AND (e.tenants IS NULL OR o.payload ->> 'tenant' = ANY (e.tenants))
    -- '*' is an app of the whole platform: what happens to it concerns every environment.
    AND (e.environments IS NULL OR o.payload ->> 'environment' = ANY (e.environments)
         OR o.payload ->> 'environment' = '*')
"""
_APPEND: Final = """
    INSERT INTO tokenfleet.webhook_deliveries (endpoint_id, event_id, subject, sequence, next_attempt_at)
    SELECT w.endpoint_id, w.event_id, w.subject, w.sequence,
           CASE WHEN ahead.id IS NULL
                     AND w.sequence = min(w.sequence) OVER (PARTITION BY w.endpoint_id, w.subject) THEN now() END
    -- The first of each line, by the index whose order this is: lines may be long, and there may be many.
    FROM wanted w LEFT JOIN LATERAL (
        SELECT d.id FROM tokenfleet.webhook_deliveries d
        WHERE d.endpoint_id = w.endpoint_id AND d.subject = w.subject AND d.state = 'pending'
        ORDER BY d.sequence LIMIT 1) ahead ON true
    ORDER BY w.sequence
"""

_IS_WAITING = text("SELECT EXISTS (SELECT FROM tokenfleet.outbox WHERE NOT is_relayed)")

_RELAY = text(f"""
    WITH o AS MATERIALIZED (
        SELECT id, sequence, account_id, event_type, payload, created_at
        FROM tokenfleet.outbox WHERE NOT is_relayed ORDER BY sequence LIMIT :at_once
    ), relayed AS (
        UPDATE tokenfleet.outbox SET is_relayed = true FROM o WHERE outbox.id = o.id
    ), wanted AS MATERIALIZED (
        SELECT e.id AS endpoint_id, o.id AS event_id, {SUBJECT} AS subject, o.sequence
        FROM o JOIN tokenfleet.webhook_endpoints e
            ON e.disabled_at IS NULL AND e.created_at <= o.created_at AND {_MATCHES}
    ){_APPEND}
""")

_TEST_EVENT = text("""
    INSERT INTO tokenfleet.outbox (event_type, payload, is_relayed)
    VALUES (:event_type, jsonb_build_object('endpoint_id', CAST(:endpoint_id AS bigint)), true)
    RETURNING id, created_at, payload
""")

_REPLAY_DELIVERIES = text(f"""
    WITH o AS MATERIALIZED (
        SELECT * FROM (
            -- An event that was replayed before has several deliveries.
            SELECT DISTINCT ON (d.endpoint_id, d.event_id) o.*, d.endpoint_id, d.sequence AS once
            FROM tokenfleet.webhook_deliveries d JOIN tokenfleet.outbox o ON o.id = d.event_id
            WHERE d.id = ANY (CAST(:ids AS bigint[])) AND d.state <> 'pending'
              AND NOT EXISTS (SELECT FROM tokenfleet.webhook_deliveries again
                              WHERE again.event_id = d.event_id AND again.endpoint_id = d.endpoint_id
                                AND again.state = 'pending')
            ORDER BY d.endpoint_id, d.event_id, d.sequence) each ORDER BY once
    ), wanted AS MATERIALIZED (
        SELECT o.endpoint_id, o.id AS event_id, {SUBJECT} AS subject,
               nextval(pg_get_serial_sequence('tokenfleet.outbox', 'sequence')) AS sequence
        FROM o
    ){_APPEND}
""")

_MISSED = text(f"""
    SELECT o.sequence, o.id FROM tokenfleet.outbox o JOIN tokenfleet.webhook_endpoints e ON e.id = :endpoint_id
    WHERE o.created_at >= :since AND o.created_at < :until AND o.sequence > :after AND o.is_relayed
      AND o.event_type <> 'webhook:test' AND {_MATCHES}
      AND NOT EXISTS (SELECT FROM tokenfleet.webhook_deliveries d
                      WHERE d.event_id = o.id AND d.endpoint_id = e.id
                        AND (d.state = 'pending' OR (d.state = 'delivered' AND CAST(:undelivered AS boolean))))
    ORDER BY o.sequence LIMIT :at_once
""")

_REPLAY_EVENTS = text(f"""
    WITH o AS MATERIALIZED (
        SELECT * FROM tokenfleet.outbox WHERE id = ANY (CAST(:event_ids AS uuid[])) ORDER BY sequence
    ), wanted AS MATERIALIZED (
        SELECT CAST(:endpoint_id AS bigint) AS endpoint_id, o.id AS event_id, {SUBJECT} AS subject,
               CASE WHEN CAST(:in_place AS boolean) THEN o.sequence
                    ELSE nextval(pg_get_serial_sequence('tokenfleet.outbox', 'sequence')) END AS sequence
        FROM o
    ){_APPEND}
""")

_FIRST_IN_LINE = text("""
    WITH line AS (
        SELECT DISTINCT subject FROM tokenfleet.webhook_deliveries
        WHERE endpoint_id = :endpoint_id AND event_id = ANY (CAST(:event_ids AS uuid[])) AND state = 'pending'
    ), head AS (
        SELECT line.subject, first.id FROM line CROSS JOIN LATERAL (
            SELECT d.id FROM tokenfleet.webhook_deliveries d
            WHERE d.endpoint_id = :endpoint_id AND d.subject = line.subject AND d.state = 'pending'
            ORDER BY d.sequence LIMIT 1) first
        -- Where one is on its way still, who settles it says who follows.
        WHERE NOT EXISTS (
            SELECT FROM tokenfleet.webhook_deliveries d
            WHERE d.endpoint_id = :endpoint_id AND d.subject = line.subject AND d.state = 'pending'
              AND d.claimed_until > now())
    )
    UPDATE tokenfleet.webhook_deliveries d SET next_attempt_at = CASE WHEN d.id = head.id THEN now() END
    FROM head
    WHERE d.endpoint_id = :endpoint_id AND d.subject = head.subject AND d.state = 'pending'
      AND (d.next_attempt_at IS NOT NULL) <> (d.id = head.id)
""")

_PRUNE_ATTEMPTS = text("""
    DELETE FROM tokenfleet.webhook_attempts WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM tokenfleet.webhook_attempts WHERE at < now() - CAST(:age AS interval) LIMIT :at_once))
""")
_PRUNE_DELIVERIES = text("""
    DELETE FROM tokenfleet.webhook_deliveries WHERE id = ANY (ARRAY(
        SELECT id FROM tokenfleet.webhook_deliveries
        WHERE finished_at < now() - CAST(:age AS interval) ORDER BY finished_at LIMIT :at_once))
""")
_PRUNE_DISABLED = text("""
    DELETE FROM tokenfleet.webhook_deliveries WHERE id = ANY (ARRAY(
        SELECT d.id FROM tokenfleet.webhook_endpoints e JOIN tokenfleet.webhook_deliveries d ON d.endpoint_id = e.id
        WHERE e.disabled_at < now() - CAST(:age AS interval) LIMIT :at_once))
""")
_PRUNE_OUTBOX = text("""
    DELETE FROM tokenfleet.outbox WHERE id = ANY (ARRAY(
        SELECT o.id FROM tokenfleet.outbox o
        WHERE o.created_at < now() - CAST(:age AS interval) AND o.is_relayed
          AND NOT EXISTS (SELECT FROM tokenfleet.webhook_deliveries d WHERE d.event_id = o.id)
        LIMIT :at_once))
""")


@dataclass(frozen=True, slots=True)
class Event:
    """One event as it is told."""

    event_id: UUID
    event_type: str
    payload: dict[str, Any]
    created_at: datetime


def relay(connection: Connection, *, at_once: int = RELAYED_AT_ONCE) -> bool:
    """Make the deliveries of the events that wait, the oldest first; answers whether more may wait.

    One process at a time; the others find the work being done.
    """
    if not connection.execute(_IS_WAITING).scalar_one():
        return False
    mine: bool = connection.execute(
        text("SELECT pg_try_advisory_xact_lock(:key)"), {"key": _TURN_LOCK}
    ).scalar_one()
    if not mine:
        return False
    _append_alone(connection)
    connection.execute(_RELAY, {"at_once": at_once})
    more: bool = connection.execute(_IS_WAITING).scalar_one()
    return more


def tell_test(connection: Connection, endpoint_id: EndpointId, event_type: str) -> Event:
    """Write a test event, which goes to one endpoint only and is not relayed."""
    row = connection.execute(_TEST_EVENT, {"event_type": event_type, "endpoint_id": endpoint_id}).one()
    return Event(row.id, event_type, row.payload, row.created_at)


def replay(connection: Connection, delivery_ids: Sequence[DeliveryId]) -> int:
    """Deliver finished deliveries once more, under their old webhook ids; returns how many.

    Left out are those that are being delivered again already.

    They go behind what waits for their accounts now, in their old order among each other.
    """
    _append_alone(connection)
    return connection.execute(_REPLAY_DELIVERIES, {"ids": list(delivery_ids)}).rowcount


def replay_some(
    connection: Connection,
    endpoint_id: EndpointId,
    *,
    since: datetime,
    until: datetime,
    after: int = 0,
    undelivered: bool = True,
    in_place: bool = False,
    at_once: int = RELAYED_AT_ONCE,
) -> tuple[int, int | None]:
    """Deliver once more what happened in [``since``, ``until``) and passes the endpoint's filters.

    ``undelivered`` leaves out what has been delivered; what is pending is always left out. ``in_place``, for an
    endpoint that nobody sends to, puts each before the later events that wait for its account, not behind them. Returns
    how many, and the ``after`` of the next call, or None when that was all. Commit between the calls.
    """
    _append_alone(connection)
    rows = connection.execute(
        _MISSED,
        {
            "endpoint_id": endpoint_id,
            "since": since,
            "until": until,
            "after": after,
            "undelivered": undelivered,
            "at_once": at_once,
        },
    ).all()
    if rows:
        parameters = {"endpoint_id": endpoint_id, "event_ids": [row.id for row in rows]}
        connection.execute(_REPLAY_EVENTS, parameters | {"in_place": in_place})
        if in_place:
            connection.execute(_FIRST_IN_LINE, parameters)
    return len(rows), rows[-1].sequence if len(rows) == at_once else None


def catch_up(connection: Connection, endpoint_id: EndpointId, *, after: int = 0) -> tuple[int, int | None]:
    """Put what a disabled endpoint misses in line for it, each in its place; returns as :func:`replay_some` does.

    Nobody relays to it before the end of the transaction of the last call, the one that returns None: enable it there,
    and an account's events come in the order in which they happened. What was given up since it began to fail is among
    them, and what it was not sent in the hour before that: for the events that nobody had relayed when it was disabled.
    """
    _append_alone(connection)
    since: datetime = connection.execute(
        text("""
            SELECT least(disabled_at, failing_since) - interval '1 hour' FROM tokenfleet.webhook_endpoints
            WHERE id = :id
        """),
        {"id": endpoint_id},
    ).scalar_one()
    return replay_some(connection, endpoint_id, since=since, until=_END_OF_TIME, after=after, in_place=True)


def prune(connection: Connection, *, age: timedelta, at_once: int = PRUNED_AT_ONCE) -> int:
    """Forget a part of what is older than ``age``; returns how many rows.

    First the log, then finished deliveries and those of endpoints disabled for so long, then events that nobody is to
    be sent any more.
    """
    parameters = {"age": age, "at_once": at_once}
    statements = (_PRUNE_ATTEMPTS, _PRUNE_DELIVERIES, _PRUNE_DISABLED, _PRUNE_OUTBOX)
    return sum(connection.execute(statement, parameters).rowcount for statement in statements)


def _append_alone(connection: Connection) -> None:
    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": ORDER_LOCK})
