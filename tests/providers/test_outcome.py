"""What answers mean: DESIGN section 5, case by case, and total over every input."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any, get_args
from urllib.parse import urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from providers import Answer, Failure, FailureKind, Provider, load_registry
from tests.providers.definitions import provider
from tokenfleet.outcome import (
    ClientRejected,
    GrantRejected,
    Outcome,
    OutcomeUnknown,
    Refreshed,
    RequestRejected,
    Throttled,
    TokenAnswer,
    Unavailable,
    Undescribed,
)
from tokenfleet_client.secret import Secret

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
PLAIN = provider()
JSON = {"content-type": "application/json; charset=utf-8"}
HTML = b"<!doctype html><title>403 Forbidden</title>"


def answer(body: object, status: int = 200, **headers: str) -> Answer:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Answer(status, JSON | {name.replace("_", "-"): value for name, value in headers.items()}, data)


def read(exchange: Answer | Failure, by: Provider = PLAIN) -> Outcome:
    return by.read(exchange, now=NOW)


def tokens(body: dict[str, Any], by: Provider = PLAIN) -> TokenAnswer:
    outcome = read(answer({"access_token": "at-1"} | body), by)
    assert isinstance(outcome, Refreshed)
    return outcome.answer


def test_a_token_response_is_read_whole() -> None:
    outcome = read(
        answer(
            {
                "access_token": "at-1",
                "token_type": "Bearer",
                "expires_in": 3600,
                "refresh_token": "rt-2",
                "refresh_token_expires_in": 86400,
                "scope": "a b",
            }
        )
    )
    assert outcome == Refreshed(
        TokenAnswer(
            access_token=Secret("at-1"),
            token_type="Bearer",
            expires_at=NOW + timedelta(hours=1),
            refresh_token=Secret("rt-2"),
            refresh_token_expires_at=NOW + timedelta(days=1),
            scope="a b",
        )
    )


def test_what_is_not_returned_is_none() -> None:
    assert tokens({}) == TokenAnswer(access_token=Secret("at-1"))
    assert tokens({"refresh_token": None, "scope": None, "expires_in": None}) == tokens({})
    assert tokens({"refresh_token": "", "error": None}).refresh_token is None


def test_any_2xx_is_a_success_and_a_list_of_scopes_is_a_scope() -> None:
    assert isinstance(read(answer({"access_token": "at-1"}, status=201)), Refreshed)
    assert tokens({"scope": ["a", 1, "b"]}).scope == "a b"


def test_a_form_is_a_token_response_too() -> None:
    body = urlencode({"access_token": "at-1", "expires_in": "28800", "scope": "", "refresh_token": "rt+/="})
    outcome = read(Answer(200, {"content-type": "application/x-www-form-urlencoded"}, body.encode()))
    assert isinstance(outcome, Refreshed)
    assert outcome.answer.refresh_token == Secret("rt+/=")
    assert outcome.answer.expires_at == NOW + timedelta(hours=8)


@pytest.mark.parametrize("told", ["3600", 3600.0, " 3600 ", "3600.0"])
def test_lifetimes_come_as_numbers_and_as_text(told: object) -> None:
    assert tokens({"expires_in": told}).expires_at == NOW + timedelta(hours=1)


@pytest.mark.parametrize(
    "absurd",
    [
        0, -1, "0", "-5", True, [], {}, "soon", "", "1e9", "9" * 40, 10**30, 315_360_001, 1e400, -1e400,
        float("nan"), "NaN", "0x10", "\N{ARABIC-INDIC DIGIT NINE}",
    ],
)  # fmt: skip
def test_an_absurd_lifetime_is_not_told_and_costs_nothing(absurd: object) -> None:
    outcome = tokens({"expires_in": absurd, "refresh_token": "rt-2", "refresh_token_expires_in": absurd})
    assert outcome.expires_at is None
    assert outcome.refresh_token_expires_at is None
    assert outcome.refresh_token == Secret("rt-2")


def test_a_number_of_five_thousand_digits_does_not_lose_the_tokens() -> None:
    body = b'{"access_token": "at-1", "refresh_token": "rt-2", "n": ' + b"9" * 5000 + b"}"
    outcome = read(answer(body))
    assert isinstance(outcome, Refreshed)
    assert outcome.answer.refresh_token == Secret("rt-2")


MOMENT = datetime(2026, 3, 1, 13, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("form", "told"),
    [
        ("epoch_seconds", int(MOMENT.timestamp())),
        ("epoch_seconds", str(int(MOMENT.timestamp()))),
        ("epoch_milliseconds", MOMENT.timestamp() * 1000),
        ("iso8601", "2026-03-01T13:00:00Z"),
        ("iso8601", "2026-03-01T14:00:00+01:00"),
        ("iso8601", "2026-03-01T13:00:00"),
        ("iso8601", "2026-03-01T08:30:00-0430"),
        ("iso8601", "2026-03-01T14:00:00+01"),
        ("iso8601", "2026-03-01 13:00:00 UTC"),
        ("iso8601", " 2026-03-01t13:00:00z "),
        ("iso8601", "20260301T130000Z"),
        ("http_date", "Sun, 01 Mar 2026 13:00:00 GMT"),
        ("http_date", "Sunday, 01-Mar-26 13:00:00 GMT"),
        ("http_date", "Sun Mar  1 13:00:00 2026"),
        ("http_date", "Sun, 01 Mar 2026 14:00:00 +0100"),
    ],
)
def test_absolute_expiry_is_read_in_its_format(form: str, told: object) -> None:
    by = provider(f'[answer]\nexpires_at = {{ path = "ends", format = "{form}" }}')
    assert tokens({"ends": told}, by).expires_at == MOMENT


@pytest.mark.parametrize("digits", range(1, 10))
def test_a_moment_may_have_one_to_nine_digits_of_a_second(digits: int) -> None:
    by = provider('[answer]\nexpires_at = { path = "ends", format = "iso8601" }')
    told = tokens({"ends": f"2026-03-01T13:00:00.{'5'.ljust(digits, '0')}Z"}, by).expires_at
    assert told == MOMENT + timedelta(milliseconds=500)


@pytest.mark.parametrize("form", ["epoch_seconds", "epoch_milliseconds", "iso8601", "http_date"])
@pytest.mark.parametrize(
    "told",
    [
        0, -1, 1e300, "9999-12-31T23:59:59-23:59", "0001-01-01T00:00:00+23:59", "2026-03-01T11:59:59Z", "x", [],
        "Fri, 31 Dec 9999 23:59:59 -2359", "Mon, 01 Jan 0001 00:00:00 +2359", "Sun, 01 Mar 2026 11:59:59 GMT",
        ",", "9" * 65,
    ],
)  # fmt: skip
def test_an_unbelievable_moment_is_not_told(form: str, told: object) -> None:
    by = provider(f'[answer]\nexpires_at = {{ path = "ends", format = "{form}" }}')
    assert tokens({"ends": told}, by).expires_at is None


@pytest.mark.parametrize(
    ("unit", "told"),
    [("milliseconds", 3_600_000), ("minutes", 60), ("hours", "1"), ("days", 1 / 24)],
)
def test_lifetimes_have_units(unit: str, told: object) -> None:
    by = provider(f'[answer]\nexpires_in = {{ path = ["life.left", "expires"], unit = "{unit}" }}')
    assert tokens({"life": {"left": told}}, by).expires_at == NOW + timedelta(hours=1)
    assert tokens({"expires": told}, by).expires_at == NOW + timedelta(hours=1)


@pytest.mark.parametrize(
    ("form", "told", "life"),
    [
        ("days_hours_minutes", "177:05:38", timedelta(days=177, hours=5, minutes=38)),
        ("days_hours_minutes", "0:1:00", timedelta(hours=1)),
        ("hours_minutes_seconds", "177:05:38", timedelta(hours=177, minutes=5, seconds=38)),
        ("hours_minutes_seconds", " 00:00:01 ", timedelta(seconds=1)),
    ],
)
def test_a_lifetime_may_be_three_numbers_between_colons(form: str, told: str, life: timedelta) -> None:
    by = provider(f'[answer]\nexpires_in = {{ path = "left", format = "{form}" }}')
    assert tokens({"left": told}, by).expires_at == NOW + life


@pytest.mark.parametrize("form", ["days_hours_minutes", "hours_minutes_seconds"])
@pytest.mark.parametrize(
    "told",
    [
        "00:00:00", "1:60:00", "1:00:60", "-1:00:00", "1:00", "1:00:00:00", "999999:00:00", "9999999:0:0", 3600,
        None, "\N{ARABIC-INDIC DIGIT NINE}:00:00", "1::1", [1, 0, 0],
    ],
)  # fmt: skip
def test_what_is_no_such_lifetime_is_not_told(form: str, told: object) -> None:
    by = provider(f'[answer]\nexpires_in = {{ path = "left", format = "{form}" }}')
    assert tokens({"left": told}, by).expires_at is None


NEVER = '[answer]\nexpires_in = { path = "expires_in", zero_is_never = true }\n'


@pytest.mark.parametrize("zero", [0, 0.0, "0", " 0 "])
def test_zero_for_never_is_believed_before_a_jwt_and_the_definition(zero: object) -> None:
    by = provider(
        NEVER + 'expires_at = { path = "ends", format = "epoch_seconds" }\n[lifetimes]\naccess_seconds = 40'
    )
    token = jwt(exp=int(NOW.timestamp()) + 30)
    never = tokens({"expires_in": zero, "access_token": token}, by)
    assert (never.expires_at, never.never_expires) == (None, True)
    ends = tokens({"expires_in": zero, "ends": int(NOW.timestamp()) + 20}, by)
    assert (ends.expires_at, ends.never_expires) == (NOW + timedelta(seconds=20), False), (
        "an end that is stated"
    )


@pytest.mark.parametrize("told", [None, "", False, -1, "soon", [], 0.5, 315_360_001])
def test_nothing_but_zero_means_never(told: object) -> None:
    assert not tokens({"expires_in": told}, provider(NEVER)).never_expires
    assert not tokens({"expires_in": 0}).never_expires, "only where the definition says so"


def test_a_clock_of_zeros_means_never_too() -> None:
    by = provider(
        '[answer]\nexpires_in = { path = "left", format = "days_hours_minutes", zero_is_never = true }'
    )
    assert tokens({"left": "0:00:00"}, by).never_expires


def jwt(**claims: object) -> str:
    payload = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    return f"eyJhbGciOiJub25lIn0.{payload}.c2ln"


def test_expiry_is_taken_from_the_answer_then_the_jwt_then_the_definition() -> None:
    by = provider(
        '[answer]\nexpires_at = { path = "ends", format = "epoch_seconds" }\n'
        "[lifetimes]\naccess_seconds = 40\n"
    )
    in_30, in_20 = int(NOW.timestamp()) + 30, int(NOW.timestamp()) + 20

    def seconds(body: dict[str, Any]) -> float:
        expires_at = tokens(body, by).expires_at
        assert expires_at is not None
        return (expires_at - NOW).total_seconds()

    full = {"expires_in": 10, "ends": in_20, "access_token": jwt(exp=in_30)}
    assert seconds(full) == 10
    assert seconds(full | {"expires_in": 0}) == 20
    assert seconds(full | {"expires_in": 0, "ends": 5}) == 30
    assert seconds({"access_token": jwt(exp=5)}) == 40
    assert seconds({}) == 40
    assert tokens({"access_token": "a.b.c"}).expires_at is None


@pytest.mark.parametrize(
    "token",
    [
        "..",
        "a..c",
        "a.b.c.d",
        "a.é.c",
        f"a.{'A' * 99999}.c",
        jwt(exp="x"),
        jwt(exp=True),
        jwt(exp=10**40),
        jwt(),
    ],
)
def test_a_token_that_is_no_jwt_tells_nothing(token: str) -> None:
    assert tokens({"access_token": token}).expires_at is None


def test_tokens_that_cannot_be_stored_are_no_tokens() -> None:
    unusable: tuple[object, ...] = ("\ud800", 5, ["x"], {}, True, "a\N{REPLACEMENT CHARACTER}b")
    for bad in unusable:
        assert isinstance(read(answer({"access_token": bad})), Undescribed)
        assert tokens({"refresh_token": bad}).refresh_token is None
    assert tokens({"refresh_token": "pässt"}).refresh_token == Secret("pässt")


def test_fields_are_found_where_the_definition_says() -> None:
    by = provider(
        '[answer]\naccess_token = ["body.token", "token"]\nrefresh_token = "body.renew[0]"\n'
        '[[answer.success]]\npath = "status"\nvalue = 0\n'
    )
    assert read(answer({"status": 0, "body": {"token": "at-1", "renew": ["rt-2"]}}), by) == Refreshed(
        TokenAnswer(access_token=Secret("at-1"), refresh_token=Secret("rt-2"))
    )
    assert isinstance(read(answer({"status": 503, "body": {"token": "at-1"}}), by), Undescribed)
    assert isinstance(read(answer({"token": "at-1"}), by), Undescribed)


@pytest.mark.parametrize(
    ("condition", "good", "bad"),
    [
        ('path = "ok"\nvalue = true', {"ok": True}, {"ok": False}),
        ('path = "ok"\nvalue = true', {"ok": "true"}, {}),
        ('path = "errcode"\nvalue = 0\nabsent = true', {"errcode": 0}, {"errcode": 1}),
        ('path = "errcode"\nvalue = 0\nabsent = true', {}, {"errcode": "1"}),
        ('path = "error"\nabsent = true', {"error": None}, {"error": {}}),
        ('path = "kind"\npattern = "user*"', {"kind": "user-token"}, {"kind": "bot"}),
        ('path = "id"', {"id": "x"}, {"id": ""}),
    ],
)
def test_success_tests(condition: str, good: dict[str, Any], bad: dict[str, Any]) -> None:
    by = provider(f"[[answer.success]]\n{condition}\n")
    assert isinstance(read(answer({"access_token": "at-1"} | good), by), Refreshed)
    assert not isinstance(read(answer({"access_token": "at-1"} | bad), by), Refreshed)


def test_values_are_captured_if_their_declaration_permits_them() -> None:
    by = provider(
        '[variables.api]\ndescription = "API base"\nkind = "url"\nfrom_answer = "instance_url"\n'
        '[variables.team]\ndescription = "team"\nkind = "digits"\nfrom_answer = ["team.id", "team_id"]\n'
    )
    assert tokens({"instance_url": "https://eu1.example.com", "team": {"id": 12}}, by).variables == {
        "api": "https://eu1.example.com",
        "team": "12",
    }
    assert tokens({"instance_url": "http://evil.example", "team_id": "x"}, by).variables == {}
    assert tokens({"instance_url": None, "team": [], "team_id": "7"}, by).variables == {"team": "7"}


RFC = {
    "invalid_grant": GrantRejected,
    "invalid_client": ClientRejected,
    "unauthorized_client": ClientRejected,
    "invalid_request": RequestRejected,
    "unsupported_grant_type": RequestRejected,
    "invalid_scope": RequestRejected,
    "server_error": Unavailable,
    "temporarily_unavailable": Unavailable,
}


@pytest.mark.parametrize("status", [200, 400, 401, 403])
@pytest.mark.parametrize("code", RFC)
def test_error_codes_of_the_rfc(code: str, status: int) -> None:
    body = {"error": code, "error_description": "a sentence with at-1 in it"}
    assert read(answer(body, status)) == RFC[code](code)


@pytest.mark.parametrize("status", [301, 302, 307, 500, 502, 503, 504, 599])
@pytest.mark.parametrize("body", [{"error": "invalid_grant"}, {"access_token": "at-1"}, HTML, b""])
def test_outages_and_redirects_say_nothing_about_a_grant(status: int, body: object) -> None:
    assert read(answer(body, status)) == Unavailable(f"http_{status}", outage=status >= 500)


@pytest.mark.parametrize("status", [-5, 0, 99, 301, 404, 408, 425, 600, 999])
def test_a_status_that_is_no_5xx_is_no_outage(status: int) -> None:
    assert read(answer(HTML, status)) == Unavailable(
        f"http_{status}" if 100 <= status <= 999 else "http_invalid"
    )


def test_too_many_requests_say_nothing_about_a_grant() -> None:
    assert read(answer({"error": "invalid_grant"}, 429)) == Throttled("http_429")


@pytest.mark.parametrize("status", [400, 401, 403, 404, 407, 408])
@pytest.mark.parametrize("body", [HTML, b"", b"invalid_grant", b'"invalid_grant"', b'{"error": "invalid_gr'])
def test_errors_that_cannot_be_read_are_no_word_about_a_grant(status: int, body: bytes) -> None:
    assert read(answer(body, status)) == Unavailable(f"http_{status}")


@pytest.mark.parametrize(
    ("flaw", "broken_off"),
    [("answer_cut", True), ("timeout", True), ("answer_too_large", False), ("bad_encoding", False)],
)
def test_a_flawed_success_may_have_rotated_and_one_that_broke_off_is_an_outage(
    flaw: str, broken_off: bool
) -> None:
    assert read(Answer(200, JSON, b"", flaw)) == OutcomeUnknown(flaw, outage=broken_off)
    assert read(Answer(400, JSON, b"", flaw)) == Unavailable("http_400", outage=broken_off)
    assert read(Answer(503, JSON, b"", flaw)) == Unavailable("http_503", outage=True)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (HTML, "unreadable_answer"),
        (b"", "empty_answer"),
        (b'{"access_token": "at', "unreadable_answer"),
        (b'"at-1"', "unreadable_answer"),
        (b"null", "unreadable_answer"),
        (b"[" * 100_000, "unreadable_answer"),
        (b'leading {"access_token": "at-1"}', "unreadable_answer"),
    ],
)
def test_a_success_that_cannot_be_read_may_have_rotated(body: bytes, code: str) -> None:
    assert read(answer(body)) == OutcomeUnknown(code)


def test_failures_are_judged_by_whether_the_request_left() -> None:
    for code in ("connect_refused", "dns_failed", "tls_failed"):
        assert read(Failure(FailureKind.NOT_SENT, code)) == Unavailable(code, outage=True)
    for code in ("timeout", "connection_lost", "garbled_answer"):
        assert read(Failure(FailureKind.ANSWER_LOST, code)) == OutcomeUnknown(code, outage=True)


@pytest.mark.parametrize("code", ["claim_expired", "unusable_request"])
def test_what_we_ourselves_did_not_send_is_nobodys_outage(code: str) -> None:
    assert read(Failure(FailureKind.NOT_SENT, code)) == Unavailable(code)


@pytest.mark.parametrize(
    ("value", "wait"),
    [
        ("0", 0),
        ("120", 120),
        (" 7 ", 7),
        (format_datetime(NOW + timedelta(seconds=90), usegmt=True), 90),
        (format_datetime(NOW - timedelta(seconds=90), usegmt=True), 0),
        ("Sun, 01 Mar 2026 12:00:30", 30),
    ],
)
def test_retry_after_is_seconds_or_a_date(value: str, wait: int) -> None:
    for status in (429, 503):
        expected = Throttled(f"http_{status}", timedelta(seconds=wait))
        assert read(answer({}, status, retry_after=value)) == expected


@pytest.mark.parametrize("value", ["", "soon", "-5", "1.5", "9" * 50, "Sun, 99 Mar 2026", "\x00", "٣"])
def test_a_retry_after_that_cannot_be_read_is_not_there(value: str) -> None:
    assert read(answer({}, 429, retry_after=value)) == Throttled("http_429")
    assert read(answer({}, 503, retry_after=value)) == Unavailable("http_503", outage=True)


RULES = """
[[errors]]
outcome = "unavailable"
status = 400
path = "error"
value = "invalid_grant"
code = "their_fault"
pattern = "*try again*"

