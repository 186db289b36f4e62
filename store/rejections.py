"""Rejections, written: who is flipped, who is set apart, and whose rejection means nothing any more.

Invariants kept here:

* A rejection counts only while the generation it was asked with is still the current one: where it has moved a
  sibling won, its tokens are adopted, and only the claim is given back.
* A late word counts although the claim has moved on: whoever holds the newer one must not present what was rejected,
  and a token that was rejected does not come to life again.
* A paused account stays paused, and nobody is told: an operator took it in hand. The word is written down, for him to
  see when he resumes it; then it is asked once more, and what is said then counts.
* Nobody is flipped that the guard does not let pass (``store.guard``), and nobody is told twice.
* Locks are taken in one order: token sets, apps, then accounts and schedule.

However many rejections arrive together, the number of statements is the same.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, text

from store import guard, parking, transitions
from store.answers import lists
from store.guard import Heard
from store.incidents import Incident
from store.rejection import Rejection
from store.transitions import Move
from tokenfleet.account import REFRESHABLE, Trigger
from tokenfleet.jobs import AccountId, AppId
from tokenfleet_client.contract import AccountStatus

_LOCK_GENERATION = text("""
    SELECT t.account_id FROM tokenfleet.token_sets t
    JOIN unnest(CAST(:account_id AS bigint[]), CAST(:generation AS bigint[])) AS i (account_id, generation)
        USING (account_id)
    WHERE t.generation = i.generation
    ORDER BY t.account_id
    FOR UPDATE OF t
""")

_STANDING = text("""
    SELECT a.id, a.app_id, a.status, s.incident_id
    FROM tokenfleet.accounts a JOIN tokenfleet.refresh_schedule s ON s.account_id = a.id
    WHERE a.id = ANY (CAST(:account_ids AS bigint[]))
""")

_OFF_SCHEDULE = text("""
    UPDATE tokenfleet.refresh_schedule SET next_refresh_at = NULL
    WHERE account_id = ANY (CAST(:account_ids AS bigint[]))
""")

_NOTE_PAUSED = text("""
    WITH noted AS (
        UPDATE tokenfleet.refresh_schedule s
        SET last_error = i.reason, failing_since = COALESCE(s.failing_since, now()), attempts = s.attempts + 1
        FROM unnest(CAST(:account_id AS bigint[]), CAST(:epoch AS bigint[]), CAST(:generation AS bigint[]),
                    CAST(:reason AS text[]), CAST(:code AS text[]), CAST(:job_id AS uuid[]),
                    CAST(:duration_ms AS int[]))
            AS i (account_id, epoch, generation, reason, code, job_id, duration_ms)
        -- Written for the second time, it has been released.
        WHERE s.account_id = i.account_id AND s.claim_epoch = i.epoch AND s.claimed_until IS NOT NULL
        RETURNING i.*
    )
    INSERT INTO tokenfleet.account_events
        (account_id, kind, code, generation, epoch, job_id, duration_ms, actor, detail)
    SELECT account_id, 'refresh.grant_rejected', code, generation, epoch, job_id, duration_ms, CAST(:actor AS text),
           jsonb_build_object('reason', reason, 'status', 'paused')
    FROM noted
""")

_RELEASE = text("""
    UPDATE tokenfleet.refresh_schedule s
    SET claimed_until = NULL,
        -- A late answer won, and its predecessor was rejected when we presented it again. A strict provider ends the
        -- grant for that: what it rejects next is our loss, not the customer's doing.
        unanswered = s.unanswered + CASE WHEN t.generation > i.generation THEN 1 ELSE 0 END
    FROM unnest(CAST(:account_id AS bigint[]), CAST(:epoch AS bigint[]), CAST(:generation AS bigint[]))
        AS i (account_id, epoch, generation)
    JOIN tokenfleet.token_sets t ON t.account_id = i.account_id
    WHERE s.account_id = i.account_id AND s.claim_epoch = i.epoch
""")


@dataclass(frozen=True, slots=True)
class Rejected:
    """What became of rejections: accounts that were flipped, those that were set apart, incidents that opened."""

    flipped: frozenset[AccountId]
    parked: frozenset[AccountId]
    opened: tuple[Incident, ...]


def reject(connection: Connection, rejections: Sequence[Rejection], *, actor: str) -> Rejected:
    """Flip accounts to ``needs_reauth`` whose generation has not moved, as far as the guard lets them pass.

    The others of them are parked with their app's incident. Writing twice does no harm: nobody is told twice, and the
    claims are given back once.
    """
    pairs = lists(rejections, "account_id epoch generation")
    current = set(connection.execute(_LOCK_GENERATION, pairs).scalars())
    # Read behind the locks: a status changes only under them.
    standing = {row.id: row for row in connection.execute(_STANDING, {"account_ids": sorted(current)})}
    once = {each.account_id: each for each in reversed(rejections) if each.account_id in standing}
    words = [once[account_id] for account_id in sorted(once)]
    in_time = [each for each in rejections if once.get(each.account_id) is each]
    verdicts = guard.admit(connection, _heard(in_time, standing)) if words else {}
    incident_of: dict[AccountId, int] = {}
    flipping: list[Rejection] = []
    paused: list[Rejection] = []
    for word in words:
        row = standing[word.account_id]
        if row.status not in REFRESHABLE:
            # During an incident the word is worth nothing: it says nothing of this grant.
            if row.status == AccountStatus.PAUSED and verdicts[AppId(row.app_id)].incident_id is None:
                paused.append(word)
            continue
        # One that is set apart already stays with its incident, resolved or not: it is given back, or flipped, there.
        incident_id = row.incident_id or verdicts[AppId(row.app_id)].incident_id
        if incident_id is None:
            flipping.append(word)
        else:
            incident_of[word.account_id] = incident_id
    flipped = transitions.apply_each(
        connection, Trigger.GRANT_REJECTED, [_move(word) for word in flipping], actor=actor
    )
    transitions.unschedule(connection, sorted(flipped))
    parked = [word for word in words if word.account_id in incident_of]
    parking.park(connection, parked, incident_of, actor=actor)
    if paused:
        names = "account_id epoch generation reason code job_id duration_ms"
        connection.execute(_NOTE_PAUSED, lists(paused, names) | {"actor": actor})
    connection.execute(_OFF_SCHEDULE, {"account_ids": sorted(current)})
    connection.execute(_RELEASE, pairs)
    opened = tuple(verdict.opened for verdict in verdicts.values() if verdict.opened is not None)
    return Rejected(flipped, frozenset(incident_of), opened)


def _heard(words: Sequence[Rejection], standing: Mapping[int, Any]) -> dict[AppId, Heard]:
    """Return what ``words``, in the order in which they came in, say about each app."""
    heard: dict[AppId, Heard] = defaultdict(Heard)
    for word in words:
        row = standing[word.account_id]
        app = heard[AppId(row.app_id)]
        if word.after_success:
            app.after_success = True
            app.rejected = 0
        app.codes[word.code] += 1
        if not word.explained:
            app.rejected += 1
            app.counted += row.status in REFRESHABLE and row.incident_id is None
    return dict(heard)


def _move(word: Rejection) -> Move:
    return Move(
        word.account_id,
        reason=word.reason,
        code=word.code,
        epoch=word.epoch,
        job_id=word.job_id,
        duration_ms=word.duration_ms,
    )
