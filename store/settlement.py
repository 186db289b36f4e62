"""What becomes of an attempt, written for many accounts in one transaction.

Invariants kept here:

* An answer counts only while the generation it was asked with is still the current one (compare-and-set).
  A good answer that comes too late is kept in ``token_candidates``: it may be the only live successor (G3).
* Everything is idempotent: a transaction whose commit is unknown, and a journal that is replayed, may be
  written again. ``(account, epoch)`` identifies an attempt for ever, because an epoch is started once.
* A status changes only along :data:`tokenfleet.account.TRANSITIONS`, in a guarded update, together with its
  history row and its outbox row (G5).

The statements rely on the primary keys of their tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import Connection, text

from store import announcements, parking, transitions
from store.answers import COLUMNS, Part, SavedTokens, columns, lists
from store.incidents import Incident
from store.requests import ANSWERED, RETRY_AFTER, told
from tokenfleet.account import Trigger
from tokenfleet.jobs import AccountId, Epoch
from tokenfleet.policy import QUARANTINE_DELAY, UNSETTLED

SAVE = text(f"""
    WITH i AS MATERIALIZED (SELECT * FROM {COLUMNS}),
    saved AS (
        UPDATE tokenfleet.token_sets t
        SET generation = t.generation + 1, epoch = i.epoch, access_token = i.access_token,
            refresh_token = i.refresh_token, token_type = COALESCE(i.token_type, t.token_type), scope = i.scope,
            expires_at = i.expires_at, obtained_at = i.obtained_at,
            refresh_token_expires_at = i.refresh_token_expires_at, variables = t.variables || i.variables,
            learned_lifetime = COALESCE(i.learned_lifetime, t.learned_lifetime)
        FROM i WHERE t.account_id = i.account_id AND t.generation = i.generation
            -- The second part of a result only over its own first part: another answer may have that generation.
            AND (i.part <> 2 OR t.epoch = i.epoch)
        RETURNING t.account_id, t.generation AS saved_generation
    ), scheduled AS (
        UPDATE tokenfleet.refresh_schedule s
        SET next_refresh_at = CASE WHEN s.next_refresh_at IS NULL THEN NULL ELSE i.next_refresh_at END,
            claimed_until = CASE WHEN s.claim_epoch = i.epoch AND i.part <> 1 THEN NULL ELSE s.claimed_until END,
            attempts = CASE WHEN i.part <> 1 THEN 0 ELSE s.attempts END,
            doubts = CASE WHEN i.part <> 1 THEN 0 ELSE s.doubts END, unanswered = 0,
            failing_since = CASE WHEN i.part <> 1 THEN NULL ELSE s.failing_since END,
            last_error = CASE WHEN i.part <> 1 THEN NULL ELSE s.last_error END,
            quarantined = s.quarantined AND i.part = 1, probing = i.probing,
            expiry_told = s.expiry_told AND i.part = 1,
            requested_at = CASE WHEN i.part = 1 THEN s.requested_at END,
            answered_request = CASE WHEN i.part <> 1 THEN s.requested_at END
        FROM i JOIN saved USING (account_id) WHERE s.account_id = i.account_id
        RETURNING s.account_id, s.next_refresh_at IS NULL AS unscheduled, s.incident_id,
                  s.claim_epoch = i.epoch AS is_newest, s.answered_request, saved_generation
    ), history AS (
        INSERT INTO tokenfleet.account_events
            (account_id, kind, generation, epoch, job_id, duration_ms, actor)
        SELECT i.account_id, CASE WHEN i.part <> 1 THEN 'refresh.succeeded' ELSE 'steps.begun' END,
               i.generation + 1, i.epoch, i.job_id, i.duration_ms, CAST(:actor AS text)
        FROM i JOIN saved USING (account_id)
    )
    SELECT account_id, unscheduled, incident_id, is_newest,
           {told("account_id", "saved_generation", "answered_request")} AS told
    FROM scheduled
""")

_NOT_STARTED_SINCE = text("""
    SELECT s.account_id FROM tokenfleet.refresh_schedule s
    JOIN unnest(CAST(:account_id AS bigint[]), CAST(:epoch AS bigint[])) AS i (account_id, epoch) USING (account_id)
    WHERE s.started_epoch = i.epoch
    ORDER BY s.account_id
    FOR UPDATE OF s
