"""Revocation requests (RFC 7009), as providers really want them, and what their answers mean.

Built and read without I/O from a definition and one account; whatever comes back has a meaning. A token that the server
does not know is as good as revoked (section 2.2), and so is one of which it says, in the definition's words, that its
grant is gone.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final

from providers.calls import AUTHORIZATION, Call
from providers.client_authentication import way
from providers.credentials import (
    ACCESS_TOKEN,
    REFRESH_TOKEN,
    ClientCredentials,
    Grant,
    RequestBuildError,
)
from providers.documents import Document, parse
from providers.exchange import Exchange, Failure, TokenRequest
from providers.placement import (
    ASSERTION_AUTHENTICATIONS,
    HEADER_AUTHENTICATIONS,
    revoke_authentication,
    used_names,
)
from providers.rules import CompiledRule
from providers.spec import ProviderSpec
from providers.spec_requests import Revoke

REVOCATION_TIMEOUT_SECONDS: Final = 10.0

WORDS: Final = frozenset(
    {
        "invalid_request",
        "invalid_client",
        "invalid_grant",
        "invalid_token",
        "unauthorized_client",
        "unsupported_grant_type",
        "unsupported_token_type",
        "server_error",
        "temporarily_unavailable",
    }
)
"""Error codes of RFC 6749 section 5.2, RFC 6750 section 3.1 and RFC 7009 section 2.2.1, which the history may show."""

LATER: Final = frozenset({408, 425, 429})
"""Statuses below 500 that ask us to come again."""


class Answered(StrEnum):
    """What became of a request to revoke."""

    REVOKED = "revoked"
    """The grant is ended, now or before."""
    NOT_NOW = "not_now"
    """The provider did not answer, or asks us to come again."""
    REFUSED = "refused"
    """It says no: the token may still work."""


@dataclass(frozen=True, slots=True)
class RevocationReading:
    """What an answer means, and a machine word for the history."""

    answered: Answered
    code: str


class RevocationRequests:
    """Builds and reads the revocations of one definition. Immutable; safe in any thread."""

    __slots__ = ("_call", "_gone", "_id_name", "_parameter", "_rules", "_token", "shows_access_token")

    def __init__(self, spec: ProviderSpec, revoke: Revoke, *, allow_http: bool) -> None:
        """Compile ``revoke`` of ``spec``, which has passed ``providers.contradictions``."""
        authentication = revoke_authentication(spec, revoke)
        placed = used_names(spec, [*revoke.parameters.values(), *revoke.headers.values()])
        self._call = Call(
            spec,
            revoke,
            allow_http=allow_http,
            headers={AUTHORIZATION: "Bearer {access_token}"} if authentication == "bearer" else {},
            authenticate=way(authentication, spec.refresh.names),
            with_assertion=authentication in ASSERTION_AUTHENTICATIONS,
        )
        self._id_name = spec.refresh.names.client_id if _sends_id(spec, revoke, authentication) else None
        self._parameter = revoke.parameter
        self._token = revoke.token
        self.shows_access_token = ACCESS_TOKEN in placed | {revoke.token} or authentication == "bearer"
        """Whether the request carries the access token, or something that is made of it."""
        self._gone = frozenset(revoke.gone_status)
        self._rules = tuple(CompiledRule(rule) for rule in spec.errors if rule.path)

    def build(self, client: ClientCredentials, grant: Grant, now: datetime) -> TokenRequest:
        """Return the request that ends ``grant``. Raises :class:`RequestBuildError`, with a code that ends in
        ``token_missing`` when the account does not have the token that is to be presented."""
        token = grant.refresh_token if self._token == REFRESH_TOKEN else grant.access_token
        if not token:
            raise RequestBuildError(f"{self._token}_missing", f"the account has no {self._token}")
        parameters = {self._parameter: token.reveal()} if self._parameter else {}
        if self._id_name is not None:
            parameters[self._id_name] = client.client_id
        return self._call.build(client, grant, now, parameters=parameters)

    def read(self, exchange: Exchange) -> RevocationReading:
        """Return what ``exchange`` says of the grant. Never raises."""
        if isinstance(exchange, Failure):
            return RevocationReading(Answered.NOT_NOW, exchange.code)
        status = exchange.status
        code = f"http_{status}" if 100 <= status <= 999 else "http_invalid"
        if status in self._gone:
            return RevocationReading(Answered.REVOKED, code)
        document, is_whole = parse(exchange)
        if is_whole and (said := self._said(status, document)) is not None:
            return said
        if 200 <= status <= 299:
            return RevocationReading(Answered.REVOKED, code)
        later = status in LATER or status >= 500
        return RevocationReading(Answered.NOT_NOW if later else Answered.REFUSED, _word(document) or code)

    def _said(self, status: int, document: Document | None) -> RevocationReading | None:
        """Return what the definition's error rules say of an answer, None when they say nothing."""
        for rule in self._rules:
            if (code := rule.code_for(status, document)) is not None:
                return RevocationReading(_MEANING.get(rule.outcome, Answered.REFUSED), code)
        return None


_MEANING: Final = {
    "grant_rejected": Answered.REVOKED,
    "throttled": Answered.NOT_NOW,
    "unavailable": Answered.NOT_NOW,
}
"""What the outcomes of a definition's error rules mean for a revocation, where they do not mean a refusal."""


def _sends_id(spec: ProviderSpec, revoke: Revoke, authentication: str) -> bool:
    """Answer whether the client id is sent as a parameter: where nothing else says who asks (RFC 7009 section 2.1)."""
    if revoke.body == "none" or revoke.authentication in ("none", "bearer"):
        return False
    if revoke.authentication is None and spec.client.send_id is not None:
        return spec.client.send_id
    return (
        spec.refresh.names.client_id not in revoke.parameters and authentication not in HEADER_AUTHENTICATIONS
    )


def _word(document: Document | None) -> str | None:
    """Return the error code of an answer, if it is one of the standards'."""
    word = document.get("error") if isinstance(document, dict) else None
    return word if isinstance(word, str) and word in WORDS else None
