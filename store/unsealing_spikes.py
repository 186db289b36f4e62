"""What is opened now against what explains it and what is usual (``tokenfleet.unsealing``), and the spikes found.

A spike is a row of ``unsealing_spikes`` from its beginning to its end, so it is told once, however many schedulers look
and however often they start. Groups are told apart by purpose and database role: the name that a caller gives itself
may be new with every start, or false.

Relies on the primary key of ``unsealings``, which begins with the minute, and on ``ix_account_events_at``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import Connection, text

from store.audit import Action
from store.engine import database_now
from tokenfleet import unsealing
from tokenfleet.unsealing import EXPLAINED_BY_WORK, LEAST, USUAL_DAYS, WINDOW, Openings
from tokenfleet_client.unsealings import Purpose

PRUNED_AT_ONCE: Final = 10_000
LEAST_RETENTION: Final = timedelta(days=8)
"""Postgres lets nobody delete what is younger than a week (migration 0007)."""
ON_RECORD_FOR: Final = timedelta(days=1)
"""How long a command may take whose row in the audit log was written as it began."""
_ACTIONS: Final = {
    Purpose.IMPORT: Action.ACCOUNTS_IMPORT,
    Purpose.RESEALING: Action.KEYS_ROTATE,
}
USUAL_FOR: Final = timedelta(minutes=10)
KNOWN_PURPOSES: Final = frozenset(purpose.value for purpose in Purpose)
_LOOK_LOCK: Final = 7_305_811_063

_NOW = text("""
    SELECT purpose, database_role, sum(opened)::bigint AS opened,
           (array_agg(caller ORDER BY opened DESC, caller))[1] AS caller
    FROM (
        SELECT purpose, database_role, caller, sum(opened) AS opened FROM tokenfleet.unsealings
        WHERE minute > now() - CAST(:window AS interval)
        GROUP BY purpose, database_role, caller
    ) AS each
    GROUP BY purpose, database_role ORDER BY purpose, database_role
""")

_BUSIEST = text("""
    SELECT purpose, database_role, array_agg(busiest) AS busiest
    FROM (
        SELECT purpose, database_role, max(opened)::bigint AS busiest
        FROM (
            SELECT purpose, database_role, sum(opened) AS opened,
                   floor(extract(epoch FROM CAST(:now AS timestamptz) - min(minute)) / 86400) AS day
            FROM tokenfleet.unsealings
            WHERE minute > CAST(:now AS timestamptz) - CAST(:days AS interval)
            GROUP BY purpose, database_role, date_bin(CAST(:window AS interval), minute, CAST(:now AS timestamptz))
        ) AS stretch
        GROUP BY purpose, database_role, day
    ) AS each
    GROUP BY purpose, database_role
""")

_SINCE = text("SELECT min(minute) FROM tokenfleet.unsealings")

# Two minutes more: an attempt opens first and is in the history when it is over.
_ATTEMPTS = text("""
    SELECT count(*) FILTER (WHERE kind LIKE 'refresh.%') AS refresh,
           count(*) FILTER (WHERE kind LIKE 'probe.%') AS probe,
           count(*) FILTER (WHERE kind LIKE 'revocation.%') AS revoke
    FROM tokenfleet.account_events
    WHERE at > now() - CAST(:window AS interval) - interval '2 minutes'
""")

_ON_RECORD = text("""
    SELECT DISTINCT action FROM tokenfleet.audit_log
    WHERE at > now() - CAST(:recent AS interval) AND action = ANY (:actions)
""")

_BEGIN = text("""
    INSERT INTO tokenfleet.unsealing_spikes (purpose, database_role, caller, opened, expected)
    VALUES (:purpose, :database_role, :caller, :opened, :expected)
    RETURNING id, purpose, database_role, caller, began_at, opened, expected
""")

_GROW = text("""
    UPDATE tokenfleet.unsealing_spikes SET opened = greatest(opened, :opened) WHERE id = :id
""")

_END = text("UPDATE tokenfleet.unsealing_spikes SET ended_at = clock_timestamp() WHERE id = :id")

_OPEN = text("""
    SELECT id, purpose, database_role, caller, began_at, opened, expected FROM tokenfleet.unsealing_spikes
    WHERE ended_at IS NULL ORDER BY began_at, id
