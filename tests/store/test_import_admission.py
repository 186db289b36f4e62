"""What a line has to bring depends on what its provider is presented with."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from store.import_admission import (
    NEVER_PRESENTED,
    NO_LASTING_TOKEN,
    NO_PRESENTED_TOKEN,
    NO_REFRESH_TOKEN,
    NO_SUBJECT_TOKEN,
    Admission,
    NumberedLine,
)
from store.import_line import LineRejected, parse_json
from store.import_rules import ProviderRules
from tokenfleet.connected import ConnectedAccount
from tokenfleet.errors import UserError
from tokenfleet.lifetimes import Lifetimes
from tokenfleet.outcome import TokenAnswer
from tokenfleet.presented import Presented
from tokenfleet.tokens import Margins
from tokenfleet_client.secret import Secret

NOW = datetime(2026, 11, 21, 7, 0, tzinfo=UTC)
PRESENTS = {
    "refreshing": (Presented.REFRESH_TOKEN, True),
    "exchanging": (Presented.SUBJECT_TOKEN, True),
    "extending": (Presented.ACCESS_TOKEN, True),
    "keyless": (Presented.NOTHING, True),
    "static": (Presented.NOTHING, False),
}
REFRESH, ACCESS = {"refresh_token": "refresh-1"}, {"access_token": "access-1"}


def connect(answer: dict[str, Any], received_at: datetime) -> list[ConnectedAccount]:
    """What stands under ``tokens`` is the answer's; its end is an hour after it came."""
    if "tokens" not in answer:
        raise UserError("answer is not a success")
    return [
        ConnectedAccount(
            part or None,
            TokenAnswer(
                Secret(token),
                token_type=answer.get("token_type"),
                scope=answer.get("scope"),
                refresh_token=Secret(f"refresh-{token}"),
                expires_at=received_at + timedelta(hours=1),
                variables=answer.get("captured", {}),
            ),
        )
        for part, token in answer["tokens"].items()
    ]


def rules_of(name: str) -> ProviderRules:
    if name not in PRESENTS:
        raise UserError(f"there is no provider {name!r}")
    presents, renews = PRESENTS[name]
    lifetimes = Lifetimes(renews=renews)
    return ProviderRules(Margins(), lambda _: None, lifetimes, presents=presents, connect=connect)


def admitted(provider: str, **fields: Any) -> list[NumberedLine]:
    raw = json.dumps({"provider": provider, "external_id": "customer-1", **fields}).encode()
    return list(Admission(rules_of, now=NOW).admit(7, parse_json(raw, now=NOW)))


def refusal(provider: str, **fields: Any) -> str:
    with pytest.raises(LineRejected) as caught:
        admitted(provider, **fields)
    return caught.value.reason


@pytest.mark.parametrize(
    ("provider", "fields", "credential"),
    [
        ("refreshing", REFRESH, "refresh-1"),
        ("refreshing", REFRESH | ACCESS, "refresh-1"),
        ("exchanging", REFRESH, "refresh-1"),
        ("extending", ACCESS, "access-1"),
        ("extending", ACCESS | {"refresh_token": ""}, "access-1"),
        ("static", ACCESS, "access-1"),
        ("keyless", {}, None),
        ("keyless", ACCESS, None),
    ],
)
def test_an_account_lives_by_what_its_provider_is_presented_with(
    provider: str, fields: dict[str, str], credential: str | None
) -> None:
    [entry] = admitted(provider, **fields)
    assert entry.credential == (None if credential is None else Secret(credential))
    assert (entry.number, entry.environment) == (7, "production")
    assert (entry.captured, entry.received_at) == (None, None)


@pytest.mark.parametrize(
    ("provider", "fields", "reason"),
    [
        ("refreshing", ACCESS, NO_REFRESH_TOKEN),
        ("refreshing", ACCESS | {"refresh_token": ""}, NO_REFRESH_TOKEN),
        ("exchanging", ACCESS, NO_SUBJECT_TOKEN),
        ("extending", {}, NO_PRESENTED_TOKEN),
        ("extending", {"access_token": ""}, NO_PRESENTED_TOKEN),
        ("static", {}, NO_LASTING_TOKEN),
        ("extending", REFRESH | ACCESS, NEVER_PRESENTED),
        ("static", REFRESH | ACCESS, NEVER_PRESENTED),
        ("keyless", REFRESH, NEVER_PRESENTED),
        ("nobody", {}, "there is no provider 'nobody'"),
    ],
)
def test_a_line_that_lacks_it_or_brings_another_is_refused(
    provider: str, fields: dict[str, str], reason: str
) -> None:
    assert refusal(provider, **fields) == reason


def test_an_answer_is_read_as_of_when_it_came() -> None:
    came = NOW - timedelta(minutes=20)
    answer = {"tokens": {"": "a"}, "scope": "read", "captured": {"host": "eu"}}
    [entry] = admitted("refreshing", answer=answer, received_at=came.isoformat(), tenant="tenant-1")
    assert entry.received_at == came
    assert entry.captured == {"host": "eu"}
    assert entry.credential == entry.line.refresh_token == Secret("refresh-a")
    assert entry.line.access_token == Secret("a")
    assert entry.line.expires_at == came + timedelta(hours=1)
    assert (entry.line.scope, entry.line.tenant) == ("read", "tenant-1")
    assert entry.line.answer is None, "nothing keeps the answer"


def test_an_answer_without_a_time_came_now_and_none_came_later() -> None:
    for received_at in ({}, {"received_at": (NOW + timedelta(minutes=3)).isoformat()}):
        [entry] = admitted("refreshing", answer={"tokens": {"": "a"}}, **received_at)
        assert entry.line.expires_at == NOW + timedelta(hours=1)


def test_each_token_set_is_an_account_whose_external_id_is_joined_with_a_slash() -> None:
    entries = admitted("refreshing", answer={"tokens": {"": "a", "user-7": "b"}})
    assert [entry.line.external_id for entry in entries] == ["customer-1", "customer-1/user-7"]
    assert [entry.credential for entry in entries] == [Secret("refresh-a"), Secret("refresh-b")]
    assert {entry.number for entry in entries} == {7}


@pytest.mark.parametrize("part", ["x" * 502, "a\0b"])
def test_an_external_id_that_no_column_takes_is_refused_without_repeating_it(part: str) -> None:
    reason = refusal("refreshing", answer={"tokens": {part: "a"}})
    assert reason.startswith("answer makes an external id")
    assert part not in reason


def test_what_its_column_does_not_take_costs_an_answer_nothing_else() -> None:
    [entry] = admitted("refreshing", answer={"tokens": {"": "a"}, "token_type": "x" * 64, "scope": "a\0b"})
    assert (entry.line.token_type, entry.line.scope) == (None, None)
    assert entry.credential == Secret("refresh-a")


def test_why_an_answer_cannot_be_read_is_the_reason_of_its_line() -> None:
    assert refusal("refreshing", answer={"error": "invalid_grant"}) == "answer is not a success"
    assert refusal("static", answer={"tokens": {"": "a"}}) == NEVER_PRESENTED
