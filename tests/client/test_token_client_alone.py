"""What only one of the two clients has: forks and pools of the caller's; event loops and callers who are cancelled."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta

import psycopg
import pytest
from psycopg.rows import DictRow, dict_row
from sqlalchemy import Engine

from store.keys import Vault
from tests.support.builders import make_account, make_app
from tests.support.fleet import eventually
from tests.support.readers import obliging, renew, requested
from tokenfleet_client import AsyncTokenClient, KeyEncryptionKey, TokenClient

FORKS = """
import os, sys, threading, time
from datetime import timedelta
from tokenfleet_client import TokenClient

first, second = int(sys.argv[2]), int(sys.argv[3])
tokens = TokenClient(sys.argv[1])
tokens.get_token(first)
waiting = threading.Event()

def wait():
    # Listens, and holds a connection, while the process forks.
    waiting.set()
    try:
        tokens.get_token(first, timedelta(minutes=90), timeout=timedelta(seconds=1))
    except Exception:
        pass

thread = threading.Thread(target=wait)
thread.start()
waiting.wait()
while tokens._listener._thread is None:
    time.sleep(0.01)
child = os.fork()
served = tokens.get_token(first).generation, tokens.get_token(second).generation
if child == 0:
    os._exit(0 if served == (1, 1) and tokens._reader.unsealings.untold == 1 else 1)
