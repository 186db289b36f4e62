"""A rule is suggested for what no rule describes: it validates, it fits that very answer, and it loses nobody."""

from __future__ import annotations

import json
import tomllib
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from providers import Answer, Provider
from providers.contradictions import contradictions
from providers.spec import ProviderSpec
from providers.suggestions import NOTHING_TO_NAME, TOKENS, suggest
from tests.providers.definitions import provider, toml
from tokenfleet.outcome import Outcome, Throttled, Unavailable, Undescribed

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
PLAIN = provider()


def read(by: Provider, status: int, document: object) -> Outcome:
    return by.read(Answer(status, {}, json.dumps(document).encode()), now=NOW)


def with_rule(rule: str) -> Provider:
    """Return the plain provider with ``rule`` added, which has to be a rule that validates."""
    document: dict[str, Any] = tomllib.loads(toml(rule))
    spec = ProviderSpec.model_validate(document)
    assert contradictions(spec, allow_http=False) == [], rule
    return Provider.compile(spec, origin="example.toml", allow_http=False)


names = st.sampled_from(
    [
        "error",
        "code",
        "errcode",
        "error_code",
        "errors",
        "status",
        "message",
        "error_codes",
        "a.b",
        "x-1",
        "täg",
        "9a",
    ]
) | st.text("abc_$", min_size=1, max_size=4)
leaves: st.SearchStrategy[object] = st.sampled_from(
    ["consent_required", "ITEM_GONE", "Not Found", "", None, 7, 40013, True, 1.5, "slow", "rt-1"]
)
documents = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(names, inner, max_size=4),
    max_leaves=8,
).filter(lambda document: isinstance(document, dict | list))


@settings(max_examples=250, deadline=None)
@given(st.sampled_from([400, 401, 403, 404, 200]), documents)
def test_a_suggested_rule_validates_and_fits_the_answer_that_it_was_suggested_for(
    status: int, document: object
) -> None:
    before = read(PLAIN, status, document)
    if not isinstance(before, Undescribed):
        return
    suggestion = suggest(before.code, before.shape, PLAIN.spec)
    if suggestion.rule is None:
        assert suggestion.note == NOTHING_TO_NAME
        assert status == 200
        return
    pasted = read(with_rule(suggestion.rule), status, document)
    if not isinstance(pasted, Throttled):
        assert isinstance(pasted, Undescribed), "a rule that is pasted unread changes nothing for the worse"
    decided = read(
        with_rule(suggestion.rule.replace('outcome = "undescribed"', 'outcome = "throttled"')),
        status,
        document,
    )
    assert isinstance(decided, Throttled)
    assert suggest(before.code, before.shape, with_rule(suggestion.rule).spec).described_by == "errors[1]"


@pytest.mark.parametrize(
    ("status", "document", "lines"),
    [
        (400, {"error": "consent_required", "hint": "x"},
         ['outcome = "undescribed"', "status = 400", 'path = "error"', 'value = "consent_required"']),
        (400, {"error_code": "ITEM_LOGIN_REQUIRED"},
         ['outcome = "undescribed"', "status = 400", 'path = "error_code"', 'value = "ITEM_LOGIN_REQUIRED"']),
        (400, {"error": "local_rate_limited"},
         ['outcome = "throttled"', "status = 400", 'path = "error"', 'value = "local_rate_limited"']),
        (403, {"error": {"code": "internal_failure"}},
         ['outcome = "unavailable"', "status = 403", 'path = "error.code"', 'value = "internal_failure"']),
        (401, {"errors": [{"code": "token_dead", "message": "It is."}]},
         ['outcome = "undescribed"', "status = 401", 'path = "errors[0].code"', 'value = "token_dead"']),
        (200, {"errcode": 40013, "errmsg": "It is."},
         ['outcome = "undescribed"', "status = 200", 'path = "errcode"']),
        (400, {"error_codes": [700082], "error": "Something else"},
         ['outcome = "undescribed"', "status = 400", 'path = "error_codes[]"']),
        (404, {}, ['outcome = "undescribed"', "status = 404"]),
    ],
)  # fmt: skip
def test_suggestions(status: int, document: object, lines: list[str]) -> None:
    outcome = read(PLAIN, status, document)
    assert isinstance(outcome, Undescribed)
    rule = suggest(outcome.code, outcome.shape).rule
    assert rule is not None
    assert [line for line in rule.splitlines() if not line.startswith(("#", "["))] == lines


@pytest.mark.parametrize(
    "document",
    [
        {"refresh_token": "rt-2", "token": "at-2"},
        {"data": {"refreshToken": "rt-2"}},
        {"access_token": "at-2", "refresh_token": "rt-2", "error": "partial"},
    ],
)
def test_an_answer_that_brings_tokens_needs_fields_and_no_rule(document: object) -> None:
    outcome = read(PLAIN, 200, document)
    assert isinstance(outcome, Undescribed)
    suggestion = suggest(outcome.code, outcome.shape, PLAIN.spec)
    assert (suggestion.rule, suggestion.note) == (None, TOKENS)


def test_the_definitions_own_names_for_tokens_are_known() -> None:
    renamed = provider('[answer]\nrefresh_token = "renew"')
    outcome = read(renamed, 200, {"renew": "rt-2"})
    assert isinstance(outcome, Undescribed)
    assert suggest(outcome.code, outcome.shape, renamed.spec).rule is None


def test_a_passing_error_is_guessed_and_a_rejected_grant_never() -> None:
    for word in ("refresh_token_revoked", "consent_required", "account_disabled", "bad_client_secret"):
        rule = suggest(word, "400 {error:word}").rule
        assert rule is not None
        assert 'outcome = "undescribed"' in rule
    decided = read(with_rule(suggest("service_unavailable", "400 {error:word}").rule or ""), 400,
                   {"error": "service_unavailable"})  # fmt: skip
    assert isinstance(decided, Unavailable)
