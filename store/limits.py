"""Slots: the moments at which requests of a paced app may leave, one sequence for the whole fleet, kept in Redis.

GCRA over ``tokenfleet.pace``: smooth, one number per app, no window edges. Its usual weakness, a second burst when its
memory is lost, is paid for with slowness instead: an app of which Redis knows nothing starts without a burst. When
Redis does not answer, each worker keeps a share of its own that is small enough for all of them together: at most a
quarter of the rate, and half of it divided by the workers there are. Its admitted weakness is the first moment: so many
workers may send one request each.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from redis.asyncio import Redis
from sqlalchemy import Connection, text

from store.leases import NO_ANSWER, SILENCE_SECONDS
from tokenfleet.jobs import AppId
from tokenfleet.pace import HORIZON_US, SECOND_US, Pace, Slots, take

KEY_PREFIX: Final = "tokenfleet:slots:"
LARGEST_LOCAL_SHARE: Final = 0.25
_SCRIPT: Final = (Path(__file__).parent / "limits.lua").read_text()


@dataclass(frozen=True, slots=True)
class Rate:
    """What a definition says of one app's pace, and what is made of it."""

    per_second: float
    burst: int
    pace: Pace

    @classmethod
    def of(cls, per_second: float, burst: int) -> Rate:
        """Return the rate with its pace."""
        return cls(per_second, burst, Pace.of(per_second, burst))


@dataclass(frozen=True, slots=True)
class Taken:
    """The slots taken at ``asked_at`` of this machine's clock, or for how long the app is paused."""

    slots: Slots
    asked_at: float
    paused_seconds: float = 0.0

    def moment(self, index: int) -> float:
        """Return when the request of a slot may leave."""
        return self.asked_at + self.slots.offset_us(index) / SECOND_US


class Limits:
    """Slots for one worker process."""

    def __init__(
        self, redis: Redis, *, prefix: str = "", clock: Callable[[], float] = time.monotonic
    ) -> None:
        """``clock`` counts seconds and never goes back; the moments of slots are its own."""
        self._prefix = prefix + KEY_PREFIX
        self._script = redis.register_script(_SCRIPT)
        self._clock = clock
        self._silent_until = 0.0
        self._local: dict[AppId, int] = {}
        self.workers = 1
        """How many workers share the pace while Redis is away."""

    async def take(self, app_id: AppId, rate: Rate, wanted: int, *, paused_seconds: float = 0.0) -> Taken:
        """Take up to ``wanted`` slots of the next tenth of a second.

        ``paused_seconds`` is for how long the caller knows the app to be paused; the answer has the longest pause that
        anybody knows of, and then no slots.
        """
        if self._clock() < self._silent_until:
            return self._take_locally(app_id, rate, wanted)
        pace = rate.pace
        arguments = [
            wanted,
            pace.interval_us,
            pace.tolerance_us,
            HORIZON_US,
            int(paused_seconds * SECOND_US),
            int(app_id in self._local),
        ]
        try:
            taken, first, paused = await self._script(keys=[f"{self._prefix}{app_id}"], args=arguments)
        except NO_ANSWER:
            self._silent_until = self._clock() + SILENCE_SECONDS
            return self._take_locally(app_id, rate, wanted)
        self._local.pop(app_id, None)
        # Read after the answer: Redis gave the slots before, so none is used too early.
        slots = Slots(int(taken), int(first), pace.interval_us)
        return Taken(slots, self._clock(), int(paused) / SECOND_US)

    def _take_locally(self, app_id: AppId, rate: Rate, wanted: int) -> Taken:
        share = min(LARGEST_LOCAL_SHARE, 1 / (2 * self.workers))
        pace = Pace.of(rate.per_second * share)
        now = self._clock()
        now_us = int(now * SECOND_US)
        arrival = self._local.get(app_id)
        if arrival is None:
            # After the slots that Redis gave last, and not all workers at one moment.
            arrival = now_us + HORIZON_US + int(random.SystemRandom().random() * pace.interval_us)
        self._local[app_id], slots = take(arrival, now_us, wanted, pace)
        return Taken(slots, now)


def count_workers(connection: Connection) -> int:
    """Return how many workers are connected to Postgres; at least one, who asks."""
    count: int = connection.execute(
        text("""
            SELECT count(DISTINCT application_name) FROM pg_stat_activity
            WHERE datname = current_database() AND starts_with(application_name, 'tokenfleet worker ')
        """)
    ).scalar_one()
    return max(1, count)
