"""The public surface of the client. A change here is a change that its users can notice."""

from __future__ import annotations

import tokenfleet_client

EXPORTED = [
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


def test_the_exported_names_are_these() -> None:
    assert list(tokenfleet_client.__all__) == EXPORTED


def test_every_exported_name_exists() -> None:
    assert [name for name in tokenfleet_client.__all__ if not hasattr(tokenfleet_client, name)] == []


def test_every_error_of_the_client_has_one_root() -> None:
    refusals = (
        tokenfleet_client.Connecting,
        tokenfleet_client.DatabaseUnavailable,
        tokenfleet_client.MinValidityUnreachable,
        tokenfleet_client.NeedsReauth,
        tokenfleet_client.Paused,
        tokenfleet_client.Revoked,
        tokenfleet_client.StaleToken,
        tokenfleet_client.UnknownAccount,
    )
    for error in (
        *refusals,
        tokenfleet_client.ContractError,
        tokenfleet_client.EnvelopeError,
        tokenfleet_client.KeyMaterialError,
        tokenfleet_client.KeyServiceUnavailable,
        tokenfleet_client.UnknownKey,
        tokenfleet_client.WebhookError,
    ):
        assert issubclass(error, tokenfleet_client.TokenfleetError)
    assert issubclass(tokenfleet_client.UnknownKey, tokenfleet_client.EnvelopeError)
    assert all(issubclass(refusal, tokenfleet_client.TokenUnavailable) for refusal in refusals)


def test_what_the_adapters_export_is_this() -> None:
    from tokenfleet_client import httpx, requests

    own = [
        sorted(
            name
            for name, value in vars(module).items()
            if getattr(value, "__module__", "") == module.__name__
        )
        for module in (httpx, requests)
    ]
    assert [[name for name in names if not name.startswith("_")] for names in own] == [
        ["AsyncTokenAuth", "TokenAuth"],
        ["TokenAuth"],
    ]
