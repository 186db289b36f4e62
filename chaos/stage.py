"""The world of a run: servers, the authorization server, accounts, and processes that are always alive.

Everything a customer or an operator does goes through the real paths: sign-ins are imported, refreshes are
asked for as ``accounts refresh`` does, processes are the real commands.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from sqlalchemy import Engine, text
from sqlalchemy.exc import SQLAlchemyError

from chaos.orders import Deed
from chaos.points import Role
from chaos.processes import Child, Processes
from chaos.provider import Provider
from cli.accounts_import import compose_rules
from cli.bootstrap import prepare_database
from embedded.environment import Environment
from embedded.postgres import EmbeddedPostgres
from embedded.valkey import EmbeddedValkey
from providers import load_registry
from sandbox.definition import definition_toml
from store import apps, keys, schedule
from store.engine import database_now, make_engine
from store.import_source import ImportFormat, read_chunks
from store.imports import Importer
from tokenfleet.jobs import AccountId
from tokenfleet.settings import Settings

CALL_SECONDS: Final = 2.5
CLAIM_SECONDS: Final = 6.0
LADDER: Final = {
    "TOKENFLEET_HTTP_TIMEOUT_SECONDS": str(CALL_SECONDS),
    "TOKENFLEET_LEASE_SECONDS": "5.5",
    "TOKENFLEET_CLAIM_SECONDS": str(CLAIM_SECONDS),
    # After a fault much is due at once. A worker that opens a thousand connections on a busy machine waits for
    # them longer than its calls may take.
    "TOKENFLEET_MAX_IN_FLIGHT": "300",
}
"""A dead worker's accounts are asked about again after one claim, so a run sees hundreds of them expire."""
VICTIMS_OWN: Final = {"TOKENFLEET_WORKER_THREADS": "2"}
TICK_SECONDS: Final = 0.1
OPERATOR: Final = "chaos"


class Stage:
    """The world, from ``with`` to its end. Leaves no process behind."""

    def __init__(self, home: Path, *, accounts: int, seed: int) -> None:
        self.home = home
        self.subjects: Final = tuple(f"customer-{number}" for number in range(accounts))
        self._seed = seed
        self._ends = ExitStack()
        self.ids: dict[str, AccountId] = {}

    def __enter__(self) -> Self:
        with ExitStack() as ends:
            base = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR") if name in os.environ}
            self._servers = ends.enter_context(Environment(self.home / "home", base))
            providers = self.home / "providers"
            providers.mkdir()
            self.provider = ends.enter_context(Provider(self._servers.log_dir, base, seed=self._seed))
            (providers / "sandbox.toml").write_text(definition_toml(self.provider.url, self.provider.config))
            self.environ = {
                **self._servers.environ(),
                **LADDER,
                "TOKENFLEET_PROVIDERS_DIR": str(providers),
                "TOKENFLEET_ALLOW_HTTP_PROVIDERS": "true",
                "TOKENFLEET_TICK_SECONDS": str(TICK_SECONDS),
                "TOKENFLEET_LOG_LEVEL": "warning",
            }
            self.settings: Settings = prepare_database(self.environ)
            self.engine: Engine = make_engine(
                self.settings.database_url, application_name="tokenfleet chaos", pool_size=4
            )
            ends.callback(self.engine.dispose)
            self._open()
            self.processes = ends.enter_context(Processes(self.home / "processes"))
            self._ends = ends.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ends.close()

    @property
    def postgres(self) -> EmbeddedPostgres:
        """The database server."""
        [server] = (each for each in self._servers.embedded if isinstance(each, EmbeddedPostgres))
        return server

    @property
    def valkey(self) -> EmbeddedValkey:
        """The Redis-compatible server."""
        [server] = (each for each in self._servers.embedded if isinstance(each, EmbeddedValkey))
        return server

    def revive(self) -> None:
        """Start servers that died again."""
        self._servers.revive()

    def sign_in(self, subjects: Sequence[str]) -> None:
        """Let customers sign in and import what they got, as an operator does."""
        lines = "\n".join(self.provider.sign_in(subjects)).encode() + b"\n"
        with self.engine.begin() as connection:
            now = database_now(connection)
        importer = Importer(self.engine, self.vault, self._rules_of, actor=OPERATOR)
        chunks = read_chunks(io.BytesIO(lines), ImportFormat.JSON_LINES, now=now)
        bad = sum(report.tally.bad for report in importer.run(chunks))
        if bad:
            raise AssertionError(f"{bad} lines of the sandbox's own were not imported")

    def ask_for_refresh(self, ids: Sequence[AccountId]) -> None:
        """Make accounts due now, as ``accounts refresh`` does. While Postgres is away nobody is heard."""
        with suppress(SQLAlchemyError), self.engine.begin() as connection:
            schedule.request_refresh(connection, ids)

    def start(self, role: Role, *, point: str | None = None, nth: int = 1, deed: Deed = Deed.DIE) -> Child:
        """Start one process of the fleet. A victim takes few jobs at once: those that die with it are waited for."""
        environ = self.environ if point is None else self.environ | VICTIMS_OWN
        return self.processes.start(role, environ, point=point, nth=nth, deed=deed)

    def column(self, statement: str, **parameters: object) -> list[object]:
        """Return the first column of a query."""
        with self.engine.connect() as connection:
            return list(connection.execute(text(statement), parameters).scalars())

    def learn_ids(self) -> None:
        """Look up which account is which customer."""
        with self.engine.connect() as connection:
            rows = connection.execute(text("SELECT id, external_id FROM tokenfleet.accounts"))
            self.ids = {row.external_id: AccountId(row.id) for row in rows}

    def _open(self) -> None:
        registry = load_registry(self.settings.providers_dir, allow_http=True)
        self._rules_of = compose_rules(registry)
        config = self.provider.config
        with self.engine.begin() as connection:
            self.vault = keys.open_vault(connection, self.settings)
            apps.register(
                connection,
                self.vault.refresh,
                provider="sandbox",
                environment="production",
                name="default",
                client_id=config.client_id,
                client_secret=config.client_secret,
                variables={},
            )
