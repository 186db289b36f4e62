"""A sandbox on a port of its own for each test, with a client."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import httpx
import pytest

from sandbox.config import SandboxConfig
from sandbox.server import SandboxServer
from tests.sandbox.client import Client, Clock, Start


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def start(clock: Clock) -> Iterator[Start]:
    """Start sandboxes with the policy given; they end with the test."""
    with contextlib.ExitStack() as stack:

        def start(config: SandboxConfig) -> Client:
            server = stack.enter_context(SandboxServer(config, clock=clock))
            return Client(server, stack.enter_context(httpx.Client(timeout=10)))

        yield start


@pytest.fixture
def client(start: Start) -> Client:
    """A client of a strict sandbox: single use, no grace, family revocation."""
    return start(SandboxConfig())
