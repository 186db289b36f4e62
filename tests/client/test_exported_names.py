"""The public surface of the client. A change here is a change that its users can notice."""

from __future__ import annotations

import tokenfleet_client

EXPORTED = [
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


def test_the_exported_names_are_these() -> None:
    assert list(tokenfleet_client.__all__) == EXPORTED


def test_every_exported_name_exists() -> None:
    assert [name for name in tokenfleet_client.__all__ if not hasattr(tokenfleet_client, name)] == []


def test_every_error_of_the_client_has_one_root() -> None:
    for error in (
        tokenfleet_client.EnvelopeError,
        tokenfleet_client.KeyMaterialError,
        tokenfleet_client.KeyServiceUnavailable,
        tokenfleet_client.UnknownKey,
        tokenfleet_client.WebhookError,
    ):
        assert issubclass(error, tokenfleet_client.TokenfleetError)
    assert issubclass(tokenfleet_client.UnknownKey, tokenfleet_client.EnvelopeError)
