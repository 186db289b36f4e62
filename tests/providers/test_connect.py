"""The answer that connects an account: which accounts it is of, and that no token is read into two."""

from __future__ import annotations

import tomllib
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from providers.connect import NO_SUCCESS, ConnectReader
from providers.contradictions import contradictions
from providers.spec import ProviderSpec
from tests.providers.definitions import provider, toml
from tokenfleet.connected import ConnectedAccount
from tokenfleet.errors import UserError
from tokenfleet.outcome import TokenAnswer
from tokenfleet_client.secret import Secret

CAME = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
PLAIN = provider().connect_reader()
SETS = """
[answer]
access_token = ["access_token", "authed_user.access_token"]
refresh_token = ["refresh_token", "authed_user.refresh_token"]
success = [{ path = "ok", value = true }]

[variables.shard]
description = "where it lives"
from_answer = "shard"

[connect.bot]

[connect.user]
at = "authed_user"
external_id = "authed_user.id"
"""
BOTH = provider(SETS).connect_reader()
BOT = {"access_token": "at-bot", "refresh_token": "rt-bot", "expires_in": 3600}
USER = {"id": "U7", "access_token": "at-user", "refresh_token": "rt-user", "expires_in": 60}


def read(document: dict[str, Any], by: ConnectReader = PLAIN) -> list[ConnectedAccount]:
    return by.read(document, CAME)


def refusal(document: dict[str, Any], by: ConnectReader = PLAIN) -> str:
    with pytest.raises(UserError) as caught:
        read(document, by)
    return str(caught.value)


def of_grant(grant: str, extra: str = "") -> ConnectReader:
    endpoint = "" if grant == "none" else 'endpoint = "https://auth.example.com/token"\n'
    text = toml(extra, refresh=f'{endpoint}grant = "{grant}"', rotation='policy = "never"')
    return ConnectReader(ProviderSpec.model_validate(tomllib.loads(text)), allow_http=False)


def test_an_answer_is_one_account_unless_the_definition_says_otherwise() -> None:
    [account] = read(BOT | {"token_type": "Bearer", "scope": "a b", "refresh_token_expires_in": 7200})
    assert account == ConnectedAccount(
        None,
        TokenAnswer(
            Secret("at-bot"),
            token_type="Bearer",
            expires_at=CAME + timedelta(hours=1),
            refresh_token=Secret("rt-bot"),
            refresh_token_expires_at=CAME + timedelta(hours=2),
            scope="a b",
        ),
    )


def test_each_token_set_that_is_present_is_an_account_of_its_own() -> None:
    bot, user = read({"ok": True, **BOT, "shard": "eu", "authed_user": USER}, BOTH)
    assert (bot.part, bot.tokens.refresh_token) == (None, Secret("rt-bot"))
    assert (user.part, user.tokens.access_token) == ("U7", Secret("at-user"))
    assert user.tokens.refresh_token == Secret("rt-user")
    assert user.tokens.expires_at == CAME + timedelta(seconds=60)
    assert bot.tokens.variables == user.tokens.variables == {"shard": "eu"}


def test_a_set_that_is_not_there_is_no_account_even_where_paths_lead_into_another() -> None:
    [user] = read({"ok": True, "authed_user": USER}, BOTH)
    assert (user.part, user.tokens.refresh_token) == ("U7", Secret("rt-user"))
    [bot] = read({"ok": True, **BOT, "authed_user": {"id": "U7"}}, BOTH)
    assert (bot.part, bot.tokens.refresh_token) == (None, Secret("rt-bot"))
    nothing: list[object] = [None, [], "text", {}]
    for absent in nothing:
        [bot] = read({"ok": True, **BOT, "authed_user": absent}, BOTH)
        assert bot.tokens.refresh_token == Secret("rt-bot")


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ({"ok": False, **BOT}, NO_SUCCESS),
        ({"ok": True}, NO_SUCCESS),
        ({"ok": True, "authed_user": {"id": "U7"}}, NO_SUCCESS),
        ({"ok": True, "authed_user": USER | {"id": None}}, "answer does not say whose its token set user is"),
        (
            {"ok": True, "authed_user": USER | {"id": ["U7"]}},
            "answer does not say whose its token set user is",
        ),
        (
            {"ok": True, **BOT, "authed_user": USER | {"refresh_token": None}},
            "answer has no refresh token in its token set user, and without one nothing can be renewed",
        ),
    ],
)
def test_an_answer_that_connects_nobody_is_refused_in_one_sentence(
    document: dict[str, Any], reason: str
) -> None:
    assert refusal(document, BOTH) == reason


