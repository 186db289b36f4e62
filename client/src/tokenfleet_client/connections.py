"""Connections of a client's own, each for one statement at a time: those for threads, and what both kinds share.

Promises: a statement is over by its deadline, also when the network swallows it or the server never answers; a
connection on which one failed is never used again; nothing is expected of a session, and no statement is prepared, so
a pooler may stand between.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager
from typing import Any, Final, Protocol, TypeAlias, TypeVar

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import TupleRow, tuple_row

from tokenfleet_client.exchange import AWAY, Query, Rows

T = TypeVar("T")
CONNECTIONS: Final = 4
"""Statements take less than a millisecond, so these are enough for thousands a second."""
LEAST_CONNECT_SECONDS: Final = 2
"""libpq waits no shorter for a connection."""

ConnInfo: TypeAlias = str | Callable[[], str]
"""A connection URL or string, or what returns one: it is asked for each connection, for passwords that do not last."""


class ConnectionPool(Protocol):
    """A pool of psycopg connections, such as ``psycopg_pool.ConnectionPool``."""

    def connection(self, timeout: float | None = None) -> AbstractContextManager[psycopg.Connection[Any]]:
        """Lend a connection, and commit or roll back after it."""
        ...


class Database(Protocol):
    """Where a client's statements run."""

    def fetch(self, query: Query) -> Rows:
        """Return the rows of a statement. Raises :class:`psycopg.Error`, and :class:`OSError` for a lost way to it."""
        ...

    def close(self) -> None:
        """Close what is ours."""
        ...


def within(deadline: float, steps: Generator[Any, Any, T]) -> Generator[Any, Any, T]:
    """Yield what psycopg's ``steps`` yield until ``deadline`` has passed; psycopg resumes them ten times a second.

    Raises :class:`psycopg.OperationalError` then, whatever the connection is waiting for.
    """
    ready = None
    try:
        while True:
            awaited = steps.send(ready)
            ready = yield awaited
            if not ready and time.monotonic() >= deadline:
                steps.close()
                raise psycopg.OperationalError("no answer within the time that was given")
    except StopIteration as end:
        result: T = end.value
        return result


class BoundedConnection(psycopg.Connection[TupleRow]):
    """A connection whose waiting ends at ``deadline`` (monotonic seconds)."""

    deadline = math.inf

    def wait(self, gen: Generator[Any, Any, T], *arguments: Any, **options: Any) -> T:
        """Wait as psycopg does, and no longer than until the deadline."""
        return super().wait(within(self.deadline, gen), *arguments, **options)


def resolver(database: ConnInfo) -> Callable[[], str]:
    """Return what makes the string for the next connection. Raises :class:`ValueError`, which does not repeat it."""

    def resolved() -> str:
        text = database() if callable(database) else database
        try:
            given = conninfo_to_dict(text)
        except psycopg.Error:
            raise ValueError(
                "database= is neither a URL (postgresql://…) nor a connection string (host=… dbname=…) of libpq"
            ) from None
        return make_conninfo("", **({"fallback_application_name": "tokenfleet-client"} | given))

    if not callable(database):
        resolved()
    return resolved


def seconds_left(deadline: float) -> float:
    """Return how long there is until a monotonic ``deadline``."""
    return max(0.0, deadline - time.monotonic())


def connect(conninfo: str, deadline: float) -> BoundedConnection:
    """Return a new connection. Raises :class:`psycopg.OperationalError`, two seconds late at worst."""
    seconds = max(LEAST_CONNECT_SECONDS, math.ceil(min(seconds_left(deadline), 3600.0)))
    return BoundedConnection.connect(
        make_conninfo(conninfo, connect_timeout=seconds), autocommit=True, prepare_threshold=None
    )


class OwnConnections:
    """Up to four connections of a client's own, opened when they are needed."""

    def __init__(self, conninfo: Callable[[], str]) -> None:
        self.conninfo = conninfo
        self._slots = threading.Semaphore(CONNECTIONS)
        self._idle: deque[BoundedConnection] = deque()
        self._closed = False

    def fetch(self, query: Query) -> Rows:
        """Return the rows of a statement, which runs on a connection that nobody else uses meanwhile."""
        if not self._slots.acquire(timeout=seconds_left(query.deadline)):
            raise psycopg.OperationalError("every connection is busy")
        try:
            connection = self._take(query.deadline)
            try:
                connection.deadline = query.deadline
                rows = _run(connection, query)
            except BaseException as error:
                connection.close()
                if isinstance(error, AWAY):
                    # The others were opened to the same server.
                    self._close_idle()
                raise
            self._idle.append(connection)
            if self._closed:
                self._close_idle()
            return rows
        finally:
            self._slots.release()

    def close(self) -> None:
        """Close what is idle, and what is in use as soon as it is not."""
        self._closed = True
        self._close_idle()

    def _take(self, deadline: float) -> BoundedConnection:
        try:
            return self._idle.pop()
        except IndexError:
            return connect(self.conninfo(), deadline)

    def _close_idle(self) -> None:
        while True:
            try:
                self._idle.pop().close()
            except IndexError:
                return


class LentConnections:
    """Connections from a pool of the caller's. How long a statement may take is the pool's matter."""

    def __init__(self, pool: ConnectionPool) -> None:
        self._pool = pool

    def fetch(self, query: Query) -> Rows:
        """Return the rows of a statement."""
        with self._pool.connection(timeout=seconds_left(query.deadline)) as connection:
            return _run(connection, query)

    def close(self) -> None:
        """Leave the pool to its owner."""


def _run(connection: psycopg.Connection[Any], query: Query) -> Rows:
    # Rows as tuples and bytes as bytes, however the caller's connections are set up.
    with psycopg.Cursor(connection, row_factory=tuple_row) as cursor:
        return cursor.execute(query.statement, query.parameters, prepare=False, binary=True).fetchall()
