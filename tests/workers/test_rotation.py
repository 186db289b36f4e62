"""Every key replaced while a fleet refreshes: what ``bench/resealing.py`` shows with a million accounts, in seconds."""

from __future__ import annotations

import json
import threading
from concurrent.futures import wait
from pathlib import Path

import pytest
from click.testing import CliRunner
from sqlalchemy import Engine, text

from cli.main import root
from sandbox.config import SandboxConfig
from sandbox.server import SandboxServer
from store import keys
from store.keys import Vault
from store.sealed_places import uses
from tests.support.fleet import Fleet, eventually
from tokenfleet.jobs import AccountId
from tokenfleet.settings import Settings
from workers import key_watch

ACCOUNTS = 200
LIFETIME_SECONDS = 60
FRESH_SECONDS = 30


class Load:
    """Refreshes every account again and again, and looks all the time for the token that expires first."""

    def __init__(self, fleet: Fleet, ids: list[AccountId]) -> None:
        self._fleet = fleet
        self._ids = ids
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=each) for each in (self._refresh, self._read)]
        self.rounds = 0
        self.shortest_life = float("inf")

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def _refresh(self) -> None:
        with self._fleet.worker() as worker:
            while not self._ended.is_set():
                self._fleet.make_due(*self._ids)
                wait([worker.submit(job) for job in self._fleet.claim()])
                self.rounds += 1

    def _read(self) -> None:
        while not self._ended.wait(0.05):
            self.shortest_life = min(self.shortest_life, self._fleet.shortest_life())


def test_every_key_is_replaced_under_refreshes_and_the_old_ones_open_nothing_that_is_left(
    environ: dict[str, str],
    engine: Engine,
    vault: Vault,
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(key_watch, "LOOK_SECONDS", 0.1)

    def tokenfleet(*words: str) -> str:
        ran = CliRunner().invoke(root, words, env=environ, prog_name="tokenfleet", catch_exceptions=False)
        assert ran.exit_code == 0, ran.output
        return ran.output

    path = Path(environ["TOKENFLEET_HOME"]) / "keys.json"
    with SandboxServer(SandboxConfig(access_lifetime_seconds=LIFETIME_SECONDS)) as server:
        fleet = Fleet(engine, vault, settings, server, tmp_path / "providers")
        ids = fleet.connect(*(f"customer-{number}" for number in range(ACCOUNTS)))
        tokenfleet("keys", "generate", "--add")
        fleet.settings = Settings.from_environ(environ)
        with Load(fleet, ids) as load:
            eventually(lambda: load.rounds > 0, what="refreshes under the old keys")
            rotated = tokenfleet("keys", "rotate", "--data-keys", "--wait", "0.5", "--rate", "500")
            assert "sealed under the newest data keys" in rotated
            tokenfleet("keys", "retire", "test")

        content = json.loads(path.read_text())
        path.write_text(json.dumps({ring: content[ring][:1] for ring in content}))
        with engine.begin() as connection:
            connection.execute(text("DELETE FROM tokenfleet.data_keys WHERE NOT is_primary"))
            fleet.vault = keys.open_vault(connection, Settings.from_environ(environ))
            assert {use.data_key_id for use in uses(connection)} == {3, 4}
        # All of them open with the new keys alone, and are the ones that live at the server.
        assert fleet.strays() == []
        ledger = server.ledger()
        assert (ledger.rejected, ledger.refreshes >= ACCOUNTS) == (0, True)
        assert sum(fleet.generations().values()) == ACCOUNTS + ledger.refreshes
        assert load.shortest_life >= FRESH_SECONDS
        assert fleet.column("SELECT count(*) FROM tokenfleet.accounts WHERE status <> 'active'") == [0]
