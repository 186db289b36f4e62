"""Deliveries on their way: claimed, started, settled, as accounts are (``store.schedule``). Hop 9, second half.

Invariants kept here:

* A claim is durable and committed before any message is sent; an expired claim is due again. An epoch is started once,
  so copies of a message and late workers deliver nothing.
* No endpoint has more outstanding than its window: its concurrency, less when it answers slowly, one while it is
  spared, none before its ``retry_at``. The window is in Postgres, so it holds for the whole fleet.
* A finished delivery and the move of its subject's next one are one statement.

The statements rely on ``ix_webhook_deliveries_due``, ``ix_webhook_deliveries_pending`` and the primary keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Connection, text

from store.outbox import ORDER_LOCK
from tokenfleet.delivery_policy import PATIENCE_MS, Verdict
from tokenfleet.jobs import DeliveryId, DeliveryJob, EndpointId, Epoch

CLAIMED_AT_ONCE: Final = 5000

_CLAIM = text(f"""
    WITH window_of AS (
        SELECT id AS endpoint_id, CASE WHEN retry_at IS NOT NULL THEN 1
            ELSE greatest(1, least(concurrency, concurrency * {PATIENCE_MS} / greatest(mean_ms, 1))) END AS outstanding
        FROM tokenfleet.webhook_endpoints
        WHERE disabled_at IS NULL AND (retry_at IS NULL OR retry_at <= now())
    ), picked AS (
        SELECT due.id
        FROM window_of CROSS JOIN LATERAL (
            SELECT d.id FROM tokenfleet.webhook_deliveries d
            WHERE d.id = ANY (ARRAY(
                    SELECT w.id FROM tokenfleet.webhook_deliveries w
                    WHERE w.endpoint_id = window_of.endpoint_id AND w.next_attempt_at <= now()
                    ORDER BY w.next_attempt_at LIMIT window_of.outstanding))
                -- Asked of the row that is locked: who held it before may have settled it since the list was made.
                AND d.next_attempt_at <= now()
                AND (d.claimed_until IS NULL OR d.claimed_until <= now())
            FOR UPDATE SKIP LOCKED
        ) due
        LIMIT :at_once
    )
    UPDATE tokenfleet.webhook_deliveries d
    SET claimed_until = now() + CAST(:claim AS interval), claim_epoch = d.claim_epoch + 1
    FROM picked WHERE d.id = picked.id
    RETURNING d.id, d.claim_epoch, d.next_attempt_at
""")

_START = text("""
    WITH started AS (
        UPDATE tokenfleet.webhook_deliveries d
        SET started_epoch = d.claim_epoch, claimed_until = clock_timestamp() + CAST(:claim AS interval)
        FROM unnest(CAST(:ids AS bigint[]), CAST(:epochs AS bigint[])) AS job (id, epoch),
             tokenfleet.webhook_endpoints e
        WHERE d.id = job.id AND d.claim_epoch = job.epoch AND d.started_epoch < job.epoch
          AND d.claimed_until > clock_timestamp() AND e.id = d.endpoint_id AND e.disabled_at IS NULL
          -- Spared since the claim.
          AND (e.retry_at IS NULL OR e.retry_at <= clock_timestamp())
        RETURNING d.id, d.claim_epoch, d.event_id, d.attempts, d.endpoint_id, e.url, d.created_at AS queued_at
    ), secret AS (
        SELECT s.endpoint_id, array_agg(s.secret ORDER BY s.generation DESC) AS secrets,
               array_agg(s.generation ORDER BY s.generation DESC) AS generations
        FROM tokenfleet.webhook_secrets s
        WHERE s.endpoint_id IN (SELECT endpoint_id FROM started)
          AND (s.expires_at IS NULL OR s.expires_at > clock_timestamp())
        GROUP BY s.endpoint_id
    )
    SELECT started.*, o.event_type, o.payload::text AS payload, o.created_at, secret.secrets, secret.generations,
           clock_timestamp() AS database_now
    FROM started JOIN tokenfleet.outbox o ON o.id = started.event_id JOIN secret USING (endpoint_id)
