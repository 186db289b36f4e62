"""Data keys that are younger than a worker: loaded before anything is called damaged, and not too often."""

from __future__ import annotations

import asyncio
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, cast

import pytest
from sqlalchemy import text

from store import data_keys, keys
from store.keys import Vault
from tests.support.builders import let_claims_expire
from tests.support.fleet import Fleet, eventually
from tests.support.vault_server import TOKEN, VaultServer
from tokenfleet.jobs import RefreshJob
from tokenfleet.key_rings import KeyRing
from tokenfleet.key_services.vault_transit import VaultAccess, VaultTransitKey
from tokenfleet.settings import Settings
from tokenfleet_client.envelope import KEY_BYTES, Binding, DataKeys, KeyEncryptionKey, Ring, WrappedKey
from tokenfleet_client.secret import Secret
from workers import key_renewal
from workers.key_renewal import RENEWAL_SECONDS, KeyRenewal


def make_new_primaries(fleet: Fleet) -> None:
    """As a rotation of data keys does, in another process."""
    for ring in (fleet.settings.access_ring, fleet.settings.refresh_ring):
        key_id = data_keys.announce(fleet.engine, ring)
        with fleet.engine.begin() as connection:
            assert data_keys.promote(connection, ring.ring, key_id)


def test_what_a_sibling_has_sealed_under_a_newer_key_is_opened_and_not_quarantined(fleet: Fleet) -> None:
    with fleet.worker() as worker:
        make_new_primaries(fleet)
        with fleet.engine.begin() as connection:
            fleet.vault = keys.open_vault(connection, fleet.settings)
        [account_id] = fleet.connect("customer")
        # The client secret too.
        fleet.register(fleet.server.config.client_secret)
        worker.run(fleet.claim())
        row = fleet.row(account_id)
        assert (row.generation, row.quarantined, row.status) == (2, False, "active")
    assert fleet.server.ledger().rejected == 0
    assert fleet.current_app().held_since is None


def test_a_row_under_a_key_that_nobody_has_is_quarantined_as_ever(fleet: Fleet) -> None:
    [account_id] = fleet.connect("customer")
    with fleet.engine.begin() as connection:
        # Another key's number in the head of the envelope.
        connection.execute(
            text(
                "UPDATE tokenfleet.token_sets SET refresh_token = overlay(refresh_token placing :id from 2)"
            ),
            {"id": (999_999).to_bytes(4, "big")},
        )
    with fleet.worker() as worker:
        worker.run(fleet.claim())
    [error, quarantined] = fleet.column(
        "SELECT unnest(ARRAY[last_error, quarantined::text]) FROM tokenfleet.refresh_schedule "
        "WHERE account_id = :id",
        id=account_id,
    )
    assert (error, quarantined) == ("envelope_unreadable", "true")


def a_vault() -> Vault:
    access, refresh = (DataKeys(ring, {1: os.urandom(KEY_BYTES)}, 1) for ring in Ring)
    return Vault(access, refresh)


class CountingEngine:
    """Stands where the engine does; counts how often the keys are asked for."""

    def __init__(self, *, away: bool = False) -> None:
        self.loads = 0
        self.away = away

    def connect(self) -> CountingEngine:
        return self

    async def __aenter__(self) -> CountingEngine:
        return self

    async def __aexit__(self, *_: object) -> None:
        return None

    async def run_sync(self, *_: object) -> list[WrappedKey]:
        await asyncio.sleep(0)
        self.loads += 1
        if self.away:
            raise OSError
        return [WrappedKey(1, ring, "test", b"", is_primary=True) for ring in Ring]


