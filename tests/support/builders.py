"""Apps and accounts put straight into the database, with tokens that really open; and what became of them.

Tokens are named after their generation (``access-1``, ``refresh-1``), so a test can say which one it means.
"""

from __future__ import annotations

import itertools
import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.engine import make_url

from store import apps, claiming, schedule
from store.answers import SavedTokens
from store.claiming import Allowance, Claim
from store.engine import make_engine
from store.keys import Vault
from store.rejection import Rejection
from store.schedule import Attempt
from store.settlement import Deferral
from tokenfleet.jobs import AccountId, AppId, Epoch, RefreshJob
from tokenfleet_client.contract import AccountStatus
from tokenfleet_client.envelope import access_token_binding, refresh_token_binding
from tokenfleet_client.secret import Secret

PROVIDER: Final = "acme"
CLAIM: Final = timedelta(seconds=30)
HOUR: Final = timedelta(hours=1)
JOB_ID: Final = uuid.UUID("00000000-0000-4000-8000-00000000000a")
ACTOR: Final = "test"

_numbers = itertools.count(1)


def now() -> datetime:
    """This machine's clock, which is the test database's too."""
    return datetime.now(UTC)


@contextmanager
def empty_database(servers: Mapping[str, str]) -> Iterator[Engine]:
    """Yield an engine on a database of its own in which there is nothing yet."""
    name = f"tokenfleet_test_{uuid.uuid4().hex[:12]}"
    server = make_url(servers["TOKENFLEET_DATABASE_URL"])
    admin = create_engine(server, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    url = server.set(database=name).render_as_string(hide_password=False)
    engine = make_engine(url, application_name="test")
    yield engine
    engine.dispose()
    with admin.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    admin.dispose()


def make_app(
    engine: Engine,
    vault: Vault,
    *,
    provider: str = PROVIDER,
    environment: str = apps.DEFAULT_ENVIRONMENT,
    name: str | None = None,
    client_id: str = "client-1",
    client_secret: str | None = "client-secret-1",
    variables: Mapping[str, str] | None = None,
) -> AppId:
    """Register an app, under a name of its own unless one is given."""
    with engine.begin() as connection:
        return apps.register(
            connection,
            vault.refresh,
            provider=provider,
            environment=environment,
            name=name or f"app-{next(_numbers)}",
            client_id=client_id,
            client_secret=None if client_secret is None else Secret(client_secret),
            variables=variables or {},
        ).app_id


def make_account(
    engine: Engine,
    vault: Vault,
    app_id: AppId,
    *,
    external_id: str | None = None,
    tenant: str | None = None,
    status: AccountStatus = AccountStatus.ACTIVE,
    variables: Mapping[str, str] | None = None,
    metadata: Mapping[str, Any] | None = None,
    generation: int = 1,
    access_token: str | None = None,
    refresh_token: str | None = None,
    scope: str | None = None,
    expires_in: timedelta | None = HOUR,
    due_in: timedelta | None = timedelta(0),
) -> AccountId:
    """Insert one account of the app with sealed tokens; returns its id.

    The tokens are ``access-<generation>`` and ``refresh-<generation>`` unless given; a ``connecting`` account
    has no access token. ``due_in=None`` leaves it off the schedule, as do the statuses that are not refreshed.
    """
    refreshable = status in {AccountStatus.ACTIVE, AccountStatus.CONNECTING}
    with engine.begin() as connection:
        row = connection.execute(
            text("""
                INSERT INTO tokenfleet.accounts
                    (provider, environment, external_id, tenant, app_id, status, variables, metadata)
                SELECT provider, environment, :external_id, :tenant, id, :status,
                       CAST(:variables AS jsonb), CAST(:metadata AS jsonb)
                FROM tokenfleet.oauth_apps WHERE id = :app_id
                RETURNING id
            """),
            {
                "external_id": external_id or f"customer-{next(_numbers)}",
                "tenant": tenant,
                "app_id": app_id,
                "status": status.value,
                "variables": _json(variables),
                "metadata": _json(metadata),
            },
        ).one()
        account_id = AccountId(row.id)
        connecting = status is AccountStatus.CONNECTING and access_token is None
        connection.execute(
            text("""
                INSERT INTO tokenfleet.token_sets
                    (account_id, generation, epoch, access_token, refresh_token, scope, expires_at, obtained_at)
                VALUES (:id, :generation, 0, :access, :refresh, :scope, now() + CAST(:life AS interval), now())
            """),
            {
                "id": account_id,
                "generation": generation,
                "access": None
                if connecting
                else vault.access.seal(
                    access_token or f"access-{generation}", access_token_binding(account_id, generation)
                ),
                "refresh": vault.refresh.seal(
                    refresh_token or f"refresh-{generation}", refresh_token_binding(account_id, generation)
                ),
                "scope": scope,
                "life": None if connecting else expires_in,
            },
        )
        connection.execute(
            text("""
                INSERT INTO tokenfleet.refresh_schedule (account_id, app_id, next_refresh_at)
                VALUES (:id, :app_id, now() + CAST(:due_in AS interval))
            """),
            {"id": account_id, "app_id": app_id, "due_in": due_in if refreshable else None},
        )
    return account_id


def make_accounts(engine: Engine, vault: Vault, app_id: AppId, count: int) -> list[AccountId]:
    """Insert ``count`` active accounts that are due now, the first the most urgent."""
    return [
        make_account(engine, vault, app_id, due_in=timedelta(milliseconds=-(count - position)))
        for position in range(count)
    ]


def park(connection: Connection, app_id: AppId, *account_ids: AccountId) -> int:
    """Open an incident that has set these accounts apart; returns its id."""
    incident_id: int = connection.execute(
        text(
            "INSERT INTO tokenfleet.provider_incidents (app_id, kind, code) "
            "VALUES (:app_id, 'mass_rejection', 'invalid_grant') RETURNING id"
        ),
        {"app_id": app_id},
    ).scalar_one()
    connection.execute(
        text(
            "UPDATE tokenfleet.refresh_schedule SET incident_id = :incident, next_refresh_at = NULL, "
            "last_error = 'invalid_grant' WHERE account_id = ANY (CAST(:ids AS bigint[]))"
        ),
        {"incident": incident_id, "ids": list(account_ids)},
    )
    return incident_id


def make_many_accounts(
    engine: Engine, app_id: AppId, count: int, *, due_from: timedelta, due_to: timedelta
) -> None:
    """Insert ``count`` accounts in one go, due evenly between two moments counted from now.

    Their tokens are bytes that do not open: enough for plans, locks and counts. Statistics are brought up to
    date.
    """
    with engine.begin() as connection:
        connection.execute(text("SET LOCAL statement_timeout = '5min'"))
        connection.execute(
            text("""
                INSERT INTO tokenfleet.accounts (provider, environment, external_id, app_id, status)
                SELECT provider, environment, 'many-' || id || '-' || n, id, 'active'
                FROM tokenfleet.oauth_apps, generate_series(1, CAST(:count AS int)) AS n WHERE id = :app_id
            """),
            {"count": count, "app_id": app_id},
        )
        connection.execute(
            text("""
                INSERT INTO tokenfleet.token_sets
                    (account_id, generation, epoch, access_token, refresh_token, expires_at, obtained_at)
                SELECT id, 1, 0, CAST(repeat('a', 300) AS bytea), CAST(repeat('r', 300) AS bytea),
                       now() + interval '1 hour', now()
                FROM tokenfleet.accounts WHERE app_id = :app_id AND external_id LIKE 'many-%'
            """),
            {"app_id": app_id},
        )
        connection.execute(
            text("""
                INSERT INTO tokenfleet.refresh_schedule (account_id, app_id, next_refresh_at)
                SELECT id, app_id, now() + CAST(:due_from AS interval)
                    + (CAST(:due_to AS interval) - CAST(:due_from AS interval)) * (row_number() OVER ())
                      / CAST(:count AS double precision)
                FROM tokenfleet.accounts WHERE app_id = :app_id AND external_id LIKE 'many-%'
            """),
            {"app_id": app_id, "due_from": due_from, "due_to": due_to, "count": count},
        )
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("SET statement_timeout = '5min'"))
        connection.execute(text("VACUUM ANALYZE"))
        connection.execute(text("RESET statement_timeout"))


