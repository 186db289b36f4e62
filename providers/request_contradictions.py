"""What contradicts what in the refresh request: client, grant, body, names, assertion, computed values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import combinations
from typing import Final

from providers import placement
from providers.assertions import OWN_CLAIMS, OWN_HEAD
from providers.credentials import ASSERTION, CLIENT_SECRET
from providers.problems import Location
from providers.spec import ProviderSpec
from providers.spec_requests import Computed

OWN_HEADERS: Final = frozenset(
    {
        "accept-encoding",
        "connection",
        "content-length",
        "content-type",
        "cookie",
        "expect",
        "host",
        "te",
        "transfer-encoding",
        "upgrade",
        "user-agent",
    }
)
"""Headers that a request or the transport sets itself."""

Finding = tuple[Location, str]


def request_mistakes(spec: ProviderSpec) -> Iterator[Finding]:
    """Yield every contradiction of the refresh request."""
    if spec.refresh.grant == "none":
        yield from _grant_none(spec)
    else:
        yield from _grant(spec)
        yield from _body(spec)
        yield from _names(spec)
        yield from _dotted(spec)
        yield from header_mistakes("refresh", spec.refresh.headers, _authorization_set_by(spec))
    yield from _client(spec)
    yield from _assertion(spec)
    for name, computed in spec.computed.items():
        yield from _computed(name, computed)


def header_mistakes(table: str, headers: Iterable[str], authorization: str | None) -> Iterator[Finding]:
    """Yield the headers that cannot be set; ``authorization`` is what sets that header already, if something does."""
    seen: set[str] = set()
    for name in headers:
        if name.lower() in OWN_HEADERS:
            yield (table, "headers", name), "is set by the request itself and cannot be set here"
        elif name.lower() == "authorization" and authorization is not None:
            yield (table, "headers", name), f"is set by {authorization} already"
        elif name.lower() in seen:
            yield (table, "headers", name), "is there twice: upper and lower case make no difference"
        seen.add(name.lower())


def _authorization_set_by(spec: ProviderSpec) -> str | None:
    own = placement.authentication(spec)
    return f"client.authentication ({own})" if own in placement.HEADER_AUTHENTICATIONS else None


def _grant_none(spec: ProviderSpec) -> Iterator[Finding]:
    for key in sorted(spec.refresh.model_fields_set - {"grant"}):
        yield ("refresh", key), "has no meaning when the grant is 'none'"


def _grant(spec: ProviderSpec) -> Iterator[Finding]:
    refresh = spec.refresh
    if refresh.endpoint is None:
        yield ("refresh", "endpoint"), "is missing: without one, grant has to be 'none'"
    if refresh.method == "GET" and "body" in refresh.model_fields_set:
        yield ("refresh", "body"), "has no meaning for a GET request, whose parameters are in its query"
    if (
        refresh.grant == "token_exchange"
        and refresh.grant_type is None
        and "subject_token_type" not in refresh.parameters
    ):
        location: Location = ("refresh", "parameters", "subject_token_type")
        yield location, "is missing: RFC 8693 requires it of a token exchange"
    nobody = spec.client.authentication == "none" and not spec.client.certificate
    placed = placement.placed(spec) & {CLIENT_SECRET, ASSERTION}
    if refresh.grant == "client_credentials" and nobody and not placed:
        yield (
            ("client", "authentication"),
            "is 'none', and the grant client_credentials presents nothing else",
        )


def _body(spec: ProviderSpec) -> Iterator[Finding]:
    """Report what a request without parameters has no place for."""
    refresh = spec.refresh
    if placement.sends_parameters(spec):
        return
    for key in ("parameters", "names", "grant_type", "send_scope"):
        if getattr(refresh, key) and key in refresh.model_fields_set:
            yield ("refresh", key), "has no meaning when the body is 'none': nothing is sent as a parameter"
    if (own := placement.presented(spec)) is not None:
        yield (
            ("refresh", "body"),
            f"leaves no place for the {own[0].replace('_', ' ')}: put {{{own[0]}}} into a header",
        )
    authentication = placement.authentication(spec)
    if authentication not in placement.HEADER_AUTHENTICATIONS | {"none"}:
        yield ("refresh", "body"), f"leaves no place for what {authentication} sends"


def _names(spec: ProviderSpec) -> Iterator[Finding]:
    refresh = spec.refresh
    if not placement.sends_parameters(spec):
        return
    sent = placement.sent_names(spec)
    taken: dict[str, str] = {}
    for key in type(refresh.names).model_fields:
        if key not in sent:
            if key in refresh.names.model_fields_set:
                yield ("refresh", "names", key), "renames what this request does not send"
            continue
        if sent[key] in taken:
            yield ("refresh", "names", key), f"is {sent[key]!r}, which is the name of {taken[sent[key]]} too"
        taken[sent[key]] = key
    for name in refresh.parameters:
        if name in taken:
            yield ("refresh", "parameters", name), f"is sent as {taken[name]} already"


def _dotted(spec: ProviderSpec) -> Iterator[Finding]:
    """Report names that cannot be members of one JSON document."""
    refresh = spec.refresh
    places: dict[str, Location] = {name: ("refresh", "parameters", name) for name in refresh.parameters}
    places |= {name: ("refresh", "names", key) for key, name in placement.sent_names(spec).items()}
    if refresh.body != "json" or refresh.method == "GET":
        for name, location in places.items():
            if "." in name:
                yield location, f"leads with {name!r} into an object, which only a JSON body has"
        return
    yield from json_mistakes(places)


def json_mistakes(places: Mapping[str, Location]) -> Iterator[Finding]:
    """Yield the names that cannot be members of one JSON document, each where it stands."""
    for name, location in places.items():
        if not all(name.split(".")):
            yield location, f"has an empty part: {name!r}"
    for first, second in combinations(sorted(places), 2):
        if second.startswith(f"{first}."):
            yield places[second], f"is inside {first!r}, which is sent as text"


def _client(spec: ProviderSpec) -> Iterator[Finding]:
    client, refresh = spec.client, spec.refresh
    if client.send_id is not None and not placement.sends_parameters(spec):
        why = "grant" if refresh.grant == "none" else "body"
        yield ("client", "send_id"), f"has no meaning when the {why} is 'none'"
    if client.send_id is False and client.certificate and client.authentication == "none":
        yield (
            ("client", "send_id"),
            "has to be true: a certificate alone needs the client id (RFC 8705 section 2)",
        )
    if client.certificate and (refresh.endpoint or "").startswith("http:"):
        yield ("client", "certificate"), "has no meaning over plain http, where nobody presents one"
    if client.certificate and refresh.grant == "none" and spec.probe is None:
        yield ("client", "certificate"), "has no meaning: nothing is ever asked"


def _assertion(spec: ProviderSpec) -> Iterator[Finding]:
    assertion, grant = spec.assertion, spec.refresh.grant
    own: str = spec.client.authentication
    if assertion is None:
        if placement.signs(spec):
            user = own if own in placement.ASSERTION_AUTHENTICATIONS else "a template"
            if grant == "jwt_bearer":
                user = "the grant jwt_bearer"
            yield ("assertion",), f"is missing: {user} presents one"
        return
    if not placement.signs(spec):
        yield ("assertion",), "has no meaning: neither authentication nor grant nor a template presents it"
    if grant == "jwt_bearer" and own in placement.ASSERTION_AUTHENTICATIONS:
        yield (
            ("client", "authentication"),
            "would present the grant's assertion a second time: let one of them do without",
        )
    for name in sorted(assertion.claims.keys() & OWN_CLAIMS):
        yield ("assertion", "claims", name), "is a claim that every assertion has by itself"
    for name in sorted(assertion.head.keys() & OWN_HEAD):
        key = {"alg": "algorithm", "kid": "key_id"}[name]
        yield ("assertion", "head", name), f"is what {key} says"
    if assertion.backdate_seconds >= assertion.lifetime_seconds:
        yield (
            ("assertion", "backdate_seconds"),
            f"is not shorter than its life ({assertion.lifetime_seconds}): it would be over when it is sent",
        )
    if assertion.algorithm != "HS256":
        if own in placement.SECRET_AUTHENTICATIONS:
            yield ("client", "authentication"), "would send the app's secret, which is the signing key here"
        if CLIENT_SECRET in placement.used_names(spec, placement.sent_texts(spec)):
            yield ("assertion", "algorithm"), "makes the app's secret a signing key, and a template sends it"
        if spec.revoke is not None and spec.revoke.authentication in placement.SECRET_AUTHENTICATIONS:
            yield ("revoke", "authentication"), "would send the app's secret, which is the signing key here"


def _computed(name: str, computed: Computed) -> Iterator[Finding]:
    given = computed.model_fields_set
    is_text = computed.kind in ("sha256", "hmac_sha256", "base64")
    if is_text and computed.of is None:
        yield ("computed", name, "of"), f"is missing: {computed.kind} needs something to work on"
    if not is_text and computed.of is not None:
        yield ("computed", name, "of"), f"has no meaning for the kind {computed.kind!r}"
    if computed.kind == "hmac_sha256" and computed.key is None:
        yield ("computed", name, "key"), "is missing: without one it is sha256"
    if computed.kind != "hmac_sha256" and computed.key is not None:
        yield ("computed", name, "key"), f"has no meaning for the kind {computed.kind!r}"
    if "unit" in given and computed.kind != "timestamp":
        yield ("computed", name, "unit"), f"has no meaning for the kind {computed.kind!r}"
    if "encoding" in given and computed.kind == "timestamp":
        yield ("computed", name, "encoding"), "has no meaning for the kind 'timestamp'"
    if "encoding" in given and computed.kind == "base64" and computed.encoding.endswith("hex"):
        yield ("computed", name, "encoding"), f"is {computed.encoding!r}, but the kind is 'base64'"
