"""The tokens of a good answer: which fields hold them, by one table of paths. Total over every document.

Invariant: a refresh token is only ever taken from an answer where the grant presents one. What another grant's
answers call a refresh token is nobody's successor, and must not take the place of what is presented.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any, Final

from providers.documents import Repeated
from providers.expiry import ExpiryReader, jwt_expiry
from providers.paths import Path, first
from providers.rules import condition_test, scalar_text
from providers.spec import ProviderSpec
from providers.spec_answers import AnswerFields
from tokenfleet.outcome import TokenAnswer
from tokenfleet_client.secret import Secret

MAX_TEXT_CHARACTERS: Final = 10_000


class TokenFields:
    """Finds the tokens in the answers of one definition. Immutable; safe in any thread."""

    __slots__ = (
        "_access_lifetime",
        "_access_token",
        "_allow_http",
        "_captured",
        "_expiry",
        "_keeps_access_token",
        "_refresh_expiry",
        "_refresh_token",
        "_scope",
        "_success",
        "_takes_refresh_tokens",
        "_token_type",
    )

    def __init__(
        self,
        spec: ProviderSpec,
        fields: AnswerFields | None = None,
        *,
        allow_http: bool,
        takes_refresh_tokens: bool,
    ) -> None:
        """Compile ``fields``, or those that ``spec`` has for the answers of its token endpoint.

        Without ``takes_refresh_tokens`` a refresh token in an answer is not looked at.
        """
        fields = spec.answer if fields is None else fields
        variables, access = spec.variable_rules(), spec.lifetimes.access_seconds
        self._allow_http = allow_http
        self._takes_refresh_tokens = takes_refresh_tokens
        self._keeps_access_token = fields.keeps_access_token
        self._access_token = _paths(fields.access_token)
        self._refresh_token = _paths(fields.refresh_token)
        self._token_type = _paths(fields.token_type)
        self._scope = _paths(fields.scope)
        self._expiry = ExpiryReader(fields.expires_in, fields.expires_at)
        self._refresh_expiry = ExpiryReader(fields.refresh_token_expires_in, fields.refresh_token_expires_at)
        self._access_lifetime = None if access is None else timedelta(seconds=access)
        self._success: tuple[Callable[[object], bool], ...] = tuple(map(condition_test, fields.success))
        self._captured = tuple(
            (variables[name], _paths(variable.from_answer))
            for name, variable in spec.variables.items()
            if variable.from_answer
        )

    def succeeds(self, document: object) -> bool:
        """Answer whether all holds that makes ``document`` a success, besides an access token."""
        return all(holds(document) for holds in self._success)

    def read(self, document: dict[str, Any], now: datetime) -> TokenAnswer | None:
        """Return the tokens of ``document``, the body of a 2xx answer; None when it is not a success.

        The access token is None only where the definition keeps the one that we have, and the answer states none.
        """
        stated = first(self._access_token, document)
        access_token = sendable(token_text(stated))
        # One that nobody could send is not the same as none.
        if access_token is None and not (self._keeps_access_token and stated in (None, "")):
            return None
        if not self.succeeds(document):
            return None
        return self.tokens(document, access_token, now)

    def tokens(self, document: dict[str, Any], access_token: str | None, now: datetime) -> TokenAnswer:
        """Return what ``document``, which brought ``access_token``, says beside it."""
        expires_at, never_expires = self._expiry.read(document, now), False
        if expires_at is None:
            if self._expiry.says_never(document):
                never_expires = True
            elif access_token is not None:
                expires_at = jwt_expiry(access_token, now)
            if expires_at is None and not never_expires and self._access_lifetime is not None:
                expires_at = now + self._access_lifetime
        return TokenAnswer(
            access_token=None if access_token is None else Secret(access_token),
            token_type=_text(first(self._token_type, document)),
            expires_at=expires_at,
            never_expires=never_expires,
            refresh_token=self.refresh_token(document),
            refresh_token_expires_at=(
                self._refresh_expiry.read(document, now) if self._takes_refresh_tokens else None
            ),
            scope=_scope(first(self._scope, document)),
            variables=self.variables(document) if self._captured else {},
        )

    def access_token(self, document: dict[str, Any]) -> str | None:
        """Return the access token of ``document`` if it brings one that can be sent."""
        return sendable(token_text(first(self._access_token, document)))

    def refresh_token(self, document: dict[str, Any]) -> Secret | None:
        """Return the refresh token of ``document``; None, whatever it brings, where the grant presents none."""
        if not self._takes_refresh_tokens:
            return None
        refresh_token = token_text(first(self._refresh_token, document))
        return None if refresh_token is None else Secret(refresh_token)

    def brings_both(self, document: dict[str, Any]) -> bool:
        """Answer whether ``document`` has both tokens, of use or not."""
        paths = (self._access_token, self._refresh_token)
        return all(token_text(first(path, document)) is not None for path in paths)

    def variables(self, document: dict[str, Any]) -> Mapping[str, str]:
        """Return captured variables; a value that its declaration does not permit is not captured."""
        captured: dict[str, str] = {}
        for rule, paths in self._captured:
            value = scalar_text(first(paths, document))
            if value is None:
                continue
            try:
                captured[rule.name] = rule.check(value, allow_http=self._allow_http)
            except ValueError:
                continue
        return captured


def token_text(value: object) -> str | None:
    """Return ``value`` if it can be a token: text that survives being stored."""
    if isinstance(value, Repeated):
        return next(filter(None, map(token_text, reversed(value.values))), None)
    if not isinstance(value, str) or not value:
        return None
    if value.isascii():
        return value
    try:
        value.encode()
    except UnicodeEncodeError:
        return None
    return None if "\N{REPLACEMENT CHARACTER}" in value else value


def sendable(access_token: str | None) -> str | None:
    """Return the token as a header carries it (RFC 6750 section 2.1), or None: readers could do nothing with it."""
    access_token = access_token and access_token.strip()
    return access_token if access_token and access_token.isprintable() else None


def _paths(texts: tuple[str, ...]) -> tuple[Path, ...]:
    return tuple(Path.compile(text) for text in texts)


def _text(value: object) -> str | None:
    return token_text(value) if isinstance(value, str) and len(value) <= MAX_TEXT_CHARACTERS else None


def _scope(value: object) -> str | None:
    """Return the scope string of RFC 6749 section 3.3, also from the list that some servers send."""
    if isinstance(value, list):
        value = " ".join([element for element in value if isinstance(element, str)])
    return _text(value)
