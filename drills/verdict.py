"""What one drill proved: the authorization server's record and what readers saw, held against the promises.

Pure: values in, a verdict out. Nothing here asks the fleet what it believes. Flips are what a reader saw in the view
or a customer was told; pace is when requests arrived; freshness is what readers held in their hands.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from chaos.verdict import counted
from drills.found import Evidence
from sandbox.traffic import Wait
from tokenfleet.account import EventType

WINDOWS_SECONDS: Final = (1.0, 10.0)
"""Widths in which the pace is judged: a window of w seconds may hold rate * w + burst requests."""
KNOWN_AFTER_SECONDS: Final = 1.0
"""An answer is known to the whole fleet so long after it left; requests of that second were on their way."""
STOPPED_AFTER_SECONDS: Final = 5.0
"""So long after a wrong client secret was registered, only single accounts are tried, ..."""
PROBE_EVERY_SECONDS: Final = 10.0
"""... one in so many seconds."""
UNCHANGED_SECONDS: Final = 1.0
UNCHANGED_FACTOR: Final = 2.0
"""Those beside a hanging provider may be twice as late as before, for the machine's sake, and a second."""
USUAL_SHARE: Final = 0.95
"""Lateness is told as what so many of the refreshes do not exceed."""
MOST_NAMES: Final = 5


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    name: str
    title: str
    accounts: int
    flipped_wrongly: int
    still_flipped_wrongly: int
    flipped_rightly: int
    requests: int
    peak: float
    fresh_after_seconds: float | None
    """None: never while anybody looked."""
    problems: Sequence[str]
    lateness: tuple[float, float] | None = None
    """Usual lateness before and during the fault, where it is measured."""

    @property
    def held(self) -> bool:
        """Whether the drill showed what it was to show."""
        return not self.problems


def judge(evidence: Evidence) -> Row:
    """Return the row of one drill, and what is wrong with it."""
    wrongly = flipped_wrongly(evidence)
    return Row(
        name=evidence.name,
        title=evidence.title,
        accounts=evidence.accounts,
        flipped_wrongly=len(wrongly),
        still_flipped_wrongly=len(evidence.flipped_in_the_end - evidence.revoked.keys()),
        flipped_rightly=len(evidence.flipped_in_the_end & evidence.revoked.keys()),
        requests=len(evidence.arrivals),
        peak=peak_of(evidence),
        fresh_after_seconds=fresh_after(evidence),
        problems=tuple(_problems(evidence, wrongly)),
        lateness=None if evidence.expected.margin_seconds is None else lateness(evidence),
    )


def flipped_wrongly(evidence: Evidence) -> frozenset[str]:
    """Return who was flipped, or told so, without having ended the grant before."""
    seen = [(subject, at) for subject, at in evidence.seen_flipped.items()]
    seen += [
        (told.subject, told.at) for told in evidence.told if told.event == EventType.AUTHENTICATION_ERROR
    ]
    return frozenset(subject for subject, at in seen if evidence.revoked.get(subject, math.inf) > at)


def peak(arrivals: Sequence[float], rate: float, burst: int) -> float:
    """Return the fullest window of any width as a share of what it may hold. ``arrivals`` are in order."""
    fullest = 0.0
    for width in WINDOWS_SECONDS:
        first, most = 0, 0
        for last, at in enumerate(arrivals):
            while arrivals[first] <= at - width:
                first += 1
            most = max(most, last - first + 1)
        fullest = max(fullest, most / (rate * width + burst))
    return fullest


def peak_of(evidence: Evidence) -> float:
    """Return the peak of a drill's requests."""
    return peak([arrival.at for arrival in evidence.arrivals], evidence.rate, evidence.burst)


def sent_early(arrivals: Sequence[float], waits: Sequence[Wait]) -> int:
    """Return how many requests came before a moment that an answer had named, when that could be known.

    Both are in order of time.
    """
    early, until, following = 0, -math.inf, 0
    for at in arrivals:
        while following < len(waits) and waits[following].at + KNOWN_AFTER_SECONDS < at:
            until = max(until, waits[following].until)
            following += 1
        early += at < until
    return early


def fresh_after(evidence: Evidence) -> float | None:
    """Return how long after the fault a reader found everybody fresh, and from then on; None when nobody did.

    A look at which all are fresh may come while some still wait for their turn, so the last one that is not counts.
    Who goes stale when the time to recover is over is another matter. 0 when nobody was stale before that either.
    """
    before = [stale for at, stale in evidence.stale if at < evidence.ended]
    after = _looks_after(evidence)
    until = evidence.ended + evidence.recovery_seconds
    last_stale = max((at for at, stale in after if stale and at <= until), default=None)
    if last_stale is None:
        if not after:
            return None
        return 0.0 if before and not before[-1] else after[0][0] - evidence.ended
    return next((at - evidence.ended for at, stale in after if at > last_stale and not stale), None)


def lateness(evidence: Evidence) -> tuple[float, float]:
    """Return by how many seconds refreshes usually were late, before the fault and while it lasted."""
    margin = evidence.expected.margin_seconds
    assert margin is not None

    def usual(began: float, ended: float) -> float:
        late = sorted(
            max(margin - each.seconds_left, 0.0) for each in evidence.arrivals if began <= each.at < ended
        )
        return late[math.ceil(len(late) * USUAL_SHARE) - 1] if late else math.nan

    return usual(evidence.quiet_since, evidence.began), usual(evidence.began, evidence.ended)


def _looks_after(evidence: Evidence) -> list[tuple[float, int]]:
    return [(at, stale) for at, stale in evidence.stale if at >= evidence.ended]


