"""The client stands alone: services that install it get none of the application's weight.

Checked in a fresh interpreter that refuses the forbidden names, so an import that hides in a function which
runs at import time, or behind ``try``, is found too.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import tokenfleet_client

LIBRARIES = "aiohttp alembic celery click httpx kombu msgspec pydantic redis requests rich sqlalchemy structlog".split()
APPLICATION = "tokenfleet cli workers scheduler providers store sandbox embedded".split()
FORBIDDEN = (*LIBRARIES, *APPLICATION)

PROGRAM = """
import importlib, pkgutil, sys
ADAPTERS = {"tokenfleet_client.httpx", "tokenfleet_client.requests"}

class Refusal:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in FORBIDDEN:
            raise ImportError("the client must not import " + name)
        return None

sys.meta_path.insert(0, Refusal())
import tokenfleet_client
for module in pkgutil.walk_packages(tokenfleet_client.__path__, "tokenfleet_client."):
    try:
        importlib.import_module(module.name)
    except ImportError as error:
        # Each needs the library that it is for, and nothing else.
        assert module.name in ADAPTERS and module.name.rpartition(".")[2] in str(error), error
        ADAPTERS.remove(module.name)
assert not ADAPTERS, "an adapter did without its library"

from tokenfleet_client import Binding, DataKeys, Ring
place = Binding(Ring.ACCESS, "account:1", "access_token", 1)
ring = DataKeys(Ring.ACCESS, {1: bytes(32)}, 1)
assert ring.open(ring.seal("example", place), place) == "example"
print(*sorted({name.partition(".")[0] for name in sys.modules} & set(FORBIDDEN)))
"""


def run_alone(program: str) -> subprocess.CompletedProcess[str]:
    """Run ``program`` where only the client and the installed libraries can be found."""
    source = Path(tokenfleet_client.__file__).parent.parent
    return subprocess.run(
        [sys.executable, "-W", "error", "-P", "-c", program],
        env={"PYTHONPATH": str(source), "PATH": os.environ.get("PATH", "")},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_client_imports_and_works_without_the_applications_libraries() -> None:
    finished = run_alone(f"FORBIDDEN = {FORBIDDEN!r}\n{PROGRAM}")
    assert finished.stderr == ""
    assert finished.returncode == 0
    assert finished.stdout.split() == []


def test_who_only_verifies_webhooks_needs_no_postgres_driver_that_works() -> None:
    refused = "FORBIDDEN = ('psycopg',)\n" + PROGRAM.partition("import tokenfleet_client")[0]
    finished = run_alone(
        f"{refused}from tokenfleet_client import Token, TokenUnavailable, verify_webhook\n"
        "print('imported')\n"
        "from tokenfleet_client import TokenClient"
    )
    assert finished.stdout == "imported\n"
    assert "must not import psycopg" in finished.stderr


def test_the_refusal_in_that_check_does_refuse() -> None:
    finished = run_alone(f"FORBIDDEN = {FORBIDDEN!r}\n{PROGRAM}\nimport redis")
    assert finished.returncode != 0
    assert "must not import redis" in finished.stderr


def test_the_client_says_that_it_is_typed() -> None:
    assert (Path(tokenfleet_client.__file__).parent / "py.typed").exists()
