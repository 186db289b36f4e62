"""Connections to Postgres: engines, their timeouts, and the checks a process makes before it works.

Every connection names its process, so ``pg_stat_activity`` says who does what, and has a statement timeout,
so that a stuck statement cannot hold rows for ever. No transaction is ever open across a provider call.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.exc import DBAPIError, OperationalError, ProgrammingError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from store.driver import READ_ONLY, BoundedConnection, adjust
from tokenfleet.errors import UserError
from tokenfleet.settings import redact_url
from tokenfleet_client.contract import APPLICATION_SCHEMA

STATEMENT_TIMEOUT_MS: Final = 30_000
LOCK_TIMEOUT_MS: Final = 10_000
CONNECT_TIMEOUT_SECONDS: Final = 5
TCP_USER_TIMEOUT_MS: Final = 10_000
IDLE_IN_TRANSACTION_MS: Final = 5_000
"""After so long Postgres ends the session of a scheduler or worker that was frozen in the middle of a transaction:
the rows it has locked would be out of everybody's reach for as long as it sleeps. Not for commands, which may page
through a result at a person's pace."""
SCHEMA_REVISION: Final = "0010"
"""What this release needs; a test compares it with the newest migration. Workers read it here, because loading
Alembic for it would cost each of them 5 MB. Revisions are numbers of four digits, so they compare as text."""


def _connect_args(
    application_name: str, *, lock_timeout_ms: int = LOCK_TIMEOUT_MS, idle_in_transaction_ms: int = 0
) -> dict[str, Any]:
    return {
        "application_name": application_name,
        "connect_timeout": CONNECT_TIMEOUT_SECONDS,
        # READ COMMITTED whatever the database defaults to: our guarded updates wait for a competitor and then
        # judge the row that it left; at a higher level they would fail.
        "options": f"-c statement_timeout={STATEMENT_TIMEOUT_MS} -c lock_timeout={lock_timeout_ms} "
        f"-c idle_in_transaction_session_timeout={idle_in_transaction_ms} "
        r"-c timezone=UTC -c default_transaction_isolation=read\ committed",
        # Keepalives are silent while something sent is unacknowledged: after a failover a commit would hang on.
        "tcp_user_timeout": TCP_USER_TIMEOUT_MS,
        "keepalives_idle": 15,
        "keepalives_interval": 5,
        "keepalives_count": 3,
    }


def make_engine(
    url: str, *, application_name: str, pool_size: int = 2, idle_in_transaction_ms: int = 0
) -> Engine:
    """Return a synchronous engine for commands and the scheduler. Connects on first use.

    A transaction that its process leaves idle for ``idle_in_transaction_ms`` is ended; 0 is never.
    """
    engine = create_engine(
        url,
        pool_size=pool_size,
        pool_pre_ping=True,
        hide_parameters=True,
        connect_args=_connect_args(application_name, idle_in_transaction_ms=idle_in_transaction_ms),
    )
    adjust(engine)
    return engine


def make_async_engine(
    url: str, *, application_name: str, pool_size: int, lock_timeout_ms: int = LOCK_TIMEOUT_MS
) -> AsyncEngine:
    """Return the engine of a worker's event loop. Connects on first use."""
    engine = create_async_engine(
        url,
        pool_size=pool_size,
        max_overflow=2,
        pool_pre_ping=False,
        hide_parameters=True,
        connect_args=_connect_args(
            application_name,
            lock_timeout_ms=lock_timeout_ms,
            idle_in_transaction_ms=IDLE_IN_TRANSACTION_MS,
        )
        | {"async_creator_fn": BoundedConnection.connect},
    )
    adjust(engine.sync_engine)
    return engine


def database_now(connection: Connection) -> datetime:
    """Return the database's clock, the only one that decides claims and expiry."""
    now: datetime = connection.execute(text("SELECT clock_timestamp()")).scalar_one()
    return now


def postmaster_start(connection: Connection) -> datetime:
    """Return when this Postgres was started."""
    moment: datetime = connection.execute(text("SELECT pg_postmaster_start_time()")).scalar_one()
    return moment


@dataclass(frozen=True, slots=True)
class Schema:
    """What the database says of its schema. ``revision`` is None when it was never migrated."""

    revision: str | None
    compatible_from: str | None = None
    """The oldest ``SCHEMA_REVISION`` whose release runs on this schema, as the migration said that made it."""

    @property
    def serves(self) -> bool:
        """Whether this release runs on it: on its own schema, and on newer ones that say so (ADR 9)."""
        if self.revision is None or self.revision < SCHEMA_REVISION:
            return False
        oldest = self.revision if self.compatible_from is None else self.compatible_from
        return oldest <= SCHEMA_REVISION

    def problem(self, shown: str) -> str | None:
        """Return why this release does not run on it, and what to do, or None. ``shown`` names the database."""
        if self.serves:
            return None
        if self.revision is None:
            return f"the database at {shown} has no Tokenfleet schema: run 'tokenfleet db upgrade'"
        if self.revision < SCHEMA_REVISION:
            return (
                f"the database at {shown} is at schema {self.revision}, not {SCHEMA_REVISION}: run "
                "'tokenfleet db upgrade'"
            )
        oldest = self.compatible_from or self.revision
        return (
            f"this release is older than the database at {shown}: it is for schema {SCHEMA_REVISION}, the "
            f"database is at {self.revision}: deploy a release for schema {oldest} or newer"
        )


