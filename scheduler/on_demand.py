"""On demand: what a reader asks for is claimed and sent within milliseconds. On a thread of its own, beside the ticks.

It waits for the notifications that the readers' functions send, claims the accounts that are requested of those apps,
and publishes them. Invariants kept here:

* It goes no way of its own around an app's pause, hold, circuit or incident: it claims for the apps that the last tick
  let pass, within a share of their windows (``store.request_claims``). Workers look at all of that once more.
* Nothing depends on it. Ticks claim requested accounts as well: what is asked for while this thread is away, of an app
  that it does not know yet, or beyond the share, waits for one of these.
* Claims are committed before anything is sent; what cannot be sent is given back at once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

import psycopg
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError

from scheduler.publisher import Publisher, make_jobs
from store import schedule
from store.claiming import REQUESTED_SHARE, Allowance
from store.request_claims import claim_requested
from store.requests import WAKE_PAYLOAD
from tokenfleet import telemetry
from tokenfleet.jobs import AppId
from tokenfleet.telemetry import Event

STOP_NOTICED_SECONDS: Final = 0.5
PAUSED_WHEN_BROKEN_SECONDS: Final = 1.0
MOST_DIGITS: Final = 19
"""Of an id. Whoever is logged in may notify anything, and Python refuses to read a number of thousands of digits."""


@dataclass(frozen=True, slots=True)
class OpenApp:
    """An app whose accounts may be claimed now, and how many."""

    provider: str
    allowance: Allowance


def requested_app(payload: str) -> AppId | None:
    """Return the app that a notification names, None where it is about something else than a request."""
    word, _, number = payload.partition(" ")
    is_id = number.isascii() and number.isdecimal() and len(number) <= MOST_DIGITS
    return AppId(int(number)) if word == WAKE_PAYLOAD and is_id else None


class OnDemand:
    """The thread, from :meth:`start` to :meth:`stop`."""

    def __init__(
        self,
        engine: Engine,
        publisher: Publisher,
        open_apps: Callable[[], Mapping[AppId, OpenApp]],
        *,
        claim: timedelta,
    ) -> None:
        """``engine`` (two connections) and ``publisher`` are nobody else's: the thread closes them at its end."""
        # Whatever is done here is one statement: BEGIN and COMMIT would be two round trips more for each claim.
        self._engine = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._publisher = publisher
        self._open_apps = open_apps
        self._claim = claim
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="on-demand", daemon=True)
        self._trouble: str | None = None

    def start(self) -> None:
        """Begin on a thread."""
        self._thread.start()

    def stop(self) -> None:
        """Order the end; returns at once."""
        self._stopping.set()

    def join(self, timeout_seconds: float) -> None:
        """Wait for the end of what is at hand."""
        if self._thread.is_alive():
            self._thread.join(timeout_seconds)

    def trouble(self) -> str | None:
        """Return what is wrong now, in words for ``/healthz``, or None."""
        return self._trouble

    def serve(self, app_ids: set[AppId]) -> int:
        """Claim and publish what is requested of these apps; returns how many accounts. Raises ``DBAPIError``."""
        known = self._open_apps()
        allowances = [
            known[app_id].allowance
            for app_id in sorted(app_ids)
            # Of a smaller window no share is left: its one place may be the trial's.
            if app_id in known and known[app_id].allowance.outstanding >= REQUESTED_SHARE
        ]
        if not allowances:
            return 0
        with self._engine.begin() as connection:
            claims = claim_requested(connection, allowances, claim=self._claim)
        jobs = [job for app_id, claimed in claims.items() for job in make_jobs(app_id, claimed)]
        for app_id, claimed in claims.items():
            telemetry.CLAIMED.labels(known[app_id].provider).inc(len(claimed))
        unsent = self._publisher.publish(jobs)
        telemetry.PUBLISHED.inc(len(jobs) - len(unsent))
        if unsent:
            with self._engine.begin() as connection:
                for job in unsent:
                    schedule.release(connection, job)
            self._note("the broker does not answer; requests of readers wait for it", None)
            self._stopping.wait(PAUSED_WHEN_BROKEN_SECONDS)
        else:
            self._trouble = None
        return sum(map(len, claims.values()))

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                with self._engine.connect() as listener:
                    self._listen(listener)
            except (DBAPIError, psycopg.OperationalError) as error:
                cause = error.orig if isinstance(error, DBAPIError) else error
                self._note(
                    "Postgres does not let requests of readers through", getattr(cause, "sqlstate", None)
                )
                self._stopping.wait(PAUSED_WHEN_BROKEN_SECONDS)
            except Exception as error:  # noqa: BLE001
                # Whatever it is, requests must be quick again when it is over; until then they wait for ticks.
                self._note(f"requests of readers wait for ticks ({type(error).__name__})", None)
                self._stopping.wait(PAUSED_WHEN_BROKEN_SECONDS)
        self._publisher.close()
        self._engine.dispose()

    def _listen(self, listener: Connection) -> None:
        listener.execute(text(f"LISTEN {schedule.WAKE_CHANNEL}"))
        driver = listener.connection.driver_connection
        assert driver is not None
        self._trouble = None
        try:
            while not self._stopping.is_set():
                if app_ids := set(self._requests(driver)):
                    self.serve(app_ids)
        except psycopg.OperationalError:
            # Raised by the driver itself, so the pool has not noticed that this connection is gone.
            listener.invalidate()
            raise

    def _requests(self, driver: Any) -> Iterator[AppId]:
        """Yield the apps of the requests that have come in, once there are any, or after a while."""
        for each in driver.notifies(timeout=STOP_NOTICED_SECONDS, stop_after=1):
            app_id = requested_app(each.payload)
            if app_id is not None:
                yield app_id

    def _note(self, trouble: str, sqlstate: str | None) -> None:
        if self._trouble != trouble:
            telemetry.logger().error(Event.TICK_FAILED.value, reason=trouble, sqlstate=sqlstate)
        self._trouble = trouble
