"""``keys rotate``, ``keys retire`` and ``keys status``: from a new key to the proof that the old one is not used."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from sqlalchemy import Engine, text

from cli import keys_rotate, resealing
from store import data_keys, key_holders, keys
from store.journal import Journal
from store.keys import Vault
from store.resealing import reseal_batch
from store.sealed_places import SEALED_TABLES
from tests.cli.conftest import Shell
from tests.support.builders import answer, column, make_accounts, make_app, state_of
from tests.support.vault_server import TOKEN, VaultServer
from tokenfleet.settings import Settings
from tokenfleet_client.envelope import access_token_binding


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
    for slip, said in (("tset", "no key-encryption key is named 'tset'"), ("1", "1 is a data key")):
        refused = tokenfleet("keys", "retire", slip)
        assert (refused.exit_code, len(refused.stderr.splitlines())) == (1, 1)
        assert said in refused.stderr

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


def add_keys(tokenfleet: Shell, environ: dict[str, str]) -> Settings:
    """New key-encryption keys first; returns the settings that have them."""
    assert tokenfleet("keys", "generate", "--add").exit_code == 0
    return Settings.from_environ(environ)


def tell(engine: Engine, settings: Settings, *data_key_ids: int) -> None:
    """What a worker says at each of its looks."""
    with engine.begin() as connection:
        rings = (settings.access_ring, settings.refresh_ring)
        key_holders.tell(connection, "worker-on-moon", rings, data_key_ids, data_key_ids[-2:])


def test_nothing_is_rotated_before_every_worker_has_the_new_key_list(
    tokenfleet: Shell, environ: dict[str, str], engine: Engine, vault: Vault, settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(keys_rotate, "HOLDERS_SECONDS", 0.0)
    tell(engine, settings, 1, 2)
    given = add_keys(tokenfleet, environ)
    before = column(engine, "SELECT wrapped FROM tokenfleet.data_keys ORDER BY id")
    refused = tokenfleet("keys", "rotate")
    assert refused.exit_code == 1
    assert "not in the hands of 1 worker (worker-on-moon): nothing was changed" in refused.stderr
    assert column(engine, "SELECT wrapped FROM tokenfleet.data_keys ORDER BY id") == before
    tell(engine, given, 1, 2)
    monkeypatch.setattr(resealing, "SETTLING_SECONDS", 0.0)
    assert tokenfleet("keys", "rotate").exit_code == 0


def test_a_data_key_seals_nothing_before_every_worker_has_unwrapped_it(
    tokenfleet: Shell, engine: Engine, vault: Vault, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys_rotate, "HOLDERS_SECONDS", 0.0)
    tell(engine, settings, 1, 2)
    refused = tokenfleet("keys", "rotate", "--data-keys", "--wait", "0")
    assert refused.exit_code == 1
    assert "data key 3 of the access ring is not in the hands of 1 worker (worker-on-moon)" in refused.stderr
    primaries = "SELECT id FROM tokenfleet.data_keys WHERE is_primary ORDER BY id"
    assert column(engine, primaries) == [1, 2]
    tell(engine, settings, 1, 2, 3, 4)
    monkeypatch.setattr(resealing, "SETTLING_SECONDS", 0.0)
    assert tokenfleet("keys", "rotate", "--wait", "0").exit_code == 0
    assert column(engine, primaries) == [3, 4]


@pytest.mark.parametrize("steps", [1, 3, 5, 7])
def test_a_rotation_that_was_killed_after_any_step_is_finished_by_the_next(
    tokenfleet: Shell, environ: dict[str, str], engine: Engine, vault: Vault, steps: int
) -> None:
    accounts = make_accounts(engine, vault, make_app(engine, vault), 5)
    expected = [state_of(engine, vault, each) for each in accounts]
    given = add_keys(tokenfleet, environ)
    rings = (given.access_ring, given.refresh_ring)

    def promote_announced(number: int) -> None:
        with engine.begin() as connection:
            state = data_keys.state_of(rings[number].ring, data_keys.load(connection))
            assert state is not None
            assert state.announced is not None
            assert data_keys.promote(connection, rings[number].ring, state.announced.wrapped.data_key_id)

    def reseal_some() -> None:
        with engine.begin() as connection:
            reseal_batch(connection, keys.open_vault(connection, given), SEALED_TABLES[-1], None, limit=2)

    killed: list[Callable[[], object]] = [
        *(partial(data_keys.rewrap, engine, ring) for ring in rings),
        *(partial(data_keys.announce, engine, ring) for ring in rings),
        partial(promote_announced, 0),
        partial(promote_announced, 1),
        reseal_some,
    ]
    for step in killed[:steps]:
        step()

    # Once all are promoted nothing shows that it wanted new data keys: they are there.
    assert tokenfleet("keys", "rotate", *["--data-keys", "--wait", "0"][: 3 * (steps < 6)]).exit_code == 0
    assert tokenfleet("keys", "retire", "test").exit_code == 0
    assert [len(uses) for uses in by_place(tokenfleet).values()][:2] == [0, 0]
    path = Path(environ["TOKENFLEET_HOME"]) / "keys.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({ring: content[ring][:1] for ring in content}))
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM tokenfleet.data_keys WHERE NOT is_primary"))
        only_new = keys.open_vault(connection, Settings.from_environ(environ))
    assert [state_of(engine, only_new, each) for each in accounts] == expected


def test_a_worker_that_seals_on_under_a_former_key_does_not_keep_a_rotation_from_its_end(
    tokenfleet: Shell, engine: Engine, vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resealing, "LAGGARDS_SECONDS", 0.3)
    [account, *_] = make_accounts(engine, vault, make_app(engine, vault), 5)
    count = resealing.Resealing._left

    def seal_on(rotation: resealing.Resealing) -> int:
        """What comes in between one round and the look at what is left."""
        sealed = vault.access.seal("access-1", access_token_binding(account, 1))
        with engine.begin() as connection:
            connection.execute(
                text("UPDATE tokenfleet.token_sets SET access_token = :sealed WHERE account_id = :id"),
                {"sealed": sealed, "id": account},
            )
        return count(rotation)

    monkeypatch.setattr(resealing.Resealing, "_left", seal_on)
    rotated = tokenfleet("keys", "rotate", "--data-keys", "--wait", "0")
    assert rotated.exit_code == 1
    assert rotated.stderr.startswith("not under the newest keys yet: 1 value;")


def test_a_rotation_does_not_end_while_a_worker_still_seals_under_a_former_key(
    tokenfleet: Shell, engine: Engine, vault: Vault, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is under a former key at that moment; what the worker has in hand will be."""
    monkeypatch.setattr(resealing, "LAGGARDS_SECONDS", 0.2)
    monkeypatch.setattr(resealing, "SETTLING_SECONDS", 0.0)
    make_accounts(engine, vault, make_app(engine, vault), 3)
    rings = (settings.access_ring, settings.refresh_ring)
    with engine.begin() as connection:
        key_holders.tell(connection, "worker-on-moon", rings, (1, 2, 3, 4), (1, 2))
    rotated = tokenfleet("keys", "rotate", "--data-keys", "--wait", "0")
    assert rotated.exit_code == 1
    assert rotated.stderr.startswith("still sealing under former keys: worker-on-moon;")
    tell(engine, settings, 1, 2, 3, 4)
    assert tokenfleet("keys", "rotate").exit_code == 0


