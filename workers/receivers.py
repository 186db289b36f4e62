"""The only socket to receivers of webhooks: one signed request out, a status back, however hostile the receiver is.

Promises:

* No packet goes to an address that is not public, unless the settings allow it. A name is resolved once for a
  connection, all its addresses are looked at, and the connection is made to one of those that were looked at: a name
  that resolves to something else a moment later (DNS rebinding) gains nothing. Whatever way an address comes by, the
  last look at it is where its socket is made.
* Nothing is followed: a redirect is an answer like any other. Proxies, netrc and cookies are not for receivers.
* Resolving, connecting, sending and reading are bounded together; of a body at most :data:`MAX_BODY_BYTES` are read,
  and thrown away.
* A name server that does not answer for one receiver holds up no other: each name is resolved by one thread at most.

Nothing of a receiver's answer is kept but its status and ``Retry-After``; errors are words of ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import functools
import socket
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, cast

import aiohttp
import httpx
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.client_proto import ResponseHandler

from providers.connections import MAX_HEADER_BYTES, MAX_HEADERS, PatientProtocol
from tokenfleet.delivery_policy import Reply
from tokenfleet.receiver_urls import is_public

MAX_BODY_BYTES: Final = 16 * 1024
"""Receivers say "ok". What sends more has its connection closed; its status counts all the same."""
CONNECT_SHARE: Final = 0.5
KEEPALIVE_SECONDS: Final = 4.0
RESOLVING_THREADS: Final = 64
RESOLVED_FOR_SECONDS: Final = 5.0
"""How long what a name resolved to is used for further connections."""
MAX_NAMES: Final = 4096

Lookup = Callable[[str, int], Sequence[tuple[socket.AddressFamily, str]]]
"""Resolves a name for a port into addresses; blocks, and raises ``OSError``."""

_HEADERS: Final = {
    "User-Agent": "tokenfleet-webhooks",
    "Content-Type": "application/json",
    "Accept-Encoding": "identity",
}


class NotPublicError(OSError):
    """The receiver is not on the public internet."""


@dataclass(frozen=True, slots=True)
class Sent:
    """One request and what came of it."""

    reply: Reply
    at: datetime
    """When it began, by this machine's clock: what its timestamp says."""
    duration_ms: int


def look_up(host: str, port: int) -> list[tuple[socket.AddressFamily, str]]:
    """Resolve as the operating system does."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    return [(family, str(address[0])) for family, _, _, _, address in found]


class Receivers:
    """Sends requests to receivers. Bound to the event loop that first uses it."""

    def __init__(
        self,
        *,
        timeout_seconds: float,
        allow_private: bool,
        max_connections: int,
        lookup: Lookup = look_up,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Allow each request ``timeout_seconds`` in total. ``tls`` replaces the default context, for private
        authorities; ``lookup`` the operating system's resolver, for tests.
        """
        self._timeout = aiohttp.ClientTimeout(
            total=timeout_seconds, sock_connect=timeout_seconds * CONNECT_SHARE, ceil_threshold=3600
        )
        self._resolver = _Resolver(lookup, allow_private=allow_private)
        self._connector: aiohttp.TCPConnector | None = None
        self._session: aiohttp.ClientSession | None = None
        self._max_connections = max_connections
        self._allow_private = allow_private
        self._tls = tls or httpx.create_ssl_context()

    async def send(self, url: str, headers: Mapping[str, str], body: bytes) -> Sent:
        """POST ``body`` to ``url`` once. Raises nothing but the cancellation of the calling task."""
        at, began = datetime.now(UTC), time.monotonic()
        try:
            reply = await self._send(url, headers, body)
        except Exception as error:  # noqa: BLE001
            # Whatever it was, it is a failed attempt at this receiver, and no reason to fail any other.
            reply = Reply(None, _word(error))
        return Sent(reply, at, round((time.monotonic() - began) * 1000))

    async def aclose(self) -> None:
        """Close every connection; requests on their way fail."""
        if self._session is not None:
            await self._session.close()
        self._resolver.shut_down()

    async def _send(self, url: str, headers: Mapping[str, str], body: bytes) -> Reply:
        if self._session is None:
            self._session = self._open_session()
        async with self._session.post(
            url, data=body, headers={**_HEADERS, **headers}, allow_redirects=False, timeout=self._timeout
        ) as response:
            error = "redirect" if 300 <= response.status < 400 else None
            reply = Reply(response.status, error, _retry_after(response.headers.get("Retry-After")))
            # The status has been said; what becomes of the body changes nothing.
            with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError):
                await _drain(response)
        return reply

    def _open_session(self) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(
            limit=self._max_connections,
            keepalive_timeout=KEEPALIVE_SECONDS,
            ssl=self._tls,
            resolver=self._resolver,
            use_dns_cache=False,
            socket_factory=self._make_socket,
        )
        # A receiver that sends heads without end must not fill the memory: see there.
        connector._factory = cast(  # noqa: SLF001
            "functools.partial[ResponseHandler]",
            functools.partial(PatientProtocol, loop=asyncio.get_running_loop()),
        )
        return aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            max_field_size=MAX_HEADER_BYTES,
            max_headers=MAX_HEADERS,
            trust_env=False,
        )

    def _make_socket(self, address: tuple[Any, ...]) -> socket.socket:
        """Make the socket for one address: the last gate, through which addresses in URLs come as well."""
        family, kind, protocol, _, where = address
        if not self._allow_private and not is_public(str(where[0])):
            raise NotPublicError(f"{where[0]} is not an address of the public internet")
        return socket.socket(family, kind, protocol)