def schema_of(connection: Connection) -> Schema:
    """Return what the database says of its schema."""
    table = f"{APPLICATION_SCHEMA}.alembic_version"
    exists = connection.execute(text("SELECT to_regclass(:table)"), {"table": table}).scalar_one()
    if exists is None:
        return Schema(None)
    # As a document, because databases that were migrated before the rule have no such column.
    found = connection.execute(
        text(f"SELECT version_num, to_jsonb(v) ->> 'compatible_from' FROM {table} v")
    ).one_or_none()
    return Schema(None) if found is None else Schema(*found)


def schema_revision(connection: Connection) -> str | None:
    """Return the revision of the database, or None when it was never migrated."""
    return schema_of(connection).revision


def check_ready(engine: Engine, *, max_clock_skew: timedelta, local_time: float | None = None) -> None:
    """Return when Postgres answers, its schema serves this release, and the clocks agree.

    Raises :class:`UserError` in one sentence otherwise. ``local_time`` is this machine's clock as seconds
    since the epoch, :func:`time.time` unless given.
    """
    shown = redact_url(engine.url.render_as_string(hide_password=True))
    try:
        with engine.connect() as connection:
            now = database_now(connection)
            schema = schema_of(connection)
    except OperationalError as error:
        raise UserError(
            f"Postgres at {shown} does not answer ({_reason(error)}): start it, or correct "
            "TOKENFLEET_DATABASE_URL"
        ) from error
    except ProgrammingError as error:
        raise UserError(
            f"Postgres at {shown} does not let us look ({_reason(error)}): grant that to the role, or name "
            "another one in TOKENFLEET_DATABASE_URL"
        ) from error
    if (problem := schema.problem(shown)) is not None:
        raise UserError(problem)
    skew = (local_time if local_time is not None else time.time()) - now.timestamp()
    if abs(skew) > max_clock_skew.total_seconds():
        side = "ahead of" if skew > 0 else "behind"
        raise UserError(
            f"this machine's clock is {abs(skew):.0f} s {side} the database's: synchronise the clocks (chrony "
            "or systemd-timesyncd), or raise TOKENFLEET_MAX_CLOCK_SKEW_SECONDS if you know why"
        )


def is_outage(error: DBAPIError) -> bool:
    """Answer whether ``error`` says that Postgres is away or busy, rather than that a statement is wrong.

    Connection loss, shutdown, too many connections, out of disk or memory, lock and statement timeouts,
    deadlock and read-only failover states (SQLSTATE classes 08, 53, 57, 58, 40 and 55, and 25006).
    """
    if error.connection_invalidated:
        return True
    state = getattr(error.orig, "sqlstate", None)
    if state is None:
        return isinstance(error, OperationalError)
    return state[:2] in {"08", "53", "57", "58", "40", "55"} or state == READ_ONLY


def is_contention(error: DBAPIError) -> bool:
    """Answer whether somebody else was in the way: a lock (55P03, 57014, class 40), or a partition in the making."""
    state = getattr(error.orig, "sqlstate", None) or ""
    return state in {"55P03", "57014"} or state.startswith("40") or _met_a_new_partition(error)


def is_too_slow(error: DBAPIError) -> bool:
    """Answer whether a statement took longer than it may, or somebody ended it: 57014.

    Whoever waits for a lock is told so far sooner, so this is a server that can hardly write.
    """
    return getattr(error.orig, "sqlstate", None) == "57014"


def is_about_the_data(error: DBAPIError) -> bool:
    """Answer whether Postgres refuses these very values (SQLSTATE classes 22 and 23), and would do so again."""
    refused = (getattr(error.orig, "sqlstate", None) or "")[:2] in {"22", "23"}
    return refused and not _met_a_new_partition(error)


def _met_a_new_partition(error: DBAPIError) -> bool:
    """A row was on its way to the default partition while its day got one of its own: written again, it fits."""
    diagnosis = getattr(error.orig, "diag", None)
    return (
        getattr(error.orig, "sqlstate", None) == "23514"
        and getattr(diagnosis, "constraint_name", None) is None
        and (getattr(diagnosis, "table_name", None) or "").endswith("_default")
    )


def _reason(error: DBAPIError) -> str:
    """Return the driver's first line; libpq's messages name host, port and user, never the password."""
    lines = [line.strip() for line in str(error.orig).splitlines() if line.strip()]
    return lines[0] if lines else type(error.orig).__name__
