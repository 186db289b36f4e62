"""A database, a sandbox and a zygote that the tests of one module share."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

import pytest

from chaos.processes import Processes
from sandbox.server import SandboxServer
from store import keys
from store.engine import make_engine
from tests.chaos.hops import Hops, empty
from tests.support.databases import cloned_database
from tests.support.fleet import Fleet
from tokenfleet.settings import Settings
from tokenfleet_client.envelope import KeyEncryptionKey


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    """A zygote and all that it forks."""
    with Processes(tmp_path_factory.mktemp("processes")) as started:
        yield started


@pytest.fixture(scope="module")
def hops(
    servers: dict[str, str],
    template: str,
    processes: Processes,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Hops]:
    """The module's fleet."""
    home = tmp_path_factory.mktemp("home")
    providers = tmp_path_factory.mktemp("providers")
    generated = {ring: [KeyEncryptionKey.generate("test").export()] for ring in ("access", "refresh")}
    keys_file = home / "keys.json"
    keys_file.touch(mode=0o600)
    keys_file.write_text(json.dumps(generated))
    with cloned_database(servers, template) as database_url:
        empty(servers["TOKENFLEET_REDIS_URL"])
        environ = {
            "PATH": os.environ.get("PATH", ""),
            "TOKENFLEET_DATABASE_URL": database_url,
            "TOKENFLEET_REDIS_URL": servers["TOKENFLEET_REDIS_URL"],
            "TOKENFLEET_HOME": str(home),
            "TOKENFLEET_PROVIDERS_DIR": str(providers),
            "TOKENFLEET_ALLOW_HTTP_PROVIDERS": "true",
            "TOKENFLEET_LOG_LEVEL": "warning",
        }
        settings = Settings.from_environ(environ)
        engine = make_engine(settings.database_url, application_name="test", pool_size=5)
        with engine.begin() as connection:
            vault = keys.open_vault(connection, settings)
        with SandboxServer() as sandbox:
            started = Hops(Fleet(engine, vault, settings, sandbox, providers), processes, environ)
            yield started
            processes.stop(*(child for child in processes.children if child.is_alive))
        engine.dispose()
