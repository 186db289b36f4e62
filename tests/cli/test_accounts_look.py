"""``accounts list|show|history``: everything about an account but its tokens."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

import pytest
from sqlalchemy import Engine, text

from store import rejections, settlement
from store.keys import Vault
from tests.cli.conftest import Shell
from tests.support.builders import (
    ACTOR,
    answer,
    begin_attempt,
    deferral,
    make_account,
    make_app,
    make_due,
    rejection,
)
from tokenfleet.jobs import AccountId, AppId
from tokenfleet_client.contract import AccountStatus

SENTINELS: Final = ("planted-access-token", "planted-refresh-token")


@pytest.fixture
def app(engine: Engine, vault: Vault) -> AppId:
    """An app of the provider ``acme``."""
    return make_app(engine, vault, name="default")


def _planted(engine: Engine, vault: Vault, app: AppId) -> AccountId:
    access, refresh = SENTINELS
    return make_account(
        engine, vault, app, external_id="customer-17", access_token=access, refresh_token=refresh
    )


def test_pages_follow_each_other_to_the_end(
    tokenfleet: Shell, engine: Engine, vault: Vault, app: AppId
) -> None:
    made = [make_account(engine, vault, app) for _ in range(3)]
    first = tokenfleet("accounts", "list", "--limit", "2", "--json").document
    assert [account["account_id"] for account in first["accounts"]] == made[:2]
    assert first["next_after"] == made[1]
    second = tokenfleet("accounts", "list", "--limit", "2", "--after", str(made[1]), "--json").document
    assert [account["account_id"] for account in second["accounts"]] == made[2:]
    assert second["next_after"] is None
    plain = tokenfleet("accounts", "list", "--limit", "2")
    assert f"--after {made[1]}" in plain.stderr


def test_filters_reach_the_query(tokenfleet: Shell, engine: Engine, vault: Vault, app: AppId) -> None:
    make_account(engine, vault, app)
    gone = make_account(engine, vault, app, status=AccountStatus.NEEDS_REAUTH, tenant="t-1")
    for words in (("--status", "needs_reauth"), ("--tenant", "t-1")):
        [account] = tokenfleet("accounts", "list", *words, "--json").document["accounts"]
        assert account["account_id"] == gone
    for words in (("--provider", "other"), ("--environment", "staging")):
        ran = tokenfleet("accounts", "list", *words)
        assert (ran.exit_code, ran.stdout) == (0, "No account matches.\n")
    assert tokenfleet("accounts", "list", "--status", "lost").exit_code == 2


def test_no_command_shows_a_token(tokenfleet: Shell, engine: Engine, vault: Vault, app: AppId) -> None:
    account_id = str(_planted(engine, vault, app))
    for words in (("list",), ("show", account_id), ("history", account_id)):
        for options in ((), ("--json",)):
            ran = tokenfleet("accounts", *words, *options)
            assert ran.exit_code == 0
            assert not any(sentinel in ran.stdout for sentinel in SENTINELS)


def test_an_account_is_found_by_id_and_by_name(
    tokenfleet: Shell, engine: Engine, vault: Vault, app: AppId
) -> None:
    account_id = make_account(engine, vault, app, external_id="team/7")
    by_id = tokenfleet("accounts", "show", str(account_id), "--json").document
    by_name = tokenfleet("accounts", "show", "acme/team/7", "--json").document
    assert by_id["account_id"] == by_name["account_id"] == account_id
    assert tokenfleet("accounts", "show", "acme/team/7", "--environment", "staging").exit_code == 1


def test_an_account_that_is_not_there_is_one_sentence(tokenfleet: Shell) -> None:
    for reference in ("4711", "acme/nobody", "9" * 40):
        ran = tokenfleet("accounts", "show", reference)
        assert ran.exit_code == 1
        [line] = ran.stderr.splitlines()
        assert "tokenfleet accounts list" in line


def test_something_that_names_no_account_is_a_usage_error(tokenfleet: Shell) -> None:
    for reference in ("customer", "acme/", "/customer", "-5x", "٣"):
        assert tokenfleet("accounts", "show", "--", reference).exit_code == 2


def test_show_says_why_an_account_fails(tokenfleet: Shell, engine: Engine, vault: Vault, app: AppId) -> None:
    account_id = make_account(engine, vault, app)
    attempt = begin_attempt(engine, app, account_id)
    with engine.begin() as connection:
        settlement.defer(connection, [deferral(attempt)], actor=ACTOR)
    shown = tokenfleet("accounts", "show", str(account_id)).stdout
    assert "Refreshing fails since" in shown
    assert "http_503" in shown
    assert "next refresh" in shown


def test_history_answers_why_on_one_screen(
    tokenfleet: Shell, engine: Engine, vault: Vault, app: AppId
) -> None:
    account_id = make_account(engine, vault, app)
    for generation in (1, 2, 3):
        attempt = begin_attempt(engine, app, account_id)
        with engine.begin() as connection:
            refreshed = answer(vault, account_id, epoch=attempt.epoch, generation=generation)
            settlement.save_refreshed(connection, [refreshed], actor=ACTOR)
        make_due(engine, account_id)
    attempt = begin_attempt(engine, app, account_id)
    with engine.begin() as connection:
        refused = rejection(account_id, epoch=attempt.epoch, generation=4)
        rejections.reject(connection, [refused], actor=ACTOR)
    plain = tokenfleet("accounts", "history", str(account_id)).stdout
    assert "The customer has to sign in again" in plain
    assert "active → needs_reauth" in plain
    assert "refresh.succeeded x3 in" in plain
    assert f"{account_id}-{attempt.epoch}" in plain
    document = tokenfleet("accounts", "history", str(account_id), "--json").document
    kinds = [row["kind"] for row in document["history"]]
    assert kinds == ["account.grant_rejected", *["refresh.succeeded"] * 3]
    assert document["account"]["status"] == "needs_reauth"


def test_a_short_history_says_that_there_is_more(
    tokenfleet: Shell, engine: Engine, vault: Vault, app: AppId
) -> None:
    account_id = make_account(engine, vault, app)
    assert "Nothing has been recorded" in tokenfleet("accounts", "history", str(account_id)).stdout
    tokenfleet("accounts", "pause", str(account_id))
    tokenfleet("accounts", "resume", str(account_id))
    ran = tokenfleet("accounts", "history", str(account_id), "--limit", "1")
    assert "account.resumed" in ran.stdout
    assert "account.paused" not in ran.stdout
    assert "--limit reads more" in ran.stderr


def test_what_comes_from_outside_cannot_steer_the_terminal(
    tokenfleet: Shell, engine: Engine, vault: Vault, app: AppId
) -> None:
    account_id = make_account(engine, vault, app, external_id="evil\x1b[2J\x07")
    for words in (("list",), ("show", str(account_id)), ("history", str(account_id))):
        printed = tokenfleet("accounts", *words).stdout
        assert "evil" in printed
        assert "\x1b" not in printed
        assert "\x07" not in printed


def test_tables_are_not_cut_where_there_is_no_terminal(
    tokenfleet: Shell, engine: Engine, vault: Vault, app: AppId
) -> None:
    long = "customer-" + "x" * 300
    make_account(engine, vault, app, external_id=long, due_in=timedelta(hours=1))
    printed = tokenfleet("accounts", "list").stdout
    assert long in printed
    assert len(printed.splitlines()) == 2
    assert all(line == line.rstrip() for line in printed.splitlines())


def test_an_unfinished_import_is_named(tokenfleet: Shell, engine: Engine, vault: Vault, app: AppId) -> None:
    account_id = make_account(engine, vault, app)
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM tokenfleet.refresh_schedule"))
        connection.execute(text("DELETE FROM tokenfleet.token_sets"))
    shown = tokenfleet("accounts", "show", str(account_id)).stdout
    assert "its import did not finish" in shown
    assert "It holds no tokens." in shown