def claim(
    engine: Engine, app_id: AppId, *, count: int = 1000, window: int = 10_000, lasting: timedelta = CLAIM
) -> list[Claim]:
    """Claim what is due of one app, as a scheduler does."""
    with engine.begin() as connection:
        claims = claiming.claim_due(connection, [Allowance(app_id, count, window)], claim=lasting)
    return claims.get(app_id, [])


def job_of(app_id: AppId, claims: Sequence[Claim]) -> RefreshJob:
    """Return the message about these claims."""
    pairs = tuple((each.account_id, each.epoch) for each in claims)
    return RefreshJob(str(JOB_ID), app_id, pairs)


def start(engine: Engine, job: RefreshJob, *, lasting: timedelta = CLAIM) -> list[Attempt]:
    """Start the job's claims, as a worker does."""
    with engine.begin() as connection:
        return schedule.start(connection, job, claim=lasting)


def begin_attempt(engine: Engine, app_id: AppId, account_id: AccountId) -> Attempt:
    """Claim and start one due account."""
    claims = [each for each in claim(engine, app_id) if each.account_id == account_id]
    [attempt] = start(engine, job_of(app_id, claims))
    return attempt


def let_claims_expire(engine: Engine) -> None:
    """Put the end of every claim into the past: time passes, nothing else happens."""
    with engine.begin() as connection:
        connection.execute(
            text(
                "UPDATE tokenfleet.refresh_schedule SET claimed_until = now() - interval '1 millisecond' "
                "WHERE claimed_until IS NOT NULL"
            )
        )


