from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis
from sqlalchemy import Engine

from store.keys import Vault
from tests.model.world import Stage, stage_of
from tokenfleet.settings import Settings

MEMORY = Path("/dev/shm")
"""Where the journals lie if there is such a place: here processes die, not machines, so nothing has to be synced."""


@pytest.fixture
def stage(engine: Engine, vault: Vault, settings: Settings, redis_url: str) -> Iterator[Stage]:
    """Where worlds of the model come and go."""
    directory = MEMORY if MEMORY.is_dir() else None
    with (
        tempfile.TemporaryDirectory(prefix="tokenfleet-model-", dir=directory) as home,
        Redis.from_url(redis_url) as redis,
        stage_of(engine, vault, settings, redis, Path(home)) as stage,
    ):
        yield stage
