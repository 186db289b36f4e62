"""Connections to token endpoints, and the facts about a request that decide what its failure means.

Promises: a connection is handed out once per request; none that anything arrived on unasked is used again; the
moment at which a request leaves is observed; what a server can send before its answer is bounded.
"""

from __future__ import annotations

import asyncio
import functools
import select
import ssl
import time
import weakref
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, NoReturn, Self, cast

import aiohttp
import httpx
from aiohttp.client_proto import ResponseHandler
from aiohttp.http_exceptions import HttpProcessingError

if TYPE_CHECKING:
    from aiohttp.abc import AbstractStreamWriter
    from aiohttp.connector import Connection
    from aiohttp.tracing import Trace

MAX_HEADER_BYTES: Final = 32 * 1024
"""One header of an answer. The client's own limit of 8 kB is less than some content security policies have."""
MAX_HEADERS: Final = 256
MAX_WAITING_HEADS: Final = 16
"""Interim answers, or answers nobody asked for, that may arrive at once."""
LAST_READ_SECONDS: Final = 0.25
"""How long an answer that lies in the socket at the end of its time may take to be read."""
CONNECT_SHARE: Final = 0.5
"""How much of its time an exchange may spend on getting a connection. A request that left with a moment to
spare would be an answer lost, and perhaps a refresh token spent, for nothing."""
KEEPALIVE_SECONDS: Final = 4.0
"""Idle connections are closed before the usual servers close them (5 s is the shortest common default): a
request that meets a closing connection is an answer lost."""

_clock: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def boottime() -> float:
    """Return seconds on the clock of ``send_before``: it also counts the time that a machine sleeps."""
    return time.clock_gettime(_clock)


class NotSentError(Exception):
    """The request is given up before a byte of it left."""


class Ask:
    """One request on its way: the facts that decide what its failure means."""

    __slots__ = (
        "_deadline",
        "_loop",
        "_send_before",
        "_timer",
        "connect_by",
        "connection",
        "left",
        "refusal",
        "time_is_over",
    )

    def __init__(self, timeout_seconds: float, send_before: float | None) -> None:
        self.left = False
        self.time_is_over = False
        self.refusal: str | None = None
        self.connection: Connection | None = None
        self._loop = asyncio.get_running_loop()
        self.connect_by = self._loop.time() + timeout_seconds * CONNECT_SHARE
        self._deadline = self._loop.time() + timeout_seconds
        self._send_before = send_before
        self._timer: asyncio.TimerHandle | None = None

    def connected(self, connection: Connection) -> None:
        """Take the connection; from here on, the end of the time aborts it."""
        self.connection = connection
        self._timer = self._loop.call_at(self._deadline, self._on_deadline)

    def check(self) -> None:
        """Raise when it is too late to send."""
        if self._send_before is not None and boottime() >= self._send_before:
            self.refuse("claim_expired")
        if self._loop.time() >= self._deadline:
            self.refuse("timeout")

    def leave(self) -> None:
        """Mark the request as sent. The socket is written in the same step of the loop, or this raises."""
        self.check()
        transport = self.connection.transport if self.connection else None
        if transport is None or transport.is_closing():
            self.refuse("connection_closed")
        self.left = True

    def finish(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self.connection = None

    def refuse(self, code: str) -> NoReturn:
        self.refusal = code
        raise NotSentError(code)

    def _on_deadline(self) -> None:
        protocol = self.connection.protocol if self.connection is not None else None
        if self.left and protocol is not None and _has_input(protocol):
            self._timer = self._loop.call_later(LAST_READ_SECONDS, self._give_up)
        else:
            self._give_up()

    def _give_up(self) -> None:
        self.time_is_over = True
        self.abort()

    def abort(self) -> None:
        if self.connection is not None and self.connection.transport is not None:
            self.connection.transport.abort()


asking: ContextVar[Ask] = ContextVar("asking")


class Body(aiohttp.BytesPayload, httpx.AsyncByteStream):
    """A request body that says when it leaves: to httpx a stream that it passes on, to aiohttp a payload."""

    def __init__(self, value: bytes, ask: Ask) -> None:
        super().__init__(value)
        self._ask = ask

    async def write_with_length(self, writer: AbstractStreamWriter, content_length: int | None) -> None:
        self._ask.leave()
        await super().write_with_length(writer, content_length)


class AnswerHead(aiohttp.ClientResponse):
    """An answer without its reason phrase, which means nothing: the transport fails on one that is not UTF-8."""

    async def start(self, connection: Connection) -> Self:
        await super().start(connection)
        self.reason = None
        return self


class PatientProtocol(ResponseHandler):
    """Gives up on a server that sends heads without end, one after the other.

    The client skips interim answers (1xx), however many: in two seconds ten such servers took 1.5 GB, and held
    up everything else on the loop for half a minute.
    """

    def feed_data(self, data: tuple[Any, Any], size: int = 0) -> None:
        if len(self) < MAX_WAITING_HEADS:
            super().feed_data(data, size)
        elif self.transport is not None:
            self.set_exception(HttpProcessingError(message="too many heads"))
            self.transport.abort()


class Connector(aiohttp.TCPConnector):
    """A connection pool that hands out a connection once per request, and none that something arrived on."""

    def __init__(self, *, max_connections: int, tls: ssl.SSLContext) -> None:
        super().__init__(limit=max_connections, keepalive_timeout=KEEPALIVE_SECONDS, ssl=tls)
        self._factory = cast(
            "functools.partial[ResponseHandler]", functools.partial(PatientProtocol, loop=self._loop)
        )
        self._used: weakref.WeakSet[ResponseHandler] = weakref.WeakSet()

    async def connect(
        self, req: aiohttp.ClientRequest, traces: list[Trace], *rest: Any, **named: Any
    ) -> Connection:
        ask = asking.get()
        if ask.left:
            raise NotSentError("a token request is never repeated")
        while True:
            # Nothing has left yet, so this is the one place where the end of the time may cancel.
            try:
                async with asyncio.timeout_at(ask.connect_by):
                    connection = await super().connect(req, traces, *rest, **named)
            except TimeoutError:
                ask.refuse("connect_timeout")
            protocol = connection.protocol
            assert protocol is not None
            if protocol not in self._used:
                self._used.add(protocol)
            elif protocol.should_close or _has_input(protocol):
                connection.close()
                continue
            try:
                ask.connected(connection)
                if req.body:
                    # It leaves later. Refused here, it costs no connection: the next try finds one that is open.
                    ask.check()
                else:
                    ask.leave()
            except NotSentError:
                connection.release()
                raise
            return connection


def _has_input(protocol: ResponseHandler) -> bool:
    """Answer whether an idle connection has something to read: the end, or an answer nobody asked for."""
    sock = protocol.transport.get_extra_info("socket") if protocol.transport else None
    if sock is None:
        return protocol.transport is None
    poll = select.poll()
    poll.register(sock.fileno(), select.POLLIN | select.POLLHUP | select.POLLERR)
    return bool(poll.poll(0))