def make_due(engine: Engine, *account_ids: AccountId) -> None:
    """Put the due moment of accounts into the past."""
    with engine.begin() as connection:
        connection.execute(
            text(
                "UPDATE tokenfleet.refresh_schedule SET next_refresh_at = now() - interval '1 second' "
                "WHERE account_id = ANY (CAST(:ids AS bigint[]))"
            ),
            {"ids": list(account_ids)},
        )


def answer(
    vault: Vault,
    account_id: AccountId,
    *,
    epoch: int,
    generation: int,
    access_token: str | None = None,
    refresh_token: str | None = None,
    token_type: str | None = "Bearer",
    scope: str | None = None,
    next_refresh_at: datetime | None = None,
    variables: Mapping[str, str] | None = None,
    activates: bool = False,
) -> SavedTokens:
    """Return a good answer to an attempt, sealed for the generation after the one it was asked with."""
    sealed_for = generation + 1
    return SavedTokens(
        account_id=account_id,
        epoch=Epoch(epoch),
        generation=generation,
        access_token=vault.access.seal(
            access_token or f"access-{sealed_for}", access_token_binding(account_id, sealed_for)
        ),
        refresh_token=vault.refresh.seal(
            refresh_token or f"refresh-{sealed_for}", refresh_token_binding(account_id, sealed_for)
        ),
        token_type=token_type,
        scope=scope,
        expires_at=now() + HOUR,
        obtained_at=now(),
        refresh_token_expires_at=None,
        variables=variables or {},
        next_refresh_at=next_refresh_at or now() + HOUR,
        job_id=JOB_ID,
        duration_ms=200,
        activates=activates,
    )


