"""What answers and probes teach of how long tokens live, beyond what a definition says. Pure.

Invariant: nothing is learned that was not seen. A lifetime is no longer than a token was found alive, and an end counts
as fixed only when use has failed to move it.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

from tokenfleet.lifetimes import Lifetimes
from tokenfleet.outcome import TokenAnswer
from tokenfleet.tokens import refresh_token_expiry
from tokenfleet_client.secret import Secret

LEARNED_LIFETIME_FLOOR: Final = timedelta(minutes=1)
NEVER_EXPIRES: Final = timedelta(0)
"""What is learned of a token whose provider said that it lives until it is revoked: no lifetime of any length."""

JUDGED_AFTER: Final = timedelta(seconds=5)
"""Two statements of when a refresh token ends are compared only when so long lies between them: they are rounded to
seconds."""

SAME_END: Final = timedelta(seconds=3)
"""Two ends that differ by no more, told in whole seconds and counted from two receipts, are one."""


def same_life(
    before: datetime | None, last_lifetime: timedelta | None, expires_at: datetime, *, now: datetime
) -> bool:
    """Answer whether an access token that came ``now`` and ends at ``expires_at`` lives no longer than the one
    ``before``: some providers give everybody the same one until it has ended. One that came as young as that one was
    had only been asked for twice.
    """
    if before is None or last_lifetime is None or expires_at - now > last_lifetime / 2:
        return False
    return abs(expires_at - before) <= SAME_END


def refresh_token_end(
    answer: TokenAnswer | None,
    presented: Secret | None,
    before: datetime | None,
    *,
    elapsed: timedelta,
    lifetimes: Lifetimes,
) -> tuple[datetime | None, bool]:
    """Return when the refresh token expires that we hold after ``answer``, and whether that end is fixed.

    Fixed means that it stayed where it was, ``before``, although the token was used and ``elapsed`` has passed since
    we were told. An end that this answer did not state is an old idle limit where the definition says that there is
    one. Without an answer nothing has changed.
    """
    after = before if answer is None else refresh_token_expiry(answer, presented, before)
    if answer is None or before is None or after is None or elapsed < JUDGED_AFTER:
        return after, False
    if answer.refresh_token_expires_at is None and lifetimes.refresh_idle is not None:
        return after, False
    return after, after - before < elapsed / 2


def learned_lifetime(obtained_at: datetime, alive_at: datetime | None, *, now: datetime) -> timedelta:
    """Return how long a token certainly lived that came at ``obtained_at`` and was found dead ``now``.

    Until a probe last found it alive; half its age if none ever did, so that the next one dies later than we think.
    """
    lived = (
        alive_at - obtained_at if alive_at is not None and alive_at > obtained_at else (now - obtained_at) / 2
    )
    return max(lived, LEARNED_LIFETIME_FLOOR)
