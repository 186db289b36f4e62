"""How endpoints do, from what came of the attempts: spared while they fail, disabled when that lasts.

Invariant: a receiver that fails whatever it is sent costs one request now and then, however much waits for it. One
success ends that at once, and what had been put off for hours because of it is due again. A receiver that fails on one
event and takes the others is not spared: its successes say that it lives.

``failures`` counts in a row over all that is sent to an endpoint, by whatever worker; the numbers are those of
``tokenfleet.delivery_policy``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, text

from store.deliveries import Result
from tokenfleet.delivery_policy import (
    DISABLED_AFTER,
    LONGEST_REST,
    SHORTEST_REST,
    TOLERATED_FAILURES,
    DeliveryState,
    DisabledReason,
)
from tokenfleet.jobs import EndpointId

NOTED_EVERY_SECONDS: Final = 5
"""A healthy endpoint's row is written so often, not with every delivery."""

_NOTE = text(f"""
    WITH i AS MATERIALIZED (
        SELECT * FROM unnest(CAST(:ids AS bigint[]), CAST(:delivered AS int[]), CAST(:failed AS int[]),
            CAST(:means AS int[]), CAST(:errors AS text[]), CAST(:pauses AS float8[]), CAST(:gone AS boolean[]))
        AS i (id, delivered, failed, mean_ms, error, pause, is_gone)
    ), before AS MATERIALIZED (
        SELECT e.*, e.failures + i.failed AS failures_now, COALESCE(e.failing_since, now()) AS since
        FROM tokenfleet.webhook_endpoints e JOIN i ON i.id = e.id
        WHERE e.failures > 0 OR i.failed > 0 OR e.retry_at IS NOT NULL OR e.last_success_at IS NULL
           OR e.last_success_at < now() - interval '{NOTED_EVERY_SECONDS} s'
           OR i.mean_ms NOT BETWEEN e.mean_ms / 2 AND e.mean_ms * 2
        ORDER BY e.id
        FOR NO KEY UPDATE OF e
    ), judged AS (
        SELECT b.*, i.delivered, i.mean_ms AS mean_now, i.error, i.pause,
            CASE WHEN i.is_gone THEN 'gone'
                 WHEN i.delivered = 0 AND b.failures_now >= {TOLERATED_FAILURES}
                      AND b.since <= now() - interval '{DISABLED_AFTER.total_seconds()} s' THEN 'failing' END AS ends
        FROM before b JOIN i ON i.id = b.id
    ), noted AS (
        UPDATE tokenfleet.webhook_endpoints e
        SET failures = CASE WHEN j.delivered > 0 THEN 0 ELSE j.failures_now END,
            failing_since = CASE WHEN j.delivered > 0 THEN NULL ELSE j.since END,
            last_error = CASE WHEN j.delivered > 0 THEN NULL ELSE j.error END,
            last_success_at = CASE WHEN j.delivered > 0 THEN now() ELSE j.last_success_at END,
            mean_ms = (j.mean_ms + j.mean_now) / 2,
            retry_at = CASE
                WHEN j.pause IS NOT NULL THEN now() + j.pause * interval '1 s'
                WHEN j.delivered = 0 AND j.failures_now >= {TOLERATED_FAILURES} THEN now()
                    + least(greatest(extract(epoch FROM now() - j.since) / 2, {SHORTEST_REST.total_seconds()}),
                            {LONGEST_REST.total_seconds()}) * (0.75 + random() / 2) * interval '1 s' END,
            disabled_at = CASE WHEN j.ends IS NOT NULL THEN COALESCE(j.disabled_at, now()) ELSE j.disabled_at END,
            disabled_reason = COALESCE(j.disabled_reason, j.ends)
        FROM judged j WHERE e.id = j.id
    ), again AS (
        UPDATE tokenfleet.webhook_deliveries d SET next_attempt_at = now()
        FROM judged j
        WHERE j.delivered > 0 AND j.pause IS NULL AND j.retry_at IS NOT NULL AND d.endpoint_id = j.id
          AND d.next_attempt_at > now()
    )
    SELECT id, ends FROM judged WHERE ends IS NOT NULL AND disabled_at IS NULL
""")


@dataclass(slots=True)
class _Tally:
    delivered: int = 0
    failed: int = 0
    duration_ms: int = 0
    error: str | None = None
    pause: float | None = None
    is_gone: bool = False


def note(connection: Connection, results: Sequence[Result]) -> dict[EndpointId, DisabledReason]:
    """Note what these attempts say of their endpoints; returns those that are disabled by it, and why.

    In the transaction of ``store.deliveries.settle``, after it.
    """
    tallies: dict[EndpointId, _Tally] = defaultdict(_Tally)
    for result in results:
        tally, verdict = tallies[result.endpoint_id], result.verdict
        tally.duration_ms += result.duration_ms
        if verdict.state is DeliveryState.DELIVERED:
            tally.delivered += 1
        else:
            tally.failed += 1
            tally.error = verdict.error
        if verdict.pause is not None:
            tally.pause = max(tally.pause or 0.0, verdict.pause.total_seconds())
        tally.is_gone |= verdict.is_gone
    ordered = sorted(tallies.items())
    rows = connection.execute(
        _NOTE,
        {
            "ids": [endpoint_id for endpoint_id, _ in ordered],
            "delivered": [tally.delivered for _, tally in ordered],
            "failed": [tally.failed for _, tally in ordered],
            "means": [tally.duration_ms // (tally.delivered + tally.failed) for _, tally in ordered],
            "errors": [tally.error for _, tally in ordered],
            "pauses": [tally.pause for _, tally in ordered],
            "gone": [tally.is_gone for _, tally in ordered],
        },
    )
    return {EndpointId(row.id): DisabledReason(row.ends) for row in rows}
