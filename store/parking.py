"""Accounts that an incident has set apart: parked, sampled, and given back when it is resolved.

A parked account keeps its status and its tokens; ``next_refresh_at`` is NULL and ``incident_id`` says why. So nobody
asks about it but the samples, and nobody is told. Invariants kept here:

* Whoever is set apart comes back: the schedulers go on with a resolved incident, :data:`GIVEN_BACK_AT_ONCE` accounts
  in a transaction, until nobody names it any more. A scheduler that dies in between leaves the rest to the next.
* Nobody is waited for while a row of many is locked: rows that somebody else has are passed over until the next
  round, and so is an account whose answer is awaited. So giving back never deadlocks with answers and imports.

The statements rely on ``ix_refresh_schedule_incident`` and the primary keys.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import Connection, text

from store import incidents, transitions
from store.answers import lists
from store.claiming import CLAIMED, Claim
from store.incidents import Incident, Resolution
from store.rejection import Rejection
from store.requests import ANSWERED, told
from store.transitions import Move
from tokenfleet.account import Trigger
from tokenfleet.jobs import AccountId, Epoch
from tokenfleet.policy import UNSETTLED

GIVEN_BACK_AT_ONCE: Final = 2000
URGENT: Final = timedelta(seconds=60)
"""An account that is given back is due this long before its token expires, or now: the most urgent is asked first."""

_PARK = text(f"""
    WITH i AS MATERIALIZED (
        SELECT * FROM unnest(CAST(:account_id AS bigint[]), CAST(:incident_id AS bigint[]),
            CAST(:epoch AS bigint[]), CAST(:generation AS bigint[]), CAST(:reason AS text[]),
            CAST(:code AS text[]), CAST(:job_id AS uuid[]), CAST(:duration_ms AS int[]))
        AS i (account_id, incident_id, epoch, generation, reason, code, job_id, duration_ms)
    ), parked AS (
        UPDATE tokenfleet.refresh_schedule s
        SET next_refresh_at = NULL, incident_id = i.incident_id, last_error = i.reason,
            failing_since = COALESCE(s.failing_since, now()), attempts = s.attempts + 1, probing = false, {ANSWERED}
        FROM i WHERE s.account_id = i.account_id
          -- Not one that is set apart already and was not asked again: this is written for the second time.
          AND (s.incident_id IS NULL OR s.next_refresh_at IS NOT NULL)
        RETURNING s.account_id, s.answered_request
    ), history AS (
        INSERT INTO tokenfleet.account_events
            (account_id, kind, code, generation, epoch, job_id, duration_ms, actor, detail)
        SELECT i.account_id, 'refresh.grant_rejected', i.code, i.generation, i.epoch, i.job_id, i.duration_ms,
               CAST(:actor AS text), jsonb_build_object('incident', i.incident_id, 'reason', i.reason)
        FROM i JOIN parked USING (account_id)
    )
    SELECT {told("account_id", "generation", "answered_request")}
    FROM parked JOIN i USING (account_id) WHERE answered_request IS NOT NULL
""")

_ADOPT_FLIPPED = text("""
    UPDATE tokenfleet.refresh_schedule s SET incident_id = :incident_id
    FROM tokenfleet.accounts a
    WHERE a.app_id = :app_id AND a.status = 'needs_reauth'
      -- A transaction that began before the window's first one may have flipped after it.
      AND a.status_changed_at >= CAST(:since AS timestamptz) - interval '1 minute'
      AND s.account_id = a.id AND s.incident_id IS NULL AND s.next_refresh_at IS NULL
""")

_CHOOSE = text("""
    WITH ends AS (
        SELECT min(account_id) AS first, max(account_id) AS last
        FROM tokenfleet.refresh_schedule WHERE incident_id = :incident_id
    ), start AS (
        -- Volatile, so each row has a chance of its own; from ends that are no account's the search goes round.
        SELECT first + floor(random() * (last - first + 1))::bigint AS account_id
        FROM ends, generate_series(1, CAST(:count AS int)) WHERE first IS NOT NULL
    )
    SELECT DISTINCT near.account_id
    FROM start CROSS JOIN LATERAL (
        SELECT s.account_id FROM tokenfleet.refresh_schedule s
        WHERE s.incident_id = :incident_id AND s.account_id >= start.account_id
          AND (s.claimed_until IS NULL OR s.claimed_until <= now())
        ORDER BY s.account_id LIMIT 1
    ) near
