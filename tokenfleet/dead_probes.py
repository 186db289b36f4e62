"""When a probe's word is definite: of access tokens that are never renewed, so that no refresh can be asked. Pure.

Invariant (G4): an outage gives nobody up. A word counts that was given three times in a row within some hours
(:data:`CONFIRMED_AFTER`), and it goes the way of any rejected grant. However often somebody wants to see it tried out
meanwhile, a provider's bad hour is one word.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

from tokenfleet.outcome import GrantRejected
from tokenfleet.policy import (
    BACKOFF_FLOOR,
    Known,
    RequireReauth,
    RetryLater,
    decide,
)

CONFIRMED_AFTER: Final = (timedelta(minutes=10), timedelta(hours=2))
"""From one word against a token to the next. A service that checks tokens and is out of order says 401 to everybody
for as long as that lasts; that a key is gone may be told some hours late."""


def weigh_dead_probe(
    code: str, known: Known, *, now: datetime, chance: float, failing_since: datetime | None = None
) -> RetryLater | RequireReauth:
    """Return what a probe means that found an access token dead which is never renewed, so that nobody else can tell.

    It is a doubt, and looked at again; a third one in a row is the provider's definite word. A probe that finds the
    token alive clears the doubts, and one without a clear word changes nothing. One that comes too soon after the first
    doubt, ``failing_since``, because somebody asked for it, says nothing new.
    """
    apart = sum(CONFIRMED_AFTER[: known.doubts], timedelta(0))
    if known.doubts and failing_since is not None and now < failing_since + apart * 0.75:
        at = failing_since + apart * (0.75 + chance / 2)
        return RetryLater(max(at, now + BACKOFF_FLOOR), code, counts=False)
    if known.doubts < len(CONFIRMED_AFTER):
        # Jittered, so that a crowd that was answered oddly at once does not come back at once.
        wait = CONFIRMED_AFTER[known.doubts] * (0.75 + chance / 2)
        return RetryLater(now + wait, code, in_doubt=True)
    rejected = decide(GrantRejected(code), known, now=now, chance=chance)
    assert isinstance(rejected, RequireReauth)
    return rejected
