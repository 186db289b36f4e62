"""Connections of a client's own for tasks on one event loop. Promises as in :mod:`tokenfleet_client.connections`."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Generator
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol, TypeVar

import psycopg
from psycopg.conninfo import make_conninfo
from psycopg.rows import TupleRow, tuple_row

from tokenfleet_client.connections import CONNECTIONS, LEAST_CONNECT_SECONDS, seconds_left, within
from tokenfleet_client.exchange import AWAY, Query, Rows

T = TypeVar("T")


class AsyncConnectionPool(Protocol):
    """A pool of psycopg's asynchronous connections, such as ``psycopg_pool.AsyncConnectionPool``."""

    def connection(
        self, timeout: float | None = None
    ) -> AbstractAsyncContextManager[psycopg.AsyncConnection[Any]]:
        """Lend a connection, and commit or roll back after it."""
        ...


class AsyncDatabase(Protocol):
    """Where a client's statements run."""

    async def fetch(self, query: Query) -> Rows:
        """Return the rows of a statement. Raises :class:`psycopg.Error`, and :class:`OSError` for a lost way to it."""
        ...

    async def close(self) -> None:
        """Close what is ours."""
        ...


class AsyncBoundedConnection(psycopg.AsyncConnection[TupleRow]):
    """A connection whose waiting ends at ``deadline`` (monotonic seconds)."""

    deadline = math.inf

    async def wait(self, gen: Generator[Any, Any, T], *arguments: Any, **options: Any) -> T:
        """Wait as psycopg does, and no longer than until the deadline."""
        return await super().wait(within(self.deadline, gen), *arguments, **options)


async def connect(conninfo: str, deadline: float) -> AsyncBoundedConnection:
    """Return a new connection. Raises :class:`psycopg.OperationalError`, and :class:`TimeoutError` at the deadline."""
    seconds = max(LEAST_CONNECT_SECONDS, math.ceil(min(seconds_left(deadline), 3600.0)))
    async with asyncio.timeout(seconds_left(deadline)):
        return await AsyncBoundedConnection.connect(
            make_conninfo(conninfo, connect_timeout=seconds), autocommit=True, prepare_threshold=None
        )


class AsyncOwnConnections:
    """Up to four connections of a client's own, opened when they are needed."""

    def __init__(self, conninfo: Callable[[], str]) -> None:
        self.conninfo = conninfo
        self._slots = asyncio.Semaphore(CONNECTIONS)
        self._idle: deque[AsyncBoundedConnection] = deque()
        self._closed = False

    async def fetch(self, query: Query) -> Rows:
        """Return the rows of a statement, which runs on a connection that nobody else uses meanwhile."""
        async with asyncio.timeout(seconds_left(query.deadline)):
            await self._slots.acquire()
        try:
            connection = self._idle.pop() if self._idle else await connect(self.conninfo(), query.deadline)
            try:
                connection.deadline = query.deadline
                rows = await _run(connection, query)
            except BaseException as error:
                await connection.close()
                if isinstance(error, AWAY):
                    # The others were opened to the same server.
                    await self._close_idle()
                raise
            self._idle.append(connection)
            if self._closed:
                await self._close_idle()
            return rows
        finally:
            self._slots.release()

    async def close(self) -> None:
        """Close what is idle, and what is in use as soon as it is not."""
        self._closed = True
        await self._close_idle()

    async def _close_idle(self) -> None:
        while self._idle:
            await self._idle.pop().close()


class AsyncLentConnections:
    """Connections from a pool of the caller's. How long a statement may take is the pool's matter."""

    def __init__(self, pool: AsyncConnectionPool) -> None:
        self._pool = pool

    async def fetch(self, query: Query) -> Rows:
        """Return the rows of a statement."""
        async with self._pool.connection(timeout=seconds_left(query.deadline)) as connection:
            return await _run(connection, query)

    async def close(self) -> None:
        """Leave the pool to its owner."""


async def _run(connection: psycopg.AsyncConnection[Any], query: Query) -> Rows:
    # Rows as tuples and bytes as bytes, however the caller's connections are set up.
    async with psycopg.AsyncCursor(connection, row_factory=tuple_row) as cursor:
        await cursor.execute(query.statement, query.parameters, prepare=False, binary=True)
        return await cursor.fetchall()
