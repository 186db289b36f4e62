"""A running worker: it follows a rotation, replaces worn keys, and does not miss a key service that is away."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.ext.asyncio import AsyncEngine

from store import data_keys, key_holders, keys
from store.data_keys import ANNOUNCED_FOR, MAX_AGE, RingState
from store.engine import make_async_engine
from store.keys import KeysAway, Vault
from tests.support.builders import column
from tests.support.vault_server import TOKEN, VaultServer
from tokenfleet.key_rings import KeyRing
from tokenfleet.key_services.vault_transit import VaultAccess, VaultTransitKey
from tokenfleet.settings import Settings
from tokenfleet_client.envelope import Ring, access_token_binding
from tokenfleet_client.secret import Secret
from workers.key_renewal import RENEWAL_SECONDS, KeyRenewal
from workers.key_watch import KeyWatch

PLACE = access_token_binding(1, 1)


@pytest.fixture
def service() -> Iterator[VaultServer]:
    with VaultServer("access") as server:
        yield server


@pytest.fixture
def in_vault(service: VaultServer, settings: Settings) -> Settings:
    key_id, _, url = service.address("in-vault", "access").partition(":")
    key = VaultTransitKey.parse(key_id, url, VaultAccess(Secret(TOKEN)))
    return replace(settings, access_ring=KeyRing.of(Ring.ACCESS, [key]))


def run(settings: Settings, scene: Callable[[AsyncEngine], Awaitable[None]]) -> None:
    async def in_engine() -> None:
        engine = make_async_engine(settings.database_url, application_name="test", pool_size=2)
        try:
            await scene(engine)
        finally:
            await engine.dispose()

    asyncio.run(in_engine())


def open_vault(engine: Engine, settings: Settings) -> Vault:
    with engine.begin() as connection:
        return keys.open_vault(connection, settings)


def let_pass(engine: Engine, time: timedelta) -> None:
    with engine.begin() as connection:
        connection.execute(
            text("UPDATE tokenfleet.data_keys SET created_at = created_at - :time"), {"time": time}
        )


def state(engine: Engine) -> RingState:
    with engine.connect() as connection:
        found = data_keys.state_of(Ring.ACCESS, data_keys.load(connection))
    assert found is not None
    return found


@pytest.mark.parametrize("worn_by", ["age", "count"])
def test_a_worn_key_is_replaced_by_itself_and_every_worker_has_the_new_one_before_it_seals(
    engine: Engine, settings: Settings, worn_by: str
) -> None:
    ours, sibling = open_vault(engine, settings), open_vault(engine, settings)
    former = ours.access.primary_id
    if worn_by == "age":
        let_pass(engine, MAX_AGE)
    else:
        # As many as were counted elsewhere, and one of ours, which the look itself adds.
        with engine.begin() as connection:
            data_keys.add_sealings(connection, {former: data_keys.MAX_SEALINGS - 1})
        ours.access.seal("access-1", PLACE)

    async def scene(database: AsyncEngine) -> None:
        watches = [
            KeyWatch(database, settings, vault, process=f"worker-{id(vault)}") for vault in (ours, sibling)
        ]
        for watch in watches:
            await watch.look()
        announced = state(engine).announced
        assert announced is not None
        new = announced.wrapped.data_key_id
        for watch in watches:
            await watch.look()
        assert [(v.access.primary_id, new in v.access.key_ids) for v in (ours, sibling)] == [
            (former, True)
        ] * 2
        let_pass(engine, ANNOUNCED_FOR)
        await watches[0].look()
        assert state(engine).primary.wrapped.data_key_id == new
        # The sibling has not looked, and opens what we seal all the same.
        await watches[0].look()
        assert ours.access.primary_id == new
        assert sibling.access.open(ours.access.seal("access-1", PLACE), PLACE) == "access-1"

    run(settings, scene)


def test_a_key_service_that_is_away_stops_nothing_and_a_rotation_waits_for_it(
    engine: Engine, in_vault: Settings, service: VaultServer
) -> None:
    vault = open_vault(engine, in_vault)
    former = vault.access.primary_id
    let_pass(engine, MAX_AGE)
    service.go()

    async def scene(database: AsyncEngine) -> None:
        watch = KeyWatch(database, in_vault, vault, process="worker")
        for _ in range(3):
            sealed = vault.access.seal("access-1", PLACE)
            with pytest.raises(Exception, match="does not answer"):
                await watch.look()
            assert vault.access.open(sealed, PLACE) == "access-1"
        assert state(engine).announced is None
        service.come()
        await watch.look()
        assert state(engine).announced is not None
        assert state(engine).primary.wrapped.data_key_id == former
        assert state(engine).primary.sealings == 3

    run(in_vault, scene)


def test_rows_under_a_key_that_a_service_keeps_to_itself_wait_and_are_not_called_damaged(
    engine: Engine, in_vault: Settings, service: VaultServer
) -> None:
    vault = open_vault(engine, in_vault)
    key_id = data_keys.announce(engine, in_vault.access_ring)
    with engine.begin() as connection:
        data_keys.promote(connection, Ring.ACCESS, key_id)
    service.go()

    async def scene(database: AsyncEngine) -> None:
        renewal = KeyRenewal(database, in_vault, vault)
        assert await renewal.renew() == RENEWAL_SECONDS
        with pytest.raises(KeysAway):
            await KeyWatch(database, in_vault, vault, process="worker").look()
        service.come()
        await KeyWatch(database, in_vault, vault, process="worker").look()
        assert vault.access.primary_id == key_id

    run(in_vault, scene)


def test_a_machine_that_was_given_a_new_key_first_wraps_nothing_with_it(
    engine: Engine, settings: Settings, in_vault: Settings
) -> None:
    open_vault(engine, settings)
    [new], [former] = in_vault.access_ring.keys.values(), settings.access_ring.keys.values()
    ahead = replace(settings, access_ring=KeyRing.of(Ring.ACCESS, [new, former]))
    let_pass(engine, MAX_AGE)

    async def scene(database: AsyncEngine) -> None:
        await KeyWatch(database, ahead, open_vault(engine, ahead), process="worker").look()

    run(settings, scene)
    announced = state(engine).announced
    assert announced is not None
    assert announced.wrapped.kek_id == former.key_id


def test_no_key_seals_before_every_living_worker_can_open_it(
    engine: Engine, in_vault: Settings, service: VaultServer
) -> None:
    """One of two cannot reach its key service just now: whoever could would seal what the other cannot open."""
    ours, sibling = open_vault(engine, in_vault), open_vault(engine, in_vault)
    former = ours.access.primary_id
    let_pass(engine, MAX_AGE)

    async def scene(database: AsyncEngine) -> None:
        watch = KeyWatch(database, in_vault, ours, process="ours")
        cut_off = KeyWatch(database, in_vault, sibling, process="sibling")
        await cut_off.look()
        await watch.look()
        announced = state(engine).announced
        assert announced is not None
        new = announced.wrapped.data_key_id
        let_pass(engine, ANNOUNCED_FOR)
        service.go()
        with pytest.raises(KeysAway):
            await cut_off.look()
        service.come()
        await watch.look()
        assert new in ours.access.key_ids
        assert state(engine).primary.wrapped.data_key_id == former
        # It looks again and has it; or it would be gone.
        await cut_off.look()
        await watch.look()
        assert state(engine).primary.wrapped.data_key_id == new

    run(in_vault, scene)


def test_a_worker_that_is_gone_holds_no_rotation_up(engine: Engine, settings: Settings) -> None:
    vault = open_vault(engine, settings)
    new = data_keys.announce(engine, settings.access_ring)
    let_pass(engine, ANNOUNCED_FOR)
    with engine.begin() as connection:
        key_holders.tell(connection, "gone", (settings.access_ring,), {vault.access.primary_id}, ())
        connection.execute(
            text("UPDATE tokenfleet.key_holders SET seen_at = seen_at - CAST(:ago AS interval)"),
            {"ago": key_holders.ALIVE_FOR},
        )

    async def scene(database: AsyncEngine) -> None:
        await KeyWatch(database, settings, vault, process="worker").look()

    run(settings, scene)
    assert state(engine).primary.wrapped.data_key_id == new


def test_a_worker_with_a_former_key_list_promotes_nothing_makes_nothing_and_says_so(
    engine: Engine, settings: Settings, in_vault: Settings
) -> None:
    vault = open_vault(engine, settings)
    former = vault.access.primary_id
    [new], [old] = in_vault.access_ring.keys.values(), settings.access_ring.keys.values()
    ring = KeyRing.of(Ring.ACCESS, [new, old])
    data_keys.rewrap(engine, ring)
    let_pass(engine, MAX_AGE)

    async def scene(database: AsyncEngine) -> None:
        watch = KeyWatch(database, settings, vault, process="behind")
        await watch.look()
        assert state(engine).announced is None
        data_keys.announce(engine, ring)
        let_pass(engine, ANNOUNCED_FOR)
        await watch._look_safely()
        assert watch.trouble is not None
        assert "'in-vault' in this machine's key list?" in watch.trouble

    run(settings, scene)
    assert state(engine).primary.wrapped.data_key_id == former
    assert column(engine, "SELECT kek_id FROM tokenfleet.data_keys WHERE ring = 'access'") == ["in-vault"] * 2
