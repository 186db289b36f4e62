"""``accounts refresh`` at a provider that refuses early refreshes."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from sqlalchemy import Engine

from store.keys import Vault
from tests.cli.conftest import Shell
from tests.providers.definitions import toml
from tests.support.builders import make_account, make_app, park, state_of

HOUR = timedelta(hours=1)


def test_nobody_is_asked_before_the_provider_allows_it_and_the_operator_hears_when_that_is(
    tokenfleet: Shell, engine: Engine, vault: Vault, tmp_path: Path
) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (own / "example.toml").write_text(toml("[lifetimes]\nearliest_refresh_seconds = 120"))
    app_id = make_app(engine, vault, provider="example", name="default")
    young = make_account(engine, vault, app_id, due_in=HOUR)
    old = make_account(engine, vault, app_id, due_in=HOUR, expires_in=timedelta(seconds=100))
    before = state_of(engine, vault, young).next_refresh_at
    ran = tokenfleet("accounts", "refresh", str(young), str(old), "--json", TOKENFLEET_PROVIDERS_DIR=str(own))
    assert ran.exit_code == 1
    refused, requested = ran.document
    assert (refused["outcome"], requested["outcome"]) == ("refused", "requested")
    assert refused["message"].startswith("example refuses a refresh before ")
    assert refused["message"].endswith("while the access token is young: it is refreshed in time by itself")
    assert state_of(engine, vault, young).next_refresh_at == before
    due = state_of(engine, vault, old).next_refresh_at
    assert due is not None
    assert before is not None
    assert due < before


def test_an_empty_list_of_accounts_is_said_to_be_empty(tokenfleet: Shell) -> None:
    ran = tokenfleet("accounts", "refresh", "-", stdin="\n")
    assert (ran.exit_code, ran.stdout) == (0, "")
    assert ran.stderr == "No account was named: there is nothing to do.\n"
    assert tokenfleet("accounts", "refresh", "-", "--json", stdin="").document == []


def test_of_a_parked_account_the_operator_hears_which_incident_has_it(
    tokenfleet: Shell, engine: Engine, vault: Vault
) -> None:
    app_id = make_app(engine, vault, name="default")
    parked = make_account(engine, vault, app_id)
    with engine.begin() as connection:
        incident_id = park(connection, app_id, parked)
    ran = tokenfleet("accounts", "refresh", str(parked), "--json")
    assert ran.exit_code == 1
    [refused] = ran.document
    assert refused["outcome"] == "refused"
    assert f"tokenfleet incidents show {incident_id}" in refused["message"]
    assert "no refresh token" not in refused["message"]
