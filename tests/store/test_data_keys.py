"""The life of a data key, and what wraps it: announced, promoted once, re-wrapped while others look on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import pytest
from sqlalchemy import Engine

from store import data_keys, keys
from store.data_keys import RingState
from store.keys import KeysAway, Vault
from tests.support.builders import column
from tests.support.racing import race
from tests.support.vault_server import TOKEN, VaultServer
from tokenfleet.errors import UserError
from tokenfleet.key_rings import KeyRing
from tokenfleet.key_services.vault_transit import VaultAccess, VaultTransitKey
from tokenfleet.settings import Settings
from tokenfleet_client.envelope import KeyEncryptionKey, Ring, access_token_binding
from tokenfleet_client.secret import Secret

PLACE = access_token_binding(1, 1)


@pytest.fixture
def service() -> Iterator[VaultServer]:
    with VaultServer("access") as server:
        yield server


def in_vault(server: VaultServer, settings: Settings) -> Settings:
    """``settings`` with the access ring's keys in Vault first, and the former one behind."""
    key_id, _, url = server.address("in-vault", "access").partition(":")
    key = VaultTransitKey.parse(key_id, url, VaultAccess(Secret(TOKEN)))
    return replace(settings, access_ring=KeyRing.of(Ring.ACCESS, [key, *settings.access_ring.keys.values()]))


def state(engine: Engine, ring: Ring = Ring.ACCESS) -> RingState:
    with engine.connect() as connection:
        found = data_keys.state_of(ring, data_keys.load(connection))
    assert found is not None
    return found


def promote(engine: Engine, key_id: int) -> bool:
    with engine.begin() as connection:
        return data_keys.promote(connection, Ring.ACCESS, key_id)


def test_an_announced_key_seals_nothing_and_everybody_can_have_it_before_it_does(
    engine: Engine, settings: Settings, vault: Vault
) -> None:
    former = vault.access.primary_id
    key_id = data_keys.announce(engine, settings.access_ring)
    assert data_keys.announce(engine, settings.access_ring) == key_id
    with engine.connect() as connection:
        keys.reload(connection, settings, vault)
    assert (vault.access.primary_id, key_id in vault.access.key_ids) == (former, True)
    assert promote(engine, key_id)
    assert not promote(engine, key_id)
    assert (state(engine).primary.wrapped.data_key_id, state(engine).announced) == (key_id, None)


def test_eight_that_announce_and_promote_at_once_make_one_key(
    engine: Engine, settings: Settings, vault: Vault
) -> None:
    announced = race([partial(data_keys.announce, engine, settings.access_ring)] * 8)
    assert len(set(announced)) == 1
    assert sum(race([partial(promote, engine, announced[0])] * 8)) == 1
    assert column(engine, "SELECT count(*) FROM tokenfleet.data_keys WHERE ring = 'access'") == [2]


def test_a_key_is_wrapped_anew_by_a_key_service_and_opens_what_it_sealed(
    engine: Engine, settings: Settings, vault: Vault, service: VaultServer
) -> None:
    sealed = vault.access.seal("access-1", PLACE)
    moved = in_vault(service, settings)
    assert data_keys.rewrap(engine, moved.access_ring) == (1, 1)
    assert data_keys.rewrap(engine, moved.access_ring) == (0, 1)
    service.rotate("access")
    assert data_keys.rewrap(engine, moved.access_ring) == (1, 1)
    service.min_decryption_version = 2
    without_former = replace(moved, access_ring=KeyRing.of(Ring.ACCESS, [moved.access_ring.keys["in-vault"]]))
    with engine.begin() as connection:
        assert keys.open_vault(connection, without_former).access.open(sealed, PLACE) == "access-1"
        with pytest.raises(UserError, match="'in-vault', which is not configured here"):
            keys.open_vault(connection, settings)


def test_a_key_service_that_is_away_stops_nobody_who_runs_and_is_one_sentence_at_the_start(
    engine: Engine, settings: Settings, service: VaultServer
) -> None:
    moved = in_vault(service, settings)
    with engine.begin() as connection:
        vault = keys.open_vault(connection, moved)
    sealed = vault.access.seal("access-1", PLACE)
    asked = len(service.asked)
    service.go()
    with engine.begin() as connection:
        keys.reload(connection, moved, vault)
        assert vault.access.open(vault.access.seal("access-2", PLACE), PLACE) == "access-2"
        with pytest.raises(KeysAway, match="needs it when it starts, those that run go on") as away:
            keys.open_vault(connection, moved)
    assert "\n" not in str(away.value)
    service.come()
    with engine.begin() as connection:
        assert keys.open_vault(connection, moved).access.open(sealed, PLACE) == "access-1"
    # What is held is not asked for again.
    assert len(service.asked) == asked + 1


def test_a_rotation_without_the_former_key_changes_nothing_and_says_which_one_it_misses(
    engine: Engine, settings: Settings, vault: Vault
) -> None:
    before = column(engine, "SELECT wrapped FROM tokenfleet.data_keys ORDER BY id")
    other = KeyRing.of(Ring.ACCESS, [KeyEncryptionKey.generate("other")])
    with pytest.raises(UserError, match="'test', which is not configured here: keep it"):
        data_keys.rewrap(engine, other)
    assert column(engine, "SELECT wrapped FROM tokenfleet.data_keys ORDER BY id") == before


def test_what_was_sealed_is_added_up_across_processes(
    engine: Engine, settings: Settings, vault: Vault
) -> None:
    for _ in range(3):
        vault.access.seal("access-1", PLACE)
    with engine.begin() as connection:
        keys.reload(connection, settings, vault)
        data_keys.add_sealings(connection, data_keys.take_sealings(vault.access, vault.refresh))
        data_keys.add_sealings(connection, {vault.access.primary_id: data_keys.MAX_SEALINGS - 3})
        assert data_keys.take_sealings(vault.access, vault.refresh) == {}
    assert state(engine).primary.sealings == data_keys.MAX_SEALINGS
    assert state(engine).primary.is_worn
    assert not state(engine, Ring.REFRESH).primary.is_worn