""")

_ALREADY = text("""
    SELECT e.account_id, e.epoch FROM tokenfleet.account_events e
    JOIN unnest(CAST(:account_id AS bigint[]), CAST(:epoch AS bigint[])) AS i (account_id, epoch)
        USING (account_id, epoch)
    WHERE e.kind IN ('refresh.succeeded', 'refresh.lost_race', 'refresh.dropped', 'steps.begun')
      -- No answer is written before it is obtained: this spares the partitions of older days.
      AND e.at >= CAST(:since AS timestamptz) - interval '1 hour'
""")

_CANDIDATE = text(f"""
    WITH i AS MATERIALIZED (SELECT * FROM {COLUMNS}),
    kept AS (
        INSERT INTO tokenfleet.token_candidates
            (account_id, generation, epoch, access_token, refresh_token, token_type, scope, expires_at,
             obtained_at, refresh_token_expires_at, variables)
        SELECT i.account_id, i.generation + 1, i.epoch, i.access_token, i.refresh_token, i.token_type,
               i.scope, i.expires_at, i.obtained_at, i.refresh_token_expires_at, i.variables
        FROM i JOIN tokenfleet.accounts a ON a.id = i.account_id AND a.status <> 'revoked'
        ON CONFLICT DO NOTHING
        RETURNING account_id, generation, epoch
    ), released AS (
        UPDATE tokenfleet.refresh_schedule s SET claimed_until = NULL
        FROM i WHERE s.account_id = i.account_id AND s.claim_epoch = i.epoch
    )
    INSERT INTO tokenfleet.account_events (account_id, kind, generation, epoch, actor)
    SELECT account_id, 'refresh.lost_race', generation, epoch, CAST(:actor AS text) FROM kept
    UNION ALL
    -- The tokens of an account that was ended have been forgotten: no new one is stored.
    SELECT i.account_id, 'refresh.dropped', i.generation + 1, i.epoch, CAST(:actor AS text)
    FROM i JOIN tokenfleet.accounts a ON a.id = i.account_id AND a.status = 'revoked'
    RETURNING account_id, kind
""")

_DEFER = text(f"""
    WITH i AS MATERIALIZED (
        SELECT * FROM unnest(CAST(:account_id AS bigint[]), CAST(:epoch AS bigint[]),
            CAST(:generation AS bigint[]), CAST(:next_refresh_at AS timestamptz[]), CAST(:code AS text[]),
            CAST(:kind AS text[]), CAST(:counts AS boolean[]), CAST(:answer_lost AS boolean[]),
            CAST(:quarantined AS boolean[]), CAST(:in_doubt AS boolean[]), CAST(:probing AS boolean[]),
            CAST(:job_id AS uuid[]), CAST(:duration_ms AS int[]), CAST(:detail AS jsonb[]))
        AS i (account_id, epoch, generation, next_refresh_at, code, kind, counts, answer_lost, quarantined,
              in_doubt, probing, job_id, duration_ms, detail)
    ), deferred AS (
        UPDATE tokenfleet.refresh_schedule s
        SET next_refresh_at = CASE
                WHEN s.next_refresh_at IS NULL THEN NULL
                -- A sample that brought no word: another one is taken in its turn. A lost answer cannot wait for that.
                WHEN s.incident_id IS NOT NULL AND NOT i.answer_lost THEN NULL
                ELSE i.next_refresh_at END,
            claimed_until = NULL, probing = i.probing,
            attempts = s.attempts + CASE WHEN i.counts THEN 1 ELSE 0 END,
            doubts = s.doubts + CASE WHEN i.in_doubt THEN 1 ELSE 0 END,
            unanswered = s.unanswered + CASE WHEN i.answer_lost THEN 1 ELSE 0 END,
            failing_since = CASE WHEN i.counts THEN COALESCE(s.failing_since, now())
                                 ELSE s.failing_since END,
            -- Of a sample that brought no word, what was said of its grant stays: an operator may confirm just that.
            last_error = CASE
                WHEN s.incident_id IS NOT NULL AND NOT i.answer_lost AND s.last_error <> CAST(:unsettled AS text)
                THEN s.last_error ELSE i.code END,
            quarantined = i.quarantined,
            -- Only where trying again is all that helps: what a provider has put off, or nobody understands, is not
            -- brought forward.
            retry_from = CASE WHEN i.kind = 'refresh.unavailable' AND i.counts
                              THEN clock_timestamp() + CAST(:retry_after AS interval) END,
            {ANSWERED}
        FROM i WHERE s.account_id = i.account_id AND s.claim_epoch = i.epoch AND s.claimed_until IS NOT NULL
        RETURNING s.account_id, s.answered_request
    ), history AS (
        INSERT INTO tokenfleet.account_events
            (account_id, kind, code, generation, epoch, job_id, duration_ms, actor, detail)
        SELECT i.account_id, i.kind, i.code, i.generation, i.epoch, i.job_id, i.duration_ms,
               CAST(:actor AS text), i.detail
        FROM i JOIN deferred USING (account_id)
    )
    SELECT {told("account_id", "generation", "answered_request")}
    FROM deferred JOIN i USING (account_id) WHERE answered_request IS NOT NULL
