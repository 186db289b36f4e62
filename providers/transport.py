"""The only socket of this package: one token request goes out, exactly once, and what came back is a value.

Promises, each one tested against raw sockets:

* One request. A refresh token is never presented twice by this module: no redirect is followed, and the HTTP
  client's own repetition of idempotent requests on a stale connection is refused at the connector.
* Whether the request left is observed, not guessed. Names of exceptions cannot tell: the HTTP client reports
  a disconnect in mid-request as a connect timeout. The body tells us when it is handed to the socket.
* An answer that reached this machine in time is not thrown away by a clock. When time is over, the connection
  is aborted instead of the task being cancelled: what was read by then is still an answer. What lies unread in
  the socket is read first: a process that was stopped and goes on (``SIGCONT`` interrupts the polling of
  sockets) runs its timers before it has looked at what came in meanwhile.
* An answer belongs to its request: a connection on which anything arrived unasked is not used again.

Proxies, netrc and cookies are not for token endpoints: ``HTTP_PROXY`` and ``~/.netrc`` are ignored, cookies
are dropped. Certificates are checked against the bundled authorities, or those that ``SSL_CERT_FILE`` or
``SSL_CERT_DIR`` name.

Requests go through the transport of ``httpx-aiohttp``, without ``httpx.AsyncClient`` around it: that costs as
much CPU again, and it logs URLs, which hold secrets when a definition asks by GET.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import select
import ssl
import time
import weakref
from contextvars import ContextVar
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, NoReturn

import aiohttp
import httpx
from httpx_aiohttp import AiohttpTransport

from providers.content_encoding import decoded
from providers.exchange import Answer, Failure, FailureKind, TokenRequest

if TYPE_CHECKING:
    from aiohttp.abc import AbstractStreamWriter
    from aiohttp.client_proto import ResponseHandler
    from aiohttp.connector import Connection
    from aiohttp.tracing import Trace

__all__ = ["Answer", "Failure", "FailureKind", "Transport", "boottime"]

MAX_BODY_BYTES: Final = 1024 * 1024
LAST_READ_SECONDS: Final = 0.25
"""How long an answer that lies in the socket at the end of its time may take to be read."""
CONNECT_SHARE: Final = 0.5
"""How much of its time an exchange may spend on getting a connection. A request that left with a moment to
spare would be an answer lost, and perhaps a refresh token spent, for nothing."""
KEEPALIVE_SECONDS: Final = 4.0
"""Idle connections are closed before the usual servers close them (5 s is the shortest common default): a
request that meets a closing connection is an answer lost."""

_clock: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
_IDENTITY: Final = {"User-Agent": "tokenfleet", "Accept-Encoding": "identity"}
_parsed_url: Final = lru_cache(maxsize=4096)(httpx.URL)


def boottime() -> float:
    """Return seconds on the clock of ``send_before``: it also counts the time that a machine sleeps."""
    return time.clock_gettime(_clock)


class _NotSentError(Exception):
    """The request is given up before a byte of it left."""


class _Ask:
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

    def leave(self) -> None:
        """Mark the request as sent. The socket is written in the same step of the loop, or this raises."""
        if self._send_before is not None and boottime() >= self._send_before:
            self.refuse("claim_expired")
        if self._loop.time() >= self._deadline:
            self.refuse("timeout")
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
        raise _NotSentError(code)

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


_asking: ContextVar[_Ask] = ContextVar("_asking")


class _Body(aiohttp.BytesPayload, httpx.AsyncByteStream):
    """A request body that says when it leaves: to httpx a stream that it passes on, to aiohttp a payload."""

    def __init__(self, value: bytes, ask: _Ask) -> None:
        super().__init__(value)
        self._ask = ask

    async def write_with_length(self, writer: AbstractStreamWriter, content_length: int | None) -> None:
        self._ask.leave()
        await super().write_with_length(writer, content_length)


class _Connector(aiohttp.TCPConnector):
    """A connection pool that hands out a connection once per request, and none that something arrived on."""

    def __init__(self, *, max_connections: int, tls: ssl.SSLContext) -> None:
        super().__init__(limit=max_connections, keepalive_timeout=KEEPALIVE_SECONDS, ssl=tls)
        self._used: weakref.WeakSet[ResponseHandler] = weakref.WeakSet()

    async def connect(
        self, req: aiohttp.ClientRequest, traces: list[Trace], *rest: Any, **named: Any
    ) -> Connection:
        ask = _asking.get()
        if ask.left:
            raise _NotSentError("a token request is never repeated")
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
                if not req.body:
                    ask.leave()
            except _NotSentError:
                connection.release()
                raise
            return connection


class Transport:
    """Asks token endpoints. Bound to the event loop that first uses it."""

    def __init__(
        self, *, timeout_seconds: float, max_connections: int, tls: ssl.SSLContext | None = None
    ) -> None:
        """Allow each exchange ``timeout_seconds`` in total, over at most ``max_connections`` at once.

        ``max_connections`` is the number of requests that the caller has in flight: one that waits for a
        connection is using up its time. ``tls`` replaces the default context, for private authorities.
        """
        self._timeout_seconds = timeout_seconds
        self._max_connections = max_connections
        self._tls = tls or httpx.create_ssl_context()
        self.asking = 0
        """How many exchanges are under way. Whoever ends this process before it is 0 may lose an answer."""
        self._http = AiohttpTransport(verify=self._tls, client=self._open_session)

    async def ask(self, request: TokenRequest, *, send_before: float | None = None) -> Answer | Failure:
        """Send ``request`` once and return its answer, or why there is none.

        ``send_before`` is a moment of :func:`boottime`: once it has passed, nothing is sent any more. Raises
        nothing but the cancellation of the calling task.
        """
        ask = _Ask(self._timeout_seconds, send_before)
        token = _asking.set(ask)
        self.asking += 1
        try:
            response = await self._http.handle_async_request(_http_request(request, ask))
            body, flaw = await _read(response, ask)
        except Exception as error:  # noqa: BLE001
            # Whatever it was, only whether the request left decides what happens next, and only we know that.
            return Failure(FailureKind.ANSWER_LOST if ask.left else FailureKind.NOT_SENT, _code(error, ask))
        except asyncio.CancelledError:
            ask.abort()
            raise
        finally:
            self.asking -= 1
            ask.finish()
            _asking.reset(token)
        headers = {
            name.lower().decode("latin-1"): value.decode("latin-1") for name, value in response.headers.raw
        }
        if not flaw and "content-encoding" in headers:
            body, flaw = decoded(body, headers["content-encoding"], MAX_BODY_BYTES)
        return Answer(response.status_code, headers, b"" if flaw else body, flaw)

    async def aclose(self) -> None:
        """Close every connection. Exchanges in flight come back as failures."""
        await self._http.aclose()

    def _open_session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=_Connector(max_connections=self._max_connections, tls=self._tls),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
        )


def _http_request(request: TokenRequest, ask: _Ask) -> httpx.Request:
    headers = {**_IDENTITY, **request.headers}
    if request.body:
        url = _parsed_url(request.url)
        return httpx.Request(request.method, url, headers=headers, stream=_Body(request.body, ask))
    # The URL of a GET holds secrets: it must not stay in a cache.
    return httpx.Request(request.method, httpx.URL(request.url), headers=headers)


async def _read(response: httpx.Response, ask: _Ask) -> tuple[bytes, str | None]:
    """Return the body as it came over the wire, or empty and what is wrong with it."""
    chunks: list[bytes] = []
    size, flaw = 0, None
    assert isinstance(response.stream, httpx.AsyncByteStream)
    try:
        async for chunk in response.stream:
            size += len(chunk)
            if size <= MAX_BODY_BYTES:
                chunks.append(chunk)
            elif flaw is None:
                flaw = "answer_too_large"
                ask.abort()
        await response.stream.aclose()
    except (httpx.HTTPError, aiohttp.ClientError, OSError):
        flaw = flaw or ("timeout" if ask.time_is_over else "answer_cut")
        with contextlib.suppress(httpx.HTTPError, aiohttp.ClientError, OSError):
            await response.stream.aclose()
    return b"".join(chunks), flaw


def _has_input(protocol: ResponseHandler) -> bool:
    """Answer whether an idle connection has something to read: the end, or an answer nobody asked for."""
    sock = protocol.transport.get_extra_info("socket") if protocol.transport else None
    if sock is None:
        return protocol.transport is None
    poll = select.poll()
    poll.register(sock.fileno(), select.POLLIN | select.POLLHUP | select.POLLERR)
    return bool(poll.poll(0))


def _code(error: Exception, ask: _Ask) -> str:
    """Return a word for people; nothing is decided by it."""
    cause = error.__cause__ if isinstance(error, httpx.HTTPError) else error
    if ask.refusal:
        return ask.refusal
    if ask.left and ask.time_is_over:
        return "timeout"
    if ask.left:
        return "garbled_answer" if isinstance(cause, aiohttp.ClientResponseError) else "connection_lost"
    match cause:
        case aiohttp.ClientConnectorDNSError():
            return "dns_failed"
        case aiohttp.ClientConnectorCertificateError() | aiohttp.ClientSSLError():
            return "tls_failed"
        case aiohttp.ClientConnectorError(errno=errno.ECONNREFUSED):
            return "connect_refused"
        case ValueError() | httpx.InvalidURL():
            return "unusable_request"
        case _:
            return "connect_failed"
