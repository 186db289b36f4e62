"""How many requests each provider app may be sent now: one budget for the whole fleet, kept in Redis.

GCRA: smooth, one number per app, no window edges. Its admitted weakness is that after silence, and after
Redis was wiped, it lets a ``burst`` through at once; definitions keep that small. When Redis does not answer,
each scheduler falls back to a local budget of a quarter of the rate: slower than allowed, never faster (with up
to four schedulers).
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from redis import Redis
from redis.exceptions import RedisError

from tokenfleet.jobs import AppId

KEY_PREFIX: Final = "tokenfleet:pace:"
LOCAL_SHARE: Final = 0.25
_SCRIPT: Final = (Path(__file__).parent / "limits.lua").read_text()


@dataclass(frozen=True, slots=True)
class Demand:
    """One app wants ``wanted`` requests at ``per_second`` with ``burst``; negative gives some back."""

    app_id: AppId
    wanted: int
    per_second: float
    burst: int


class Budgets:
    """Requests granted per app. Shared through Redis; local and conservative without it."""

    def __init__(self, redis: Redis, *, prefix: str = "") -> None:
        self._prefix = prefix + KEY_PREFIX
        self._script = redis.register_script(_SCRIPT)
        self._local: dict[AppId, int] = {}
        self.shared = True

    def take(self, demands: Sequence[Demand]) -> dict[AppId, int]:
        """Return how many of the wanted requests each app may send now."""
        if not demands:
            return {}
        keys = [f"{self._prefix}{demand.app_id}" for demand in demands]
        arguments: list[int] = []
        for demand in demands:
            arguments += [demand.wanted, _interval(demand.per_second), demand.burst]
        try:
            granted = self._script(keys=keys, args=arguments)
        except (RedisError, OSError):
            self.shared = False
            return {
                demand.app_id: self._take_locally(demand, time.monotonic_ns() // 1000) for demand in demands
            }
        self.shared = True
        self._local.clear()
        return {demand.app_id: int(count) for demand, count in zip(demands, granted, strict=True)}

    def _take_locally(self, demand: Demand, now: int) -> int:
        """The same arithmetic as ``limits.lua``, in microseconds, at :data:`LOCAL_SHARE` of the rate."""
        interval = _interval(demand.per_second * LOCAL_SHARE)
        burst = max(1, int(demand.burst * LOCAL_SHARE))
        arrival = max(self._local.get(demand.app_id, now), now)
        room = (now + interval * burst - arrival) // interval
        taken = min(demand.wanted, max(room, 0))
        self._local[demand.app_id] = max(arrival + taken * interval, now)
        return taken


def _interval(per_second: float) -> int:
    """Microseconds between requests, rounded up: rather too slow than too fast."""
    return max(1, math.ceil(1_000_000 / per_second))
