"""Readers on a real database. Property tests are about truth, not about speed: on a busy machine one takes its time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import hypothesis
import pytest

from store.keys import Vault
from tests.support.readers import Reading, Tasks, Threads, libpq
from tokenfleet.settings import Settings
from tokenfleet_client import AsyncTokenClient, KeyEncryptionKey, TokenClient

hypothesis.settings.register_profile("unhurried", deadline=None)
hypothesis.settings.load_profile("unhurried")


@pytest.fixture
def keys(settings: Settings) -> list[KeyEncryptionKey]:
    """The key-encryption keys that a reader is given: those of the access ring."""
    primary = settings.access_ring.primary
    assert isinstance(primary, KeyEncryptionKey)
    return [KeyEncryptionKey.parse(primary.export())]


@pytest.fixture
def readable(vault: Vault, database_url: str) -> str:
    """A connection string of a database that can be read and asked, and holds the keys."""
    return libpq(database_url)


@pytest.fixture(params=["threads", "tasks"])
def make_reader(
    request: pytest.FixtureRequest, keys: list[KeyEncryptionKey]
) -> Iterator[Callable[..., Reading]]:
    """Make readers, of threads or of tasks; they are closed afterwards."""
    made: list[Reading] = []

    def make(database: str, **options: Any) -> Reading:
        options = {"keys": keys, "caller": "billing"} | options
        reader: Reading = (
            Threads(TokenClient(database, **options))
            if request.param == "threads"
            else Tasks(lambda: AsyncTokenClient(database, **options))
        )
        made.append(reader)
        return reader

    yield make
    for reader in made:
        reader.close()
