"""Where an answer has what, what makes it a success, and what each error leads to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from providers.explanation.facts import Fact, either, fact, one_line, scalar
from providers.explanation.unconfirmed import Topic
from providers.spec import ProviderSpec
from providers.spec_answers import AnswerFields, Condition, Duration, ErrorRule, Moment
from providers.spec_requests import ProbeRule

OUTCOMES: Final[Mapping[str, str]] = {
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
    "the error codes of RFC 6749; 429, and 503 with Retry-After: wait; other 5xx, redirects and errors that are not "
    "JSON: their fault; any other error: unclear, asked again before anyone is told."
)
_FORMATS: Final[Mapping[str, str]] = {
    "epoch_seconds": "seconds since 1970",
    "epoch_milliseconds": "milliseconds since 1970",
    "iso8601": "ISO 8601",
    "http_date": "an HTTP date",
    "number": "a number",
    "days_hours_minutes": "days:hours:minutes",
    "hours_minutes_seconds": "hours:minutes:seconds",
}
_DEFAULT: Final = AnswerFields()


def answer_facts(spec: ProviderSpec) -> Iterator[Fact]:
    """Yield how a success is told, and where it has what."""
    yield from fields(spec.answer, "Answer")
    tests = "".join(f", and {condition_text(condition)}" for condition in spec.answer.success)
    yield fact(
        "Success", f"2xx with an access token at {either(spec.answer.access_token)}{tests}.", Topic.ANSWER
    )
    if spec.answer.keeps_access_token:
        yield fact(
            "Success without access token",
            "is one too: the access token that we have lives on from then, as long as one lives that has just come.",
            Topic.ANSWER,
        )


def fields(answer: AnswerFields, label: str) -> Iterator[Fact]:
    """Yield where ``answer`` has its tokens and their ends, told of ``label``."""
    places = [f"the refresh token at {either(answer.refresh_token)}"]
    if answer.token_type != _DEFAULT.token_type:
        places.append(f"the token type at {either(answer.token_type)}")
    if answer.scope != _DEFAULT.scope:
        places.append(f"the scope at {either(answer.scope)}")
    yield fact(label, f"the access token stands at {either(answer.access_token)}, {', '.join(places)}.")
    yield fact(
        f"{label}, expiry",
        f"{_duration(answer.expires_in)}{_moment(answer.expires_at)}.",
        Topic.ANSWER,
    )
    if (answer.refresh_token_expires_in, answer.refresh_token_expires_at) != (
        _DEFAULT.refresh_token_expires_in,
        None,
    ):
        told = f"{_duration(answer.refresh_token_expires_in)}{_moment(answer.refresh_token_expires_at)}"
        yield fact(f"{label}, refresh token's expiry", f"{told}.", Topic.ANSWER)


def error_facts(spec: ProviderSpec) -> Iterator[Fact]:
    """Yield the rules for errors in the order in which they are tried, and what follows them."""
    for rule in spec.errors:
        yield _rule(rule)
    yield fact("Then", _THEN)


def rule_codes(rule: ErrorRule) -> frozenset[str]:
    """Return the words by which people speak of ``rule``."""
    return frozenset({*map(scalar, rule.value), *([rule.code] if rule.code else ())})


def rule_seen(rule: ErrorRule) -> str:
    """Return what an error looks like that ``rule`` fits: ``400 where error is x``."""
    statuses = either(rule.status) or "2xx or 4xx"
    return f"{statuses} where {condition_text(rule)}" if rule.path else statuses


def condition_text(condition: Condition | ErrorRule | ProbeRule) -> str:
    """Return what ``condition`` wants of an answer: ``ok is true``."""
    wanted = [scalar(value) for value in condition.value]
    wanted += (f"like {pattern}" if pattern in condition.value else pattern for pattern in condition.pattern)
    if isinstance(condition, Condition) and condition.absent:
        wanted.append("nothing")
    return f"{either(condition.path)} is {either(wanted) if wanted else 'there'}"


def _rule(rule: ErrorRule) -> Fact:
    led_to = _CONNECTION.get(rule.outcome) if rule.affects == "connection" else None
    text = led_to or OUTCOMES[rule.outcome]
    if rule.affects and led_to is None:
        text += ", for this connection alone" if rule.affects == "connection" else ", for the whole app"
    if rule.meaning:
        text += f" ({one_line(rule.meaning)})"
    if rule.code:
        text += f"; told as {rule.code}"
    return Fact(f"Error {rule_seen(rule)}", f"{text}.", frozenset({Topic.ERRORS}), rule_codes(rule))


def _duration(duration: Duration) -> str:
    form = "" if duration.format == "number" else f", written {_FORMATS[duration.format]}"
    never = "; 0 means that it lives until it is revoked" if duration.zero_is_never else ""
    return f"counted from our receipt in {duration.unit} at {either(duration.path)}{form}{never}"


def _moment(moment: Moment | None) -> str:
    return f"; or a moment at {either(moment.path)}, {_FORMATS[moment.format]}" if moment else ""
