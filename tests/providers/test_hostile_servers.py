"""Servers that never stop sending: what reading them costs a process, in memory and in processor time.

The asking process is one of its own (``asking_hostile_servers``), so that what it measures is nothing but the reading.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from providers.transport import MAX_BODY_BYTES
from tests.providers.asking_hostile_servers import AT_ONCE, KNOWN_BYTES

MEGABYTE = 1024 * 1024
MEMORY_BYTES = 3 * AT_ONCE * MEGABYTE
"""Of ten answers at once: each at most its body twice over, its head, and what the sockets hold."""
CPU_SECONDS = 4.0

pytestmark = pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="only Linux lets a process reset its peak memory"
)


def bomb_of(wbits: int) -> tuple[bytes, bytes]:
    """Return how a packed body begins, and a kilobyte of it that unfolds to a megabyte, again and again."""
    packer = zlib.compressobj(9, zlib.DEFLATED, wbits)
    head = packer.compress(b"{") + packer.flush(zlib.Z_FULL_FLUSH)
    return head, packer.compress(bytes(MEGABYTE)) + packer.flush(zlib.Z_FULL_FLUSH)


OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n"
GZIP, GZIP_MEGABYTE = bomb_of(31)
DEFLATE, DEFLATE_MEGABYTE = bomb_of(15)


def sized(body: bytes, encoding: str) -> bytes:
    return OK + f"Content-Encoding: {encoding}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


@dataclass(frozen=True, slots=True)
class Attack:
    """What a server sends first, and what it sends then for as long as somebody listens."""

    first: bytes
    then: bytes = b""


ATTACKS: Mapping[str, Attack] = {
    "endless body": Attack(OK + b"\r\n", bytes(65536)),
    "endless body of the promised length": Attack(OK + b"Content-Length: 999999999999\r\n\r\n", bytes(65536)),
    "endless chunks": Attack(CHUNKED + b"\r\n", chunk(bytes(65536))),
    "endless small chunks": Attack(CHUNKED + b"\r\n", chunk(b"x") * 4096),
    "endless chunk extension": Attack(CHUNKED + b"\r\n1", b";name=value" * 4096),
    "endless chunk size": Attack(CHUNKED + b"\r\n", b"0" * 65536),
    "endless trailers": Attack(CHUNKED + b"\r\n0\r\n", b"X-More: of this\r\n" * 4096),
    "endless headers": Attack(OK, b"X-More: of this\r\n" * 4096),
    "an endless header": Attack(OK + b"X-Long: ", b"x" * 65536),
    "an endless folded header": Attack(OK + b"X-Long: ", b"x\r\n " * 16384),
    "an endless reason": Attack(b"HTTP/1.1 200 ", b"x" * 65536),
    "an endless first line": Attack(b"", b"x" * 65536),
    "endless interim answers": Attack(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 2048),
    "endless early hints": Attack(b"", b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * 1024),
    "endless answers": Attack(b"", (OK + b"Content-Length: 2\r\n\r\n{}") * 1024),
    "an endless packed body": Attack(CHUNKED + b"Content-Encoding: gzip\r\n\r\n" + chunk(GZIP), chunk(GZIP_MEGABYTE)),
    "200 MB in gzip": Attack(sized(GZIP + GZIP_MEGABYTE * 200, "gzip")),
    "200 MB in deflate": Attack(sized(DEFLATE + DEFLATE_MEGABYTE * 200, "deflate")),
    "200 kB of brotli": Attack(sized(b"\xcb" + bytes(200_000), "br")),
    "an upgrade and an endless rest": Attack(
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n", bytes(65536)
    ),
}  # fmt: skip

EXPECTED = {"an upgrade and an endless rest": set(), "endless answers": {"Undescribed"}}


@contextlib.contextmanager
def serving(attack: Attack) -> Iterator[int]:
    """Yield the port of a server that attacks whoever connects."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=AT_ONCE)
    attackers: list[threading.Thread] = []

    def strike(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.settimeout(30)
            connection.recv(65536)
            connection.sendall(attack.first)
            while attack.then:
                connection.sendall(attack.then)
            connection.recv(1)

    def listen() -> None:
        with contextlib.suppress(OSError):
            while True:
                attackers.append(threading.Thread(target=strike, args=(listener.accept()[0],)))
                attackers[-1].start()

    thread = threading.Thread(target=listen)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for each in (thread, *attackers):
            each.join(60)


@pytest.fixture(scope="module")
def costs() -> Mapping[str, dict[str, Any]]:
    """What each attack did to the process that met it."""
    with contextlib.ExitStack() as servers:
        ports = {name: servers.enter_context(serving(attack)) for name, attack in ATTACKS.items()}
        words = [f"{name}={port}" for name, port in ports.items()]
        done = subprocess.run(
            [sys.executable, "-m", "tests.providers.asking_hostile_servers", *words],
            cwd=Path(__file__).parents[2],
            capture_output=True,
            check=True,
            timeout=100,
        )
    found: dict[str, dict[str, Any]] = {}
    for line in done.stdout.splitlines():
        found |= json.loads(line)
    return found


@pytest.mark.parametrize("name", ATTACKS)
def test_a_server_that_never_stops_costs_little_and_flips_nobody(
    name: str, costs: Mapping[str, dict[str, Any]]
) -> None:
    cost = costs[name]
    assert cost["bytes"] < MEMORY_BYTES, cost
    assert cost["cpu_seconds"] < CPU_SECONDS, cost
    assert cost["kept"] <= MAX_BODY_BYTES, cost
    # Where the machine is busy, some of the ten did not get their connection in time.
    assert set(cost["outcomes"]) - {"Unavailable"} == EXPECTED.get(name, {"OutcomeUnknown"}), cost


def test_the_measure_sees_what_it_has_to_see(costs: Mapping[str, dict[str, Any]]) -> None:
    assert KNOWN_BYTES * 0.95 < costs["known"]["bytes"] < KNOWN_BYTES * 1.1