""")

_PRUNE = (
    text("""
        DELETE FROM tokenfleet.unsealings WHERE ctid = ANY (ARRAY(
            SELECT ctid FROM tokenfleet.unsealings
            WHERE minute < now() - CAST(:age AS interval) LIMIT :at_once))
    """),
    text("""
        DELETE FROM tokenfleet.unsealing_spikes WHERE id = ANY (ARRAY(
            SELECT id FROM tokenfleet.unsealing_spikes
            WHERE ended_at < now() - CAST(:age AS interval) LIMIT :at_once))
    """),
)


@dataclass(frozen=True, slots=True)
class Group:
    """What one database role opened for one purpose in the last minutes. ``caller`` opened most of it."""

    database_role: str
    caller: str
    openings: Openings


@dataclass(frozen=True, slots=True)
class Spike:
    """One spike. ``opened`` is the most within a window, ``expected`` what it would have been at most."""

    id: int
    purpose: str
    database_role: str
    caller: str
    began_at: datetime
    opened: int
    expected: int

    @property
    def sentence(self) -> str:
        """What there is to tell."""
        return (
            f"{self.opened:,} openings for {self.purpose} within {WINDOW.seconds // 60} minutes by database role "
            f"{self.database_role}, most of them by {self.caller}; {self.expected:,} would be no surprise"
        )


@dataclass(frozen=True, slots=True)
class Look:
    """What one look found: spikes that began, that are over, and all that last."""

    began: Sequence[Spike]
    over: Sequence[Spike]
    lasting: Sequence[Spike]


class Usual:
    """The busiest windows of each day, by purpose and database role, read again every :data:`USUAL_FOR`.

    Reading them is nearly all that a look costs: 0.7 s where 20 workers wrote 1.2 million counts in 14 days.
    """

    def __init__(self) -> None:
        self._until: datetime | None = None
        self._busiest: dict[tuple[str, str], Sequence[int]] = {}

    def at(self, connection: Connection, now: datetime) -> dict[tuple[str, str], Sequence[int]]:
        """Return what was usual lately."""
        if self._until is None or now >= self._until:
            parameters = {"window": WINDOW, "days": timedelta(days=USUAL_DAYS), "now": now}
            self._busiest = {
                (row.purpose, row.database_role): row.busiest
                for row in connection.execute(_BUSIEST, parameters)
            }
            self._until = now + USUAL_FOR
        return self._busiest


def read_groups(connection: Connection, usual: Usual | None = None) -> list[Group]:
    """Return what is opened now, with everything that may explain it. ``usual`` remembers, if there is one."""
    now = database_now(connection)
    # A newer release may know other purposes.
    rows = [row for row in connection.execute(_NOW, {"window": WINDOW}) if row.purpose in KNOWN_PURPOSES]
    if not rows:
        return []
    # What is below every floor needs no explanation, so nothing is asked for it.
    large = {Purpose(row.purpose) for row in rows if row.opened > LEAST}
    busiest = (usual or Usual()).at(connection, now)
    since = connection.execute(_SINCE).scalar_one()
    attempts = _attempts(connection) if large & EXPLAINED_BY_WORK else {}
    recorded = _recorded(connection) if large & _ACTIONS.keys() else frozenset()
    return [
        Group(
            row.database_role,
            row.caller,
            Openings(
                purpose=Purpose(row.purpose),
                opened=row.opened,
                busiest=busiest.get((row.purpose, row.database_role), ()),
                days=(now - since) / timedelta(days=1),
                attempts=attempts.get(Purpose(row.purpose), 0),
                on_record=Purpose(row.purpose) in recorded,
            ),
        )
        for row in rows
    ]


def look(connection: Connection, usual: Usual | None = None) -> Look | None:
    """Begin and end spikes, in the caller's transaction; None when somebody else looks just now."""
    lock = text("SELECT pg_try_advisory_xact_lock(:key)")
    if not connection.execute(lock, {"key": _LOOK_LOCK}).scalar_one():
        return None
    before = {(each.purpose, each.database_role): each for each in open_spikes(connection)}
    began: list[Spike] = []
    lasting: set[int] = set()
    for group in read_groups(connection, usual):
        purpose = group.openings.purpose.value
        known = before.get((purpose, group.database_role))
        if not unsealing.is_spike(group.openings, lasting=known is not None):
            continue
        if known is not None:
            lasting.add(known.id)
            connection.execute(_GROW, {"id": known.id, "opened": group.openings.opened})
            continue
        values = {
            "purpose": purpose,
            "database_role": group.database_role,
            "caller": group.caller,
            "opened": group.openings.opened,
            "expected": unsealing.expected_of(group.openings),
        }
        began.append(Spike(**connection.execute(_BEGIN, values).one()._mapping))
    over = [each for each in before.values() if each.id not in lasting]
    for each in over:
        connection.execute(_END, {"id": each.id})
    return Look(began, over, open_spikes(connection))


def open_spikes(connection: Connection) -> list[Spike]:
    """Return the spikes that last, oldest first."""
    return [Spike(**row._mapping) for row in connection.execute(_OPEN)]


def prune(connection: Connection, *, retention: timedelta) -> int:
    """Delete some of what is past retention, a week at least; returns how many rows."""
    parameters = {"age": max(retention, LEAST_RETENTION), "at_once": PRUNED_AT_ONCE}
    return sum(connection.execute(statement, parameters).rowcount for statement in _PRUNE)


def _attempts(connection: Connection) -> dict[Purpose, int]:
    row = connection.execute(_ATTEMPTS, {"window": WINDOW}).one()
    return {
        Purpose.REFRESH: row.refresh,
        Purpose.PROBE: row.probe,
        Purpose.REVOKE: row.revoke,
        Purpose.APP_SECRET: row.refresh + row.probe + row.revoke,
    }


def _recorded(connection: Connection) -> frozenset[Purpose]:
    actions = [action.value for action in _ACTIONS.values()]
    parameters = {"recent": ON_RECORD_FOR, "actions": actions}
    found = set(connection.scalars(_ON_RECORD, parameters))
    return frozenset(purpose for purpose, action in _ACTIONS.items() if action.value in found)