thread.join()
_, status = os.waitpid(child, 0)
third = tokens.get_token(int(sys.argv[4])).generation
tokens.close()
print(served, third, status, tokens._reader.unsealings.untold)
"""


def test_a_forked_child_goes_on_with_what_is_in_memory_and_leaves_its_parents_connections_alone(
    engine: Engine, vault: Vault, readable: str, keys: list[KeyEncryptionKey]
) -> None:
    app = make_app(engine, vault)
    accounts = [make_account(engine, vault, app) for _ in range(3)]
    finished = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKS, readable, *map(str, accounts)],
        env=os.environ | {"TOKENFLEET_ACCESS_KEYS": keys[0].export()},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert finished.stdout.strip() == "(1, 1) 1 0 0", finished.stderr
    with engine.connect() as connection:
        opened = connection.exec_driver_sql("SELECT sum(opened) FROM tokenfleet.unsealings").scalar_one()
    assert opened == 3, "each process tells of what it has opened itself"


def test_a_pool_of_the_callers_is_used_and_not_closed(
    engine: Engine, vault: Vault, readable: str, keys: list[KeyEncryptionKey]
) -> None:
    account = make_account(engine, vault, make_app(engine, vault), expires_in=timedelta(seconds=5))

    class Pool:
        lent = 0

        def __init__(self, connection: psycopg.Connection[DictRow]) -> None:
            self._connection = connection

        @contextmanager
        def connection(self, timeout: float | None = None) -> Iterator[psycopg.Connection[DictRow]]:
            self.lent += 1
            with self._connection.transaction():
                yield self._connection

    with psycopg.connect(readable, row_factory=dict_row) as own:
        pool = Pool(own)
        with TokenClient(pool, keys=keys) as tokens, obliging(engine, vault):
            assert tokens.get_token(account).generation == 2
            assert tokens._listener.is_useless
        assert pool.lent > 3
        assert own.execute("SELECT 1 AS one").fetchone() == {"one": 1}


def test_an_asynchronous_pool_of_the_callers_is_used_and_not_closed(
    engine: Engine, vault: Vault, readable: str, keys: list[KeyEncryptionKey]
) -> None:
    account = make_account(engine, vault, make_app(engine, vault))

    class Pool:
        def __init__(self, connection: psycopg.AsyncConnection[DictRow]) -> None:
            self._connection = connection

        @asynccontextmanager
        async def connection(
            self,
            timeout: float | None = None,  # noqa: ASYNC109 - as psycopg_pool has it
        ) -> AsyncIterator[psycopg.AsyncConnection[DictRow]]:
            async with self._connection.transaction():
                yield self._connection

    async def read() -> None:
        async with await psycopg.AsyncConnection.connect(readable, row_factory=dict_row) as own:
            async with AsyncTokenClient(Pool(own), keys=keys) as tokens:
                assert (await tokens.get_token(account)).generation == 1
            assert await (await own.execute("SELECT 1 AS one")).fetchone() == {"one": 1}

    asyncio.run(read())


def test_a_caller_who_is_cancelled_takes_nothing_from_the_others(
    engine: Engine, vault: Vault, readable: str, keys: list[KeyEncryptionKey]
) -> None:
    account = make_account(engine, vault, make_app(engine, vault), expires_in=timedelta(seconds=5))

    async def read() -> int:
        async with AsyncTokenClient(readable, keys=keys) as tokens:
            first = asyncio.create_task(tokens.get_token(account))
            second = asyncio.create_task(tokens.get_token(account))
            await asyncio.to_thread(eventually, lambda: requested(engine) == [account])
            first.cancel()
            with pytest.raises(asyncio.CancelledError):
                await first
            renew(engine, vault, account)
            return (await second).generation

    assert asyncio.run(read()) == 2


def test_who_still_waits_when_the_client_is_closed_is_told_so(
    engine: Engine, vault: Vault, readable: str, keys: list[KeyEncryptionKey]
) -> None:
    account = make_account(engine, vault, make_app(engine, vault), expires_in=timedelta(seconds=5))

    async def read() -> None:
        tokens = AsyncTokenClient(readable, keys=keys)
        waits = asyncio.create_task(tokens.get_token(account))
        await asyncio.to_thread(eventually, lambda: requested(engine) == [account])
        await tokens.close()
        with pytest.raises(RuntimeError, match="closed"):
            await waits

    asyncio.run(read())


def test_a_client_of_tasks_belongs_to_one_event_loop(
    engine: Engine, vault: Vault, readable: str, keys: list[KeyEncryptionKey]
) -> None:
    app = make_app(engine, vault)
    first, second = make_account(engine, vault, app), make_account(engine, vault, app)
    tokens = AsyncTokenClient(readable, keys=keys)

    async def read_and_go() -> None:
        await tokens.get_token(first)
        await tokens._database.close()

    asyncio.run(read_and_go())
    with pytest.raises(RuntimeError, match="one event loop"):
        asyncio.run(tokens.get_token(second))


def test_a_password_that_does_not_last_is_asked_for_with_each_connection(
    engine: Engine, vault: Vault, readable: str, keys: list[KeyEncryptionKey]
) -> None:
    app = make_app(engine, vault)
    first, second = make_account(engine, vault, app), make_account(engine, vault, app)
    asked = list[int]()

    def conninfo() -> str:
        asked.append(1)
        return readable

    with TokenClient(conninfo, keys=keys) as tokens:
        tokens.get_token(first)
        assert len(asked) == 1
        with engine.begin() as connection:
            connection.exec_driver_sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE application_name = 'tokenfleet-client'"
            )
        tokens.get_token(second)
        assert len(asked) == 2


def test_what_was_opened_is_told_without_closing_when_it_is_much(
    engine: Engine,
    vault: Vault,
    readable: str,
    keys: list[KeyEncryptionKey],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tokenfleet_client.client.REPORT_COUNT", 2)
    app = make_app(engine, vault)
    for _ in range(2):
        make_account(engine, vault, app)

    def told() -> int:
        with engine.connect() as connection:
            counted = connection.exec_driver_sql("SELECT sum(opened) FROM tokenfleet.unsealings").scalar_one()
        return int(counted or 0)

    with TokenClient(readable, keys=keys) as tokens:
        assert len(list(tokens.current_tokens())) == 2
        eventually(lambda: told() == 2)


@pytest.mark.parametrize("caller", [" ", "a\nb", "x" * 101])
def test_a_name_that_the_audit_would_refuse_is_refused_at_once(
    caller: str, keys: list[KeyEncryptionKey]
) -> None:
    with pytest.raises(ValueError, match="caller="):
        TokenClient("host=localhost", keys=keys, caller=caller)
