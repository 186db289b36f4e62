"""Further ports of a sandbox, opened and closed while it runs: a closed one refuses connections.

Promise: what is asked at any door is the same server, with the same grants and the same ledger. Closing a door
refuses new connections; those that stand stay, as they do when a listener dies.
"""

from __future__ import annotations

import os
from typing import Final

from aiohttp import web

from tokenfleet.errors import UserError

BACKLOG: Final = 2048
"""A worker opens up to 1,600 connections at once; the usual 128 would refuse most of them."""


class Doors:
    """The ports on which ``runner`` serves. Everything here runs on the event loop."""

    def __init__(self, runner: web.AppRunner, host: str) -> None:
        self._runner = runner
        self._host = host
        self._sites: dict[int, web.TCPSite] = {}

    async def open(self, port: int) -> int:
        """Listen on ``port``, 0 for any, and return which it is. An open one stays open.

        Raises :class:`UserError` when the port cannot be had.
        """
        if port in self._sites:
            return port
        site = web.TCPSite(self._runner, self._host, port, backlog=BACKLOG)
        try:
            await site.start()
        except (OSError, OverflowError) as error:
            reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
            raise UserError(
                f"The sandbox cannot listen on {self._host} port {port} ({reason}): "
                "choose another port, or 0 for any."
            ) from error
        self._sites[site.port] = site
        return site.port

    async def close(self, port: int) -> bool:
        """Refuse connections on ``port`` from now on; returns whether it was open."""
        site = self._sites.pop(port, None)
        if site is None:
            return False
        await site.stop()
        return True

    def url(self, port: int) -> str:
        """Return the URL of an open door."""
        return f"http://{f'[{self._host}]' if ':' in self._host else self._host}:{port}"
