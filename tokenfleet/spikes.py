"""Naming what is unusual about an app's answers: its own usual against the last minutes. Pure.

Promise: a share that chance explains is no spike. ``usual`` comes from a sample, so it is never believed to be zero:
one failure is added to it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

LEAST_FAILURES: Final = 10
"""Fewer in the last minutes are nobody's spike."""
LEAST_FACTOR: Final = 3.0
LEAST_DEVIATIONS: Final = 5.0
"""How many standard deviations above its usual a share has to be, and how many times its usual."""
SLOW_FACTOR: Final = 3.0
LEAST_SLOW_MS: Final = 500.0
TOGETHER: Final = 3
"""Providers that cannot be reached at the same time, from which on the cause is sought here."""

_OURS: Final = frozenset({"connect_failed", "connect_refused", "dns_failed", "tls_failed"})
_IN_BETWEEN: Final = frozenset({"http_403", "unreadable_answer", "garbled_answer"})


@dataclass(frozen=True, slots=True)
class Answers:
    """How attempts of one app ended: successes, and failures by kind (of its history row) and code."""

    succeeded: int = 0
    failed: Mapping[tuple[str, str], int] = field(default_factory=dict)
    median_ms: float | None = None

    @property
    def failures(self) -> int:
        """All that brought nothing."""
        return sum(self.failed.values())

    @property
    def attempts(self) -> int:
        """All attempts."""
        return self.succeeded + self.failures

    @property
    def success_rate(self) -> float | None:
        """The part that brought tokens, None without attempts."""
        return self.succeeded / self.attempts if self.attempts else None


@dataclass(frozen=True, slots=True)
class Spike:
    """Something unusual: which failure, its share now and usually, and what it probably is."""

    kind: str
    code: str
    failures: int
    share: float
    usual: float
    probably: str


def spikes(now: Answers, usual: Answers) -> list[Spike]:
    """Return every failure of which there are more than usual, the most frequent first."""
    found: list[Spike] = []
    for (kind, code), failures in Counter(now.failed).most_common():
        share = failures / now.attempts
        # Unknown is not never: an app without a past is allowed one failure in twenty.
        past = (usual.failed.get((kind, code), 0) + 1) / (usual.attempts + 20)
        deviation = math.sqrt(past * (1 - past) / now.attempts)
        if (
            failures >= LEAST_FAILURES
            and share >= LEAST_FACTOR * past
            and share - past >= LEAST_DEVIATIONS * deviation
        ):
            found.append(Spike(kind, code, failures, share, past, _probably(kind, code)))
    return found


def is_slow(now: Answers, usual: Answers) -> bool:
    """Answer whether half of the answers take far longer than usual."""
    if now.median_ms is None or usual.median_ms is None or now.attempts < LEAST_FAILURES:
        return False
    return now.median_ms >= LEAST_SLOW_MS and now.median_ms >= SLOW_FACTOR * usual.median_ms


def is_our_network(found: Mapping[str, Sequence[Spike]]) -> bool:
    """Answer whether so many providers cannot be reached at once that the cause is probably here."""
    return sum(any(each.code in _OURS for each in spikes) for spikes in found.values()) >= TOGETHER


def _probably(kind: str, code: str) -> str:
    outcome = kind.partition(".")[2]
    if code in _OURS:
        return "the way to the provider, or its servers, are down"
    if code in _IN_BETWEEN:
        return "a firewall or a proxy in between, or a maintenance page: no word about any grant"
    match outcome:
        case "grant_rejected":
            return "not the customers, so many at once: the provider revoked or changed something, or has a fault"
        case "client_rejected":
            return "the client registration: its secret was changed or has expired"
        case "throttled":
            return "a rate limit of the provider: somebody else uses the same client, or its definition asks too fast"
        case "unavailable":
            return "an outage at the provider"
        case "unknown":
            return "the provider is overloaded: it takes requests and does not answer them in time"
        case "our_fault":
            return "a mistake of ours: the definition, a variable, or keys"
        case "undescribed":
            return "an answer that is new: 'tokenfleet providers unknowns' shows the rule to add"
        case _:
            return (
                "access tokens that ended before their time: the provider revoked them, or they live shorter"
            )
