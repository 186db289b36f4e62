"""When an account is visited next, and for what: a refresh, a keepalive, a probe or a warning. Pure.

A visit is the earliest of four moments: before the access token ends; before the refresh token dies of disuse; when
it is time to see whether the access token still works; and when the customer has to be told that the grant will end.
``now`` and chance are parameters. Invariants kept here:

* A token whose end is known is never visited later than its latest margin before that end (G1), whatever else the
  visit is for; a probe that would come shortly before a refresh gives way to it.
* No refresh token is presented before the provider's window opens, where it refuses early refreshes.
* Where access tokens are never renewed, nothing is ever presented: they are probed, and their end is announced.
* A visit is never sooner than :data:`SOONEST` from now, whatever a provider states: no answer makes a busy loop.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from tokenfleet.tokens import LATEST_MARGIN, Margins, refresh_due

SOONEST: Final = timedelta(seconds=1)

UNKNOWN_LIFETIME_INTERVAL: Final = timedelta(minutes=30)
"""How soon to look at a token whose lifetime nobody told us and no earlier one taught us: by a probe where there is
one, else by renewing it."""

KEEPALIVE_EARLIEST: Final = 0.70
KEEPALIVE_LATEST: Final = 0.85
"""Shares of the idle limit, between which a refresh token is used again: four fifths, jittered."""
SHORTEST_KEEPALIVE: Final = timedelta(seconds=10)
"""No refresh token is kept alive more often, whatever its provider states."""

WARNING_PERIOD: Final = timedelta(days=7)
WARNING_SHARE: Final = 0.2
"""Customers are told a week before their grant ends, or in its last fifth if that is shorter."""

ROOM_FOR_PROBE: Final = timedelta(seconds=60)
"""A probe that would come so shortly before a refresh is left out: the refresh tells as much."""

LONGEST_REST: Final = timedelta(days=30)
"""An account with nothing to do is looked at so often nevertheless: its definition may have changed."""


class Purpose(StrEnum):
    """What a visit is for."""

    REFRESH = "refresh"
    """The access token ends soon, or nobody knows when."""
    KEEPALIVE = "keepalive"
    """A refresh, because the refresh token would die of disuse."""
    PROBE = "probe"
    """The access token is tried out."""
    WARNING = "warning"
    """The customer is told that the grant will end; nobody is asked anything."""


_PRESENTING: Final = frozenset({Purpose.REFRESH, Purpose.KEEPALIVE})


@dataclass(frozen=True, slots=True)
class Lifetimes:
    """What a definition says of how long things live; None where it says nothing.

    ``refresh_idle`` is how long a refresh token lives unused, ``refresh_absolute`` how long a grant lives after
    consent, however busy. A refresh longer than ``earliest_refresh`` before the access token's end is refused, and so
    is one while the access token is younger than ``minimum_age``. ``probe_every`` is how often a token is probed that
    is not refreshed sooner; None when there is no probe. ``renews`` is False where access tokens are never renewed:
    keys, and tokens that live long and end for good.
    """

    renews: bool = True
    access_never_expires: bool = False
    earliest_refresh: timedelta | None = None
    minimum_age: timedelta | None = None
    refresh_idle: timedelta | None = None
    refresh_absolute: timedelta | None = None
    probe_every: timedelta | None = None


NOTHING_SAID: Final = Lifetimes()


@dataclass(frozen=True, slots=True)
class Holding:
    """What we know of the tokens and the grant of one account.

    ``obtained_at`` is when the tokens came, so when the refresh token's predecessor was used. ``end_is_fixed`` says
    that ``refresh_token_expires_at`` does not move with use. ``told`` says that the end of this grant was announced.
    ``never_expires`` is the provider's word that the access token lives until it is revoked.
    """

    obtained_at: datetime
    expires_at: datetime | None
    granted_at: datetime | None = None
    refresh_token_expires_at: datetime | None = None
    end_is_fixed: bool = False
    told: bool = False
    never_expires: bool = False


@dataclass(frozen=True, slots=True)
class Visit:
    """When an account is visited, and for what."""

    at: datetime
    purpose: Purpose

    @property
    def presents(self) -> bool:
        """Answer whether the refresh token will be presented; if not, the visit is a *probing* one."""
        return self.purpose in _PRESENTING


def next_visit(
    holding: Holding, lifetimes: Lifetimes, margins: Margins, *, now: datetime, chance: float
) -> Visit:
    """Return the next visit. ``chance`` in [0, 1) spreads accounts whose tokens came together."""
    presenting = _first(
        [*_refreshes(holding, lifetimes, margins, chance), *_keepalives(holding, lifetimes, chance)]
    )
    visits: list[Visit] = []
    if presenting is not None:
        opens = refresh_opens(holding.obtained_at, holding.expires_at, lifetimes)
        at = presenting.at if opens is None else max(presenting.at, opens)
        visits.append(Visit(at, presenting.purpose))
    if not holding.told:
        visits += [Visit(end - ahead, Purpose.WARNING) for end, ahead in _known_ends(holding, lifetimes)]
    every = _probe_interval(holding, lifetimes)
    # What is refreshed within the whole interval needs no probe; the jitter only brings a probe forward.
    if every is not None and (presenting is None or now + every + ROOM_FOR_PROBE <= visits[0].at):
        visits.append(Visit(now + every * (0.75 + chance / 4), Purpose.PROBE))
        if not lifetimes.renews and holding.expires_at is not None and holding.expires_at > now:
            # It is to end then, and nothing else would notice before the next probe.
            visits.append(Visit(holding.expires_at, Purpose.PROBE))
    if not lifetimes.renews or not visits:
        visits.append(Visit(now + LONGEST_REST, Purpose.PROBE))
    visit = min(visits, key=lambda each: each.at)
    return Visit(max(visit.at, now + SOONEST), visit.purpose)


def first_visit(
    holding: Holding,
    lifetimes: Lifetimes,
    margins: Margins,
    *,
    has_access_token: bool,
    now: datetime,
    chance: float,
) -> Visit:
    """Return the first visit of an account that was just imported.

    A token that is not there, has ended, or is of unknown age and lifetime is renewed at once. One that is never
    renewed is tried out at once, if there is a probe.
    """
    expires_at = holding.expires_at
    if not lifetimes.renews:
        if has_access_token and lifetimes.probe_every is not None:
            return Visit(now, Purpose.PROBE)
        return next_visit(holding, lifetimes, margins, now=now, chance=chance)
    if (
        not has_access_token
        or is_unknown(holding, lifetimes)
        or (expires_at is not None and expires_at <= now)
    ):
        return Visit(now, Purpose.REFRESH)
    return next_visit(holding, lifetimes, margins, now=now, chance=chance)


def visit_after_unclear_probe(
    holding: Holding, lifetimes: Lifetimes, margins: Margins, *, now: datetime, chance: float
) -> Visit:
    """Return the next visit when a probe did not say whether the token works.

    A token of unknown lifetime has nothing but probes to tell its end: without a clear word it is renewed instead.
    """
    if is_unknown(holding, lifetimes):
        return Visit(now + UNKNOWN_LIFETIME_INTERVAL * (0.75 + chance / 4), Purpose.REFRESH)
    return next_visit(holding, lifetimes, margins, now=now, chance=chance)


def is_unknown(holding: Holding, lifetimes: Lifetimes) -> bool:
    """Answer whether nobody knows when the access token ends, and a new one can be had."""
    is_endless = lifetimes.access_never_expires or holding.never_expires
    return holding.expires_at is None and lifetimes.renews and not is_endless


def refresh_opens(
    obtained_at: datetime, expires_at: datetime | None, lifetimes: Lifetimes
) -> datetime | None:
    """Return before when the provider refuses a refresh of the access token; None when it never does.

    The token came ``obtained_at``: one that was imported may be older, so its age is not waited for beyond its end.
    """
    bounds: list[datetime] = []
    if expires_at is not None and lifetimes.earliest_refresh is not None:
        bounds.append(expires_at - lifetimes.earliest_refresh)
    if lifetimes.minimum_age is not None:
        of_age = obtained_at + lifetimes.minimum_age
        bounds.append(of_age if expires_at is None else min(of_age, expires_at - LATEST_MARGIN))
    return max(bounds, default=None)


def must_present(holding: Holding, lifetimes: Lifetimes, margins: Margins, *, now: datetime) -> bool:
    """Answer whether a visit that was planned as a probing one has to be a refresh, now that it takes place.

    So it is when it comes late, or when who planned it did not know of probes.
    """
    opens = refresh_opens(holding.obtained_at, holding.expires_at, lifetimes)
    if opens is not None and now < opens:
        return False
    # The earliest moment of a refresh: its window has begun. The latest one of a keepalive: there is no hurry.
    moments = [*_refreshes(holding, lifetimes, margins, 1.0), *_keepalives(holding, lifetimes, 1.0)]
    return any(visit.at <= now for visit in moments)


def announced_end(holding: Holding, lifetimes: Lifetimes, *, now: datetime) -> datetime | None:
    """Return the end of the grant if it is time to tell the customer, None if not, or if that was told already.

    Counted from consent as the definition says, or stated by answers and not moved by use; or the access token's own,
    where none follows it.
    """
    if holding.told:
        return None
    known = list(_known_ends(holding, lifetimes))
    stated = _fixed_end(holding)
    if stated is not None and lifetimes.renews:
        known.append((stated, _warning_of(holding, stated)))
    return min((end for end, ahead in known if end - ahead <= now), default=None)


def warning_period(life: timedelta | None) -> timedelta:
    """Return how long before its end a grant that lives ``life`` is announced to end."""
    return WARNING_PERIOD if life is None else min(WARNING_PERIOD, life * WARNING_SHARE)


def _refreshes(holding: Holding, lifetimes: Lifetimes, margins: Margins, chance: float) -> Iterator[Visit]:
    """Yield when the access token is renewed before its end."""
    if not lifetimes.renews:
        return
    if holding.expires_at is not None:
        due = refresh_due(holding.expires_at, now=holding.obtained_at, margins=margins, chance=chance)
        yield Visit(due, Purpose.REFRESH)
    elif is_unknown(holding, lifetimes) and lifetimes.probe_every is None:
        interval = UNKNOWN_LIFETIME_INTERVAL * (0.75 + chance / 4)
        yield Visit(holding.obtained_at + interval, Purpose.REFRESH)


def _keepalives(holding: Holding, lifetimes: Lifetimes, chance: float) -> Iterator[Visit]:
    """Yield when the refresh token is used before it dies of disuse, or its fixed end is announced."""
    if not lifetimes.renews:
        return
    share = KEEPALIVE_EARLIEST + (KEEPALIVE_LATEST - KEEPALIVE_EARLIEST) * chance
    limits: list[timedelta] = []
    if lifetimes.refresh_idle is not None:
        limits.append(lifetimes.refresh_idle)
    stated = holding.refresh_token_expires_at
    if stated is not None and not holding.end_is_fixed and stated > holding.obtained_at:
        limits.append(stated - holding.obtained_at)
    for limit in limits:
        yield Visit(holding.obtained_at + max(limit * share, SHORTEST_KEEPALIVE), Purpose.KEEPALIVE)
    fixed = _fixed_end(holding)
    if fixed is not None and not holding.told and fixed > holding.obtained_at:
        # The answer to it says once more that the end is fixed, and the customer is told with it.
        at = max(fixed - _warning_of(holding, fixed), holding.obtained_at + SHORTEST_KEEPALIVE)
        yield Visit(at, Purpose.KEEPALIVE)


def _probe_interval(holding: Holding, lifetimes: Lifetimes) -> timedelta | None:
    every = lifetimes.probe_every
    if every is None or not is_unknown(holding, lifetimes):
        return every
    return min(every, UNKNOWN_LIFETIME_INTERVAL)


def _known_ends(holding: Holding, lifetimes: Lifetimes) -> Iterator[tuple[datetime, timedelta]]:
    """Yield each end that no request can move or confirm, and how long before it the customer is told."""
    if holding.granted_at is not None and lifetimes.refresh_absolute is not None:
        yield holding.granted_at + lifetimes.refresh_absolute, warning_period(lifetimes.refresh_absolute)
    if not lifetimes.renews and holding.expires_at is not None:
        yield holding.expires_at, _warning_of(holding, holding.expires_at)


def _fixed_end(holding: Holding) -> datetime | None:
    return holding.refresh_token_expires_at if holding.end_is_fixed else None


def _warning_of(holding: Holding, end: datetime) -> timedelta:
    return warning_period(None if holding.granted_at is None else max(end - holding.granted_at, timedelta(0)))


def _first(visits: Sequence[Visit]) -> Visit | None:
    return min(visits, key=lambda visit: visit.at, default=None)
