"""What the Postgres driver does not do by itself: wait with a bound, leave a demoted server, write and read as we need.

Promises: no wait for Postgres is for ever, a session that can only read is left, arrays travel in binary, and no
moment that Postgres holds stops the reading of its row.
"""

from __future__ import annotations

import asyncio
import os
import socket
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

import psycopg
from psycopg import AsyncConnection
from psycopg.abc import AdaptContext, PQGen
from psycopg.adapt import Buffer, Loader
from psycopg.pq import Format
from psycopg.rows import TupleRow
from psycopg.types.array import ListBinaryDumper
from sqlalchemy import Engine, event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.pool import ConnectionPoolEntry

R = TypeVar("R")

ANSWER_SECONDS: Final = 35.0
"""How long a worker waits for any answer. Longer than a statement may take, so it ends only what cannot end itself:
a server whose disk hangs, or a pooler that is stuck, acknowledges everything and never answers."""
READ_ONLY: Final = "25006"
FIRST_MOMENT: Final = datetime.min.replace(tzinfo=UTC)
LAST_MOMENT: Final = datetime.max.replace(tzinfo=UTC)

_TIMESTAMPTZ: Final = psycopg.adapters.types["timestamptz"].oid
_MomentLoader: Final = psycopg.adapters.get_loader(_TIMESTAMPTZ, Format.TEXT) or Loader


def adjust(engine: Engine) -> None:
    """Let every connection of ``engine`` behave as this module promises."""
    event.listen(engine, "connect", _send_arrays_in_binary)
    event.listen(engine, "connect", _read_any_moment)
    event.listen(engine, "handle_error", _leave_demoted_server)


class BoundedConnection(AsyncConnection[TupleRow]):
    """A connection on which no wait is for ever: after :data:`ANSWER_SECONDS` it is lost like any other."""

    async def wait(self, gen: PQGen[R], *args: Any, **kwargs: Any) -> R:
        """Run one exchange with the server."""
        timer = asyncio.get_running_loop().call_later(ANSWER_SECONDS, self._hang_up)
        try:
            return await super().wait(gen, *args, **kwargs)
        finally:
            timer.cancel()

    def _hang_up(self) -> None:
        """Let whoever waits read the end of the connection."""
        with socket.socket(fileno=os.dup(self.pgconn.socket)) as connected:
            connected.shutdown(socket.SHUT_RDWR)


def _leave_demoted_server(context: ExceptionContext) -> None:
    """Drop a connection to a server that only reads, and its pool with it.

    After a failover the old primary may keep our sessions, read-only for as long as they live; only a new one
    finds the new primary.
    """
    if getattr(context.original_exception, "sqlstate", None) == READ_ONLY:
        context.is_disconnect = True


def _send_arrays_in_binary(_: object, pooled: ConnectionPoolEntry) -> None:
    """Rows go to Postgres as arrays, which psycopg writes as text unless it is told otherwise.

    For sealed tokens that is twice the bytes and much escaping. Saving answers in groups of 128 took 61
    microseconds a row, 30 of them in this process; in binary it takes 36, 8 of them here.
    """
    driver: Any = pooled.driver_connection
    driver.adapters.register_dumper(list, ListBinaryDumper)


class _BoundedMoment(Loader):
    """Reads a moment; one outside of Python's calendar, ``infinity`` among them, becomes its first or last.

    The driver raises for these, and one such row would stop every tick and every job that meets it.
    """

    def __init__(self, oid: int, context: AdaptContext | None = None) -> None:
        super().__init__(oid, context)
        self._load = _MomentLoader(oid, context).load

    def load(self, data: Buffer) -> datetime:
        try:
            moment: datetime = self._load(data)
        except psycopg.DataError:
            written = bytes(data)
            return FIRST_MOMENT if written.startswith(b"-") or written.endswith(b"BC") else LAST_MOMENT
        return moment


def _read_any_moment(_: object, pooled: ConnectionPoolEntry) -> None:
    driver: Any = pooled.driver_connection
    driver.adapters.register_loader(_TIMESTAMPTZ, _BoundedMoment)
