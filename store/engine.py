"""Connections to Postgres: engines, their timeouts, and the checks a process makes before it works.

Every connection names its process, so ``pg_stat_activity`` says who does what, and has a statement timeout,
so that a stuck statement cannot hold rows for ever. No transaction is ever open across a provider call.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import psycopg
from psycopg.abc import AdaptContext
from psycopg.adapt import Buffer, Loader
from psycopg.pq import Format
from psycopg.types.array import ListBinaryDumper
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.exc import DBAPIError, OperationalError, ProgrammingError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry

from tokenfleet.errors import UserError
from tokenfleet.settings import redact_url
from tokenfleet_client.contract import APPLICATION_SCHEMA

STATEMENT_TIMEOUT_MS: Final = 30_000
LOCK_TIMEOUT_MS: Final = 10_000
CONNECT_TIMEOUT_SECONDS: Final = 5
TCP_USER_TIMEOUT_MS: Final = 10_000

SCHEMA_REVISION: Final = "0001"
"""What this release needs; a test compares it with the newest migration. Workers read it here, because loading
Alembic for it would cost each of them 5 MB."""


def _connect_args(application_name: str, lock_timeout_ms: int = LOCK_TIMEOUT_MS) -> dict[str, Any]:
    return {
        "application_name": application_name,
        "connect_timeout": CONNECT_TIMEOUT_SECONDS,
        # READ COMMITTED whatever the database defaults to: our guarded updates wait for a competitor and then
        # judge the row that it left; at a higher level they would fail.
        "options": f"-c statement_timeout={STATEMENT_TIMEOUT_MS} -c lock_timeout={lock_timeout_ms} "
        r"-c timezone=UTC -c default_transaction_isolation=read\ committed",
        # Keepalives are silent while something sent is unacknowledged: after a failover a commit would hang on.
        "tcp_user_timeout": TCP_USER_TIMEOUT_MS,
        "keepalives_idle": 15,
        "keepalives_interval": 5,
        "keepalives_count": 3,
    }


FIRST_MOMENT: Final = datetime.min.replace(tzinfo=UTC)
LAST_MOMENT: Final = datetime.max.replace(tzinfo=UTC)

_TIMESTAMPTZ: Final = psycopg.adapters.types["timestamptz"].oid
_MomentLoader: Final = psycopg.adapters.get_loader(_TIMESTAMPTZ, Format.TEXT) or Loader


class _BoundedMoment(Loader):
    """Reads a moment; one outside of Python's calendar, ``infinity`` among them, becomes its first or last.

    The driver raises for these, and one such row would stop every tick and every job that meets it.
    """

    def __init__(self, oid: int, context: AdaptContext | None = None) -> None:
        super().__init__(oid, context)
        self._load = _MomentLoader(oid, context).load

    def load(self, data: Buffer) -> datetime:
        try:
            moment: datetime = self._load(data)
        except psycopg.DataError:
            written = bytes(data)
            return FIRST_MOMENT if written.startswith(b"-") or written.endswith(b"BC") else LAST_MOMENT
        return moment


def _read_any_moment(_: object, pooled: ConnectionPoolEntry) -> None:
    driver: Any = pooled.driver_connection
    driver.adapters.register_loader(_TIMESTAMPTZ, _BoundedMoment)


def _send_arrays_in_binary(_: object, pooled: ConnectionPoolEntry) -> None:
    """Rows go to Postgres as arrays, which psycopg writes as text unless it is told otherwise.

    For sealed tokens that is twice the bytes and much escaping. Saving answers in groups of 128 took 61
    microseconds a row, 30 of them in this process; in binary it takes 36, 8 of them here.
    """
    driver: Any = pooled.driver_connection
    driver.adapters.register_dumper(list, ListBinaryDumper)


def make_engine(url: str, *, application_name: str, pool_size: int = 2) -> Engine:
    """Return a synchronous engine for commands and the scheduler. Connects on first use."""
    engine = create_engine(
        url,
        pool_size=pool_size,
        pool_pre_ping=True,
        hide_parameters=True,
        connect_args=_connect_args(application_name),
    )
    event.listen(engine, "connect", _send_arrays_in_binary)
    event.listen(engine, "connect", _read_any_moment)
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
        connect_args=_connect_args(application_name, lock_timeout_ms),
    )
    event.listen(engine.sync_engine, "connect", _send_arrays_in_binary)
    event.listen(engine.sync_engine, "connect", _read_any_moment)
    return engine


def database_now(connection: Connection) -> datetime:
    """Return the database's clock, the only one that decides claims and expiry."""
    now: datetime = connection.execute(text("SELECT clock_timestamp()")).scalar_one()
    return now


def schema_revision(connection: Connection) -> str | None:
    """Return the revision of the database, or None when it was never migrated."""
    table = f"{APPLICATION_SCHEMA}.alembic_version"
    exists = connection.execute(text("SELECT to_regclass(:table)"), {"table": table}).scalar_one()
    if exists is None:
        return None
    revision: str | None = connection.execute(text(f"SELECT version_num FROM {table}")).scalar_one_or_none()
    return revision


def check_ready(engine: Engine, *, max_clock_skew: timedelta, local_time: float | None = None) -> None:
    """Return when Postgres answers, its schema is current, and the clocks agree.

    Raises :class:`UserError` in one sentence otherwise. ``local_time`` is this machine's clock as seconds
    since the epoch, :func:`time.time` unless given.
    """
    shown = redact_url(engine.url.render_as_string(hide_password=True))
    try:
        with engine.connect() as connection:
            now = database_now(connection)
            current = schema_revision(connection)
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
    if current != SCHEMA_REVISION:
        state = (
            "has no Tokenfleet schema"
            if current is None
            else f"is at schema {current}, not {SCHEMA_REVISION}"
        )
        raise UserError(f"the database at {shown} {state}: run 'tokenfleet db upgrade'")
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
    return state[:2] in {"08", "53", "57", "58", "40", "55"} or state == "25006"


def is_contention(error: DBAPIError) -> bool:
    """Answer whether the statement waited for somebody else's lock in vain: 55P03, 57014, and class 40."""
    state = getattr(error.orig, "sqlstate", None) or ""
    return state in {"55P03", "57014"} or state.startswith("40")


def is_about_the_data(error: DBAPIError) -> bool:
    """Answer whether Postgres refuses these very values (SQLSTATE classes 22 and 23), and would do so again."""
    return (getattr(error.orig, "sqlstate", None) or "")[:2] in {"22", "23"}


def _reason(error: DBAPIError) -> str:
    """Return the driver's first line; libpq's messages name host, port and user, never the password."""
    lines = [line.strip() for line in str(error.orig).splitlines() if line.strip()]
    return lines[0] if lines else type(error.orig).__name__
