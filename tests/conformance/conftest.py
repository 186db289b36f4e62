"""One kit for all tests of a folder: a server, a transport and an event loop, which definitions take turns on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import pytest

from conformance import Kit, Report
from providers import Provider
from providers.spec import ProviderSpec

Run = Callable[..., Report]


@pytest.fixture(scope="session")
def run() -> Iterator[Run]:
    """Puts a provider through every scenario, against itself or against what is played."""
    with asyncio.Runner() as runner:
        kit = Kit()
        runner.run(kit.__aenter__())

        def run_one(
            provider: Provider, played: ProviderSpec | None = None, only: str | None = None
        ) -> Report:
            return runner.run(kit.run(provider, played, only=only))

        yield run_one
        runner.run(kit.__aexit__(None, None, None))
