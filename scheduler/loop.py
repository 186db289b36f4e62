"""The scheduler's tick: claim what is due within every app's window, commit, then publish.

Any number of schedulers may run; they share nothing but rows that ``SKIP LOCKED`` divides among them. A tick
that dies leaves claims that expire by themselves. Invariants kept here:

* Claims are committed before anything is sent; what cannot be sent is given back at once.
* No app has more outstanding than its window, and a share of it for accounts that readers wait for.
* A held app gets one account at a time; a paused app gets none, nor does one whose circuit is open; one that is only
  sampled (``store.guard``) gets a few, beside the samples of its incident (``scheduler.incidents``).

The pace itself is kept where requests are sent (``workers.pacing``); windows: ``scheduler.windows``. Between ticks,
requests of readers are claimed by ``scheduler.on_demand``.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import psycopg
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError

from providers import Registry
from scheduler import incidents
from scheduler.on_demand import OpenApp, requested_app
from scheduler.publisher import Publisher, make_jobs
from scheduler.sweeping import ExpirySweep, RevocationSweep, gated_apps
from scheduler.windows import traits_of, window_of
from store import apps, candidates, claiming, history, schedule, traits
from store.apps import App
from store.circuits import CircuitView
from store.claiming import Allowance, Claim
from store.engine import database_now, is_outage, postmaster_start
from tokenfleet import telemetry
from tokenfleet.circuit import CircuitState, Standing
from tokenfleet.errors import UserError
from tokenfleet.guard import SAMPLES
from tokenfleet.health import Health
from tokenfleet.jobs import AppId, RefreshJob
from tokenfleet.settings import Tunables, process_name
from tokenfleet.telemetry import Event

CLAIMS_PER_TICK: Final = 1000
"""Claims per app and statement: 61,000 claims/s were measured in thousands, 29,000 in hundreds."""
PROBE_SPACING: Final = timedelta(seconds=30)
HOUSEKEEPING_EVERY: Final = timedelta(minutes=10)
PAUSED_WHEN_BROKEN_SECONDS: Final = 1.0
MAX_WAITING_JOBS: Final = 400
"""Nothing is claimed while so many jobs lie in the queue: about a claim's life of work for two busy workers. Without
workers the queue would grow by all that is due, again with every life of a claim, until Redis is full."""
TAKE_OVER_SHARE: Final = 1 / 3
"""Part of a claim's life for which, after Postgres was away, nobody takes over a claim that was started: who
started it lands its answer first, or renews its lease (``workers.refresh``)."""
SLOW_TICK_SECONDS: Final = 5.0
"""A tick that takes longer waits for somebody: Postgres, a lock, the broker."""
STOP_NOTICED_SECONDS: Final = 0.5
"""How long a stop may go unnoticed while nothing is due, however long the tick is."""


@dataclass(frozen=True, slots=True)
class TickResult:
    """What one tick did. ``more`` says that an app filled its allowance, so the next tick comes at once."""

    claimed: int
    published: int
    more: bool


class Scheduler:
    """One scheduler process. :meth:`run` until :meth:`stop`."""

    def __init__(
        self,
        engine: Engine,
        registry: Registry,
        circuits: CircuitView,
        publisher: Publisher,
        tunables: Tunables,
    ) -> None:
        self._engine = engine
        self._registry = registry
        self._circuits = circuits
        self._standings: dict[AppId, Standing] | None = {}
        self._publisher = publisher
        self._tunables = tunables
        self._claim = timedelta(seconds=tunables.claim_seconds)
        self._patience = self._claim * TAKE_OVER_SHARE
        # A scheduler that starts may have been kept from starting by the same outage.
        self._take_over_from = time.monotonic() + self._patience.total_seconds()
        self._stopping = False
        self._next_housekeeping = datetime.min.replace(tzinfo=UTC)
        self._trouble: str | None = None
        self._tick_began: float | None = None
        self._waiting_jobs = 0
        self._turn = 0
        self._unknown_providers: set[str] = set()
        self._described: frozenset[AppId] = frozenset()
        self._open_apps: Mapping[AppId, OpenApp] = {}
        self._sweep = ExpirySweep(owner=process_name())
        self._revocations = RevocationSweep(owner=process_name())

    def run(self) -> None:
        """Tick until :meth:`stop`; between ticks listen, so that a request starts work at once."""
        while not self._stopping:
            try:
                with self._engine.connect() as listener:
                    self._listen(listener)
            except (DBAPIError, psycopg.OperationalError) as error:
                self._note(error)
                time.sleep(PAUSED_WHEN_BROKEN_SECONDS)

    def stop(self) -> None:
        """End after the current tick. Safe to call from a signal handler."""
        self._stopping = True

    def open_apps(self) -> Mapping[AppId, OpenApp]:
        """Return the apps that requests may be claimed for between ticks, as the last tick saw them. Of any thread."""
        return self._open_apps

    def health(self) -> Health:
        """Return what is wrong now."""
        hampering: list[str] = []
        if self._standings is None:
            hampering.append("Redis does not answer; claims go to apps whose circuit may be open")
        if self._waiting_jobs > MAX_WAITING_JOBS:
            hampering.append(
                f"{self._waiting_jobs} jobs wait for workers; nothing more is claimed: start workers"
            )
        fatal = [self._trouble] if self._trouble else []
        began = self._tick_began
        if began is not None and (seconds := time.monotonic() - began) > SLOW_TICK_SECONDS:
            fatal.append(
                f"a tick has waited for {seconds:.0f} s: Postgres or the broker is silent, or a table is locked"
            )
        return Health(tuple(fatal), tuple(hampering))

    def tick(self) -> TickResult:
        """Claim and publish once. Raises SQLAlchemy's ``DBAPIError`` when Postgres is away."""
        self._tick_began = time.monotonic()
        try:
            with telemetry.TICK_SECONDS.time():
                result = self._tick()
        finally:
            self._tick_began = None
        self._trouble = None
        return result

    def _tick(self) -> TickResult:
        self._waiting_jobs = self._publisher.waiting()
        with self._engine.begin() as connection:
            now = database_now(connection)
            started = postmaster_start(connection)
            if now >= self._next_housekeeping:
                history.maintain_partitions(
                    connection,
                    today=history.utc_date(now),
                    retention_days=self._tunables.history_retention_days,
                    soonest=2,
                )
                candidates.prune(connection)
                self._next_housekeeping = now + HOUSEKEEPING_EVERY
            if self._waiting_jobs > MAX_WAITING_JOBS:
                self._open_apps = {}
                return TickResult(0, 0, False)
            probes = apps.take_probes(connection, spacing=PROBE_SPACING)
            known = [app for app in apps.all_apps(connection) if self._is_known(app)]
            turns = incidents.take_turns(connection)
            self._describe(connection, known)
        if turns:
            with self._engine.begin() as connection:
                incidents.give_back(connection, turns)
        held = [app for app in known if app.held_since is not None]
        sampled = incidents.sampled(turns, but={app.app_id for app in held})
        allowances = self._allow(known, probes, now, sampled.keys())
        allowed_of = {each.app_id: each for each in allowances}
        self._open_apps = {
            app.app_id: OpenApp(app.provider, allowed_of[app.app_id])
            for app in known
            if app.app_id in allowed_of and app.held_since is None and not app.is_sampled
        }
        gated = gated_apps(known, now, circuits_open=self._open_circuits())
        if self._sweep.is_due(now) and (gated or any(app.in_incident for app in known)):
            self._sweep.run_aside(self._engine, gated, now)
        self._revocations.run_aside(self._engine, now)
        if not allowances:
            return TickResult(0, 0, False)
        take_over = self._may_take_over(now - started)
        with self._engine.begin() as connection:
            claims = claiming.claim_due(connection, allowances, claim=self._claim, take_over=take_over)
        unprobed = [app.app_id for app in held if app.app_id in allowed_of and not claims.get(app.app_id)]
        if sampled or unprobed:
            of_allowed = {app_id: each for app_id, each in sampled.items() if app_id in allowed_of}
            with self._engine.begin() as connection:
                samples = incidents.claim_samples(
                    connection, of_allowed, claim=self._claim, take_over=take_over
                )
                samples |= incidents.claim_probes(
                    connection, unprobed, claim=self._claim, take_over=take_over
                )
            claims = {app_id: claims.get(app_id, []) + samples.get(app_id, []) for app_id in claims | samples}
        return self._publish(known, allowances, claims)

    def _may_take_over(self, postgres_up: timedelta) -> bool:
        """Answer whether Postgres has been here for long enough, as it says and as we have seen."""
        return postgres_up > self._patience and time.monotonic() >= self._take_over_from

    def _listen(self, listener: Connection) -> None:
        """Tick, then wait for a notification or the next tick, for as long as the connection holds."""
        listener.execute(text(f"LISTEN {schedule.WAKE_CHANNEL}"))
        listener.commit()
        driver = listener.connection.driver_connection
        assert driver is not None
        while not self._stopping:
            result = self.tick()
            try:
                self._wait(driver, 0.0 if result.more else self._tunables.tick_seconds)
            except psycopg.OperationalError:
                # Raised by the driver itself, so the pool has not noticed that this connection is gone.
                listener.invalidate()
                raise
            listener.rollback()

    def _wait(self, driver: Any, seconds: float) -> None:
        """Return on a notification, after ``seconds``, or soon after :meth:`stop`."""
        ends = time.monotonic() + seconds
        while not self._stopping:
            rest = max(ends - time.monotonic(), 0.0)
            heard = driver.notifies(timeout=min(rest, STOP_NOTICED_SECONDS), stop_after=1)
            # What a reader asks for is claimed beside the ticks (scheduler.on_demand).
            if any(requested_app(each.payload) is None for each in heard) or time.monotonic() >= ends:
                return

    def _open_circuits(self) -> frozenset[AppId]:
        """Return whose circuits were not closed when this process last looked."""
        standings = (self._standings or {}).items()
        return frozenset(app_id for app_id, each in standings if each.state is not CircuitState.CLOSED)

    def _describe(self, connection: Connection, known: Sequence[App]) -> None:
        """Write down what the definitions say of apps that are new to this process."""
        ids = frozenset(app.app_id for app in known)
        if ids - self._described:
            providers = {app.provider for app in known if app.app_id not in self._described}
            traits.describe(
                connection, {each: traits_of(self._registry.get(each)) for each in sorted(providers)}
            )
        self._described = ids

    def _is_known(self, app: App) -> bool:
        """An app whose definition is gone is left alone and reported once; its accounts stay as they are."""
        try:
            self._registry.get(app.provider)
        except UserError:
            if app.provider not in self._unknown_providers:
                self._unknown_providers.add(app.provider)
                telemetry.alarm(Event.DEFINITION_MISSING, app_id=app.app_id, provider=app.provider)
            return False
        return True

    def _allow(
        self, known: Sequence[App], probes: frozenset[AppId], now: datetime, sampled: Collection[AppId]
    ) -> list[Allowance]:
        """Return what each app may claim now: its window, its hold, its pause, its circuit and its incident."""
        self._standings = self._circuits.read([app.app_id for app in known])
        self._turn += 1
        allowances: list[Allowance] = []
        for app in known:
            if app.paused_until is not None and app.paused_until > now:
                continue
            if app.held_since is not None and app.app_id not in probes:
                continue
            if app.is_sampled and app.held_since is None and app.app_id not in sampled:
                continue
            standing = (self._standings or {}).get(app.app_id, Standing())
            window = window_of(app, self._registry.get(app.provider), standing, now)
            if window > 0:
                count = 1 if app.held_since is not None else min(CLAIMS_PER_TICK, window)
                if app.is_sampled:
                    count = min(count, SAMPLES)
                allowances.append(Allowance(app.app_id, count, window, self._turn))
        return allowances

    def _publish(
        self,
        known: Sequence[App],
        allowances: Sequence[Allowance],
        claims: dict[AppId, list[Claim]],
    ) -> TickResult:
        names = {app.app_id: app.provider for app in known}
        jobs: list[RefreshJob] = []
        for app_id, claimed in claims.items():
            telemetry.CLAIMED.labels(names[app_id]).inc(len(claimed))
            jobs.extend(make_jobs(app_id, claimed))
        unsent = self._publisher.publish(jobs)
        telemetry.PUBLISHED.inc(len(jobs) - len(unsent))
        if unsent:
            with self._engine.begin() as connection:
                for job in unsent:
                    schedule.release(connection, job)
            telemetry.logger().error(Event.JOB_NOT_PUBLISHED.value, jobs=len(unsent))
            self._trouble = "the broker does not answer; nothing is claimed"
            self._wait_for_broker()
        filled = any(
            len(claims.get(allowance.app_id, ())) == allowance.count and allowance.count > 1
            for allowance in allowances
        )
        return TickResult(sum(map(len, claims.values())), len(jobs) - len(unsent), filled and not unsent)

    def _wait_for_broker(self) -> None:
        """Claim nothing while there is nobody to tell."""
        while not self._stopping and not self._publisher.broker_answers():
            time.sleep(PAUSED_WHEN_BROKEN_SECONDS)

    def _note(self, error: DBAPIError | psycopg.OperationalError) -> None:
        state = getattr(error.orig if isinstance(error, DBAPIError) else error, "sqlstate", None)
        away = not isinstance(error, DBAPIError) or is_outage(error)
        trouble = "Postgres does not answer" if away else f"Postgres refuses a statement (SQLSTATE {state})"
        if away:
            self._take_over_from = time.monotonic() + self._patience.total_seconds()
        if self._trouble != trouble:
            telemetry.logger().error(Event.TICK_FAILED.value, reason=trouble, sqlstate=state)
        self._trouble = trouble