""")

_RECORD = text("""
    WITH recorded AS (
        INSERT INTO tokenfleet.webhook_deliveries
            (endpoint_id, event_id, subject, sequence, state, claim_epoch, started_epoch, attempts, last_status,
             last_error, last_duration_ms, finished_at)
        SELECT :endpoint_id, o.id, 'test:' || o.id, o.sequence, :state, 1, 1, 1, CAST(:status AS int),
               CAST(:error AS text), :duration_ms, clock_timestamp()
        FROM tokenfleet.outbox o WHERE o.id = :event_id
        RETURNING id
    )
    INSERT INTO tokenfleet.webhook_attempts (delivery_id, at, status, error, duration_ms)
    SELECT id, :at, CAST(:status AS int), CAST(:error AS text), :duration_ms FROM recorded
""")

_RELEASE = text("""
    UPDATE tokenfleet.webhook_deliveries d
    SET claimed_until = clock_timestamp() + CAST(:wait AS interval)
    FROM unnest(CAST(:ids AS bigint[]), CAST(:epochs AS bigint[])) AS job (id, epoch)
    -- A copy of the message may have been started.
    WHERE d.id = job.id AND d.claim_epoch = job.epoch AND d.started_epoch < job.epoch
      AND d.claimed_until IS NOT NULL
""")

_ABANDON = text("""
    UPDATE tokenfleet.webhook_deliveries d SET claimed_until = NULL
    FROM unnest(CAST(:ids AS bigint[]), CAST(:epochs AS bigint[])) AS job (id, epoch)
    WHERE d.id = job.id AND d.claim_epoch = job.epoch
""")

_SETTLE = text("""
    WITH i AS MATERIALIZED (
        SELECT * FROM unnest(CAST(:ids AS bigint[]), CAST(:epochs AS bigint[]), CAST(:states AS text[]),
            CAST(:waits AS float8[]), CAST(:statuses AS int[]), CAST(:errors AS text[]), CAST(:durations AS int[]),
            CAST(:moments AS timestamptz[]))
        AS i (id, epoch, state, wait, status, error, duration_ms, at)
    ), settled AS (
        UPDATE tokenfleet.webhook_deliveries d
        SET state = i.state, attempts = d.attempts + 1, claimed_until = NULL,
            next_attempt_at = CASE WHEN i.state = 'pending' THEN clock_timestamp() + i.wait * interval '1 s' END,
            finished_at = CASE WHEN i.state <> 'pending' THEN clock_timestamp() END,
            last_status = i.status, last_error = i.error, last_duration_ms = i.duration_ms
        FROM i WHERE d.id = i.id AND d.claim_epoch = i.epoch AND d.state = 'pending'
        RETURNING d.id, d.endpoint_id, d.subject, d.sequence, d.state
    ), log AS (
        INSERT INTO tokenfleet.webhook_attempts (delivery_id, at, status, error, duration_ms)
        SELECT id, at, status, error, duration_ms FROM i
    ), next AS (
        UPDATE tokenfleet.webhook_deliveries n SET next_attempt_at = clock_timestamp()
        FROM settled s CROSS JOIN LATERAL (
            SELECT w.id FROM tokenfleet.webhook_deliveries w
            WHERE w.endpoint_id = s.endpoint_id AND w.subject = s.subject AND w.state = 'pending'
              -- Not by its sequence: a replay may have gone before an event that was being told meanwhile.
              AND w.id <> s.id
            ORDER BY w.sequence LIMIT 1) following
        WHERE s.state <> 'pending' AND n.id = following.id
    )
    SELECT count(*) FROM settled
""")


@dataclass(frozen=True, slots=True)
class Delivery:
    """One delivery whose claim was just started by this process: all that is needed to send it. Secrets are sealed."""

    delivery_id: DeliveryId
    epoch: Epoch
    endpoint_id: EndpointId
    url: str
    secrets: tuple[tuple[int, bytes], ...]
    """Generation and secret of all that sign now, the newest first."""
    event_id: UUID
    event_type: str
    payload: str
    """JSON, as Postgres writes it: parsing it and writing it again took 12 us a delivery, for nothing."""
    created_at: datetime
    attempts: int
    """Before this one."""
    queued_at: datetime
    """When it was put in line; ``created_at`` is the event's."""
    database_now: datetime