""")

_FIRST = text("""
    SELECT s.account_id FROM tokenfleet.refresh_schedule s
    WHERE s.incident_id = :incident_id AND (s.claimed_until IS NULL OR s.claimed_until <= now())
    ORDER BY s.account_id LIMIT :count
""")

_CLAIM_SAMPLES = text(f"""
    WITH picked AS (
        SELECT s.account_id FROM tokenfleet.refresh_schedule s
        WHERE s.account_id = ANY (CAST(:account_ids AS bigint[])) AND s.incident_id = :incident_id
            AND (s.claimed_until IS NULL OR (s.claimed_until <= now()
                AND (CAST(:take_over AS boolean) OR s.started_epoch < s.claim_epoch)))
        FOR UPDATE SKIP LOCKED
    )
    UPDATE tokenfleet.refresh_schedule s
    -- A refresh, not a probe of the access token: only that is an answer to what was rejected.
    SET next_refresh_at = LEAST(s.next_refresh_at, now()), probing = false, {CLAIMED}
    FROM picked WHERE s.account_id = picked.account_id
    RETURNING s.app_id, s.account_id, s.claim_epoch, s.next_refresh_at
""")

_HAS_MEMBERS = text("""
    SELECT EXISTS (SELECT FROM tokenfleet.refresh_schedule WHERE incident_id = :incident_id)
""")

_GIVE_BACK = text("""
    WITH member AS (
        SELECT s.account_id FROM tokenfleet.refresh_schedule s
        WHERE s.incident_id = :incident_id AND (s.claimed_until IS NULL OR s.claimed_until <= now())
        ORDER BY s.account_id LIMIT :count
        FOR UPDATE SKIP LOCKED
    )
    UPDATE tokenfleet.refresh_schedule s
    SET incident_id = NULL, probing = false,
        next_refresh_at = CASE WHEN a.status IN ('connecting', 'active', 'needs_reauth')
            THEN LEAST(s.next_refresh_at, now(), t.expires_at - CAST(:urgent AS interval)) END
    FROM member
    JOIN tokenfleet.accounts a ON a.id = member.account_id
    JOIN tokenfleet.token_sets t ON t.account_id = member.account_id
    WHERE s.account_id = member.account_id
    RETURNING s.account_id
""")

_LOCK_MEMBERS = text("""
    SELECT t.account_id
    FROM tokenfleet.token_sets t JOIN tokenfleet.refresh_schedule s ON s.account_id = t.account_id
    WHERE s.incident_id = :incident_id AND (s.claimed_until IS NULL OR s.claimed_until <= now())
    ORDER BY t.account_id LIMIT :count
    FOR UPDATE OF t SKIP LOCKED
""")

_STILL_MEMBERS = text("""
    SELECT s.account_id, s.last_error,
           -- A worker of the release before saved its answer, and does not know the mark.
           a.status = 'active' AND s.next_refresh_at IS NOT NULL AND s.failing_since IS NULL AS is_well
    FROM tokenfleet.refresh_schedule s JOIN tokenfleet.accounts a ON a.id = s.account_id
    WHERE s.account_id = ANY (CAST(:account_ids AS bigint[])) AND s.incident_id = :incident_id
    ORDER BY s.account_id
""")

_UNMARK = text("""
    UPDATE tokenfleet.refresh_schedule SET incident_id = NULL
    WHERE account_id = ANY (CAST(:account_ids AS bigint[]))
""")

_ONE_MORE_TURN = text("""
    UPDATE tokenfleet.provider_incidents SET sample_at = now()
    WHERE id = ANY (CAST(:incident_ids AS bigint[])) AND resolved_at IS NOT NULL AND sample_at IS NULL
""")

_LAST_TURN = text("""
    UPDATE tokenfleet.provider_incidents SET sample_at = CASE WHEN CAST(:more AS boolean) THEN now() END
    WHERE id = :incident_id AND resolved_at IS NOT NULL
