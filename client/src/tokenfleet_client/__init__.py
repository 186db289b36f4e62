"""Read fresh access tokens that a Tokenfleet keeps in Postgres, and verify its webhooks.

    with TokenClient("postgresql://reader@db/app") as tokens:
        token = tokens.get_token(Account("acme", "customer-1"))

:class:`TokenClient` is for threads, :class:`AsyncTokenClient` for tasks; :mod:`tokenfleet_client.httpx` and
:mod:`tokenfleet_client.requests` put tokens into requests.
"""

from typing import TYPE_CHECKING

from tokenfleet_client.contract import (
    ACCESS_KEYS_VIEW,
    ACCESS_TOKENS_VIEW,
    CONTRACT_SCHEMA,
    CONTRACT_VERSION,
    AccountStatus,
)
from tokenfleet_client.envelope import (
    Binding,
    DataKeys,
    KeyEncryptionKey,
    KeyWrapper,
    Ring,
    WrappedKey,
    access_token_binding,
    unwrap_ring,
)
from tokenfleet_client.errors import (
    Connecting,
    ContractError,
    DatabaseUnavailable,
    EnvelopeError,
    KeyMaterialError,
    KeyServiceUnavailable,
    MinValidityUnreachable,
    NeedsReauth,
    Paused,
    Revoked,
    StaleToken,
    TokenfleetError,
    TokenUnavailable,
    UnknownAccount,
    UnknownKey,
    WebhookError,
)
from tokenfleet_client.secret import Secret
from tokenfleet_client.tokens import Account, Token
from tokenfleet_client.webhooks import EventType, Webhook
from tokenfleet_client.webhooks import verify as verify_webhook

if TYPE_CHECKING:
    from tokenfleet_client.async_client import AsyncTokenClient
    from tokenfleet_client.client import TokenClient

__all__ = [
    "ACCESS_KEYS_VIEW",
    "ACCESS_TOKENS_VIEW",
    "CONTRACT_SCHEMA",
    "CONTRACT_VERSION",
    "Account",
    "AccountStatus",
    "AsyncTokenClient",
    "Binding",
    "Connecting",
    "ContractError",
    "DataKeys",
    "DatabaseUnavailable",
    "EnvelopeError",
    "EventType",
    "KeyEncryptionKey",
    "KeyMaterialError",
    "KeyServiceUnavailable",
    "KeyWrapper",
    "MinValidityUnreachable",
    "NeedsReauth",
    "Paused",
    "Revoked",
    "Ring",
    "Secret",
    "StaleToken",
    "Token",
    "TokenClient",
    "TokenUnavailable",
    "TokenfleetError",
    "UnknownAccount",
    "UnknownKey",
    "Webhook",
    "WebhookError",
    "WrappedKey",
    "access_token_binding",
    "unwrap_ring",
    "verify_webhook",
]


def __getattr__(name: str) -> object:
    """Import the clients when they are used: who only verifies webhooks needs no Postgres driver that works."""
    if name == "TokenClient":
        from tokenfleet_client.client import TokenClient

        return TokenClient
    if name == "AsyncTokenClient":
        from tokenfleet_client.async_client import AsyncTokenClient

        return AsyncTokenClient
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
