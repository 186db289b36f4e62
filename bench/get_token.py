"""How quickly a reader has its token: from memory, from the database, and from the fleet. Beside floors, in one run.

* warm: ``get_token`` on a token in memory, calls a second of one thread and of one task, beside a bare ``dict`` lookup;
* cold: ``get_token`` of an account that was never read, the median of one at a time, beside a bare SELECT of psycopg
  and one AES-GCM opening;
* many: so many processes of so many tasks that want one expired account: what the provider hears of it.

Ratios are what counts; absolute figures depend on the machine and its neighbours.

    python bench/get_token.py [--calls 200000] [--accounts 2000] [--processes 20] [--tasks 50] [--latency-ms 200]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import psycopg
import structlog
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from sqlalchemy import Engine, text

from cli.bootstrap import prepare_database
from embedded.environment import Environment
from sandbox.config import SandboxConfig
from sandbox.server import SandboxServer
from store import keys
from store.engine import make_engine
from store.keys import Vault
from tests.support.builders import make_account, make_app
from tests.support.fleet import Fleet
from tests.support.reader_process import ReaderProcesses
from tests.support.readers import libpq
from tokenfleet.settings import Settings
from tokenfleet_client import AsyncTokenClient, KeyEncryptionKey, TokenClient

SELECT: Final = "SELECT * FROM tokenfleet_v1.access_tokens WHERE account_id = %s"


def main() -> None:
    """Measure, and print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--calls", type=int, default=200_000)
    parser.add_argument("--accounts", type=int, default=2000)
    parser.add_argument("--processes", type=int, default=20)
    parser.add_argument("--tasks", type=int, default=50)
    parser.add_argument("--latency-ms", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    with tempfile.TemporaryDirectory(prefix="tokenfleet-bench-") as home:
        environ = os.environ | {
            "TOKENFLEET_ALLOW_HTTP_PROVIDERS": "true",
            "TOKENFLEET_ACCESS_KEYS": KeyEncryptionKey.generate("reader").export(),
            "TOKENFLEET_REFRESH_KEYS": KeyEncryptionKey.generate("fleet").export(),
        }
        with Environment(Path(home), environ) as environment:
            environ |= environment.environ()
            settings = Settings.from_environ(environ)
            prepare_database(environ)
            engine = make_engine(settings.database_url, application_name="bench")
            with engine.begin() as connection:
                vault = keys.open_vault(connection, settings)
            measured = measure(engine, vault, settings, environ, Path(home), options)
            engine.dispose()
    if options.json:
        print(json.dumps(measured))
    else:
        for name, value in measured.items():
            print(f"{name:<44} {value:>14,.3f}")


def measure(
    engine: Engine,
    vault: Vault,
    settings: Settings,
    environ: dict[str, str],
    home: Path,
    options: argparse.Namespace,
) -> dict[str, float]:
    """Return every figure by its name."""
    primary = settings.access_ring.primary
    assert isinstance(primary, KeyEncryptionKey)
    database = libpq(settings.database_url)
    app = make_app(engine, vault)
    accounts = [make_account(engine, vault, app) for _ in range(options.accounts)]
    key, nonce = AESGCM(bytes(32)), bytes(12)
    sealed = key.encrypt(nonce, b"x" * 100, b"place")
    held = dict.fromkeys(accounts)
    with (
        TokenClient(database, keys=[primary]) as tokens,
        psycopg.connect(database, autocommit=True, prepare_threshold=None) as connection,
    ):

        def select(account: int) -> None:
            connection.execute(SELECT, (account,), binary=True).fetchone()
            key.decrypt(nonce, sealed, b"place")

        tokens.get_token(accounts[0])
        warm = rate(options.calls, lambda: tokens.get_token(accounts[0]))
        floor_warm = rate(options.calls, lambda: held[accounts[0]])
        cold, floor_cold = medians_ms(accounts[1:], tokens.get_token, select)
    warm_async, cold_async = asyncio.run(measure_async(database, primary, accounts, options.calls))
    return {
        "warm, a thread: calls/s": warm,
        "warm, a task: calls/s": warm_async,
        "warm, floor (dict lookup): calls/s": floor_warm,
        "warm, a thread: times the floor": floor_warm / warm,
        "cold, a thread: median ms": cold,
        "cold, a task: median ms": cold_async,
        "cold, floor (SELECT and AES-GCM): median ms": floor_cold,
        "cold, a thread: times the floor": cold / floor_cold,
        **many(engine, vault, settings, database, environ, home, options),
    }


async def measure_async(
    database: str, key: KeyEncryptionKey, accounts: Sequence[int], calls: int
) -> tuple[float, float]:
    """Return the warm calls a second and the cold median in milliseconds, of one task."""
    async with AsyncTokenClient(database, keys=[key]) as tokens:
        await tokens.get_token(accounts[0])
        began = time.perf_counter()
        for _ in range(calls):
            await tokens.get_token(accounts[0])
        warm = calls / (time.perf_counter() - began)
        times = []
        for account in accounts[1:]:
            began = time.perf_counter()
            await tokens.get_token(account)
            times.append(time.perf_counter() - began)
    return warm, statistics.median(times) * 1000


def many(
    engine: Engine,
    vault: Vault,
    settings: Settings,
    database: str,
    environ: dict[str, str],
    home: Path,
    options: argparse.Namespace,
) -> dict[str, float]:
    """Let many processes of many tasks want one expired account, with a worker's engine to refresh it."""
    with SandboxServer(
        SandboxConfig(latency_seconds=(options.latency_ms / 1000, options.latency_ms / 1000))
    ) as server:
        fleet = Fleet(engine, vault, settings, server, home / "providers")
        [account] = fleet.connect("customer")
        with engine.begin() as connection:
            connection.execute(
                text("UPDATE tokenfleet.token_sets SET expires_at = now() WHERE account_id = :id"),
                {"id": account},
            )
            connection.execute(
                text(
                    "UPDATE tokenfleet.refresh_schedule SET next_refresh_at = now() + interval '1 hour' "
                    "WHERE account_id = :id"
                ),
                {"id": account},
            )
        readers = ReaderProcesses(options.processes, database, account, options.tasks, environ)
        served = threading.Event()
        with fleet.worker() as worker:

            def schedule() -> None:
                while not served.wait(0.005):
                    worker.run(fleet.claim())

            scheduler = threading.Thread(target=schedule)
            scheduler.start()
            outcome = readers.read()
            served.set()
            scheduler.join()
        customer = server.subject("customer")
    return {
        "many: readers": options.processes * options.tasks,
        "many: served": outcome.got["2"],
        "many: requests at the provider": customer.presented,
        "many: the slowest reader's seconds": outcome.slowest_seconds,
    }


def rate(calls: int, call: Callable[[], object]) -> float:
    """Return how often a second ``call`` can be made."""
    began = time.perf_counter()
    for _ in range(calls):
        call()
    return calls / (time.perf_counter() - began)


def medians_ms(accounts: Sequence[int], *calls: Callable[[int], object]) -> list[float]:
    """Return how many milliseconds each of ``calls`` takes for one account, in the middle; they take turns."""
    times: list[list[float]] = [[] for _ in calls]
    for account in accounts:
        for call, taken in zip(calls, times, strict=True):
            began = time.perf_counter()
            call(account)
            taken.append(time.perf_counter() - began)
    return [statistics.median(taken) * 1000 for taken in times]


if __name__ == "__main__":
    main()
