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
* A request that carries a client certificate goes over connections of that certificate (``providers.channels``).
* Whatever a server sends, an answer takes little more memory than :data:`MAX_BODY_BYTES`.

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
from functools import lru_cache
from typing import Final

import aiohttp
import httpx

from providers.certificates import CertificateError
from providers.channels import Channels, MakeContext
from providers.connections import Ask, Body, asking, boottime
from providers.content_encoding import decoded
from providers.exchange import Answer, Failure, FailureKind, TokenRequest

__all__ = ["Answer", "Failure", "FailureKind", "Transport", "boottime"]

MAX_BODY_BYTES: Final = 256 * 1024
"""Token responses have a few kB. A thousand pages in flight must fit into memory, and reading one holds up the loop:
60 ms for the worst kind of this size, a quarter of a second for a megabyte of it."""

_IDENTITY: Final = {"User-Agent": "tokenfleet", "Accept-Encoding": "identity"}
_parsed_url: Final = lru_cache(maxsize=4096)(httpx.URL)


class Transport:
    """Asks token endpoints. Bound to the event loop that first uses it."""

    def __init__(
        self,
        *,
        timeout_seconds: float,
        max_connections: int,
        make_context: MakeContext = httpx.create_ssl_context,
    ) -> None:
        """Allow each exchange ``timeout_seconds`` in total, over at most ``max_connections`` at once.

        ``max_connections`` is the number of requests that the caller has in flight: one that waits for a
        connection is using up its time. ``make_context`` makes the TLS contexts, for private authorities.
        """
        self._timeout_seconds = timeout_seconds
        self._channels = Channels(max_connections=max_connections, make_context=make_context)
        self.asking = 0
        """How many exchanges are under way. Whoever ends this process before it is 0 may lose an answer."""

    async def ask(
        self, request: TokenRequest, *, send_before: float | None = None, timeout_seconds: float | None = None
    ) -> Answer | Failure:
        """Send ``request`` once and return its answer, or why there is none.

        ``send_before`` is a moment of :func:`boottime`: once it has passed, nothing is sent any more.
        ``timeout_seconds`` allows it less time than usual. Raises nothing but the cancellation of the calling task.
        """
        ask = Ask(min(timeout_seconds or self._timeout_seconds, self._timeout_seconds), send_before)
        token = asking.set(ask)
        self.asking += 1
        channel = None
        try:
            channel = self._channels.take(request.certificate)
            response = await channel.http.handle_async_request(_http_request(request, ask))
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
            if channel is not None:
                self._channels.give_back(channel)
            asking.reset(token)
        headers = {
            name.lower().decode("latin-1"): value.decode("latin-1") for name, value in response.headers.raw
        }
        if not flaw and "content-encoding" in headers:
            body, flaw = decoded(body, headers["content-encoding"], MAX_BODY_BYTES)
        return Answer(response.status_code, headers, b"" if flaw else body, flaw)

    async def aclose(self) -> None:
        """Close every connection. Exchanges in flight come back as failures."""
        await self._channels.aclose()


def _http_request(request: TokenRequest, ask: Ask) -> httpx.Request:
    headers = {**_IDENTITY, **request.headers}
    if request.body:
        url = _parsed_url(request.url)
        return httpx.Request(request.method, url, headers=headers, stream=Body(request.body, ask))
    # The URL of a GET holds secrets: it must not stay in a cache.
    return httpx.Request(request.method, httpx.URL(request.url), headers=headers)


async def _read(response: httpx.Response, ask: Ask) -> tuple[bytes, str | None]:
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


def _code(error: Exception, ask: Ask) -> str:
    """Return a word for people; nothing is decided by it."""
    cause = error.__cause__ if isinstance(error, httpx.HTTPError) else error
    if ask.refusal:
        return ask.refusal
    if ask.left and ask.time_is_over:
        return "timeout"
    if ask.left:
        return "garbled_answer" if isinstance(cause, aiohttp.ClientResponseError) else "connection_lost"
    match cause:
        case CertificateError():
            return "client_certificate_unusable"
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