def deferral(
    attempt: Attempt,
    *,
    code: str = "http_503",
    kind: str = "refresh.unavailable",
    counts: bool = True,
    answer_lost: bool = False,
    quarantined: bool = False,
    wait: timedelta = timedelta(minutes=1),
    detail: str | None = None,
) -> Deferral:
    """Return a failure of an attempt that leaves the account as it is."""
    return Deferral(
        account_id=attempt.account_id,
        epoch=attempt.epoch,
        generation=attempt.generation,
        next_refresh_at=now() + wait,
        code=code,
        kind=kind,
        counts=counts,
        answer_lost=answer_lost,
        quarantined=quarantined,
        job_id=JOB_ID,
        duration_ms=200,
        detail=detail,
    )


def rejection(
    account_id: AccountId, *, epoch: int, generation: int, reason: str = "invalid_grant"
) -> Rejection:
    """Return the provider's definite word on the grant that ``generation`` held."""
    return Rejection(
        account_id=account_id,
        epoch=Epoch(epoch),
        generation=generation,
        reason=reason,
        code="invalid_grant",
        job_id=JOB_ID,
        duration_ms=200,
    )


@dataclass(frozen=True, slots=True)
class State:
    """Everything the database holds of one account, its tokens opened. Fails when one does not open."""

    status: AccountStatus
    status_reason: str | None
    generation: int
    access_token: str | None
    refresh_token: str | None
    scope: str | None
    variables: Mapping[str, str]
    next_refresh_at: datetime | None
    claimed_until: datetime | None
    claim_epoch: int
    started_epoch: int
    attempts: int
    unanswered: int
    failing_since: datetime | None
    last_error: str | None
    quarantined: bool


def state_of(engine: Engine, vault: Vault, account_id: AccountId) -> State:
    """Return what the database holds of an account now."""
    with engine.connect() as connection:
        row = connection.execute(
            text("""
                SELECT a.status, a.status_reason, t.generation, t.access_token, t.refresh_token, t.scope,
                       a.variables || t.variables AS variables, s.next_refresh_at, s.claimed_until,
                       s.claim_epoch, s.started_epoch, s.attempts, s.unanswered, s.failing_since,
                       s.last_error, s.quarantined
                FROM tokenfleet.accounts a
                JOIN tokenfleet.token_sets t ON t.account_id = a.id
                JOIN tokenfleet.refresh_schedule s ON s.account_id = a.id
                WHERE a.id = :id
            """),
            {"id": account_id},
        ).one()
    values = dict(row._mapping)
    place = (account_id, row.generation)
    if row.access_token is not None:
        values["access_token"] = vault.access.open(row.access_token, access_token_binding(*place))
    if row.refresh_token is not None:
        values["refresh_token"] = vault.refresh.open(row.refresh_token, refresh_token_binding(*place))
    return State(**values | {"status": AccountStatus(row.status)})


def history_of(engine: Engine, account_id: AccountId) -> list[str]:
    """Return the kinds of an account's history rows, oldest first."""
    return column(
        engine, "SELECT kind FROM tokenfleet.account_events WHERE account_id = :id ORDER BY at", id=account_id
    )


def told_about(engine: Engine, account_id: AccountId) -> list[str]:
    """Return the types of the events in the outbox about an account, oldest first."""
    return column(
        engine,
        "SELECT event_type FROM tokenfleet.outbox WHERE account_id = :id ORDER BY sequence",
        id=account_id,
    )


def column(engine: Engine, statement: str, **parameters: object) -> list[Any]:
    """Return the first column of a query."""
    with engine.connect() as connection:
        return values(connection, statement, **parameters)


def values(connection: Connection, statement: str, **parameters: object) -> list[Any]:
    """Return the first column of a query in somebody's transaction."""
    return list(connection.execute(text(statement), parameters).scalars())


def _json(value: Mapping[str, Any] | None) -> str:
    return json.dumps(dict(value or {}))
