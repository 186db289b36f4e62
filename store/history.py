"""The story of each account: append-only rows, partitioned by day, kept for a set time.

Invariant: keeping house never holds up the fleet. Every answer writes history, so a partition is added and
dropped with little patience for locks: while somebody reads the table for an hour (a dump, say), the work waits
for the next round, not the answers for the work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from tokenfleet.jobs import AccountId

DAYS_AHEAD: Final = 7
PATIENCE_MS: Final = 250
"""How long a partition's lock is waited for. Writers queue behind such a wait."""
DEFAULT_ROWS_AT_ONCE: Final = 10_000
_LOCK_NOT_AVAILABLE: Final = "55P03"
_CHECK_VIOLATION: Final = "23514"
"""The default partition got a row of that day after we had looked: the day stays there."""
_NOT_OURS: Final = "42501"
_FORGOTTEN: Final = "deleted from account_events_default"
_PREFIX: Final = "account_events_"
_HOUSEKEEPING_LOCK: Final = 7_305_811_036

_OWNER = text("""
    SELECT CASE WHEN rolname <> current_user THEN quote_ident(rolname) END
    FROM pg_class c JOIN pg_roles r ON r.oid = c.relowner WHERE c.oid = 'tokenfleet.account_events'::regclass
""")
"""Whose the table is, if not ours: 'db upgrade' makes partitions too, and the scheduler has to drop them one day."""

_ESTIMATE = text("""
    SELECT COALESCE(sum(GREATEST(c.reltuples, 0)), 0)::float8 FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
    WHERE i.inhparent = 'tokenfleet.account_events'::regclass
      AND (c.relname BETWEEN CAST(:first AS text) AND CAST(:last AS text) OR c.relname = 'account_events_default')
""")


@dataclass(frozen=True, slots=True)
class HistoryRow:
    """One thing that happened to an account. ``attempt`` in logs is ``<account id>-<epoch>``."""

    at: datetime
    kind: str
    code: str | None
    generation: int | None
    epoch: int | None
    job_id: UUID | None
    duration_ms: int | None
    actor: str
    status_from: str | None
    status_to: str | None
    detail: dict[str, Any] | None


def of_account(connection: Connection, account_id: AccountId, *, limit: int) -> list[HistoryRow]:
    """Return the newest ``limit`` rows of an account, newest first."""
    rows = connection.execute(
        text("""
            SELECT at, kind, code, generation, epoch, job_id, duration_ms, actor, status_from, status_to,
                   detail
            FROM tokenfleet.account_events WHERE account_id = :account_id ORDER BY at DESC LIMIT :limit
        """),
        {"account_id": account_id, "limit": limit},
    )
    return [HistoryRow(**row._mapping) for row in rows]


def begins(connection: Connection) -> datetime | None:
    """Return the beginning of the oldest day that has a partition: what was before is dropped. None without any."""
    days = sorted(name.removeprefix(_PREFIX) for name in _partitions(connection))
    first = next((day for day in days if day.isdigit()), None)
    return None if first is None else datetime.strptime(first, "%Y%m%d").replace(tzinfo=UTC)


def estimated_rows(connection: Connection, begin: datetime, end: datetime) -> float:
    """Return about how many rows are in the partitions of the days from ``begin`` to ``end``; reads none of them.

    As many as Postgres knows of: 0 where a partition was never analysed, which is when it has little.
    """
    first, last = _partition_of(utc_date(begin)), _partition_of(utc_date(end))
    return float(connection.execute(_ESTIMATE, {"first": first, "last": last}).scalar_one())


