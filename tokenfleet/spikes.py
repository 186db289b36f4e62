"""Naming what is unusual about an app's answers: its own usual against the last minutes. Pure.

Promise: a share that chance explains is no spike, whatever is little, the minutes or the past: both are taken for the
samples that they are. And a failure of one account, however often it is tried, says nothing of its provider.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

LEAST_FAILURES: Final = 10
"""Fewer in the last minutes are nobody's spike."""
LEAST_ACCOUNTS: Final = 3
"""What fewer accounts suffer from is theirs, not their provider's."""
LEAST_FACTOR: Final = 3.0
LEAST_DEVIATIONS: Final = 4.0
"""How many times its usual a share has to be, and how many standard deviations of both samples above it."""
LEAST_PAST: Final = 100
"""Of fewer attempts nobody can say what is usual."""
SLOW_FACTOR: Final = 3.0
LEAST_SLOW_MS: Final = 500.0
TOGETHER: Final = 3
"""Providers that cannot be reached at the same time, from which on the cause is sought here."""

_ALLOWED_FAILURES: Final = 1
_ALLOWED_ATTEMPTS: Final = 20
"""Unknown is not never: an app without a past is allowed one failure in twenty."""
_OURS: Final = frozenset({"connect_failed", "connect_refused", "dns_failed", "tls_failed"})
_IN_BETWEEN: Final = frozenset({"http_403", "unreadable_answer", "garbled_answer"})

Ending = tuple[str, str]
"""How an attempt failed: the kind of its history row, and the code."""


@dataclass(frozen=True, slots=True)
class Answers:
    """How attempts of one app ended: successes, and failures by kind (of its history row) and code.

    ``accounts`` is how many accounts failed so, as far as that is known. Of all attempts the part ``sampled`` was
    looked at, and counted here.
    """

    succeeded: int = 0
    failed: Mapping[Ending, int] = field(default_factory=dict)
    median_ms: float | None = None
    accounts: Mapping[Ending, int] = field(default_factory=dict)
    sampled: float = 1.0

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

    def in_all(self, counted: int) -> int:
        """Return about how many there were of what was ``counted`` in the part that was looked at."""
        return round(counted / self.sampled)


@dataclass(frozen=True, slots=True)
class Spike:
    """Something unusual: which failure, its share now and usually, and what it probably is.

    ``usual`` is an upper bound, and None where too little is known of the past.
    """

    kind: str
    code: str
    failures: int
    accounts: int | None
    share: float
    usual: float | None
    probably: str


def spikes(now: Answers, usual: Answers) -> list[Spike]:
    """Return every failure of which there are more than usual, the most frequent first."""
    found: list[Spike] = []
    for ending, failures in Counter(now.failed).most_common():
        before = usual.failed.get(ending, 0) + _ALLOWED_FAILURES
        known = usual.attempts + _ALLOWED_ATTEMPTS
        share, past = failures / now.attempts, before / known
        together = (failures + before) / (now.attempts + known)
        deviation = math.sqrt(together * (1 - together) * (1 / now.attempts + 1 / known))
        if (
            failures >= LEAST_FAILURES
            and share >= LEAST_FACTOR * past
            and share - past >= LEAST_DEVIATIONS * deviation
        ):
            accounts = now.accounts.get(ending)
            is_known = usual.attempts >= LEAST_PAST
            probably = _probably(*ending, accounts)
            found.append(
                Spike(*ending, now.in_all(failures), accounts, share, past if is_known else None, probably)
            )
    return found


def is_slow(now: Answers, usual: Answers) -> bool:
    """Answer whether half of the answers take far longer than usual."""
    if now.median_ms is None or usual.median_ms is None or now.attempts < LEAST_FAILURES:
        return False
    return now.median_ms >= LEAST_SLOW_MS and now.median_ms >= SLOW_FACTOR * usual.median_ms


def is_our_network(found: Mapping[str, Sequence[Spike]]) -> bool:
    """Answer whether so many providers cannot be reached at once that the cause is probably here.

    ``found`` are the spikes of every provider that was asked: if all of two are out of reach, that is enough.
    """
    cut = sum(any(each.code in _OURS for each in spikes) for spikes in found.values())
    return cut >= TOGETHER or cut == len(found) >= 2


def _probably(kind: str, code: str, accounts: int | None) -> str:
    outcome = kind.partition(".")[2]
    if accounts is not None and accounts < LEAST_ACCOUNTS:
        return (
            "these accounts and not their provider: 'tokenfleet accounts list --trouble failing' names them"
        )
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
