"""Error rules that contradict themselves, say too much, or never get anything: each told with its key and a reason."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from providers import load_registry
from providers.coverage import Coverage
from providers.problems import key_text
from providers.rule_mistakes import rule_mistakes
from providers.rules import CompiledRule
from providers.spec_answers import ErrorRule


def mistakes(text: str) -> list[str]:
    """Return the mistakes in the rules of ``text``, as their author is told them."""
    rules = [ErrorRule.model_validate(each) for each in tomllib.loads(text)["errors"]]
    return [f"{key_text(location)} {reason}" for location, reason in rule_mistakes(rules)]


def rules(*lines: str) -> str:
    return "".join(f"[[errors]]\n{line}\n".replace("; ", "\n") for line in lines)


THROTTLED, UNAVAILABLE, REJECTED = (
    'outcome = "throttled"',
    'outcome = "unavailable"',
    'outcome = "grant_rejected"',
)

MISTAKES = {
    "taken by several earlier rules together": (
        rules(
            f'{THROTTLED}; status = 400; path = "error"; value = ["slow", "busy"]',
            f'{UNAVAILABLE}; status = 401; path = "error"; pattern = "*S*"',
            f'{REJECTED}; status = [400, 401]; path = "error"; value = "slow"',
        ),
        "errors[3] can never fit: errors[1] and errors[2] together fit everything that it would",
    ),
    "taken value by value": (
        rules(
            f'{THROTTLED}; path = ["code", "error"]; value = 1',
            f'{UNAVAILABLE}; path = "error"; value = "2"',
            f'{REJECTED}; path = "error"; value = [1, 2]',
        ),
        "errors[3] can never fit: errors[1] and errors[2] together fit everything that it would",
    ),
    "taken by a rule for a whole class": (
        rules(f'{UNAVAILABLE}; status = "4xx"', f'{REJECTED}; status = 403; path = "error"; value = "gone"'),
        "errors[2] can never fit: errors[1] fits everything that it would",
    ),
    "taken by a wider pattern": (
        rules(
            f'{THROTTLED}; path = "message"; pattern = "*limit*"',
            f'{UNAVAILABLE}; path = "message"; pattern = "rate limit*reached"',
        ),
        "errors[2] can never fit: errors[1] fits everything that it would",
    ),
    "taken by a path to every element": (
        rules(
            f'{THROTTLED}; path = "errors[].code"; value = "x"',
            f'{REJECTED}; path = "errors[0].code"; value = "x"',
        ),
        "errors[2] can never fit: errors[1] fits everything that it would",
    ),
    "a value that goes elsewhere": (
        rules(
            f'{THROTTLED}; path = "error"; value = "slow"',
            f'{REJECTED}; status = 400; path = "error"; value = ["gone", "slow"]',
        ),
        "errors[2].value[2] is 'slow', which never comes here: errors[1] takes it",
    ),
    "a pattern that goes elsewhere": (
        rules(
            f'{THROTTLED}; path = "error"; pattern = "*slow*"',
            f'{REJECTED}; path = "error"; value = "gone"; pattern = "too slow*"',
        ),
        "errors[2].pattern[1] never comes here: errors[1] takes it",
    ),
    "a status that goes elsewhere": (
        rules(f"{UNAVAILABLE}; status = 403", f'{REJECTED}; status = [400, 403]; path = "error"; value = "gone"'),
        "errors[2].status[2] is 403, which never comes here: errors[1] takes it",
    ),
    "a status without a body": (
        rules(f'{UNAVAILABLE}; status = 304; path = "error"; value = "gone"'),
        "errors[1].path can never fit: an answer of 304 has no body",
    ),
    "a status without a body among others": (
        rules(f'{UNAVAILABLE}; status = [400, 204]; path = "error"; value = "gone"'),
        "errors[1].status[2] can never fit: an answer of 204 has no body to find the path in",
    ),
    "a number that is compared with nothing": (
        rules(f'{UNAVAILABLE}; path = "code"; value = [1, 1000000000000000000]'),
        "errors[1].value[2] is 1000000000000000000, which no answer is compared with: 18 digits are the most",
    ),
    "an empty list": (
        rules(f'{UNAVAILABLE}; path = "code"; value = []'),
        "errors[1].value is empty: leave it out, or say what is expected",
    ),
    "a grant given up by the status": (
        rules(f"{REJECTED}; status = 401"),
        "errors[1] would give up a grant by the status alone, which any proxy can send: add a path",
    ),
    "a grant given up whatever stands there": (
        rules(f'{REJECTED}; status = 400; path = "code"'),
        "errors[1].path would give up a grant whatever stands there: add the values that mean it",
    ),
    "a success without a body": (
        rules(f"{UNAVAILABLE}; status = 200"),
        "errors[1].status would take a success that was cut off for an error and lose its token: add a path",
    ),
    "a grant that is everybody's": (
        rules(f'{REJECTED}; path = "code"; value = 1; affects = "app"'),
        "errors[1].affects contradicts grant_rejected: only client_rejected and throttled can concern the whole app",
    ),
    "an outage that is the app's": (
        rules(f'{UNAVAILABLE}; status = 503; affects = "app"'),
        "errors[1].affects contradicts unavailable: only client_rejected and throttled can concern the whole app",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_a_rule_is_told_with_its_key_and_a_reason(name: str) -> None:
    text, told = MISTAKES[name]
    assert mistakes(text) == [told]


def test_rules_that_leave_something_to_later_ones_are_no_mistake() -> None:
    assert (
        mistakes(
            rules(
                f'{THROTTLED}; status = 429; affects = "connection"',
                f'{THROTTLED}; status = 400; path = "error"; value = "slow"',
                f'{REJECTED}; path = "error"; value = ["gone", "slow"]; affects = "connection"',
                f'{REJECTED}; path = "errors[].code"; value = "gone"',
                f'{UNAVAILABLE}; path = "error"; pattern = "*limit reached*"',
                f'{THROTTLED}; path = "error"; pattern = "*limit*"',
                f'{UNAVAILABLE}; status = 503; affects = "connection"',
                'outcome = "client_rejected"; path = "error"; affects = "app"',
                'outcome = "undescribed"; status = ["4xx", 302]',
            )
        )
        == []
    )


def test_no_rule_of_the_catalogue_is_dead() -> None:
    for provider in load_registry():
        assert list(rule_mistakes(provider.spec.errors)) == [], provider.name


words = st.sampled_from(["slow", "SLOW", "too slow", "gone", "7", "x"])
values = words | st.sampled_from([7, True])
patterns = st.sampled_from(["*slow*", "slow", "too*", "*o*", "s*w", "*7*", "*slow"])
paths = st.sampled_from(["error", "code", "errors[].code", "errors[0].code", "errors[1].code"])
statuses = st.sampled_from([200, 400, 401, "4xx", "2xx", 429, 503])
error_rules = st.builds(
    ErrorRule,
    outcome=st.sampled_from(["throttled", "unavailable"]),
    status=st.lists(statuses, max_size=2).map(tuple),
    path=st.lists(paths, max_size=2).map(tuple),
    value=st.lists(values, max_size=2).map(tuple),
    pattern=st.lists(patterns, max_size=2).map(tuple),
).filter(lambda rule: rule.path or not (rule.value or rule.pattern))
scalars: st.SearchStrategy[object] = words | st.sampled_from([7, 8, True, None, "", {}])
documents = st.fixed_dictionaries(
    {},
    optional={
        "error": scalars,
        "code": scalars,
        "errors": st.lists(st.fixed_dictionaries({}, optional={"code": scalars}), max_size=3),
    },
)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(error_rules, min_size=1, max_size=6),
    st.lists(
        st.tuples(st.sampled_from([200, 204, 400, 401, 404, 429, 503]), st.none() | documents), max_size=12
    ),
)
def test_what_is_called_dead_gets_no_answer(
    ordered: list[ErrorRule], answers: list[tuple[int, dict[str, Any] | None]]
) -> None:
    """Soundness, against the reader itself: no rule that an answer comes to is refused."""
    coverage, compiled = Coverage(ordered), [CompiledRule(rule) for rule in ordered]
    dead = {position for position in range(len(ordered)) if coverage.whole(position)}
    for status, document in answers:
        fitting = [
            position for position, rule in enumerate(compiled) if rule.code_for(status, document) is not None
        ]
        if fitting:
            assert fitting[0] not in dead, (status, document)
            assert coverage.status(fitting[0], status) is None
