"""Who opened what for what: the counts of ``unsealings``, added up for a person or given one by one to an archive."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import Connection, text

from tokenfleet_client.unsealings import Purpose

PAGE: Final = 5_000

_WANTED: Final = """
    minute >= date_trunc('minute', CAST(:since AS timestamptz))
    AND (CAST(:purpose AS text) IS NULL OR purpose = :purpose)
    AND (CAST(:caller AS text) IS NULL OR starts_with(caller, :caller))
"""

_SUMS = text(f"""
    SELECT purpose, caller, database_role, sum(opened)::bigint AS opened, max(minute) AS last_minute
    FROM tokenfleet.unsealings WHERE {_WANTED}
    GROUP BY purpose, caller, database_role ORDER BY opened DESC, purpose, caller, database_role
""")

_ROWS = text(f"""
    SELECT minute, purpose, caller, database_role, opened FROM tokenfleet.unsealings
    WHERE {_WANTED} AND (minute, purpose, caller, database_role)
        > (CAST(:after AS timestamptz), :after_purpose, :after_caller, :after_role)
    ORDER BY minute, purpose, caller, database_role LIMIT :page
""")


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which counts: since a moment, of one purpose, of callers whose name begins so. None means any."""

    since: datetime
    purpose: Purpose | None = None
    caller: str | None = None


@dataclass(frozen=True, slots=True)
class CallerSum:
    """What one caller opened for one purpose. ``last_minute`` is the last one that has a count."""

    purpose: str
    caller: str
    database_role: str
    opened: int
    last_minute: datetime


@dataclass(frozen=True, slots=True)
class MinuteCount:
    """One row of the table."""

    minute: datetime
    purpose: str
    caller: str
    database_role: str
    opened: int


def sums(connection: Connection, wanted: Wanted) -> list[CallerSum]:
    """Return what each caller opened for each purpose, the most first. Relies on the primary key."""
    return [CallerSum(**row._mapping) for row in connection.execute(_SUMS, _parameters(wanted))]


def minutes(connection: Connection, wanted: Wanted) -> Iterator[MinuteCount]:
    """Yield every count, oldest first, however many there are."""
    after = {"after": "-infinity", "after_purpose": "", "after_caller": "", "after_role": ""}
    while True:
        rows = connection.execute(_ROWS, _parameters(wanted) | after | {"page": PAGE}).all()
        for row in rows:
            yield MinuteCount(**row._mapping)
        if len(rows) < PAGE:
            return
        last = rows[-1]
        after = {
            "after": last.minute,
            "after_purpose": last.purpose,
            "after_caller": last.caller,
            "after_role": last.database_role,
        }


def _parameters(wanted: Wanted) -> dict[str, object]:
    return {
        "since": wanted.since,
        "purpose": None if wanted.purpose is None else wanted.purpose.value,
        "caller": wanted.caller,
    }