class _Resolver(AbstractResolver):
    """Resolves each name once at a time, and refuses those of which any address is not public."""

    def __init__(self, lookup: Lookup, *, allow_private: bool) -> None:
        self._lookup = lookup
        self._allow_private = allow_private
        self._threads = ThreadPoolExecutor(RESOLVING_THREADS, thread_name_prefix="resolve")
        self._asked: dict[tuple[str, int], tuple[float, asyncio.Future[list[ResolveResult]]]] = {}

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        loop = asyncio.get_running_loop()
        known = self._asked.get((host, port))
        if known is None or (known[1].done() and loop.time() - known[0] > RESOLVED_FOR_SECONDS):
            if len(self._asked) >= MAX_NAMES:
                self._asked = {key: each for key, each in self._asked.items() if not each[1].done()}
            asking = loop.run_in_executor(self._threads, self._resolve, host, port)
            # Nobody may wait for it any more when it fails.
            asking.add_done_callback(lambda done: done.cancelled() or done.exception())
            known = self._asked[host, port] = (loop.time(), asking)
        # Shielded: who gives up must not take the others that wait for the same name along.
        return await asyncio.shield(known[1])

    async def close(self) -> None:
        """Nothing is kept open."""

    def shut_down(self) -> None:
        """End the threads; one that hangs in the resolver is left behind."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _resolve(self, host: str, port: int) -> list[ResolveResult]:
        found = self._lookup(host, port)
        refused = [address for _, address in found if not is_public(address)]
        if refused and not self._allow_private:
            raise NotPublicError(f"{host} resolves to {refused[0]}, which is not public")
        return [
            ResolveResult(hostname=host, host=address, port=port, family=family, proto=0, flags=0)
            for family, address in found
        ]


async def _drain(response: aiohttp.ClientResponse) -> None:
    """Read a small body to its end, so that the connection can be used again; close it under a large one."""
    size = 0
    async for chunk in response.content.iter_any():
        size += len(chunk)
        if size > MAX_BODY_BYTES:
            response.close()
            return


def _retry_after(value: str | None) -> timedelta | None:
    """Read ``Retry-After``: seconds, or a date (RFC 9110, section 10.2.3)."""
    if value is None:
        return None
    value = value.strip()
    if value.isascii() and value.isdecimal():
        return timedelta(seconds=min(int(value[:9]), 365 * 86_400))
    try:
        at = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    return (at if at.tzinfo else at.replace(tzinfo=UTC)) - datetime.now(UTC)


def _word(error: Exception) -> str:
    """Return a word for people and for the log; nothing a receiver says is in it."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, NotPublicError):
            return "not_public"
        seen = seen.__cause__ or (seen.os_error if isinstance(seen, aiohttp.ClientConnectorError) else None)
    match error:
        case aiohttp.ClientConnectorDNSError() | socket.gaierror():
            return "dns_failed"
        case aiohttp.ClientConnectorCertificateError() | aiohttp.ClientSSLError():
            return "tls_failed"
        case aiohttp.InvalidURL() | ValueError():
            return "unusable_url"
        case TimeoutError():
            return "timeout"
        case aiohttp.ClientConnectorError(errno=errno) if errno is not None:
            return (
                "connect_refused" if isinstance(error.os_error, ConnectionRefusedError) else "connect_failed"
            )
        case aiohttp.ClientConnectorError():
            return "connect_failed"
        case aiohttp.ClientResponseError():
            return "garbled_answer"
        case _:
            return "connection_lost"
