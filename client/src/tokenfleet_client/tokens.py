"""What a reader asks for, and what it gets.

Invariant: the value of a :class:`Token` leaves it by :meth:`Token.authorization` or ``token.value.reveal()``, and
in no other way: not by ``repr``, a log line, a traceback or a pickle.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, NamedTuple, TypeAlias

from tokenfleet_client.secret import Secret

BEARER: Final = "Bearer"
BOUND_TO_A_KEY: Final = frozenset({"dpop", "mac", "pop"})
"""Token types that are worthless without a proof made anew for each request (RFC 9449, for one)."""


class Account(NamedTuple):
    """An account by the names that it was imported under."""

    provider: str
    external_id: str
    environment: str = "production"


AccountRef: TypeAlias = Account | int
"""An account by its names, or by its id in the fleet."""


@dataclass(frozen=True, slots=True)
class Token:
    """An access token as it stood in the database when it was read.

    ``generation`` counts how often the fleet has replaced it. ``expires_at`` is the provider's word, or None when it
    gave none. ``variables`` are what the provider's calls need beside the token: an instance URL, a company id.
    """

    value: Secret
    token_type: str | None
    scope: str | None
    expires_at: datetime | None
    generation: int
    account_id: int
    provider: str
    environment: str
    external_id: str
    tenant: str | None
    variables: Mapping[str, Any]

    @property
    def account(self) -> Account:
        """The account's names."""
        return Account(self.provider, self.external_id, self.environment)

    def authorization(self, scheme: str = BEARER) -> str:
        """Return the value of the ``Authorization`` header (RFC 6750, section 2.1). This is the secret itself.

        ``token_type`` is not used for it: many providers put another word there (``bot``, ``user``) and want
        ``Bearer`` all the same. Give ``scheme`` for those that document another one. Raises :class:`ValueError` for a
        token that is bound to a key, because no header of its own makes it valid.
        """
        if self.token_type is not None and self.token_type.lower() in BOUND_TO_A_KEY:
            raise ValueError(
                f"a token of type {self.token_type} needs a proof for each request: take token.value.reveal() and "
                "make it"
            )
        return f"{scheme} {self.value.reveal()}"
