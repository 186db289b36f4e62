"""Accounts that an import finds already there: described anew, or given the tokens of a new sign-in.

Invariants kept here:

* Renewed tokens are a new generation, so that an answer to the old ones cannot overwrite them, and a new
  claim epoch, so that a message that is still under way starts nothing (``store.schedule.start``).
* Locks are taken in the order in which workers take them: token set, account, schedule. A deadlock is still
  possible, because a worker writes its batch in no particular order; the loser is written again.

The statements rely on the primary keys of their tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import msgspec
from sqlalchemy import Connection, text

from store import fingerprints, transitions
from store.import_creation import Stamp
from store.import_line import FINGERPRINTS_KEPT
from store.keys import Vault
from store.requests import ANSWERED, told
from tokenfleet.account import Trigger
from tokenfleet.jobs import AccountId, AppId
from tokenfleet.lifetimes import Visit
from tokenfleet_client.contract import AccountStatus
from tokenfleet_client.envelope import access_token_binding, refresh_token_binding
from tokenfleet_client.secret import Secret

_DESCRIBE = text(f"""
    UPDATE tokenfleet.accounts a
    SET app_id = COALESCE(i.app_id, a.app_id), tenant = COALESCE(i.tenant, a.tenant),
        variables = COALESCE(i.variables, a.variables), metadata = COALESCE(i.metadata, a.metadata),
        imported_fingerprints = CASE
            WHEN i.fingerprint IS NULL OR i.fingerprint = ANY (a.imported_fingerprints) THEN a.imported_fingerprints
            ELSE array_append(a.imported_fingerprints[
                GREATEST(cardinality(a.imported_fingerprints) - {FINGERPRINTS_KEPT - 2}, 1):], i.fingerprint)
            END,
        -- A sign-in is a new grant: its life begins now, and nobody was told of its end.
        granted_at = COALESCE(i.granted_at, a.granted_at),
        reauth_told_at = CASE WHEN i.granted_at IS NULL THEN a.reauth_told_at END
    FROM unnest(CAST(:account_ids AS bigint[]), CAST(:app_ids AS bigint[]), CAST(:tenants AS text[]),
                CAST(:variables AS jsonb[]), CAST(:metadata AS jsonb[]), CAST(:fingerprints AS bytea[]),
                CAST(:granted_ats AS timestamptz[]))
        AS i (account_id, app_id, tenant, variables, metadata, fingerprint, granted_at)
    WHERE a.id = i.account_id
    RETURNING a.id, a.status
""")

_RESCHEDULE = text(f"""
    WITH rescheduled AS (
        UPDATE tokenfleet.refresh_schedule s
        SET app_id = COALESCE(i.app_id, s.app_id), next_refresh_at = i.next_refresh_at,
            claim_epoch = s.claim_epoch + 1, claimed_until = NULL, attempts = 0, doubts = 0, unanswered = 0,
            failing_since = NULL, last_error = NULL, quarantined = false, incident_id = NULL,
            probing = i.probing, expiry_told = false, alive_at = NULL, retry_from = NULL, {ANSWERED}
        FROM unnest(CAST(:account_ids AS bigint[]), CAST(:app_ids AS bigint[]), CAST(:moments AS timestamptz[]),
                    CAST(:probing AS boolean[]))
            AS i (account_id, app_id, next_refresh_at, probing)
        WHERE s.account_id = i.account_id
        RETURNING s.account_id, s.answered_request
    )
    SELECT {told("account_id", "generation", "answered_request")}
    FROM rescheduled JOIN tokenfleet.token_sets USING (account_id) WHERE answered_request IS NOT NULL
