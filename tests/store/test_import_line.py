"""One line of an import: what is accepted, what is refused in which words, and that no word is a value."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from store.import_line import FIELDS, ImportLine, LineRejected, fingerprint, parse_json, parse_record, spelled
from tokenfleet_client.secret import Secret

NOW = datetime(2026, 11, 21, 7, 0, tzinfo=UTC)
LEAST: dict[str, Any] = {"provider": "acme", "external_id": "customer-1", "refresh_token": "refresh-1"}


def parsed(**fields: Any) -> ImportLine:
    return parse_json(json.dumps({**LEAST, **fields}).encode(), now=NOW)


def refusal(line: bytes | dict[str, Any]) -> str:
    raw = line if isinstance(line, bytes) else json.dumps(line).encode()
    with pytest.raises(LineRejected) as caught:
        parse_json(raw, now=NOW)
    return caught.value.reason


def test_two_fields_are_enough_for_a_line_and_its_provider_says_what_else_it_needs() -> None:
    raw = b'{"provider": "acme", "external_id": "customer-1"}'
    assert parse_json(raw, now=NOW).refresh_token is None
    line = parsed()
    assert (line.provider, line.external_id) == ("acme", "customer-1")
    assert line.refresh_token == Secret("refresh-1")
    assert line.access_token is None
    assert line.metadata is None


def test_every_field_of_the_contract_is_read() -> None:
    line = parsed(
        access_token="access-1",
        token_type="Bearer",
        scope="read write",
        expires_at="2026-11-21T09:00:00+01:00",
        expires_in=3600,
        refresh_token_expires_at="2027-01-01T00:00:00Z",
        tenant="tenant-1",
        environment="staging",
        app="eu",
        variables={"subdomain": "acme"},
        metadata={"plan": {"name": "pro", "seats": 12}},
    )
    assert line.access_token == Secret("access-1")
    assert line.expires_at == datetime(2026, 11, 21, 8, 0, tzinfo=UTC)
    assert line.expires_in == 3600
    assert line.refresh_token_expires_at == datetime(2027, 1, 1, tzinfo=UTC)
    assert (line.tenant, line.environment, line.app) == ("tenant-1", "staging", "eu")
    assert line.variables == {"subdomain": "acme"}
    assert line.metadata == {"plan": {"name": "pro", "seats": 12}}


def test_a_line_prints_without_its_tokens() -> None:
    line = parsed(access_token="access-1")
    assert "refresh-1" not in repr(line)
    assert "access-1" not in repr(line)


ANSWER = {"access_token": "access-1", "nested": {"refresh_token": "refresh-1"}}


def test_an_answer_stands_in_the_place_of_all_tokens_and_prints_nothing_of_itself() -> None:
    empty = {"refresh_token": "", "access_token": None}
    line = parsed(**empty, answer=ANSWER, received_at="2026-11-21T06:00:00Z")
    assert line.answer is not None
    assert line.answer.reveal() == ANSWER
    assert "access-1" not in f"{line!r} {line.answer} {line.answer!r}"
    assert line.received_at == NOW - timedelta(hours=1)


def test_a_csv_cell_holds_the_answer_as_json_text() -> None:
    record = {"provider": "acme", "external_id": "customer-1", "answer": json.dumps(ANSWER)}
    answer = parse_record(record, now=NOW).answer
    assert answer is not None
    assert answer.reveal() == ANSWER
    with pytest.raises(LineRejected, match="answer must be a JSON object"):
        parse_record({**record, "answer": "access_token=a"}, now=NOW)


def test_null_and_empty_text_mean_not_given() -> None:
    optional = dict.fromkeys(set(FIELDS) - LEAST.keys())
    assert parsed(**optional) == parsed()
    line = parsed(access_token="", tenant="", environment="", app="", scope="")
    assert not line.access_token
    assert not line.tenant


def test_an_expiry_in_the_past_is_accepted() -> None:
    assert parsed(expires_at="2020-01-01T00:00:00Z").expires_at == datetime(2020, 1, 1, tzinfo=UTC)
    assert parsed(expires_in=0).expires_in == 0


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"external_id": ""}, "external_id is missing"),
        ({"external_id": 17}, "external_id must be text of 1 to 512 characters (a number goes in quotes)"),
        ({"external_id": "x" * 513}, "external_id must be text of 1 to 512 characters"),
        ({"external_id": "a\0b"}, "external_id holds the control character U+0000"),
        ({"external_id": "a\x1b[2Jb"}, "external_id holds the control character U+001B"),
        ({"external_id": "a\u202eb"}, "external_id holds the control character U+202E"),
        ({"tenant": "a\nb"}, "tenant holds the control character U+000A"),
        ({"access_token": "Bearer example"}, "access_token begins with the word of the Authorization header"),
        (
            {"refresh_token": "bearer example"},
            "refresh_token begins with the word of the Authorization header",
        ),
        ({"provider": "x" * 64}, "provider must be the name of a provider"),
        ({"refresh_token": "line-break\n"}, "refresh_token must be up to 65,536 printable ASCII characters"),
        ({"refresh_token": " padded"}, "refresh_token must be up to 65,536 printable ASCII characters"),
        ({"refresh_token": "x" * 65_537}, "refresh_token must be up to 65,536 printable ASCII characters"),
        ({"access_token": "caf\N{LATIN SMALL LETTER E WITH ACUTE}"}, "access_token must be up to"),
        ({"access_token": 5}, "access_token must be up to"),
        ({"expires_at": "2026-01-01T00:00:00"}, "expires_at must be a time in RFC 3339 with its offset"),
        ({"expires_at": 1767225600}, "expires_at must be a time in RFC 3339 with its offset"),
        ({"expires_at": "tomorrow"}, "expires_at must be a time in RFC 3339 with its offset"),
        ({"expires_at": "2126-01-01T00:00:00Z"}, "expires_at is more than ten years ahead"),
        ({"refresh_token_expires_at": "9999-12-31T23:59:59Z"}, "refresh_token_expires_at is more than ten"),
        ({"expires_in": -1}, "expires_in must be a number of seconds from 0 to ten years"),
        ({"expires_in": True}, "expires_in must be a number of seconds from 0 to ten years"),
        ({"expires_in": "3600"}, "expires_in must be a number of seconds from 0 to ten years"),
        ({"expires_in": 400_000_000}, "expires_in must be a number of seconds from 0 to ten years"),
        ({"variables": ["subdomain"]}, "variables must be an object of texts"),
        ({"variables": {"subdomain": 5}}, "variables must be an object of texts"),
        ({"variables": {"sub domain": "acme"}}, "variables must be an object of texts"),
        ({"variables": {"subdomain": "a\0"}}, "variables holds the character U+0000"),
        ({"metadata": "pro"}, "metadata must be a JSON object"),
        ({"metadata": {"deep": [{"a\0": 1}]}}, "metadata holds the character U+0000"),
        ({"tenant": 5}, "tenant must be text of at most 512 characters (a number goes in quotes)"),
        ({"answer": "access_token=a"}, "answer must be a JSON object: what the token endpoint answered"),
        ({"answer": {}}, "has refresh_token beside answer, which says it too: leave one of them out"),
        ({"refresh_token": None, "answer": {}, "expires_in": 0}, "has expires_in beside answer"),
        ({"refresh_token": None, "answer": {}, "scope": "a"}, "has scope beside answer"),
        (
            {"refresh_token": "", "answer": {}, "received_at": "2026-11-21T07:06:00Z"},
            "received_at is in the future",
        ),
        ({"granted_at": "2026-11-21T07:06:00Z"}, "granted_at is in the future"),
        ({"learned_lifetime": -1}, "learned_lifetime must be a number of seconds from 0 to ten years"),
        ({"answer_variables": {"a": 5}}, "answer_variables must be an object of texts"),
        ({"status": "revoked"}, "status must be connecting, active or paused"),
        ({"fingerprints": ["xyz"]}, "fingerprints must be a list of up to 16 texts of 32 hexadecimal digits"),
        ({"client_id": 5}, "client_id must be text of at most 512 characters"),
        ({"exported_at": "yesterday"}, "exported_at must be a time in RFC 3339"),
        ({"answer": {}, "received_at": "yesterday"}, "received_at must be a time in RFC 3339"),
        ({"refesh_token": "x"}, "has the unknown field 'refesh_token': did you mean refresh_token?"),
        ({"colour": "x"}, "has the unknown field 'colour': known are provider, external_id, refresh_token"),
    ],
)
def test_a_wrong_field_is_named_with_what_it_should_be(fields: dict[str, Any], reason: str) -> None:
    assert refusal({**LEAST, **fields}).startswith(reason)


@pytest.mark.parametrize("name", ["provider", "external_id"])
def test_a_line_without_a_required_field_is_refused(name: str) -> None:
    assert refusal({key: value for key, value in LEAST.items() if key != name}) == f"{name} is missing"


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b'{"provider": "acme"', "is not a whole JSON object"),
        (b"provider=acme", "is not a whole JSON object"),
        (b'{"provider": "acme", "expires_in": NaN}', "is not a whole JSON object"),
        (b'{"provider": "acme", "surplus": 1, "then": nonsense}', "is not a whole JSON object"),
        (b'{"provider": "\xff"}', "is not UTF-8 text"),
        (b'{"external_id": "\\ud800"}', "holds half a character: a \\u escape of a lone surrogate"),
        (b'["acme"]', "is not a JSON object"),
        (b'"acme"', "is not a JSON object"),
        (b'{"metadata": {"n": 1e999}}', "holds a number that is out of range"),
        (b'{"metadata": ' + b'{"a":' * 5000 + b"1" + b"}" * 5000 + b"}", "is nested too deeply"),
    ],
)
def test_what_is_no_json_object_is_refused_in_plain_words(raw: bytes, reason: str) -> None:
    assert refusal(raw) == reason


def test_a_backslash_before_u0000_is_not_that_character() -> None:
    assert parsed(metadata={"path": "C:\\u0000"}).metadata == {"path": "C:\\u0000"}


def test_a_csv_record_is_read_as_the_same_line_of_json() -> None:
    record = {
        "provider": "acme",
        "external_id": "17",
        "refresh_token": "refresh-1",
        "expires_in": "3600",
        "expires_at": "2026-11-21T09:00:00Z",
        "variables": '{"subdomain": "acme"}',
        "metadata": '{"seats": 12}',
    }
    assert parse_record(record, now=NOW) == parsed(
        external_id="17",
        expires_in=3600,
        expires_at="2026-11-21T09:00:00Z",
        variables={"subdomain": "acme"},
        metadata={"seats": 12},
    )


@pytest.mark.parametrize("cell", ["nan", "inf", "-1", "an hour", "1e999", "true"])
def test_an_absurd_number_in_a_csv_cell_is_refused(cell: str) -> None:
    with pytest.raises(LineRejected, match="expires_in must be a number of seconds"):
        parse_record({**LEAST, "expires_in": cell}, now=NOW)


@pytest.mark.parametrize("cell", ["pro", "[1]", "{", '"pro"'])
def test_a_csv_cell_that_should_hold_an_object_and_does_not_is_refused(cell: str) -> None:
    with pytest.raises(LineRejected, match="metadata must be a JSON object"):
        parse_record({**LEAST, "metadata": cell}, now=NOW)


def reason_or_none(**fields: Any) -> str | None:
    try:
        parsed(**fields)
    except LineRejected as error:
        return error.reason
    return None


@pytest.mark.parametrize("name", FIELDS)
def test_no_reason_repeats_a_token_whatever_field_it_strays_into(name: str) -> None:
    token = "1//0" + "aB3-" * 20
    for wrong in (token, [token], {token: token}, {"a": [token]}, token + "\n"):
        assert "aB3" not in (reason_or_none(**{name: wrong}) or "")
    assert "aB3" not in (reason_or_none(**{token: name}) or "")


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists))
def test_any_value_in_any_field_is_accepted_or_refused_with_a_reason(value: Any) -> None:
    assert all(reason_or_none(**{name: value}) != "" for name in FIELDS)


@given(st.binary(max_size=200))
def test_any_bytes_are_accepted_or_refused_with_a_reason(raw: bytes) -> None:
    with pytest.raises(LineRejected):
        parse_json(raw, now=NOW)


def test_a_fingerprint_tells_tokens_apart_and_is_not_one() -> None:
    one, other = fingerprint(Secret("refresh-1")), fingerprint(Secret("refresh-2"))
    assert one != other
    assert one == fingerprint(Secret("refresh-1"))
    assert len(one) == 16
    assert b"refresh" not in one


@pytest.mark.parametrize("name", ["google", "microsoft_entra", "eu-west-1", "v2.live", "Staging"])
def test_a_name_is_spelled_out(name: str) -> None:
    assert spelled(name) == f"'{name}'"


@pytest.mark.parametrize(
    "text", ["1//0abcdefghijk", "ya29a0b1c2d3e4", "x" * 21, "two words", "", "-----BEGIN"]
)
def test_what_might_be_a_token_is_not_spelled_out(text: str) -> None:
    assert spelled(text) is None


def test_ten_years_are_counted_from_the_databases_clock() -> None:
    raw = json.dumps({**LEAST, "expires_at": "2035-01-01T00:00:00Z"}).encode()
    assert parse_json(raw, now=NOW).expires_at is not None
    with pytest.raises(LineRejected):
        parse_json(raw, now=NOW - timedelta(days=2 * 366))
