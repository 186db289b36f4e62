"""The blast-radius guard as arithmetic: how many customers of one app may be told to sign in again in ten minutes.

Pure. ``store.guard`` keeps the numbers and takes the decision under a lock; these are the rules it takes it by.
Invariant: of the rejections that are counted in one window, at most :attr:`Window.limit` are let pass.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

WINDOW: Final = timedelta(minutes=10)
"""Rejections are counted from the first one for so long; the first one after that begins the next window."""
LEAST_LIMIT: Final = 20
"""Never fewer than these are let pass, however small the app."""
SHARE: Final = 0.01
"""Part of the app's accounts that is let pass."""
USUAL_FACTOR: Final = 3
"""How many times the usual number is let pass."""
USUAL_SHARE: Final = 0.05
"""Part of the app's accounts that what is usual never raises the limit above: a provider that is a little worse in
each window must not teach the guard to let everything pass."""
LEARNING: Final = 0.05
"""Weight of one window in what is usual: about the last three hours."""

SILENT_AFTER: Final = 20
"""Rejections in a row, without a success between them, after which an app that has an incident is only sampled."""
SAMPLES: Final = 3
"""Accounts set apart that are asked again in one round."""
SAMPLE_EVERY: Final = timedelta(seconds=15)


@dataclass(frozen=True, slots=True)
class Window:
    """What is counted for one app. ``since`` and ``limit`` are None while no window is running."""

    since: datetime | None = None
    rejections: int = 0
    limit: int | None = None
    usual: float = 0.0

    def is_over(self, now: datetime) -> bool:
        """Answer whether a rejection at ``now`` begins a new window."""
        return self.since is None or self.limit is None or now - self.since >= WINDOW

    def following(self, now: datetime, *, accounts: int) -> Window:
        """Return the window that begins at ``now`` for an app with so many accounts, wiser by this one."""
        usual = self.usual
        if self.since is not None:
            usual = learned(usual, self.rejections, windows=max(int((now - self.since) / WINDOW), 1))
        return Window(now, 0, limit_of(accounts, usual), usual)

    def admitting(self, count: int) -> Window | None:
        """Return the window with ``count`` more rejections in it, or None when that is more than it lets pass."""
        if self.limit is None or self.rejections + count > self.limit:
            return None
        return replace(self, rejections=self.rejections + count)


def limit_of(accounts: int, usual: float) -> int:
    """Return how many rejections one window lets pass."""
    learned_limit = min(math.ceil(USUAL_FACTOR * usual), math.ceil(USUAL_SHARE * accounts))
    return max(LEAST_LIMIT, math.ceil(SHARE * accounts), learned_limit)


def learned(usual: float, rejections: int, *, windows: int) -> float:
    """Return what is usual after ``windows`` windows, of which the first had ``rejections`` and the others none."""
    kept = 1 - LEARNING
    return (usual * kept + rejections * LEARNING) * kept ** (windows - 1)
