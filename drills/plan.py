"""How long everything takes: in full, as the drills are meant, and in short, for CI.

A token's life is shorter than the longest outage, so that tokens really expire, and the budget lets every account be
refreshed within ``spread_seconds``: several times what ordinary days need.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from sandbox.definition import Pace
from tokenfleet.tokens import SHORT_LIFE_LATEST


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The durations of one run, in seconds."""

    accounts: int
    """By default, all drills together."""
    access: int
    """How long an access token lives."""
    margin: tuple[int, int]
    """Latest and earliest moment of a renewal before that."""
    spread: float
    """In so long the budget lets every account of a drill be refreshed once."""
    quiet: float
    """Before the faults, once the first tokens are due."""
    outage: float
    throttled: float
    retry_after: int
    wrong_secret: float
    rejections: float
    firewall: float
    errors: float
    undescribed: float | None
    """None: left out, because a suspect is asked again only after a minute."""
    hang: float
    recovery: float
    """Within which everybody is fresh again after a fault, or never."""

    @property
    def ages(self) -> tuple[float, float]:
        """The remaining lives at the sign-in: a whole round of renewals, evenly, and none too short for the margin."""
        shortest = self.margin[0] / SHORT_LIFE_LATEST
        return shortest, shortest + self.access - self.margin[0]

    @property
    def first_due(self) -> float:
        """How long after the sign-in the first refresh is due, at the latest."""
        return self.ages[0] - self.margin[0]

    def pace(self, accounts: int, *, margin: tuple[int, int] | None = None) -> Pace:
        """Return the budget of a drill of so many accounts."""
        rate = max(accounts / self.spread, 2.0)
        return Pace(rate, max(math.ceil(rate / 2), 5), margin or self.margin)


FULL: Final = Plan(
    accounts=10_000,
    access=300,
    margin=(60, 180),
    spread=50.0,
    quiet=30.0,
    outage=600.0,
    throttled=300.0,
    retry_after=30,
    wrong_secret=180.0,
    rejections=120.0,
    firewall=180.0,
    errors=180.0,
    undescribed=40.0,
    hang=300.0,
    recovery=300.0,
)
SHORT: Final = Plan(
    accounts=1_800,
    access=90,
    margin=(40, 50),
    spread=15.0,
    quiet=10.0,
    outage=30.0,
    throttled=25.0,
    retry_after=6,
    wrong_secret=20.0,
    rejections=15.0,
    firewall=20.0,
    errors=20.0,
    undescribed=None,
    hang=30.0,
    recovery=60.0,
)
