"""Mistakes in error rules that no single value shows: what can never fit, and what would say too much.

A rule that never fits is a promise that the engine does not keep; one that fits more than its author meant gives up
customers (G4) or throws away an answer that came with a new refresh token (G3).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from providers.coverage import Coverage
from providers.problems import Location
from providers.rules import scalar_text
from providers.spec_answers import ErrorRule

BODILESS: Final = frozenset({204, 304})
"""Statuses whose answers end with their head (RFC 9110 section 6.4.1)."""

APP_OUTCOMES: Final = frozenset({"client_rejected", "throttled"})
"""Outcomes that may concern everybody of an app."""

OUTAGE_STATUSES: Final = frozenset({429, 502, 503, 504, "5xx"})
"""Statuses of somebody who is not at home, and may be a proxy: none of them can be about one grant."""
OUTAGE_WORDS: Final = frozenset({"server_error", "temporarily_unavailable"})

_LISTS: Final = ("status", "path", "value", "pattern")


def rule_mistakes(rules: Sequence[ErrorRule]) -> Iterator[tuple[Location, str]]:
    """Yield every mistake in ``rules``: where it stands, and the reason in plain words."""
    coverage = Coverage(rules)
    for position, rule in enumerate(rules):
        location: Location = ("errors", position)
        for key, reason in (*_lists(rule), *_reach(rule), *_values(rule)):
            yield (*location, *key), reason
        yield from _taken(coverage, rule, position)


_Key = tuple[str | int, ...]


def _lists(rule: ErrorRule) -> Iterator[tuple[_Key, str]]:
    for name in _LISTS:
        if name in rule.model_fields_set and not getattr(rule, name):
            yield (name,), "is empty: leave it out, or say what is expected"


def _reach(rule: ErrorRule) -> Iterator[tuple[_Key, str]]:
    """Say where a rule would fit more than its outcome may be concluded from."""
    any_value = not rule.value and not rule.pattern
    if not rule.path:
        if not any_value:
            key = "value" if rule.value else "pattern"
            yield (key,), "needs a path that says where in the answer to look"
        elif rule.outcome == "grant_rejected":
            yield (), "would give up a grant by the status alone, which any proxy can send: add a path"
        elif not rule.status:
            yield (), "would fit every answer: add a status or a path"
        elif any(str(status).startswith("2") for status in rule.status):
            yield (
                ("status",),
                "would take a success that was cut off for an error and lose its token: add a path",
            )
    elif rule.outcome == "grant_rejected" and (outage := OUTAGE_STATUSES & set(rule.status)):
        yield (
            ("status",),
            f"has {min(map(str, outage))}, which asks us to come again: no grant is given up by it",
        )
    elif rule.outcome == "grant_rejected" and (outage := OUTAGE_WORDS & set(map(str, rule.value))):
        yield (
            ("value",),
            f"has {min(map(str, outage))!r}, which asks us to come again: no grant is given up by it",
        )
    elif any_value and rule.outcome == "grant_rejected":
        yield ("path",), "would give up a grant whatever stands there: add the values that mean it"
    if rule.affects == "app" and rule.outcome not in APP_OUTCOMES:
        yield (
            ("affects",),
            f"contradicts {rule.outcome}: only client_rejected and throttled can concern the whole app",
        )


def _values(rule: ErrorRule) -> Iterator[tuple[_Key, str]]:
    for index, value in enumerate(rule.value):
        if scalar_text(value) is None:
            yield ("value", index), f"is {value}, which no answer is compared with: 18 digits are the most"
    if rule.path and rule.status and set(rule.status) <= BODILESS:
        yield ("path",), f"can never fit: an answer of {rule.status[0]} has no body"
    elif rule.path:
        for index, status in enumerate(rule.status):
            if status in BODILESS:
                yield (
                    ("status", index),
                    f"can never fit: an answer of {status} has no body to find the path in",
                )


def _taken(coverage: Coverage, rule: ErrorRule, position: int) -> Iterator[tuple[Location, str]]:
    """Say what earlier rules take from the one at ``position``: all of it, or single things that it names."""
    location: Location = ("errors", position)
    if takers := coverage.whole(position):
        together = "fits" if len(takers.rules) == 1 else "together fit"
        yield location, f"can never fit: {takers} {together} everything that it would"
        return
    for index, status in enumerate(rule.status):
        if isinstance(status, int) and (takers := coverage.status(position, status)):
            yield (
                (*location, "status", index),
                f"is {status}, which never comes here: {takers} {_take(takers.rules)}",
            )
    for index, value in enumerate(rule.value):
        text = scalar_text(value)
        if text is not None and (takers := coverage.value(position, text)):
            yield (
                (*location, "value", index),
                f"is {value!r}, which never comes here: {takers} {_take(takers.rules)}",
            )
    for index, pattern in enumerate(rule.pattern):
        if takers := coverage.pattern(position, pattern):
            yield (*location, "pattern", index), f"never comes here: {takers} {_take(takers.rules)}"


def _take(takers: frozenset[int]) -> str:
    return "takes it" if len(takers) == 1 else "take it"
