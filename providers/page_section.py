"""One provider on ``docs/providers.md``: its facts in a few short lines, defaults left out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from providers.describe import doubts_of
from providers.explanation.answer import answer_facts, condition_text, rule_codes
from providers.explanation.facts import Fact, either, exact_duration, one_line, scalar
from providers.explanation.requests import request_facts, step_facts
from providers.explanation.setup import needed_variables, setup_facts
from providers.explanation.unconfirmed import Topic, Unconfirmed
from providers.registry import burst_of
from providers.spec import ProviderSpec

GRANTS: Final[Mapping[str, str]] = {
    "refresh_token": "refresh token",
    "client_credentials": "client credentials",
    "jwt_bearer": "signed assertion",
    "token_exchange": "token exchange",
    "access_token": "the access token itself",
    "none": "never renewed",
}
"""What a renewal presents, in a word or two."""

_OUTCOMES: Final[Mapping[str, str]] = {
    "grant_rejected": "grant gone",
    "client_rejected": "client rejected",
    "throttled": "throttled",
    "unavailable": "unavailable",
    "request_rejected": "request wrong",
    "undescribed": "unclear",
}
DOUBT: Final = "**?**"
"""What follows something that nobody has confirmed."""

_TOLD_ELSEWHERE: Final = frozenset({"Refresh", "Registration", "Import line"})


def section(spec: ProviderSpec) -> Iterator[str]:
    """Yield the lines about ``spec``."""
    doubts = doubts_of(spec)
    yield f"### {spec.name}"
    yield ""
    yield (
        f"{plain(spec.display_name)} · {spec.category.replace('_', ' ')} · {GRANTS[spec.refresh.grant]} · "
        f"{spec.confidence} confidence, checked {spec.checked.isoformat()} · [documentation]({spec.documentation}) · "
        f"[definition](../providers/catalog/{spec.name}.toml)"
    )
    yield ""
    for label, text in _facts(spec, doubts):
        yield f"- **{label}:** {text}"
    if spec.notes:
        yield ""
        yield plain(one_line(spec.notes))
    yield ""


def plain(text: str) -> str:
    """Return ``text`` with what Markdown would read as something else made plain."""
    for character in ("\\", "*", "_", "<", "[", "`", "|"):
        text = text.replace(character, f"\\{character}")
    return text


def _facts(spec: ProviderSpec, doubts: Unconfirmed) -> Iterator[tuple[str, str]]:
    def marked(text: str, *topics: Topic) -> str:
        return f"{text} {DOUBT}" if doubts.covers(frozenset(topics)) else text

    yield "Renewal", marked(_renewal(spec), Topic.REQUEST, Topic.CLIENT)
    yield from _particulars(spec, doubts)
    if lifetimes := list(_lifetimes(spec)):
        yield "Lifetimes", "; ".join(marked(text, topic) for text, topic in lifetimes)
    if rotation := list(_rotation(spec)):
        yield "Rotation", "; ".join(marked(text, topic) for text, topic in rotation)
    if limits := list(_limits(spec)):
        yield "Limits", "; ".join(marked(text, topic) for text, topic in limits)
    if spec.errors:
        yield "Errors", "; ".join(_errors(spec, doubts))
    yield "Probe", marked(_probe(spec), Topic.PROBE)
    if spec.revoke:
        token = spec.revoke.token.replace("_", " ")
        yield (
            "Revocation",
            marked(f"`{spec.revoke.method} {spec.revoke.endpoint}`, the {token}", Topic.REVOKE),
        )
    if spec.unverified:
        yield "Not confirmed", plain("; ".join(map(one_line, spec.unverified)))


def _renewal(spec: ProviderSpec) -> str:
    refresh = spec.refresh
    if refresh.grant == "none":
        text = "none: the token is kept as it was imported"
    else:
        where = "query" if refresh.method == "GET" else refresh.body
        text = f"`{refresh.method} {refresh.endpoint}`, {where}, `{spec.client.authentication}`"
    if spec.client.certificate:
        text += ", with a client certificate"
    needed = needed_variables(spec)
    return f"{text}; needs {_codes(needed)}" if needed else text


def _particulars(spec: ProviderSpec, doubts: Unconfirmed) -> Iterator[tuple[str, str]]:
    """Yield what is unusual about request and answer, in the words of the explanation."""
    parts: list[Fact] = [*setup_facts(spec), *request_facts(spec), *step_facts(spec)]
    parts += (fact for fact in answer_facts(spec) if fact not in _ORDINARY)
    for fact in parts:
        if fact.label.partition(" ")[0] in ("Variable", "Connection") or fact.label in _TOLD_ELSEWHERE:
            continue
        mark = f" {DOUBT}" if doubts.covers(fact.topics, fact.codes) else ""
        yield plain(fact.label), f"{plain(fact.text).rstrip('.')}{mark}"


def _lifetimes(spec: ProviderSpec) -> Iterator[tuple[str, Topic]]:
    life = spec.lifetimes
    if life.access_never_expires:
        yield "access token until it is revoked", Topic.ACCESS_LIFE
    elif life.access_seconds:
        yield f"access token {exact_duration(life.access_seconds)}", Topic.ACCESS_LIFE
    if life.refresh_idle_seconds:
        yield f"refresh token {exact_duration(life.refresh_idle_seconds)} unused", Topic.IDLE
    if life.refresh_absolute_seconds:
        yield f"grant {exact_duration(life.refresh_absolute_seconds)} from consent", Topic.ABSOLUTE
    if life.earliest_refresh_seconds:
        yield (
            f"no refresh earlier than {exact_duration(life.earliest_refresh_seconds)} before the end",
            Topic.EARLY,
        )
    if life.minimum_age_seconds:
        yield f"no refresh in the first {exact_duration(life.minimum_age_seconds)}", Topic.AGE


def _rotation(spec: ProviderSpec) -> Iterator[tuple[str, Topic]]:
    rotation = spec.rotation
    if spec.refresh.grant != "refresh_token":
        return
    yield rotation.policy, Topic.ROTATION
    if rotation.grace_until_first_use:
        longest = f", {exact_duration(rotation.grace_seconds)} at most" if rotation.grace_seconds else ""
        yield f"the replaced one works until the new access token is first used{longest}", Topic.GRACE
    elif rotation.grace_seconds:
        yield f"the replaced one works for another {exact_duration(rotation.grace_seconds)}", Topic.GRACE
    elif rotation.policy != "never":
        yield "the replaced one is spent at once", Topic.GRACE
    if rotation.family_revocation:
        yield "presenting it again ends the whole grant", Topic.FAMILY


def _limits(spec: ProviderSpec) -> Iterator[tuple[str, Topic]]:
    rotation, rate = spec.rotation, spec.rate
    if rotation.max_live:
        per = f" for each {plain(rotation.max_live_per)}" if rotation.max_live_per else ""
        yield f"{rotation.max_live} live refresh tokens{per}", Topic.MAX_LIVE
    if rate.requests_per_second:
        yield f"{rate.requests_per_second:.12g} requests a second, bursts of {burst_of(rate)}", Topic.PACE
    if rate.max_outstanding:
        yield f"{rate.max_outstanding} under way at once", Topic.PACE
    if rate.reset_header:
        headers = [name for name in (rate.remaining_header, rate.reset_header) if name]
        yield f"told in {_codes(headers)}", Topic.PACE


def _errors(spec: ProviderSpec, doubts: Unconfirmed) -> Iterator[str]:
    """Yield each outcome with what leads to it; in which order rules are tried stands in the definition."""
    for outcome, word in _OUTCOMES.items():
        seen: dict[tuple[str, str, bool], list[str]] = {}
        for rule in spec.errors:
            if rule.outcome == outcome:
                in_doubt = doubts.covers(frozenset({Topic.ERRORS}), rule_codes(rule))
                place = ("/".join(map(str, rule.status)), "|".join(rule.path), in_doubt)
                seen.setdefault(place, []).extend((*map(scalar, rule.value), *rule.pattern))
        if seen:
            yield f"*{word}* {', '.join(_seen(*place, values) for place, values in seen.items())}"


def _seen(statuses: str, path: str, in_doubt: bool, values: list[str]) -> str:
    """Return what rules fit, in the short way: ``400 error=invalid_grant``."""
    told = f"{path}={'|'.join(dict.fromkeys(values))}" if values else path
    return f"`{f'{statuses} {told}'.strip()}`".replace("``", "") + (f" {DOUBT}" if in_doubt else "")


def _probe(spec: ProviderSpec) -> str:
    probe = spec.probe
    if probe is None:
        return "none"
    alive = either(probe.alive_status) + "".join(f" with {condition_text(one)}" for one in probe.alive_when)
    dead = [*map(str, probe.dead_status)]
    dead += (f"{either(one.status) or '2xx or 4xx'} where {condition_text(one)}" for one in probe.dead_when)
    return (
        f"`{probe.method} {probe.endpoint}` every {exact_duration(probe.every_seconds)}: {plain(alive)} alive, "
        f"{plain(either(dead)) or 'nothing'} dead"
    )


def _codes(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _ordinary() -> frozenset[Fact]:
    """Return what a definition says of answers that says nothing of its own: the page leaves that out."""
    usual = ProviderSpec.model_validate(
        {
            "name": "usual",
            "display_name": "Usual",
            "category": "usual",
            "documentation": "https://example.com",
            "confidence": "low",
            "checked": "2026-01-01",
            "client": {"authentication": "none"},
            "rotation": {"policy": "never"},
        },
        strict=False,
    )
    return frozenset(answer_facts(usual))


_ORDINARY: Final = _ordinary()
