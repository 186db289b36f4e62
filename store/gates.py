"""What stands between an app's accounts and their provider: pause, hold, incidents, and a rate that is too little.

Facts of Postgres, as operators see them: ``status``, ``doctor``, ``apps`` and metrics tell the same, from here. The
circuit is in Redis (``store.circuits``).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import Connection, text

from store import apps, incidents
from store.incidents import Kind
from tokenfleet.jobs import AppId

OWN_APPS: Final = "account"
"""What metrics call all registrations that belong to one account each: their own names would be without bounds."""

FORECAST_IS_RECENT: Final = timedelta(minutes=5)
"""What was reckoned longer ago says nothing of the coming hour any more: no scheduler does it."""


@dataclass(frozen=True, slots=True)
class OpenIncident:
    """An incident that is not resolved. ``parked`` accounts wait for that; ``flipped`` ones were given up just before
    it was noticed, and are asked again if it proves to have been one. With ``only_samples`` nobody of the app is asked
    but some of the parked, because rejections are all that is heard.
    """

    incident_id: int
    app_id: AppId
    kind: Kind
    code: str
    opened_at: datetime
    parked: int
    flipped: int
    only_samples: bool


@dataclass(frozen=True, slots=True)
class Gate:
    """One app, or all registrations of single accounts at one provider, and how many of them may not be asked freely.

    ``slack`` is the least of them, None where no rate is stated.
    """

    provider: str
    environment: str
    app: str
    held: int
    paused: int
    slack: float | None
    incidents: Mapping[Kind, int]
    app_ids: tuple[AppId, ...]


_SLACKS = text("""
    SELECT id, CASE WHEN budget_slack_at > now() - CAST(:recent AS interval) THEN budget_slack END AS slack
    FROM tokenfleet.oauth_apps
""")

_GATES = text("""
    SELECT p.provider, p.environment,
           CASE WHEN p.account_external_id IS NULL THEN p.name ELSE CAST(:own AS text) END AS app,
           count(*) FILTER (WHERE p.held_since IS NOT NULL) AS held,
           count(*) FILTER (WHERE p.paused_until > now()) AS paused,
           min(p.budget_slack) FILTER (WHERE p.budget_slack_at > now() - CAST(:recent AS interval)) AS slack,
           array_agg(p.id) AS app_ids,
           COALESCE(sum(i.client_rejected), 0) AS client_rejected,
           COALESCE(sum(i.mass_rejection), 0) AS mass_rejection
    FROM tokenfleet.oauth_apps p
    LEFT JOIN (
        SELECT app_id, count(*) FILTER (WHERE kind = 'client_rejected') AS client_rejected,
               count(*) FILTER (WHERE kind = 'mass_rejection') AS mass_rejection
        FROM tokenfleet.provider_incidents WHERE resolved_at IS NULL GROUP BY app_id
    ) i ON i.app_id = p.id
    GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
""")


def open_incidents(connection: Connection) -> dict[AppId, tuple[OpenIncident, ...]]:
    """Return what is open, by app, the oldest first."""
    opened = incidents.listing(connection)
    if not opened:
        return {}
    members = incidents.members(connection, [each.incident_id for each in opened])
    sampled = {app.app_id for app in apps.all_apps(connection) if app.is_sampled}
    found: dict[AppId, list[OpenIncident]] = defaultdict(list)
    for each in reversed(opened):
        apart = members[each.incident_id]
        found[each.app_id].append(
            OpenIncident(
                incident_id=each.incident_id,
                app_id=each.app_id,
                kind=each.kind,
                code=each.code,
                opened_at=each.opened_at,
                parked=apart.parked,
                flipped=apart.flipped,
                only_samples=each.app_id in sampled,
            )
        )
    return {app_id: tuple(each) for app_id, each in found.items()}


def slacks(connection: Connection) -> dict[AppId, float | None]:
    """Return the least part of each app's rate that the coming hour leaves, None where nobody knows."""
    rows = connection.execute(_SLACKS, {"recent": FORECAST_IS_RECENT})
    return {AppId(row.id): row.slack for row in rows}


def read_gates(connection: Connection) -> list[Gate]:
    """Return every app's gate, in as many rows as a metric can bear."""
    return [
        Gate(
            provider=row.provider,
            environment=row.environment,
            app=row.app,
            held=row.held,
            paused=row.paused,
            slack=row.slack,
            incidents={kind: int(getattr(row, kind.value)) for kind in Kind},
            app_ids=tuple(AppId(app_id) for app_id in row.app_ids),
        )
        for row in connection.execute(_GATES, {"own": OWN_APPS, "recent": FORECAST_IS_RECENT})
    ]
