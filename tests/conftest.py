"""Real servers for every test: one Postgres and one Redis-compatible server per test run.

Each test gets a database of its own, cloned from a migrated template, and an empty Redis database. With
``TOKENFLEET_DATABASE_URL`` and ``TOKENFLEET_REDIS_URL`` set, those servers are used (the role must be allowed
to create databases; the Redis database is flushed).
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.engine import make_url

from embedded.environment import Environment
from embedded.postgres import EmbeddedPostgres
from store import keys, migrate
from store.engine import make_engine
from store.keys import Vault
from tests.support.databases import cloned_database, home_of_servers, make_logins_cheap
from tokenfleet.settings import Settings
from tokenfleet_client.envelope import KeyEncryptionKey

SLOW_FIRST = ("system", "chaos", "model", "embedded", "cli", "scheduler", "workers", "store")
"""Folders whose files take longest, for processes that share the work: what begins last must not be what lasts."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begin with the slow folders where several processes share the tests, file by file (``make test``)."""
    if hasattr(config, "workerinput"):
        tests = Path(__file__).parent
        ranks = {tests / folder: rank for rank, folder in enumerate(SLOW_FIRST)}
        items.sort(key=lambda item: ranks.get(item.path.parent, len(ranks)))


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """URLs of a running Postgres and a running Redis-compatible server."""
    with (
        home_of_servers(tmp_path_factory.mktemp("servers")) as home,
        Environment(home, os.environ, durable=False) as environment,
    ):
        if any(isinstance(server, EmbeddedPostgres) for server in environment.embedded):
            make_logins_cheap(environment.database_url)
        yield dict(environment.environ())


@pytest.fixture(scope="session")
def template(servers: dict[str, str]) -> Iterator[str]:
    """Name of a migrated, empty database that tests clone."""
    name = f"tokenfleet_template_{uuid.uuid4().hex[:12]}"
    admin = create_engine(servers["TOKENFLEET_DATABASE_URL"], isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    url = make_url(servers["TOKENFLEET_DATABASE_URL"]).set(database=name)
    engine = make_engine(url.render_as_string(hide_password=False), application_name="template")
    migrate.upgrade(engine)
    engine.dispose()
    yield name
    with admin.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name}"))
    admin.dispose()


@pytest.fixture
def database_url(servers: dict[str, str], template: str) -> Iterator[str]:
    """URL of a migrated, empty database that is dropped afterwards."""
    with cloned_database(servers, template) as url:
        yield url


@pytest.fixture
def redis_url(servers: dict[str, str]) -> Iterator[str]:
    """URL of an empty Redis database."""
    url = servers["TOKENFLEET_REDIS_URL"]
    with Redis.from_url(url) as client:
        client.flushall()
        yield url


@pytest.fixture
def environ(database_url: str, redis_url: str, tmp_path: Path) -> dict[str, str]:
    """Environment variables of a fleet process: servers, a home with fresh keys, plain http allowed."""
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    keys_file = home / "keys.json"
    generated = {ring: [KeyEncryptionKey.generate("test").export()] for ring in ("access", "refresh")}
    keys_file.touch(mode=0o600)
    keys_file.write_text(json.dumps(generated))
    return {
        "PATH": os.environ.get("PATH", ""),
        "TOKENFLEET_DATABASE_URL": database_url,
        "TOKENFLEET_REDIS_URL": redis_url,
        "TOKENFLEET_HOME": str(home),
        "TOKENFLEET_ALLOW_HTTP_PROVIDERS": "true",
    }


@pytest.fixture
def settings(environ: dict[str, str]) -> Settings:
    """The settings that :func:`environ` describes."""
    return Settings.from_environ(environ)


@pytest.fixture
def engine(settings: Settings) -> Iterator[Engine]:
    """An engine on the test's own database."""
    engine = make_engine(settings.database_url, application_name="test", pool_size=10)
    yield engine
    engine.dispose()


@pytest.fixture
def vault(engine: Engine, settings: Settings) -> Vault:
    """The data keys of both rings, created in the test's database."""
    with engine.begin() as connection:
        return keys.open_vault(connection, settings)
