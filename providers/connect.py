"""The answer that connects an account: of which accounts it is, and with which tokens. Total but for one sentence.

A provider that grants several token sets at once (a bot's and a user's, say) says where each of them stands; each is
an account with a refresh chain of its own. Invariant: no token is read into two accounts. What stands under the
member of another set belongs to that one alone, whatever fallbacks the paths have.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any, Final

from providers.paths import Path, first
from providers.rules import scalar_text
from providers.spec import ProviderSpec, TokenSet
from providers.token_fields import TokenFields
from tokenfleet.connected import ConnectedAccount
from tokenfleet.errors import UserError
from tokenfleet.outcome import TokenAnswer
from tokenfleet_client.secret import Secret

REFRESHING: Final = frozenset({"refresh_token", "token_exchange"})
"""Grants that present what stands in the place of the refresh token."""
CLIENT_ALONE: Final = frozenset({"client_credentials", "jwt_bearer"})

NO_SUCCESS: Final = (
    "answer is not a success of this provider's token endpoint: it must be the whole answer, unchanged"
)


class ConnectReader:
    """Reads the answers by which accounts of one definition are connected. Immutable; safe in any thread."""

    __slots__ = ("_fields", "_intermediate", "_needs_refresh_token", "_sets")

    def __init__(self, spec: ProviderSpec, *, allow_http: bool) -> None:
        """Compile ``spec``, which has passed ``providers.contradictions``."""
        grant = spec.refresh.grant
        self._needs_refresh_token = grant in REFRESHING
        self._fields = TokenFields(
            spec, allow_http=allow_http, takes_refresh_tokens=self._needs_refresh_token
        )
        # An access token that steps trade for another is not for readers, unless it is what is presented.
        self._intermediate = bool(spec.steps) and (self._needs_refresh_token or grant in CLIENT_ALONE)
        every = [_Set(name, one) for name, one in spec.connect.items()] or [_Set("", TokenSet())]
        self._sets = tuple((one, tuple(other.at for other in every if other is not one)) for one in every)

    def read(self, document: dict[str, Any], received_at: datetime) -> list[ConnectedAccount]:
        """Return the accounts that ``document`` connects, an answer that came at ``received_at``.

        Raises :class:`UserError` with one sentence that repeats nothing of the answer.
        """
        if not self._fields.succeeds(document):
            raise UserError(NO_SUCCESS)
        accounts = list(self._accounts(document, received_at))
        if not accounts:
            raise UserError(NO_SUCCESS)
        parts: dict[str | None, str] = {}
        for name, account in accounts:
            if account.part in parts:
                raise UserError(
                    f"answer gives its token sets {parts[account.part]} and {name} the same external id: "
                    "they are two accounts and need two"
                )
            parts[account.part] = name
        return [account for _, account in accounts]

    def _accounts(
        self, document: dict[str, Any], received_at: datetime
    ) -> Iterator[tuple[str, ConnectedAccount]]:
        for one, others in self._sets:
            member = _member(document, one.at)
            for other in others:
                if member is not None and len(other) > len(one.at) and other[: len(one.at)] == one.at:
                    member = _without(member, other[len(one.at) :])
            if member is None:
                continue
            tokens = self._tokens(one.name, document, member, received_at)
            if tokens is not None:
                yield one.name, ConnectedAccount(one.part(document), tokens)

    def _tokens(
        self, name: str, document: dict[str, Any], member: dict[str, Any], received_at: datetime
    ) -> TokenAnswer | None:
        """Return the tokens of one set; None when it brings none at all."""
        access_token, refresh_token = self._fields.access_token(member), self._fields.refresh_token(member)
        if access_token is None and refresh_token is None:
            return None
        missing = refresh_token is None if self._needs_refresh_token else access_token is None
        if missing:
            whose = f"its token set {name}" if name else "it"
            kind = "refresh token" if self._needs_refresh_token else "access token"
            raise UserError(f"answer has no {kind} in {whose}, and without one nothing can be renewed")
        captured = dict(self._fields.variables(document)) | dict(self._fields.variables(member))
        told = self._fields.tokens(member, access_token, received_at)
        is_for_readers = access_token is not None and not self._intermediate
        return TokenAnswer(
            access_token=Secret(access_token) if access_token is not None and is_for_readers else None,
            token_type=told.token_type if is_for_readers else None,
            expires_at=told.expires_at if is_for_readers else None,
            never_expires=told.never_expires and is_for_readers,
            refresh_token=told.refresh_token,
            refresh_token_expires_at=told.refresh_token_expires_at,
            scope=told.scope,
            variables=captured,
        )


class _Set:
    """One token set: where it stands, and where the answer says whose it is."""

    __slots__ = ("_external_id", "at", "name")

    def __init__(self, name: str, token_set: TokenSet) -> None:
        self.name = name
        self.at = () if token_set.at is None else tuple(token_set.at.split("."))
        self._external_id = () if token_set.external_id is None else (Path.compile(token_set.external_id),)

    def part(self, document: dict[str, Any]) -> str | None:
        if not self._external_id:
            return None
        part = scalar_text(first(self._external_id, document))
        if not part:
            raise UserError(f"answer does not say whose its token set {self.name} is")
        return part


def _member(document: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any] | None:
    value: object = document
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else None


def _without(document: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """Return ``document`` without the member that ``names`` lead to; the original stays as it is."""
    name, *rest = names
    if name not in document:
        return document
    inner = document[name]
    if not rest:
        return {key: value for key, value in document.items() if key != name}
    return document | {name: _without(inner, tuple(rest))} if isinstance(inner, dict) else document