def test_an_error_is_no_success() -> None:
    assert refusal({"error": "invalid_grant"}) == NO_SUCCESS
    assert refusal({}) == NO_SUCCESS
    assert refusal({"error": "odd", **BOT}) == NO_SUCCESS
    without = "answer has no refresh token in it, and without one nothing can be renewed"
    assert refusal({"access_token": "at-1"}) == without


def test_two_sets_of_one_external_id_are_told() -> None:
    named = SETS.replace("[connect.bot]", '[connect.bot]\nexternal_id = "team.id"')
    by = provider(named).connect_reader()
    bot, user = read({"ok": True, **BOT, "team": {"id": 7}, "authed_user": USER}, by)
    assert (bot.part, user.part) == ("7", "U7")
    reason = refusal({"ok": True, **BOT, "team": {"id": "U7"}, "authed_user": USER}, by)
    assert reason.startswith("answer gives its token sets bot and user the same external id")
    assert "U7" not in reason


def test_a_grant_that_presents_no_refresh_token_needs_an_access_token_alone() -> None:
    for grant in ("access_token", "client_credentials", "none"):
        [account] = read(BOT, of_grant(grant))
        assert account.tokens.access_token == Secret("at-bot")
        assert account.tokens.refresh_token is None
        assert refusal({"refresh_token": "rt-1"}, of_grant(grant)) == NO_SUCCESS


def test_the_subject_of_an_exchange_is_where_a_refresh_token_would_be() -> None:
    [account] = read({"refresh_token": "subject-1"}, of_grant("token_exchange"))
    assert account.tokens.refresh_token == Secret("subject-1")


STEPS = '[[steps]]\nendpoint = "https://auth.example.com/session"\nheaders = { X-Token = "{access_token}" }\n'


def test_an_access_token_that_steps_trade_for_another_is_not_for_readers() -> None:
    [account] = read(BOT, provider(STEPS).connect_reader())
    assert account.tokens == TokenAnswer(None, refresh_token=Secret("rt-bot"))
    [account] = read(BOT, of_grant("access_token", STEPS))
    assert account.tokens.access_token == Secret("at-bot"), "it is what the next request presents"


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["at", "rt"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from([*BOT, "authed_user", "id", "ok", "shard", "error"]), inner, max_size=5
        )
    ),
    max_leaves=10,
)
documents = st.dictionaries(
    st.sampled_from([*BOT, "authed_user", "ok", "shard", "error"]), values, max_size=6
)


@settings(max_examples=60)
@given(documents, st.sampled_from([PLAIN, BOTH]))
def test_whatever_an_answer_holds_it_is_accounts_or_a_sentence(
    document: dict[str, Any], by: ConnectReader
) -> None:
    try:
        accounts = read(document, by)
    except UserError:
        return
    assert accounts
    assert all(account.tokens.refresh_token is not None for account in accounts)
    assert len({account.part for account in accounts}) == len(accounts)


@pytest.mark.parametrize(
    ("connect", "location", "reason"),
    [
        ("[connect.bot]", ("connect", "bot"), "is the only token set"),
        (
            '[connect.bot]\n[connect.user]\nexternal_id = "id"',
            ("connect", "user", "at"),
            "stands at the top, as bot does",
        ),
        (
            '[connect.bot]\n[connect.one]\nat = "x"\nexternal_id = "i"\n[connect.two]\nat = "x"\nexternal_id = "j"',
            ("connect", "two", "at"),
            "stands at 'x', as one does",
        ),
        (
            '[connect.one]\nat = "x"\n[connect.two]\nat = "y"\nexternal_id = "j"',
            ("connect",),
            "has no token set at the top",
        ),
        (
            '[connect.one]\n[connect.two]\nat = "y"',
            ("connect", "two", "external_id"),
            "is missing, as in one",
        ),
        (
            '[connect.one]\n[connect.two]\nat = "y[0]"\nexternal_id = "j"',
            ("connect", "two", "at"),
            "leads into a list",
        ),
    ],
)
def test_token_sets_that_contradict_each_other_are_told(
    connect: str, location: tuple[str, ...], reason: str
) -> None:
    spec = ProviderSpec.model_validate(tomllib.loads(toml(connect)))
    [(where, why)] = contradictions(spec, allow_http=False)
    assert where == location
    assert why.startswith(reason)
