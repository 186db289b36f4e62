"""The socket to receivers: nothing leaves for an address that is not public, and no receiver holds us up.

Every connection that this process makes is heard of by an audit hook, so "before a packet leaves" is seen, not
believed. Names are resolved by the tests; loopback is all that is contacted.
"""

from __future__ import annotations

import asyncio
import socket
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

import pytest

from tests.providers.raw_server import Exchange, RawServer, response
from workers import receivers
from workers.receivers import MAX_BODY_BYTES, Lookup, Receivers, Sent

Address = tuple[socket.AddressFamily, str]

_connected: list[Any] | None = None


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "socket.connect" and _connected is not None:
        _connected.append(arguments[1])


sys.addaudithook(_hear)


@pytest.fixture
def connected() -> Iterator[list[Any]]:
    """Every address that this process connects to during the test."""
    global _connected  # noqa: PLW0603
    _connected = []
    yield _connected
    _connected = None


class Names:
    """A name server: each lookup answers the next of ``answers``, the last one for ever."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self.answers = list(answers)
        self.asked = 0

    def __call__(self, host: str, port: int) -> list[Address]:
        self.asked += 1
        found = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return [(socket.AF_INET6 if ":" in each else socket.AF_INET, each) for each in found]


def send(
    url: str,
    *,
    lookup: Lookup = receivers.look_up,
    allow_private: bool = False,
    timeout_seconds: float = 5.0,
    times: int = 1,
) -> list[Sent]:
    """Send to ``url`` from an event loop of its own."""

    async def run() -> list[Sent]:
        client = Receivers(
            timeout_seconds=timeout_seconds, allow_private=allow_private, max_connections=4, lookup=lookup
        )
        try:
            return [await client.send(url, {"webhook-id": "1"}, b"{}") for _ in range(times)]
        finally:
            await client.aclose()

    return asyncio.run(run())


def talk(
    script: Callable[[Exchange], Awaitable[None]], *, timeout_seconds: float = 5.0, times: int = 1
) -> tuple[RawServer, list[Sent]]:
    """Send to a server that behaves as ``script`` says."""

    async def run() -> tuple[RawServer, list[Sent]]:
        async with RawServer(script) as server:
            client = Receivers(timeout_seconds=timeout_seconds, allow_private=True, max_connections=4)
            try:
                return server, [await client.send(server.url, {}, b"{}") for _ in range(times)]
            finally:
                await client.aclose()

    return asyncio.run(run())


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.8.9.10", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254",
        "100.64.0.1", "192.0.0.170", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255",
        "::1", "::", "::ffff:127.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1", "fe80::1", "fc00::1", "fec0::1",
        "ff02::1", "64:ff9b::7f00:1", "2002:7f00:1::", "2001::1", "2001:db8::1", "100::1",
    ],
)  # fmt: skip
def test_a_name_that_resolves_to_a_place_of_our_own_is_refused_before_a_packet_leaves(
    connected: list[Any], address: str
) -> None:
    for answer in ([address], ["93.184.215.14", address]):
        [sent] = send("https://receiver.example/hook", lookup=Names(answer))
        assert (sent.reply.status, sent.reply.error) == (None, "not_public")
    assert connected == []


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0", "[::]", "169.254.169.254", "10.0.0.1", "100.64.0.1",
     "127.1", "2130706433", "0x7f000001", "017700000001", "0x7f.1", "localhost"],
)  # fmt: skip
def test_no_way_of_writing_such_an_address_into_the_url_helps(connected: list[Any], host: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0.05)
        connected.clear()
        [sent] = send(f"http://{host}:{listening.getsockname()[1]}/hook")
        with pytest.raises(TimeoutError):
            listening.accept()
    assert sent.reply.error in {"not_public", "unusable_url", "dns_failed"}
    assert connected == []


def test_the_address_that_was_looked_at_is_the_one_connected_to_however_the_name_resolves_a_moment_later(
    connected: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # For this test 127.0.0.1 is the public internet, and 127.0.0.2 is not.
    monkeypatch.setattr(receivers, "is_public", lambda address: address == "127.0.0.1")
    monkeypatch.setattr(receivers, "RESOLVED_FOR_SECONDS", 0.0)
    names = Names(["127.0.0.1"], ["127.0.0.2"])

    async def once(exchange: Exchange) -> None:
        await exchange.request()
        await exchange.send(response(b"ok"))

    async def run() -> tuple[RawServer, list[Sent]]:
        async with RawServer(once) as server:
            client = Receivers(timeout_seconds=5, allow_private=False, max_connections=4, lookup=names)
            url = f"http://receiver.example:{server.port}/hook"
            try:
                first = await client.send(url, {}, b"{}")
                await asyncio.sleep(0.05)
                return server, [first, await client.send(url, {}, b"{}")]
            finally:
                await client.aclose()

    server, (first, second) = asyncio.run(run())

    assert (first.reply.status, second.reply.error) == (200, "not_public")
    assert connected == [("127.0.0.1", server.port)]
    assert names.asked == 2, "once for each connection"
    assert b"host: receiver.example" in server.requests[0].lower()


def test_the_last_look_is_at_the_socket_whatever_resolved_the_name(
    connected: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if the resolver let an address pass, no socket is made for it."""
    monkeypatch.setattr(receivers._Resolver, "_resolve", lambda self, host, port: [
        {"hostname": host, "host": "127.0.0.1", "port": port, "family": socket.AF_INET, "proto": 0, "flags": 0}
    ])  # fmt: skip
    [sent] = send("http://receiver.example:1/hook")
    assert sent.reply.error == "not_public"
    assert connected == []


