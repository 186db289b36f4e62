"""What contradicts what in a definition: mistakes that no single value shows.

:func:`contradictions` reports all of them; a definition without any can be compiled and asked.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from providers.connect_mistakes import connect_mistakes
from providers.problems import Location, close_matches, suggestion
from providers.rule_mistakes import rule_mistakes
from providers.spec import MINIMUM_MARGIN_SECONDS, ProviderSpec
from providers.templates import CLIENT_ID, UndeclaredVariableError, text_template, url_template

OWN_HEADERS: Final = frozenset(
    {
        "accept-encoding",
        "authorization",
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
"""Headers that the request or the transport sets itself."""

Finding = tuple[Location, str]


def contradictions(spec: ProviderSpec, *, allow_http: bool) -> list[Finding]:
    """Return every contradiction in ``spec``: where it stands, and the reason in plain words."""
    return [
        *_variables(spec, allow_http),
        *_request(spec),
        *rule_mistakes(spec.errors),
        *_rotation(spec),
        *_lifetimes(spec),
        *_rate(spec),
        *_probe(spec),
        *connect_mistakes(spec),
    ]


def _variables(spec: ProviderSpec, allow_http: bool) -> Iterator[Finding]:
    rules = spec.variable_rules()
    used: set[str] = set()
    for location, text, is_url in _templates(spec):
        # Also of a template that does not compile: reporting its variables as unused would be a false alarm.
        used.update(name for name in rules if f"{{{name}}}" in text)
        try:
            if is_url:
                url_template(text, rules, allow_http=allow_http)
            else:
                text_template(text, rules)
        except UndeclaredVariableError as error:
            used.update(close_matches(error.name, list(rules)))
            yield location, f"{error}{suggestion(error.name, list(rules))}"
        except ValueError as error:
            yield location, str(error)
    for name, variable in spec.variables.items():
        if name == CLIENT_ID:
            yield ("variables", name), "is the app's own client id and needs no declaration"
        elif name not in used and not variable.from_answer:
            yield ("variables", name), "is declared but no template uses it and no answer states it"
        if variable.default is not None:
            try:
                rules[name].check(variable.default, allow_http=allow_http)
            except ValueError as error:
                yield ("variables", name, "default"), str(error)


def _templates(spec: ProviderSpec) -> Iterator[tuple[Location, str, bool]]:
    if spec.refresh.endpoint is not None:
        yield ("refresh", "endpoint"), spec.refresh.endpoint, True
    for name, text in spec.refresh.parameters.items():
        yield ("refresh", "parameters", name), text, False
    for name, text in spec.refresh.headers.items():
        yield ("refresh", "headers", name), text, False
    if spec.probe:
        yield ("probe", "endpoint"), spec.probe.endpoint, True
    if spec.revoke:
        yield ("revoke", "endpoint"), spec.revoke.endpoint, True


def _request(spec: ProviderSpec) -> Iterator[Finding]:
    refresh = spec.refresh
    if refresh.endpoint is None and refresh.grant != "none":
        yield ("refresh", "endpoint"), "is missing: without one, grant has to be 'none'"
    if refresh.endpoint is not None and refresh.grant == "none":
        yield ("refresh", "endpoint"), "has no meaning when the grant is 'none'"
    if refresh.method == "GET" and "body" in refresh.model_fields_set:
        yield ("refresh", "body"), "has no meaning for a GET request, whose parameters are in its query"
    names: dict[str, str] = {}
    for field in type(refresh.names).model_fields:
        name = getattr(refresh.names, field)
        if name in names:
            yield ("refresh", "names", field), f"is {name!r}, which is the name of {names[name]} too"
        names[name] = field
    for name in refresh.parameters:
        if name in names:
            yield ("refresh", "parameters", name), f"is sent as {names[name]} already"
    for name in refresh.headers:
        if name.lower() in OWN_HEADERS:
            yield ("refresh", "headers", name), "is set by the request itself and cannot be set here"
    if spec.client.authentication == "none" and "client_secret" in refresh.names.model_fields_set:
        yield ("refresh", "names", "client_secret"), "names a secret, but the client authenticates with none"


def _rotation(spec: ProviderSpec) -> Iterator[Finding]:
    rotation, lifetimes = spec.rotation, spec.lifetimes
    if rotation.policy == "never":
        if rotation.grace_seconds:
            yield ("rotation", "grace_seconds"), "is a grace window, but refresh tokens are never rotated"
        if rotation.family_revocation:
            yield ("rotation", "family_revocation"), "punishes reuse, but refresh tokens are never rotated"
    idle = lifetimes.refresh_idle_seconds
    if idle is not None and rotation.grace_seconds > idle:
        yield ("rotation", "grace_seconds"), f"is longer than a refresh token lives unused ({idle})"
    if rotation.max_live_per and rotation.max_live is None:
        yield ("rotation", "max_live_per"), "has no meaning without max_live"


def _lifetimes(spec: ProviderSpec) -> Iterator[Finding]:
    life = spec.lifetimes
    earliest, latest, access = life.margin_earliest_seconds, life.margin_latest_seconds, life.access_seconds
    if earliest is not None and latest is not None and latest > earliest:
        yield ("lifetimes", "margin_latest_seconds"), f"is longer than margin_earliest_seconds ({earliest})"
    for key, margin in (("margin_earliest_seconds", earliest), ("margin_latest_seconds", latest)):
        if margin is not None and access is not None and margin >= access:
            yield ("lifetimes", key), f"is not shorter than the access token's life ({access})"
    soonest = life.earliest_refresh_seconds
    for key, margin in (("margin_earliest_seconds", earliest), ("margin_latest_seconds", latest)):
        if margin is not None and soonest is not None and margin > soonest:
            yield (
                ("lifetimes", key),
                f"is earlier than the provider permits: earliest_refresh_seconds is {soonest}",
            )
    yield from _never_expires(spec)
    yield from _early_refresh(spec)
    idle, absolute = life.refresh_idle_seconds, life.refresh_absolute_seconds
    if idle is not None and absolute is not None and idle > absolute:
        yield ("lifetimes", "refresh_idle_seconds"), f"is longer than refresh_absolute_seconds ({absolute})"


def _never_expires(spec: ProviderSpec) -> Iterator[Finding]:
    life = spec.lifetimes
    if not life.access_never_expires:
        return
    for key in (
        "access_seconds",
        "earliest_refresh_seconds",
        "margin_earliest_seconds",
        "margin_latest_seconds",
    ):
        if getattr(life, key) is not None:
            yield ("lifetimes", key), "contradicts access_never_expires"


def _early_refresh(spec: ProviderSpec) -> Iterator[Finding]:
    """Report what leaves no moment at which a refresh is both allowed and in time."""
    life = spec.lifetimes
    window, access, idle = life.earliest_refresh_seconds, life.access_seconds, life.refresh_idle_seconds
    if window is None:
        return
    location: Location = ("lifetimes", "earliest_refresh_seconds")
    if window < MINIMUM_MARGIN_SECONDS:
        yield location, f"is shorter than {MINIMUM_MARGIN_SECONDS}: no refresh would be in time"
    if access is not None and idle is not None and access - window > idle:
        yield location, f"allows no refresh before an unused refresh token dies ({idle})"


def _rate(spec: ProviderSpec) -> Iterator[Finding]:
    if spec.rate.burst is not None and spec.rate.requests_per_second is None:
        yield ("rate", "burst"), "has no meaning without requests_per_second"
    if spec.rate.remaining_header is not None and spec.rate.reset_header is None:
        yield (
            ("rate", "remaining_header"),
            "has no meaning without reset_header, which says how long to pause",
        )
    if "reset_format" in spec.rate.model_fields_set and spec.rate.reset_header is None:
        yield ("rate", "reset_format"), "has no meaning without reset_header"


def _probe(spec: ProviderSpec) -> Iterator[Finding]:
    if spec.probe and (both := sorted(set(spec.probe.alive_status) & set(spec.probe.dead_status))):
        yield ("probe", "dead_status"), f"has {both[0]}, which means by alive_status that the token works"
    for status in spec.probe.dead_status if spec.probe else ():
        if status == 429 or not 400 <= status <= 499:
            yield ("probe", "dead_status"), f"has {status}, which says nothing of a token"
