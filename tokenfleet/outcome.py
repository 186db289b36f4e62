"""What one refresh request came to: a closed set of values, none of them an exception.

``providers.outcome`` produces exactly one of these for every answer and every failure (it is total);
``tokenfleet.policy.decide`` turns it into what happens next. The set is DESIGN section 5, whose error words
are those of RFC 6749 section 5.2.

``code`` is a short machine word (``invalid_grant``, ``http_503``, ``connect_failed``): never a sentence of
the provider's, never a part of a token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from tokenfleet_client.secret import Secret


@dataclass(frozen=True, slots=True)
class TokenAnswer:
    """A successful token response (RFC 6749 section 5.1), read into our own terms.

    ``access_token`` is None only for providers whose definition says so: the one that we have lives on from now.
    ``expires_at`` is None when neither the answer nor the definition tells it; with ``never_expires`` because the
    answer says that the token lives until it is revoked, so that nothing else may be believed or learned.
    ``refresh_token`` is None when the provider returned none, which means: keep the old one (RFC 6749 section 6).
    ``variables`` are values that the definition captures from the answer (an API base that moves, say).
    """

    access_token: Secret | None
    token_type: str | None = None
    expires_at: datetime | None = None
    never_expires: bool = False
    refresh_token: Secret | None = None
    refresh_token_expires_at: datetime | None = None
    scope: str | None = None
    variables: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Refreshed:
    """2xx, passes the definition's success test, has an access token or keeps the one that we have."""

    answer: TokenAnswer


@dataclass(frozen=True, slots=True)
class GrantRejected:
    """The provider's definite word about this one grant: ``invalid_grant`` or the definition's synonyms."""

    code: str


@dataclass(frozen=True, slots=True)
class ClientRejected:
    """The provider rejects our client registration: ``invalid_client``, ``unauthorized_client``.

    ``whole_app`` is False where the definition says that it is rejected for this connection alone.
    """

    code: str
    whole_app: bool = True


@dataclass(frozen=True, slots=True)
class Throttled:
    """Asked too often: 429, or 503 with ``Retry-After``. ``retry_after`` is None when it did not say.

    ``whole_app`` is False where the definition says that the limit is this connection's own.
    """

    code: str
    retry_after: timedelta | None = None
    whole_app: bool = True


@dataclass(frozen=True, slots=True)
class Unavailable:
    """No word about the grant, and the request was certainly not acted on, or acted on by no provider:
    connect failure, 5xx, a firewall's HTML. ``outage`` says that the provider itself seems to be down, as its
    circuit counts it: connect failures and 5xx."""

    code: str
    outage: bool = False


@dataclass(frozen=True, slots=True)
class OutcomeUnknown:
    """The request left and no usable answer came: the provider may have rotated the refresh token.

    ``outage`` says that no answer came, or only a part of one: timeouts and lost connections.
    """

    code: str
    outage: bool = False


@dataclass(frozen=True, slots=True)
class RequestRejected:
    """Our own mistake: the other codes of RFC 6749 section 5.2, or a request that we could not even build."""

    code: str


@dataclass(frozen=True, slots=True)
class Undescribed:
    """A permanent-looking error that no rule describes. ``shape`` has status and keys, never values.

    ``refresh_token`` is one that came with it all the same: unless it is the one presented, that one is spent.
    """

    code: str
    shape: str
    refresh_token: Secret | None = None


Outcome = (
    Refreshed
    | GrantRejected
    | ClientRejected
    | Throttled
    | Unavailable
    | OutcomeUnknown
    | RequestRejected
    | Undescribed
)
