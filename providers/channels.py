"""Connection pools, one for each client certificate and one for requests without.

Invariants: a connection that was opened with a certificate carries requests with that certificate and no others; a pool
with an exchange under way is never closed; at most :data:`MAX_IDLE_CHANNELS` pools with certificates are kept unused.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

import aiohttp
from httpx_aiohttp import AiohttpTransport

from providers.certificates import digest_of, load_into
from providers.connections import MAX_HEADER_BYTES, MAX_HEADERS, AnswerHead, Connector
from tokenfleet_client.secret import Secret

MAX_IDLE_CHANNELS: Final = 32
"""A TLS context takes about half a megabyte and 20 ms to make, mostly for the authorities that it trusts."""

MakeContext = Callable[[], ssl.SSLContext]


class Channel:
    """A connection pool. ``users`` counts the exchanges under way over it."""

    __slots__ = ("digest", "http", "users")

    def __init__(self, digest: bytes, http: AiohttpTransport) -> None:
        self.digest = digest
        self.http = http
        self.users = 0


class Channels:
    """Hands out pools. Bound to the event loop that first uses it."""

    def __init__(self, *, max_connections: int, make_context: MakeContext) -> None:
        """Keep at most ``max_connections`` open in each pool; ``make_context`` says which authorities are trusted."""
        self._max_connections = max_connections
        self._make_context = make_context
        self._without = Channel(b"", self._open(make_context()))
        self._with: OrderedDict[bytes, Channel] = OrderedDict()
        self._closing: set[asyncio.Task[None]] = set()

    def take(self, certificate: Secret | None) -> Channel:
        """Return the pool for ``certificate``; it is to be given back.

        Raises :class:`~providers.certificates.CertificateError` when the certificate cannot be used.
        """
        if certificate is None:
            return self._without
        digest = digest_of(certificate)
        channel = self._with.get(digest)
        if channel is None:
            context = self._make_context()
            load_into(context, certificate)
            channel = self._with[digest] = Channel(digest, self._open(context))
        self._with.move_to_end(digest)
        channel.users += 1
        return channel

    def give_back(self, channel: Channel) -> None:
        """End one use of ``channel``; of pools that nobody uses, those unused for longest are closed."""
        if channel is self._without:
            return
        channel.users -= 1
        idle = [each for each in self._with.values() if not each.users]
        for each in idle[: max(0, len(idle) - MAX_IDLE_CHANNELS)]:
            del self._with[each.digest]
            task = asyncio.ensure_future(each.http.aclose())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def aclose(self) -> None:
        """Close every connection."""
        channels = [self._without, *self._with.values()]
        self._with.clear()
        await asyncio.gather(*(each.http.aclose() for each in channels), *self._closing)

    def _open(self, context: ssl.SSLContext) -> AiohttpTransport:
        def session() -> aiohttp.ClientSession:
            return aiohttp.ClientSession(
                connector=Connector(max_connections=self._max_connections, tls=context),
                cookie_jar=aiohttp.DummyCookieJar(),
                response_class=AnswerHead,
                max_field_size=MAX_HEADER_BYTES,
                max_headers=MAX_HEADERS,
                trust_env=False,
            )

        return AiohttpTransport(verify=context, client=session)