""")

_QUARANTINE = text(f"""
    WITH quarantined AS (
        UPDATE tokenfleet.refresh_schedule s
        SET quarantined = true, last_error = CAST(:code AS text), next_refresh_at = now() + CAST(:wait AS interval),
            failing_since = COALESCE(s.failing_since, now()), attempts = s.attempts + 1, probing = false,
            {ANSWERED}
        WHERE s.account_id = :account_id AND s.next_refresh_at IS NOT NULL
        RETURNING s.account_id, s.answered_request
    ), history AS (
        INSERT INTO tokenfleet.account_events (account_id, kind, code, epoch, actor)
        SELECT account_id, 'refresh.our_fault', CAST(:code AS text), CAST(:epoch AS bigint), CAST(:actor AS text)
        FROM quarantined
    )
    SELECT {told("account_id", "generation", "answered_request")}
    FROM quarantined JOIN tokenfleet.token_sets USING (account_id)
""")


@dataclass(frozen=True, slots=True)
class Deferral:
    """An attempt that changes no token and no status: ask again at ``next_refresh_at``.

    ``kind`` is the history event. ``counts`` is False when the failure is not this account's; ``in_doubt`` is True
    when repetition may not help (``tokenfleet.policy.Known.doubts``).
    """

    account_id: AccountId
    epoch: Epoch
    generation: int
    next_refresh_at: datetime
    code: str
    kind: str
    counts: bool
    answer_lost: bool
    quarantined: bool
    job_id: UUID
    duration_ms: int
    detail: str | None = None
    in_doubt: bool = False
    expired: bool = False
    """The access token has expired: readers have nothing that works."""
    probing: bool = False
    """What is due next is a probing visit: the account's tokens are never renewed."""


@dataclass(frozen=True, slots=True)
class SaveResult:
    """Which accounts took the answer, which had it already, and whose answer went to the candidates."""

    saved: frozenset[AccountId]
    repeated: frozenset[AccountId]
    candidates: frozenset[AccountId]
    recovered: tuple[Incident, ...] = ()
    """Incidents that one of the answers has ended."""


