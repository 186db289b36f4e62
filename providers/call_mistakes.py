"""Mistakes in what a definition says of its probe and its revocation that no single value shows.

A probe that does not use the token, or whose answer cannot tell a good token from a dead one, is a promise that nobody
keeps; a revocation without a token ends nothing. And a probe presents no refresh token: only a refresh does (G2).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from providers.credentials import ACCESS_TOKEN, ASSERTION, REFRESH_TOKEN
from providers.patterns import Pattern
from providers.placement import (
    HEADER_AUTHENTICATIONS,
    PARAMETER_AUTHENTICATIONS,
    revoke_authentication,
    used_names,
)
from providers.problems import Location
from providers.request_contradictions import header_mistakes, json_mistakes
from providers.rule_mistakes import BODILESS
from providers.rules import scalar_text, statuses_of
from providers.spec import ProviderSpec
from providers.spec_answers import Condition
from providers.spec_requests import Probe, ProbeRule, Revoke

Finding = tuple[Location, str]

HAVE_REFRESH_TOKEN: Final = frozenset({"refresh_token", "token_exchange"})
"""Grants whose accounts have a token in the place of the refresh token."""


def call_mistakes(spec: ProviderSpec) -> Iterator[Finding]:
    """Yield every mistake in the probe and the revocation: where it stands, and the reason in plain words."""
    probe, revoke = spec.probe, spec.revoke
    if probe is not None:
        yield from header_mistakes("probe", probe.headers, "authorization" if probe.authorization else None)
        for key, reason in (
            *_request(spec, probe),
            *_probe_request(spec, probe),
            *_probe_answer(probe),
        ):
            yield ("probe", *key), reason
    if revoke is not None:
        authentication = revoke.authentication or spec.client.authentication
        has_header = authentication == "bearer" or authentication in HEADER_AUTHENTICATIONS
        yield from header_mistakes("revoke", revoke.headers, "authentication" if has_header else None)
        for key, reason in (*_request(spec, revoke), *_revoke(spec, revoke)):
            yield ("revoke", *key), reason


def call_texts(call: Probe | Revoke) -> Mapping[Location, str]:
    """Return the templates of parameters and headers, by where they stand."""
    texts: dict[Location, str] = {("parameters", name): text for name, text in call.parameters.items()}
    texts |= {("headers", name): text for name, text in call.headers.items()}
    if isinstance(call, Probe) and call.authorization:
        texts["authorization",] = call.authorization
    return texts


def _probe_request(spec: ProviderSpec, probe: Probe) -> Iterator[Finding]:
    texts = call_texts(probe)
    for key, text in texts.items():
        if REFRESH_TOKEN in used_names(spec, [text]):
            yield (
                key,
                "uses {refresh_token}, which only a refresh presents: a probe tries out the access token",
            )
    if ACCESS_TOKEN not in used_names(spec, texts.values()):
        if probe.authorization:
            yield (
                ("authorization",),
                "has no {access_token}, and nothing else has: such a probe says nothing of it",
            )
        else:
            yield (
                ("authorization",),
                "is empty, and nothing else has the {access_token}: such a probe says nothing of it",
            )


def _probe_answer(probe: Probe) -> Iterator[Finding]:
    alive, dead = set(probe.alive_status), set(probe.dead_status)
    if not alive:
        yield ("alive_status",), "is empty: no answer would ever say that the token works"
    if both := sorted(alive & dead):
        yield ("dead_status",), f"has {both[0]}, which means by alive_status that the token works"
    for status in sorted(alive):
        if status == 429 or status >= 500:
            yield ("alive_status",), f"has {status}, which says nothing of a token"
    if not dead and not probe.dead_when:
        yield ("dead_status",), "is empty, and so is dead_when: no token would ever be found dead"
    for status in probe.dead_status:
        if status == 429 or not 400 <= status <= 499:
            yield ("dead_status",), f"has {status}, which says nothing of a token"
    for index, condition in enumerate(probe.alive_when):
        if not condition.absent and alive <= BODILESS:
            yield ("alive_when", index), f"can never hold: an answer of {min(alive)} has no body"
    for index, rule in enumerate(probe.dead_when):
        for key, reason in _dead_rule(probe, rule):
            yield ("dead_when", index, *key), reason


def _dead_rule(probe: Probe, rule: ProbeRule) -> Iterator[Finding]:
    if not rule.path:
        yield ("path",), "is empty: say where in the answer to look"
    if not rule.value and not rule.pattern:
        yield (), "would call a token dead whatever stands there: add the values that mean it"
    if rule.status and set(rule.status) <= BODILESS:
        yield ("path",), f"can never fit: an answer of {rule.status[0]} has no body"
    for index, value in enumerate(rule.value):
        if scalar_text(value) is None:
            yield ("value", index), f"is {value}, which no answer is compared with: 18 digits are the most"
    if not statuses_of(rule.status) & set(probe.alive_status):
        return
    said = [condition for condition in probe.alive_when if set(condition.path) & set(rule.path)]
    for index, value in enumerate(rule.value):
        text = scalar_text(value)
        if text is not None and any(_holds_with(condition, text) for condition in said):
            yield ("value", index), f"is {value!r}, which means by alive_when that the token works"
    for index, pattern in enumerate(rule.pattern):
        if any(_overlaps(condition, pattern) for condition in said):
            yield ("pattern", index), "fits what means by alive_when that the token works"


def _holds_with(condition: Condition, text: str) -> bool:
    """Answer whether ``condition`` asks for just this ``text``, among others."""
    return any(scalar_text(value) == text for value in condition.value) or any(
        Pattern.compile(pattern).matches(text) for pattern in condition.pattern
    )


def _overlaps(condition: Condition, pattern: str) -> bool:
    compiled = Pattern.compile(pattern)
    return pattern in condition.pattern or any(
        (text := scalar_text(value)) is not None and compiled.matches(text) for value in condition.value
    )


def _revoke(spec: ProviderSpec, revoke: Revoke) -> Iterator[Finding]:
    placed = used_names(spec, call_texts(revoke).values())
    authentication = revoke_authentication(spec, revoke)
    if revoke.body == "none" and not revoke.parameter and authentication in PARAMETER_AUTHENTICATIONS:
        # Also what is inherited: the only place left would be the URL, which is logged.
        yield (
            ("authentication",),
            f"is {authentication}, which has no place because body is 'none': say how this request authenticates",
        )
    grant = spec.refresh.grant
    if revoke.token == REFRESH_TOKEN and grant not in HAVE_REFRESH_TOKEN:
        yield ("token",), f"is 'refresh_token', but accounts of the grant {grant} have none"
    elif not revoke.parameter:
        carried = placed | ({ACCESS_TOKEN} if revoke.authentication == "bearer" else set())
        if placed & spec.variables.keys():
            # The connection is named, not shown: an account's number at the provider.
            return
        if not carried & {ACCESS_TOKEN, REFRESH_TOKEN}:
            yield ("parameter",), "is empty, and nothing else carries the token: nothing would be revoked"
        elif revoke.token not in carried:
            yield (
                ("token",),
                f"is {revoke.token!r}, but parameter is empty and nothing else carries that token",
            )
    elif revoke.body == "none":
        yield (
            ("parameter",),
            f"is {revoke.parameter!r}, which has no place because body is 'none': leave it empty",
        )
    if revoke.parameter and revoke.parameter in revoke.parameters:
        yield ("parameters", revoke.parameter), "is sent as the token already"
    for index, status in enumerate(revoke.gone_status):
        if status < 300:
            yield ("gone_status", index), f"is {status}, and every 2xx means it anyway"
        elif status == 429 or status >= 500:
            yield (
                ("gone_status", index),
                f"is {status}, which asks us to come again and says nothing of a grant",
            )


def _places(spec: ProviderSpec, call: Probe | Revoke) -> dict[str, Location]:
    """Return where each parameter of a request stands, by its name."""
    places: dict[str, Location] = {}
    if isinstance(call, Revoke):
        names = spec.refresh.names
        own = [name for name in (call.parameter, names.client_id, names.client_secret) if name]
        places = dict.fromkeys(own, ("parameter",))
    return places | {name: ("parameters", name) for name in call.parameters}


def _request(spec: ProviderSpec, call: Probe | Revoke) -> Iterator[Finding]:
    """Say what neither of the two can send."""
    if call.method == "GET" and call.body in ("form", "json") and "body" in call.model_fields_set:
        yield ("body",), "has no meaning for a GET request, whose parameters are in its query"
    if call.body == "none" and call.parameters:
        yield ("parameters",), "have no place, because body is 'none'"
    if call.body == "json" and call.method != "GET":
        yield from json_mistakes(_places(spec, call))
    if spec.assertion is None:
        for key, text in call_texts(call).items():
            if ASSERTION in used_names(spec, [text]):
                yield key, "uses {assertion}, but the definition has no [assertion]"
