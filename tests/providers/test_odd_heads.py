"""Good tokens behind a head that nobody would write: they are not lost for it."""

from __future__ import annotations

import asyncio
import json

import pytest

from providers import Answer
from providers.exchange import TokenRequest
from providers.transport import Transport
from tests.providers.raw_server import Exchange, RawServer

BODY = json.dumps({"access_token": "at-2", "refresh_token": "rt-2"}).encode()
OK = b"HTTP/1.1 200 OK\r\n"
LENGTH = b"Content-Length: %d\r\n" % len(BODY)

HEADS = {
    "a reason in Latin-1": b"HTTP/1.1 200 D\xe9j\xe0 vu\r\n" + LENGTH,
    "no reason": b"HTTP/1.1 200\r\n" + LENGTH,
    "a header in Latin-1": OK + b"X-Note: D\xe9j\xe0 vu\r\n" + LENGTH,
    "a header of 30 kB": OK + b"Content-Security-Policy: " + b"x" * 30_000 + b"\r\n" + LENGTH,
    "250 headers": OK + b"Set-Cookie: a=b\r\n" * 250 + LENGTH,
    "a cookie that is none": OK + b"Set-Cookie: \xff=;;;\x01=,\r\n" + LENGTH,
    "a location that is no URL": OK + b"Location: http://[::bad\r\n" + LENGTH,
    "a folded header": OK + b"X-Note: one\r\n two\r\n" + LENGTH,
    "lines that end with LF": (OK + LENGTH).replace(b"\r\n", b"\n"),
    "empty lines before it": b"\r\n\r\n" + OK + LENGTH,
    "interim answers before it": b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nLink: </>\r\n\r\n" + OK + LENGTH,
    "a version from the future": b"HTTP/2.0 200 OK\r\n" + LENGTH,
    "no length": b"HTTP/1.0 200 OK\r\n",
}  # fmt: skip


@pytest.mark.parametrize("kind", HEADS)
def test_tokens_behind_an_odd_head_are_not_lost(kind: str) -> None:
    async def serve(exchange: Exchange) -> None:
        await exchange.request()
        await exchange.send(HEADS[kind] + b"\r\n" + BODY)

    async def scenario() -> None:
        transport = Transport(timeout_seconds=30, max_connections=1)
        async with RawServer(serve) as server:
            answer = await transport.ask(TokenRequest("POST", server.url, {}, b"refresh_token=rt-1"))
            await transport.aclose()
        assert isinstance(answer, Answer), answer
        assert (answer.status, answer.body, answer.flaw) == (200, BODY, None)

    asyncio.run(scenario())
