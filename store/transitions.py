"""Moving accounts between statuses: one guarded update per legal move, with its history and outbox rows.

Invariant (G5): the row that changes, the history row and the event are one statement. Whoever finds the
account in another status changes nothing and tells nobody.

Whoever moves an account first locks its row of ``token_sets``, which every answer and every import locks first
too. So all that happens to one account happens in turns, and locks are always taken in one order: token set,
account, schedule.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import Connection, text

from store.answers import lists
from store.requests import ANSWERED, told
from store.schedule import WAKE_CHANNEL
from tokenfleet.account import EXPORTED, TRANSITIONS, Trigger
from tokenfleet.jobs import AccountId, Epoch
from tokenfleet.policy import QUARANTINE_DELAY

_LOCK = text("""
    SELECT account_id FROM tokenfleet.token_sets
    WHERE account_id = ANY (CAST(:account_ids AS bigint[]))
    ORDER BY account_id
    FOR UPDATE
""")

_MOVE = text("""
    WITH i AS MATERIALIZED (
        SELECT * FROM unnest(CAST(:account_id AS bigint[]), CAST(:reason AS text[]), CAST(:code AS text[]),
            CAST(:epoch AS bigint[]), CAST(:job_id AS uuid[]), CAST(:duration_ms AS int[]))
        AS i (account_id, reason, code, epoch, job_id, duration_ms)
    ), moved AS (
        UPDATE tokenfleet.accounts a
        SET status = :target, status_reason = i.reason, status_changed_at = now()
        FROM i WHERE a.id = i.account_id AND a.status = :source
        RETURNING a.id, a.provider, a.environment, a.external_id, a.tenant, i.reason, i.code, i.epoch, i.job_id,
                  i.duration_ms
    ), history AS (
        INSERT INTO tokenfleet.account_events
            (account_id, kind, code, epoch, job_id, duration_ms, actor, status_from, status_to, detail)
        SELECT id, 'account.' || CAST(:trigger AS text), code, epoch, job_id, duration_ms, CAST(:actor AS text),
               CAST(:source AS text), CAST(:target AS text),
               CASE WHEN reason IS NULL THEN NULL ELSE jsonb_build_object('reason', reason) END
        FROM moved
    ), told AS (
        INSERT INTO tokenfleet.outbox (account_id, event_type, payload)
        SELECT id, CAST(:event AS text), jsonb_build_object(
            'id', id, 'integration_name', provider, 'external_id', external_id, 'tenant', tenant,
            'environment', environment, 'status', CAST(:target AS text),
            'last_error', reason)
        FROM moved WHERE CAST(:event AS text) IS NOT NULL
    )
    SELECT id FROM moved
""")

_RESCHEDULE = text("""
    UPDATE tokenfleet.refresh_schedule s
    SET next_refresh_at = i.next_refresh_at, attempts = 0, doubts = 0, unanswered = 0, failing_since = NULL,
        last_error = NULL, quarantined = false, incident_id = NULL
    FROM unnest(CAST(:account_ids AS bigint[]), CAST(:moments AS timestamptz[]))
        AS i (account_id, next_refresh_at)
    WHERE s.account_id = i.account_id
""")

_UNSCHEDULE = text(f"""
    WITH unscheduled AS (
        UPDATE tokenfleet.refresh_schedule s SET next_refresh_at = NULL, incident_id = NULL, {ANSWERED}
        WHERE s.account_id = ANY (CAST(:account_ids AS bigint[]))
        RETURNING s.account_id, s.answered_request
    )
    SELECT {told("account_id", "generation", "answered_request")}
    FROM unscheduled JOIN tokenfleet.token_sets USING (account_id) WHERE answered_request IS NOT NULL
""")

_VERIFY = text("""
    UPDATE tokenfleet.refresh_schedule s
    -- Of a revoked account what came in is revoked, which waits for refreshes as a probe does: store.revocations.
    SET next_refresh_at = now(), incident_id = NULL, probing = a.status = 'revoked',
        failing_since = CASE WHEN a.status = 'revoked' THEN now() ELSE s.failing_since END
    FROM tokenfleet.accounts a
    WHERE a.id = s.account_id AND (a.status IN ('needs_reauth', 'revoked') OR s.incident_id IS NOT NULL)
      AND s.account_id = ANY (CAST(:account_ids AS bigint[])) AND (s.next_refresh_at IS NULL OR a.status = 'revoked')
""")

_RESUME = text("""
    UPDATE tokenfleet.refresh_schedule s
    -- Not now if its successor lies in a journal: what Postgres holds for it is spent.
    SET next_refresh_at = now() + CASE WHEN s.last_error LIKE 'answer_refused%' THEN CAST(:wait AS interval)
                                       ELSE interval '0' END,
        quarantined = COALESCE(s.last_error, '') LIKE 'answer_refused%', probing = false
    WHERE s.account_id = ANY (CAST(:account_ids AS bigint[])) AND s.next_refresh_at IS NULL
