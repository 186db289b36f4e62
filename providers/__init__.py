"""Providers as data: definitions, the requests that they make and what answers mean.

:func:`load_registry` is the way in. ``providers.transport`` is the only module that opens a socket; it is not
imported from here, so that commands which never ask a provider do not pay for an HTTP client.
"""

from __future__ import annotations

from providers.exchange import Answer, Exchange, Failure, FailureKind, TokenRequest
from providers.oauth2 import ClientCredentials, Grant, RequestBuildError
from providers.registry import Provider, Registry, load_registry

__all__ = [
    "Answer",
    "ClientCredentials",
    "Exchange",
    "Failure",
    "FailureKind",
    "Grant",
    "Provider",
    "Registry",
    "RequestBuildError",
    "TokenRequest",
    "load_registry",
]
