"""Once a minute, one of the schedulers looks at the coming hour of every app whose rate is stated.

It writes down how much of the rate is left over, raises an alarm when that falls below nothing, and spreads what is
due at once over the time before it. The plan is for the whole hour, but only what belongs into the next two minutes is
carried out: it is made anew in a minute, and until then a customer may leave, or a refresh come early by itself. So
the writes of a minute are bounded by two minutes of the rate, and no token is renewed earlier than it must.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import Connection, Engine

from providers import Provider, Registry
from scheduler.forecast import capacities, flatten, slack, without
from store import apps, coming_hour
from store.apps import App
from store.coming_hour import BUCKET, BUCKETS, Shift
from store.engine import database_now
from tokenfleet import telemetry
from tokenfleet.jobs import AppId
from tokenfleet.telemetry import Event

EVERY: Final = timedelta(minutes=1)
PLANNED_SHARE: Final = 0.9
"""Part of the rate that is planned with; the rest is for requests, retries and probes that nobody foresees."""
CARRIED_OUT: Final = 12
"""Buckets whose part of the plan is carried out: two minutes, so that each is looked at once in good time."""


@dataclass(frozen=True, slots=True)
class _Plan:
    app_id: AppId
    start: datetime
    window: timedelta | None
    shifts: list[Shift]


class ComingHour:
    """Keeps every app's coming hour within its rate, as far as that is possible."""

    def __init__(self, engine: Engine, registry: Registry) -> None:
        self._engine = engine
        self._registry = registry

    def look(self) -> int:
        """Look at every app whose turn it is; returns how many accounts are due sooner now.

        Does nothing while another scheduler does it. Raises SQLAlchemy's ``DBAPIError`` when Postgres is away.
        """
        with self._engine.begin() as connection:
            if not coming_hour.take_turn(connection):
                return 0
            before = coming_hour.outdated(connection, every=EVERY)
            plans: list[_Plan] = []
            slacks: list[tuple[AppId, float | None]] = []
            for app in apps.all_apps(connection) if before else ():
                if app.app_id in before:
                    left, plan = self._forecast(connection, app)
                    slacks.append((app.app_id, left))
                    plans.append(plan)
                    _tell(app, before[app.app_id], left)
            coming_hour.keep_slack(connection, slacks)
        return sum(self._carry_out(plan) for plan in plans)

    def _forecast(self, connection: Connection, app: App) -> tuple[float | None, _Plan]:
        """Return what is left over of the app's rate, and who is to be asked sooner."""
        start = database_now(connection)
        provider = self._registry.get(app.provider) if app.provider in self._registry else None
        if provider is None or provider.rate_per_second is None:
            return None, _Plan(app.app_id, start, None, [])
        window = _window(provider)
        counted = coming_hour.count_visits(connection, app.app_id, start=start, window=window)
        visits = [each for each in counted if each.due >= 0]
        late = sum(each.accounts for each in counted if each.due < 0)
        per_bucket = provider.rate_per_second * BUCKET.total_seconds()
        left = slack(visits, per_bucket, BUCKETS)
        # Whoever may not be asked now is not asked sooner.
        if app.is_paused or app.held_since is not None:
            return left, _Plan(app.app_id, start, window, [])
        shifts = flatten(visits, without(late, capacities(per_bucket * PLANNED_SHARE, BUCKETS)))
        soon = [shift for shift in shifts if shift.target < CARRIED_OUT]
        return left, _Plan(app.app_id, start, window, soon)

    def _carry_out(self, plan: _Plan) -> int:
        moved = 0
        for portion in coming_hour.in_portions(plan.shifts):
            with self._engine.begin() as connection:
                moved += coming_hour.move(
                    connection, plan.app_id, portion, start=plan.start, window=plan.window
                )
        return moved


def _window(provider: Provider) -> timedelta | None:
    seconds = provider.spec.lifetimes.earliest_refresh_seconds
    return None if seconds is None else timedelta(seconds=seconds)


def _tell(app: App, before: float | None, left: float | None) -> None:
    """Raise an alarm when the rate has just become too little; it goes on being shown until it is enough."""
    if left is not None and left < 0 and not (before is not None and before < 0):
        telemetry.alarm(Event.APP_OVERBOOKED, app_id=app.app_id, provider=app.provider, slack=round(left, 3))
