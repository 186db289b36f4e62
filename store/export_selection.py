"""Which accounts leave, and what may be said of each without opening anything: the masked export.

Read only; lists are paged by key, so that a page costs the same wherever it stands.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, Engine, select, text

from store.tables import accounts, oauth_apps
from tokenfleet.jobs import AccountId
from tokenfleet_client.contract import AccountStatus

PAGE: Final = 1000
"""Accounts that are read, or let go of, in one transaction."""

_MASKED = text("""
    SELECT a.id AS account_id, a.provider, a.environment, a.external_id, a.tenant, o.name AS app, o.client_id,
           a.status, a.status_reason, a.variables, a.metadata, a.created_at, a.granted_at, t.generation,
           t.access_token IS NOT NULL AS has_access_token, t.refresh_token IS NOT NULL AS has_refresh_token,
           t.token_type, t.scope, t.obtained_at AS received_at, t.expires_at, t.refresh_token_expires_at,
           s.next_refresh_at, s.failing_since, s.last_error
    FROM tokenfleet.accounts a
    JOIN tokenfleet.oauth_apps o ON o.id = a.app_id
    JOIN tokenfleet.token_sets t ON t.account_id = a.id
    JOIN tokenfleet.refresh_schedule s ON s.account_id = a.id
    WHERE a.id = ANY (CAST(:account_ids AS bigint[]))
    ORDER BY a.id
""")


@dataclass(frozen=True, slots=True)
class ExportFilter:
    """Which accounts are exported; None means any. ``app`` is the name of a registration."""

    provider: str | None = None
    environment: str | None = None
    tenant: str | None = None
    app: str | None = None
    status: AccountStatus | None = None

    def __bool__(self) -> bool:
        """Answer whether it leaves anybody out."""
        return any(getattr(self, name) is not None for name in self.__slots__)


@dataclass(frozen=True, slots=True)
class MaskedAccount:
    """All that is known of an account but its tokens, of which only is said whether there are any."""

    account_id: AccountId
    provider: str
    environment: str
    external_id: str
    tenant: str | None
    app: str
    client_id: str
    status: AccountStatus
    status_reason: str | None
    variables: Mapping[str, str]
    metadata: Mapping[str, Any]
    created_at: datetime
    granted_at: datetime
    generation: int
    has_access_token: bool
    has_refresh_token: bool
    token_type: str | None
    scope: str | None
    received_at: datetime
    expires_at: datetime | None
    refresh_token_expires_at: datetime | None
    next_refresh_at: datetime | None
    failing_since: datetime | None
    last_error: str | None


def pages(engine: Engine, wanted: ExportFilter) -> Iterator[list[AccountId]]:
    """Yield the ids of the accounts that ``wanted`` means, a page at a time; no transaction is open between two.

    Relies on the primary key, or ``ix_accounts_tenant`` or ``ix_accounts_troubled`` where these leave more out.
    """
    statement = select(accounts.c.id).order_by(accounts.c.id).limit(PAGE)
    for name in ("provider", "environment", "tenant"):
        if (value := getattr(wanted, name)) is not None:
            statement = statement.where(accounts.c[name] == value)
    if wanted.status is not None:
        statement = statement.where(accounts.c.status == wanted.status.value)
    if wanted.app is not None:
        named = select(oauth_apps.c.id).where(oauth_apps.c.name == wanted.app)
        statement = statement.where(accounts.c.app_id.in_(named))
    last = 0
    while True:
        with engine.connect() as connection:
            ids = [
                AccountId(each)
                for each in connection.execute(statement.where(accounts.c.id > last)).scalars()
            ]
        if ids:
            yield ids
            last = ids[-1]
        if len(ids) < PAGE:
            return


def count(engine: Engine, wanted: ExportFilter) -> int | None:
    """Return how many accounts there are in all, nearly, where ``wanted`` leaves nobody out; else None."""
    if wanted:
        return None
    with engine.connect() as connection:
        estimate = connection.execute(
            text("SELECT reltuples::bigint FROM pg_class WHERE oid = 'tokenfleet.accounts'::regclass")
        ).scalar_one()
    return int(estimate) if estimate > PAGE else None


def masked(connection: Connection, account_ids: Sequence[AccountId]) -> list[MaskedAccount]:
    """Return what may be said of accounts, by id."""
    rows = connection.execute(_MASKED, {"account_ids": list(account_ids)})
    return [MaskedAccount(**{**row._mapping, "status": AccountStatus(row.status)}) for row in rows]
