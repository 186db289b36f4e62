"""Patterns and paths: total, linear, and strict about what they accept."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from providers.paths import Path, first
from providers.patterns import MAX_SUBJECT_CHARACTERS, Pattern

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.parametrize(
    ("pattern", "subject", "expected"),
    [
        ("invalid_grant", "invalid_grant", True),
        ("invalid_grant", "Invalid_Grant", True),
        ("invalid_grant", "invalid_grant ", False),
        ("expired*", "expired access/refresh token", True),
        ("expired*", "token expired", False),
        ("*expired*", "the token is EXPIRED now", True),
        ("*.my.example.com", "acme.my.example.com", True),
        ("*.my.example.com", "my.example.com", False),
        ("a*b*c", "a-b-c", True),
        ("a*b*c", "acb", False),
        ("ab*ba", "aba", False),
        ("ab*ba", "abba", True),
        ("a**c", "abc", True),
    ],
)
def test_a_star_stands_for_any_run_of_characters(pattern: str, subject: str, expected: bool) -> None:
    assert Pattern.compile(pattern).matches(subject) is expected


@pytest.mark.parametrize("text", ["", "*", "***", "x" * 201])
def test_a_pattern_that_says_nothing_or_too_much_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"matches everything|longer than"):
        Pattern.compile(text)


def test_no_pattern_backtracks() -> None:
    evil = Pattern.compile("*a" * 99 + "*b")
    began = time.perf_counter()
    for _ in range(100):
        assert not evil.matches("a" * MAX_SUBJECT_CHARACTERS)
    assert time.perf_counter() - began < 0.3


@given(st.text(alphabet="ab*", min_size=1, max_size=12), st.text(alphabet="ab", max_size=12))
def test_matching_agrees_with_the_definition_of_a_star(pattern: str, subject: str) -> None:
    if not pattern.strip("*"):
        return

    def matches(pattern: str, subject: str) -> bool:
        if not pattern:
            return not subject
        if pattern[0] == "*":
            return any(matches(pattern[1:], subject[cut:]) for cut in range(len(subject) + 1))
        return subject[:1] == pattern[0] and matches(pattern[1:], subject[1:])

    while "**" in pattern:
        pattern = pattern.replace("**", "*")
    assert Pattern.compile(pattern).matches(subject) is matches(pattern, subject)


@pytest.mark.parametrize(
    ("path", "document", "values"),
    [
        ("error", {"error": "x"}, ["x"]),
        ("a.b", {"a": {"b": 1}}, [1]),
        ("a.b", {"a": [1]}, []),
        ("errors[0].code", {"errors": [{"code": "A"}, {"code": "B"}]}, ["A"]),
        ("errors[].code", {"errors": [{"code": "A"}, {}, {"code": "B"}]}, ["A", "B"]),
        ("error_codes[]", {"error_codes": [1, 2]}, [1, 2]),
        ("[0].errorCode", [{"errorCode": "X"}], ["X"]),
        ("a[9]", {"a": [1]}, []),
        ("a", [], []),
    ],
)
def test_a_path_leads_to_values_or_nowhere(path: str, document: object, values: list[object]) -> None:
    assert list(Path.compile(path).values(document)) == values


@pytest.mark.parametrize(
    "text", ["", ".", "a.", ".a", "a..b", "a[", "a[-1]", "a[x]", "a b", "a[][][]", "é", "a" * 201]
)
def test_what_is_no_path_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"not a path|every element"):
        Path.compile(text)


@given(json_values, st.sampled_from(["a", "a.b", "a[]", "[0]", "[].a[]", "a[1].b"]))
def test_a_path_is_total(document: object, path: str) -> None:
    found = list(Path.compile(path).values(document))
    if isinstance(document, dict):
        assert first((Path.compile(path),), document) in (*found, None)


def test_the_first_path_with_a_value_wins() -> None:
    paths = (Path.compile("a"), Path.compile("b.c"), Path.compile("d"))
    assert first(paths, {"a": None, "b": {"c": 0}, "d": 1}) == 0
    assert first(paths, {"b": {}}) is None
