"""The fence that lets a claim be started once, and what else becomes of a claim (``store.claiming`` makes them).

Invariant: :func:`start` is the fence (G2). An epoch can be started once, by one process, and only while it is the
newest one and unexpired. Copies of a message, late workers and a wiped Redis all end here. All of it relies on
``pk_refresh_schedule``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import Connection, text

from tokenfleet.account import ASKABLE
from tokenfleet.jobs import AccountId, Epoch, RefreshJob
from tokenfleet.policy import UNSETTLED
from tokenfleet_client.contract import AccountStatus

WAKE_CHANNEL: Final = "tokenfleet_due"
"""``NOTIFY`` on it makes the schedulers look at once."""

_START = text("""
    UPDATE tokenfleet.refresh_schedule s
    SET started_epoch = s.claim_epoch, claimed_until = clock_timestamp() + CAST(:claim AS interval)
    FROM unnest(CAST(:account_ids AS bigint[]), CAST(:epochs AS bigint[])) AS job (account_id, epoch)
    -- The app too: a message that names another one would send the token to another provider's endpoint.
    WHERE s.account_id = job.account_id AND s.app_id = :app_id
      AND s.claim_epoch = job.epoch AND s.started_epoch < job.epoch AND s.claimed_until > clock_timestamp()
    RETURNING s.account_id, s.claim_epoch, s.attempts, s.doubts, s.unanswered, s.next_refresh_at, s.last_error,
              s.probing, s.alive_at, s.failing_since, s.requested_at IS NOT NULL AS is_requested,
              s.requested_at IS NULL OR s.requested_at > s.next_refresh_at AS was_due
""")

_READ = text("""
    SELECT a.id, a.status, a.variables || t.variables AS variables, t.generation, t.access_token,
           t.refresh_token, t.scope,
           t.epoch, t.expires_at, t.obtained_at, t.refresh_token_expires_at, t.learned_lifetime, a.granted_at,
           a.reauth_told_at, clock_timestamp() AS database_now
    FROM tokenfleet.accounts a JOIN tokenfleet.token_sets t ON t.account_id = a.id
    WHERE a.id = ANY (CAST(:account_ids AS bigint[]))
""")

_MOVED = text("""
    SELECT t.account_id FROM tokenfleet.token_sets t
    JOIN unnest(CAST(:account_ids AS bigint[]), CAST(:generations AS bigint[])) AS i (account_id, generation)
        USING (account_id)
    WHERE t.generation <> i.generation
""")

_ABANDON = text("""
    UPDATE tokenfleet.refresh_schedule SET claimed_until = NULL
    WHERE account_id = :account_id AND claim_epoch = :epoch
""")

_NONE_MISSING = text("""
    UPDATE tokenfleet.refresh_schedule SET unanswered = 0 WHERE account_id = ANY (CAST(:account_ids AS bigint[]))
""")

_UNCLAIM = text("""
    UPDATE tokenfleet.refresh_schedule
    SET claimed_until = NULL,
        -- Due and not refreshable: every tick would claim it anew, for ever.
        next_refresh_at = CASE WHEN account_id = ANY (CAST(:unrefreshable AS bigint[])) THEN NULL
                               ELSE next_refresh_at END
    WHERE account_id = ANY (CAST(:account_ids AS bigint[]))
""")

_RELEASE = text("""
    UPDATE tokenfleet.refresh_schedule s SET claimed_until = NULL
    FROM unnest(CAST(:account_ids AS bigint[]), CAST(:epochs AS bigint[])) AS job (account_id, epoch)
    -- A copy of the message may have been started: that account's refresh token is on its way.
    WHERE s.account_id = job.account_id AND s.claim_epoch = job.epoch AND s.started_epoch < job.epoch
""")

_POSTPONE = text("""
    UPDATE tokenfleet.refresh_schedule s
    SET claimed_until = clock_timestamp() + CAST(:wait AS interval), answered_request = s.requested_at
    FROM unnest(CAST(:account_ids AS bigint[]), CAST(:epochs AS bigint[])) AS job (account_id, epoch)
    WHERE s.account_id = job.account_id AND s.claim_epoch = job.epoch AND s.started_epoch < job.epoch
      AND s.claimed_until IS NOT NULL
""")

_REQUEST = text("""
    WITH wanted AS (
        SELECT s.account_id FROM tokenfleet.refresh_schedule s
        -- Not accounts whose successor lies in a journal: what Postgres holds for them is spent.
        WHERE s.account_id = ANY (CAST(:account_ids AS bigint[])) AND s.next_refresh_at IS NOT NULL
          AND (s.last_error IS NULL OR s.last_error NOT LIKE 'answer_refused%')
        -- In the order in which workers lock them, or an operator who asks for many takes jobs down with him.
        ORDER BY s.account_id
        FOR UPDATE
    )
    UPDATE tokenfleet.refresh_schedule s
    SET next_refresh_at = LEAST(s.next_refresh_at, now()), quarantined = false, probing = false
    FROM wanted WHERE s.account_id = wanted.account_id
    RETURNING s.account_id
