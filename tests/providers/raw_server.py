"""A token endpoint made of bytes: each test writes what the far side does on the socket.

It keeps the ledger: every connection, and every request as it came over the wire.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

Script = Callable[["Exchange"], Awaitable[None]]

TOKENS = json.dumps({"access_token": "at-1", "token_type": "Bearer", "expires_in": 3600}).encode()


def response(body: bytes = TOKENS, *, status: str = "200 OK", headers: str = "") -> bytes:
    """Return a complete HTTP/1.1 response."""
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
    )
    return head.encode() + body


class Exchange:
    """One connection, seen from the server."""

    def __init__(self, server: RawServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.server = server
        self.reader = reader
        self.writer = writer
        self.answered = 0

    async def request(self) -> bytes:
        """Read one request, note it in the ledger and return it."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = 0
        for line in head.split(b"\r\n"):
            name, _, value = line.partition(b":")
            if name.strip().lower() == b"content-length":
                length = int(value)
        request = head + await self.reader.readexactly(length)
        self.server.requests.append(request)
        self.server.got_request.set()
        return request

    async def send(self, data: bytes) -> None:
        """Write ``data``."""
        self.answered += 1
        self.writer.write(data)
        await self.writer.drain()

    def reset(self) -> None:
        """End the connection with RST instead of FIN."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def close(self) -> None:
        """End the connection in good order."""
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()


class RawServer:
    """Runs ``script`` once for each connection and closes it afterwards."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self._server: asyncio.Server | None = None
        self._running: set[asyncio.Task[None]] = set()
        self.requests: list[bytes] = []
        self.connections = 0
        self.open_now = 0
        self.most_open = 0
        self.got_request = asyncio.Event()
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/token"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        self.connections += 1
        self.open_now += 1
        self.most_open = max(self.most_open, self.open_now)
        exchange = Exchange(self, reader, writer)
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await self._script(exchange)
                await exchange.close()
        finally:
            self.open_now -= 1
            writer.transport.abort()


async def answer_always(exchange: Exchange) -> None:
    """A well-behaved keep-alive server."""
    while True:
        await exchange.request()
        await exchange.send(response())