def test_however_many_rows_name_a_strange_key_postgres_is_asked_once_in_a_while(
    settings: Settings,
) -> None:
    now = 1000.0

    def clock() -> float:
        nonlocal now
        now += 0.001
        return now

    async def scene() -> None:
        nonlocal now
        engine = CountingEngine()
        renewal = KeyRenewal(cast(Any, engine), settings, a_vault(), clock=clock)
        # Who asked before the look began shares it; who comes later waits.
        waits = await asyncio.gather(*(renewal.renew() for _ in range(50)))
        assert engine.loads == 1
        assert waits[0] == 0.0
        later = await renewal.renew()
        assert 0 < later <= RENEWAL_SECONDS
        now += RENEWAL_SECONDS
        assert await renewal.renew() == 0.0
        assert engine.loads == 2

    asyncio.run(scene())


def test_a_look_that_failed_has_shown_nobody_that_a_key_is_not_there(settings: Settings) -> None:
    """Postgres hangs: who waits for one look begins the next, and who waits for that one has seen nothing either."""
    now = 0.0

    class Hanging(CountingEngine):
        async def run_sync(self, *args: object) -> list[WrappedKey]:
            nonlocal now
            now += RENEWAL_SECONDS + 1
            return await super().run_sync(*args)

    async def scene() -> None:
        engine = Hanging(away=True)
        renewal = KeyRenewal(cast(Any, engine), settings, cast(Any, None), clock=lambda: now)
        waits = await asyncio.gather(*(renewal.renew() for _ in range(3)))
        assert engine.loads == 2
        assert min(waits) > 0

    asyncio.run(scene())


def test_nobody_waits_for_a_key_that_a_look_did_not_find(fleet: Fleet) -> None:
    """A lost key of the access ring: its tokens are replaced by refreshes, all of them now."""
    first, second = fleet.connect("first", "second")
    with fleet.engine.begin() as connection:
        connection.execute(
            text("UPDATE tokenfleet.token_sets SET access_token = overlay(access_token placing :id from 2)"),
            {"id": (999_999).to_bytes(4, "big")},
        )
    with fleet.worker() as worker:
        [job] = fleet.claim()
        for account in job.accounts:
            worker.run([RefreshJob(job.job_id, job.app_id, (account,))])
    assert [fleet.row(each).generation for each in (first, second)] == [2, 2]


def test_rows_under_a_key_that_this_machine_was_not_given_wait_for_one_that_was(fleet: Fleet) -> None:
    """An operator rotated before this machine had the new key list: six hours of quarantine would be his mistake's."""
    former = fleet.settings
    newest = KeyEncryptionKey.generate("new")
    access, refresh = (
        KeyRing.of(ring.ring, [newest, *ring.keys.values()])
        for ring in (former.access_ring, former.refresh_ring)
    )
    with fleet.worker() as behind:
        for ring in (access, refresh):
            data_keys.rewrap(fleet.engine, ring)
        fleet.settings = replace(former, access_ring=access, refresh_ring=refresh)
        make_new_primaries(fleet)
        with fleet.engine.begin() as connection:
            fleet.vault = keys.open_vault(connection, fleet.settings)
        [account_id] = fleet.connect("customer")
        behind.run(fleet.claim())
        row = fleet.row(account_id)
        assert (row.generation, row.quarantined, row.attempts, row.last_error) == (1, False, 0, None)
        with fleet.worker() as given:

            def taken() -> bool:
                let_claims_expire(fleet.engine)
                given.run(fleet.claim())
                return fleet.row(account_id).generation == 2

            eventually(taken, what="taken by the other worker")
    assert fleet.server.ledger().rejected == 0


class Hanging:
    """A key service that takes a connection and never answers."""

    key_id = "test"

    def __init__(self) -> None:
        self.asked = 0
        self.answers = threading.Event()

    def wrap(self, data_key: bytes, ring: Ring, data_key_id: int) -> bytes:
        raise AssertionError

    def unwrap(self, wrapped: bytes, ring: Ring, data_key_id: int) -> bytes:
        self.asked += 1
        assert self.answers.wait(30)
        return bytes(KEY_BYTES)

    def is_outdated(self, wrapped: bytes) -> bool:
        return False