def maintain_partitions(
    connection: Connection, *, today: date, retention_days: int, soonest: int = 0
) -> list[str]:
    """Create the partitions of the coming days and drop what is past retention; returns what it did.

    ``soonest`` is in how many days the first one begins that may be missing: whoever writes a row of the very day whose
    partition is being made is refused by Postgres, so a fleet at work makes none that could begin meanwhile.

    One process at a time; the others find the work done. What cannot be locked now is left for the next time.
    Rows for a day without a partition are in the default partition, so nothing is ever refused; they are
    deleted from there, :data:`DEFAULT_ROWS_AT_ONCE` at a time, when their days are past retention.
    """
    locked = connection.execute(
        text("SELECT pg_try_advisory_xact_lock(:key)"), {"key": _HOUSEKEEPING_LOCK}
    ).scalar_one()
    if not locked:
        return []
    existing = set(_partitions(connection))
    owner = connection.execute(_OWNER).scalar_one()
    oldest = today - timedelta(days=retention_days)
    work: list[tuple[str, str]] = []
    for offset in range(soonest, DAYS_AHEAD + 1):
        day = today + timedelta(days=offset)
        name = _partition_of(day)
        if name not in existing and not _default_holds(connection, day):
            work.append((f"created {name}", _creation(name, day, owner)))
    work += [
        (f"dropped {name}", f"DROP TABLE tokenfleet.{name}")
        for name in sorted(existing)
        if name.removeprefix(_PREFIX).isdigit() and name < _partition_of(oldest)
    ]
    forgetting = f"""
        DELETE FROM tokenfleet.account_events_default WHERE ctid = ANY (ARRAY(
            SELECT ctid FROM tokenfleet.account_events_default
            WHERE at < '{_midnight(oldest)}' LIMIT {DEFAULT_ROWS_AT_ONCE}))
    """
    return _impatiently(connection, [*work, (_FORGOTTEN, forgetting)])


def _impatiently(connection: Connection, work: Sequence[tuple[str, str]]) -> list[str]:
    """Run statements until one cannot be done now; returns the names of those that were run."""
    done: list[str] = []
    patience = connection.execute(text("SHOW lock_timeout")).scalar_one()
    set_patience = text("SELECT set_config('lock_timeout', :patience, true)")
    connection.execute(set_patience, {"patience": f"{PATIENCE_MS}ms"})
    for name, statement in work:
        try:
            with connection.begin_nested():
                rows = connection.execute(text(statement)).rowcount
        except DBAPIError as error:
            state = getattr(error.orig, "sqlstate", None)
            if state == _NOT_OURS:
                # Of another role: the fleet goes on without, and 'doctor' tells (store.privileges).
                continue
            if state not in {_LOCK_NOT_AVAILABLE, _CHECK_VIOLATION}:
                raise
            break
        if name != _FORGOTTEN:
            done.append(name)
        elif rows:
            done.append(f"deleted {rows} rows of account_events_default")
    connection.execute(set_patience, {"patience": patience})
    return done


def _partition_of(day: date) -> str:
    return f"{_PREFIX}{day:%Y%m%d}"


def _creation(name: str, day: date, owner: str | None) -> str:
    # Attached rather than created in place: that does not lock the table against writers.
    belongs = f"ALTER TABLE tokenfleet.{name} OWNER TO {owner};" if owner is not None else ""
    return f"""
        CREATE TABLE tokenfleet.{name} (LIKE tokenfleet.account_events INCLUDING ALL);
        {belongs}
        ALTER TABLE tokenfleet.account_events ATTACH PARTITION tokenfleet.{name}
        FOR VALUES FROM ('{_midnight(day)}') TO ('{_midnight(day + timedelta(days=1))}')
    """


def _midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


def utc_date(moment: datetime) -> date:
    """Return the UTC calendar day of ``moment``, by which partitions are cut."""
    return moment.astimezone(UTC).date()


def midnight(moment: datetime) -> datetime:
    """Return when the UTC day of ``moment`` began."""
    return _midnight(utc_date(moment))


def _partitions(connection: Connection) -> Sequence[str]:
    return (
        connection.execute(
            text("""
            SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
            WHERE i.inhparent = 'tokenfleet.account_events'::regclass
        """)
        )
        .scalars()
        .all()
    )


def _default_holds(connection: Connection, day: date) -> bool:
    """A partition cannot be made for a day whose rows already went to the default one."""
    return bool(
        connection.execute(
            text("""
                SELECT EXISTS (SELECT FROM tokenfleet.account_events_default
                               WHERE at >= :day AND at < CAST(:day AS timestamptz) + interval '1 day')
            """),
            {"day": _midnight(day)},
        ).scalar_one()
    )
