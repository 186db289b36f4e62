"""A token endpoint that costs almost nothing, to measure the fleet and not the provider.

It speaks just enough HTTP/1.1 for a token request (RFC 6749 section 6), answers after a fixed latency with
tokens of realistic size, rotates the refresh token each time, and keeps the one ledger entry that matters:
how often a refresh token was presented that was not the live one. The real authorization server for tests is
``sandbox``; this one is for throughput only, about 25 microseconds of CPU a request.

    python bench/stand_in.py --port 9900 --latency-ms 200 --expires-in 60

``GET /ledger`` answers JSON: ``answered``, ``stale`` (not the live token).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
from typing import Final, cast

import uvloop

PADDING: Final = "x" * 700
_TOKEN: Final = re.compile(rb"refresh_token=r\.(\d+)\.(\d+)")
_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


def first_refresh_token(account: int) -> str:
    """Return the refresh token that ``account`` starts with."""
    return f"r.{account}.0"


class Ledger:
    """The live rotation of each account."""

    def __init__(self) -> None:
        self.live: dict[int, int] = {}
        self.answered = 0
        self.stale = 0


class TokenEndpoint(asyncio.Protocol):
    """One keep-alive connection; requests on it come one after another."""

    def __init__(self, ledger: Ledger, latency: float, expires_in: int) -> None:
        self._ledger = ledger
        self._latency = latency
        self._expires_in = expires_in
        self._buffer = b""
        self._loop = asyncio.get_running_loop()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A cast: uvloop's transports are asyncio's by behaviour only.
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while True:
            head_end = self._buffer.find(b"\r\n\r\n")
            if head_end < 0:
                return
            length = _LENGTH.search(self._buffer, 0, head_end)
            end = head_end + 4 + (int(length[1]) if length else 0)
            if len(self._buffer) < end:
                return
            request, self._buffer = self._buffer[:end], self._buffer[end:]
            self._handle(request)

    def _handle(self, request: bytes) -> None:
        token = _TOKEN.search(request)
        if token is None:
            ledger = self._ledger
            self._send(json.dumps({"answered": ledger.answered, "stale": ledger.stale}).encode())
            return
        account, rotation = int(token[1]), int(token[2])
        if self._ledger.live.get(account, 0) != rotation:
            self._ledger.stale += 1
        self._ledger.live[account] = rotation + 1
        self._ledger.answered += 1
        body = (
            f'{{"access_token":"a.{account}.{rotation + 1}.{PADDING}","token_type":"Bearer",'
            f'"expires_in":{self._expires_in},"refresh_token":"r.{account}.{rotation + 1}"}}'
        ).encode()
        if self._latency:
            self._loop.call_later(self._latency, self._send, body)
        else:
            self._send(body)

    def _send(self, body: bytes) -> None:
        if not self._transport.is_closing():
            head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
            self._transport.write(head % len(body) + body)


async def serve(port: int, latency_ms: float, expires_in: int) -> None:
    """Serve until cancelled."""
    ledger = Ledger()
    server = await asyncio.get_running_loop().create_server(
        lambda: TokenEndpoint(ledger, latency_ms / 1000, expires_in), "127.0.0.1", port, backlog=4096
    )
    print(f"ready {server.sockets[0].getsockname()[1]}", flush=True)
    async with server:
        await server.serve_forever()


def main() -> None:
    """Read the arguments and serve."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--port", type=int, default=0, help="0 chooses a free one, printed as 'ready PORT'")
    parser.add_argument("--latency-ms", type=float, default=200.0)
    parser.add_argument("--expires-in", type=int, default=60, help="lifetime of its tokens, seconds")
    arguments = parser.parse_args()
    uvloop.run(serve(arguments.port, arguments.latency_ms, arguments.expires_in))


if __name__ == "__main__":
    main()