""")

_REPLACE_TOKENS = text("""
    WITH i AS MATERIALIZED (
        SELECT * FROM unnest(CAST(:account_ids AS bigint[]), CAST(:generations AS bigint[]),
            CAST(:access_tokens AS bytea[]), CAST(:refresh_tokens AS bytea[]), CAST(:token_types AS text[]),
            CAST(:scopes AS text[]), CAST(:expiries AS timestamptz[]),
            CAST(:refresh_expiries AS timestamptz[]), CAST(:variables AS jsonb[]),
            CAST(:obtained_ats AS timestamptz[]), CAST(:learned_lifetimes AS interval[]))
        AS i (account_id, generation, access_token, refresh_token, token_type, scope, expires_at,
              refresh_token_expires_at, variables, obtained_at, learned_lifetime)
    ), replaced AS (
        UPDATE tokenfleet.token_sets t
        -- No attempt brought these tokens: answers to earlier grants are no candidates for this one.
        SET generation = i.generation, epoch = 0, access_token = i.access_token,
            refresh_token = i.refresh_token, token_type = i.token_type, scope = i.scope,
            expires_at = i.expires_at, obtained_at = i.obtained_at,
            refresh_token_expires_at = i.refresh_token_expires_at, variables = i.variables,
            learned_lifetime = COALESCE(i.learned_lifetime, t.learned_lifetime)
        FROM i WHERE t.account_id = i.account_id
    )
    INSERT INTO tokenfleet.account_events (account_id, kind, generation, job_id, actor)
    SELECT account_id, 'account.imported', generation, CAST(:import_id AS uuid), CAST(:actor AS text) FROM i
""")

_NOTE_CHANGES = text("""
    INSERT INTO tokenfleet.account_events (account_id, kind, job_id, actor, detail)
    SELECT account_id, 'account.described', CAST(:import_id AS uuid), CAST(:actor AS text),
           jsonb_build_object('changed', to_jsonb(string_to_array(changed, ' ')))
    FROM unnest(CAST(:account_ids AS bigint[]), CAST(:changed AS text[])) AS i (account_id, changed)
""")

_PAUSED_THERE = text("""
    UPDATE tokenfleet.accounts SET status_reason = 'paused where it comes from'
    WHERE id = ANY (CAST(:account_ids AS bigint[]))
""")

_TRY_AGAIN = text("""
    UPDATE tokenfleet.refresh_schedule s
    SET next_refresh_at = LEAST(s.next_refresh_at, now()), quarantined = false, doubts = 0, probing = false
    WHERE s.account_id = ANY (CAST(:account_ids AS bigint[]))
        AND s.next_refresh_at IS NOT NULL AND s.failing_since IS NOT NULL
        -- But not whose successor lies in a journal: what Postgres holds for them is spent.
        AND COALESCE(s.last_error, '') NOT LIKE 'answer_refused%'
