"""The sandbox as a listening process (:func:`run`) or as a thread of a test (:class:`SandboxServer`).

Promise: it listens on this machine only, unless told otherwise in so many words, because its admin endpoints
ask nobody for a password; it logs no request; and it ends at once when told to, leaving whoever waits for an
answer with a closed connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Final, Self, TypeVar

from aiohttp import web

from sandbox.admin import AdminEndpoints
from sandbox.authority import (
    Authority,
    Grant,
    LedgerReport,
    LiveTokens,
    LossReport,
    SubjectReport,
    ViolationReport,
)
from sandbox.config import SandboxConfig
from sandbox.doors import Doors
from sandbox.faults import FaultRule
from sandbox.oauth import OAuthEndpoints
from sandbox.selection import Selection, Stage
from tokenfleet.errors import UserError

SHUTDOWN_SECONDS: Final = 0.05
"""How long answers under way may still take at the end."""

_T = TypeVar("_T")


def run(
    config: SandboxConfig,
    *,
    host: str,
    port: int,
    ready: Callable[[str], None],
    allow_remote: bool = False,
) -> None:
    """Serve until SIGINT or SIGTERM, in the main thread. ``ready`` is given the URL once it listens.

    Raises :class:`UserError` when ``host`` is not this machine's own and ``allow_remote`` is false, or when
    the port cannot be had.
    """
    if not allow_remote:
        check_host(host)
    asyncio.run(_serve_until_signal(Authority(config), host, port, ready))


def check_host(host: str) -> None:
    """Raise :class:`UserError` unless ``host`` is this machine's own."""
    if not _is_loopback(host):
        raise UserError(
            f"The sandbox will not listen on {host}: its admin endpoints hand out tokens without a password. "
            "Use 127.0.0.1, or --insecure-remote if the network is yours alone."
        )


async def _serve_until_signal(
    authority: Authority, host: str, port: int, ready: Callable[[str], None]
) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with listening(authority, host, port) as url:
        ready(url)
        await stop.wait()


@contextlib.asynccontextmanager
async def listening(authority: Authority, host: str, port: int) -> AsyncIterator[str]:
    """Serve ``authority`` within the context; yield its URL. Raises :class:`UserError` for a bad address."""
    application = web.Application()
    application.add_routes(OAuthEndpoints(authority).routes())
    # handler_cancellation: a client that hangs up ends its request here too, so that the ledger knows at once
    # that the answer was not delivered, and that a second presentation is no concurrent one.
    runner = web.AppRunner(
        application, access_log=None, handler_cancellation=True, shutdown_timeout=SHUTDOWN_SECONDS
    )
    doors = Doors(runner, host)
    application.add_routes(AdminEndpoints(authority, doors).routes())
    await runner.setup()
    try:
        yield doors.url(await doors.open(port))
    finally:
        await runner.cleanup()


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class SandboxServer:
    """A sandbox on a port of its own, in a thread: ``with SandboxServer(config) as server: server.url``.

    Every method may be called from any thread but the server's.
    """

    def __init__(
        self, config: SandboxConfig | None = None, *, port: int = 0, clock: Callable[[], float] = time.time
    ) -> None:
        """Prepare a server; ``clock`` (POSIX seconds) lets a test move time for lifetimes and graces."""
        self.config = config or SandboxConfig()
        self.url = ""
        self._port = port
        self._authority = Authority(self.config, clock)
        self._loop: asyncio.AbstractEventLoop
        self._stop: asyncio.Event
        self._thread = threading.Thread(target=self._serve, name="sandbox", daemon=True)
        self._listening: Future[str] = Future()

    def __enter__(self) -> Self:
        self._thread.start()
        self.url = self._listening.result()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    @property
    def token_endpoint(self) -> str:
        """Where refresh requests go."""
        return f"{self.url}/token"

    def issue(self, *subjects: str) -> list[Grant]:
        """Sign ``subjects`` in and return their grants, in order."""
        return self._call(lambda: [self._authority.issue(subject) for subject in subjects])

    def revoke(self, *subjects: str) -> None:
        """End the grants of ``subjects``, as customers do. Raises :class:`LookupError` for a dead one."""

        def revoke() -> None:
            for subject in subjects:
                if not self._authority.grants.revoke_subject(subject):
                    raise LookupError(f"{subject} has no living grant here")

        self._call(revoke)

    def ledger(self) -> LedgerReport:
        """Return the ledger's totals."""
        return self._call(self._authority.report)

    def subject(self, subject: str) -> SubjectReport:
        """Return one subject's record. Raises :class:`LookupError` when there is no such subject."""
        report = self._call(lambda: self._authority.report_subject(subject))
        if report is None:
            raise LookupError(f"{subject} has no grant here")
        return report

    def live(self) -> list[LiveTokens]:
        """Return fingerprints of every subject's live tokens, all of one moment.

        Nothing is answered meanwhile: about 7 microseconds a subject.
        """
        return self._call(lambda: list(self._authority.live()))

    def declare_lost(self, subject: str, refresh_token_sha256: str) -> bool:
        """Tell the ledger that nobody held the answer to the token of that SHA-256 when it was presented again.

        Returns whether there was such a loss.
        """
        return self._call(lambda: self._authority.declare_lost(subject, refresh_token_sha256))

    def losses(self) -> list[LossReport]:
        """Return each answer that was ever lost, of earlier sign-ins too."""
        return self._call(lambda: list(self._authority.losses()))

    def violations(self) -> list[ViolationReport]:
        """Return every presentation that should not have been."""
        return self._call(lambda: list(self._authority.violations()))

    def add_faults(self, *rules: FaultRule) -> None:
        """Put ``rules`` in force, behind those that are."""
        self._call(lambda: self._authority.faults.add(rules, self._authority.clock()))

    def clear_faults(self) -> None:
        """End all fault rules."""
        self._call(self._authority.faults.clear)

    @contextlib.contextmanager
    def hold(
        self,
        *,
        stage: Stage = Stage.AFTER_DECIDING,
        subjects: Sequence[str] = (),
        prefix: str = "",
    ) -> Iterator[None]:
        """Let token requests wait at ``stage`` within the context; leaving it lets them go on."""
        gate, selection = self._authority.gate, Selection(frozenset(subjects), prefix)
        hold = self._call(lambda: gate.hold(stage, selection))
        try:
            yield
        finally:
            self._call(lambda: gate.release(hold))

    def wait_for_held(self, count: int, timeout_seconds: float = 10.0) -> None:
        """Block until ``count`` requests are held. Raises :class:`TimeoutError`."""
        self._authority.gate.wait_for_held(count, timeout_seconds)

    def _call(self, function: Callable[[], _T]) -> _T:
        async def call() -> _T:
            return function()

        return asyncio.run_coroutine_threadsafe(call(), self._loop).result()

    def _serve(self) -> None:
        try:
            asyncio.run(self._serve_until_stopped())
        except UserError as error:
            self._listening.set_exception(error)
        finally:
            if not self._listening.done():
                self._listening.set_exception(RuntimeError("the sandbox ended before it listened"))

    async def _serve_until_stopped(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        async with listening(self._authority, "127.0.0.1", self._port) as url:
            self._listening.set_result(url)
            await self._stop.wait()
