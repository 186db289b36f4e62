"""Visits that presented no refresh token: what becomes of them, and the way from one of them to a refresh.

Invariants kept here:

* A visit changes no token and no status, and counts as no failure of the account's.
* A refresh that somebody asked for while a probe was under way is not lost: the visit then only gives back its claim.
* From a probe to a refresh there is one way, :func:`turn_to_refresh`: the claim is still ours, unexpired, and the
  generation is the one that was read. So a refresh after a dead probe passes the same fence as any other (G2), and
  has a whole claim's time.

The statements rely on the primary keys of their tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import Connection, text

from store import announcements, parking, transitions
from store.answers import lists
from store.incidents import Incident
from store.requests import told
from tokenfleet.jobs import AccountId, Epoch

_SETTLE = text(f"""
    WITH i AS MATERIALIZED (
        SELECT * FROM unnest(CAST(:account_id AS bigint[]), CAST(:epoch AS bigint[]),
            CAST(:generation AS bigint[]), CAST(:next_refresh_at AS timestamptz[]), CAST(:probing AS boolean[]),
            CAST(:was_probing AS boolean[]), CAST(:alive_at AS timestamptz[]), CAST(:kind AS text[]),
            CAST(:code AS text[]), CAST(:job_id AS uuid[]), CAST(:duration_ms AS int[]), CAST(:clears AS boolean[]))
        AS i (account_id, epoch, generation, next_refresh_at, probing, was_probing, alive_at, kind, code, job_id,
              duration_ms, clears)
    ), settled AS (
        UPDATE tokenfleet.refresh_schedule s
        SET next_refresh_at = CASE
                -- A sample that brought no word: another one is taken in its turn.
                WHEN s.incident_id IS NOT NULL AND NOT i.clears THEN NULL
                WHEN s.next_refresh_at IS NULL OR t.generation <> i.generation OR s.probing <> i.was_probing
                THEN s.next_refresh_at ELSE i.next_refresh_at END,
            probing = CASE
                WHEN t.generation <> i.generation OR s.probing <> i.was_probing THEN s.probing ELSE i.probing END,
            alive_at = CASE WHEN t.generation = i.generation THEN COALESCE(i.alive_at, s.alive_at)
                            ELSE s.alive_at END,
            attempts = CASE WHEN i.clears THEN 0 ELSE s.attempts END,
            doubts = CASE WHEN i.clears THEN 0 ELSE s.doubts END,
            unanswered = CASE WHEN i.clears THEN 0 ELSE s.unanswered END,
            failing_since = CASE WHEN i.clears THEN NULL ELSE s.failing_since END,
            last_error = CASE WHEN i.clears THEN NULL ELSE s.last_error END,
            quarantined = s.quarantined AND NOT i.clears,
            claimed_until = NULL,
            -- What was asked for meanwhile is still to come.
            requested_at = CASE WHEN s.probing <> i.was_probing THEN s.requested_at END,
            answered_request = CASE WHEN s.probing = i.was_probing THEN s.requested_at END
        FROM i JOIN tokenfleet.token_sets t ON t.account_id = i.account_id
        WHERE s.account_id = i.account_id AND s.claim_epoch = i.epoch AND s.claimed_until IS NOT NULL
        RETURNING s.account_id, s.incident_id, s.answered_request, t.generation AS now_generation
    ), history AS (
        INSERT INTO tokenfleet.account_events (account_id, kind, code, generation, epoch, job_id, duration_ms, actor)
        SELECT i.account_id, i.kind, i.code, i.generation, i.epoch, i.job_id, i.duration_ms, CAST(:actor AS text)
        FROM i JOIN settled USING (account_id) WHERE i.kind IS NOT NULL
    )
    SELECT account_id, incident_id, i.clears, {told("account_id", "now_generation", "answered_request")}
    FROM settled JOIN i USING (account_id)
    WHERE (incident_id IS NOT NULL AND i.clears) OR answered_request IS NOT NULL
