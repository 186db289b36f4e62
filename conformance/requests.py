"""Is this the request that a definition describes? Checked as its provider would, and told as it would not: why not.

Nothing of the fleet's own request builders is used here. What is checked: method, path, query, content type, each
parameter and header by name and value, how the client authenticates, signatures and digests, and that no credential
stands where it does not belong. Values of secrets never get into a message.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal
from urllib.parse import parse_qsl

from conformance.received import Malformed, Received, form_decoded, path_parts
from conformance.registration import Registration
from conformance.templates import (
    BadAssertion,
    computed_value,
    covered,
    encoded_in,
    endpoint,
    filled,
    found_in,
    names_in,
    read_assertion,
)
from providers.problems import Location
from providers.spec import ProviderSpec

ASSERTION_TYPE: Final = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
GRANT_TYPES: Final[Mapping[str, str]] = {
    "refresh_token": "refresh_token",
    "client_credentials": "client_credentials",
    "jwt_bearer": "urn:ietf:params:oauth:grant-type:jwt-bearer",
    "token_exchange": "urn:ietf:params:oauth:grant-type:token-exchange",
}
"""What a grant is called by RFC 6749, 7523 and 8693; the others have no name."""

CLOCK_TOLERANCE_SECONDS: Final = 300

Reproach = Literal["client_rejected", "request_rejected"]


class Refused(Exception):
    """The provider does not accept the request. The message is a sentence without a secret."""

    def __init__(self, outcome: Reproach, reason: str, key: Location) -> None:
        super().__init__(reason)
        self.outcome: Reproach = outcome
        self.key = key


@dataclass(slots=True)
class Client:
    """Who may ask: a registration, an account's variables as they are now, and what was seen of it before."""

    registration: Registration
    variables: dict[str, str]
    scope: str | None
    seen: set[str] = field(default_factory=set)
    """Values that may come only once: jti of assertions, nonces."""

    def values(self) -> dict[str, str]:
        """Return what templates may use, but for the tokens."""
        registration = self.registration
        values = {**self.variables, "client_id": registration.client_id}
        if registration.client_secret is not None:
            values["client_secret"] = registration.client_secret.reveal()
        return values


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a request presents, as found in it; None for what is not there."""

    refresh_token: str | None = None
    access_token: str | None = None


def check_refresh(spec: ProviderSpec, client: Client, request: Received, *, now: float) -> Credentials:
    """Return what the refresh request presents. Raises :class:`Refused`."""
    refresh = spec.refresh
    place = "query" if refresh.method == "GET" else refresh.body
    actual = _target(spec, client, request, refresh.endpoint or "", refresh.method, place, ("refresh",))
    templates = [*refresh.parameters.values(), *refresh.headers.values()]
    hidden = covered(spec, templates, arriving=True)
    own = _own(spec, client, hidden)
    certificate = spec.client.certificate
    if certificate and not request.certificate:
        raise Refused(
            "client_rejected", "the connection carries no client certificate", ("client", "certificate")
        )
    found = _check_parts(
        spec, client, request, actual, dict(refresh.parameters), dict(refresh.headers), own, ("refresh",),
        now=now,
    )  # fmt: skip
    if spec.client.authentication in _HEADER_CHECKS and not _is_covered(spec, hidden):
        _check_header(spec, client, request, now)
    elif (
        not any(name.lower() == "authorization" for name in refresh.headers)
        and "authorization" in request.headers
    ):
        raise Refused(
            "client_rejected",
            "there is an Authorization header, where none is expected",
            ("client", "authentication"),
        )
    return Credentials(found.get("refresh_token"), found.get("access_token"))


def check_templates(
    spec: ProviderSpec,
    client: Client,
    request: Received,
    *,
    text: str,
    method: str,
    place: str,
    parameters: Mapping[str, str],
    headers: Mapping[str, str],
    at: Location,
    now: float,
    own: Mapping[str, str | None] | None = None,
) -> Credentials:
    """Check a request that is made of templates alone: a step, a probe, a revocation. Raises :class:`Refused`."""
    actual = _target(
        spec, client, request, text, method, "query" if method == "GET" and place == "form" else place, at
    )
    found = _check_parts(
        spec,
        client,
        request,
        actual,
        dict(parameters),
        dict(headers),
        dict(own or {}),
        at,
        now=now,
    )
    return Credentials(found.get("refresh_token"), found.get("access_token"))


def _target(
    spec: ProviderSpec, client: Client, request: Received, text: str, method: str, place: str, at: Location
) -> dict[str, Any]:
    """Check where the request goes and return its parameters, those of the endpoint itself left out."""
    authority, path, query = endpoint(text, client.values())
    key = (*at, "endpoint")
    if request.authority != authority:
        raise Refused(
            "request_rejected", f"the request went to the host {request.authority}, not to {authority}", key
        )
    if request.path != path_parts(path):
        raise Refused(
            "request_rejected", f"the request went to the path {'/'.join(request.path)}, not to {path}", key
        )
    if request.method != method:
        raise Refused("request_rejected", f"the method was {request.method}, not {method}", (*at, "method"))
    if request.headers.get("host") != authority:
        raise Refused("request_rejected", "the header Host names another host", key)
    fixed = dict(parse_qsl(query, keep_blank_values=True))
    try:
        in_query, actual = request.query, request.parameters(place)
    except Malformed as error:
        raise Refused("request_rejected", str(error), (*at, "body")) from None
    for name, value in fixed.items():
        if in_query.get(name) != value:
            raise Refused("request_rejected", f"the query lacks {name} as the endpoint has it", key)
    if place != "query" and (beside := set(in_query) - set(fixed)):
        raise Refused("request_rejected", f"the query has {_listed(beside)}, where nothing is expected", key)
    return {name: value for name, value in actual.items() if place != "query" or name not in fixed}


def _own(spec: ProviderSpec, client: Client, hidden: set[str]) -> dict[str, str | None]:
    """Return what goes under names of its own: the value, or None for what is found out from the request."""
    refresh, names = spec.refresh, spec.refresh.names
    own: dict[str, str | None] = {}
    if refresh.body == "none" and refresh.method != "GET":
        return own
    kind = GRANT_TYPES.get(refresh.grant, "") if refresh.grant_type is None else refresh.grant_type
    if kind:
        own[names.grant_type] = kind
    if refresh.grant == "refresh_token" and "refresh_token" not in hidden:
        own[names.refresh_token] = None
    if refresh.grant == "token_exchange" and "refresh_token" not in hidden:
        own[names.subject_token] = None
    if refresh.grant == "access_token" and "access_token" not in hidden:
        own[names.access_token] = None
    if refresh.grant == "jwt_bearer" and "assertion" not in hidden:
        own[names.assertion] = None
    if refresh.send_scope and client.scope:
        own[names.scope] = client.scope
    if _sends_id(spec):
        own[names.client_id] = client.registration.client_id
    if not _is_covered(spec, hidden):
        secret = client.registration.client_secret
        match spec.client.authentication:
            case "client_secret_post":
                own[names.client_secret] = secret.reveal() if secret else ""
            case "signed_secret":
                own[names.client_secret] = None
            case "private_key_jwt":
                own[names.client_assertion_type] = ASSERTION_TYPE
                own[names.client_assertion] = None
    return own


def _sends_id(spec: ProviderSpec) -> bool:
    client, refresh = spec.client, spec.refresh
    if refresh.body == "none" and refresh.method != "GET":
        return False
    if client.send_id is not None:
        return client.send_id
    if client.authentication == "none":
        return refresh.grant not in ("jwt_bearer", "access_token")
    return client.authentication not in _HEADER_CHECKS


def _is_covered(spec: ProviderSpec, hidden: set[str]) -> bool:
    signs = spec.client.authentication in ("private_key_jwt", "signed_secret", "bearer_assertion")
    return ("assertion" if signs else "client_secret") in hidden


def _check_parts(
    spec: ProviderSpec,
    client: Client,
    request: Received,
    actual: Mapping[str, Any],
    parameters: dict[str, str],
    headers: dict[str, str],
    own: dict[str, str | None],
    at: Location,
    *,
    now: float,
) -> dict[str, str]:
    """Check each parameter and header and return the tokens that they hold."""
    texts = {(*at, "parameters", name): (text, actual.get(name)) for name, text in parameters.items()}
    texts |= {
        (*at, "headers", name): (text, request.headers.get(name.lower())) for name, text in headers.items()
    }
    for key, (_, value) in texts.items():
        if value is None:
            raise Refused("request_rejected", f"the {_what(key)} is missing", key)
    for name, wanted in own.items():
        key = (*at, "names") if at == ("refresh",) else at
        if name not in actual:
            raise Refused(_reproach(spec, name), f"the parameter {name} is missing", key)
        if wanted is not None and actual[name] != wanted:
            raise Refused(_reproach(spec, name), f"the parameter {name} is not what was expected", key)
    if beside := set(actual) - set(parameters) - set(own):
        raise Refused(
            _reproach(spec, next(iter(beside))),
            f"nothing is said of the parameter {_listed(beside)}",
            (*at, "names"),
        )
    values = client.values()
    found = _tokens(spec, actual, own)
    for text, value in texts.values():
        found |= found_in(text, str(value), values) or {}
    found = {
        name: value for name, value in found.items() if name not in spec.computed or _is_free(spec, name)
    }
    needed = covered(spec, [text for text, _ in texts.values()])
    for name in sorted(needed & {"refresh_token", "access_token"} - set(found)):
        reason = f"the {name} does not arrive: only a digest of it is sent"
        raise Refused("request_rejected", reason, (*at, "parameters"))
    _check_fresh(spec, client, values, found, now, at)
    complete = values | found
    for name, computed in spec.computed.items():
        if name in needed and not _is_free(spec, name):
            complete[name] = computed_value(computed, complete)
    for key, (text, value) in texts.items():
        if not names_in(text) <= complete.keys() or filled(text, complete) != str(value):
            outcome: Reproach = (
                "client_rejected" if "client_secret" in covered(spec, [text]) else "request_rejected"
            )
            raise Refused(outcome, f"the {_what(key)} is not what was expected", key)
    return found


def _tokens(spec: ProviderSpec, actual: Mapping[str, Any], own: Mapping[str, str | None]) -> dict[str, str]:
    names = spec.refresh.names
    places = {
        names.refresh_token: "refresh_token",
        names.subject_token: "refresh_token",
        names.access_token: "access_token",
        names.assertion: "assertion",
        names.client_assertion: "assertion",
        names.client_secret: "assertion",
    }
    return {
        places[name]: str(actual[name]) for name, wanted in own.items() if wanted is None and name in places
    }


def _check_fresh(
    spec: ProviderSpec,
    client: Client,
    values: Mapping[str, str],
    found: Mapping[str, str],
    now: float,
    at: Location,
) -> None:
    """Check assertions, moments and nonces: each is of now, and none comes twice."""
    once: list[str] = []
    if (token := found.get("assertion")) is not None:
        once.append(_assertion(spec, client, values, token, now))
    for name in found.keys() & spec.computed.keys():
        computed, text = spec.computed[name], found[name]
        if computed.kind == "random":
            once.append(text)
        elif (
            not text.isdecimal()
            or abs(int(text) / _PER_SECOND[computed.unit] - now) > CLOCK_TOLERANCE_SECONDS
        ):
            raise Refused("request_rejected", f"{{{name}}} is not the time", ("computed", name))
    if repeated := client.seen & set(once):
        raise Refused(
            "client_rejected", f"{len(repeated)} value came a second time that may come once (jti)", at
        )
    client.seen |= set(once)


def _assertion(spec: ProviderSpec, client: Client, values: Mapping[str, str], token: str, now: float) -> str:
    try:
        return read_assertion(token, spec, client.registration, values, now=now)
    except BadAssertion as error:
        raise Refused("client_rejected", f"the assertion {error}", ("assertion",)) from None


def _check_header(spec: ProviderSpec, client: Client, request: Received, now: float) -> None:
    key: Location = ("client", "authentication")
    registration = client.registration
    secret = registration.client_secret.reveal() if registration.client_secret else ""
    if spec.client.authentication == "bearer_assertion":
        token = request.bearer()
        if token is None:
            raise Refused("client_rejected", "there is no bearer assertion in the Authorization header", key)
        jti = _assertion(spec, client, client.values(), token, now)
        if jti in client.seen:
            raise Refused("client_rejected", "the assertion came a second time (jti)", ("assertion",))
        client.seen.add(jti)
        return
    pair = request.basic()
    if pair is None:
        raise Refused("client_rejected", "there is no Basic authentication in the Authorization header", key)
    user, password = map(form_decoded, pair)
    wanted = (registration.client_id, secret)
    if spec.client.authentication == "client_secret_as_user":
        user, password = pair
        wanted = (secret, "")
    if (user, password) != wanted:
        raise Refused(
            "client_rejected", "the Basic authentication is not the client's (RFC 6749 section 2.3.1)", key
        )


def _is_free(spec: ProviderSpec, name: str) -> bool:
    return name in spec.computed and spec.computed[name].kind in ("timestamp", "random")


def _reproach(spec: ProviderSpec, name: str) -> Reproach:
    names = spec.refresh.names
    of_client = {names.client_id, names.client_secret, names.client_assertion, names.client_assertion_type}
    return "client_rejected" if name in of_client else "request_rejected"


def _what(key: Location) -> str:
    return f"{'header' if key[-2] == 'headers' else 'parameter'} {key[-1]}"


def _listed(names: set[str]) -> str:
    return " and ".join(sorted(names))


_HEADER_CHECKS: Final = frozenset({"client_secret_basic", "client_secret_as_user", "bearer_assertion"})
_PER_SECOND: Final[Mapping[str, int]] = {"seconds": 1, "milliseconds": 1000}
