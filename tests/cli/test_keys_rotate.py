"""``keys rotate``, ``keys retire`` and ``keys status``: from a new key to the proof that the old one is not used."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from store.journal import Journal
from store.keys import Vault
from tests.cli.conftest import Shell
from tests.support.builders import answer, make_accounts, make_app
from tests.support.vault_server import TOKEN, VaultServer
from tokenfleet.settings import Settings


@pytest.fixture
def service() -> Iterator[VaultServer]:
    with VaultServer("access", "refresh") as server:
        yield server


def by_place(tokenfleet: Shell, **environ: str) -> dict[int, dict[str, int]]:
    """Data key to what is under it."""
    document = tokenfleet("keys", "status", "--json", **environ).document
    return {
        key["data_key_id"]: {use["place"]: use["values"] for use in key["uses"]}
        for key in document["data_keys"]
    }


def test_a_new_key_encryption_key_is_added_used_and_the_old_one_retired(
    tokenfleet: Shell, environ: dict[str, str], vault: Vault
) -> None:
    path = Path(environ["TOKENFLEET_HOME"]) / "keys.json"
    before = json.loads(path.read_text())
    assert "in use: it wraps data key 1 (access), 2 (refresh)" in tokenfleet("keys", "retire", "test").stderr

    added = tokenfleet("keys", "generate", "--add")
    assert (added.exit_code, path.stat().st_mode & 0o777) == (0, 0o600)
    content = json.loads(path.read_text())
    assert [content[ring][1:] for ring in content] == [before[ring] for ring in content]
    assert all(text.partition(":")[2] not in added.stdout for ring in content for text in content[ring])

    rotated = tokenfleet("keys", "rotate")
    assert (rotated.exit_code, rotated.stderr) == (0, "")
    assert tokenfleet("keys", "rotate").exit_code == 0
    assert "Nothing in this database needs 'test'" in tokenfleet("keys", "retire", "test").stdout
    newest = content["refresh"][0].partition(":")[0]
    refused = tokenfleet("keys", "retire", newest)
    assert (refused.exit_code, len(refused.stderr.splitlines())) == (1, 1)

    path.write_text(json.dumps({ring: content[ring][:1] for ring in content}))
    assert tokenfleet("keys", "status").exit_code == 0


def test_new_data_keys_take_over_everything_and_status_counts_it(
    tokenfleet: Shell, environ: dict[str, str], engine: Engine, vault: Vault, settings: Settings
) -> None:
    app_id = make_app(engine, vault)
    ids = make_accounts(engine, vault, app_id, 30)
    journal = Journal(settings.journal_dir, "worker-1")
    journal.append(answer(vault, ids[0], epoch=1, generation=1))
    assert by_place(tokenfleet) == {
        1: {"token_sets.access_token": 30, "journals here": 1},
        2: {"oauth_apps.client_secret": 1, "token_sets.refresh_token": 30, "journals here": 1},
    }

    rotated = tokenfleet("keys", "rotate", "--data-keys", "--wait", "0", "--rate", "0")
    assert (rotated.exit_code, rotated.stderr) == (0, "")
    assert "31 rows sealed anew" in rotated.stdout
    # The journal's answer opens as long as the database lives: its data keys stay.
    assert by_place(tokenfleet) == {
        1: {"journals here": 1},
        2: {"journals here": 1},
        3: {"token_sets.access_token": 30},
        4: {"oauth_apps.client_secret": 1, "token_sets.refresh_token": 30},
    }
    journal.close()


def test_a_value_that_nobody_can_open_is_left_and_told_and_the_exit_code_says_so(
    tokenfleet: Shell, engine: Engine, vault: Vault
) -> None:
    [damaged, _] = make_accounts(engine, vault, make_app(engine, vault), 2)
    with engine.begin() as connection:
        connection.execute(
            text(
                "UPDATE tokenfleet.token_sets SET refresh_token = overlay(refresh_token placing '\\xff' from 40) "
                "WHERE account_id = :id"
            ),
            {"id": damaged},
        )
    rotated = tokenfleet("keys", "rotate", "--data-keys", "--wait", "0")
    assert rotated.exit_code == 1
    assert rotated.stderr.startswith("not under the newest keys yet: 1 value;")


def test_keys_move_to_vault_and_without_it_a_command_is_one_sentence(
    tokenfleet: Shell, environ: dict[str, str], engine: Engine, vault: Vault, service: VaultServer
) -> None:
    make_accounts(engine, vault, make_app(engine, vault), 3)
    path = Path(environ["TOKENFLEET_HOME"]) / "keys.json"
    content = json.loads(path.read_text())
    path.write_text(
        json.dumps({ring: [service.address(f"{ring}-vault", ring), *content[ring]] for ring in content})
    )
    access = {"TOKENFLEET_VAULT_TOKEN": TOKEN}

    assert tokenfleet("keys", "rotate", **access).exit_code == 0
    assert tokenfleet("keys", "retire", "test", **access).exit_code == 0
    shown = tokenfleet("keys", "status", **access)
    assert "refresh-vault" in shown.stdout
    assert TOKEN not in shown.stdout
    service.rotate("refresh")
    assert "refresh-vault (older version)" in tokenfleet("keys", "status", **access).stdout
    tokenfleet("keys", "rotate", **access)
    assert "older version" not in tokenfleet("keys", "status", **access).stdout

    service.go()
    away = tokenfleet("keys", "rotate", **access)
    assert (away.exit_code, len(away.stderr.splitlines())) == (1, 1)
    assert "does not answer" in away.stderr
    status = tokenfleet("keys", "status", **access)
    assert status.exit_code == 1
    assert "does not answer" in status.stdout
