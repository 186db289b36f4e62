"""A worker brings what it opened to Postgres: with its looks at the keys, and at its end."""

from __future__ import annotations

import asyncio

import pytest
from prometheus_client import REGISTRY
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from store.engine import make_async_engine
from store.keys import Vault
from tests.support.builders import column
from tokenfleet.settings import Settings
from tokenfleet_client.envelope import access_token_binding
from tokenfleet_client.unsealings import Purpose
from workers.key_watch import KeyWatch

PLACE = access_token_binding(1, 1)
COUNTS = "SELECT purpose || ' ' || caller || ' ' || sum(opened) FROM tokenfleet.unsealings GROUP BY purpose, caller"


def told() -> float:
    return REGISTRY.get_sample_value("tokenfleet_unsealed_total", {"purpose": "candidate"}) or 0.0


def test_what_was_opened_is_written_at_a_look_and_the_rest_at_the_end(
    engine: Engine, settings: Settings, vault: Vault
) -> None:
    before = told()
    sealed = vault.access.seal("example", PLACE)

    def open_some(times: int) -> None:
        for _ in range(times):
            vault.access.open(sealed, PLACE, Purpose.CANDIDATE)

    async def scene() -> None:
        database = make_async_engine(settings.database_url, application_name="test", pool_size=2)
        watch = KeyWatch(database, settings, vault, process="worker-1")
        open_some(3)
        await watch.look()
        assert column(engine, COUNTS) == ["candidate worker-1 3"]
        open_some(2)
        await watch.close()

    asyncio.run(scene())
    assert column(engine, COUNTS) == ["candidate worker-1 5"]
    assert told() - before == 5


def test_while_postgres_is_away_counts_wait_and_a_stop_does_not(
    engine: Engine, settings: Settings, vault: Vault
) -> None:
    before = told()
    sealed = vault.access.seal("example", PLACE)

    async def scene() -> None:
        nowhere = make_async_engine(
            "postgresql+psycopg://x@127.0.0.1:1/x", application_name="test", pool_size=1
        )
        watch = KeyWatch(nowhere, settings, vault, process="worker-1")
        for _ in range(2):
            vault.access.open(sealed, PLACE, Purpose.CANDIDATE)
            with pytest.raises((SQLAlchemyError, OSError)):
                await watch.look()
        here = make_async_engine(settings.database_url, application_name="test", pool_size=1)
        watch._engine = here
        await watch.look()
        await here.dispose()
        watch._engine = nowhere
        vault.access.open(sealed, PLACE, Purpose.CANDIDATE)
        await watch.close()

    asyncio.run(scene())
    assert column(engine, COUNTS) == ["candidate worker-1 2"]
    assert told() - before == 3, "the metric knows the one that is lost"