def test_a_key_that_only_a_journal_needs_is_not_retired(
    tokenfleet: Shell, environ: dict[str, str], engine: Engine, vault: Vault, settings: Settings
) -> None:
    """Everything in the database is under other data keys; the answer on this disk may be an account's only one."""
    [account, *_] = make_accounts(engine, vault, make_app(engine, vault), 2)
    journal = Journal(settings.journal_dir, "worker-1")
    journal.append(answer(vault, account, epoch=1, generation=1))
    former = column(engine, "SELECT wrapped FROM tokenfleet.data_keys ORDER BY id")
    add_keys(tokenfleet, environ)
    assert tokenfleet("keys", "rotate", "--data-keys", "--wait", "0").exit_code == 0
    with engine.begin() as connection:
        # As if it had been restored: this data key is wrapped by the old key again.
        connection.execute(
            text("UPDATE tokenfleet.data_keys SET kek_id = 'test', wrapped = :wrapped WHERE id = 2"),
            {"wrapped": former[1]},
        )
    refused = tokenfleet("keys", "retire", "test")
    assert refused.exit_code == 1
    assert "it wraps data key 2 (refresh), under which 1 value in this machine's journals" in refused.stderr
    assert tokenfleet("keys", "rotate").exit_code == 0
    assert tokenfleet("keys", "retire", "test").exit_code == 0
    journal.close()


def test_values_under_a_data_key_that_is_not_there_are_shown(
    tokenfleet: Shell, engine: Engine, vault: Vault
) -> None:
    make_accounts(engine, vault, make_app(engine, vault), 3)
    with engine.begin() as connection:
        connection.execute(text("UPDATE tokenfleet.data_keys SET id = DEFAULT WHERE ring = 'access'"))
    [lost] = tokenfleet("keys", "status", "--json").document["lost"]
    assert (lost["data_key_id"], lost["place"], lost["values"]) == (1, "token_sets.access_token", 3)
    assert "3 values in token_sets.access_token name data key 1" in tokenfleet("keys", "status").stderr


def test_the_rate_is_kept_after_a_pause_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that could have been sealed while everybody waited are not made up for in one burst."""
    now, slept = 100.0, 0.0

    def sleep(seconds: float) -> None:
        nonlocal now, slept
        now, slept = now + seconds, slept + seconds

    monkeypatch.setattr(resealing, "time", SimpleNamespace(monotonic=lambda: now, sleep=sleep))
    paced = resealing.Resealing(None, None, 1000)  # type: ignore[arg-type]
    now += 60
    for _ in range(20):
        paced._pace(200)
    assert slept == pytest.approx(20 * 0.2 - resealing.BURST_SECONDS)