@dataclass(frozen=True, slots=True)
class Result:
    """What came of one attempt at a delivery."""

    delivery_id: DeliveryId
    epoch: Epoch
    endpoint_id: EndpointId
    verdict: Verdict
    status: int | None
    duration_ms: int
    at: datetime


def claim_due(
    connection: Connection, *, claim: timedelta, at_once: int = CLAIMED_AT_ONCE
) -> list[tuple[DeliveryId, Epoch]]:
    """Claim due deliveries of every endpoint within its window, the most urgent first. Commit before publishing."""
    rows = connection.execute(_CLAIM, {"claim": claim, "at_once": at_once}).all()
    rows = sorted(rows, key=lambda row: row.next_attempt_at)
    return [(DeliveryId(row.id), Epoch(row.claim_epoch)) for row in rows]


def start(connection: Connection, job: DeliveryJob, *, claim: timedelta) -> list[Delivery]:
    """Start those of ``job`` whose claim is still the newest one, unexpired and not yet started.

    The claim is renewed for ``claim``. What is left out because its endpoint is disabled or spared now is for
    :func:`release`.
    """
    return [
        Delivery(
            delivery_id=DeliveryId(row.id),
            epoch=Epoch(row.claim_epoch),
            endpoint_id=EndpointId(row.endpoint_id),
            url=row.url,
            secrets=tuple(zip(row.generations, map(bytes, row.secrets), strict=True)),
            event_id=row.event_id,
            event_type=row.event_type,
            payload=row.payload,
            created_at=row.created_at,
            attempts=row.attempts,
            queued_at=row.queued_at,
            database_now=row.database_now,
        )
        for row in connection.execute(_START, _pairs(job) | {"claim": claim})
    ]


def release(connection: Connection, job: DeliveryJob, *, wait: timedelta = timedelta(0)) -> None:
    """Give back claims that were not started; they are due again after ``wait``."""
    connection.execute(_RELEASE, _pairs(job) | {"wait": wait})


def abandon(connection: Connection, started: Sequence[Delivery]) -> None:
    """Give back claims that were started and under which nothing was sent."""
    given = sorted((each.delivery_id, each.epoch) for each in started)
    connection.execute(
        _ABANDON, {"ids": [each for each, _ in given], "epochs": [epoch for _, epoch in given]}
    )


def record_test(connection: Connection, event_id: UUID, result: Result) -> None:
    """Write a test event that was sent at once into the log, as a delivery that is finished with ``result``."""
    connection.execute(
        _RECORD,
        {
            "endpoint_id": result.endpoint_id,
            "event_id": event_id,
            "state": result.verdict.state.value,
            "status": result.status,
            "error": result.verdict.error,
            "duration_ms": result.duration_ms,
            "at": result.at,
        },
    )


def settle(connection: Connection, results: Sequence[Result]) -> int:
    """Write what came of attempts, move up who waited for those that are finished, and log each attempt.

    A result under a claim that somebody else holds by now is logged and changes nothing. Returns how many counted.
    """
    connection.execute(text("SELECT pg_advisory_xact_lock_shared(:key)"), {"key": ORDER_LOCK})
    ordered = sorted(results, key=lambda each: each.delivery_id)
    count: int = connection.execute(
        _SETTLE,
        {
            "ids": [each.delivery_id for each in ordered],
            "epochs": [each.epoch for each in ordered],
            "states": [each.verdict.state.value for each in ordered],
            "waits": [_seconds(each.verdict.wait) for each in ordered],
            "statuses": [each.status for each in ordered],
            "errors": [each.verdict.error for each in ordered],
            "durations": [each.duration_ms for each in ordered],
            "moments": [each.at for each in ordered],
        },
    ).scalar_one()
    return count


def _seconds(wait: timedelta | None) -> float | None:
    return None if wait is None else wait.total_seconds()


def _pairs(job: DeliveryJob) -> dict[str, Any]:
    pairs = sorted(job.deliveries)
    return {"ids": [each for each, _ in pairs], "epochs": [epoch for _, epoch in pairs]}
