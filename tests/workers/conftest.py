from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from sandbox.config import SandboxConfig
from sandbox.server import SandboxServer
from store.keys import Vault
from tests.support.fleet import Fleet
from tests.support.post_office import Office
from tests.support.webhook_receiver import Receiver
from tokenfleet.settings import Settings


@pytest.fixture
def fleet(engine: Engine, vault: Vault, settings: Settings, tmp_path: Path) -> Iterator[Fleet]:
    """Accounts at a strict sandbox: rotation always, no grace, reuse revokes the family."""
    with SandboxServer(SandboxConfig()) as server:
        yield Fleet(engine, vault, settings, server, tmp_path / "providers")


@pytest.fixture
def office(engine: Engine, vault: Vault, settings: Settings) -> Office:
    """Endpoints, events and deliveries in a database of their own."""
    return Office(engine, vault, settings)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A receiver on loopback that says yes to everything, until it is told otherwise."""
    with Receiver() as receiver:
        yield receiver