""")


_EXPORTED = text("""
    SELECT id FROM tokenfleet.accounts
    WHERE id = ANY (CAST(:account_ids AS bigint[])) AND status = 'paused' AND starts_with(status_reason, :prefix)
""")


@dataclass(frozen=True, slots=True)
class Move:
    """One account that is to be moved, and what its history and its event say about it."""

    account_id: AccountId
    reason: str | None
    code: str | None = None
    epoch: Epoch | None = None
    job_id: UUID | None = None
    duration_ms: int | None = None


def apply(
    connection: Connection,
    trigger: Trigger,
    account_ids: Sequence[AccountId],
    *,
    actor: str,
    reason: str | None,
    code: str | None = None,
    epoch: Epoch | None = None,
    job_id: UUID | None = None,
    duration_ms: int | None = None,
) -> frozenset[AccountId]:
    """Perform the legal moves of ``trigger`` on ``account_ids``; returns the accounts that moved.

    The caller has locked their rows of ``token_sets`` (:func:`lock`, or an update of them).
    ``actor`` is the process or person who did it; ``reason`` is stored with the status and sent in the
    event as ``last_error``.
    """
    moves = [Move(each, reason, code, epoch, job_id, duration_ms) for each in account_ids]
    return apply_each(connection, trigger, moves, actor=actor)


def apply_each(
    connection: Connection, trigger: Trigger, moves: Sequence[Move], *, actor: str
) -> frozenset[AccountId]:
    """Do the same as :func:`apply` for accounts that have reasons of their own; each account comes once."""
    moved: set[AccountId] = set()
    for (source, known), move in TRANSITIONS.items():
        if known is not trigger:
            continue
        remaining = [each for each in moves if each.account_id not in moved]
        if not remaining:
            break
        rows = connection.execute(
            _MOVE,
            lists(remaining, "account_id reason code epoch job_id duration_ms")
            | {
                "source": source.value,
                "target": move.target.value,
                "event": move.event.value if move.event else None,
                "trigger": trigger.value,
                "actor": actor,
            },
        )
        moved |= {AccountId(row.id) for row in rows}
    return frozenset(moved)


def lock(connection: Connection, account_ids: Sequence[AccountId]) -> None:
    """Wait for whatever happens to these accounts now, and let nothing else happen to them until the commit."""
    connection.execute(_LOCK, {"account_ids": list(account_ids)})


def reschedule(connection: Connection, moments: Mapping[AccountId, datetime]) -> None:
    """Put accounts back on the schedule with a clean slate, each at its moment."""
    if moments:
        parameters = {"account_ids": list(moments), "moments": list(moments.values())}
        connection.execute(_RESCHEDULE, parameters)


def unschedule(connection: Connection, account_ids: Sequence[AccountId]) -> None:
    """Take accounts off the schedule: nobody asks about them until they are rescheduled. No incident has them."""
    connection.execute(_UNSCHEDULE, {"account_ids": list(account_ids)})


def verify(connection: Connection, account_ids: Sequence[AccountId]) -> None:
    """Let those of ``account_ids`` that were given up, revoked, or set apart by an incident, be asked once more.

    An answer has come in since; it says nothing of the others that the incident has. Of a revoked account its new
    tokens are still to be revoked.
    """
    connection.execute(_VERIFY, {"account_ids": list(account_ids)})


def pause(
    connection: Connection, account_ids: Sequence[AccountId], *, actor: str, reason: str | None
) -> frozenset[AccountId]:
    """Stop refreshing accounts until they are resumed; returns those that were running."""
    lock(connection, account_ids)
    moved = apply(connection, Trigger.PAUSED, account_ids, actor=actor, reason=reason)
    unschedule(connection, sorted(moved))
    return moved


def resume(
    connection: Connection, account_ids: Sequence[AccountId], *, actor: str, exported: bool = False
) -> frozenset[AccountId]:
    """Refresh paused accounts again, at once, and wake the schedulers on commit; returns those that were paused.

    A quarantine is lifted, as by a request: whoever resumes an account wants to know how it is. But where an answer
    could not be saved (``store.settlement.quarantine``) it begins anew. ``exported`` is whether also those are resumed
    that were given to another fleet (``store.export``).
    """
    lock(connection, account_ids)
    if not exported:
        elsewhere = {"account_ids": list(account_ids), "prefix": EXPORTED}
        gone = frozenset(connection.execute(_EXPORTED, elsewhere).scalars())
        account_ids = [each for each in account_ids if each not in gone]
    moved = apply(connection, Trigger.RESUMED, account_ids, actor=actor, reason=None)
    connection.execute(_RESUME, {"account_ids": sorted(moved), "wait": QUARANTINE_DELAY})
    if moved:
        connection.execute(text("SELECT pg_notify(:channel, '')"), {"channel": WAKE_CHANNEL})
    return moved
