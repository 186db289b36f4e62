"""Imported accounts that live by something else than a refresh token, and answers that connect several at once."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, text

from store.import_judgement import REJECTED, SPENT
from store.import_rules import ProviderRules
from store.imports import Tally
from store.keys import Vault
from tests.store.test_imports import RULES, Desk, in_about
from tests.support.builders import HOUR, make_app, now
from tokenfleet.connected import ConnectedAccount
from tokenfleet.lifetimes import Lifetimes
from tokenfleet.outcome import TokenAnswer
from tokenfleet.presented import Presented
from tokenfleet.tokens import Margins
from tokenfleet_client.contract import AccountStatus
from tokenfleet_client.secret import Secret

CREATED = "integrated_account:created"


def no_reason(_variables: Mapping[str, str]) -> None:
    return None


def needs_shard(variables: Mapping[str, str]) -> str | None:
    return None if "shard" in variables else "needs the variable shard"


def connect(answer: dict[str, Any], received_at: datetime) -> list[ConnectedAccount]:
    """Each member is a token set: an account with an hour to live since the answer came."""
    return [
        ConnectedAccount(
            part or None,
            TokenAnswer(
                Secret(f"access-{token}"),
                refresh_token=Secret(f"refresh-{token}"),
                expires_at=received_at + HOUR,
                variables={"shard": f"of-{token}"},
            ),
        )
        for part, token in answer.items()
    ]


@pytest.fixture
def desk(engine: Engine, vault: Vault, monkeypatch: pytest.MonkeyPatch) -> Desk:
    desk = Desk(engine, vault)
    for name, presents in (("keyless", Presented.NOTHING), ("extending", Presented.ACCESS_TOKEN)):
        monkeypatch.setitem(RULES, name, ProviderRules(Margins(), no_reason, presents=presents))
        make_app(engine, vault, provider=name, name="default")
    never_renewed = Lifetimes(renews=False, probe_every=HOUR)
    static = ProviderRules(Margins(), no_reason, never_renewed, presents=Presented.NOTHING)
    monkeypatch.setitem(RULES, "static", static)
    make_app(engine, vault, provider="static", name="default")
    monkeypatch.setitem(RULES, "acme", ProviderRules(Margins(), needs_shard, connect=connect))
    return desk


def line(provider: str, **fields: Any) -> dict[str, Any]:
    return {"provider": provider, "external_id": "customer-1", **fields}


def put(desk: Desk, status: AccountStatus) -> None:
    with desk.engine.begin() as connection:
        connection.execute(text("UPDATE tokenfleet.accounts SET status = :status"), {"status": status.value})


def test_an_account_of_the_client_alone_is_created_without_tokens_and_due_at_once(desk: Desk) -> None:
    assert desk.bring(line("keyless")).tally == Tally(created=1)
    state = desk.state()
    assert state.status is AccountStatus.CONNECTING
    assert (state.access_token, state.refresh_token) == (None, None)
    assert in_about(state.next_refresh_at, timedelta(0), timedelta(0))
    assert desk.one("SELECT cardinality(imported_fingerprints) FROM tokenfleet.accounts") == 0
    assert desk.one("SELECT event_type FROM tokenfleet.outbox") == CREATED
    before = desk.everything()
    assert desk.bring(line("keyless")).tally == Tally(unchanged=1)
    assert desk.everything() == before


def test_a_line_about_an_account_of_the_client_alone_revives_it_only_when_it_needs_a_sign_in(
    desk: Desk,
) -> None:
    desk.bring(line("keyless", access_token="granted", expires_in=3600))
    for status in (AccountStatus.ACTIVE, AccountStatus.REVOKED, AccountStatus.PAUSED):
        put(desk, status)
        told = line("keyless", tenant=status.value, access_token="another")
        assert desk.bring(told).tally == Tally(updated=1)
        assert (desk.state().status, desk.state().access_token) == (status, "granted")
    put(desk, AccountStatus.NEEDS_REAUTH)
    assert desk.bring(line("keyless")).tally == Tally(reauthenticated=1, reactivated=1)
    state = desk.state()
    assert (state.status, state.generation) == (AccountStatus.ACTIVE, 2)
    assert in_about(state.next_refresh_at, timedelta(0), timedelta(0))


def test_an_account_that_lives_by_its_access_token_is_known_by_it(desk: Desk) -> None:
    first = line("extending", access_token="granted-1", expires_in=3600)
    assert desk.bring(first).tally == Tally(created=1)
    state = desk.state()
    assert (state.status, state.access_token, state.refresh_token) == (
        AccountStatus.ACTIVE,
        "granted-1",
        None,
    )
    desk.bring(line("extending", access_token="granted-2"))
    before = desk.everything()
    assert desk.bring(first).tally == Tally(unchanged=1)
    assert desk.everything() == before, "an old file does not put back what was replaced"
    put(desk, AccountStatus.NEEDS_REAUTH)
    assert desk.bring(first).reason == SPENT.format(credential="access token")
    assert desk.bring(line("extending", access_token="granted-3")).tally.reactivated == 1
    assert (desk.state().status, desk.state().access_token) == (AccountStatus.ACTIVE, "granted-3")


def test_an_account_that_is_never_renewed_is_probed_whoever_knows_its_end(desk: Desk) -> None:
    assert desk.bring(line("static", access_token="key-1")).tally == Tally(created=1)
    assert desk.state().status is AccountStatus.ACTIVE
    assert desk.one("SELECT probing FROM tokenfleet.refresh_schedule")
    assert desk.bring(line("static", access_token="key-2")).tally == Tally(reauthenticated=1)
    assert (desk.state().access_token, desk.state().refresh_token) == ("key-2", None)
    assert desk.one("SELECT probing FROM tokenfleet.refresh_schedule")
    assert in_about(desk.state().next_refresh_at, timedelta(0), HOUR)


def test_a_key_that_was_switched_on_again_revives_its_account_and_one_that_was_replaced_does_not(
    desk: Desk,
) -> None:
    desk.bring(line("static", access_token="key-1"))
    desk.bring(line("static", access_token="key-2"))
    put(desk, AccountStatus.NEEDS_REAUTH)
    assert desk.bring(line("static", access_token="key-1")).reason
    assert desk.state().status is AccountStatus.NEEDS_REAUTH
    assert desk.bring(line("static", access_token="key-2")).tally == Tally(reauthenticated=1, reactivated=1)
    assert desk.one("SELECT probing FROM tokenfleet.refresh_schedule")
    put(desk, AccountStatus.REVOKED)
    assert desk.bring(line("static", access_token="key-2")).reason == SPENT.format(credential="access token")


def test_an_access_token_that_the_fleet_holds_and_that_was_rejected_revives_nobody(desk: Desk) -> None:
    desk.bring(line("extending", access_token="granted-1"))
    with desk.engine.begin() as connection:
        connection.execute(text("UPDATE tokenfleet.accounts SET imported_fingerprints = '{}'"))
    put(desk, AccountStatus.NEEDS_REAUTH)
    assert desk.bring(line("extending", access_token="granted-1")).reason == REJECTED.format(
        credential="access token"
    )


def test_an_answer_becomes_an_account_for_each_token_set_as_of_when_it_came(desk: Desk) -> None:
    came = now() - timedelta(minutes=10)
    told = line("acme", answer={"": "bot", "U7": "user"}, received_at=came.isoformat())
    done = desk.bring(told)
    assert done.tally == Tally(created=2, shared=1)
    assert done.tally.lines == 1
    bot, user = desk.state("customer-1"), desk.state("customer-1/U7")
    assert (bot.access_token, bot.refresh_token) == ("access-bot", "refresh-bot")
    assert (user.access_token, user.refresh_token) == ("access-user", "refresh-user")
    assert (bot.variables, user.variables) == ({"shard": "of-bot"}, {"shard": "of-user"})
    moments = "SELECT DISTINCT {} FROM tokenfleet.{}"
    assert desk.one(moments.format("granted_at", "accounts")) == came
    assert desk.one(moments.format("obtained_at", "token_sets")) == came
    assert desk.one(moments.format("expires_at", "token_sets")) == came + HOUR
    before = desk.everything()
    assert desk.bring(told).tally == Tally(unchanged=2, shared=1)
    assert desk.everything() == before


def test_an_answer_signs_a_known_account_in_again(desk: Desk) -> None:
    desk.bring(line("acme", answer={"": "first"}))
    desk.end()
    came = now() - timedelta(minutes=10)
    assert desk.bring(line("acme", answer={"": "first"})).reason == SPENT.format(credential="refresh token")
    told = line("acme", answer={"": "second"}, received_at=came.isoformat(), variables={"region": "us"})
    assert desk.bring(told).tally == Tally(reauthenticated=1, reactivated=1)
    state = desk.state()
    assert (state.status, state.refresh_token) == (AccountStatus.ACTIVE, "refresh-second")
    assert state.variables == {"shard": "of-second", "region": "us"}
    assert desk.one("SELECT granted_at FROM tokenfleet.accounts") == came
    assert desk.one("SELECT obtained_at FROM tokenfleet.token_sets") == came


def test_what_is_wrong_with_all_accounts_of_a_line_is_told_once(desk: Desk) -> None:
    done = desk.bring(line("acme", answer={"": "bot", "U7": "user"}, app="nowhere"))
    assert done.reason.startswith("no app nowhere is registered")
    assert (done.tally.bad, done.tally.lines) == (1, 1)
