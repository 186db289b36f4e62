"""Good answers whose write lost a race, and how one of them is brought back (G3).

Two presentations of one refresh token may both bring a successor: a worker that was frozen past its claim wakes up
with one, while another worker has saved one already. Which of the two the provider honours later is the provider's
secret. So the loser is kept in ``token_candidates``, and when the provider rejects what won, the account goes on
with the candidate before anybody is told to sign in again.

A candidate counts only while the winner is the account's newest generation. Once that was renewed, its chain is
proven to live, and the candidate may be a token that this chain has spent meanwhile (a provider may answer a replay
with the same successor): it is never presented then (G2). Nor is an answer to an earlier grant after the customer has
signed in again: tokens that an import brought stand under epoch 0, and have no candidates.

The statements rely on ``uq_token_candidates_account_id`` and the primary keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import Connection, text

from store import transitions
from store.answers import lists
from tokenfleet.jobs import AccountId, Epoch

_OF_ACCOUNT = text("""
    SELECT c.id, c.generation, c.access_token, c.refresh_token
    FROM tokenfleet.token_candidates c JOIN tokenfleet.token_sets t ON t.account_id = c.account_id
    WHERE c.account_id = :account_id AND c.generation = t.generation AND t.epoch > 0
    ORDER BY c.obtained_at DESC, c.id DESC
""")

_LATE = text("""
    SELECT DISTINCT t.account_id, s.claim_epoch, t.generation, t.access_token, t.refresh_token
    FROM tokenfleet.token_candidates c
    JOIN tokenfleet.accounts a ON a.id = c.account_id
    JOIN tokenfleet.token_sets t ON t.account_id = c.account_id
    JOIN tokenfleet.refresh_schedule s ON s.account_id = c.account_id
    WHERE (a.status = 'needs_reauth' OR s.incident_id IS NOT NULL) AND c.generation = t.generation AND t.epoch > 0
""")

_PROMOTE = text("""
    WITH i AS MATERIALIZED (
        SELECT * FROM unnest(CAST(:account_id AS bigint[]), CAST(:epoch AS bigint[]),
            CAST(:generation AS bigint[]), CAST(:candidate_id AS bigint[]), CAST(:access_token AS bytea[]),
            CAST(:refresh_token AS bytea[]), CAST(:code AS text[]), CAST(:job_id AS uuid[]),
            CAST(:duration_ms AS int[]))
        AS i (account_id, epoch, generation, candidate_id, access_token, refresh_token, code, job_id, duration_ms)
    ), promoted AS (
        UPDATE tokenfleet.token_sets t
        SET generation = t.generation + 1, epoch = i.epoch, access_token = i.access_token,
            refresh_token = i.refresh_token, token_type = c.token_type, scope = c.scope,
            expires_at = c.expires_at, obtained_at = c.obtained_at,
            refresh_token_expires_at = c.refresh_token_expires_at, variables = t.variables || c.variables
        FROM i JOIN tokenfleet.token_candidates c ON c.id = i.candidate_id AND c.account_id = i.account_id
        WHERE t.account_id = i.account_id AND t.generation = i.generation
        RETURNING t.account_id
    ), used AS (
        DELETE FROM tokenfleet.token_candidates c
        USING i JOIN promoted USING (account_id) WHERE c.id = i.candidate_id
    ), history AS (
        INSERT INTO tokenfleet.account_events
            (account_id, kind, code, generation, epoch, job_id, duration_ms, actor)
        SELECT i.account_id, 'refresh.candidate_promoted', i.code, i.generation + 1, i.epoch, i.job_id,
               i.duration_ms, CAST(:actor AS text)
        FROM i JOIN promoted USING (account_id)
    )
    UPDATE tokenfleet.refresh_schedule s
    SET next_refresh_at = CASE WHEN s.next_refresh_at IS NULL THEN NULL ELSE now() END, claimed_until = NULL,
        -- Not unanswered: what the provider rejects next may still be our loss, not the customer's doing.
        attempts = 0, doubts = 0, failing_since = NULL, last_error = NULL, quarantined = false, probing = false,
        -- Another token than the one that was rejected during an incident: its success proves nothing of the others.
        incident_id = CASE WHEN s.next_refresh_at IS NULL THEN s.incident_id END
    FROM i JOIN promoted USING (account_id) WHERE s.account_id = i.account_id
    RETURNING s.account_id, s.next_refresh_at IS NULL AS unscheduled