def _problems(evidence: Evidence, wrongly: frozenset[str]) -> Iterator[str]:
    yield from _too_little(evidence)
    yield from _flips(evidence, wrongly)
    yield from _told(evidence)
    yield from _incidents(evidence)
    yield from _pace(evidence)
    yield from _freshness(evidence)
    if evidence.ill_saved:
        yield f"{_accounts(evidence.ill_saved)} held tokens that are not the provider's"
    if evidence.presented_twice:
        yield f"{counted(evidence.presented_twice, 'refresh token was', 'refresh tokens were')} presented twice"


def _too_little(evidence: Evidence) -> Iterator[str]:
    """Yield why the drill proves nothing."""
    if not any(evidence.began <= each.at < evidence.ended for each in evidence.arrivals):
        yield "too little happened: no request came during the fault"
    if not evidence.revoked:
        yield "too little happened: nobody revoked"
    if evidence.expected.waits and not evidence.waits:
        yield "too little happened: nobody was told to wait"
    if evidence.forgotten:
        yield f"the authorization server has forgotten {evidence.forgotten:,} requests: take fewer accounts"


def _flips(evidence: Evidence, wrongly: frozenset[str]) -> Iterator[str]:
    allowed = evidence.expected.wrong_flips
    if len(wrongly) > allowed:
        most = f", of which {allowed:,} were allowed" if allowed else ""
        yield f"{_accounts(wrongly)} flipped wrongly{most}"
    if left := evidence.flipped_in_the_end - evidence.revoked.keys():
        yield f"{_accounts(left)} not taken back"
    if missed := evidence.revoked.keys() - evidence.flipped_in_the_end:
        yield f"{_accounts(missed)} revoked and not flipped"


def _told(evidence: Evidence) -> Iterator[str]:
    """Everybody hears of each move once: errors and reactivations alternate, and the last word is true."""
    words: dict[str, list[str]] = {}
    for told in evidence.told:
        words.setdefault(told.subject, []).append(told.event)
    error, back, failing = (
        EventType.AUTHENTICATION_ERROR,
        EventType.REACTIVATED,
        EventType.REFRESH_FAILING,
    )
    ill = set[str]()
    for subject in words.keys() | evidence.flipped_in_the_end:
        heard = words.get(subject, [])
        moves = [event for event in heard if event in (error, back)]
        turns = [error, back] * (len(moves) // 2 + 1)
        is_flipped = subject in evidence.flipped_in_the_end
        if moves != turns[: len(moves)] or (moves[-1:] == [error]) != is_flipped or heard.count(failing) > 1:
            ill.add(subject)
    if ill:
        yield f"{_accounts(ill)} not told exactly what happened, once"


def _incidents(evidence: Evidence) -> Iterator[str]:
    kinds = Counter(incident.kind for incident in evidence.incidents)
    expected = Counter({evidence.expected.incident: 1} if evidence.expected.incident else {})
    if kinds != expected:
        told = ", ".join(f"{number} {kind}" for kind, number in sorted(kinds.items())) or "none"
        yield f"incidents: {told}; expected: {evidence.expected.incident or 'none'}"
    if still := sum(incident.resolved is None for incident in evidence.incidents):
        yield f"{counted(still, 'incident is', 'incidents are')} still open"
    for event, number in (
        (EventType.INCIDENT_OPENED, len(evidence.incidents)),
        (EventType.INCIDENT_RESOLVED, len(evidence.incidents) - still),
    ):
        if (told_of := evidence.incidents_told.get(event, 0)) != number:
            yield f"{counted(told_of, 'event', 'events')} {event} for {counted(number, 'incident', 'incidents')}"


def _pace(evidence: Evidence) -> Iterator[str]:
    arrivals = [arrival.at for arrival in evidence.arrivals]
    if (highest := peak(arrivals, evidence.rate, evidence.burst)) > 1:
        yield f"the budget was exceeded: peak {highest:.2f}"
    if early := sent_early(arrivals, evidence.waits):
        yield f"{counted(early, 'request was', 'requests were')} sent before Retry-After"
    if evidence.expected.stops:
        stopped = evidence.struck + STOPPED_AFTER_SECONDS
        seconds = evidence.mending - stopped
        tried = sum(stopped <= at < evidence.mending for at in arrivals)
        allowed = 1 + math.ceil(max(seconds, 0.0) / PROBE_EVERY_SECONDS)
        if tried > allowed:
            yield f"requests did not stop: {tried:,} in {seconds:.0f} s, of which {allowed} were allowed"


def _freshness(evidence: Evidence) -> Iterator[str]:
    after = fresh_after(evidence)
    if after is None:
        stale = evidence.stale[-1][1] if evidence.stale else evidence.accounts
        yield f"{counted(stale, 'account was', 'accounts were')} never fresh again"
    else:
        if after > evidence.recovery_seconds:
            yield f"all fresh again only after {after:.0f} s"
        settled = evidence.ended + max(after, evidence.recovery_seconds)
        again = [stale for at, stale in _looks_after(evidence) if at > settled and stale]
        if again:
            yield f"up to {counted(max(again), 'account', 'accounts')} went stale again afterwards"
    if evidence.expected.margin_seconds is not None:
        before, during = lateness(evidence)
        if not during <= before * UNCHANGED_FACTOR + UNCHANGED_SECONDS:
            yield f"usually {during:.1f} s late during the fault, {before:.1f} s before"
        if any(stale for at, stale in evidence.stale if evidence.began <= at < evidence.ended):
            yield "accounts went stale beside the fault"


def _accounts(subjects: frozenset[str] | set[str]) -> str:
    names = ", ".join(sorted(subjects)[:MOST_NAMES]) + (", ..." if len(subjects) > MOST_NAMES else "")
    return f"{counted(len(subjects), 'account', 'accounts')} ({names})"
