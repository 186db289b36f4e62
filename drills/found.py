"""What is known of one drill when it is over: values only, from the authorization server, readers and the outbox."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sandbox.traffic import Arrival, Wait


@dataclass(frozen=True, slots=True)
class Expected:
    """What a drill is to show, beside what all of them are."""

    wrong_flips: int = 0
    """How many accounts may be flipped wrongly for a while."""
    incident: str | None = None
    """The kind of the one incident that opens, and is over in the end."""
    waits: bool = False
    """The provider tells us to wait."""
    stops: bool = False
    """Requests stop, but for single accounts."""
    margin_seconds: float | None = None
    """Everybody is due exactly so long before the end of the token: lateness is measured, and stays as it was."""


@dataclass(frozen=True, slots=True)
class Incident:
    """One incident of the drill's app. Moments are POSIX seconds."""

    kind: str
    opened: float
    resolved: float | None


@dataclass(frozen=True, slots=True)
class Told:
    """One event in the outbox about one account."""

    subject: str
    event: str
    at: float


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything that is judged of one drill."""

    name: str
    title: str
    accounts: int
    expected: Expected
    rate: float
    """What the definition allows: requests per second, and at once."""
    burst: int
    quiet_since: float
    """When the fleet was at its usual work."""
    began: float
    struck: float
    """When it had certainly gone wrong: the rule was in force, or the operator's command had ended."""
    mending: float
    """When an operator began to mend it, or when it ended by itself."""
    ended: float
    """When everything was right again."""
    recovery_seconds: float
    """How long at most all may take to be fresh again."""
    arrivals: Sequence[Arrival]
    """Every token request, in order, since before :attr:`quiet_since`."""
    waits: Sequence[Wait]
    forgotten: int
    """Requests that the authorization server does not remember."""
    stale: Sequence[tuple[float, int]]
    """When a reader looked, and how many customers that stayed had no active account with 30 s to live."""
    seen_flipped: Mapping[str, float]
    """Who was seen with the status needs_reauth, and when first."""
    flipped_in_the_end: frozenset[str]
    told: Sequence[Told]
    """In the order of the outbox."""
    revoked: Mapping[str, float]
    """Who really ended the grant at the provider, and when."""
    incidents: Sequence[Incident]
    incidents_told: Mapping[str, int]
    """How many events of the outbox are about the app, by their type."""
    ill_saved: frozenset[str]
    """Who was seen with tokens in the database that are not those the provider gave."""
    presented_twice: int
