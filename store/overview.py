"""The state of the fleet in numbers, as Postgres tells it: what ``status`` shows.

Cheap enough to be asked every two seconds: with 1,000,000 accounts the whole of it took 170 to 240 ms on two
cores, of which counting the accounts by status is 140 ms (one scan of the narrow ``accounts`` table, 131 MB;
nothing else here reads a whole table). Due accounts, claims and expiry rely on ``ix_refresh_schedule_due``,
failing ones on ``ix_refresh_schedule_failing``, the last minute on ``ix_account_events_at``.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import Connection, text

from store.gates import FORECAST_IS_RECENT, OpenIncident, open_incidents
from store.webhook_overview import WebhooksOverview, read_webhooks
from tokenfleet.jobs import AppId
from tokenfleet_client.contract import AccountStatus

NEAREST: Final = 1000
"""How many accounts of each app, the nearest to their due moment, the lowest time to expiry is taken from."""

REFRESH_PREFIX: Final = "refresh."
SUCCEEDED: Final = "refresh.succeeded"
"""Kind of the history row of a refresh that brought tokens; the other kinds with the prefix did not."""

_COUNTS = text("""
    SELECT provider, status, count(*) AS accounts FROM tokenfleet.accounts
    GROUP BY provider, status ORDER BY provider, status
""")

_APPS = text("""
    SELECT p.id, p.provider, p.environment, p.name, p.paused_until, p.held_since, p.held_code, p.probe_at,
           CASE WHEN p.budget_slack_at > now() - CAST(:recent AS interval) THEN p.budget_slack END AS slack,
           d.due, d.claimed, d.probes, d.oldest_due_at
    FROM tokenfleet.oauth_apps p
    CROSS JOIN LATERAL (
        -- A claim leaves next_refresh_at where it was, so every claimed account is among the due ones.
        SELECT count(*) FILTER (WHERE s.claimed_until IS NULL OR s.claimed_until <= now()) AS due,
               count(*) FILTER (WHERE s.claimed_until > now()) AS claimed,
               count(*) FILTER (WHERE s.probing) AS probes,
               min(s.next_refresh_at) FILTER (WHERE s.claimed_until IS NULL OR s.claimed_until <= now())
                   AS oldest_due_at
        FROM tokenfleet.refresh_schedule s
        WHERE s.app_id = p.id AND s.next_refresh_at <= now()
    ) d
    ORDER BY p.provider, p.environment, p.name
""")

_FAILING = text("""
    SELECT count(*) AS failing, count(*) FILTER (WHERE s.quarantined) AS quarantined,
           count(*) FILTER (WHERE s.doubts > 0 AND NOT s.quarantined) AS suspects,
           min(s.failing_since) AS failing_since
    FROM tokenfleet.refresh_schedule s WHERE s.failing_since IS NOT NULL
""")

_EXPIRY = text("""
    WITH nearest AS (
        SELECT n.account_id
        FROM tokenfleet.oauth_apps p
        CROSS JOIN LATERAL (
            SELECT s.account_id FROM tokenfleet.refresh_schedule s
            WHERE s.app_id = p.id AND s.next_refresh_at IS NOT NULL
            ORDER BY s.next_refresh_at LIMIT :nearest
        ) n
        UNION
        -- A failing account waits for its next try, however near its expiry is.
        (SELECT s.account_id FROM tokenfleet.refresh_schedule s
         WHERE s.failing_since IS NOT NULL AND s.next_refresh_at IS NOT NULL LIMIT :nearest)
    )
    SELECT min(t.expires_at) AS expires_at, count(*) FILTER (WHERE t.expires_at <= now()) AS expired
    FROM tokenfleet.token_sets t JOIN tokenfleet.accounts a ON a.id = t.account_id
    -- As an array: the planner takes a few thousand rows of a CTE for reason enough to read the whole table.
    WHERE t.account_id = ANY (ARRAY(SELECT account_id FROM nearest))
      AND a.status = 'active' AND t.expires_at IS NOT NULL
""")

_RECENT = text("""
    SELECT e.kind, e.code, count(*) AS attempts FROM tokenfleet.account_events e
    WHERE e.at > now() - interval '1 minute' AND starts_with(e.kind, :prefix)
    GROUP BY e.kind, e.code ORDER BY attempts DESC, e.kind, e.code
""")

SILENCE: Final = timedelta(seconds=15)
_PROCESSES = text("""
    SELECT CASE WHEN starts_with(application_name, 'tokenfleet scheduler ') THEN 'scheduler' ELSE 'worker' END
               AS role, count(*) AS processes,
           min(heard_of) FILTER (WHERE heard_of < clock_timestamp() - CAST(:patience AS interval)) AS silent_since
    FROM (
        SELECT application_name, max(GREATEST(state_change, backend_start)) AS heard_of
        FROM pg_stat_activity
        WHERE datname = current_database()
          AND (starts_with(application_name, 'tokenfleet scheduler ')
               OR starts_with(application_name, 'tokenfleet worker '))
        GROUP BY application_name
    ) AS process
    GROUP BY role
