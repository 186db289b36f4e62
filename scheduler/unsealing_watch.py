"""A scheduler looks every minute whether far more is opened than is explained or usual, and raises one alarm for it.

Beside its ticks, with whatever else its :class:`scheduler.watch.Watch` does. Every scheduler shows the spikes that
last; whichever finds one raises the alarm.
"""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Final

from sqlalchemy import Engine

from store import unsealing_spikes
from tokenfleet import telemetry
from tokenfleet.telemetry import Event

LOOK_SECONDS: Final = 60.0
PRUNE_SECONDS: Final = 600.0


class UnsealingWatch:
    """Looks when it is time to. One per scheduler."""

    def __init__(self, engine: Engine, *, retention_days: int) -> None:
        self._engine = engine
        self._retention = timedelta(days=retention_days)
        self._usual = unsealing_spikes.Usual()
        self._look_at = self._prune_at = 0.0
        self._shown: frozenset[tuple[str, str]] = frozenset()

    def look(self) -> None:
        """Look if it is time to. Raises SQLAlchemy's ``DBAPIError`` when Postgres is away."""
        now = time.monotonic()
        if now < self._look_at:
            return
        with self._engine.begin() as connection:
            found = unsealing_spikes.look(connection, self._usual)
            lasting = found.lasting if found is not None else unsealing_spikes.open_spikes(connection)
        if found is not None:
            for spike in found.began:
                telemetry.alarm(
                    Event.UNSEALING_SPIKE,
                    purpose=spike.purpose,
                    caller=spike.caller,
                    database_role=spike.database_role,
                    opened=spike.opened,
                    expected=spike.expected,
                )
            for spike in found.over:
                telemetry.logger().info(
                    Event.UNSEALING_SPIKE_OVER.value,
                    purpose=spike.purpose,
                    database_role=spike.database_role,
                    opened=spike.opened,
                )
        shown = frozenset((spike.purpose, spike.database_role) for spike in lasting)
        for labels in shown:
            telemetry.UNSEALING_SPIKES.labels(*labels).set(1)
        for labels in self._shown - shown:
            telemetry.UNSEALING_SPIKES.remove(*labels)
        self._shown = shown
        self._look_at = now + LOOK_SECONDS
        if now >= self._prune_at:
            with self._engine.begin() as connection:
                unsealing_spikes.prune(connection, retention=self._retention)
            self._prune_at = now + PRUNE_SECONDS
