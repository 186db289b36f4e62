"""Waiting for the fleet to say that an account was refreshed: on one connection, in one thread, for all who wait.

Promise: hearing is a matter of speed only. Whoever waits looks for themselves as well, so it does not matter when the
connection breaks, or when there is a pooler between that gives every transaction another connection: that is found
out, and nobody listens then.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final, Protocol

import psycopg

from tokenfleet_client import queries
from tokenfleet_client.connections import connect
from tokenfleet_client.exchange import Wait

CONNECT_SECONDS: Final = 5.0
LINGER_SECONDS: Final = 5.0
"""How long the connection is kept when nobody waits."""
RETRY_SECONDS: Final = 1.0
TURN_SECONDS: Final = 0.2
"""How often the thread looks whether it is still wanted, while somebody waits."""


class Wakeable(Protocol):
    """An event of threads, or one of an event loop."""

    def set(self) -> None:
        """Wake who waits."""
        ...


class Waiters:
    """Who waits for which account. Any thread may call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._events: dict[int, set[Wakeable]] = {}

    def __bool__(self) -> bool:
        return bool(self._events)

    def enter(self, account_id: int, event: Wakeable) -> None:
        """Have ``event`` set when the account is refreshed, from now on."""
        with self._lock:
            self._events.setdefault(account_id, set()).add(event)

    def leave(self, event: Wakeable) -> None:
        """Have ``event`` set no more."""
        with self._lock:
            for account_id in [each for each, events in self._events.items() if event in events]:
                self._events[account_id].discard(event)
                if not self._events[account_id]:
                    del self._events[account_id]

    def wake(self, payload: str) -> None:
        """Wake who waits for the account that ``payload`` names. What is not the contract's is ignored."""
        account_id = payload.partition(" ")[0]
        if account_id.isdecimal():
            with self._lock:
                events = tuple(self._events.get(int(account_id), ()))
            for event in events:
                event.set()


class Listener:
    """The thread that listens while somebody waits. Without ``conninfo`` nobody listens."""

    def __init__(self, conninfo: Callable[[], str] | None) -> None:
        self._conninfo = conninfo
        self._waiters = Waiters()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = threading.Event()
        self._not_before = 0.0

    @property
    def listens(self) -> bool:
        """Whether there is a connection to hear on."""
        return self._thread is not None

    @property
    def is_useless(self) -> bool:
        """Whether nothing can be heard here, ever."""
        return self._conninfo is None

    @contextmanager
    def waiting(self) -> Iterator[Callable[[Wait], bool]]:
        """Yield what waits within one exchange: it does not miss what is said between two of its waits, either.

        It returns True as soon as the account is refreshed, False when the time is over.
        """
        event = threading.Event()

        def wait(step: Wait) -> bool:
            if step.account_id is None:
                self._closed.wait(step.seconds)
                return False
            self._start()
            self._waiters.enter(step.account_id, event)
            woken = event.wait(step.seconds)
            event.clear()
            return woken

        try:
            yield wait
        finally:
            self._waiters.leave(event)

    def close(self) -> None:
        """Listen no more, and return when the connection is closed."""
        self._closed.set()
        thread = self._thread
        if thread is not None:
            thread.join(CONNECT_SECONDS)

    def _start(self) -> None:
        with self._lock:
            wanted = self._conninfo is not None and not self._closed.is_set()
            if self._thread is None and wanted and time.monotonic() >= self._not_before:
                self._thread = threading.Thread(target=self._listen, name="tokenfleet-listener", daemon=True)
                self._thread.start()

    def _listen(self) -> None:
        assert self._conninfo is not None
        try:
            with (
                suppress(psycopg.Error, OSError, ValueError),
                connect(self._conninfo(), time.monotonic() + CONNECT_SECONDS) as connection,
            ):
                self._hear(connection)
        finally:
            with self._lock:
                self._not_before = time.monotonic() + RETRY_SECONDS
                self._thread = None

    def _hear(self, connection: psycopg.Connection[tuple[object, ...]]) -> None:
        if connection.execute(queries.BACKEND_PID).fetchone() != (connection.info.backend_pid,):
            self._conninfo = None
            return
        connection.execute(queries.LISTEN)
        wanted = time.monotonic()
        while not self._closed.is_set() and time.monotonic() < wanted + LINGER_SECONDS:
            for notification in connection.notifies(timeout=TURN_SECONDS):
                self._waiters.wake(notification.payload)
            if self._waiters:
                wanted = time.monotonic()
