"""How a token is tried out, and how one is revoked."""

from __future__ import annotations

from collections.abc import Iterator

from providers.explanation.answer import condition_text
from providers.explanation.facts import Fact, assignments, duration_text, either, exact_duration, fact
from providers.explanation.unconfirmed import Topic
from providers.spec import ProviderSpec
from providers.spec_requests import Probe, ProbeRule
from tokenfleet.dead_probes import CONFIRMED_AFTER

_BEARER = "Bearer {access_token}"


def probe_facts(spec: ProviderSpec) -> Iterator[Fact]:
    """Yield the request that tries out an access token, and what its answers say."""
    probe = spec.probe
    if probe is None:
        if spec.refresh.grant == "none":
            yield fact("Probe", "none, so nobody notices when this key stops working.")
        return
    carried = "with the access token"
    if probe.authorization != _BEARER:
        carried = (
            f"with Authorization: {probe.authorization}" if probe.authorization else "without Authorization"
        )
    if probe.headers:
        carried += f", with {assignments(probe.headers, ': ')}"
    if probe.parameters:
        carried += f", with {assignments(probe.parameters)} in its {_place(probe)}"
    elif probe.body != "query":
        carried += f", with an empty {probe.body} body" if probe.body != "none" else ", without parameters"
    every = exact_duration(probe.every_seconds)
    alive = either(probe.alive_status)
    alive += "".join(f", with {condition_text(condition)}," for condition in probe.alive_when)
    dead = [*map(str, probe.dead_status), *map(_dead, probe.dead_when)]
    apart = " and then ".join(map(duration_text, CONFIRMED_AFTER))
    decides = (
        f"said {len(CONFIRMED_AFTER) + 1} times in a row, about {apart} apart, means that it is gone and the customer "
        "has to bring another"
        if spec.refresh.grant == "none"
        else "leads to a refresh, and only that decides"
    )
    scope = f"; needs the scope {probe.needs_scope}" if probe.needs_scope else ""
    unless = "" if spec.refresh.grant == "none" else " unless it is renewed sooner"
    yield fact(
        "Probe",
        f"{probe.method} {probe.endpoint} {carried}, every {every}{unless}: {alive} while it works; "
        f"{either(dead) or 'no status'} {decides}; anything else says nothing{scope}.",
        Topic.PROBE,
    )


def revoke_facts(spec: ProviderSpec) -> Iterator[Fact]:
    """Yield the request that ends a grant."""
    revoke = spec.revoke
    if revoke is None:
        return
    token = revoke.token.replace("_", " ")
    carried = f"with the {token}" + (f" as {revoke.parameter}" if revoke.parameter else " in a header alone")
    where = (
        ""
        if revoke.body == "none"
        else f" in {'its query' if revoke.method == 'GET' else f'a {revoke.body}'}"
    )
    if revoke.body == "query":
        where = " in its query"
    text = f"{revoke.method} {revoke.endpoint} {carried}{where or ', without further parameters'}"
    text += {
        None: ", authenticated as at the token endpoint",
        "none": ", without authentication",
        "bearer": ", authenticated by the access token (bearer)",
    }.get(revoke.authentication, f", authenticated by {revoke.authentication}")
    if revoke.parameters:
        text += f"; parameters {assignments(revoke.parameters)}"
    if revoke.headers:
        text += f"; headers {assignments(revoke.headers, ': ')}"
    gone = f"2xx{''.join(f' or {status}' for status in revoke.gone_status)}"
    yield fact("Revocation", f"{text}; {gone} says that it is revoked.", Topic.REVOKE)


def _dead(rule: ProbeRule) -> str:
    statuses = either(rule.status) or "2xx or 4xx"
    return f"{statuses} where {condition_text(rule)}"


def _place(probe: Probe) -> str:
    if probe.body == "query":
        return "query"
    return f"{probe.body} body"
