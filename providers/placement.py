"""What a definition's refresh request sends: which credentials templates place, and what has a name of its own.

The rule: a credential that a template of the request places is not sent under its own name too, and the client's secret
neither where a digest covers it: the digest authenticates instead. A token that a digest covers is still presented, for
nobody could tell it from the digest. Pure; builders, contradictions and descriptions ask here, so that they agree.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, Literal

from providers.credentials import ACCESS_TOKEN, ASSERTION, CLIENT_SECRET, REFRESH_TOKEN
from providers.spec import ProviderSpec
from providers.spec_requests import Revoke
from providers.templates import placeholders

JWT_BEARER: Final = "urn:ietf:params:oauth:grant-type:jwt-bearer"
CLIENT_ASSERTION_TYPE: Final = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"

GRANT_TYPES: Final[Mapping[str, str]] = {
    "refresh_token": "refresh_token",
    "client_credentials": "client_credentials",
    "jwt_bearer": JWT_BEARER,
    "token_exchange": "urn:ietf:params:oauth:grant-type:token-exchange",
    "access_token": "",
    "none": "",
}
"""What each grant is called on the wire (RFC 6749 sections 6 and 4.4, RFC 7523, RFC 8693); the others have no name."""

PRESENTED: Final[Mapping[str, tuple[str, str]]] = {
    "refresh_token": (REFRESH_TOKEN, "refresh_token"),
    "token_exchange": (REFRESH_TOKEN, "subject_token"),
    "access_token": (ACCESS_TOKEN, "access_token"),
    "jwt_bearer": (ASSERTION, "assertion"),
}
"""For each grant that presents something: the credential, and the parameter's key under ``names``."""

SECRET_AUTHENTICATIONS: Final = frozenset(
    {"client_secret_basic", "client_secret_post", "client_secret_as_user"}
)
ASSERTION_AUTHENTICATIONS: Final = frozenset({"private_key_jwt", "signed_secret", "bearer_assertion"})
HEADER_AUTHENTICATIONS: Final = frozenset(
    {"client_secret_basic", "client_secret_as_user", "bearer_assertion"}
)
"""Which of them are an Authorization header."""
PARAMETER_AUTHENTICATIONS: Final = frozenset({"client_secret_post", "private_key_jwt", "signed_secret"})
"""Which of them are parameters."""

SecretUse = Literal["none", "secret", "signing_key"]


def used_names(spec: ProviderSpec, texts: Iterable[str], *, sent: bool = False) -> frozenset[str]:
    """Return every name that templates ``texts`` use, through computed values too.

    With ``sent``, only those that need not be sent otherwise: a digest has the place of the client's secret alone.
    """
    found = frozenset().union(*map(placeholders, texts))
    if not spec.computed:
        return found
    waiting = list(found & spec.computed.keys())
    seen = set(found)
    while waiting:
        computed = spec.computed[waiting.pop()]
        inner = placeholders(computed.of or "") | placeholders(computed.key or "")
        if sent and computed.kind != "base64":
            inner &= spec.computed.keys() | {CLIENT_SECRET}
        waiting.extend((inner - seen) & spec.computed.keys())
        seen |= inner
    return frozenset(seen)


def placed(spec: ProviderSpec) -> frozenset[str]:
    """Return what templates of the refresh request send, or stand in for."""
    texts = [*spec.refresh.parameters.values(), *spec.refresh.headers.values()]
    return used_names(spec, texts, sent=True)


def authentication(spec: ProviderSpec) -> str:
    """Return how the refresh request authenticates by itself: ``none`` where templates place what it would present."""
    own = spec.client.authentication
    covered = placed(spec)
    if own in SECRET_AUTHENTICATIONS and CLIENT_SECRET in covered:
        return "none"
    if own in ASSERTION_AUTHENTICATIONS and ASSERTION in covered:
        return "none"
    return own


def revoke_authentication(spec: ProviderSpec, revoke: Revoke) -> str:
    """Return how the revocation authenticates by itself: ``none`` where a template places the client's secret."""
    covered = used_names(spec, [*revoke.parameters.values(), *revoke.headers.values()])
    return "none" if CLIENT_SECRET in covered else revoke.authentication or spec.client.authentication


def sends_parameters(spec: ProviderSpec) -> bool:
    """Answer whether the refresh request has parameters at all."""
    refresh = spec.refresh
    return refresh.grant != "none" and (refresh.body != "none" or refresh.method == "GET")


def sends_id(spec: ProviderSpec) -> bool:
    """Answer whether the client id is sent as a parameter."""
    client, refresh = spec.client, spec.refresh
    if not sends_parameters(spec):
        return False
    if client.send_id is not None:
        return client.send_id
    if client.authentication == "none":
        return refresh.grant not in ("jwt_bearer", "access_token")
    return client.authentication not in HEADER_AUTHENTICATIONS


def presented(spec: ProviderSpec) -> tuple[str, str] | None:
    """Return the credential that is presented under its own name, and that name's key; None for nothing."""
    pair = PRESENTED.get(spec.refresh.grant)
    return pair if pair is not None and pair[0] not in placed(spec) else None


def grant_type(spec: ProviderSpec) -> str:
    """Return what is sent as grant type; empty for none."""
    own = spec.refresh.grant_type
    return GRANT_TYPES[spec.refresh.grant] if own is None else own


def sent_names(spec: ProviderSpec) -> dict[str, str]:
    """Return what the request sends under names of its own: the key under ``names``, and the name."""
    refresh = spec.refresh
    if not sends_parameters(spec):
        return {}
    keys = ["grant_type"] if grant_type(spec) else []
    if (own := presented(spec)) is not None:
        keys.append(own[1])
    if refresh.send_scope:
        keys.append("scope")
    if sends_id(spec):
        keys.append("client_id")
    match authentication(spec):
        case "client_secret_post" | "signed_secret":
            keys.append("client_secret")
        case "private_key_jwt":
            keys += ["client_assertion_type", "client_assertion"]
    return {key: getattr(refresh.names, key) for key in keys}


def signs(spec: ProviderSpec) -> bool:
    """Answer whether an assertion is made for the refresh request."""
    return ASSERTION in placed(spec) or (
        spec.client.authentication in ASSERTION_AUTHENTICATIONS or spec.refresh.grant == "jwt_bearer"
    )


def secret_use(spec: ProviderSpec) -> SecretUse:
    """Return what the app's secret is needed for, in any request of this definition."""
    if spec.assertion is not None and spec.assertion.algorithm != "HS256":
        return "signing_key"
    if spec.revoke is not None and spec.revoke.authentication in SECRET_AUTHENTICATIONS:
        return "secret"
    needed = spec.client.authentication != "none" or spec.assertion is not None
    return "secret" if needed or CLIENT_SECRET in used_names(spec, sent_texts(spec)) else "none"


def sent_texts(spec: ProviderSpec) -> list[str]:
    """Return every template of parameters and headers, of any request of this definition."""
    texts = [*spec.refresh.parameters.values(), *spec.refresh.headers.values()]
    for each in (spec.probe, spec.revoke, *spec.steps):
        if each is not None:
            texts += [*each.parameters.values(), *each.headers.values()]
    return [*texts, spec.probe.authorization] if spec.probe is not None else texts
