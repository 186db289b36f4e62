"""Held against the promises: what each receiver got, where packets went, and whether anybody else noticed. Pure."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from chaos.verdict import counted
from drills.receivers.found import Endpoint, Evidence
from drills.receivers.roster import HEALTHY, End
from drills.verdict import UNCHANGED_FACTOR, UNCHANGED_SECONDS

LEAST: Final = 30
"""With fewer refreshes or deliveries in a phase, its shares say nothing."""
PROBES: Final = 3
"""Where everything fails, the log holds at least so many attempts: it was not forgotten."""


@dataclass(frozen=True, slots=True)
class Latency:
    """One thing that must not change, in seconds: before the trouble and while it lasted."""

    what: str
    before: tuple[float, float]
    during: tuple[float, float]
    counts: tuple[int, int]

    @property
    def is_unchanged(self) -> bool:
        """Whether neither the median nor the slowest hundredth changed beyond the machine's own noise."""
        return all(
            during <= before * UNCHANGED_FACTOR + UNCHANGED_SECONDS
            for before, during in zip(self.before, self.during, strict=True)
        )


@dataclass(frozen=True, slots=True)
class Verdict:
    """The whole run's."""

    refreshes: Latency
    healthy: Latency
    problems: Sequence[str]


def judge(evidence: Evidence) -> Verdict:
    """Return what was found, and every promise that was broken."""
    [healthy] = (each for each in evidence.endpoints if each.kind.name == HEALTHY)
    late = [(each.due, each.late) for each in evidence.refreshes]
    delays = [(each.told_at, each.delay) for each in healthy.delivered]
    refreshes = _latency("a refresh, from due to saved", late, evidence)
    deliveries = _latency("an event, to the healthy receiver", delays, evidence)
    problems = list(evidence.troubles)
    for latency in (refreshes, deliveries):
        if min(latency.counts) < LEAST:
            problems.append(f"too little happened to say how long it took: {latency.what}")
        elif not latency.is_unchanged:
            problems.append(f"the trouble was noticed by others: {latency.what}")
    if evidence.presented_twice:
        problems.append(
            f"{counted(evidence.presented_twice, 'refresh token was', 'refresh tokens were')} presented twice"
        )
    if not evidence.witnessed:
        problems.append("the worker wrote down no connection at all, so nobody knows where packets went")
    for endpoint in evidence.endpoints:
        problems += [f"{endpoint.kind.name}: {problem}" for problem in _problems(endpoint)]
    return Verdict(refreshes, deliveries, problems)


def percentiles(values: Sequence[float]) -> tuple[float, float]:
    """Return the median and what 99 of 100 do not exceed; nan of nothing."""
    if not values:
        return math.nan, math.nan
    ordered = sorted(values)
    return ordered[math.ceil(len(ordered) * 0.5) - 1], ordered[math.ceil(len(ordered) * 0.99) - 1]


def _latency(what: str, measured: Sequence[tuple[float, float]], evidence: Evidence) -> Latency:
    before = [value for at, value in measured if evidence.quiet_since <= at < evidence.began]
    during = [value for at, value in measured if evidence.began <= at < evidence.ended]
    return Latency(what, percentiles(before), percentiles(during), (len(before), len(during)))


def _problems(endpoint: Endpoint) -> Iterator[str]:
    if endpoint.strayed:
        yield f"{counted(endpoint.strayed, 'connection went', 'connections went')} where none may go"
    yield from _order(endpoint)
    yield from _completeness(endpoint)
    if (reason := endpoint.disabled_reason) != _reason(endpoint.kind.end):
        yield f"disabled: {reason or 'no'}; expected: {_reason(endpoint.kind.end) or 'no'}"
    if reason is not None and not endpoint.alarmed:
        yield "it was disabled, and no alarm said so"
    if endpoint.kind.end is End.SPARED:
        if endpoint.delivered or not endpoint.is_spared:
            yield "it took something, or is not known to fail"
        if endpoint.attempts < PROBES:
            yield f"only {counted(endpoint.attempts, 'attempt', 'attempts')}"
    if endpoint.kind.end is End.LIVES and not endpoint.delivered:
        yield "it took nothing"
    if endpoint.failed and endpoint.kind.end is not End.GONE:
        yield f"{counted(endpoint.failed, 'event was', 'events were')} given up within the hour"
    if endpoint.kind.resolves and endpoint.errors.keys() - {"not_public"}:
        yield f"other words than not_public in the log: {', '.join(sorted(endpoint.errors))}"


def _order(endpoint: Endpoint) -> Iterator[str]:
    """An account's events come one after the other: what came first of each is the beginning of what was told."""
    told, came = defaultdict[int, list[int]](list), defaultdict[int, list[int]](list)
    for each in endpoint.told:
        told[each.account].append(each.number)
    for _, account, number in endpoint.received:
        if number not in came[account]:
            came[account].append(number)
    wrong = [account for account, numbers in came.items() if told[account][: len(numbers)] != numbers]
    if wrong:
        yield f"the order of {counted(len(wrong), 'account', 'accounts')} was not kept"


def _completeness(endpoint: Endpoint) -> Iterator[str]:
    end, told = endpoint.kind.end, len(endpoint.told)
    if end in {End.GONE, End.DISABLED}:
        # Nothing is put in line for it any more.
        return
    if missing := told - len(endpoint.delivered) - endpoint.waiting:
        yield f"{counted(missing, 'event', 'events')} of {told:,} neither delivered nor waiting"
    if end is not End.TAKES_ALL:
        return
    if endpoint.waiting:
        yield f"{counted(endpoint.waiting, 'event waits', 'events wait')} still"
    if unseen := {each.event_id for each in endpoint.told} - {event_id for event_id, *_ in endpoint.received}:
        yield f"{counted(len(unseen), 'event', 'events')} never came"


def _reason(end: End) -> str | None:
    return {End.GONE: "gone", End.DISABLED: "failing"}.get(end)
