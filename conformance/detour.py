"""The fleet's own transport, its requests led to the player: only the origin is replaced, right before they are sent.

Requests are built for the real URL; ``https://host/path`` becomes ``http://127.0.0.1:PORT/STAGE/host/path``, and the
header Host names the real host. So a definition under test stays as it is, and nothing ever leaves this machine.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace

from conformance.received import CERTIFICATE
from providers.exchange import Answer, Failure, TokenRequest
from providers.transport import Transport


class Detour(Transport):
    """A transport whose requests all come to the player."""

    def __init__(self, *, timeout_seconds: float = 5.0, max_connections: int = 16) -> None:
        super().__init__(timeout_seconds=timeout_seconds, max_connections=max_connections)
        self._origin = ""
        self._first: deque[str] = deque()

    def lead_to(self, origin: str, *first: str) -> None:
        """Lead requests to ``origin``, ``http://127.0.0.1:PORT/STAGE``; the coming ones to ``first``, one each."""
        self._origin = origin
        self._first = deque(first)

    async def ask(
        self, request: TokenRequest, *, send_before: float | None = None, timeout_seconds: float | None = None
    ) -> Answer | Failure:
        """Send ``request`` to the player, once, as :meth:`Transport.ask` does."""
        led = detoured(request, self._first.popleft() if self._first else self._origin)
        return await super().ask(led, send_before=send_before, timeout_seconds=timeout_seconds)


def detoured(request: TokenRequest, origin: str) -> TokenRequest:
    """Return ``request`` as it goes to ``origin``."""
    _, _, rest = request.url.partition("://")
    authority = rest.replace("?", "/", 1).partition("/")[0]
    target = rest[len(authority) :]
    if not target.startswith("/"):
        target = f"/{target}"
    headers = {"Host": authority, **request.headers}
    if request.certificate is not None:
        # There is no TLS on the way to the player: what the connection would have shown is said instead.
        headers[CERTIFICATE] = "presented"
    return replace(request, url=f"{origin}/{authority}{target}", headers=headers, certificate=None)
