"""What a run happens in: servers, the authorization server, registered apps, accounts, and real processes.

Everything a customer or an operator does goes through the real paths: sign-ins are imported, refreshes are
asked for as ``accounts refresh`` does, processes are the real commands. The crash suite and the drills add what
is theirs.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
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
from sandbox.config import SandboxConfig
from sandbox.definition import PROVIDER_NAME, Pace, definition_toml
from store import apps, keys, schedule
from store.engine import database_now, make_engine
from store.import_source import ImportFormat, read_chunks
from store.imports import Importer
from tokenfleet.jobs import AccountId
from tokenfleet.settings import Settings

OPERATOR: Final = "chaos"


@dataclass(frozen=True, slots=True)
class Definition:
    """One provider definition of the sandbox, with one app. ``door`` says that it has a port of its own."""

    name: str = PROVIDER_NAME
    pace: Pace | None = None
    door: bool = False


class World:
    """The world, from ``with`` to its end. Leaves no process behind."""

    def __init__(
        self,
        home: Path,
        config: SandboxConfig,
        *,
        settings: Mapping[str, str],
        definitions: Sequence[Definition] = (Definition(),),
        witnesses: bool = True,
    ) -> None:
        """``settings`` are further variables of every process; ``config`` is the authorization server's."""
        self.home = home
        self._config = config
        self._own = dict(settings)
        self._definitions = tuple(definitions)
        self._witnesses = witnesses
        self._ends = ExitStack()
        self.doors: dict[str, int] = {}
        """The port of each definition that has one of its own."""

    def __enter__(self) -> Self:
        with ExitStack() as ends:
            base = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR") if name in os.environ}
            self._servers = ends.enter_context(Environment(self.home / "home", base))
            providers = self.home / "providers"
            providers.mkdir()
            self.provider = ends.enter_context(Provider(self._servers.log_dir, base, self._config))
            for each in self._definitions:
                url = self.provider.url
                if each.door:
                    self.doors[each.name], url = self.provider.open_door()
                definition = definition_toml(url, self._config, name=each.name, pace=each.pace)
                (providers / f"{each.name}.toml").write_text(definition)
            self.environ = {
                **self._servers.environ(),
                **self._own,
                "TOKENFLEET_PROVIDERS_DIR": str(providers),
                "TOKENFLEET_ALLOW_HTTP_PROVIDERS": "true",
                "TOKENFLEET_LOG_LEVEL": "warning",
            }
            self.settings: Settings = prepare_database(self.environ)
            self.engine: Engine = make_engine(
                self.settings.database_url, application_name="tokenfleet chaos", pool_size=4
            )
            ends.callback(self.engine.dispose)
            self._open()
            self.processes = ends.enter_context(Processes(self.home / "processes", witnesses=self._witnesses))
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

    def take_in(self, lines: Iterable[str]) -> None:
        """Import what the authorization server gave to customers, as an operator does."""
        source = io.BytesIO("\n".join(lines).encode() + b"\n")
        with self.engine.begin() as connection:
            now = database_now(connection)
        importer = Importer(self.engine, self.vault, self._rules_of, actor=OPERATOR)
        chunks = read_chunks(source, ImportFormat.JSON_LINES, now=now, rules_of=self._rules_of)
        bad = sum(report.tally.bad for report in importer.run(chunks))
        if bad:
            raise AssertionError(f"{bad} lines of the sandbox's own were not imported")

    def ask_for_refresh(self, ids: Sequence[AccountId]) -> None:
        """Make accounts due now, as ``accounts refresh`` does. While Postgres is away nobody is heard."""
        with suppress(SQLAlchemyError), self.engine.begin() as connection:
            schedule.request_refresh(connection, ids)

    def start(self, role: Role, *, point: str | None = None, nth: int = 1, deed: Deed = Deed.DIE) -> Child:
        """Start one process of the fleet, armed if there is a point at which it dies."""
        return self.processes.start(role, self.environ, point=point, nth=nth, deed=deed)

    def column(self, statement: str, **parameters: object) -> list[object]:
        """Return the first column of a query."""
        with self.engine.connect() as connection:
            return list(connection.execute(text(statement), parameters).scalars())

    def _open(self) -> None:
        registry = load_registry(self.settings.providers_dir, allow_http=True)
        self._rules_of = compose_rules(registry)
        with self.engine.begin() as connection:
            self.vault = keys.open_vault(connection, self.settings)
            for each in self._definitions:
                apps.register(
                    connection,
                    self.vault.refresh,
                    provider=each.name,
                    environment=apps.DEFAULT_ENVIRONMENT,
                    name=apps.DEFAULT_NAME,
                    client_id=self._config.client_id,
                    client_secret=self._config.client_secret,
                    variables={},
                )
