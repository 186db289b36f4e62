"""Waiting for the fleet to say that an account was refreshed: on one connection, in one task, for all who wait.

Promise as in :mod:`tokenfleet_client.listening`: hearing is a matter of speed only.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress

import psycopg

from tokenfleet_client import queries
from tokenfleet_client.async_connections import connect
from tokenfleet_client.exchange import Wait
from tokenfleet_client.listening import (
    CONNECT_SECONDS,
    LINGER_SECONDS,
    RETRY_SECONDS,
    TURN_SECONDS,
    Waiters,
)


class AsyncListener:
    """The task that listens while somebody waits. Without ``conninfo`` nobody listens."""

    def __init__(self, conninfo: Callable[[], str] | None) -> None:
        self._conninfo = conninfo
        self._waiters = Waiters()
        self._task: asyncio.Task[None] | None = None
        self._not_before = 0.0

    @property
    def listens(self) -> bool:
        """Whether there is a connection to hear on."""
        return self._task is not None

    @property
    def is_useless(self) -> bool:
        """Whether nothing can be heard here, ever."""
        return self._conninfo is None

    @contextmanager
    def waiting(self) -> Iterator[Callable[[Wait], Awaitable[bool]]]:
        """Yield what waits within one exchange, as :meth:`tokenfleet_client.listening.Listener.waiting` does."""
        event = asyncio.Event()

        async def wait(step: Wait) -> bool:
            if step.account_id is None:
                await asyncio.sleep(step.seconds)
                return False
            self._start()
            self._waiters.enter(step.account_id, event)
            with suppress(TimeoutError):
                async with asyncio.timeout(step.seconds):
                    await event.wait()
            woken = event.is_set()
            event.clear()
            return woken

        try:
            yield wait
        finally:
            self._waiters.leave(event)

    async def close(self) -> None:
        """Listen no more, and return when the connection is closed."""
        self._conninfo = None
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def _start(self) -> None:
        if self._task is None and self._conninfo is not None and time.monotonic() >= self._not_before:
            self._task = asyncio.create_task(self._listen(self._conninfo), name="tokenfleet-listener")

    async def _listen(self, conninfo: Callable[[], str]) -> None:
        try:
            with suppress(psycopg.Error, OSError, ValueError):
                async with await connect(conninfo(), time.monotonic() + CONNECT_SECONDS) as connection:
                    await self._hear(connection)
        finally:
            self._not_before = time.monotonic() + RETRY_SECONDS
            self._task = None

    async def _hear(self, connection: psycopg.AsyncConnection[tuple[object, ...]]) -> None:
        cursor = await connection.execute(queries.BACKEND_PID)
        if await cursor.fetchone() != (connection.info.backend_pid,):
            self._conninfo = None
            return
        await connection.execute(queries.LISTEN)
        wanted = time.monotonic()
        while time.monotonic() < wanted + LINGER_SECONDS:
            async for notification in connection.notifies(timeout=TURN_SECONDS):
                self._waiters.wake(notification.payload)
            if self._waiters:
                wanted = time.monotonic()
