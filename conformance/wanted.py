"""What a definition says its requests look like, said from the provider's side: one :class:`Wanted` for each kind.

Nothing of the fleet's request builders is used here, so the two can disagree.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from conformance.registration import SIGNING, Registration
from conformance.templates import covered
from providers.problems import Location
from providers.spec import ProviderSpec
from providers.spec_requests import Probe, Revoke, Step

ASSERTION_TYPE: Final = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
GRANT_TYPES: Final[Mapping[str, str]] = {
    "refresh_token": "refresh_token",
    "client_credentials": "client_credentials",
    "jwt_bearer": "urn:ietf:params:oauth:grant-type:jwt-bearer",
    "token_exchange": "urn:ietf:params:oauth:grant-type:token-exchange",
}
"""What a grant is called by RFC 6749, 7523 and 8693; the others have no name."""
HEADER_AUTHENTICATIONS: Final = frozenset(
    {"client_secret_basic", "client_secret_as_user", "bearer_assertion"}
)
SECRET_AUTHENTICATIONS: Final = frozenset(
    {"client_secret_basic", "client_secret_as_user", "client_secret_post"}
)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What one kind of request has to be."""

    endpoint: str
    method: str
    place: str
    """Where its parameters are: ``form``, ``json``, ``query``, ``none``."""
    at: Location
    """The table of the definition that says so."""
    parameters: Mapping[str, str] = field(default_factory=dict)
    """Templates."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Templates."""
    values: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Parameters whose values are known."""
    tokens: Mapping[str, str] = field(default_factory=dict)
    """Parameters that hold a credential, and which: ``refresh_token``, ``access_token`` or ``assertion``."""
    authentication: str = "none"
    """Which of the :data:`HEADER_AUTHENTICATIONS` there has to be; ``none`` for no Authorization header at all, unless
    ``headers`` have one."""
    optional: Mapping[str, str] = field(default_factory=dict)
    """Parameters that may be there, with these values."""


def wanted_refresh(spec: ProviderSpec, registration: Registration, scope: str | None) -> Wanted:
    """Return what a token request has to be."""
    refresh, names = spec.refresh, spec.refresh.names
    templates = [*refresh.parameters.values(), *refresh.headers.values()]
    hidden = covered(spec, templates, arriving=True)
    authentication = spec.client.authentication
    if ("assertion" if authentication in SIGNING else "client_secret") in hidden:
        authentication = "none"
    place = "query" if refresh.method == "GET" else refresh.body
    values: dict[str, str] = {}
    tokens: dict[str, str] = {}
    if place != "none":
        kind = GRANT_TYPES.get(refresh.grant, "") if refresh.grant_type is None else refresh.grant_type
        if kind:
            values[names.grant_type] = kind
        presented = {
            "refresh_token": (names.refresh_token, "refresh_token"),
            "token_exchange": (names.subject_token, "refresh_token"),
            "access_token": (names.access_token, "access_token"),
            "jwt_bearer": (names.assertion, "assertion"),
        }.get(refresh.grant)
        if presented is not None and presented[1] not in hidden:
            tokens[presented[0]] = presented[1]
        if refresh.send_scope and scope:
            values[names.scope] = scope
        if _sends_id(spec):
            values[names.client_id] = registration.client_id
        _add_client(spec, registration, authentication, values, tokens)
    return Wanted(
        endpoint=refresh.endpoint or "",
        method=refresh.method,
        place=place,
        at=("refresh",),
        parameters=refresh.parameters,
        headers=refresh.headers,
        values=values,
        tokens=tokens,
        authentication=authentication if authentication in HEADER_AUTHENTICATIONS else "none",
    )


def wanted_probe(probe: Probe) -> Wanted:
    """Return what a probe has to be."""
    return Wanted(
        endpoint=probe.endpoint,
        method=probe.method,
        place=_place(probe.method, probe.body, bool(probe.parameters)),
        at=("probe",),
        parameters=probe.parameters,
        headers={**({"Authorization": probe.authorization} if probe.authorization else {}), **probe.headers},
    )


def wanted_step(step: Step, position: int) -> Wanted:
    """Return what a step has to be."""
    return Wanted(
        endpoint=step.endpoint,
        method=step.method,
        place=_place(step.method, step.body, bool(step.parameters)),
        at=("steps", position),
        parameters=step.parameters,
        headers=step.headers,
    )


def wanted_revocation(spec: ProviderSpec, revoke: Revoke, registration: Registration) -> Wanted:
    """Return what a revocation has to be (RFC 7009 section 2.1)."""
    hidden = covered(spec, [*revoke.parameters.values(), *revoke.headers.values()], arriving=True)
    authentication: str = revoke.authentication or spec.client.authentication
    if "client_secret" in hidden:
        authentication = "none"
    values: dict[str, str] = {}
    tokens: dict[str, str] = {revoke.parameter: revoke.token} if revoke.parameter else {}
    headers = dict(revoke.headers)
    if authentication == "bearer":
        headers.setdefault("Authorization", "Bearer {access_token}")
    place = _place(revoke.method, revoke.body, bool(revoke.parameters or tokens))
    if place != "none":
        _add_client(spec, registration, authentication, values, tokens)
    return Wanted(
        endpoint=revoke.endpoint,
        method=revoke.method,
        place=place,
        at=("revoke",),
        parameters=revoke.parameters,
        headers=headers,
        values=values,
        tokens=tokens,
        authentication=authentication if authentication in HEADER_AUTHENTICATIONS else "none",
        optional={spec.refresh.names.client_id: registration.client_id},
    )


def _add_client(
    spec: ProviderSpec,
    registration: Registration,
    authentication: str,
    values: dict[str, str],
    tokens: dict[str, str],
) -> None:
    """Add the parameters by which the client authenticates."""
    names, secret = spec.refresh.names, registration.client_secret
    if authentication == "client_secret_post":
        values[names.client_secret] = secret.reveal() if secret else ""
    elif authentication == "signed_secret":
        tokens[names.client_secret] = "assertion"
    elif authentication == "private_key_jwt":
        values[names.client_assertion_type] = ASSERTION_TYPE
        tokens[names.client_assertion] = "assertion"


def _sends_id(spec: ProviderSpec) -> bool:
    client = spec.client
    if client.send_id is not None:
        return client.send_id
    if client.authentication == "none":
        return spec.refresh.grant not in ("jwt_bearer", "access_token")
    return client.authentication not in HEADER_AUTHENTICATIONS


def _place(method: str, body: str, has_parameters: bool) -> str:
    if not has_parameters:
        return "any" if body != "none" else "none"
    return "query" if method == "GET" and body != "none" else body