""")


@dataclass(frozen=True, slots=True)
class StatusCount:
    """How many accounts of a provider stand in a status."""

    provider: str
    status: AccountStatus
    accounts: int


@dataclass(frozen=True, slots=True)
class AppLoad:
    """One registration: what is due, what is claimed, and why it may not be asked for.

    ``due`` counts accounts that wait to be claimed; ``oldest_due_at`` is since when the first of them waits.
    ``claimed`` counts those that a worker has or that travel to one. ``probes`` of both only have their access token
    probed. ``slack`` is the least part of its rate that the coming hour leaves over (``store.coming_hour``), None
    where no rate is stated or nobody has looked lately.
    """

    app_id: AppId
    provider: str
    environment: str
    name: str
    due: int
    claimed: int
    probes: int
    oldest_due_at: datetime | None
    paused_until: datetime | None
    held_since: datetime | None
    held_code: str | None
    probe_at: datetime | None
    slack: float | None
    incidents: tuple[OpenIncident, ...]


@dataclass(frozen=True, slots=True)
class Failing:
    """Accounts whose last attempts failed, and since when the first of them fails.

    ``suspects`` were answered in a way that repetition may not help with, and are looked into before they are in
    quarantine.
    """

    accounts: int
    suspects: int
    quarantined: int
    since: datetime | None


@dataclass(frozen=True, slots=True)
class Expiry:
    """The first expiry among the active accounts nearest to it, and how many of those have expired.

    At most :data:`NEAREST` accounts of an app are looked at, so ``expired`` is a lower bound.
    """

    lowest: datetime | None
    expired: int


@dataclass(frozen=True, slots=True)
class OutcomeCount:
    """How often an attempt ended like this in the last minute. ``code`` is None for a success."""

    kind: str
    code: str | None
    attempts: int


@dataclass(frozen=True, slots=True)
class Processes:
    """How many fleet processes hold a connection to this database.

    ``*_silent_since`` is when the quietest of them was heard of, None when all of them speak: each does so several
    times within :data:`SILENCE`, unless it is frozen, cut off, or waits for its broker.
    """

    schedulers: int
    workers: int
    schedulers_silent_since: datetime | None = None
    workers_silent_since: datetime | None = None


@dataclass(frozen=True, slots=True)
class Overview:
    """Everything at one moment of the database's clock."""

    at: datetime
    counts: tuple[StatusCount, ...]
    apps: tuple[AppLoad, ...]
    failing: Failing
    expiry: Expiry
    last_minute: tuple[OutcomeCount, ...]
    processes: Processes
    webhooks: WebhooksOverview

    @property
    def refreshed_last_minute(self) -> int:
        """How many refreshes brought tokens in the last minute."""
        return sum(count.attempts for count in self.last_minute if count.kind == SUCCEEDED)


def read_overview(connection: Connection) -> Overview:
    """Return the numbers of the fleet as they are now. Begin a transaction of its own for it."""
    failing = connection.execute(_FAILING).one()
    expiry = connection.execute(_EXPIRY, {"nearest": NEAREST}).one()
    return Overview(
        at=connection.execute(text("SELECT now()")).scalar_one(),
        counts=tuple(
            StatusCount(row.provider, AccountStatus(row.status), row.accounts)
            for row in connection.execute(_COUNTS)
        ),
        apps=read_apps(connection),
        failing=Failing(failing.failing, failing.suspects, failing.quarantined, failing.failing_since),
        expiry=Expiry(expiry.expires_at, expiry.expired),
        last_minute=tuple(
            OutcomeCount(row.kind, row.code, row.attempts)
            for row in connection.execute(_RECENT, {"prefix": REFRESH_PREFIX})
        ),
        processes=read_processes(connection),
        webhooks=read_webhooks(connection),
    )


def read_apps(connection: Connection) -> tuple[AppLoad, ...]:
    """Return every registration with its load, by provider, environment and name."""
    incidents = open_incidents(connection)
    return tuple(
        AppLoad(
            app_id=AppId(row.id),
            provider=row.provider,
            environment=row.environment,
            name=row.name,
            due=row.due,
            claimed=row.claimed,
            probes=row.probes,
            oldest_due_at=row.oldest_due_at,
            paused_until=row.paused_until,
            held_since=row.held_since,
            held_code=row.held_code,
            probe_at=row.probe_at,
            slack=row.slack,
            incidents=incidents.get(AppId(row.id), ()),
        )
        for row in connection.execute(_APPS, {"recent": FORECAST_IS_RECENT})
    )


def read_processes(connection: Connection) -> Processes:
    """Return how many schedulers and workers are connected, as far as this role may see their names."""
    found = {row.role: row for row in connection.execute(_PROCESSES, {"patience": SILENCE})}
    schedulers, workers = found.get("scheduler"), found.get("worker")
    return Processes(
        schedulers=schedulers.processes if schedulers else 0,
        workers=workers.processes if workers else 0,
        schedulers_silent_since=schedulers.silent_since if schedulers else None,
        workers_silent_since=workers.silent_since if workers else None,
    )