""")


def park(
    connection: Connection,
    rejections: Sequence[Rejection],
    incident_of: Mapping[AccountId, int],
    *,
    actor: str,
) -> None:
    """Set accounts apart that were rejected during an incident, in one statement. Their status stays.

    The caller has locked their rows of ``token_sets``; each account comes once. Giving back does not wait for those
    locks, so an incident may have been left meanwhile as one that nobody names any more: it gets one more turn.
    """
    if rejections:
        parameters = lists(rejections, "account_id epoch generation reason code job_id duration_ms")
        parameters["incident_id"] = [incident_of[each.account_id] for each in rejections]
        connection.execute(_PARK, parameters | {"actor": actor})
        connection.execute(_ONE_MORE_TURN, {"incident_ids": sorted(set(incident_of.values()))})


def adopt_flipped(connection: Connection, incident: Incident, since: datetime) -> None:
    """Let an incident that has just opened have the accounts that were flipped since ``since`` as well.

    They stay ``needs_reauth`` until a refresh proves that they live.
    """
    parameters = {"incident_id": incident.incident_id, "app_id": incident.app_id, "since": since}
    connection.execute(_ADOPT_FLIPPED, parameters)


def choose_samples(connection: Connection, incident_id: int, *, count: int) -> list[AccountId]:
    """Return up to ``count`` accounts of an incident, picked at random, that nobody asks about now."""
    chosen = connection.execute(_CHOOSE, {"incident_id": incident_id, "count": count}).scalars().all()
    if not chosen:
        # The chances fell behind the last one that is free.
        chosen = connection.execute(_FIRST, {"incident_id": incident_id, "count": count}).scalars().all()
    return [AccountId(each) for each in chosen]


def claim_samples(
    connection: Connection,
    incident_id: int,
    account_ids: Sequence[AccountId],
    *,
    claim: timedelta,
    take_over: bool = True,
) -> list[Claim]:
    """Make accounts that an incident has set apart due, and claim them, as ``store.claiming`` does.

    An account that somebody else has locked, or that has left the incident meanwhile, is passed over.
    """
    rows = connection.execute(
        _CLAIM_SAMPLES,
        {
            "incident_id": incident_id,
            "account_ids": list(account_ids),
            "claim": claim,
            "take_over": take_over,
            "unsettled": UNSETTLED,
        },
    )
    return [Claim(AccountId(row.account_id), Epoch(row.claim_epoch), row.next_refresh_at) for row in rows]


def end_samples(
    connection: Connection, samples: Mapping[AccountId, int], *, proving: frozenset[AccountId], actor: str
) -> tuple[Incident, ...]:
    """Let accounts go that have succeeded, and end the incidents that this proves to be none; returns these.

    ``samples`` names the incident of each account that was saved while it was asked again. One proves something only
    if it is the answer to that newest question (``proving``); what was asked before the rejection does not.
    """
    if not samples:
        return ()
    connection.execute(_UNMARK, {"account_ids": sorted(samples)})
    proven = sorted({incident_id for each, incident_id in samples.items() if each in proving})
    resolved = [
        incidents.resolve(connection, incident_id, Resolution.RECOVERED, actor=actor)
        for incident_id in proven
    ]
    return tuple(incident for incident in resolved if incident is not None)


def has_members(connection: Connection, incident_id: int) -> bool:
    """Answer whether an incident has anybody set apart still."""
    return bool(connection.execute(_HAS_MEMBERS, {"incident_id": incident_id}).scalar_one())


def settle(connection: Connection, incident: Incident, *, actor: str) -> bool:
    """Give some accounts of a resolved incident back, or flip them when it was confirmed; True when some are left.

    Those who are given back are asked again, the most urgent first, each at its app's pace; whoever was flipped is
    told only when that succeeds. Those who are flipped are told once each.
    """
    if incident.resolution is Resolution.CONFIRMED:
        _flip(connection, incident, actor=actor)
    else:
        parameters = {"incident_id": incident.incident_id, "count": GIVEN_BACK_AT_ONCE, "urgent": URGENT}
        connection.execute(_GIVE_BACK, parameters)
    left = has_members(connection, incident.incident_id)
    connection.execute(_LAST_TURN, {"incident_id": incident.incident_id, "more": left})
    return left


def _flip(connection: Connection, incident: Incident, *, actor: str) -> None:
    some = {"incident_id": incident.incident_id, "count": GIVEN_BACK_AT_ONCE}
    locked = list(connection.execute(_LOCK_MEMBERS, some).scalars())
    # Read anew behind the locks: an import or an operator may have had them until now.
    rows = connection.execute(
        _STILL_MEMBERS, {"incident_id": incident.incident_id, "account_ids": locked}
    ).all()
    moves = [
        Move(AccountId(row.account_id), reason=row.last_error or incident.code, code=incident.code)
        for row in rows
        if not row.is_well
    ]
    connection.execute(_UNMARK, {"account_ids": [row.account_id for row in rows if row.is_well]})
    transitions.apply_each(connection, Trigger.GRANT_REJECTED, moves, actor=actor)
    transitions.unschedule(connection, [move.account_id for move in moves])
