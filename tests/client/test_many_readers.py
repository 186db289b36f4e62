"""Several processes with many tasks each want one expired account: the provider hears of it once, and all are served.

``bench/get_token.py`` does the same with twenty processes of fifty tasks.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

from sqlalchemy import Engine, text

from sandbox.config import SandboxConfig
from sandbox.server import SandboxServer
from store.keys import Vault
from tests.support.fleet import Fleet
from tests.support.reader_process import ReaderProcesses
from tokenfleet.settings import Settings
from tokenfleet_client import KeyEncryptionKey


def test_many_readers_of_one_expired_account_make_one_request_at_the_provider(
    engine: Engine,
    vault: Vault,
    settings: Settings,
    readable: str,
    keys: list[KeyEncryptionKey],
    tmp_path: Path,
) -> None:
    environ = os.environ | {"TOKENFLEET_ACCESS_KEYS": keys[0].export()}
    with SandboxServer(SandboxConfig()) as server:
        fleet = Fleet(engine, vault, settings, server, tmp_path / "providers")
        [account] = fleet.connect("customer")
        with engine.begin() as connection:
            connection.execute(
                text("UPDATE tokenfleet.token_sets SET expires_at = now() - interval '1 second'")
            )
            connection.execute(
                text("UPDATE tokenfleet.refresh_schedule SET next_refresh_at = now() + interval '1 hour'")
            )
        readers = ReaderProcesses(3, readable, account, 20, environ)
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
        customer = server.subject("customer")
        assert (customer.presented, customer.refreshes, customer.presented_twice) == (1, 1, 0)
