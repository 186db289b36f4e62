"""``apps set|list|show|remove``: the secret goes in and never comes out."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Final

from sqlalchemy import Engine

from providers import load_registry
from store import apps, coming_hour
from store.apps import App, secret_binding
from store.keys import Vault
from tests.cli.conftest import Shell
from tests.support.builders import make_account, now, park

SECRET: Final = "planted-client-secret"

_WITH_SECRETS: Final = [
    provider
    for provider in load_registry()
    if provider.spec.client.authentication != "none" and not provider.spec.client.certificate
]
CONFIDENTIAL: Final = next(each.name for each in _WITH_SECRETS if not each.required_variables())
WITH_VARIABLE: Final = next(each for each in _WITH_SECRETS if each.required_variables())
VARIABLE: Final = next(iter(WITH_VARIABLE.required_variables()))


def _stored(engine: Engine, provider: str = CONFIDENTIAL, name: str = "default") -> App:
    with engine.connect() as connection:
        app = apps.find(connection, provider, "production", name)
    assert app is not None
    return app


def test_the_secret_is_sealed_and_shown_nowhere(tokenfleet: Shell, engine: Engine, vault: Vault) -> None:
    words = ("apps", "set", CONFIDENTIAL, "--client-id", "client-1", "--client-secret-file", "-")
    ran = tokenfleet(*words, stdin=SECRET + "\n")
    assert ran.exit_code == 0
    app = _stored(engine)
    assert app.client_secret is not None
    opened = vault.refresh.open(app.client_secret, secret_binding(app.app_id, app.generation))
    assert opened == SECRET
    listed, shown = tokenfleet("apps", "list", "--json"), tokenfleet("apps", "show", CONFIDENTIAL, "--json")
    everything = [ran, listed, shown, tokenfleet("apps", "list"), tokenfleet("apps", "show", CONFIDENTIAL)]
    assert not any(SECRET in each.stdout + each.stderr for each in everything)
    assert listed.document == [shown.document]
    assert shown.document["has_client_secret"] is True
    assert shown.document["state"] == "ready"


def test_the_secret_may_come_from_a_file(
    tokenfleet: Shell, engine: Engine, vault: Vault, tmp_path: Path
) -> None:
    file = tmp_path / "secret"
    file.write_text(f"  {SECRET}\n")
    ran = tokenfleet("apps", "set", CONFIDENTIAL, "--client-id", "c", "--client-secret-file", str(file))
    assert ran.exit_code == 0
    app = _stored(engine)
    assert app.client_secret is not None
    assert vault.refresh.open(app.client_secret, secret_binding(app.app_id, app.generation)) == SECRET


def test_without_terminal_and_file_the_secret_is_asked_for_in_the_usage(tokenfleet: Shell) -> None:
    ran = tokenfleet("apps", "set", CONFIDENTIAL, "--client-id", "c")
    assert ran.exit_code == 2
    assert "--client-secret-file" in ran.stderr


def test_keys_that_do_not_fit_are_told_before_the_secret_is_asked_for(
    tokenfleet: Shell, environ: dict[str, str], tmp_path: Path
) -> None:
    assert tokenfleet("db", "upgrade").exit_code == 0
    other = str(tmp_path / "other.json")
    assert tokenfleet("keys", "generate", "--output", other).exit_code == 0
    ran = tokenfleet("apps", "set", CONFIDENTIAL, "--client-id", "c", TOKENFLEET_KEYS_FILE=other)
    assert (ran.exit_code, "point TOKENFLEET_KEYS_FILE at" in ran.stderr) == (1, True)


def test_something_else_than_a_secret_is_refused_without_repeating_it(tokenfleet: Shell) -> None:
    for text in ("", "\n", "two words", "x" * 9000):
        words = ("apps", "set", CONFIDENTIAL, "--client-id", "c", "--client-secret-file", "-")
        ran = tokenfleet(*words, stdin=text)
        assert ran.exit_code == 1
        [line] = ran.stderr.splitlines()
        assert "does not hold a client secret" in line
        assert "two words" not in line


def test_an_unknown_provider_is_refused_with_close_matches(tokenfleet: Shell) -> None:
    ran = tokenfleet("apps", "set", CONFIDENTIAL[:-1], "--client-id", "c", "--client-secret-file", "-")
    assert ran.exit_code == 1
    assert f"did you mean {CONFIDENTIAL}" in ran.stderr


def test_variables_are_checked_against_the_definition(tokenfleet: Shell, engine: Engine) -> None:
    name = WITH_VARIABLE.name
    words = ("apps", "set", name, "--client-id", "c", "--client-secret-file", "-", "--variable")
    assert tokenfleet(*words, "no assignment", stdin=SECRET).exit_code == 2
    unknown = tokenfleet(*words, "unheard_of=1", stdin=SECRET)
    assert unknown.exit_code == 1
    assert VARIABLE in unknown.stderr
    malformed = tokenfleet(*words, f"{VARIABLE}=\x00", stdin=SECRET)
    assert malformed.exit_code == 1
    assert f"variable {VARIABLE}" in malformed.stderr
    left_out = tokenfleet(*words[:-1], stdin=SECRET)
    assert f"has to bring {VARIABLE}" in left_out.stdout
    assert _stored(engine, name).variables == {}


def test_setting_it_again_replaces_it_and_probes_a_held_app_at_once(
    tokenfleet: Shell, engine: Engine
) -> None:
    words = ("apps", "set", CONFIDENTIAL, "--client-secret-file", "-", "--client-id")
    tokenfleet(*words, "old", stdin=SECRET)
    app = _stored(engine)
    with engine.begin() as connection:
        apps.hold(connection, app.app_id, "invalid_client", generation=1, probe_after=timedelta(seconds=30))
    held = tokenfleet("apps", "list")
    assert "invalid_client" in held.stdout
    assert tokenfleet("apps", "show", CONFIDENTIAL, "--json").document["state"] == "held"
    ran = tokenfleet(*words, "new", stdin=SECRET)
    assert "on hold because of invalid_client" in ran.stdout
    assert _stored(engine).client_id == "new"
    assert "one account probes now" in ran.stdout
    probe_at = _stored(engine).probe_at
    assert probe_at is not None
    assert probe_at <= now()


def test_a_pause_is_shown_until_it_is_over(tokenfleet: Shell, engine: Engine) -> None:
    words = ("apps", "set", CONFIDENTIAL, "--client-id", "c", "--client-secret-file", "-")
    tokenfleet(*words, stdin=SECRET)
    app_id = _stored(engine).app_id
    with engine.begin() as connection:
        apps.pause_until(connection, [app_id], [now() + timedelta(hours=1)])
    assert tokenfleet("apps", "show", CONFIDENTIAL, "--json").document["state"] == "paused"
    assert "paused until" in tokenfleet("apps", "list").stdout


def test_everything_that_is_wrong_with_an_app_is_shown(
    tokenfleet: Shell, engine: Engine, vault: Vault
) -> None:
    tokenfleet("apps", "set", CONFIDENTIAL, "--client-id", "c", "--client-secret-file", "-", stdin=SECRET)
    app_id = _stored(engine).app_id
    with engine.begin() as connection:
        apps.pause_until(connection, [app_id], [now() + timedelta(hours=1)])
        coming_hour.keep_slack(connection, [(app_id, -0.1)])
        park(connection, app_id, make_account(engine, vault, app_id))
    listed = tokenfleet("apps", "list").stdout
    assert "incident, overbooked, paused" in listed
    assert "1 account parked" in listed
    shown = tokenfleet("apps", "show", CONFIDENTIAL)
    assert "110 % of the rate" in shown.stdout
    document = tokenfleet("apps", "show", CONFIDENTIAL, "--json").document
    assert (document["state"], document["slack"], document["circuit"]) == ("incident", -0.1, None)


def test_an_app_with_accounts_is_not_removed(tokenfleet: Shell, engine: Engine, vault: Vault) -> None:
    words = ("apps", "set", CONFIDENTIAL, "--client-id", "c", "--client-secret-file", "-", "--name")
    tokenfleet(*words, "used", stdin=SECRET)
    tokenfleet(*words, "unused", stdin=SECRET)
    make_account(engine, vault, _stored(engine, name="used").app_id)
    kept = tokenfleet("apps", "remove", CONFIDENTIAL, "--name", "used")
    assert kept.exit_code == 1
    assert "1 account" in kept.stderr
    assert tokenfleet("apps", "remove", CONFIDENTIAL, "--name", "unused").exit_code == 0
    assert [app["name"] for app in tokenfleet("apps", "list", "--json").document] == ["used"]


def test_an_app_that_is_not_there_is_one_sentence(tokenfleet: Shell) -> None:
    for words in (("show",), ("remove",)):
        ran = tokenfleet("apps", *words, "acme")
        assert ran.exit_code == 1
        assert "tokenfleet apps list" in ran.stderr


def test_a_new_secret_may_keep_the_previous_ones_as_spares(tokenfleet: Shell, engine: Engine) -> None:
    words = ("apps", "set", CONFIDENTIAL, "--client-secret-file", "-", "--client-id")
    tokenfleet(*words, "client-1", stdin=SECRET)
    ran = tokenfleet(*words, "client-1", "--keep-previous", stdin="another-planted-secret")
    assert "1 spare secret" in ran.stdout
    shown = tokenfleet("apps", "show", CONFIDENTIAL)
    document = tokenfleet("apps", "show", CONFIDENTIAL, "--json").document
    assert (document["spare_secrets"], document["refused_secrets"]) == (1, 0)
    assert "spare secrets" in shown.stdout
    assert SECRET not in ran.stdout + shown.stdout
    other = tokenfleet(*words, "client-2", "--keep-previous", stdin=SECRET)
    assert other.exit_code == 2
    assert "another client id" in other.stderr
    assert _stored(engine).client_id == "client-1"
    tokenfleet(*words, "client-2", stdin=SECRET)
    assert tokenfleet("apps", "show", CONFIDENTIAL, "--json").document["spare_secrets"] == 0
