"""What a scheduler does beside its ticks, on a thread of its own: it looks at the coming hour and at what is unsealed,
and sets the gauges of apps. Counting a million accounts takes most of a second, for which no tick may wait.

Every scheduler sets all gauges, from Postgres: whichever of them is asked tells the same.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from prometheus_client import Gauge
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from scheduler.coming_hour import ComingHour
from scheduler.unsealing_watch import UnsealingWatch
from store.gates import Gate, read_gates
from tokenfleet import telemetry
from tokenfleet.circuit import CircuitState, Standing
from tokenfleet.jobs import AppId
from tokenfleet.telemetry import Event

EVERY_SECONDS: Final = 5.0
STOP_SECONDS: Final = 1.0
"""How long a stop waits for the statement at hand. What it would have moved is moved in a minute by another."""


class Watch:
    """The thread, from :meth:`start` to :meth:`stop`."""

    def __init__(
        self,
        engine: Engine,
        coming_hour: ComingHour,
        read_circuits: Callable[[Sequence[AppId]], Mapping[AppId, Standing] | None],
        *,
        every_seconds: float = EVERY_SECONDS,
        unsealings: UnsealingWatch | None = None,
    ) -> None:
        """``read_circuits`` returns how the circuits of these apps stand, None when nobody knows."""
        self._every_seconds = every_seconds
        self._engine = engine
        self._coming_hour = coming_hour
        self._unsealings = unsealings
        self._read_circuits = read_circuits
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._shown: frozenset[tuple[Gauge, tuple[str, ...]]] = frozenset()

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """Stop looking."""
        self._stopping.set()
        self._thread.join(STOP_SECONDS)

    def problem(self) -> str | None:
        """Return what is wrong, or None."""
        if self._thread.is_alive() or self._stopping.is_set():
            return None
        return "the thread that looks at the coming hour has ended; restart this scheduler"

    def look(self) -> None:
        """Look once. Raises SQLAlchemy's ``DBAPIError`` when Postgres is away."""
        self._coming_hour.look()
        with self._engine.connect() as connection:
            gates = read_gates(connection)
        self._show(gates, self._read_circuits([app_id for gate in gates for app_id in gate.app_ids]))
        if self._unsealings is not None:
            self._unsealings.look()

    def _run(self) -> None:
        failing = False
        while not self._stopping.is_set():
            try:
                self.look()
                failing = False
            except DBAPIError as error:
                if not failing:
                    state = getattr(error.orig, "sqlstate", None)
                    telemetry.logger().error(Event.HOUSEKEEPING_FAILED.value, sqlstate=state)
                failing = True
            self._stopping.wait(self._every_seconds)

    def _show(self, gates: Sequence[Gate], circuits: Mapping[AppId, Standing] | None) -> None:
        values: dict[tuple[Gauge, tuple[str, ...]], float] = {}
        for gate in gates:
            labels: tuple[str, ...] = (gate.provider, gate.environment, gate.app)
            values[telemetry.APPS_HELD, labels] = gate.held
            values[telemetry.APPS_PAUSED, labels] = gate.paused
            if circuits is not None:
                standings = [circuits[app_id] for app_id in gate.app_ids if app_id in circuits]
                not_closed = sum(standing.state is not CircuitState.CLOSED for standing in standings)
                values[telemetry.CIRCUITS_OPEN, labels] = not_closed
            if gate.slack is not None:
                values[telemetry.BUDGET_SLACK, labels] = gate.slack
            for kind, count in gate.incidents.items():
                values[telemetry.INCIDENTS_OPEN, (*labels, kind.value)] = count
        for (gauge, labels), value in values.items():
            gauge.labels(*labels).set(value)
        # An app that is gone, or a circuit that nobody can read, must not go on being told as it was.
        for gauge, labels in self._shown - values.keys():
            gauge.remove(*labels)
        self._shown = frozenset(values)
