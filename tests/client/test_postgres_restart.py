"""A Postgres of the test's own is killed under readers and comes back: who holds a valid token never notices."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import Engine

from embedded.postgres import EmbeddedPostgres
from store import migrate
from store.engine import make_engine
from store.keys import Vault
from tests.support.builders import make_account, make_app
from tests.support.fleet import eventually
from tests.support.readers import Reading, Tasks, Threads, renew, requested
from tokenfleet_client import AsyncTokenClient, DatabaseUnavailable, KeyEncryptionKey, TokenClient


@pytest.fixture
def postgres(tmp_path: Path) -> Iterator[EmbeddedPostgres]:
    with EmbeddedPostgres(tmp_path / "postgres", extra_settings={"shared_buffers": "16MB"}) as server:
        yield server


@pytest.fixture
def database_url(postgres: EmbeddedPostgres) -> str:
    engine = make_engine(postgres.url, application_name="test")
    migrate.upgrade(engine)
    engine.dispose()
    return postgres.url


def test_a_restart_is_not_noticed_by_who_holds_a_token_and_outlived_by_who_waits(
    engine: Engine, vault: Vault, postgres: EmbeddedPostgres, readable: str, keys: list[KeyEncryptionKey]
) -> None:
    app = make_app(engine, vault)
    held, other = make_account(engine, vault, app), make_account(engine, vault, app)
    expired = [make_account(engine, vault, app, expires_in=timedelta(seconds=5)) for _ in range(2)]
    readers: list[Reading] = [
        Threads(TokenClient(readable, keys=keys)),
        Tasks(lambda: AsyncTokenClient(readable, keys=keys)),
    ]
    with ThreadPoolExecutor(4) as pool:
        tokens = [reader.get_token(held) for reader in readers]
        waiting = [
            pool.submit(reader.get_token, account) for reader, account in zip(readers, expired, strict=True)
        ]
        eventually(lambda: requested(engine) == expired)
        os.kill(postgres.pid, signal.SIGQUIT)
        eventually(lambda: not postgres.is_running)

        began = time.monotonic()
        assert [reader.get_token(held) for reader in readers] == tokens
        assert time.monotonic() - began < 1.0, "from memory"
        for reader in readers:
            with pytest.raises(DatabaseUnavailable):
                reader.get_token(other, timeout=timedelta(seconds=0.2))
        begun_meanwhile = [pool.submit(reader.get_token, other) for reader in readers]

        postgres.start()
        engine.dispose()
        assert [each.result().generation for each in begun_meanwhile] == [1, 1]
        for account in expired:
            renew(engine, vault, account)
        assert [each.result().generation for each in waiting] == [2, 2]
    for reader in readers:
        reader.close()
