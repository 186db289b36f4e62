from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis
from sqlalchemy import Engine

from sandbox.server import SandboxServer
from store.keys import Vault
from tests.support.fleet import Fleet
from tests.support.post_office import Office
from tokenfleet.settings import Settings


@pytest.fixture
def fleet(engine: Engine, vault: Vault, settings: Settings, tmp_path: Path) -> Iterator[Fleet]:
    """Accounts at a sandbox that nobody asks here: what is claimed stays in the broker's queue."""
    with SandboxServer() as server:
        yield Fleet(engine, vault, settings, server, tmp_path / "providers")


@pytest.fixture
def redis(redis_url: str) -> Iterator[Redis]:
    """An empty Redis, the broker among its duties."""
    with Redis.from_url(redis_url) as redis:
        yield redis


@pytest.fixture
def office(engine: Engine, vault: Vault, settings: Settings) -> Office:
    """Endpoints and events, nobody delivering."""
    return Office(engine, vault, settings)
