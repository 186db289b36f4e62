"""Token sets, and when a token is due for renewal. Pure: ``now`` and chance are parameters.

Invariant kept here (G1): a due time is never later than :data:`LATEST_MARGIN` before expiry, scaled down
only for lives too short to allow it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from tokenfleet.outcome import TokenAnswer
from tokenfleet_client.secret import Secret

EARLIEST_MARGIN: Final = timedelta(seconds=180)
LATEST_MARGIN: Final = timedelta(seconds=60)
SHORT_LIFE_EARLIEST: Final = 0.8
SHORT_LIFE_LATEST: Final = 2 / 3
"""Shares of a short life. For 60 s tokens the margin is 40 to 48 s: 30 s that readers are promised, and
10 s for the tick, the queue and the provider."""


@dataclass(frozen=True, slots=True)
class TokenSet:
    """What we hold for one account after an answer, in the clear and therefore short-lived."""

    access_token: Secret | None
    refresh_token: Secret | None
    token_type: str | None
    scope: str | None
    expires_at: datetime | None
    refresh_token_expires_at: datetime | None
    variables: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Margins:
    """How long before expiry a token is renewed: a moment drawn between ``earliest`` and ``latest``."""

    earliest: timedelta = EARLIEST_MARGIN
    latest: timedelta = LATEST_MARGIN

    def for_lifetime(self, lifetime: timedelta) -> tuple[timedelta, timedelta]:
        """Return (earliest, latest) for a token that lives ``lifetime``, scaled for short lives."""
        latest = min(self.latest, lifetime * SHORT_LIFE_LATEST)
        earliest = min(self.earliest, lifetime * SHORT_LIFE_EARLIEST)
        return max(earliest, latest), latest


def merge(
    answer: TokenAnswer,
    *,
    refresh_token: Secret | None,
    refresh_token_expires_at: datetime | None,
    scope: str | None,
    access_token: Secret | None = None,
) -> TokenSet:
    """Return the token set after ``answer``; what it does not return is kept (RFC 6749 section 6).

    ``access_token`` is the one that we have, for an answer without one, which renews it where it is.
    A new refresh token replaces the old one and its absolute expiry; an omitted one, or the same one again,
    keeps both, unless the answer states a new expiry for it.
    """
    return TokenSet(
        access_token=answer.access_token or access_token,
        refresh_token=answer.refresh_token or refresh_token,
        token_type=answer.token_type,
        scope=answer.scope if answer.scope is not None else scope,
        expires_at=answer.expires_at,
        refresh_token_expires_at=refresh_token_expiry(answer, refresh_token, refresh_token_expires_at),
        variables=answer.variables,
    )


def refresh_token_expiry(
    answer: TokenAnswer, refresh_token: Secret | None, expires_at: datetime | None
) -> datetime | None:
    """Return when the refresh token that we hold after ``answer`` expires; ``expires_at`` is when the old one did."""
    is_new = answer.refresh_token is not None and answer.refresh_token != refresh_token
    return answer.refresh_token_expires_at or (None if is_new else expires_at)


def refresh_due(expires_at: datetime, *, now: datetime, margins: Margins, chance: float) -> datetime:
    """Return the moment to renew a token that expires at ``expires_at``.

    ``chance`` in [0, 1) places it between the earliest and the latest margin, so that tokens issued together
    are not renewed together. An expired token is due ``now``.
    """
    lifetime = expires_at - now
    if lifetime <= timedelta(0):
        return now
    earliest, latest = margins.for_lifetime(lifetime)
    return expires_at - latest - (earliest - latest) * chance
