"""What the coming hour will ask of one app, counted by ten seconds; and asking some of its accounts sooner.

Invariants kept here:

* A due moment only ever moves to an earlier one, and never to before the moment that the definition permits
  (``earliest_refresh_seconds`` before the access token expires).
* Only an account that simply waits for its refresh is moved: nobody who is claimed, fails, is being looked into, is
  parked by an incident, or is only to be probed. Each of these waits for a reason of its own.

Both statements rely on ``ix_refresh_schedule_due``, unless an app has so large a part of all accounts that reading
the table is quicker. Measured with 1,000,000 accounts of one app that are due within the hour, on two busy cores:
0.65 s to count them (1.9 s by the index; 6 s where the definition has a window, for each expiry is looked up), and
26 µs for each account that is moved. Schedulers do it once a minute, apart from their ticks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import Connection, text

from tokenfleet.jobs import AppId

BUCKET: Final = timedelta(seconds=10)
BUCKETS: Final = 360
MOVES_PER_STATEMENT: Final = 10_000
"""So that nobody who wants one of these rows waits for longer than some tenths of a second."""

_LOCK: Final = 0x746F6B656E66  # "tokenf"
"""Key of the advisory lock under which one scheduler at a time looks at the coming hour."""

# Who waits for nothing but the time: everybody else is counted, and stays where he is.
_MOVABLE: Final = """
    s.claimed_until IS NULL AND s.failing_since IS NULL AND s.attempts = 0 AND s.unanswered = 0
    AND NOT s.quarantined AND NOT s.probing AND s.incident_id IS NULL
"""
# The first bucket that begins when a refresh is permitted. Without a window every bucket is, and nothing is read;
# where nobody knows the expiry it is NULL, and the account is not moved.
_EARLIEST: Final = """
    CASE WHEN CAST(:window AS interval) IS NULL THEN CAST(:start AS timestamptz) ELSE (
        SELECT GREATEST(:start, CAST(:bucket AS interval)
                        + date_bin(:bucket, t.expires_at - CAST(:window AS interval), :start))
        FROM tokenfleet.token_sets t WHERE t.account_id = s.account_id AND t.expires_at IS NOT NULL) END
"""

_COUNT = text(f"""
    SELECT due, CASE WHEN earliest < due THEN earliest ELSE due END AS earliest, count(*) AS accounts
    FROM (
        SELECT GREATEST(date_bin(CAST(:bucket AS interval), s.next_refresh_at, :start),
                        CAST(:start AS timestamptz) - CAST(:bucket AS interval)) AS due,
               CASE WHEN {_MOVABLE} THEN {_EARLIEST} END AS earliest
        FROM tokenfleet.refresh_schedule s
        WHERE s.app_id = :app_id AND s.next_refresh_at < CAST(:end AS timestamptz)
          -- Whom a worker is asking has had his share of the rate.
          AND (s.claimed_until IS NULL OR s.claimed_until <= :start)
    ) visit
    GROUP BY 1, 2
""")

_MOVE = text(f"""
    WITH shift AS (
        SELECT *, sum(accounts) OVER (PARTITION BY due, earliest ORDER BY target) - accounts AS before
        FROM unnest(CAST(:dues AS timestamptz[]), CAST(:earliests AS timestamptz[]),
                    CAST(:targets AS timestamptz[]), CAST(:counts AS bigint[]))
            AS shift (due, earliest, target, accounts)
    ), picked AS (
        SELECT source.due, source.earliest, mover.account_id,
               row_number() OVER (PARTITION BY source.due, source.earliest ORDER BY mover.next_refresh_at) AS place
        FROM (SELECT due, earliest, CAST(sum(accounts) AS bigint) AS accounts FROM shift GROUP BY due, earliest)
             AS source
        CROSS JOIN LATERAL (
            SELECT s.account_id, s.next_refresh_at FROM tokenfleet.refresh_schedule s
            WHERE s.app_id = :app_id AND s.next_refresh_at >= source.due
              AND s.next_refresh_at < source.due + CAST(:bucket AS interval)
              AND {_MOVABLE} AND {_EARLIEST} = source.earliest
            -- Whose token expires latest waits longest.
            ORDER BY s.next_refresh_at
            LIMIT source.accounts
            FOR UPDATE SKIP LOCKED
        ) mover
    )
    UPDATE tokenfleet.refresh_schedule s
    SET next_refresh_at = shift.target
        + CAST(:bucket AS interval) * ((picked.place - shift.before - 0.5) / shift.accounts)
    FROM picked JOIN shift ON shift.due = picked.due AND shift.earliest = picked.earliest
        AND picked.place > shift.before AND picked.place <= shift.before + shift.accounts
    WHERE s.account_id = picked.account_id
