"""The circuit of one provider app: when nobody asks a provider that is down, and how asking begins again.

It counts outages only (timeouts, lost connections, connect failures, 5xx): what a provider says, however unpleasant,
is an answer. Closed, it opens when in the last 30 s there were at least ten outages and they were half of all
answers. Open, nobody is asked, for 5 s doubling to 60 s. Then it is half open: one account is the trial, and its
answer closes the circuit or opens it again.

Where the endpoint differs between accounts, one tenant's dead host is no outage of the provider: then it opens only
when several endpoints fail, and more of them than answer.

Pure; moments are milliseconds of whoever keeps it. The fleet's circuits are kept by ``store/circuits.lua``, by the
same rules (a test runs both side by side); this one is a worker's own, for when Redis is away.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

BUCKET_MS: Final = 5_000
BUCKETS: Final = 6
"""The window: 30 s, of which the last bucket is begun."""
LEAST_OUTAGES: Final = 10
LEAST_ENDPOINTS: Final = 2
FIRST_OPEN_MS: Final = 5_000
LONGEST_OPEN_MS: Final = 60_000
JITTER: Final = 0.2
"""Part of an opening's length that chance takes off, so that not every app of a provider is tried at once."""
TRIAL_MS: Final = 30_000
"""How long a trial may take; after that its worker is taken for dead and another account is tried."""
RELAPSE_MS: Final = 60_000
"""A circuit that opens again so soon after it closed goes on doubling."""


class CircuitState(StrEnum):
    """The states of a circuit breaker, by their usual names."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Trial(StrEnum):
    """What became of the one request that a half-open circuit lets through."""

    ANSWERED = "answered"
    OUTAGE = "outage"
    UNUSED = "unused"
    """Nothing was sent: another account may be the trial."""


@dataclass(frozen=True, slots=True)
class Memory:
    """What somebody knows of a circuit that is not closed: enough to put it back where it was forgotten."""

    remaining_ms: int
    openings: int
    trial_left_ms: int = 0


@dataclass(frozen=True, slots=True)
class Report:
    """What one worker has to say about one app since its last report.

    ``outages`` are among the ``answers``. ``failing`` and ``answering`` are endpoints, given only where they differ
    between accounts (``varies``). ``wants_trial`` asks to be the one that may try.
    """

    answers: int = 0
    outages: int = 0
    varies: bool = False
    failing: Sequence[str] = ()
    answering: Sequence[str] = ()
    trial: Trial | None = None
    wants_trial: bool = False
    memory: Memory | None = None
    chance: float = 0.0


@dataclass(frozen=True, slots=True)
class Standing:
    """How a circuit stands now. ``closed_for_ms`` is None where it was not open lately."""

    state: CircuitState = CircuitState.CLOSED
    remaining_ms: int = 0
    openings: int = 0
    trial_left_ms: int = 0
    trial_granted: bool = False
    closed_for_ms: int | None = None

    def memory(self) -> Memory | None:
        """Return what is worth remembering of it."""
        if self.state is CircuitState.CLOSED:
            return None
        return Memory(self.remaining_ms, self.openings, self.trial_left_ms)


def open_ms(openings: int, chance: float) -> int:
    """Return how long the circuit stays open the how-manieth time in a row."""
    length = min(LONGEST_OPEN_MS, FIRST_OPEN_MS << min(max(openings - 1, 0), 10))
    return int(length * (1 - JITTER * chance))


@dataclass(slots=True)
class Circuit:
    """One circuit. ``until`` is 0 while it is closed."""

    until: int = 0
    openings: int = 0
    trial_until: int = 0
    closed_at: int = 0
    answers: dict[int, int] = field(default_factory=dict)
    outages: dict[int, int] = field(default_factory=dict)
    failing: dict[str, int] = field(default_factory=dict)
    answering: dict[str, int] = field(default_factory=dict)

    def report(self, report: Report, now: int) -> Standing:
        """Take ``report`` into account and return how the circuit stands."""
        memory = report.memory
        if not self.until and memory is not None and not self.closed_at:
            self.until, self.openings = now + memory.remaining_ms, memory.openings
            self.trial_until = now + memory.trial_left_ms if memory.trial_left_ms else 0
        granted = False
        if self.until and now >= self.until:
            granted = self._half_open(report, now)
        elif not self.until and report.answers:
            self._count(report, now)
        return self._standing(now, granted)

    def _half_open(self, report: Report, now: int) -> bool:
        """Judge the trial, and say whether the reporter may be the next one."""
        if report.trial is Trial.ANSWERED:
            self.until = self.trial_until = 0
            self.closed_at = now
            for counts in (self.answers, self.outages):
                counts.clear()
            for endpoints in (self.failing, self.answering):
                endpoints.clear()
        elif report.trial is Trial.OUTAGE:
            self._open(report, now)
        elif report.trial is Trial.UNUSED:
            self.trial_until = 0
        if report.wants_trial and self.until and now >= self.until and now >= self.trial_until:
            self.trial_until = now + TRIAL_MS
            return True
        return False

    def _count(self, report: Report, now: int) -> None:
        bucket = now // BUCKET_MS
        for counts, more in ((self.answers, report.answers), (self.outages, report.outages)):
            counts[bucket] = counts.get(bucket, 0) + more
            for old in [each for each in counts if each <= bucket - BUCKETS]:
                del counts[old]
        if report.varies:
            for well, ill, endpoints in (
                (self.failing, self.answering, report.answering),
                (self.answering, self.failing, report.failing),
            ):
                for endpoint in endpoints:
                    well.pop(endpoint, None)
                    ill[endpoint] = now
            for known in (self.failing, self.answering):
                for gone in [each for each, at in known.items() if at <= now - BUCKET_MS * BUCKETS]:
                    del known[gone]
        outages = sum(self.outages.values())
        several = len(self.failing) >= LEAST_ENDPOINTS and len(self.failing) > len(self.answering)
        if (
            report.outages
            and outages >= LEAST_OUTAGES
            and 2 * outages >= sum(self.answers.values())
            and (several or not report.varies)
        ):
            if now - self.closed_at >= RELAPSE_MS:
                self.openings = 0
            self._open(report, now)

    def _open(self, report: Report, now: int) -> None:
        self.openings += 1
        self.until = now + open_ms(self.openings, report.chance)
        self.trial_until = self.closed_at = 0

    def _standing(self, now: int, granted: bool) -> Standing:
        if not self.until:
            return Standing(closed_for_ms=now - self.closed_at if self.closed_at else None)
        return Standing(
            CircuitState.OPEN if now < self.until else CircuitState.HALF_OPEN,
            max(0, self.until - now),
            self.openings,
            max(0, self.trial_until - now),
            granted,
        )
