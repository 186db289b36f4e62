"""The server on loopback behind which the played providers stand: one port and one event loop for all of them.

A request comes to ``/STAGE/AUTHORITY/...``: the first part says which stage, the second for which host the request was
built for (``conformance.detour`` has put both in front), all else is as the real provider would get it.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
from types import TracebackType
from typing import Final, Self

from aiohttp import web

from conformance.received import CERTIFICATE, Received
from conformance.stage import Delivery, Reply, Stage
from sandbox.misbehaviour import reset

HOST: Final = "127.0.0.1"
SHUTDOWN_SECONDS: Final = 0.05


class Player:
    """Plays every provider that is put on a stage: ``async with Player() as player``."""

    def __init__(self) -> None:
        self.origin = ""
        """Where it listens."""
        self.closed_origin = ""
        """Where nobody listens: a provider that refuses connections."""
        self._stages: dict[str, Stage] = {}
        self._names = itertools.count(1)
        self._socket = socket.socket()

    async def __aenter__(self) -> Self:
        application = web.Application()
        application.router.add_route("*", "/{tail:.*}", self._handle)
        self._runner = web.AppRunner(
            application, access_log=None, handler_cancellation=True, shutdown_timeout=SHUTDOWN_SECONDS
        )
        await self._runner.setup()
        site = web.TCPSite(self._runner, HOST, 0)
        await site.start()
        self.origin = f"http://{HOST}:{site.port}"
        # Bound and not listening: no other process can take the port meanwhile.
        self._socket.bind((HOST, 0))
        self.closed_origin = f"http://{HOST}:{self._socket.getsockname()[1]}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()
        await self._runner.cleanup()

    def add(self, stage: Stage) -> str:
        """Put up a stage and return its name."""
        name = f"stage{next(self._names)}"
        self._stages[name] = stage
        return name

    def remove(self, name: str) -> None:
        """Take a stage down."""
        del self._stages[name]

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        _, name, rest = request.raw_path.split("/", 2)
        authority, _, target = rest.partition("/")
        stage = self._stages.get(name)
        if stage is None:  # Whoever asked was interrupted, and its stage is down before its request was read.
            return reset(request)
        headers: dict[str, str] = {}
        for header, value in request.headers.items():
            headers[header.lower()] = value
        received = Received(
            request.method, authority, f"/{target}", headers, await request.read(), CERTIFICATE in headers
        )
        reply = stage.answer(received, lambda: request.transport is not None)
        delivered = reply.delivery is Delivery.WHOLE
        try:
            return await _deliver(request, reply)
        finally:
            stage.closed(reply, delivered=delivered)


async def _deliver(request: web.Request, reply: Reply) -> web.StreamResponse:
    headers = {**reply.headers, "Content-Type": reply.content_type}
    if reply.delivery is Delivery.LOST:
        return reset(request)
    if reply.delivery is Delivery.HUNG:
        await asyncio.Event().wait()
    if reply.delivery is Delivery.CUT:
        response = web.StreamResponse(headers={**headers, "Content-Length": str(len(reply.body))})
        await response.prepare(request)
        await response.write(reply.body[: len(reply.body) // 2])
        if request.transport is not None:
            request.transport.close()
        return response
    return web.Response(status=reply.status, body=reply.body, headers=headers)
