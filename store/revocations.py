"""Grants that are ended deliberately: the account is revoked at once, its tokens are forgotten when the provider knows.

Invariants kept here:

* A revoked account holds tokens only while its provider has not confirmed the revocation, and for
  :data:`~tokenfleet.revoking.KEPT_FOR` at most. In that time ``failing_since`` is set, and it is due, being asked
  about, or found by :func:`sweep`: whatever a death or a worker of the release before leaves behind, it comes to its
  end.
* A refresh that is under way is waited for: its claim is left alone, and only what it leaves is revoked. Its answer is
  saved like any other while the generation stands (``store.settlement``), so the successor is what is presented next;
  an answer in a journal is found before, as for any claim that was never settled (``workers.refresh``).
* Who forgets takes a new generation and a new claim epoch. An answer that comes later still meets neither: it is
  dropped, never stored, not even as a candidate (``store.settlement``), and a claim of before starts nothing.
* The status, its event and its history row come by :mod:`store.transitions` alone, so they come once (G5).

Locks are taken in everybody's order: token set, account, schedule. Revocations are due as probes are: after
refreshes, so that ten thousand of them make no token late (G1).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from sqlalchemy import Connection, text

from store import transitions
from store.answers import lists
from store.requests import ANSWERED, told
from store.schedule import WAKE_CHANNEL
from tokenfleet.account import Trigger
from tokenfleet.jobs import AccountId, Epoch
from tokenfleet.policy import UNSETTLED
from tokenfleet.revoking import KEPT_FOR

SWEPT_AT_ONCE: Final = 1000

_HOLDING = text("""
    SELECT a.id FROM tokenfleet.accounts a JOIN tokenfleet.token_sets t ON t.account_id = a.id
    WHERE a.id = ANY (CAST(:account_ids AS bigint[])) AND a.status = 'revoked'
      AND (t.refresh_token IS NOT NULL OR t.access_token IS NOT NULL)
""")

_ASK = text(f"""
    WITH standing AS (
        SELECT s.account_id, s.claimed_until IS NOT NULL AND s.started_epoch = s.claim_epoch AS is_started,
               s.claimed_until IS NOT NULL AND s.started_epoch = s.claim_epoch
                   AND s.claimed_until > clock_timestamp() AS is_asking
        FROM tokenfleet.refresh_schedule s WHERE s.account_id = ANY (CAST(:account_ids AS bigint[]))
        -- In the order in which workers lock them, or an operator who revokes many takes jobs down with him.
        ORDER BY s.account_id
        FOR UPDATE
    ), asked AS (
        UPDATE tokenfleet.refresh_schedule s
        SET -- Somebody is asking now: whoever ends that, or the sweep, makes it due. An answer of anybody before is
            -- late, and makes it due again (store.settlement).
            next_refresh_at = CASE WHEN i.is_asking THEN NULL ELSE now() END,
            claim_epoch = s.claim_epoch + CASE WHEN i.is_asking THEN 0 ELSE 1 END,
            claimed_until = CASE WHEN i.is_asking THEN s.claimed_until END,
            -- So that journals are looked into first.
            last_error = CASE WHEN i.is_started OR s.last_error = CAST(:unsettled AS text)
                              THEN CAST(:unsettled AS text) END,
            failing_since = now(), attempts = 0, doubts = 0, quarantined = false, incident_id = NULL, probing = true,
            {ANSWERED}
        FROM standing i WHERE s.account_id = i.account_id
        RETURNING s.account_id, s.answered_request
    )
    SELECT {told("account_id", "generation", "answered_request")}
    FROM asked JOIN tokenfleet.token_sets USING (account_id) WHERE answered_request IS NOT NULL
""")

_WITHHOLD = text("""
    UPDATE tokenfleet.token_sets SET access_token = NULL
    WHERE account_id = ANY (CAST(:account_ids AS bigint[])) AND refresh_token IS NOT NULL
""")

_FORGET = text("""
    WITH forgotten AS (
        UPDATE tokenfleet.token_sets t
        -- Epoch 0, as for tokens that no attempt has brought: nothing kept beside them is for them.
        SET access_token = NULL, refresh_token = NULL, expires_at = NULL, refresh_token_expires_at = NULL,
            generation = t.generation + 1, epoch = 0
        FROM unnest(CAST(:account_id AS bigint[]), CAST(:generation AS bigint[]), CAST(:kind AS text[]),
                    CAST(:code AS text[]), CAST(:epoch AS bigint[]), CAST(:job_id AS uuid[]),
                    CAST(:duration_ms AS int[]))
            AS i (account_id, generation, kind, code, epoch, job_id, duration_ms)
        JOIN tokenfleet.accounts a ON a.id = i.account_id AND a.status = 'revoked'
        WHERE t.account_id = i.account_id AND t.generation = COALESCE(i.generation, t.generation)
          AND (t.refresh_token IS NOT NULL OR t.access_token IS NOT NULL)
        RETURNING i.*
    ), history AS (
        INSERT INTO tokenfleet.account_events
            (account_id, kind, code, generation, epoch, job_id, duration_ms, actor)
        SELECT account_id, kind, code, generation, epoch, job_id, duration_ms, CAST(:actor AS text) FROM forgotten
    )
    SELECT account_id FROM forgotten
