"""What a command finds around it: servers of a running ``up``, and who runs it."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import Engine

from cli.session import load_offline_settings, load_settings, operator
from embedded.environment import Environment
from store.keys import Vault
from store.unsealings import Tally
from tests.support.builders import column
from tokenfleet.errors import SettingsError
from tokenfleet_client.envelope import access_token_binding
from tokenfleet_client.unsealings import Purpose


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, environ: dict[str, str]) -> dict[str, str]:
    """An environment that names a home and no server."""
    for name in ("TOKENFLEET_DATABASE_URL", "TOKENFLEET_REDIS_URL", "DATABASE_URL", "REDIS_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TOKENFLEET_HOME", environ["TOKENFLEET_HOME"])
    return environ


def test_without_servers_every_missing_one_is_named(bare: dict[str, str]) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert len(caught.value.problems) == 2


def test_the_servers_of_a_running_up_are_found_in_its_home(
    monkeypatch: pytest.MonkeyPatch, bare: dict[str, str], tmp_path: Path
) -> None:
    monkeypatch.setenv("TOKENFLEET_DATABASE_URL", bare["TOKENFLEET_DATABASE_URL"])
    home = tmp_path / "up"
    monkeypatch.setenv("TOKENFLEET_HOME", str(home))
    with Environment(home, {"TOKENFLEET_DATABASE_URL": bare["TOKENFLEET_DATABASE_URL"]}) as running:
        assert load_settings().redis_url == running.redis_url
    with pytest.raises(SettingsError):
        load_settings()


def test_a_server_that_is_named_wins_over_one_that_runs(
    monkeypatch: pytest.MonkeyPatch, bare: dict[str, str], tmp_path: Path
) -> None:
    monkeypatch.setenv("TOKENFLEET_DATABASE_URL", bare["TOKENFLEET_DATABASE_URL"])
    monkeypatch.setenv("REDIS_URL", "redis://elsewhere:6379/0")
    home = tmp_path / "up"
    monkeypatch.setenv("TOKENFLEET_HOME", str(home))
    with Environment(home, {"TOKENFLEET_DATABASE_URL": bare["TOKENFLEET_DATABASE_URL"]}):
        assert load_settings().redis_url == "redis://elsewhere:6379/0"


def test_a_command_that_needs_no_server_needs_none_named(bare: dict[str, str]) -> None:
    assert str(load_offline_settings().home) == bare["TOKENFLEET_HOME"]


def test_somebody_without_an_account_name_is_named_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    assert operator().startswith("operator:")
    monkeypatch.setattr("os.getuid", lambda: 4_000_000_000)
    assert operator() == "operator:uid-4000000000"


@pytest.mark.parametrize("name", ["x" * 300, "p\udcffat"])
def test_a_name_that_postgres_would_refuse_keeps_nobody_off_the_record(
    monkeypatch: pytest.MonkeyPatch, name: str, engine: Engine, vault: Vault
) -> None:
    monkeypatch.setenv("LOGNAME", name)
    place = access_token_binding(1, 1)
    tally = Tally(vault, operator())
    vault.access.open(vault.access.seal("access-1", place), place, Purpose.EXPORT)
    with engine.begin() as connection:
        tally.add(connection, tally.collect())
    assert column(engine, "SELECT opened FROM tokenfleet.unsealings WHERE purpose = 'export'") == [1]
