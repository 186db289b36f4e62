"""Accounts of providers whose definitions a test writes, at a server whose answers it writes too."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from sqlalchemy import Engine, text

from providers import load_registry
from store.keys import Vault
from tests.providers.definitions import toml
from tests.support import builders
from tests.support.builders import HOUR, State
from tests.support.fleet import Worker
from tests.support.scripted_server import ScriptedServer
from tokenfleet.jobs import AccountId, AppId
from tokenfleet.settings import Settings
from tokenfleet_client.contract import AccountStatus
from workers.engine import Engine as WorkerEngine


class Stage:
    """One test's providers and accounts."""

    def __init__(self, engine: Engine, vault: Vault, settings: Settings, directory: Path) -> None:
        self.engine = engine
        self.vault = vault
        self.settings = settings
        self.server = ScriptedServer()
        self._directory = directory
        self._apps: dict[AccountId, AppId] = {}
        directory.mkdir(exist_ok=True)

    def provider(self, name: str, refresh: str, extra: str = "", *, rotation: str = "never") -> AppId:
        """Write a definition, with $URL for the server's, and register its app."""
        definition = toml(extra, refresh=refresh, rotation=f'policy = "{rotation}"')
        definition = definition.replace('name = "example"', f'name = "{name}"', 1)
        (self._directory / f"{name}.toml").write_text(definition.replace("$URL", self.server.url))
        return builders.make_app(self.engine, self.vault, provider=name)

    def account(
        self,
        app_id: AppId,
        *,
        access_token: str | None = None,
        refresh_token: str | None = None,
        expires_in: timedelta | None = HOUR,
    ) -> AccountId:
        """Make an account that has only the tokens given; due now."""
        status = AccountStatus.CONNECTING if access_token is None else AccountStatus.ACTIVE
        account_id = builders.make_account(
            self.engine,
            self.vault,
            app_id,
            status=status,
            access_token=access_token,
            refresh_token=refresh_token,
            expires_in=expires_in,
        )
        if refresh_token is None:
            self.execute(
                "UPDATE tokenfleet.token_sets SET refresh_token = NULL WHERE account_id = :id", account_id
            )
        self._apps[account_id] = app_id
        return account_id

    def execute(self, statement: str, account_id: AccountId) -> None:
        with self.engine.begin() as connection:
            connection.execute(text(statement), {"id": account_id})

    @contextmanager
    def worker(self) -> Iterator[Worker]:
        """Run a worker that knows the definitions written so far."""
        registry = load_registry(self._directory, allow_http=True)
        worker = Worker(WorkerEngine(self.settings, registry))
        worker.engine.start()
        try:
            yield worker
        finally:
            worker.stop()

    def visit(self, worker: Worker, *account_ids: AccountId) -> None:
        """Let accounts be due, claimed and visited."""
        for account_id in account_ids:
            builders.make_due(self.engine, account_id)
        jobs = []
        for app_id in dict.fromkeys(self._apps[each] for each in account_ids):
            claims = builders.claim(self.engine, app_id)
            assert claims
            jobs.append(builders.job_of(app_id, claims))
        worker.run(jobs)

    def app_of(self, account_id: AccountId) -> AppId:
        return self._apps[account_id]

    def state(self, account_id: AccountId) -> State:
        return builders.state_of(self.engine, self.vault, account_id)

    def history(self, account_id: AccountId) -> list[str]:
        return builders.history_of(self.engine, account_id)

    def told(self, account_id: AccountId) -> list[str]:
        return builders.told_about(self.engine, account_id)

    def seconds(self, account_id: AccountId, moment: str) -> float | None:
        """Return in how many seconds ``moment`` is, a column of the token set or the schedule."""
        [value] = builders.column(
            self.engine,
            f"SELECT EXTRACT(epoch FROM {moment} - now())::float FROM tokenfleet.token_sets "
            "JOIN tokenfleet.refresh_schedule USING (account_id) WHERE account_id = :id",
            id=account_id,
        )
        return None if value is None else float(value)


@contextmanager
def stage_of(engine: Engine, vault: Vault, settings: Settings, directory: Path) -> Iterator[Stage]:
    stage = Stage(engine, vault, settings, directory)
    with stage.server:
        yield stage
