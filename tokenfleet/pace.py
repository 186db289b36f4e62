"""The pace of an app as numbers: GCRA (the generic cell rate algorithm), and how a window opens again.

Promise: requests that leave at their slots, or a little later, arrive within the provider's own words: in any window
of w seconds at most ``rate * w + burst``. "A little" is :attr:`Pace.jitter_us`, part of which the sender may use up
(:attr:`Pace.lateness_us`) and part of which is the wire's. What jitter may pull together is taken off the burst, or,
where the burst is too small for that, added to the interval: the fleet is a little slower than allowed, never faster.

The same arithmetic stands in ``store/limits.lua``; a test runs both side by side. All moments are microseconds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

SECOND_US: Final = 1_000_000
JITTER_SHARE_OF_BURST: Final = 1 / 2
JITTER_SHARE_OF_INTERVAL: Final = 1 / 10
LEAST_JITTER_US: Final = 20_000
MOST_JITTER_US: Final = 2 * SECOND_US

HORIZON_US: Final = 100_000
"""How far ahead slots are given out: a pause or a more urgent account waits for no more than this."""

WINDOW_SECONDS: Final = 4.0
"""How much work of a paced app may be out at once, in seconds of its rate: enough to keep every worker busy between
two ticks, and little enough that nobody waits for a slot until its claim runs out."""
RAMP_START: Final = 10
RAMP_DOUBLES_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class Pace:
    """What an app's rate and burst come to. ``tolerance_us`` is how far ahead of its rate the app may run."""

    interval_us: int
    tolerance_us: int
    jitter_us: int

    @property
    def lateness_us(self) -> int:
        """How long after its slot a request may still leave; the rest of the jitter is the wire's."""
        return self.jitter_us // 2

    @classmethod
    def of(cls, per_second: float, burst: int = 1) -> Pace:
        """Return the pace that keeps within ``per_second`` and ``burst`` as the provider sees it.

        With an interval T and a burst b, n requests whose slots lie in a window w + jitter number at most
        (w + jitter + tolerance) / interval + 1, which must not exceed w / T + b for any w.
        """
        natural = SECOND_US / per_second
        ahead = (burst - 1) * natural
        jitter = max(ahead * JITTER_SHARE_OF_BURST, natural * JITTER_SHARE_OF_INTERVAL, LEAST_JITTER_US)
        jitter = min(jitter, MOST_JITTER_US)
        if jitter <= ahead:
            return cls(math.ceil(natural), int(ahead - jitter), int(jitter))
        return cls(math.ceil((natural + jitter) / burst), 0, int(jitter))


@dataclass(frozen=True, slots=True)
class Slots:
    """``count`` slots that were taken; the one at ``index`` is :meth:`offset_us` from now.

    Without any, ``first_us`` is how long it is until the next one is free.
    """

    count: int
    first_us: int
    interval_us: int

    def offset_us(self, index: int) -> int:
        """Return how far from now a slot is; 0 is at once."""
        return max(0, self.first_us + index * self.interval_us)


def take(arrival_us: int | None, now_us: int, wanted: int, pace: Pace) -> tuple[int, Slots]:
    """Take up to ``wanted`` slots within the horizon; returns the arrival time to remember, and the slots.

    ``arrival_us`` is the theoretical arrival time of the next request. None means that nobody knows what was taken
    before: then nothing is free until all that could have been has passed, so a memory that is wiped grants nothing.
    """
    latest = now_us + pace.tolerance_us + HORIZON_US + pace.interval_us
    arrival = latest if arrival_us is None else min(max(arrival_us, now_us), latest)
    first = arrival - pace.tolerance_us - now_us
    room = (HORIZON_US - first) // pace.interval_us + 1 if first <= HORIZON_US else 0
    count = min(wanted, room)
    return arrival + count * pace.interval_us, Slots(count, first, pace.interval_us)


def claim_window(per_second: float | None, burst: int, max_outstanding: int) -> int:
    """Return how many claims of an app may be out at once."""
    if per_second is None:
        return max_outstanding
    return min(max_outstanding, math.ceil(per_second * WINDOW_SECONDS) + burst)


def ramp(seconds: float) -> int:
    """Return the window of an app so long after it may be asked again: a few first, doubling, without end.

    Whoever comes back from an outage is not met by everybody at once.
    """
    doublings = min(max(seconds, 0.0) / RAMP_DOUBLES_SECONDS, 40.0)
    return int(RAMP_START * 2.0**doublings)
