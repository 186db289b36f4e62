"""Registrations on three levels, through the real commands: set, imported under, shown, moved, removed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.cli.conftest import Ran, Shell

PROVIDER = "google"


def register(tokenfleet: Shell, *words: str, client_id: str) -> Ran:
    secret = ("--client-id", client_id, "--client-secret-file", "-")
    ran = tokenfleet("apps", "set", PROVIDER, *words, *secret, stdin="planted-secret")
    assert ran.exit_code == 0, ran.stderr
    return ran


def bring(tokenfleet: Shell, external_id: str, **members: Any) -> Ran:
    line = {"provider": PROVIDER, "external_id": external_id, "refresh_token": f"rt-{external_id}"} | members
    return tokenfleet("accounts", "import", "-", stdin=json.dumps(line))


def shown(tokenfleet: Shell, external_id: str, environment: str = "production") -> dict[str, Any]:
    words = ("accounts", "show", f"{PROVIDER}/{external_id}", "--environment", environment, "--json")
    app: dict[str, Any] = tokenfleet(*words).document["app"]
    return app


def test_the_most_specific_registration_wins_and_the_account_stays_with_it(tokenfleet: Shell) -> None:
    ran = register(tokenfleet, "--platform", client_id="everybody")
    assert ran.stdout.startswith(f"Registered {PROVIDER}/*/default")
    assert bring(tokenfleet, "first").exit_code == 0
    assert bring(tokenfleet, "staged", environment="staging").exit_code == 0
    register(tokenfleet, client_id="production")
    assert bring(tokenfleet, "second").exit_code == 0
    register(tokenfleet, "--account", "third", client_id="of-third")
    assert bring(tokenfleet, "third").exit_code == 0
    register(tokenfleet, "--platform", "--name", "eu", client_id="european")
    assert bring(tokenfleet, "fourth", app="eu").exit_code == 0

    levels = {name: shown(tokenfleet, name)["level"] for name in ("first", "second", "third", "fourth")}
    assert levels == {"first": "platform", "second": "environment", "third": "account", "fourth": "platform"}
    assert shown(tokenfleet, "staged", "staging")["level"] == "platform"
    first = shown(tokenfleet, "first")
    assert (first["environment"], first["name"]) == ("*", "default")
    assert first["more_specific"] == "production/default"
    texts = {name: tokenfleet("accounts", "show", f"{PROVIDER}/{name}").stdout for name in levels}
    assert f"Its app is {PROVIDER}/*/default, that of the platform" in texts["first"]
    assert f"By now there is {PROVIDER}/production/default for it" in texts["first"]
    assert "that of its environment" in texts["second"]
    assert f"Its app is {PROVIDER}/production/account:third: a client of its own." in texts["third"]
    assert f"Its app is {PROVIDER}/*/eu: its import named it." in texts["fourth"]

    # The same line, and new tokens that name no app, leave it with the client that its grant was issued to.
    assert "1 unchanged" in bring(tokenfleet, "first").stdout
    assert bring(tokenfleet, "first", refresh_token="rt-again").exit_code == 0
    assert shown(tokenfleet, "first")["level"] == "platform"
    # New tokens whose line names another one move it.
    assert bring(tokenfleet, "first", refresh_token="rt-moved", app="default").exit_code == 0
    assert (shown(tokenfleet, "first")["level"], shown(tokenfleet, "first")["more_specific"]) == (
        "environment",
        None,
    )


def test_another_accounts_own_registration_is_not_for_it(tokenfleet: Shell) -> None:
    register(tokenfleet, "--account", "third", client_id="of-third")
    ran = bring(tokenfleet, "first", app="account:third")
    assert ran.exit_code == 1
    assert "no app" in ran.stderr
    assert bring(tokenfleet, "third", app="account:third").exit_code == 0
    ran = bring(tokenfleet, "odd", environment="*")
    assert ran.exit_code == 1
    assert "* stands for all of them" in ran.stderr


def test_levels_are_listed_and_shown_and_an_app_in_use_is_not_removed(tokenfleet: Shell) -> None:
    register(tokenfleet, "--platform", client_id="everybody")
    register(tokenfleet, "--account", "first", client_id="of-first")
    assert bring(tokenfleet, "first").exit_code == 0
    listed = tokenfleet("apps", "list", "--json").document
    assert [(app["environment"], app["name"], app["level"]) for app in listed] == [
        ("*", "default", "platform"),
        ("production", "account:first", "account"),
    ]
    assert "account" in tokenfleet("apps", "list").stdout
    words = ("apps", "show", PROVIDER, "--account", "first")
    assert tokenfleet(*words, "--json").document["client_id"] == "of-first"
    assert f"for {PROVIDER}/first in production alone" in tokenfleet(*words).stdout
    refused = tokenfleet("apps", "remove", PROVIDER, "--account", "first")
    assert refused.exit_code == 1
    assert "1 account" in refused.stderr
    assert tokenfleet("apps", "remove", PROVIDER, "--platform").exit_code == 0
    assert tokenfleet("apps", "show", PROVIDER, "--platform").exit_code == 1


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--platform", "--environment", "staging"), "leave out --environment"),
        (("--platform", "--account", "first"), "contradict each other"),
        (("--account", "first", "--name", "eu"), "leave out --name"),
        (("--account", ""), "1 to 512 characters"),
        (("--environment", "*"), "--platform stands for all of them"),
        (("--name", "account:first"), "is set by --account"),
    ],
)
def test_options_that_name_no_one_registration_are_refused(words: tuple[str, ...], told: str) -> None:
    ran = Shell({})("apps", "show", PROVIDER, *words)
    assert ran.exit_code == 2
    assert told in ran.stderr
