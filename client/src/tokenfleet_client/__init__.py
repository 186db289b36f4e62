"""The published language of Tokenfleet: names, sealed values, webhooks, and a string that does not print."""

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
    EnvelopeError,
    KeyMaterialError,
    KeyServiceUnavailable,
    TokenfleetError,
    UnknownKey,
    WebhookError,
)
from tokenfleet_client.secret import Secret
from tokenfleet_client.webhooks import EventType, Webhook
from tokenfleet_client.webhooks import verify as verify_webhook

__all__ = [
    "ACCESS_KEYS_VIEW",
    "ACCESS_TOKENS_VIEW",
    "CONTRACT_SCHEMA",
    "CONTRACT_VERSION",
    "AccountStatus",
    "Binding",
    "DataKeys",
    "EnvelopeError",
    "EventType",
    "KeyEncryptionKey",
    "KeyMaterialError",
    "KeyServiceUnavailable",
    "KeyWrapper",
    "Ring",
    "Secret",
    "TokenfleetError",
    "UnknownKey",
    "Webhook",
    "WebhookError",
    "WrappedKey",
    "access_token_binding",
    "unwrap_ring",
    "verify_webhook",
]
