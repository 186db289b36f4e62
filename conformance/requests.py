"""Is this the request that a definition describes? Checked as its provider would, and told as it would not: why not.

What is checked: method, path, query, content type, each parameter and header by name and value, how the client
authenticates, signatures and digests, and that nothing is sent that the definition does not name. Values of secrets
never get into a message.
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
from conformance.wanted import Wanted
from providers.problems import Location
from providers.spec import ProviderSpec

CLOCK_TOLERANCE_SECONDS: Final = 300

_PER_SECOND: Final[Mapping[str, int]] = {"seconds": 1, "milliseconds": 1000}

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

    refresh_token: str | None = field(default=None, repr=False)
    access_token: str | None = field(default=None, repr=False)


def check(
    spec: ProviderSpec, client: Client, request: Received, wanted: Wanted, *, now: float
) -> Credentials:
    """Return what ``request`` presents. Raises :class:`Refused` unless it is as ``wanted``."""
    if spec.client.certificate and not request.certificate:
        key: Location = ("client", "certificate")
        raise Refused("client_rejected", "the connection carries no client certificate", key)
    actual = _parameters(client, request, wanted)
    _check_names(spec, request, wanted, actual)
    found = _check_values(spec, client, request, wanted, actual, now)
    if wanted.authentication != "none":
        _check_authentication(spec, client, request, wanted.authentication, now)
    elif "authorization" in request.headers and "authorization" not in map(str.lower, wanted.headers):
        reason = "there is an Authorization header, where none is expected"
        raise Refused("client_rejected", reason, ("client", "authentication"))
    return Credentials(found.get("refresh_token"), found.get("access_token"))


def _parameters(client: Client, request: Received, wanted: Wanted) -> dict[str, Any]:
    """Check where the request goes and return its parameters, those of the endpoint itself left out."""
    authority, path, query = endpoint(wanted.endpoint, client.values())
    key = (*wanted.at, "endpoint")
    if request.authority != authority:
        reason = f"the request went to the host {request.authority}, not to {authority}"
        raise Refused("request_rejected", reason, key)
    if request.path != path_parts(path):
        reason = f"the request went to the path {'/'.join(request.path)}, not to {path}"
        raise Refused("request_rejected", reason, key)
    if request.method != wanted.method:
        reason = f"the method was {request.method}, not {wanted.method}"
        raise Refused("request_rejected", reason, (*wanted.at, "method"))
    if request.headers.get("host") != authority:
        raise Refused("request_rejected", "the header Host names another host", key)
    fixed = dict(parse_qsl(query, keep_blank_values=True))
    try:
        in_query, actual = request.query, request.parameters(wanted.place)
    except Malformed as error:
        raise Refused("request_rejected", str(error), (*wanted.at, "body")) from None
    if any(in_query.get(name) != value for name, value in fixed.items()):
        raise Refused("request_rejected", "the query is not that of the endpoint", key)
    if wanted.place == "query":
        return {name: value for name, value in actual.items() if name not in fixed}
    if beside := set(in_query) - set(fixed):
        raise Refused("request_rejected", f"the query has {_listed(beside)}, where nothing is expected", key)
    return actual


def _check_names(spec: ProviderSpec, request: Received, wanted: Wanted, actual: Mapping[str, Any]) -> None:
    """Check that there is everything that has to be, and nothing else."""
    key = (*wanted.at, "names") if wanted.at == ("refresh",) else (*wanted.at, "parameters")
    for name in (*wanted.tokens, *wanted.values):
        if name not in actual:
            raise Refused(_reproach(spec, name), f"the parameter {name} is missing", key)
    for name in wanted.parameters:
        if name not in actual:
            raise Refused(
                "request_rejected", f"the parameter {name} is missing", (*wanted.at, "parameters", name)
            )
    for name in wanted.headers:
        if name.lower() not in request.headers:
            raise Refused("request_rejected", f"the header {name} is missing", (*wanted.at, "headers", name))
    for name in set(actual) - {*wanted.parameters, *wanted.values, *wanted.tokens, *wanted.optional}:
        raise Refused(_reproach(spec, name), f"nothing is said of the parameter {name}", key)
    for name, value in {**wanted.optional, **wanted.values}.items():
        if actual.get(name, value) != value and name not in wanted.parameters:
            raise Refused(_reproach(spec, name), f"the parameter {name} is not what was expected", key)


def _check_values(
    spec: ProviderSpec,
    client: Client,
    request: Received,
    wanted: Wanted,
    actual: Mapping[str, Any],
    now: float,
) -> dict[str, str]:
    """Check what templates have become, digests and signatures too, and return the credentials in it."""
    texts: dict[Location, tuple[str, str]] = {}
    for name, text in wanted.parameters.items():
        texts[*wanted.at, "parameters", name] = (text, str(actual[name]))
    for name, text in wanted.headers.items():
        texts[*wanted.at, "headers", name] = (text, request.headers[name.lower()])
    values = client.values()
    found = {credential: str(actual[name]) for name, credential in wanted.tokens.items()}
    for text, sent in texts.values():
        found |= found_in(text, sent, values) or {}
    for name in [name for name in found if name in spec.computed and not _is_free(spec, name)]:
        found |= encoded_in(spec.computed[name], found.pop(name), values)
    needed = covered(spec, [text for text, _ in texts.values()])
    for name in sorted(needed & {"refresh_token", "access_token"} - set(found)):
        reason = f"the {name} does not arrive: only a digest of it is sent"
        raise Refused("request_rejected", reason, (*wanted.at, "parameters"))
    _check_fresh(spec, client, values, found, now, wanted.at)
    complete = values | found
    for name, computed in spec.computed.items():
        if name in needed and not _is_free(spec, name):
            complete[name] = computed_value(computed, complete)
    for key, (text, sent) in texts.items():
        if not names_in(text) <= complete.keys() or filled(text, complete) != sent:
            shows = "client_secret" in covered(spec, [text])
            what = "header" if key[-2] == "headers" else "parameter"
            reason = f"the {what} {key[-1]} is not what was expected"
            raise Refused("client_rejected" if shows else "request_rejected", reason, key)
    return found


def _check_fresh(
    spec: ProviderSpec,
    client: Client,
    values: Mapping[str, str],
    found: Mapping[str, str],
    now: float,
    at: Location,
) -> None:
    """Check assertions, moments and nonces: each is of now, and none comes twice."""
    if (token := found.get("assertion")) is not None:
        _check_assertion(spec, client, values, token, now)
    for name in found.keys() & spec.computed.keys():
        computed, text = spec.computed[name], found[name]
        if computed.kind == "random":
            _once(client, text, ("computed", name))
        elif computed.kind == "timestamp":
            seconds = int(text) / _PER_SECOND[computed.unit] if text.isdecimal() else 0
            if abs(seconds - now) > CLOCK_TOLERANCE_SECONDS:
                raise Refused("request_rejected", f"{{{name}}} is not the time", ("computed", name))


def _check_assertion(
    spec: ProviderSpec, client: Client, values: Mapping[str, str], token: str, now: float
) -> None:
    try:
        _once(client, read_assertion(token, spec, client.registration, values, now=now), ("assertion",))
    except BadAssertion as error:
        raise Refused("client_rejected", f"the assertion {error}", ("assertion",)) from None


def _once(client: Client, text: str, key: Location) -> None:
    if text in client.seen:
        raise Refused("client_rejected", "a nonce, or the jti of an assertion, came a second time", key)
    client.seen.add(text)


def _check_authentication(
    spec: ProviderSpec, client: Client, request: Received, authentication: str, now: float
) -> None:
    """Check the Authorization header by which a client authenticates."""
    key: Location = ("client", "authentication")
    if authentication == "bearer_assertion":
        token = request.bearer()
        if token is None:
            raise Refused("client_rejected", "there is no bearer assertion in the Authorization header", key)
        _check_assertion(spec, client, client.values(), token, now)
        return
    pair = request.basic()
    if pair is None:
        raise Refused("client_rejected", "there is no Basic authentication in the Authorization header", key)
    registration = client.registration
    secret = registration.client_secret.reveal() if registration.client_secret else ""
    if authentication == "client_secret_as_user":
        # Not of RFC 6749: as RFC 7617 has it, nothing is form-encoded.
        right = pair == (secret, "")
    else:
        right = tuple(map(form_decoded, pair)) == (registration.client_id, secret)
    if not right:
        reason = "the Basic authentication is not the client's (RFC 6749 section 2.3.1, RFC 7617)"
        raise Refused("client_rejected", reason, key)


def _is_free(spec: ProviderSpec, name: str) -> bool:
    return spec.computed[name].kind in ("timestamp", "random")


def _reproach(spec: ProviderSpec, name: str) -> Reproach:
    names = spec.refresh.names
    of_client = {names.client_id, names.client_secret, names.client_assertion, names.client_assertion_type}
    return "client_rejected" if name in of_client else "request_rejected"


def _listed(names: set[str]) -> str:
    return " and ".join(sorted(names))
