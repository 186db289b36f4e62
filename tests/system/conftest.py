"""A sandbox, accounts at it, and real processes that share one environment."""

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
from tests.support.processes import Processes, processes
from tests.support.webhook_receiver import Receiver
from tokenfleet.settings import Settings


@pytest.fixture
def environ(environ: dict[str, str], tmp_path: Path) -> dict[str, str]:
    """The environment of processes that know the sandbox."""
    providers = tmp_path / "providers"
    providers.mkdir()
    return environ | {"TOKENFLEET_PROVIDERS_DIR": str(providers)}


@pytest.fixture
def sandbox_config() -> SandboxConfig:
    """Strict: rotation always, no grace, reuse revokes the family. A test may ask for another one."""
    return SandboxConfig()


@pytest.fixture
def fleet(
    engine: Engine, vault: Vault, settings: Settings, sandbox_config: SandboxConfig, tmp_path: Path
) -> Iterator[Fleet]:
    """Accounts at the sandbox."""
    with SandboxServer(sandbox_config) as server:
        yield Fleet(engine, vault, settings, server, tmp_path / "providers")


@pytest.fixture
def run(fleet: Fleet, environ: dict[str, str], tmp_path: Path) -> Iterator[Processes]:
    """Starts schedulers and workers. They end before the sandbox does."""
    logs = tmp_path / "logs"
    logs.mkdir()
    with processes(environ, logs) as started:
        yield started


@pytest.fixture
def office(engine: Engine, vault: Vault, settings: Settings) -> Office:
    """Webhook endpoints and events in the fleet's database."""
    return Office(engine, vault, settings)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A receiver of webhooks on loopback. It ends after the processes do."""
    with Receiver() as receiver:
        yield receiver
