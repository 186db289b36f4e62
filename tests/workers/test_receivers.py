"""The socket to receivers: nothing leaves for an address that is not public, and no receiver holds us up.

Every connection that this process makes is heard of by an audit hook, so "before a packet leaves" is seen, not
believed. Names are resolved by the tests; loopback is all that is contacted.
"""

from __future__ import annotations

import asyncio
import gzip
import socket
import ssl
import sys
import threading
import time
import tracemalloc
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.providers.raw_server import Exchange, RawServer, response
from tests.support import pem
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


def spelled(host: str, port: int) -> list[Address]:
    """Resolve what the C library takes for an address, and ask no name server."""
    if host == "localhost":
        return [(socket.AF_INET, "127.0.0.1")]
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    return [(family, str(address[0])) for family, _, _, _, address in found]


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
     "127.1", "127.0.1", "2130706433", "0x7f000001", "017700000001", "0x7f.1", "0177.0.0.1", "0", "127.0.0.1.",
     "%31%32%37.0.0.1", "\uff11\uff12\uff17.0.0.1", "127\u30020.0.1", "public.example@127.0.0.1",
     "[64:ff9b::7f00:1]", "[64:ff9b:1::7f00:1]", "[2002:7f00:1::]", "[2001:0:7f00:1::]", "[::7f00:1]", "[fe80::1%25lo]",
     "localhost"],
)  # fmt: skip
def test_no_way_of_writing_such_an_address_into_the_url_helps(connected: list[Any], host: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0.05)
        connected.clear()
        [sent] = send(f"http://{host}:{listening.getsockname()[1]}/hook", lookup=spelled)
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


@pytest.mark.parametrize("private", [False, True], ids=["a receiver", "a place of our own"])
def test_no_proxy_and_no_netrc_of_this_machine_is_for_receivers(
    connected: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, private: bool
) -> None:
    """A proxy would connect to whatever it is told, from inside; a netrc would tell receivers our passwords."""
    netrc = tmp_path / "netrc"
    netrc.write_text("default login planted password planted-password\n")
    monkeypatch.setenv("NETRC", str(netrc))

    async def serve(exchange: Exchange) -> None:
        await exchange.request()
        await exchange.send(response(b"ok"))

    async def run() -> tuple[RawServer, RawServer, Sent]:
        async with RawServer(serve) as proxy, RawServer(serve) as server:
            for name in ("http_proxy", "https_proxy", "all_proxy"):
                monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
                monkeypatch.setenv(name.upper(), f"http://127.0.0.1:{proxy.port}")
            client = Receivers(timeout_seconds=5, allow_private=not private, max_connections=4)
            try:
                return proxy, server, await client.send(server.url, {}, b"{}")
            finally:
                await client.aclose()

    proxy, server, sent = asyncio.run(run())

    assert proxy.connections == 0
    if private:
        assert (sent.reply.error, connected) == ("not_public", [])
    else:
        assert (sent.reply.status, connected) == (200, [("127.0.0.1", server.port)])
        assert b"authorization" not in server.requests[0].lower()


@pytest.mark.parametrize(("host", "word"), [("receiver.example", None), ("other.example", "tls_failed")])
def test_the_address_is_pinned_and_the_certificate_is_asked_for_by_name(
    tmp_path: Path, host: str, word: str | None
) -> None:
    key, authority = pem.ec_key(1), pem.ec_key(2)
    (tmp_path / "server.pem").write_text(
        pem.private_pem(key) + pem.certificate_pem(key, issuer=authority, host="receiver.example")
    )
    (tmp_path / "authority.pem").write_text(pem.certificate_pem(authority, subject=pem.AUTHORITY))
    asked_for: list[str | None] = []
    ours = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ours.load_cert_chain(tmp_path / "server.pem")
    ours.sni_callback = lambda _socket, name, _context: asked_for.append(name)
    heads: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(response(b"ok"))
        await writer.drain()
        writer.close()

    async def run() -> tuple[int, Sent]:
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        listening = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=ours)
        port = int(listening.sockets[0].getsockname()[1])
        client = Receivers(
            timeout_seconds=5,
            allow_private=True,
            max_connections=4,
            lookup=Names(["127.0.0.1"]),
            tls=ssl.create_default_context(cafile=str(tmp_path / "authority.pem")),
        )
        try:
            return port, await client.send(f"https://{host}:{port}/hook", {}, b"{}")
        finally:
            await client.aclose()
            listening.close()

    port, sent = asyncio.run(run())

    assert asked_for == [host]
    assert (sent.reply.status, sent.reply.error) == ((None, word) if word else (200, None))
    assert [f"Host: {host}:{port}".encode() in head for head in heads] == ([] if word else [True])


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


@pytest.mark.parametrize(
    ("said", "status"),
    [
        pytest.param(b"", None, id="nothing at all"),
        pytest.param(b"HTTP/1.1 100 Continue\r\n\r\n", None, id="wait a moment"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab", 200, id="half a body"),
    ],
)
def test_a_receiver_that_keeps_the_connection_open_is_given_up(said: bytes, status: int | None) -> None:
    async def hold(exchange: Exchange) -> None:
        await exchange.request()
        await exchange.send(said)
        await asyncio.sleep(60)

    _, [sent] = talk(hold, timeout_seconds=0.3)
    assert (sent.reply.status, sent.reply.error) == (status, None if status else "timeout")


def test_what_is_packed_stays_packed() -> None:
    """Sixteen kilobytes may become sixteen megabytes."""
    packed = gzip.compress(bytes(8 * 1024 * 1024))

    async def bomb(exchange: Exchange) -> None:
        await exchange.request()
        await exchange.send(response(packed, headers="Content-Encoding: gzip\r\n"))

    tracemalloc.start()
    try:
        _, [sent] = talk(bomb)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (sent.reply.status, sent.reply.error) == (200, None)
    assert most < 4 * 1024 * 1024


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
