"""The life of a data key, and what wraps it: announced, promoted once, re-wrapped while others look on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import pytest
from sqlalchemy import Engine, text

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
from tokenfleet_client.errors import EnvelopeError, UnknownKey
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


def with_new_first(settings: Settings) -> tuple[KeyRing, KeyEncryptionKey]:
    """The access ring with a new key first, and that key."""
    new = KeyEncryptionKey.generate("new")
    return KeyRing.of(Ring.ACCESS, [new, *settings.access_ring.keys.values()]), new


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


def test_a_key_that_was_made_before_a_rotation_does_not_bring_the_retired_key_back(
    engine: Engine, settings: Settings, vault: Vault
) -> None:
    """A worker that was frozen between wrapping a new data key and announcing it."""
    with engine.begin() as connection:
        key_id = keys.next_key_id(connection)
    frozen = keys.make_data_key(settings.access_ring, key_id, is_primary=False)
    ring, _ = with_new_first(settings)
    data_keys.rewrap(engine, ring)
    with engine.begin() as connection:
        assert data_keys.announce_key(connection, frozen) is None
    with pytest.raises(UserError, match="somebody else is rotating"):
        data_keys.announce(engine, settings.access_ring)
    assert column(engine, "SELECT kek_id FROM tokenfleet.data_keys WHERE ring = 'access'") == ["new"]


def test_a_machine_with_the_former_key_list_makes_no_data_key(
    engine: Engine, settings: Settings, vault: Vault
) -> None:
    ring, new = with_new_first(settings)
    data_keys.rewrap(engine, ring)
    assert data_keys.wrapping_ring(settings.access_ring, state(engine)) is None
    present = data_keys.wrapping_ring(ring, state(engine))
    assert present is not None
    assert present.primary == new


@dataclass(frozen=True)
class Meddling:
    """A key-encryption key that is asked for the first time when a worker announces a data key under the former one."""

    key: KeyEncryptionKey
    engine: Engine
    former: KeyRing

    @property
    def key_id(self) -> str:
        return self.key.key_id

    def wrap(self, data_key: bytes, ring: Ring, data_key_id: int) -> bytes:
        if data_key_id == 1:
            data_keys.announce(self.engine, self.former)
        return self.key.wrap(data_key, ring, data_key_id)

    def unwrap(self, wrapped: bytes, ring: Ring, data_key_id: int) -> bytes:
        return self.key.unwrap(wrapped, ring, data_key_id)

    def is_outdated(self, wrapped: bytes) -> bool:
        return False


def test_a_data_key_that_is_announced_while_the_others_are_wrapped_anew_is_wrapped_anew_too(
    engine: Engine, settings: Settings, vault: Vault
) -> None:
    [former] = settings.access_ring.keys.values()
    meddling = Meddling(KeyEncryptionKey.generate("new"), engine, settings.access_ring)
    assert data_keys.rewrap(engine, KeyRing.of(Ring.ACCESS, [meddling, former])) == (2, 2)
    assert column(engine, "SELECT kek_id FROM tokenfleet.data_keys WHERE ring = 'access'") == ["new"] * 2


def test_promoting_a_key_that_is_not_there_leaves_the_ring_the_one_it_has(
    engine: Engine, vault: Vault
) -> None:
    with pytest.raises(LookupError):
        promote(engine, 999)
    assert state(engine).primary.wrapped.data_key_id == vault.access.primary_id


def test_a_former_key_that_is_damaged_stops_no_start_and_no_other_key_from_being_wrapped_anew(
    engine: Engine, settings: Settings, vault: Vault
) -> None:
    former = vault.access.primary_id
    sealed = vault.access.seal("access-1", PLACE)
    promote(engine, data_keys.announce(engine, settings.access_ring))
    with engine.begin() as connection:
        connection.execute(
            text("UPDATE tokenfleet.data_keys SET wrapped = :wrapped WHERE id = :id"),
            {"wrapped": b"damaged", "id": former},
        )
        opened = keys.open_vault(connection, settings)
    assert opened.access.open(opened.access.seal("access-2", PLACE), PLACE) == "access-2"
    with pytest.raises(UnknownKey):
        opened.access.open(sealed, PLACE)
    ring, _ = with_new_first(settings)
    with pytest.raises(EnvelopeError, match=f"data key {former} of the access ring"):
        data_keys.rewrap(engine, ring)
    assert state(engine).primary.wrapped.kek_id == "new"


def test_of_two_renewals_the_one_that_has_read_later_wins_whichever_ends_first(
    engine: Engine, settings: Settings, vault: Vault
) -> None:
    with engine.connect() as connection:
        before = keys.load_wrapped(connection)
    new = data_keys.announce(engine, settings.access_ring)
    promote(engine, new)
    with engine.connect() as connection:
        after = keys.load_wrapped(connection)
    keys.renew(after, settings, vault, read_at=2.0)
    keys.renew(before, settings, vault, read_at=1.0)
    assert (vault.access.primary_id, new in vault.access.key_ids) == (new, True)


def test_a_process_holds_a_bounded_number_of_keys_and_those_that_it_needs(
    engine: Engine, settings: Settings, vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "MAX_HELD", 3)
    ids = [vault.access.primary_id]
    sealed = vault.access.seal("access-1", PLACE)
    for _ in range(5):
        ids.append(data_keys.announce(engine, settings.access_ring))
        promote(engine, ids[-1])
    ids.append(data_keys.announce(engine, settings.access_ring))
    with engine.connect() as connection:
        rows = keys.load_wrapped(connection)
    keys.renew(rows, settings, vault, read_at=1.0)
    assert vault.access.key_ids == set(ids[-3:])
    keys.renew(rows, settings, vault, read_at=2.0, wanted={ids[0]})
    assert vault.access.key_ids == {ids[0], *ids[-2:]}
    assert vault.access.primary_id == ids[-2]
    assert vault.access.open(sealed, PLACE) == "access-1"