""")


@dataclass(frozen=True, slots=True)
class Description:
    """Fields of an account that change; None leaves what is there."""

    account_id: AccountId
    app_id: AppId | None
    tenant: str | None
    variables: Mapping[str, str] | None
    metadata: Mapping[str, Any] | None
    fingerprint: bytes | None
    changed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RenewedTokens:
    """Tokens that replace those of an account, still in the clear. ``generation`` is their own."""

    description: Description
    generation: int
    access_token: Secret | None
    refresh_token: Secret | None
    token_type: str | None
    scope: str | None
    expires_at: datetime | None
    refresh_token_expires_at: datetime | None
    variables: Mapping[str, str]
    obtained_at: datetime
    granted_at: datetime
    learned_lifetime: timedelta | None
    next_visit: Visit
    returns: bool = False
    """The account was exported, and comes back (``store.export``)."""
    stays_paused: bool = False
    """An operator paused it where it was meanwhile."""
    brought: tuple[bytes, ...] = ()
    """Fingerprints of tokens that were imported where it comes from."""


def renew(connection: Connection, vault: Vault, renewals: Sequence[RenewedTokens], stamp: Stamp) -> None:
    """Replace the tokens of accounts that :func:`lock_tokens` locked, and set them going again.

    A paused account stays paused, unless it was exported and comes back. One that was ended, or had never connected,
    becomes active.
    """
    descriptions = [renewal.description for renewal in renewals]
    brought = {renewal.description.account_id: renewal.brought for renewal in renewals if renewal.brought}
    fingerprints.remember(connection, brought)
    granted_ats = [renewal.granted_at for renewal in renewals]
    statuses = _describe(connection, descriptions, granted_ats=granted_ats)
    ids = [renewal.description.account_id for renewal in renewals]
    reconnected = [
        renewal.description.account_id
        for renewal in renewals
        # Without an access token an account that never had one is still only connecting.
        if renewal.access_token or statuses[renewal.description.account_id] is not AccountStatus.CONNECTING
    ]
    transitions.apply(
        connection,
        Trigger.RECONNECTED,
        reconnected,
        actor=stamp.actor,
        reason=None,
        job_id=stamp.import_id,
    )
    back = _resume(connection, renewals, stamp)
    connection.execute(
        _RESCHEDULE,
        {
            "account_ids": ids,
            "app_ids": [renewal.description.app_id for renewal in renewals],
            "moments": [
                None
                if statuses[renewal.description.account_id] is AccountStatus.PAUSED
                and renewal.description.account_id not in back
                else renewal.next_visit.at
                for renewal in renewals
            ],
            "probing": [not renewal.next_visit.presents for renewal in renewals],
        },
    )
    connection.execute(
        _REPLACE_TOKENS,
        {
            "account_ids": ids,
            "generations": [renewal.generation for renewal in renewals],
            "access_tokens": [_sealed_access_token(vault, renewal) for renewal in renewals],
            "refresh_tokens": [_sealed_refresh_token(vault, renewal) for renewal in renewals],
            "token_types": [renewal.token_type for renewal in renewals],
            "scopes": [renewal.scope for renewal in renewals],
            "expiries": [renewal.expires_at for renewal in renewals],
            "refresh_expiries": [renewal.refresh_token_expires_at for renewal in renewals],
            "variables": [_json(renewal.variables) for renewal in renewals],
            "obtained_ats": [renewal.obtained_at for renewal in renewals],
            "learned_lifetimes": [renewal.learned_lifetime for renewal in renewals],
            "import_id": stamp.import_id,
            "actor": stamp.actor,
        },
    )


def _resume(connection: Connection, renewals: Sequence[RenewedTokens], stamp: Stamp) -> frozenset[AccountId]:
    """Resume the accounts that come back; returns them."""
    returned = [renewal for renewal in renewals if renewal.returns]
    if not returned:
        return frozenset()
    paused = [renewal.description.account_id for renewal in returned if renewal.stays_paused]
    connection.execute(_PAUSED_THERE, {"account_ids": paused})
    running = [renewal.description.account_id for renewal in returned if not renewal.stays_paused]
    return transitions.apply(
        connection, Trigger.RESUMED, running, actor=stamp.actor, reason=None, job_id=stamp.import_id
    )


def redescribe(connection: Connection, descriptions: Sequence[Description], stamp: Stamp) -> None:
    """Change what accounts are said to be, and write into the history what changed.

    Accounts that fail are asked about again at once when their variables change: a variable that led to the
    wrong place is a reason to fail that has just been removed.
    """
    _describe(connection, descriptions)
    changed = [description for description in descriptions if description.changed]
    if changed:
        connection.execute(
            _NOTE_CHANGES,
            {
                "account_ids": [description.account_id for description in changed],
                "changed": [" ".join(description.changed) for description in changed],
                "import_id": stamp.import_id,
                "actor": stamp.actor,
            },
        )
    corrected = [description.account_id for description in changed if "variables" in description.changed]
    if corrected:
        connection.execute(_TRY_AGAIN, {"account_ids": corrected})


def _describe(
    connection: Connection,
    descriptions: Sequence[Description],
    *,
    granted_ats: Sequence[datetime | None] | None = None,
) -> dict[AccountId, AccountStatus]:
    """Write descriptions; returns the status of each account, which cannot change before the commit.

    ``granted_ats`` is when their customers consented anew, if they did.
    """
    rows = connection.execute(
        _DESCRIBE,
        {
            "account_ids": [description.account_id for description in descriptions],
            "app_ids": [description.app_id for description in descriptions],
            "tenants": [description.tenant for description in descriptions],
            "variables": [_json(description.variables) for description in descriptions],
            "metadata": [_json(description.metadata) for description in descriptions],
            "fingerprints": [description.fingerprint for description in descriptions],
            "granted_ats": granted_ats or [None] * len(descriptions),
        },
    )
    return {AccountId(row.id): AccountStatus(row.status) for row in rows}


def _sealed_access_token(vault: Vault, renewal: RenewedTokens) -> bytes | None:
    if renewal.access_token is None:
        return None
    binding = access_token_binding(renewal.description.account_id, renewal.generation)
    return vault.access.seal(renewal.access_token.reveal(), binding)


def _sealed_refresh_token(vault: Vault, renewal: RenewedTokens) -> bytes | None:
    if renewal.refresh_token is None:
        return None
    binding = refresh_token_binding(renewal.description.account_id, renewal.generation)
    return vault.refresh.seal(renewal.refresh_token.reveal(), binding)


def _json(value: Mapping[str, Any] | None) -> str | None:
    return None if value is None else msgspec.json.encode(value).decode()