""")

_OUTDATED = text("""
    SELECT id, budget_slack FROM tokenfleet.oauth_apps
    WHERE budget_slack_at IS NULL OR budget_slack_at <= now() - CAST(:every AS interval)
""")

_KEEP = text("""
    WITH reckoned AS (
        SELECT a.id, found.slack FROM tokenfleet.oauth_apps a
        JOIN unnest(CAST(:app_ids AS bigint[]), CAST(:slacks AS double precision[])) AS found (app_id, slack)
            ON found.app_id = a.id
        ORDER BY a.id FOR NO KEY UPDATE OF a
    )
    UPDATE tokenfleet.oauth_apps a SET budget_slack = reckoned.slack, budget_slack_at = clock_timestamp()
    FROM reckoned WHERE a.id = reckoned.id
""")


@dataclass(frozen=True, slots=True)
class Visits:
    """``accounts`` of one app are due in bucket ``due``, and none of them may be asked before ``earliest``.

    Buckets count from 0, which begins at the moment of counting; everybody who is late is in -1.
    """

    due: int
    earliest: int
    accounts: int


@dataclass(frozen=True, slots=True)
class Shift:
    """``accounts`` of those :class:`Visits` had better be asked in bucket ``target``."""

    due: int
    earliest: int
    target: int
    accounts: int


def take_turn(connection: Connection) -> bool:
    """Answer whether this transaction is the one that looks at the coming hour; no other is until it ends."""
    taken: bool = connection.execute(
        text("SELECT pg_try_advisory_xact_lock(:key)"), {"key": _LOCK}
    ).scalar_one()
    return taken


def outdated(connection: Connection, *, every: timedelta) -> dict[AppId, float | None]:
    """Return the apps whose slack nobody has reckoned for as long as ``every``, and what it was then."""
    return {AppId(row.id): row.budget_slack for row in connection.execute(_OUTDATED, {"every": every})}


def count_visits(
    connection: Connection, app_id: AppId, *, start: datetime, window: timedelta | None = None
) -> list[Visits]:
    """Return what is due of the app until an hour after ``start``, which is now by the database's clock.

    ``window`` is how long before the expiry of its access token the provider takes a refresh at the earliest.
    """
    # Compiling it takes longer than running it; and a plan for any app would be wrong for most of them.
    connection.execute(text("SET LOCAL jit = off"))
    connection.execute(text("SET LOCAL plan_cache_mode = force_custom_plan"))
    rows = connection.execute(_COUNT, _moments(app_id, start, window) | {"end": start + BUCKETS * BUCKET})
    return [
        Visits((row.due - start) // BUCKET, (row.earliest - start) // BUCKET, row.accounts) for row in rows
    ]


def move(
    connection: Connection,
    app_id: AppId,
    shifts: Sequence[Shift],
    *,
    start: datetime,
    window: timedelta | None = None,
) -> int:
    """Let accounts be due sooner, those that were due first going first; returns how many were.

    ``start`` and ``window`` are those of the count. Whoever is not there any more, or locked, is left alone.
    """
    parameters: dict[str, Any] = {
        "dues": [start + each.due * BUCKET for each in shifts],
        "earliests": [start + each.earliest * BUCKET for each in shifts],
        "targets": [start + each.target * BUCKET for each in shifts],
        "counts": [each.accounts for each in shifts],
    }
    moved: Any = connection.execute(_MOVE, _moments(app_id, start, window) | parameters)
    return int(moved.rowcount)


def in_portions(shifts: Sequence[Shift], *, size: int = MOVES_PER_STATEMENT) -> Iterator[list[Shift]]:
    """Cut ``shifts`` into parts of at most ``size`` accounts, the soonest targets first."""
    portion: list[Shift] = []
    room = size
    for shift in sorted(shifts, key=lambda each: (each.target, each.due)):
        left = shift.accounts
        while left:
            part = min(left, room)
            portion.append(replace(shift, accounts=part))
            left -= part
            room -= part
            if not room:
                yield portion
                portion, room = [], size
    if portion:
        yield portion


def keep_slack(connection: Connection, slacks: Sequence[tuple[AppId, float | None]]) -> None:
    """Write down what the coming hour leaves of each app's rate; None where the app has none."""
    parameters = {"app_ids": [app_id for app_id, _ in slacks], "slacks": [slack for _, slack in slacks]}
    connection.execute(_KEEP, parameters)


def _moments(app_id: AppId, start: datetime, window: timedelta | None) -> dict[str, Any]:
    return {"app_id": app_id, "start": start, "window": window, "bucket": BUCKET}
