"""What real providers answer, said in the language of definitions: a handful of every kind of fact.

Of 777 error facts about 168 providers the language says 765. The others give up a grant for a status that any proxy can
send, or for any value at all; they have to name the word that means it.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from providers import Answer
from tests.providers.definitions import provider
from tokenfleet.outcome import ClientRejected, GrantRejected, Outcome, RequestRejected, Throttled, Unavailable

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)

FACTS: dict[str, tuple[str, int, object, Outcome]] = {
    "a client word that is about one connection (exact_online)": (
        'outcome = "grant_rejected"; status = 401; path = "error"; value = "unauthorized_client"',
        401, {"error": "unauthorized_client"}, GrantRejected("unauthorized_client"),
    ),
    "a sentence instead of a code (exact_online)": (
        ('outcome = "unavailable"; status = 400; path = "error_description"; pattern = "Rate limit exceeded*"; '
        'code = "too_early"'),
        400, {"error_description": "Rate limit exceeded: access_token not expired"}, Unavailable("too_early"),
    ),
    "a number in a list (microsoft)": (
        'outcome = "grant_rejected"; status = 400; path = "error_codes[]"; value = 50173',
        400, {"error": "invalid_grant", "error_codes": [50173]}, GrantRejected("50173"),
    ),
    "a code with a tail (dropbox)": (
        ('outcome = "grant_rejected"; status = 401; path = "error_summary"; pattern = "invalid_access_token/*"; '
        'code = "revoked"'),
        401, {"error_summary": "invalid_access_token/.."}, GrantRejected("revoked"),
    ),
    "several numbers deep down (surveymonkey)": (
        'outcome = "grant_rejected"; status = 401; path = "error.id"; value = [1011, 1012]',
        401, {"error": {"id": "1012"}}, GrantRejected("1012"),
    ),
    "a negative number within 200 (kakao)": (
        'outcome = "grant_rejected"; status = 200; path = "code"; value = -401; code = "token_dead"',
        200, {"code": -401}, GrantRejected("token_dead"),
    ),
    "our own secret (slack)": (
        'outcome = "client_rejected"; status = 200; path = "error"; value = "bad_client_secret"',
        200, {"ok": False, "error": "bad_client_secret"}, ClientRejected("bad_client_secret"),
    ),
    "a frozen shop, by the status alone (shopify)": (
        'outcome = "unavailable"; status = [402, 423]', 423, b"", Unavailable("http_423"),
    ),
    "the standard's word for something that passes (airtable)": (
        'outcome = "unavailable"; status = 409; path = "error"; value = "invalid_request"',
        409, {"error": "invalid_request"}, Unavailable("invalid_request"),
    ),
    "the same word elsewhere stays the standard's (airtable)": (
        'outcome = "unavailable"; status = 409; path = "error"; value = "invalid_request"',
        400, {"error": "invalid_request"}, RequestRejected("invalid_request"),
    ),
    "a limit that is called forbidden (github)": (
        'outcome = "throttled"; status = 403; path = "message"; pattern = "*secondary rate limit*"',
        403, {"message": "You have exceeded a secondary rate limit"}, Throttled("secondary_rate_limit"),
    ),
    "a firewall's page needs no rule (klaviyo)": (
        'outcome = "unavailable"; status = 404', 403, b"<html>blocked</html>", Unavailable("http_403"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FACTS)
def test_the_language_says_what_real_providers_answer(name: str) -> None:
    rule, status, body, meant = FACTS[name]
    by = provider("[[errors]]\n" + rule.replace("; ", "\n"))
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    assert by.read(Answer(status, {}, content), now=NOW) == meant