def test_a_redirect_is_an_answer_and_is_not_followed(connected: list[Any]) -> None:
    async def redirect(exchange: Exchange) -> None:
        await exchange.request()
        await exchange.send(response(b"", status="307 Temporary Redirect", headers="Location: /other\r\n"))

    server, [sent] = talk(redirect)
    assert (sent.reply.status, sent.reply.error) == (307, "redirect")
    assert len(server.requests) == 1


def test_a_receiver_that_drips_is_given_up_when_its_time_is_over() -> None:
    async def drip(exchange: Exchange) -> None:
        await exchange.request()
        while True:
            await exchange.send(b"X-Drip: drop\r\n" if exchange.answered else b"HTTP/1.1 200 OK\r\n")
            await asyncio.sleep(0.05)

    began = time.monotonic()
    _, [sent] = talk(drip, timeout_seconds=0.5)
    assert (sent.reply.status, sent.reply.error) == (None, "timeout")
    assert sent.duration_ms >= 400
    assert time.monotonic() - began < 10


def test_a_body_without_end_is_not_read_and_its_status_counts() -> None:
    async def flood(exchange: Exchange) -> None:
        await exchange.request()
        await exchange.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
        while exchange.answered < 10_000:
            await exchange.send(b"x" * MAX_BODY_BYTES)

    _, [sent] = talk(flood)
    assert (sent.reply.status, sent.reply.error) == (200, None)


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n", id="an endless header"),
        pytest.param(b"HTTP/1.1 100 Continue\r\n\r\n" * 10_000, id="heads without end"),
        pytest.param(b"SSH-2.0-OpenSSH\r\n", id="no HTTP at all"),
    ],
)
def test_what_is_no_answer_is_a_failure_like_any_other(answer: bytes) -> None:
    async def garble(exchange: Exchange) -> None:
        await exchange.request()
        await exchange.send(answer)

    _, [sent] = talk(garble)
    assert sent.reply.status is None
    assert sent.reply.error in {"garbled_answer", "connection_lost"}


def test_connections_are_kept_for_the_next_message() -> None:
    async def serve(exchange: Exchange) -> None:
        while True:
            await exchange.request()
            await exchange.send(response(b"ok"))

    server, sent = talk(serve, times=5)
    assert [each.reply.status for each in sent] == [200] * 5
    assert server.connections == 1


@pytest.mark.parametrize(
    ("url", "word"),
    [
        ("http://127.0.0.1:1/", "connect_refused"),
        ("http://receiver.invalid/", "dns_failed"),
        ("https://127.0.0.1:{port}/", "tls_failed"),
    ],
)
def test_each_way_of_failing_has_its_word(url: str, word: str) -> None:
    async def run() -> Sent:
        async def hang_up(exchange: Exchange) -> None:
            await exchange.send(b"no tls here\r\n")

        def no_such_name(host: str, port: int) -> list[Address]:
            raise socket.gaierror(socket.EAI_NONAME, "unknown")

        async with RawServer(hang_up) as server:
            client = Receivers(timeout_seconds=5, allow_private=True, max_connections=4, lookup=no_such_name)
            try:
                return await client.send(url.format(port=server.port), {}, b"{}")
            finally:
                await client.aclose()

    assert asyncio.run(run()).reply.error == word


def test_a_name_server_that_hangs_for_one_receiver_holds_up_no_other() -> None:
    released = threading.Event()
    asked: list[str] = []

    def lookup(host: str, port: int) -> list[Address]:
        asked.append(host)
        if host == "dead.example":
            released.wait(20)
        return [(socket.AF_INET, "127.0.0.1")]

    async def run() -> tuple[list[Sent], Sent]:
        async def serve(exchange: Exchange) -> None:
            await exchange.request()
            await exchange.send(response(b"ok"))

        async with RawServer(serve) as server:
            client = Receivers(timeout_seconds=1, allow_private=True, max_connections=200, lookup=lookup)
            try:
                dead = [
                    asyncio.create_task(client.send("http://dead.example/", {}, b"{}")) for _ in range(100)
                ]
                await asyncio.sleep(0)
                alive = await client.send(f"http://alive.example:{server.port}/", {}, b"{}")
                return [await each for each in dead], alive
            finally:
                released.set()
                await client.aclose()

    dead, alive = asyncio.run(run())
    assert alive.reply.status == 200
    assert {each.reply.error for each in dead} == {"timeout"}
    assert asked.count("dead.example") == 1, "one thread, however many wait for it"
