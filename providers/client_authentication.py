"""How a client authenticates to a token endpoint, each way a function: RFC 6749 section 2.3, RFC 7521 section 4.2.

A way adds parameters, or returns the value of the Authorization header. The assertion that some of them need is among
the ``values`` of the request (``providers.values``).
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Mapping
from typing import Final
from urllib.parse import quote_plus

from providers.credentials import ASSERTION, ClientCredentials, RequestBuildError
from providers.placement import CLIENT_ASSERTION_TYPE
from providers.spec_requests import ParameterNames

Way = Callable[[ClientCredentials, Mapping[str, str], dict[str, str]], str | None]
"""Takes the client, the values of the request and its parameters; returns an Authorization value or None."""


def way(authentication: str, names: ParameterNames) -> Way | None:
    """Return how ``authentication`` is done with parameters called ``names``; None when nothing is to be done."""
    make = _WAYS.get(authentication)
    return make(names) if make is not None else None


def basic(client_id: str, client_secret: str) -> str:
    """Return the Authorization value; both parts are form-encoded first (RFC 6749 section 2.3.1)."""
    return _basic_value(f"{quote_plus(client_id)}:{quote_plus(client_secret)}")


def secret_of(client: ClientCredentials) -> str:
    """Reveal the client secret. Raises :class:`RequestBuildError` when the app has none."""
    if client.client_secret is None:
        raise RequestBuildError("client_secret_missing", "the app has no client secret: set one")
    return client.client_secret.reveal()


def _client_secret_basic(_names: ParameterNames) -> Way:
    return lambda client, _values, _parameters: basic(client.client_id, secret_of(client))


def _client_secret_as_user(_names: ParameterNames) -> Way:
    # Not of RFC 6749, so as RFC 7617 has it: nothing is form-encoded.
    return lambda client, _values, _parameters: _basic_value(f"{secret_of(client)}:")


def _client_secret_post(names: ParameterNames) -> Way:
    name = names.client_secret

    def add(client: ClientCredentials, _values: Mapping[str, str], parameters: dict[str, str]) -> None:
        parameters[name] = secret_of(client)

    return add


def _signed_secret(names: ParameterNames) -> Way:
    name = names.client_secret

    def add(_client: ClientCredentials, values: Mapping[str, str], parameters: dict[str, str]) -> None:
        parameters[name] = values[ASSERTION]

    return add


def _private_key_jwt(names: ParameterNames) -> Way:
    type_name, name = names.client_assertion_type, names.client_assertion

    def add(_client: ClientCredentials, values: Mapping[str, str], parameters: dict[str, str]) -> None:
        parameters[type_name] = CLIENT_ASSERTION_TYPE
        parameters[name] = values[ASSERTION]

    return add


def _bearer_assertion(_names: ParameterNames) -> Way:
    return lambda _client, values, _parameters: f"Bearer {values[ASSERTION]}"


_WAYS: Final[Mapping[str, Callable[[ParameterNames], Way]]] = {
    "client_secret_basic": _client_secret_basic,
    "client_secret_post": _client_secret_post,
    "client_secret_as_user": _client_secret_as_user,
    "private_key_jwt": _private_key_jwt,
    "signed_secret": _signed_secret,
    "bearer_assertion": _bearer_assertion,
}


def _basic_value(pair: str) -> str:
    return "Basic " + b64encode(pair.encode()).decode("ascii")