[[errors]]
outcome = "grant_rejected"
path = ["errors[].code", "code"]
value = ["GONE", 40030]

[[errors]]
outcome = "throttled"
status = [403, 429]
path = "message"
pattern = "*rate limit*"

[[errors]]
outcome = "client_rejected"
status = "5xx"
path = "error"
value = "bad secret!"

[[errors]]
outcome = "undescribed"
status = 404

[[errors]]
outcome = "request_rejected"
status = 400
path = "fields"
"""


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (400, {"error": "invalid_grant"}, Unavailable("their_fault")),
        (401, {"error": "invalid_grant"}, GrantRejected("invalid_grant")),
        (400, {"error": "Please TRY AGAIN later"}, Unavailable("their_fault")),
        (400, {"errors": [{"code": "X"}, {"code": "GONE"}]}, GrantRejected("gone")),
        (200, {"code": 40030}, GrantRejected("40030")),
        (200, {"code": "40030"}, GrantRejected("40030")),
        (429, {"code": "GONE"}, Throttled("http_429")),
        (500, {"code": "GONE"}, Unavailable("http_500", outage=True)),
        (403, {"message": "secondary rate limit hit"}, Throttled("rate_limit")),
        (500, {"error": "bad secret!"}, ClientRejected("bad_secret")),
        (404, HTML, Undescribed("http_404", "404 unreadable")),
        (400, {"fields": []}, RequestRejected("fields")),
        (400, {"fields": None}, Undescribed("http_400", "400 {fields:null}")),
        (200, {"access_token": "at-1", "code": "GONE"}, Refreshed(TokenAnswer(Secret("at-1")))),
    ],
)
def test_rules_of_the_definition_come_first_and_in_order(
    status: int, body: object, expected: Outcome
) -> None:
    assert read(answer(body, status), provider(RULES)) == expected


def test_a_successor_beside_an_error_is_kept_whether_a_rule_calls_it_undescribed_or_none_knows_it() -> None:
    """The provider has rotated: nothing else may be live."""
    rule = '[[errors]]\noutcome = "undescribed"\nstatus = [200]\npath = "error"\nvalue = "odd"'
    body = {"error": "odd", "refresh_token": "rt-2"}
    for by in (provider(rule), provider()):
        assert read(answer(body), by) == Undescribed(
            "odd", "200 {error:word,refresh_token:text}", Secret("rt-2")
        )


KEEPS = (
    '[answer]\nkeeps_access_token = true\nexpires_in = "expires_in"\nsuccess = [{ path = "code", value = 0 }]'
)


def test_a_success_without_access_token_keeps_ours_only_where_the_definition_says_so() -> None:
    assert read(answer({"code": 0}), provider(KEEPS)) == Refreshed(TokenAnswer(access_token=None))
    rotated = read(answer({"code": 0, "refresh_token": "rt-2"}), provider(KEEPS))
    assert rotated == Refreshed(TokenAnswer(access_token=None, refresh_token=Secret("rt-2")))
    without = provider(KEEPS.replace("true", "false"))
    assert read(answer({"code": 0}), without) == Undescribed("http_200", "200 {code:number}")
    mistaken = read(answer({"code": 0, "refresh_token": "rt-2"}), without)
    assert isinstance(mistaken, Undescribed)
    assert mistaken.refresh_token == Secret("rt-2")


@pytest.mark.parametrize("unusable", ["a\x01b", 7, [], " "])
def test_an_access_token_that_nobody_can_send_is_not_the_same_as_none(unusable: object) -> None:
    outcome = read(answer({"code": 0, "access_token": unusable, "refresh_token": "rt-2"}), provider(KEEPS))
    assert isinstance(outcome, Undescribed)
    assert outcome.refresh_token == Secret("rt-2")


@pytest.mark.parametrize(
    "exchange", [answer(b""), answer(b'{"code": 0} '[:-3]), answer(b'{"code": 0} x'), answer([])]
)
def test_what_cannot_be_read_whole_keeps_no_access_token(exchange: Answer) -> None:
    assert isinstance(read(exchange, provider(KEEPS)), OutcomeUnknown | Undescribed)


@pytest.mark.parametrize("grant", ["client_credentials", "token_exchange", "access_token"])
def test_a_grant_that_presents_no_refresh_token_takes_none_from_an_answer(grant: str) -> None:
    refresh = (
        f'endpoint = "https://auth.example.com/token"\ngrant = "{grant}"\n'
        'parameters = { subject_token_type = "urn:ietf:params:oauth:token-type:jwt" }'
    )
    by = provider(refresh=refresh, rotation='policy = "never"')
    brought = {"refresh_token": "rt-2", "refresh_token_expires_in": 60}
    assert tokens(brought, by) == TokenAnswer(access_token=Secret("at-1"))
    failed = read(answer({"error": "odd", "refresh_token": "rt-2"}), by)
    assert isinstance(failed, Undescribed)
    assert failed.refresh_token is None
    both = read(answer({"error": "invalid_grant", "access_token": "at-1", "refresh_token": "rt-2"}), by)
    assert isinstance(both, Undescribed), "an answer that contradicts itself has no definite word"


def test_a_rule_for_throttling_hears_retry_after() -> None:
    limited = answer({"message": "rate limit"}, 403, retry_after="9")
    assert read(limited, provider(RULES)) == Throttled("rate_limit", timedelta(seconds=9))


@pytest.mark.parametrize(
    ("status", "body", "code", "shape"),
    [
        (400, {"error": "consent_required", "error_description": "x"}, "consent_required",
         "400 {error:word,error_description:text}"),
        (401, {"error": {"code": 7, "inner": {"deep": {"deeper": 1}}}}, "http_401",
         "401 {error:{code:number,inner:{deep:{...}}}}"),
        (403, [{"errorCode": "X"}, 2], "http_403", "403 [{errorCode:text}]"),
        (400, {"error": "sentinel-1234", "rt-9f8e7d6c5b": None, "a b": True}, "http_400",
         "400 {?:bool,error:text,?:null}"),
        (200, {"ok": False}, "http_200", "200 {ok:bool}"),
        (418, {}, "http_418", "418 {}"),
        (400, {"code": "ITEM_LOGIN_REQUIRED", "hint": "login"}, "item_login_required", "400 {code:WORD,hint:text}"),
        (401, {"errors": [{"code": "token_dead"}]}, "token_dead", "401 {errors:[{code:word}]}"),
        (403, [{"errorCode": "INACTIVE"}], "inactive", "403 [{errorCode:WORD}]"),
        (400, {"error": "", "status": 4}, "http_400", "400 {error:empty,status:number}"),
        (400, {f"a{letter}": 1 for letter in "abcdefghijklmn"} | {"status": "gone"}, "gone",
         f"400 {{{','.join(f'a{letter}:number' for letter in 'abcdefghijk')},status:word,...}}"),
    ],
)  # fmt: skip
def test_an_error_nobody_described_leaves_its_shape(status: int, body: object, code: str, shape: str) -> None:
    assert read(answer(body, status)) == Undescribed(code, shape)


def test_a_shape_is_short() -> None:
    outcome = read(answer({f"name_{letter}": [letter] for letter in "abcdefghijklmnopqrstuvwxyz"}, 400))
    assert isinstance(outcome, Undescribed)
    assert outcome.shape.endswith(",...}")
    assert len(outcome.shape) < 250


ODD_TEXT = "accès refusé".encode("latin-1")


def test_an_error_in_another_charset_is_still_understood() -> None:
    body = b'{"error": "invalid_grant", "error_description": "' + ODD_TEXT + b'"}'
    assert read(answer(body, 400)) == GrantRejected("invalid_grant")
    assert isinstance(read(answer(b"\xef\xbb\xbf" + b'{"access_token": "at-1"}')), Refreshed)


CATALOG = {one.name: one for one in load_registry()}
SENTINEL = "s3ntinel-RT-0123456789abcdef"

MEMBERS = [
    "access_token", "refresh_token", "expires_in", "expires_at", "refresh_token_expires_in", "token_type",
    "scope", "error", "error_codes", "status", "instance_url", SENTINEL,
]  # fmt: skip

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["invalid_grant", "invalid_client", "at-1", SENTINEL, "0", "2026-03-01T13:00:00Z"]),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(
        st.sampled_from(MEMBERS)
        | st.text(max_size=5),
        inner,
        max_size=5,
    ),
    max_leaves=15,
)  # fmt: skip
bodies = st.binary(max_size=200) | json_values.map(lambda value: json.dumps(value).encode())
header_maps = st.dictionaries(
    st.sampled_from(["content-type", "retry-after", "content-encoding", "x"]),
    st.text(max_size=30) | st.sampled_from(["application/x-www-form-urlencoded", "5", "application/json"]),
    max_size=3,
)
exchanges = st.builds(
    Answer,
    st.integers(100, 599) | st.integers(),
    header_maps,
    bodies,
    st.none() | st.just("answer_cut"),
) | st.builds(Failure, st.sampled_from(FailureKind), st.just("timeout"))


@given(exchanges, st.sampled_from(sorted(CATALOG)))
def test_reading_is_total_and_repeats_nothing_that_was_said(exchange: Answer | Failure, name: str) -> None:
    outcome = CATALOG[name].read(exchange, now=NOW)
    assert isinstance(outcome, get_args(Outcome))
    if isinstance(outcome, Refreshed):
        assert isinstance(exchange, Answer)
        assert 200 <= exchange.status < 300
        assert outcome.answer.access_token
        outcome.answer.access_token.reveal().encode()
        for moment in (outcome.answer.expires_at, outcome.answer.refresh_token_expires_at):
            assert moment is None or NOW < moment <= NOW + timedelta(days=3660)
        return
    assert "s3ntinel" not in repr(outcome)
    assert outcome.code
    assert len(outcome.code) <= 64
    assert set(outcome.code) <= set("abcdefghijklmnopqrstuvwxyz0123456789_.-")
    if isinstance(outcome, GrantRejected):
        assert isinstance(exchange, Answer)
        assert exchange.flaw is None
        assert 200 <= exchange.status < 500
        assert exchange.status != 429


@given(exchanges)
def test_reading_twice_says_the_same(exchange: Answer | Failure) -> None:
    assert PLAIN.read(exchange, now=NOW) == PLAIN.read(exchange, now=NOW)
