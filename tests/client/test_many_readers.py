"""Readers and a fleet that refreshes: a worker's own engine, and a provider that keeps a ledger.

``bench/get_token.py`` has twenty processes of fifty tasks.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from sandbox.config import SandboxConfig
from sandbox.server import SandboxServer
from store.keys import Vault
from tests.support.fleet import Fleet, eventually
from tests.support.reader_process import ReaderProcesses
from tests.support.readers import Reading
from tokenfleet.jobs import AccountId
from tokenfleet.settings import Settings
from tokenfleet_client import KeyEncryptionKey
from tokenfleet_client.queries import LISTEN


@pytest.fixture
def fleet(engine: Engine, vault: Vault, settings: Settings, tmp_path: Path) -> Iterator[Fleet]:
    with SandboxServer(SandboxConfig()) as server:
        yield Fleet(engine, vault, settings, server, tmp_path / "providers")


def expired(fleet: Fleet) -> AccountId:
    """Return an account whose token has expired, and that is due in an hour only."""
    [account] = fleet.connect("customer")
    with fleet.engine.begin() as connection:
        connection.execute(text("UPDATE tokenfleet.token_sets SET expires_at = now() - interval '1 second'"))
        connection.execute(
            text("UPDATE tokenfleet.refresh_schedule SET next_refresh_at = now() + interval '1 hour'")
        )
    return account


def test_many_readers_of_one_expired_account_make_one_request_at_the_provider(
    fleet: Fleet, readable: str, keys: list[KeyEncryptionKey]
) -> None:
    environ = os.environ | {"TOKENFLEET_ACCESS_KEYS": keys[0].export()}
    readers = ReaderProcesses(3, readable, expired(fleet), 20, environ)
    served = threading.Event()

    with fleet.worker() as worker:

        def schedule() -> None:
            while not served.wait(0.02):
                worker.run(fleet.claim())

        scheduler = threading.Thread(target=schedule)
        scheduler.start()
        try:
            outcome = readers.read()
        finally:
            served.set()
            scheduler.join()
    assert dict(outcome.got) == {"2": 60}
    customer = fleet.server.subject("customer")
    assert (customer.presented, customer.refreshes, customer.presented_twice) == (1, 1, 0)


def test_the_fleets_own_word_wakes_who_waits(
    fleet: Fleet, readable: str, make_reader: Callable[..., Reading], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nobody looks for themselves in time.
    monkeypatch.setattr("tokenfleet_client.reading.FIRST_POLL_SECONDS", 600.0)
    monkeypatch.setattr("tokenfleet_client.reading.LONGEST_POLL_SECONDS", 600.0)
    account, reader = expired(fleet), make_reader(readable)

    def listens() -> bool:
        statement = "SELECT count(*) FROM pg_stat_activity WHERE state = 'idle' AND query = :query"
        return fleet.column(statement, query=LISTEN) == [1]

    with fleet.worker() as worker, ThreadPoolExecutor(1) as pool:
        waits = pool.submit(reader.get_token, account)
        eventually(listens)
        worker.run(fleet.claim())
        assert waits.result().generation == 2
