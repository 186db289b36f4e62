"""Who receives in the drill, what each does to us, and where it may stand in the end. Pure.

One loopback address plays the public internet, another one our own network. Who connects to that one, or to anything
else, has broken the promise: nobody listens there but sentinels that count.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

PUBLIC: Final = "127.0.0.1"
"""What counts as the public internet during the drill."""
PRIVATE: Final = "127.0.0.2"
"""Loopback as it is: to be refused. The sentinels listen here."""
METADATA: Final = "169.254.169.254"
INTRANET: Final = "10.11.12.13"

HOUR_SECONDS: Final = 3600.0
QUICK_SECONDS: Final = 0.05
SLOW_SHARE: Final = 1 / 6
TIMEOUT_SHARE: Final = 1 / 4
"""Parts of the drill's hour. With the usual one of 60 s: 10 s, and 15 s, which is the default of the setting."""


class Behaviour(StrEnum):
    """What a receiver does with a request that reached it."""

    QUICK = "quick"
    SLOW = "slow"
    DEAD = "dead"
    DRIPPING = "dripping"
    REDIRECTING = "redirecting"
    FAILING = "failing"
    """500 while the hour lasts, then like a quick one."""
    GONE = "gone"
    ENDLESS = "endless"
    ABSENT = "absent"
    """Nobody listens."""


class End(StrEnum):
    """What has to have become of an endpoint."""

    TAKES_ALL = "takes all"
    """Everything was delivered."""
    LIVES = "lives"
    """It took some; what it has not taken waits."""
    SPARED = "spared"
    """It took nothing; everything waits."""
    GONE = "gone"
    DISABLED = "disabled"


@dataclass(frozen=True, slots=True)
class Kind:
    """One receiver. ``resolves`` is what its name resolves to, one answer after the other, and from the first again."""

    name: str
    does: str
    behaviour: Behaviour
    end: End
    resolves: tuple[tuple[str, ...], ...] = ()

    @property
    def host(self) -> str:
        """What stands in its URL."""
        return f"{self.name}.example" if self.resolves else PUBLIC


HEALTHY: Final = "healthy"
FAILING: Final = "failing"
DISABLED: Final = "refusing"
REBINDING: Final = "rebinding"

KINDS: Final = (
    Kind(HEALTHY, "204 after 50 ms", Behaviour.QUICK, End.TAKES_ALL),
    Kind("slow", "204 after {slow:g} s", Behaviour.SLOW, End.LIVES),
    Kind("dead", "takes requests, never answers", Behaviour.DEAD, End.SPARED),
    Kind("dripping", "a header a second, for ever", Behaviour.DRIPPING, End.SPARED),
    Kind(DISABLED, "refuses connections, for 3 days*", Behaviour.ABSENT, End.DISABLED),
    Kind("redirecting", "307 to a sentinel", Behaviour.REDIRECTING, End.SPARED),
    Kind(FAILING, "500 for an hour, then 204", Behaviour.FAILING, End.TAKES_ALL),
    Kind("gone", "410", Behaviour.GONE, End.GONE),
    Kind("endless", "200, and a body without end", Behaviour.ENDLESS, End.TAKES_ALL),
    Kind("loopback", f"name: {PRIVATE}", Behaviour.QUICK, End.SPARED, ((PRIVATE,),)),
    Kind("metadata", f"name: {METADATA}", Behaviour.QUICK, End.SPARED, ((METADATA,),)),
    Kind("intranet", f"name: {INTRANET}", Behaviour.QUICK, End.SPARED, ((INTRANET,),)),
    Kind("mixed", "name: public, and 10/8 as well", Behaviour.QUICK, End.SPARED, ((PUBLIC, INTRANET),)),
    Kind(
        REBINDING,
        "name: public once, then loopback",
        Behaviour.QUICK,
        End.LIVES,
        ((PUBLIC,), (PRIVATE,)),
    ),
)


@dataclass(frozen=True, slots=True)
class Pace:
    """How long the drill's hour lasts, and what follows from it, in seconds."""

    hour: float

    @property
    def factor(self) -> float:
        """How much faster than in life the waits between attempts pass."""
        return HOUR_SECONDS / self.hour

    @property
    def slow(self) -> float:
        """What the slow receiver takes for an answer."""
        return self.hour * SLOW_SHARE

    @property
    def timeout(self) -> float:
        """What a receiver is given in total."""
        return self.hour * TIMEOUT_SHARE