""")

_RELEASE = text("""
    UPDATE tokenfleet.refresh_schedule s SET claimed_until = NULL
    FROM unnest(CAST(:account_id AS bigint[]), CAST(:epoch AS bigint[])) AS i (account_id, epoch)
    WHERE s.account_id = i.account_id AND s.claim_epoch = i.epoch
""")

_DISCARD = text("DELETE FROM tokenfleet.token_candidates WHERE id = :candidate_id")

_PRUNE = text("""
    DELETE FROM tokenfleet.token_candidates c
    USING tokenfleet.token_sets t
    WHERE t.account_id = c.account_id AND (c.generation < t.generation OR t.epoch = 0)
""")


@dataclass(frozen=True, slots=True)
class Candidate:
    """One answer that lost, sealed for ``generation``."""

    candidate_id: int
    generation: int
    access_token: bytes
    refresh_token: bytes | None


@dataclass(frozen=True, slots=True)
class Deposed:
    """An account that was given up or set apart, although an answer came in after the rejection."""

    account_id: AccountId
    epoch: Epoch
    generation: int
    access_token: bytes | None
    refresh_token: bytes | None


@dataclass(frozen=True, slots=True)
class Promotion:
    """A candidate in the place of what the provider rejected at ``generation``, sealed for ``generation + 1``.

    ``code`` is the rejection's; ``job_id`` is None when no job of ours was in it.
    """

    account_id: AccountId
    epoch: Epoch
    generation: int
    candidate_id: int
    access_token: bytes
    refresh_token: bytes | None
    code: str | None
    job_id: UUID | None
    duration_ms: int | None


def of_account(connection: Connection, account_id: AccountId) -> list[Candidate]:
    """Return the candidates against the account's present generation, the newest first."""
    rows = connection.execute(_OF_ACCOUNT, {"account_id": account_id})
    return [Candidate(row.id, row.generation, row.access_token, row.refresh_token) for row in rows]


def deposed(connection: Connection) -> list[Deposed]:
    """Return the accounts in ``needs_reauth`` or set apart by an incident that have a candidate; these are few."""
    return [
        Deposed(
            AccountId(row.account_id),
            Epoch(row.claim_epoch),
            row.generation,
            row.access_token,
            row.refresh_token,
        )
        for row in connection.execute(_LATE)
    ]


def promote(connection: Connection, promotions: Sequence[Promotion], *, actor: str) -> frozenset[AccountId]:
    """Put candidates in the place of rejected tokens, due now; returns the accounts whose generation had not moved.

    An account that was given up meanwhile is asked once more, and active when that succeeds. The claims of the
    rejected attempts are given back. Writing twice does no harm.
    """
    names = "account_id epoch generation candidate_id access_token refresh_token code job_id duration_ms"
    parameters = lists(promotions, names) | {"actor": actor}
    rows = connection.execute(_PROMOTE, parameters).all()
    unscheduled = [AccountId(row.account_id) for row in rows if row.unscheduled]
    if unscheduled:
        transitions.verify(connection, unscheduled)
    connection.execute(_RELEASE, lists(promotions, "account_id epoch"))
    return frozenset(AccountId(row.account_id) for row in rows)


def discard(connection: Connection, candidate_id: int) -> None:
    """Remove a candidate that cannot help: it holds the very token that was rejected."""
    connection.execute(_DISCARD, {"candidate_id": candidate_id})


def prune(connection: Connection) -> int:
    """Remove candidates whose winner has been renewed since, so it lives; returns how many."""
    return connection.execute(_PRUNE).rowcount
