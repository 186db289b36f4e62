"""What the codes in history mean, in words: the provider's own by its definition, then everybody's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from tokenfleet.policy import ROTATION_LOST, UNSETTLED

if TYPE_CHECKING:
    from providers import Registry

_GENERAL: Final[Mapping[str, str]] = {
    "invalid_grant": (
        "the refresh token is invalid, expired, revoked, or was issued to another client (RFC 6749 section 5.2)"
    ),
    "invalid_client": "the provider does not know our client, or not with this secret (RFC 6749 section 5.2)",
    "unauthorized_client": "our client may not use this kind of grant (RFC 6749 section 5.2)",
    "invalid_request": "the provider found a mistake in our request (RFC 6749 section 5.2)",
    "unsupported_grant_type": "the provider does not refresh in this way (RFC 6749 section 5.2)",
    "invalid_scope": "the provider does not grant this scope (RFC 6749 section 5.2)",
    "server_error": "the provider had an error of its own",
    "temporarily_unavailable": "the provider is overloaded or under maintenance",
    ROTATION_LOST: "the provider replaced the refresh token, and the answer with the new one never reached us",
    UNSETTLED: "the worker that asked was never heard of again: it died, was frozen, or lost Postgres",
    "answer_cut": "the answer broke off in the middle",
    "answer_too_large": "the answer was larger than any token answer is",
    "claim_expired": "our worker was too late to ask: the fleet is overloaded, or was stopped",
    "client_certificate_unusable": "our client certificate cannot be presented",
    "connect_failed": "no connection to the provider came about",
    "connect_refused": "the provider's server refused the connection",
    "connection_lost": "the connection broke after the request had left",
    "dns_failed": "the name of the provider's server could not be resolved",
    "empty_answer": "the provider answered with nothing",
    "envelope_unreadable": "our keys do not open what is stored",
    "garbled_answer": "what came back was no HTTP",
    "internal_error": "a mistake of ours: the worker's log has the traceback",
    "local_only": "an operator chose not to tell the provider",
    "not_supported": "the provider's definition has no revocation",
    "refresh_token_missing": "there is no refresh token to present",
    "access_token_missing": "there is no access token to present",
    "timeout": "the provider did not answer in time",
    "tls_failed": "no trusted TLS connection to the provider came about",
    "unreadable_answer": "the answer is not what the definition describes, often a page of a proxy or a firewall",
    "unusable_request": "the request could not even be built: a variable or the definition is wrong",
}
_HTTP: Final[Mapping[str, str]] = {
    "403": "forbidden, and no word about the grant: mostly a firewall or a proxy in between",
    "408": "the provider waited too long for our request",
    "429": "the provider was asked too often",
    "503": "the provider is overloaded or under maintenance",
}


def meaning_of(code: str, provider: str, registry: Registry | None) -> str | None:
    """Return what ``code`` says at ``provider``, None when nobody has described it.

    ``registry`` is None where the definitions cannot be read: then only what codes mean everywhere is known.
    """
    if registry is not None and provider in registry:
        from providers.explanation.answer import rule_codes

        for rule in registry.get(provider).spec.errors:
            if rule.meaning and code in rule_codes(rule):
                return f"{rule.meaning.strip().rstrip('.')} (says the definition of {provider})"
    if code in _GENERAL:
        return _GENERAL[code]
    status = code.removeprefix("http_")
    if status == code or not status.isdecimal():
        return None
    general = "the provider had an error of its own" if status[0] == "5" else "an error that says no more"
    return f"{_HTTP.get(status, general)} (HTTP {status})"
