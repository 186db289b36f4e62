"""What a struck token request gets instead of its answer: wrong statuses, wrong bodies, broken connections.

The connection faults act on the socket itself. A reset is a TCP RST, sent by closing with a zero linger time:
an orderly close would let the client read an empty answer, which is another failure.
"""

from __future__ import annotations

import asyncio
import json
import math
import socket
import struct
from email.utils import formatdate
from typing import Final, assert_never

from aiohttp import web

from sandbox.faults import FaultKind, FaultRule

_NO_LINGER: Final = struct.pack("ii", 1, 0)
_WITH_RETRY_AFTER: Final = frozenset({FaultKind.STATUS_429_RETRY_AFTER, FaultKind.STATUS_503_RETRY_AFTER})

_FIREWALL_PAGE: Final = """<!DOCTYPE html>
<html><head><title>403 Forbidden</title></head>
<body><h1>Request blocked</h1><p>The request was blocked by the security policy.</p></body></html>
"""


async def misbehave(
    request: web.Request, fault: FaultRule, answer: bytes, *, now: float
) -> web.StreamResponse:
    """Give ``request`` what ``fault`` says; ``answer`` is the good body that ``half_answer`` breaks off."""
    kind = fault.kind
    match kind:
        case FaultKind.STATUS_500:
            return _error("server_error", 500)
        case FaultKind.STATUS_503_RETRY_AFTER:
            return _error("temporarily_unavailable", 503, retry_after=_retry_after(fault, now))
        case FaultKind.STATUS_429_RETRY_AFTER:
            return _error("slow_down", 429, retry_after=_retry_after(fault, now))
        case FaultKind.INVALID_GRANT:
            return _error("invalid_grant", 400)
        case FaultKind.INVALID_CLIENT:
            return _error("invalid_client", 401)
        case FaultKind.HTML_403:
            return web.Response(text=_FIREWALL_PAGE, status=403, content_type="text/html")
        case FaultKind.ERROR_IN_200:
            return _error(fault.error, 200)
        case FaultKind.GARBAGE_JSON:
            return web.Response(body=b'{"access_token": nonsense', content_type="application/json")
        case FaultKind.RESET_BEFORE | FaultKind.RESET_AFTER:
            return reset(request)
        case FaultKind.HANG:
            await (asyncio.sleep(fault.seconds) if fault.seconds else asyncio.Event().wait())
            return reset(request)
        case FaultKind.HALF_ANSWER:
            return await _half(request, answer)
        case FaultKind.SLOW | FaultKind.MISSING_REFRESH_TOKEN | FaultKind.MISSING_EXPIRES_IN:
            raise ValueError(f"{kind} alters an answer and replaces none")
        case _:
            assert_never(kind)


def reset(request: web.Request) -> web.Response:
    """Reset the connection. The response returned goes nowhere."""
    transport = request.transport
    if transport is not None:
        connection = transport.get_extra_info("socket")
        if connection is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        transport.abort()
    return web.Response()


async def _half(request: web.Request, answer: bytes) -> web.StreamResponse:
    headers = {"Content-Type": "application/json", "Content-Length": str(len(answer))}
    response = web.StreamResponse(headers=headers)
    await response.prepare(request)
    await response.write(answer[: len(answer) // 2])
    if request.transport is not None:
        request.transport.close()
    return response


def _error(error: str, status: int, *, retry_after: str | None = None) -> web.Response:
    headers = {"Cache-Control": "no-store"}
    if retry_after is not None:
        headers["Retry-After"] = retry_after
    body = json.dumps({"error": error, "error_description": "the sandbox was told to say so"})
    return web.Response(text=body, status=status, headers=headers, content_type="application/json")


def retry_moment(fault: FaultRule, now: float) -> float | None:
    """Return before which moment (POSIX seconds) ``fault`` wants no other request; None when it does not say."""
    if fault.kind not in _WITH_RETRY_AFTER:
        return None
    moment = now + fault.retry_after_seconds
    # An HTTP-date has whole seconds: rounding up keeps the promise "not before".
    return moment if fault.retry_after_format == "seconds" else math.ceil(moment)


def _retry_after(fault: FaultRule, now: float) -> str:
    if fault.retry_after_format == "seconds":
        return str(fault.retry_after_seconds)
    return formatdate(retry_moment(fault, now), usegmt=True)
