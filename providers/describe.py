"""A definition in plain language, for ``tokenfleet providers show``.

Everything that the engine will do with an answer is said here in words; nothing is said that it does not do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Final

from providers.loading import validate_paths
from providers.registry import Provider
from providers.spec import ProviderSpec
from providers.spec_answers import Condition, ErrorRule
from tokenfleet.lifetimes import UNKNOWN_LIFETIME_INTERVAL, warning_period
from tokenfleet.tokens import Margins

__all__ = ["describe", "validate_paths"]

_CLIENT: Final[Mapping[str, str]] = {
    "client_secret_basic": "with client id and secret in the Authorization header (client_secret_basic)",
    "client_secret_post": "with client id and secret among the parameters (client_secret_post)",
    "none": "with its client id alone (a public client)",
}
_ROTATION: Final[Mapping[str, str]] = {
    "never": "stays the same at every refresh",
    "sometimes": "is replaced by some refreshes: whatever comes back is kept, else the old one",
    "always": "is replaced by every refresh",
}
_OUTCOMES: Final[Mapping[str, str]] = {
    "grant_rejected": "the grant is gone, the customer has to sign in again",
    "client_rejected": "our client is rejected, the whole app is held",
    "throttled": "asked too often, the app waits",
    "unavailable": "their fault, asked again later",
    "request_rejected": "our request is wrong, operators are told",
    "undescribed": "unclear, asked again before anyone is told",
}
_CONNECTION: Final[Mapping[str, str]] = {
    "client_rejected": "our client is rejected for this connection, which is set apart; operators are told",
    "throttled": "asked too often, this connection waits",
    "unavailable": "their fault, but nobody else's: asked again later",
}
"""The same where only one connection is concerned, if that makes a difference."""
_THEN: Final = (
    "Then: the error codes of RFC 6749; 429, and 503 with Retry-After: wait; other 5xx, redirects and "
    "errors that are not JSON: their fault; any other error: unclear, asked again before anyone is told"
)
_UNITS: Final = (("day", 86_400), ("hour", 3600), ("minute", 60), ("second", 1))


def describe(provider: Provider) -> list[str]:
    """Return the explanation of ``provider``, one statement a line."""
    spec = provider.spec
    lines = [
        f"{spec.display_name} ({spec.name}), {spec.category.replace('_', ' ')}",
        f"Documentation: {spec.documentation}",
        f"Confidence: {spec.confidence}, checked {spec.checked.isoformat()}; defined in {provider.origin}",
        *_request(spec),
        *_variables(spec),
        *_lifetimes(spec, provider.margins),
        *_rotation(spec),
        *_success(spec),
        *map(_rule, spec.errors),
        _THEN,
        *_pace(provider),
        *_further(spec),
        *(f"Not confirmed: {statement}" for statement in spec.unverified),
    ]
    if spec.notes:
        lines.append(f"Notes: {' '.join(spec.notes.split())}")
    return lines


def duration_text(duration: timedelta | int) -> str:
    """Return ``duration`` (or that many seconds) in its two largest units: ``1 day 2 hours``."""
    rest = int(duration.total_seconds() if isinstance(duration, timedelta) else duration)
    parts: list[str] = []
    for unit, size in _UNITS:
        count, rest = divmod(rest, size)
        if count:
            parts.append(f"{count} {unit}{'s' * (count != 1)}")
    return " ".join(parts[:2]) or "0 seconds"


def _request(spec: ProviderSpec) -> Iterator[str]:
    refresh = spec.refresh
    how = "parameters in the query" if refresh.method == "GET" else f"a {refresh.body} body"
    yield f"Refresh: {refresh.method} {refresh.endpoint} with {how}, {_CLIENT[spec.client.authentication]}"
    renamed = {field: getattr(refresh.names, field) for field in sorted(refresh.names.model_fields_set)}
    if renamed:
        yield f"Renamed parameters: {', '.join(f'{field} is {name}' for field, name in renamed.items())}"
    for name, value in refresh.parameters.items():
        yield f"Further parameter: {name}={value}"
    for name, value in refresh.headers.items():
        yield f"Further header: {name}: {value}"


def _variables(spec: ProviderSpec) -> Iterator[str]:
    for name, variable in spec.variables.items():
        line = f"Variable {name} ({variable.kind}): {variable.description}"
        if variable.from_answer:
            line += f"; taken from each answer at {_either(variable.from_answer)}"
        if variable.pattern:
            line += f"; has the form {_either(variable.pattern)}"
        yield f"{line}; {variable.default} unless told otherwise" if variable.default else line


def _lifetimes(spec: ProviderSpec, margins: Margins) -> Iterator[str]:
    life = spec.lifetimes
    latest, earliest = duration_text(margins.latest), duration_text(margins.earliest)
    known = f"else {duration_text(life.access_seconds)}" if life.access_seconds else f"else {_unknown(spec)}"
    if life.access_never_expires:
        yield "Access token: lives until it is revoked, so it is not renewed"
    else:
        yield (
            f"Access token: lives as long as the answer says, {known}; renewed {latest} to {earliest} before its "
            "end, later for short lives"
        )
    if life.earliest_refresh_seconds:
        window = duration_text(life.earliest_refresh_seconds)
        yield f"Early refresh: refused longer than {window} before the access token's end, so nobody asks for one"
    if life.refresh_idle_seconds:
        idle = duration_text(life.refresh_idle_seconds)
        yield f"Refresh token: dies after {idle} without use, and is used before, 70 to 85 % of that after its last use"
    if life.refresh_absolute_seconds:
        ahead = duration_text(warning_period(timedelta(seconds=life.refresh_absolute_seconds)))
        yield (
            f"Grant: ends {duration_text(life.refresh_absolute_seconds)} after consent, whatever its use; the "
            f"customer is told {ahead} before"
        )


def _unknown(spec: ProviderSpec) -> str:
    """Return what is done about a token whose lifetime nobody states."""
    interval = duration_text(UNKNOWN_LIFETIME_INTERVAL)
    if spec.probe is None:
        return f"unknown, and then renewed every {interval}"
    return f"unknown, and then probed every {interval} at least until its end teaches how long it lives"


def _rotation(spec: ProviderSpec) -> Iterator[str]:
    rotation = spec.rotation
    line = f"Rotation: the refresh token {_ROTATION[rotation.policy]}"
    if rotation.grace_seconds:
        line += f"; the replaced one works for another {duration_text(rotation.grace_seconds)}"
    elif rotation.policy != "never":
        line += "; the replaced one is spent at once"
    if rotation.family_revocation:
        line += "; presenting it again ends the whole grant"
    yield line
    if rotation.max_live is not None:
        per = f" for each {rotation.max_live_per}" if rotation.max_live_per else ""
        replays = (
            "" if rotation.policy == "never" else ", so one whose answers are lost is not replayed more often"
        )
        yield f"Limit: {rotation.max_live} live refresh tokens{per}{replays}"


def _success(spec: ProviderSpec) -> Iterator[str]:
    tests = "".join(f", and {_condition(condition)}" for condition in spec.answer.success)
    yield f"Success: 2xx with an access token at {_either(spec.answer.access_token)}{tests}"


def _condition(condition: Condition | ErrorRule) -> str:
    wanted = [str(value).lower() if isinstance(value, bool) else str(value) for value in condition.value]
    wanted += condition.pattern
    if isinstance(condition, Condition) and condition.absent:
        wanted.append("nothing")
    return f"{_either(condition.path)} is {_either(wanted) if wanted else 'there'}"


def _rule(rule: ErrorRule) -> str:
    meaning = _CONNECTION.get(rule.outcome) if rule.affects == "connection" else None
    statuses = _either([str(status) for status in rule.status]) or "2xx or 4xx"
    seen = f"{statuses} where {_condition(rule)}" if rule.path else statuses
    return f"Error {seen}: {meaning or _OUTCOMES[rule.outcome]}{f' ({rule.meaning})' if rule.meaning else ''}"


def _pace(provider: Provider) -> Iterator[str]:
    rate = provider.rate_per_second
    limit = f"at most {rate:g} a second in bursts of {provider.burst}" if rate else "no limit a second"
    yield f"Pace: {limit}, at most {provider.max_outstanding} under way at once, for each app"


def _further(spec: ProviderSpec) -> Iterator[str]:
    if spec.probe:
        alive, dead = (
            _either([str(status) for status in statuses])
            for statuses in (spec.probe.alive_status, spec.probe.dead_status)
        )
        scope = f"; needs the scope {spec.probe.needs_scope}" if spec.probe.needs_scope else ""
        every = duration_text(spec.probe.every_seconds)
        yield (
            f"Probe: {spec.probe.method} {spec.probe.endpoint} with the access token, every {every} unless it is "
            f"renewed sooner: {alive} while it works; {dead} leads to a refresh, and only that decides; anything "
            f"else says nothing{scope}"
        )
    if spec.revoke:
        yield f"Revocation: {spec.revoke.method} {spec.revoke.endpoint} with the {spec.revoke.token}"


def _either(texts: Sequence[str]) -> str:
    return " or ".join(texts)