def save_refreshed(connection: Connection, answers: Sequence[SavedTokens], *, actor: str) -> SaveResult:
    """Persist good answers whose generation has not moved; keep the others as candidates.

    The answer to an account that was not active makes it so, in the same transaction. One that comes after its
    account was given up proves nothing yet: the provider may have ended the grant since. It is verified by
    another refresh, and nobody is told before that succeeds.

    The answer to a sample of an incident proves that the provider's rejections were false, and ends it. A late answer
    for an account that was set apart proves nothing: it is verified like that of one that was given up.

    Several answers for one account are written one after the other, by epoch; the two of one epoch, before and after
    steps, by generation. The second is never a candidate: its refresh token is that of the first. It is dropped once
    the account was started again, because that refresh token may have been presented.
    """
    # In one order, so that two transactions with the same accounts never wait for each other.
    answers = sorted(answers, key=lambda answer: (answer.account_id, answer.epoch, answer.generation))
    first = {answer.account_id: answer for answer in reversed(answers)}
    if len(first) < len(answers):
        # One statement would take one of them and lose the other, which may be the only live successor.
        later = [answer for answer in answers if answer is not first[answer.account_id]]
        results = [save_refreshed(connection, part, actor=actor) for part in (list(first.values()), later)]
        return SaveResult(
            saved=results[0].saved | results[1].saved,
            repeated=results[0].repeated | results[1].repeated,
            candidates=results[0].candidates | results[1].candidates,
            recovered=results[0].recovered + results[1].recovered,
        )
    answers = _without_overtaken(connection, answers)
    parameters = columns(answers) | {"actor": actor}
    rows = connection.execute(SAVE, parameters).all()
    saved = frozenset(AccountId(row.account_id) for row in rows)
    unscheduled = {row.account_id for row in rows if row.unscheduled}
    activating = {
        answer.account_id: answer.next_refresh_at
        for answer in answers
        if answer.activates and answer.account_id in saved
    }
    if activating:
        ids = list(activating)
        moved = transitions.apply(connection, Trigger.REFRESHED, ids, actor=actor, reason=None)
        transitions.reschedule(connection, {each: activating[each] for each in moved & unscheduled})
        unscheduled -= moved
    # Late answers too: of an account that was revoked meanwhile they are revoked next, not in an hour.
    if unscheduled := unscheduled | {row.account_id for row in rows if not row.is_newest}:
        transitions.verify(connection, sorted(unscheduled))
    ends = {
        answer.account_id: answer.grant_ends_at
        for answer in answers
        if answer.grant_ends_at is not None and answer.account_id in saved
    }
    if ends:
        announcements.tell_reauth_upcoming(connection, ends, actor=actor)
    recovered = parking.end_samples(
        connection,
        {
            AccountId(row.account_id): row.incident_id
            for row in rows
            if row.incident_id is not None and not row.unscheduled
        },
        proving=frozenset(AccountId(row.account_id) for row in rows if row.is_newest),
        actor=actor,
    )
    missed = [
        answer for answer in answers if answer.account_id not in saved and answer.part is not Part.SECOND
    ]
    repeated = _already_written(connection, missed)
    late_answers = [answer for answer in missed if answer.account_id not in repeated]
    late: frozenset[AccountId] = frozenset()
    if late_answers:
        rows = connection.execute(_CANDIDATE, columns(late_answers) | {"actor": actor}).all()
        late = frozenset(AccountId(row.account_id) for row in rows if row.kind == "refresh.lost_race")
    return SaveResult(saved, repeated, late, recovered)


def defer(connection: Connection, deferrals: Sequence[Deferral], *, actor: str) -> None:
    """Write failures that leave the account as it is. An attempt whose claim has moved on is ignored.

    Whoever depends on an account whose token has expired meanwhile is told, once.
    """
    names = (
        "account_id epoch generation next_refresh_at code kind counts answer_lost quarantined in_doubt probing "
        "job_id duration_ms detail"
    )
    deferrals = sorted(deferrals, key=lambda deferral: deferral.account_id)
    if expired := [deferral.account_id for deferral in deferrals if deferral.expired]:
        # Before their schedule, in everybody's order: what is told of them may come between no move and its commit.
        transitions.lock(connection, expired)
    beside = {"actor": actor, "unsettled": UNSETTLED, "retry_after": RETRY_AFTER}
    connection.execute(_DEFER, lists(deferrals, names) | beside)
    if expired:
        announcements.tell_refresh_failing(connection, expired, actor=actor)


def quarantine(connection: Connection, account_id: AccountId, epoch: Epoch, *, code: str, actor: str) -> None:
    """Leave one account alone for :data:`~tokenfleet.policy.QUARANTINE_DELAY`: its answer could not be saved.

    It must not be asked again meanwhile: the token that Postgres has is spent, its successor is on disk only.
    """
    parameters = {"account_id": account_id, "epoch": epoch, "code": code, "wait": QUARANTINE_DELAY}
    connection.execute(_QUARANTINE, parameters | {"actor": actor})


def _without_overtaken(connection: Connection, answers: Sequence[SavedTokens]) -> Sequence[SavedTokens]:
    """Return ``answers`` without second parts over whose first part somebody has started to ask.

    Nobody starts from here to the commit. Answers of whole attempts, which are nearly all, cost nothing here.
    """
    seconds = [answer for answer in answers if answer.part is Part.SECOND]
    if not seconds:
        return answers
    transitions.lock(connection, [answer.account_id for answer in answers])
    current = frozenset(connection.execute(_NOT_STARTED_SINCE, lists(seconds, "account_id epoch")).scalars())
    return [each for each in answers if each.part is not Part.SECOND or each.account_id in current]


def _already_written(connection: Connection, answers: Sequence[SavedTokens]) -> frozenset[AccountId]:
    if not answers:
        return frozenset()
    parameters = lists(answers, "account_id epoch")
    parameters["since"] = min(answer.obtained_at for answer in answers)
    return frozenset(AccountId(row.account_id) for row in connection.execute(_ALREADY, parameters))