""")

_FORGET_CANDIDATES = text("""
    DELETE FROM tokenfleet.token_candidates WHERE account_id = ANY (CAST(:account_ids AS bigint[]))
""")

_END = text(f"""
    WITH ended AS (
        UPDATE tokenfleet.refresh_schedule s
        SET next_refresh_at = NULL, claim_epoch = s.claim_epoch + 1, claimed_until = NULL, attempts = 0, doubts = 0,
            unanswered = 0, failing_since = NULL, last_error = NULL, quarantined = false, incident_id = NULL,
            probing = false, alive_at = NULL, {ANSWERED}
        WHERE s.account_id = ANY (CAST(:account_ids AS bigint[]))
        RETURNING s.account_id, s.answered_request
    )
    SELECT {told("account_id", "generation", "answered_request")}
    FROM ended JOIN tokenfleet.token_sets USING (account_id) WHERE answered_request IS NOT NULL
""")

_POSTPONE = text("""
    WITH postponed AS (
        UPDATE tokenfleet.refresh_schedule s
        SET next_refresh_at = COALESCE(i.next_refresh_at, now()), claimed_until = NULL, probing = true,
            attempts = s.attempts + CASE WHEN i.next_refresh_at IS NULL THEN 0 ELSE 1 END,
            failing_since = COALESCE(s.failing_since, now()), last_error = i.code
        FROM unnest(CAST(:account_id AS bigint[]), CAST(:epoch AS bigint[]), CAST(:next_refresh_at AS timestamptz[]),
                    CAST(:kind AS text[]), CAST(:code AS text[]), CAST(:generation AS bigint[]),
                    CAST(:job_id AS uuid[]), CAST(:duration_ms AS int[]))
            AS i (account_id, epoch, next_refresh_at, kind, code, generation, job_id, duration_ms)
        WHERE s.account_id = i.account_id AND s.claim_epoch = i.epoch AND s.claimed_until IS NOT NULL
        RETURNING i.*
    )
    INSERT INTO tokenfleet.account_events
        (account_id, kind, code, generation, epoch, job_id, duration_ms, actor)
    SELECT account_id, kind, code, generation, epoch, job_id, duration_ms, CAST(:actor AS text) FROM postponed
""")

_STRANDED = text("""
    WITH stranded AS (
        SELECT s.account_id FROM tokenfleet.refresh_schedule s
        JOIN tokenfleet.accounts a ON a.id = s.account_id AND a.status = 'revoked'
        WHERE s.failing_since IS NOT NULL AND s.next_refresh_at IS NULL
          AND (s.claimed_until IS NULL OR s.claimed_until <= now())
        LIMIT :at_most
        FOR UPDATE OF s SKIP LOCKED
    )
    UPDATE tokenfleet.refresh_schedule s SET next_refresh_at = now(), probing = true
    FROM stranded WHERE s.account_id = stranded.account_id
""")

_OVERDUE = text("""
    SELECT a.id FROM tokenfleet.accounts a JOIN tokenfleet.refresh_schedule s ON s.account_id = a.id
    WHERE a.status = 'revoked' AND s.failing_since IS NOT NULL
      AND a.status_changed_at <= now() - CAST(:kept AS interval)
    ORDER BY a.id LIMIT :at_most
""")

_NEWS = text("""
    SELECT DISTINCT ON (e.account_id) e.account_id, e.kind, e.code
    FROM tokenfleet.account_events e
    WHERE e.account_id = ANY (CAST(:account_ids AS bigint[])) AND e.at >= CAST(:since AS timestamptz)
      AND e.kind LIKE 'revocation.%'
    ORDER BY e.account_id, e.at DESC