def test_a_key_service_that_hangs_occupies_one_thread_and_none_that_the_journal_needs(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_renewal, "PATIENCE_SECONDS", 0.0)
    now = 0.0
    hanging = Hanging()
    ring = KeyRing.of(Ring.ACCESS, [hanging])

    class WithNewKey(CountingEngine):
        async def run_sync(self, *args: object) -> list[WrappedKey]:
            new = WrappedKey(2, Ring.ACCESS, "test", b"", is_primary=False)
            return [*await super().run_sync(*args), new]

    async def scene() -> None:
        nonlocal now
        # One thread, as on a machine with few cores and everything else at work.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        vault = a_vault()
        renewal = KeyRenewal(
            cast(Any, WithNewKey()), replace(settings, access_ring=ring), vault, clock=lambda: now
        )
        for _ in range(20):
            now += RENEWAL_SECONDS
            assert await renewal.renew() == RENEWAL_SECONDS
        assert await asyncio.wait_for(asyncio.to_thread(lambda: "synced"), 20) == "synced"
        hanging.answers.set()
        await asyncio.to_thread(lambda: eventually(lambda: 2 in vault.access.key_ids))

    asyncio.run(scene())
    assert hanging.asked == 1


def test_a_key_that_was_given_up_for_newer_ones_is_asked_for_again(settings: Settings) -> None:
    """Of hundreds of keys a process holds some: what it has found once it does not call lost later."""
    now = 0.0
    service = Hanging()
    service.answers.set()
    ring = KeyRing.of(Ring.REFRESH, [service])
    place = Binding(Ring.REFRESH, "app:1", "client_secret", 1)
    sealed = DataKeys(Ring.REFRESH, {2: bytes(KEY_BYTES)}, 2).seal("secret", place)

    class WithOldKey(CountingEngine):
        async def run_sync(self, *args: object) -> list[WrappedKey]:
            old = WrappedKey(2, Ring.REFRESH, "test", b"", is_primary=False)
            return [*await super().run_sync(*args), old]

    async def scene() -> None:
        nonlocal now
        vault = a_vault()
        held = vault.refresh
        renewal = KeyRenewal(
            cast(Any, WithOldKey()), replace(settings, refresh_ring=ring), vault, clock=lambda: now
        )
        for _ in range(2):
            assert renewal.lacks_key_of_secret(sealed)
            now += RENEWAL_SECONDS
            assert await renewal.renew() == 0.0
            assert vault.refresh.open(sealed, place) == "secret"
            vault.refresh = held

    asyncio.run(scene())


def test_ten_minutes_without_the_key_service_stop_no_refresh(fleet: Fleet) -> None:
    """Forty looks of the real key watch, each of which needs the service; and refreshes between them."""
    with VaultServer("access", "refresh") as service:
        rings = []
        for ring in (fleet.settings.access_ring, fleet.settings.refresh_ring):
            key_id, _, url = service.address("in-vault", ring.ring.value).partition(":")
            key = VaultTransitKey.parse(key_id, url, VaultAccess(Secret(TOKEN)))
            rings.append(KeyRing.of(ring.ring, [key, *ring.keys.values()]))
            data_keys.rewrap(fleet.engine, rings[-1])
        fleet.settings = replace(fleet.settings, access_ring=rings[0], refresh_ring=rings[1])
        [account_id] = fleet.connect("customer")
        with fleet.worker() as worker:
            for ring in rings:
                data_keys.announce(fleet.engine, ring)
            service.go()
            for _ in range(4):
                for _ in range(10):
                    worker.engine._submit(worker.engine._key_watch._look_safely()).result(20)
                assert worker.engine.problems()[0] == []
                assert "does not answer" in worker.engine.problems()[1][0]
                fleet.make_due(account_id)
                worker.run(fleet.claim())
            row = fleet.row(account_id)
            assert (row.generation, row.status, row.quarantined) == (5, "active", False)
            service.come()
            worker.engine._submit(worker.engine._key_watch._look_safely()).result(20)
            assert worker.engine.problems() == ([], [])
    assert fleet.server.ledger().rejected == 0
