"""Data keys that are younger than a worker: loaded before anything is called damaged, and not too often."""

from __future__ import annotations

import asyncio
import os
from typing import Any, cast

from sqlalchemy import text

from store import keys
from store.keys import Vault
from tests.support.fleet import Fleet
from tokenfleet.jobs import RefreshJob
from tokenfleet.settings import Settings
from tokenfleet_client.envelope import KEY_BYTES, DataKeys, Ring, WrappedKey
from workers.key_renewal import RENEWAL_SECONDS, KeyRenewal


def make_new_primaries(fleet: Fleet) -> None:
    """As a rotation of data keys does, in another process."""
    for ring in (fleet.settings.access_ring, fleet.settings.refresh_ring):
        assert ring.primary is not None
        with fleet.engine.begin() as connection:
            connection.execute(
                text("UPDATE tokenfleet.data_keys SET is_primary = false WHERE ring = :ring"),
                {"ring": ring.ring.value},
            )
            key_id = connection.execute(
                text("SELECT nextval(pg_get_serial_sequence('tokenfleet.data_keys', 'id'))")
            ).scalar_one()
            connection.execute(
                text(
                    "INSERT INTO tokenfleet.data_keys (id, ring, kek_id, wrapped, is_primary) "
                    "OVERRIDING SYSTEM VALUE VALUES (:id, :ring, :kek_id, :wrapped, true)"
                ),
                {
                    "id": key_id,
                    "ring": ring.ring.value,
                    "kek_id": ring.primary.key_id,
                    "wrapped": ring.primary.wrap(os.urandom(KEY_BYTES), Ring(ring.ring), key_id),
                },
            )


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
