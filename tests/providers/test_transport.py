"""The one socket, against raw servers: what left, what came back, and never a request more."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import logging
import random
import socket
import ssl
import threading
import time
import zlib
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote_plus

import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from providers.exchange import Answer, Failure, FailureKind, TokenRequest
from providers.transport import MAX_BODY_BYTES, Transport, boottime
from tests.providers.raw_server import TOKENS, Exchange, RawServer, Script, answer_always, response

FORM = {"Accept": "application/json", "Content-Type": "application/x-www-form-urlencoded"}
BODY = b"grant_type=refresh_token&refresh_token=rt-1"

Run = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    """Run a scenario to its end, on either event loop."""

    def in_loop(scenario: Coroutine[Any, Any, None]) -> None:
        factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(scenario)

    return in_loop


@contextlib.asynccontextmanager
async def transport(*, timeout_seconds: float = 5, max_connections: int = 10) -> Any:
    opened = Transport(timeout_seconds=timeout_seconds, max_connections=max_connections)
    try:
        yield opened
    finally:
        await opened.aclose()


def post(server: RawServer) -> TokenRequest:
    return TokenRequest("POST", server.url, FORM, BODY)


def get(server: RawServer) -> TokenRequest:
    return TokenRequest("GET", f"{server.url}?refresh_token=rt-1", {"Accept": "application/json"}, b"")


async def ask_once(
    script: Script, *, timeout_seconds: float = 5, request: Callable[[RawServer], TokenRequest] = post
) -> tuple[Answer | Failure, RawServer]:
    async with RawServer(script) as server, transport(timeout_seconds=timeout_seconds) as http:
        return await http.ask(request(server)), server


def lost(code: str) -> Failure:
    return Failure(FailureKind.ANSWER_LOST, code)


def not_sent(code: str) -> Failure:
    return Failure(FailureKind.NOT_SENT, code)


def answering(data: bytes) -> Script:
    async def script(exchange: Exchange) -> None:
        await exchange.request()
        await exchange.send(data)

    return script


def test_an_answer_comes_back_whole(run: Run) -> None:
    async def scenario() -> None:
        answer, server = await ask_once(answering(response(headers="Retry-After: 3\r\n")))
        assert isinstance(answer, Answer)
        assert (answer.status, answer.body, answer.flaw) == (200, TOKENS, None)
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["retry-after"] == "3"
        assert len(server.requests) == 1

    run(scenario())


def test_the_request_on_the_wire_is_the_request_given(run: Run) -> None:
    async def scenario() -> None:
        _, server = await ask_once(answering(response()))
        head, _, body = server.requests[0].partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        assert first == "POST /token HTTP/1.1"
        assert body == BODY
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        assert len(headers) == len(lines)
        assert headers == {
            "host": f"127.0.0.1:{server.port}",
            "user-agent": "tokenfleet",
            "accept-encoding": "identity",
            "accept": "application/json",
            "content-type": "application/x-www-form-urlencoded",
            "content-length": str(len(BODY)),
        }

    run(scenario())


def test_a_query_arrives_as_it_was_meant(run: Run) -> None:
    token = "a+b/c=d&e%f g~é"

    def request(server: RawServer) -> TokenRequest:
        return TokenRequest("GET", f"{server.url}?refresh_token={quote_plus(token)}&x=1", {}, b"")

    async def scenario() -> None:
        answer, server = await ask_once(answering(response()), request=request)
        assert isinstance(answer, Answer)
        target = server.requests[0].split(b" ")[1].decode()
        assert parse_qs(target.partition("?")[2]) == {"refresh_token": [token], "x": ["1"]}
        assert b"content-length" not in server.requests[0].lower()

    run(scenario())


def test_a_path_segment_keeps_its_encoding(run: Run) -> None:
    def request(server: RawServer) -> TokenRequest:
        return TokenRequest("POST", f"http://127.0.0.1:{server.port}/a%2Fb%20c%2E%2E/token", FORM, BODY)

    async def scenario() -> None:
        _, server = await ask_once(answering(response()), request=request)
        target = server.requests[0].split(b" ")[1]
        assert target.count(b"/") == 2
        assert target.startswith(b"/a%2Fb%20c")

    run(scenario())


def test_a_refused_connection_was_not_sent(run: Run) -> None:
    async def scenario() -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{taken.getsockname()[1]}/token"
            async with transport() as http:
                assert await http.ask(TokenRequest("POST", url, FORM, BODY)) == not_sent("connect_refused")

    run(scenario())


def test_an_url_that_cannot_be_asked_was_not_sent(run: Run) -> None:
    async def scenario() -> None:
        async with transport() as http:
            for url in ("https:///token", "gopher://127.0.0.1/", "http://127.0.0.1:99999/", "\ud800", ""):
                failure = await http.ask(TokenRequest("POST", url, FORM, BODY))
                assert isinstance(failure, Failure)
                assert failure.kind is FailureKind.NOT_SENT

    run(scenario())


@pytest.mark.parametrize("request_of", [post, get])
def test_a_reset_on_accept_is_one_attempt_and_a_failure(
    run: Run, request_of: Callable[[RawServer], TokenRequest]
) -> None:
    async def script(exchange: Exchange) -> None:
        exchange.reset()

    async def scenario() -> None:
        async with RawServer(script) as server, transport() as http:
            for count in range(1, 21):
                assert isinstance(await http.ask(request_of(server)), Failure)
                assert server.connections <= count

    run(scenario())


@pytest.mark.parametrize("request_of", [post, get])
@pytest.mark.parametrize("ending", ["reset", "close"])
def test_a_connection_that_ends_after_the_request_lost_the_answer(
    run: Run, ending: str, request_of: Callable[[RawServer], TokenRequest]
) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.request()
        if ending == "reset":
            exchange.reset()

    async def scenario() -> None:
        failure, server = await ask_once(script, request=request_of)
        assert failure == lost("connection_lost")
        assert server.connections == len(server.requests) == 1

    run(scenario())


CUT = {
    "content-length": response().replace(b"Content-Length: ", b"Content-Length: 9"),
    "chunked": b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n10\r\n{"access_token":',
    "between chunks": b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\n{"a"\r\n',
    "gzip": response(gzip.compress(TOKENS, mtime=0)[:-12], headers="Content-Encoding: gzip\r\n"),
}


@pytest.mark.parametrize("how", CUT)
def test_half_an_answer_is_an_answer_without_a_body(run: Run, how: str) -> None:
    async def scenario() -> None:
        answer, _ = await ask_once(answering(CUT[how]))
        assert isinstance(answer, Answer)
        assert (answer.status, answer.body, answer.flaw) == (200, b"", "answer_cut")

    run(scenario())


def test_a_head_that_is_cut_lost_the_answer(run: Run) -> None:
    async def scenario() -> None:
        failure, _ = await ask_once(answering(b"HTTP/1.1 200 OK\r\nContent-Ty"))
        assert failure == lost("connection_lost")

    run(scenario())


@pytest.mark.parametrize("garbage", [b"\x00\x01\x02\x03\r\n\r\n", b"SSH-2.0-x\r\n", b"HTTP/1.1 abc\r\n\r\n"])
def test_garbage_lost_the_answer(run: Run, garbage: bytes) -> None:
    async def scenario() -> None:
        failure, server = await ask_once(answering(garbage))
        assert failure == lost("garbled_answer")
        assert len(server.requests) == 1

    run(scenario())


async def _hold(exchange: Exchange) -> None:
    await exchange.request()
    await asyncio.Event().wait()


async def _trickle(exchange: Exchange, data: bytes) -> None:
    await exchange.request()
    for byte in data:
        await exchange.send(bytes([byte]))
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("request_of", [post, get])
def test_time_in_total_ends_an_exchange_that_gets_no_answer(
    run: Run, request_of: Callable[[RawServer], TokenRequest]
) -> None:
    async def scenario() -> None:
        began = time.monotonic()
        failure, server = await ask_once(_hold, timeout_seconds=0.25, request=request_of)
        assert failure == lost("timeout")
        assert 0.2 < time.monotonic() - began < 2
        assert len(server.requests) == 1

    run(scenario())


def test_a_head_that_trickles_is_bound_by_time_in_total(run: Run) -> None:
    async def scenario() -> None:
        began = time.monotonic()
        failure, _ = await ask_once(lambda e: _trickle(e, response() * 9), timeout_seconds=0.25)
        assert failure == lost("timeout")
        assert time.monotonic() - began < 2

    run(scenario())


def test_a_body_that_trickles_is_bound_by_time_in_total(run: Run) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.request()
        await exchange.send(b"HTTP/1.1 503 Busy\r\nContent-Length: 5000\r\n\r\n")
        for _ in range(5000):
            await exchange.send(b" ")
            await asyncio.sleep(0.01)

    async def scenario() -> None:
        began = time.monotonic()
        answer, _ = await ask_once(script, timeout_seconds=0.25)
        assert isinstance(answer, Answer)
        assert (answer.status, answer.body, answer.flaw) == (503, b"", "timeout")
        assert time.monotonic() - began < 2

    run(scenario())


@pytest.mark.parametrize("chunked", [False, True])
def test_a_huge_body_is_not_taken(run: Run, chunked: bool) -> None:
    size = MAX_BODY_BYTES + 1
    data = response(b" " * size)
    if chunked:
        head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        data = head + f"{size:x}\r\n".encode() + b" " * size + b"\r\n0\r\n\r\n"

    async def scenario() -> None:
        answer, _ = await ask_once(answering(data))
        assert isinstance(answer, Answer)
        assert (answer.status, answer.body, answer.flaw) == (200, b"", "answer_too_large")

    run(scenario())


def test_a_body_of_the_permitted_size_is_taken(run: Run) -> None:
    async def scenario() -> None:
        answer, _ = await ask_once(answering(response(b" " * MAX_BODY_BYTES)))
        assert isinstance(answer, Answer)
        assert (len(answer.body), answer.flaw) == (MAX_BODY_BYTES, None)

    run(scenario())


@pytest.mark.parametrize(
    ("encoding", "body", "flaw"),
    [
        ("gzip", gzip.compress(TOKENS, mtime=0), None),
        ("deflate", zlib.compress(TOKENS), None),
        ("identity", TOKENS, None),
        ("gzip", gzip.compress(b"\0" * (64 * 1024 * 1024), mtime=0), "answer_too_large"),
        ("gzip", b"this is not gzip", "bad_encoding"),
        ("br", b"\x0b\x02\x80", "unknown_encoding"),
        ("gzip, gzip", gzip.compress(gzip.compress(TOKENS, mtime=0), mtime=0), "unknown_encoding"),
    ],
)
def test_encodings_are_undone_within_bounds(run: Run, encoding: str, body: bytes, flaw: str | None) -> None:
    async def scenario() -> None:
        answer, _ = await ask_once(answering(response(body, headers=f"Content-Encoding: {encoding}\r\n")))
        assert isinstance(answer, Answer)
        assert (answer.body, answer.flaw) == (b"" if flaw else TOKENS, flaw)

    run(scenario())


def test_a_redirect_is_an_answer(run: Run) -> None:
    async def scenario() -> None:
        moved = response(b"", status="307 Temporary Redirect", headers="Location: /elsewhere\r\n")
        answer, server = await ask_once(answering(moved))
        assert isinstance(answer, Answer)
        assert answer.status == 307
        assert len(server.requests) == 1

    run(scenario())


def test_cookies_are_dropped(run: Run) -> None:
    async def script(exchange: Exchange) -> None:
        while True:
            await exchange.request()
            await exchange.send(response(headers="Set-Cookie: session=1; Path=/\r\n"))

    async def scenario() -> None:
        async with RawServer(script) as server, transport() as http:
            for _ in range(2):
                assert isinstance(await http.ask(post(server)), Answer)
            assert not any(b"cookie" in request.lower() for request in server.requests)

    run(scenario())


def test_proxies_and_netrc_are_ignored(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("default login someone password something\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")

    async def scenario() -> None:
        answer, server = await ask_once(answering(response()))
        assert isinstance(answer, Answer)
        assert b"authorization" not in server.requests[0].lower()

    run(scenario())


def test_connections_are_kept_and_used_again(run: Run) -> None:
    async def scenario() -> None:
        async with RawServer(answer_always) as server, transport() as http:
            for _ in range(5):
                assert isinstance(await http.ask(post(server)), Answer)
            assert (server.connections, len(server.requests)) == (1, 5)

    run(scenario())


def test_a_connection_that_was_closed_while_idle_is_replaced(run: Run) -> None:
    async def scenario() -> None:
        async with RawServer(answering(response())) as server, transport() as http:
            for _ in range(3):
                assert isinstance(await http.ask(post(server)), Answer)
                await _until(lambda: server.open_now == 0)
            assert (server.connections, len(server.requests)) == (3, 3)

    run(scenario())


@pytest.mark.parametrize("request_of", [post, get])
def test_a_connection_that_dies_on_its_second_request_is_not_asked_a_third_time(
    run: Run, request_of: Callable[[RawServer], TokenRequest]
) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.request()
        await exchange.send(response())
        await exchange.request()

    async def scenario() -> None:
        async with RawServer(script) as server, transport() as http:
            assert isinstance(await http.ask(request_of(server)), Answer)
            assert await http.ask(request_of(server)) == lost("connection_lost")
            assert (server.connections, len(server.requests)) == (1, 2)

    run(scenario())


@pytest.mark.parametrize("late_seconds", [None, 0, 0.02])
def test_an_answer_nobody_asked_for_is_never_given_to_the_next_request(
    run: Run, late_seconds: float | None
) -> None:
    theirs = json.dumps({"access_token": "of-another-customer"}).encode()

    async def script(exchange: Exchange) -> None:
        await exchange.request()
        if late_seconds is None:
            await exchange.send(response() + response(theirs))
        else:
            await exchange.send(response())
            await asyncio.sleep(late_seconds)
            await exchange.send(response(theirs))
        await exchange.request()

    async def scenario() -> None:
        async with RawServer(script) as server, transport() as http:
            for _ in range(4):
                answer = await http.ask(post(server))
                assert isinstance(answer, Answer)
                assert answer.body == TOKENS
                await asyncio.sleep(0.04)
            assert server.connections == 4

    run(scenario())


def test_nothing_is_sent_after_the_claim_has_expired(run: Run) -> None:
    async def scenario() -> None:
        async with RawServer(answer_always) as server, transport() as http:
            assert isinstance(await http.ask(post(server), send_before=boottime() + 60), Answer)
            for request in (post(server), get(server)):
                assert await http.ask(request, send_before=boottime() - 0.001) == not_sent("claim_expired")
            assert len(server.requests) == 1
            assert isinstance(await http.ask(post(server)), Answer)

    run(scenario())


def test_a_claim_that_expires_while_waiting_for_a_connection_is_not_sent(run: Run) -> None:
    async def scenario() -> None:
        release = asyncio.Event()

        async def script(exchange: Exchange) -> None:
            while True:
                await exchange.request()
                await release.wait()
                await exchange.send(response())

        async with RawServer(script) as server, transport(max_connections=1) as http:
            first = asyncio.create_task(http.ask(post(server)))
            await server.got_request.wait()
            send_before = boottime() + 0.05
            second = asyncio.create_task(http.ask(post(server), send_before=send_before))
            await _until(lambda: boottime() > send_before)
            release.set()
            assert isinstance(await first, Answer)
            assert await second == not_sent("claim_expired")
            assert len(server.requests) == 1

    run(scenario())


def test_waiting_for_a_connection_uses_up_the_time(run: Run) -> None:
    async def scenario() -> None:
        async with RawServer(_hold) as server, transport(timeout_seconds=0.25, max_connections=1) as http:
            outcomes = await asyncio.gather(*(http.ask(post(server)) for _ in range(3)))
            assert outcomes[0] == lost("timeout")
            assert outcomes[1:] == [not_sent("connect_timeout")] * 2
            assert len(server.requests) == 1

    run(scenario())


def test_200_requests_share_50_connections(run: Run) -> None:
    async def scenario() -> None:
        async def script(exchange: Exchange) -> None:
            while True:
                await exchange.request()
                await asyncio.sleep(0.02)
                await exchange.send(response())

        async with RawServer(script) as server, transport(max_connections=50) as http:
            outcomes = await asyncio.gather(*(http.ask(post(server)) for _ in range(200)))
            assert all(isinstance(outcome, Answer) for outcome in outcomes)
            assert len(server.requests) == 200
            assert server.most_open <= 50

    run(scenario())


def test_after_a_storm_of_failures_every_connection_is_usable(run: Run) -> None:
    chance = random.Random(7)

    async def script(exchange: Exchange) -> None:
        while True:
            await exchange.request()
            match chance.randrange(6):
                case 0:
                    await asyncio.Event().wait()
                case 1:
                    exchange.reset()
                case 2:
                    await exchange.send(response()[:70])
                    return
                case 3:
                    await exchange.send(b"garbage\r\n\r\n")
                    return
            await exchange.send(response())

    async def scenario() -> None:
        async with (
            RawServer(script) as server,
            RawServer(answer_always) as healthy,
            transport(timeout_seconds=0.25, max_connections=10) as http,
        ):
            outcomes = await asyncio.gather(*(http.ask(post(server)) for _ in range(200)))
            sent = [one for one in outcomes if isinstance(one, Answer) or one.kind is FailureKind.ANSWER_LOST]
            assert 1 <= len(server.requests) <= len(sent)
            calm = await asyncio.gather(*(http.ask(post(healthy)) for _ in range(10)))
            assert all(isinstance(outcome, Answer) for outcome in calm)

    run(scenario())


def test_a_cancelled_caller_gives_its_connection_back(run: Run) -> None:
    async def scenario() -> None:
        async with RawServer(_hold) as server, transport(max_connections=1) as http:
            asking = asyncio.create_task(http.ask(post(server)))
            await server.got_request.wait()
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            async with RawServer(answer_always) as healthy:
                assert isinstance(await http.ask(post(healthy)), Answer)

    run(scenario())


def test_an_answer_that_came_while_the_process_stood_still_is_read(run: Run) -> None:
    """A paused machine wakes up after every deadline; the answers are in the sockets, tokens and all."""
    answered = threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            received = b""
            while not received.endswith(BODY):
                received += connection.recv(65536)
            paused.wait(5)
            connection.sendall(response())
            answered.set()
            connection.recv(1)

    paused = threading.Event()
    server = threading.Thread(target=serve, daemon=True)
    server.start()

    async def scenario() -> None:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/token"
        async with transport(timeout_seconds=0.2) as http:
            asking = asyncio.create_task(http.ask(TokenRequest("POST", url, FORM, BODY)))
            await asyncio.sleep(0.1)
            paused.set()
            answered.wait(5)
            time.sleep(0.15)  # noqa: ASYNC251 - standing still is what this test is about
            answer = await asking
            assert isinstance(answer, Answer)
            assert answer.body == TOKENS

    run(scenario())
    server.join(5)
    listener.close()


def test_a_connection_that_was_closed_while_the_process_stood_still_is_replaced(run: Run) -> None:
    """The end of an idle connection is in the socket, but the loop has not read it yet."""
    listener = socket.create_server(("127.0.0.1", 0))
    closed = threading.Event()
    seen: list[bytes] = []

    def serve() -> None:
        for _ in range(2):
            connection, _ = listener.accept()
            with connection:
                received = b""
                while not received.endswith(BODY):
                    received += connection.recv(65536)
                seen.append(received)
                connection.sendall(response())
            closed.set()

    server = threading.Thread(target=serve, daemon=True)
    server.start()

    async def scenario() -> None:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/token"
        async with transport() as http:
            assert isinstance(await http.ask(TokenRequest("POST", url, FORM, BODY)), Answer)
            closed.wait(5)
            time.sleep(0.02)  # noqa: ASYNC251 - the loop must not run while the end arrives
            assert isinstance(await http.ask(TokenRequest("POST", url, FORM, BODY)), Answer)

    run(scenario())
    server.join(5)
    listener.close()
    assert len(seen) == 2


def test_nothing_is_logged(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)

    async def scenario() -> None:
        for script in (answering(response()), answering(b"garbage\r\n\r\n"), _hold):
            for request in (post, get):
                await ask_once(script, timeout_seconds=0.1, request=request)

    run(scenario())
    assert "rt-1" not in caplog.text
    assert "at-1" not in caplog.text


def test_certificates_are_checked(run: Run, tmp_path: Path) -> None:
    certificate, key = _self_signed(tmp_path)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)

    async def scenario() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            exchange = Exchange(ledger, reader, writer)
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await answer_always(exchange)
            writer.transport.abort()

        ledger = RawServer(answer_always)
        listener = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
        url = f"https://127.0.0.1:{listener.sockets[0].getsockname()[1]}/token"
        request = TokenRequest("POST", url, FORM, BODY)
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda *_: None)
        async with transport() as http:
            assert await http.ask(request) == not_sent("tls_failed")
        assert ledger.requests == []
        trusting = Transport(
            timeout_seconds=5,
            max_connections=2,
            make_context=lambda: ssl.create_default_context(cafile=str(certificate)),
        )
        for _ in range(3):
            answer = await trusting.ask(request)
            assert isinstance(answer, Answer)
            assert answer.body == TOKENS
        await trusting.aclose()
        listener.close()
        assert len(ledger.requests) == 3

    run(scenario())


def test_boottime_moves_forward() -> None:
    assert boottime() <= boottime()


async def _until(holds: Callable[[], bool], seconds: float = 5) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


def _self_signed(folder: Path) -> tuple[Path, Path]:
    import ipaddress

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    certificate_file, key_file = folder / "certificate.pem", folder / "key.pem"
    certificate_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return certificate_file, key_file
