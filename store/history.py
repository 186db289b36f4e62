"""The story of each account: append-only rows, partitioned by day, kept for a set time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Connection, text

from tokenfleet.jobs import AccountId

DAYS_AHEAD: Final = 7
_PREFIX: Final = "account_events_"
_HOUSEKEEPING_LOCK: Final = 7_305_811_036


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
            SELECT at, kind, code, generation, epoch, job_id, duration_ms, actor, status_from, status_to, detail
            FROM tokenfleet.account_events WHERE account_id = :account_id ORDER BY at DESC LIMIT :limit
        """),
        {"account_id": account_id, "limit": limit},
    )
    return [HistoryRow(**row._mapping) for row in rows]


def maintain_partitions(connection: Connection, *, today: date, retention_days: int) -> list[str]:
    """Create the partitions of the coming days and drop those past retention; returns what it did.

    One process at a time; the others find the work done. Rows for a day without a partition are in the
    default partition, so nothing is ever refused.
    """
    locked = connection.execute(
        text("SELECT pg_try_advisory_xact_lock(:key)"), {"key": _HOUSEKEEPING_LOCK}
    ).scalar_one()
    if not locked:
        return []
    existing = set(_partitions(connection))
    done: list[str] = []
    for offset in range(DAYS_AHEAD + 1):
        day = today + timedelta(days=offset)
        name = f"{_PREFIX}{day:%Y%m%d}"
        if name not in existing and not _default_holds(connection, day):
            connection.execute(
                text(
                    f"CREATE TABLE tokenfleet.{name} PARTITION OF tokenfleet.account_events "
                    f"FOR VALUES FROM ('{day} 00:00:00+00') TO ('{day + timedelta(days=1)} 00:00:00+00')"
                )
            )
            done.append(f"created {name}")
    oldest = f"{_PREFIX}{today - timedelta(days=retention_days):%Y%m%d}"
    for name in sorted(existing):
        if name.removeprefix(_PREFIX).isdigit() and name < oldest:
            connection.execute(text(f"DROP TABLE tokenfleet.{name}"))
            done.append(f"dropped {name}")
    return done


def utc_date(moment: datetime) -> date:
    """Return the UTC calendar day of ``moment``, by which partitions are cut."""
    return moment.astimezone(UTC).date()


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
            {"day": datetime(day.year, day.month, day.day, tzinfo=UTC)},
        ).scalar_one()
    )