""")


@dataclass(frozen=True, slots=True)
class Attempt:
    """An account whose claim was just started by this process: all that is needed to ask.

    Both tokens are sealed. ``database_now`` is the database's clock at the reading, from which the
    caller derives every later moment.
    """

    account_id: AccountId
    epoch: Epoch
    status: AccountStatus
    generation: int
    access_token: bytes | None
    refresh_token: bytes | None
    scope: str | None
    variables: Mapping[str, str]
    expires_at: datetime | None
    obtained_at: datetime
    refresh_token_expires_at: datetime | None
    attempts: int
    doubts: int
    unanswered: int
    is_unsettled: bool
    """The attempt before was never settled: whoever made it may have an answer."""
    due_at: datetime | None
    database_now: datetime
    probing: bool = False
    """What is due does not present the refresh token."""
    alive_at: datetime | None = None
    """When a probe last found the access token alive, this one or an earlier one."""
    granted_at: datetime | None = None
    reauth_told: bool = False
    """The end of this grant was announced."""
    learned_lifetime: timedelta | None = None
    is_requested: bool = False
    """A reader waits for it."""
    was_due: bool = True
    """No reader's request has brought it forward."""
    failing_since: datetime | None = None
    """When the first of the failures happened that no success has followed."""


def start(connection: Connection, job: RefreshJob, *, claim: timedelta) -> list[Attempt]:
    """Start the accounts of ``job`` whose claim is still the newest one, unexpired and not yet started.

    Two statements in the caller's transaction: the second one takes a new snapshot (READ COMMITTED), so it
    sees what a sibling committed while the first one waited for its row. The claim is renewed for ``claim``.
    Accounts that are not refreshable any more, or that a late answer has made fresh meanwhile, are unclaimed
    and left out; the former are not due any more.
    """
    started = {
        row.account_id: row
        for row in connection.execute(_START, _pairs(job) | {"claim": claim, "app_id": job.app_id})
    }
    if not started:
        return []
    attempts: list[Attempt] = []
    unrefreshable: list[int] = []
    none_missing: list[int] = []
    for row in connection.execute(_READ, {"account_ids": list(started)}):
        schedule = started[row.id]
        is_due = schedule.next_refresh_at is not None and schedule.next_refresh_at <= row.database_now
        is_forgotten = row.status == AccountStatus.REVOKED and not (row.access_token or row.refresh_token)
        if row.status not in ASKABLE or is_forgotten:
            unrefreshable.append(row.id)
            continue
        if not is_due:
            continue
        unanswered = _unanswered(row, schedule)
        if unanswered != schedule.unanswered:
            none_missing.append(row.id)
        del started[row.id]
        attempts.append(
            Attempt(
                account_id=AccountId(row.id),
                epoch=Epoch(schedule.claim_epoch),
                status=AccountStatus(row.status),
                generation=row.generation,
                access_token=row.access_token,
                refresh_token=row.refresh_token,
                scope=row.scope,
                variables=row.variables,
                expires_at=row.expires_at,
                obtained_at=row.obtained_at,
                refresh_token_expires_at=row.refresh_token_expires_at,
                attempts=schedule.attempts,
                doubts=schedule.doubts,
                unanswered=unanswered,
                is_unsettled=schedule.last_error == UNSETTLED,
                due_at=schedule.next_refresh_at,
                database_now=row.database_now,
                probing=schedule.probing,
                alive_at=schedule.alive_at,
                granted_at=row.granted_at,
                reauth_told=row.reauth_told_at is not None,
                learned_lifetime=row.learned_lifetime,
                failing_since=schedule.failing_since,
                is_requested=schedule.is_requested,
                was_due=schedule.was_due,
            )
        )
    if none_missing:
        # Remembered: a later attempt cannot see any more who brought this token.
        connection.execute(_NONE_MISSING, {"account_ids": none_missing})
    if started:
        # Still locked by the first statement: nobody can have claimed them meanwhile.
        connection.execute(_UNCLAIM, {"account_ids": list(started), "unrefreshable": unrefreshable})
    return attempts


def release(connection: Connection, job: RefreshJob) -> None:
    """Give back claims that were never started: the message could not be sent, or the app is on hold."""
    connection.execute(_RELEASE, _pairs(job))


def postpone(connection: Connection, job: RefreshJob, *, wait: timedelta) -> None:
    """Let claims that were not started expire after ``wait``: this process cannot take them now."""
    connection.execute(_POSTPONE, _pairs(job) | {"wait": wait})


def abandon(connection: Connection, account_id: AccountId, epoch: Epoch) -> None:
    """Give back a claim that was started and under which nothing was sent: no answer can have been lost."""
    connection.execute(_ABANDON, {"account_id": account_id, "epoch": epoch})


def moved_since(connection: Connection, generations: Mapping[AccountId, int]) -> frozenset[AccountId]:
    """Return the accounts whose generation is another one now."""
    parameters = {"account_ids": list(generations), "generations": list(generations.values())}
    return frozenset(AccountId(row.account_id) for row in connection.execute(_MOVED, parameters))


def request_refresh(connection: Connection, account_ids: Sequence[AccountId]) -> list[AccountId]:
    """Make accounts due now and wake the schedulers on commit. Returns those that are scheduled at all."""
    rows = connection.execute(_REQUEST, {"account_ids": list(account_ids)})
    requested = [AccountId(row.account_id) for row in rows]
    connection.execute(text("SELECT pg_notify(:channel, '')"), {"channel": WAKE_CHANNEL})
    return requested


def _unanswered(tokens: Any, schedule: Any) -> int:
    """Return how many answers to the refresh token are missing.

    The one attempt that was never settled may be the very one that brought this token: who died then had only steps to
    go, and nobody has presented the token yet.
    """
    brought_it = 0 < tokens.epoch == schedule.claim_epoch - 1
    if brought_it and schedule.unanswered == 1 and schedule.last_error == UNSETTLED:
        return 0
    return int(schedule.unanswered)


def _pairs(job: RefreshJob) -> dict[str, Any]:
    # Rows are locked in this order, which is everybody's: a job's own order is by urgency.
    accounts = sorted(job.accounts)
    return {
        "account_ids": [account_id for account_id, _ in accounts],
        "epochs": [epoch for _, epoch in accounts],
    }
