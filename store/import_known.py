"""The accounts that the lines of an import name, as they stand, and their tokens under lock.

The statements rely on ``uq_accounts_provider`` and the primary keys.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, text

from store.import_judgement import KnownAccount
from tokenfleet.account import EXPORTED
from tokenfleet.jobs import AccountId, AppId
from tokenfleet_client.contract import AccountStatus

_EXISTING = text("""
    SELECT a.id, a.external_id, a.app_id, a.status, a.tenant, a.variables, a.metadata,
           a.imported_fingerprints,
           CASE WHEN a.status = 'paused' AND starts_with(a.status_reason, :exported)
                THEN a.status_changed_at END AS exported_at
    FROM tokenfleet.accounts a
    WHERE a.provider = :provider AND a.environment = :environment
        AND a.external_id = ANY (CAST(:external_ids AS text[]))
""")

_LOCK_TOKENS = text("""
    SELECT t.account_id, t.generation, t.access_token, t.refresh_token, t.token_type, t.scope, t.expires_at,
           t.variables
    FROM tokenfleet.token_sets t
    WHERE t.account_id = ANY (CAST(:account_ids AS bigint[]))
    ORDER BY t.account_id
    FOR UPDATE
""")


@dataclass(frozen=True, slots=True)
class StoredTokens:
    """A locked row of ``token_sets``; tokens are sealed."""

    account_id: AccountId
    generation: int
    access_token: bytes | None
    refresh_token: bytes | None
    token_type: str | None
    scope: str | None
    expires_at: datetime | None
    variables: Mapping[str, str]


def existing(
    connection: Connection, provider: str, environment: str, external_ids: Sequence[str]
) -> Iterator[tuple[str, KnownAccount]]:
    """Yield the accounts that exist among ``external_ids``, each with its external id."""
    rows = connection.execute(
        _EXISTING,
        {
            "provider": provider,
            "environment": environment,
            "external_ids": external_ids,
            "exported": EXPORTED,
        },
    )
    for row in rows:
        yield (
            row.external_id,
            KnownAccount(
                account_id=AccountId(row.id),
                app_id=AppId(row.app_id),
                status=AccountStatus(row.status),
                tenant=row.tenant,
                variables=row.variables,
                metadata=row.metadata,
                fingerprints=frozenset(row.imported_fingerprints),
                exported_at=row.exported_at,
            ),
        )


def lock_tokens(connection: Connection, account_ids: Sequence[AccountId]) -> list[StoredTokens]:
    """Return the token sets of accounts and keep workers from replacing them until the chunk is committed."""
    rows = connection.execute(_LOCK_TOKENS, {"account_ids": account_ids})
    return [StoredTokens(**row._mapping) for row in rows]