""")

_TURN = text("""
    WITH turned AS (
        UPDATE tokenfleet.refresh_schedule s
        -- Now, so that who takes over after a death in between refreshes, and does not probe once more.
        SET probing = false, next_refresh_at = LEAST(s.next_refresh_at, now()),
            claimed_until = clock_timestamp() + CAST(:claim AS interval)
        FROM tokenfleet.token_sets t
        WHERE s.account_id = :account_id AND t.account_id = s.account_id AND t.generation = :generation
          AND s.claim_epoch = :epoch AND s.started_epoch = :epoch AND s.claimed_until > clock_timestamp()
          AND s.next_refresh_at IS NOT NULL
        RETURNING s.account_id
    ), history AS (
        INSERT INTO tokenfleet.account_events (account_id, kind, code, generation, epoch, job_id, actor)
        SELECT account_id, 'probe.dead', CAST(:code AS text), :generation, :epoch, CAST(:job_id AS uuid),
               CAST(:actor AS text)
        FROM turned WHERE CAST(:code AS text) IS NOT NULL
    )
    SELECT account_id FROM turned
""")


@dataclass(frozen=True, slots=True)
class Visited:
    """A visit that is over without a refresh: come again at ``next_refresh_at``.

    ``probing`` says what that visit will be, ``was_probing`` what this one was. ``kind`` and ``code`` are for the
    history, None when there is nothing to note. ``alive_at`` is when the access token was found to work.
    ``grant_ends_at`` is the end of the grant, if its customer has to be told now. ``clears`` says that the probe has
    found alive what is never renewed: that is its success, and what failed before is forgotten.
    """

    account_id: AccountId
    epoch: Epoch
    generation: int
    next_refresh_at: datetime
    probing: bool
    was_probing: bool
    kind: str | None
    code: str | None
    alive_at: datetime | None
    grant_ends_at: datetime | None
    job_id: UUID
    duration_ms: int
    clears: bool = False


def settle(connection: Connection, visits: Sequence[Visited], *, actor: str) -> tuple[Incident, ...]:
    """Write visits; returns the incidents that one of them has ended.

    One whose claim has moved on is ignored; what has been asked for meanwhile stays asked for.
    """
    names = (
        "account_id epoch generation next_refresh_at probing was_probing alive_at kind code job_id "
        "duration_ms clears"
    )
    visits = sorted(visits, key=lambda visit: visit.account_id)
    ends = {visit.account_id: visit.grant_ends_at for visit in visits if visit.grant_ends_at is not None}
    transitions.lock(connection, [visit.account_id for visit in visits])
    if ends:
        announcements.tell_reauth_upcoming(connection, ends, actor=actor)
    rows = connection.execute(_SETTLE, lists(visits, names) | {"actor": actor})
    samples = {
        AccountId(row.account_id): row.incident_id
        for row in rows
        if row.incident_id is not None and row.clears
    }
    return parking.end_samples(connection, samples, proving=frozenset(samples), actor=actor)


def turn_to_refresh(
    connection: Connection,
    account_id: AccountId,
    epoch: Epoch,
    generation: int,
    *,
    claim: timedelta,
    code: str | None,
    job_id: UUID,
    actor: str,
) -> bool:
    """Answer whether the refresh token of ``generation`` may be presented under this claim, renewed for ``claim``.

    ``code`` is what the probe met, None when the visit has become a refresh without one. May be repeated when the
    commit's outcome is unknown.
    """
    parameters = {
        "account_id": account_id,
        "epoch": epoch,
        "generation": generation,
        "claim": claim,
        "code": code,
        "job_id": job_id,
        "actor": actor,
    }
    # First, so that an answer which lands now is seen: its generation is not the one that was read.
    transitions.lock(connection, [account_id])
    return connection.execute(_TURN, parameters).one_or_none() is not None