""")

CONFIRMED: Final = "revocation.confirmed"
REFUSED: Final = "revocation.refused"
UNANSWERED: Final = "revocation.unanswered"
FORGOTTEN: Final = "revocation.forgotten"
"""History: the tokens are forgotten although the provider did not confirm; the code says why."""


@dataclass(frozen=True, slots=True)
class Begun:
    """What a command has begun: who became revoked now, of whose tokens the provider is told, whose are forgotten."""

    moved: frozenset[AccountId]
    asked: frozenset[AccountId]
    forgotten: frozenset[AccountId]


@dataclass(frozen=True, slots=True)
class RevocationMade:
    """What became of one request to revoke the tokens of ``generation``.

    With ``next_refresh_at`` they are kept, and it is asked again then; without, they are forgotten. ``kind`` and
    ``code`` are for the history.
    """

    account_id: AccountId
    epoch: Epoch
    generation: int
    kind: str
    code: str
    next_refresh_at: datetime | None
    job_id: UUID
    duration_ms: int


@dataclass(frozen=True, slots=True)
class News:
    """The last thing that happened to a revocation."""

    kind: str
    code: str | None


def begin(
    connection: Connection,
    account_ids: Collection[AccountId],
    *,
    untold: Collection[AccountId],
    showing_access: Collection[AccountId],
    code: str,
    actor: str,
    reason: str | None,
) -> Begun:
    """Revoke accounts, now; whoever was revoked already and still holds tokens is gone on with.

    The tokens of those that are ``untold`` are forgotten at once, with ``code`` in their history; for the others the
    provider is asked, as soon as nobody else asks it about them. Their access tokens are forgotten now, so that no
    reader finds one, but for those whose revocation has to be ``showing_access`` tokens.
    """
    ids = sorted(account_ids)
    transitions.lock(connection, ids)
    moved = transitions.apply(connection, Trigger.REVOKED, ids, actor=actor, reason=reason)
    holding = frozenset(connection.execute(_HOLDING, {"account_ids": ids}).scalars())
    connection.execute(_END, {"account_ids": sorted(moved - holding)})
    forgotten = forget(connection, sorted(holding & frozenset(untold)), code=code, actor=actor)
    asked = holding - forgotten
    if asked:
        connection.execute(_WITHHOLD, {"account_ids": sorted(asked - frozenset(showing_access))})
        connection.execute(_ASK, {"account_ids": sorted(asked), "unsettled": UNSETTLED})
        connection.execute(text("SELECT pg_notify(:channel, '')"), {"channel": WAKE_CHANNEL})
    return Begun(moved, asked, forgotten)


def forget(
    connection: Connection, account_ids: Sequence[AccountId], *, code: str, actor: str
) -> frozenset[AccountId]:
    """Forget the tokens of revoked accounts, whose rows the caller has locked, although nobody has confirmed."""
    count = len(account_ids)
    rows = {
        "account_id": list(account_ids),
        "generation": [None] * count,
        "kind": [FORGOTTEN] * count,
        "code": [code] * count,
        "epoch": [None] * count,
        "job_id": [None] * count,
        "duration_ms": [None] * count,
    }
    return _forget(connection, rows, actor) if account_ids else frozenset()


def settle(connection: Connection, made: Sequence[RevocationMade], *, actor: str) -> None:
    """Write what became of requests to revoke. Writing twice does no harm.

    Where newer tokens came in meanwhile, from a worker that was given up, these are revoked next.
    """
    made = sorted(made, key=lambda each: each.account_id)
    transitions.lock(connection, [each.account_id for each in made])
    ended = [each for each in made if each.next_refresh_at is None]
    names = "account_id generation kind code epoch job_id duration_ms"
    forgotten = _forget(connection, lists(ended, names), actor) if ended else frozenset()
    if others := [each for each in made if each.account_id not in forgotten]:
        connection.execute(_POSTPONE, lists(others, f"{names} next_refresh_at") | {"actor": actor})


def sweep(connection: Connection, *, actor: str) -> frozenset[AccountId]:
    """Make due what nobody goes on with; forget what is kept for too long, and return whose that was.

    Relies on ``ix_refresh_schedule_failing`` or ``ix_accounts_troubled``, whichever finds fewer.
    """
    connection.execute(_STRANDED, {"at_most": SWEPT_AT_ONCE})
    overdue = [
        AccountId(each)
        for each in connection.execute(_OVERDUE, {"kept": KEPT_FOR, "at_most": SWEPT_AT_ONCE}).scalars()
    ]
    if not overdue:
        return frozenset()
    transitions.lock(connection, overdue)
    return forget(connection, overdue, code="never_confirmed", actor=actor)


def news(
    connection: Connection, account_ids: Collection[AccountId], *, since: datetime
) -> dict[AccountId, News]:
    """Return the last thing that happened to each revocation ``since`` then, by the database's clock."""
    rows = connection.execute(_NEWS, {"account_ids": sorted(account_ids), "since": since})
    return {AccountId(row.account_id): News(row.kind, row.code) for row in rows}


def _forget(connection: Connection, rows: Mapping[str, object], actor: str) -> frozenset[AccountId]:
    forgotten = frozenset(
        AccountId(each) for each in connection.execute(_FORGET, {**rows, "actor": actor}).scalars()
    )
    connection.execute(_FORGET_CANDIDATES, {"account_ids": sorted(forgotten)})
    connection.execute(_END, {"account_ids": sorted(forgotten)})
    return forgotten
