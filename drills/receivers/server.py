"""The receivers of the drill, in a process of their own: each does what it is there for, and writes down what came.

Takes a line from the standard input as an order, and answers each with a line of JSON: ``over`` ends the hour of those
that fail, ``ledger`` asks for what came so far. Ends with its input. The first line it prints says which port is whose.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import sys
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any, Final

import uvloop

from drills.receivers.roster import KINDS, PRIVATE, PUBLIC, QUICK_SECONDS, Behaviour, Kind, Pace

_NO_CONTENT: Final = b"HTTP/1.1 204 No Content\r\n\r\n"
_PLAIN: Final = {
    Behaviour.GONE: b"HTTP/1.1 410 Gone\r\nContent-Length: 0\r\n\r\n",
    Behaviour.FAILING: b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n",
}
FOR_EVER: Final = 86_400.0


@dataclass(frozen=True, slots=True)
class Came:
    """One message as it came in."""

    receiver: str
    webhook_id: str
    account: int
    number: int


class Receivers:
    """All of them, on ports of their own, each with a sentinel of the same port at the private address."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._is_over = False
        self.ports: dict[str, int] = {}
        self.came: list[Came] = []
        self.sentinels: Counter[str] = Counter()
        self._kept: list[Any] = []
        self._busy: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Listen."""
        for kind in KINDS:
            listening = socket.create_server((PUBLIC, 0), backlog=1024) if _listens(kind) else _bound()
            port = self.ports[kind.name] = listening.getsockname()[1]
            if _listens(kind):
                self._kept.append(await asyncio.start_server(self._serve(kind), sock=listening))
            else:
                self._kept.append(listening)
            self._kept.append(await asyncio.start_server(self._count(kind), PRIVATE, port))

    def over(self) -> None:
        """End the hour of those that fail."""
        self._is_over = True

    def ledger(self) -> dict[str, Any]:
        """Return what came, and who touched a sentinel."""
        return {"came": [asdict(each) for each in self.came], "sentinels": dict(self.sentinels)}

    def _count(self, kind: Kind) -> Any:
        async def touched(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.sentinels[kind.name] += 1
            writer.close()

        return touched

    def _serve(self, kind: Kind) -> Any:
        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._busy.add(task)
            try:
                with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                    while await self._exchange(kind, reader, writer):
                        pass
            finally:
                self._busy.discard(task)
                writer.close()

        return talk

    async def _exchange(self, kind: Kind, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Take one message and do to its sender what ``kind`` does; answers whether the connection goes on."""
        self.came.append(await _message(kind.name, reader))
        match kind.behaviour:
            case Behaviour.SLOW:
                await asyncio.sleep(self._pace.slow)
            case Behaviour.DEAD:
                await asyncio.sleep(FOR_EVER)
            case Behaviour.DRIPPING:
                writer.write(b"HTTP/1.1 200 OK\r\n")
                while True:
                    writer.write(b"X-Drip: drop\r\n")
                    await writer.drain()
                    await asyncio.sleep(1)
            case Behaviour.ENDLESS:
                writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
                while True:
                    writer.write(b"x" * 65_536)
                    await writer.drain()
            case _:
                await asyncio.sleep(QUICK_SECONDS)
        writer.write(self._answer(kind))
        await writer.drain()
        # A name that is resolved anew for each message shows what rebinding gains.
        return not kind.resolves

    def _answer(self, kind: Kind) -> bytes:
        if kind.behaviour is Behaviour.REDIRECTING:
            where = f"http://{PRIVATE}:{self.ports[kind.name]}/"
            head = f"HTTP/1.1 307 Temporary Redirect\r\nLocation: {where}\r\nContent-Length: 0\r\n\r\n"
            return head.encode()
        if kind.behaviour is Behaviour.FAILING and self._is_over:
            return _NO_CONTENT
        return _PLAIN.get(kind.behaviour, _NO_CONTENT)


async def _message(receiver: str, reader: asyncio.StreamReader) -> Came:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    fields = (line.partition(":")[::2] for line in head.split("\r\n")[1:])
    headers = {name.lower(): value.strip() for name, value in fields}
    body = json.loads(await reader.readexactly(int(headers["content-length"])))
    return Came(receiver, headers["webhook-id"], body["payload"]["id"], body["payload"]["number"])


def _listens(kind: Kind) -> bool:
    return kind.behaviour is not Behaviour.ABSENT


def _bound() -> socket.socket:
    """Return a socket whose port is nobody else's, and to which no connection comes."""
    sock = socket.socket()
    sock.bind((PUBLIC, 0))
    return sock


async def _main(pace: Pace) -> None:
    receivers = Receivers(pace)
    await receivers.open()
    print(json.dumps(receivers.ports), flush=True)
    orders = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(orders), sys.stdin
    )
    while order := (await orders.readline()).strip():
        if order == b"over":
            receivers.over()
        print(json.dumps(receivers.ledger() if order == b"ledger" else {}), flush=True)


if __name__ == "__main__":
    uvloop.run(_main(Pace(float(sys.argv[1]))))
