"""What a request can present: our registration, an account's tokens, and why a request cannot be built.

Invariant: nothing here prints a secret, neither by ``repr`` nor in a message.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from tokenfleet_client.errors import TokenfleetError
from tokenfleet_client.secret import Secret

CLIENT_SECRET: Final = "client_secret"
REFRESH_TOKEN: Final = "refresh_token"
ACCESS_TOKEN: Final = "access_token"
ASSERTION: Final = "assertion"
CREDENTIALS: Final = frozenset({CLIENT_SECRET, REFRESH_TOKEN, ACCESS_TOKEN, ASSERTION})
"""Names that templates of parameters and headers may use without declaring them. Never in a URL: URLs are logged."""


class RequestBuildError(TokenfleetError):
    """The request cannot be built: our mistake or the operator's, never the customer's.

    ``code`` is a machine word; the message names the variable or setting at fault and holds no value.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


APP_FAULTS: Final = frozenset(
    {
        "client_secret_missing",
        "signing_key_unusable",
        "client_certificate_missing",
        "client_certificate_unusable",
        "client_certificate_expired",
    }
)
"""Codes of what no account is to blame for: the registration is incomplete, and has to be set again."""


@dataclass(frozen=True, slots=True)
class ClientCredentials:
    """Our registration at the authorization server. A public client has no secret.

    ``client_secret`` is the signing key where the definition has an assertion. ``certificate`` is the client
    certificate with its chain and private key, as PEM.
    """

    client_id: str
    client_secret: Secret | None
    certificate: Secret | None = None


@dataclass(frozen=True, slots=True)
class Grant:
    """What one account has: its tokens, the scope it was granted, and its values for declared variables.

    ``refresh_token`` is the subject token where tokens are exchanged (RFC 8693). Which of the two has to be there is a
    matter of the definition's grant (``Provider.presents``).
    """

    refresh_token: Secret | None
    scope: str | None = None
    variables: Mapping[str, str] = field(default_factory=dict)
    access_token: Secret | None = None
