"""One account whole, for people: who it is, where it stands, what its tokens and its schedule say.

Nothing here opens or returns a sealed value: whoever shows an account never holds its tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, text

from store import apps
from store.registrations import Registrations
from tokenfleet.app_levels import AppLevel, is_more_specific, level_of
from tokenfleet.jobs import AccountId, AppId
from tokenfleet_client.contract import AccountStatus


@dataclass(frozen=True, slots=True)
class AppState:
    """The registration an account is refreshed with, and whether it may be asked for now.

    ``more_specific`` is the environment and name of one that a new account in its place would get, None when there is
    none: it stays with the app that issued its grant.
    """

    app_id: AppId
    name: str
    paused_until: datetime | None
    held_since: datetime | None
    held_code: str | None
    environment: str
    level: AppLevel
    more_specific: str | None


@dataclass(frozen=True, slots=True)
class TokenFacts:
    """Everything about an account's tokens but the tokens."""

    generation: int
    has_access_token: bool
    has_refresh_token: bool
    token_type: str | None
    scope: str | None
    expires_at: datetime | None
    obtained_at: datetime
    refresh_token_expires_at: datetime | None
    candidates: int
    """Answers kept beside the current tokens because their write lost a race."""


@dataclass(frozen=True, slots=True)
class ScheduleFacts:
    """When an account is asked about next, who is at it, and what went wrong lately."""

    next_refresh_at: datetime | None
    claimed_until: datetime | None
    claim_epoch: int
    started_epoch: int
    attempts: int
    unanswered: int
    failing_since: datetime | None
    last_error: str | None
    quarantined: bool
    doubts: int = 0
    """Answers in a row with which repetition may not help: a suspect, unless it is in quarantine already."""
    incident_id: int | None = None
    """The incident that has set it apart, and on whose end it waits."""
    probing: bool = False
    """The next visit only probes whether the access token works."""


@dataclass(frozen=True, slots=True)
class AccountDetail:
    """One account whole. ``token`` or ``schedule`` is None while an import has not got that far.

    ``database_now`` is the moment, by the database's clock, at which all this was so.
    """

    account_id: AccountId
    provider: str
    environment: str
    external_id: str
    tenant: str | None
    status: AccountStatus
    status_reason: str | None
    status_changed_at: datetime
    created_at: datetime
    variables: Mapping[str, str]
    metadata: Mapping[str, Any]
    app: AppState
    token: TokenFacts | None
    schedule: ScheduleFacts | None
    database_now: datetime


_DETAILS = text("""
    SELECT a.id, a.provider, a.environment, a.external_id, a.tenant, a.status, a.status_reason,
           a.status_changed_at, a.created_at, a.variables || COALESCE(t.variables, '{}') AS variables,
           a.metadata, a.app_id, p.environment AS app_environment, p.name AS app_name,
           p.paused_until, p.held_since, p.held_code,
           t.account_id AS token_of, t.generation, t.access_token IS NOT NULL AS has_access_token,
           t.refresh_token IS NOT NULL AS has_refresh_token, t.token_type, t.scope, t.expires_at,
           t.obtained_at, t.refresh_token_expires_at,
           (SELECT count(*) FROM tokenfleet.token_candidates c WHERE c.account_id = a.id) AS candidates,
           s.account_id AS schedule_of, s.next_refresh_at, s.claimed_until, s.claim_epoch, s.started_epoch,
           s.attempts, s.unanswered, s.failing_since, s.last_error, s.quarantined,
           s.doubts, s.incident_id, s.probing,
           clock_timestamp() AS database_now
    FROM tokenfleet.accounts a
    JOIN tokenfleet.oauth_apps p ON p.id = a.app_id
    LEFT JOIN tokenfleet.token_sets t ON t.account_id = a.id
    LEFT JOIN tokenfleet.refresh_schedule s ON s.account_id = a.id
    WHERE a.id = ANY (CAST(:account_ids AS bigint[]))
""")


def details(connection: Connection, account_ids: Iterable[AccountId]) -> dict[AccountId, AccountDetail]:
    """Return every account of ``account_ids`` that exists, whole."""
    rows = connection.execute(_DETAILS, {"account_ids": list(account_ids)}).all()
    registered = Registrations(apps.all_for(connection, [row.external_id for row in rows]))
    return {AccountId(row.id): _detail(row, registered) for row in rows}


def _app(row: Any, registered: Registrations) -> AppState:
    level = level_of(row.app_environment, row.app_name)
    other = registered.for_new(row.provider, row.environment, row.external_id)
    if other is not None and not is_more_specific(level_of(other.environment, other.name), level):
        other = None
    return AppState(
        app_id=AppId(row.app_id),
        environment=row.app_environment,
        name=row.app_name,
        level=level,
        more_specific=None if other is None else f"{other.environment}/{other.name}",
        paused_until=row.paused_until,
        held_since=row.held_since,
        held_code=row.held_code,
    )


def _detail(row: Any, registered: Registrations) -> AccountDetail:
    token = schedule = None
    if row.token_of is not None:
        token = TokenFacts(
            generation=row.generation,
            has_access_token=row.has_access_token,
            has_refresh_token=row.has_refresh_token,
            token_type=row.token_type,
            scope=row.scope,
            expires_at=row.expires_at,
            obtained_at=row.obtained_at,
            refresh_token_expires_at=row.refresh_token_expires_at,
            candidates=row.candidates,
        )
    if row.schedule_of is not None:
        schedule = ScheduleFacts(
            next_refresh_at=row.next_refresh_at,
            claimed_until=row.claimed_until,
            claim_epoch=row.claim_epoch,
            started_epoch=row.started_epoch,
            attempts=row.attempts,
            unanswered=row.unanswered,
            failing_since=row.failing_since,
            last_error=row.last_error,
            quarantined=row.quarantined,
            doubts=row.doubts,
            incident_id=row.incident_id,
            probing=row.probing,
        )
    return AccountDetail(
        account_id=AccountId(row.id),
        provider=row.provider,
        environment=row.environment,
        external_id=row.external_id,
        tenant=row.tenant,
        status=AccountStatus(row.status),
        status_reason=row.status_reason,
        status_changed_at=row.status_changed_at,
        created_at=row.created_at,
        variables=row.variables,
        metadata=row.metadata,
        app=_app(row, registered),
        token=token,
        schedule=schedule,
        database_now=row.database_now,
    )
