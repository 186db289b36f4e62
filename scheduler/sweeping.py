"""What nobody is occupied with: tokens that expire unnoticed, and revocations that somebody has left lying.

Accounts that nobody asks about: their owners are told when the token has expired meanwhile.

Whoever is asked in vain is told by the worker that asked (``store.settlement``). Here it is about everybody else:
accounts of an app that is paused, on hold or behind an open circuit, and those that an incident has set apart.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable
from datetime import UTC, datetime, timedelta
from typing import Final

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError

from store import announcements, revocations
from store.apps import App
from store.engine import is_contention
from tokenfleet.jobs import AppId

PATIENCE_MS: Final = 250
EVERY: Final = timedelta(seconds=5)
"""How long at most an expired token of such an app goes unnoticed, about."""
REVOCATIONS_EVERY: Final = timedelta(seconds=30)
"""How long at most a revocation that nobody goes on with waits, about."""
REST: Final = 4
"""A sweep is followed by a rest so many times as long: with a million accounts set apart it takes seconds, and claims
of healthy apps wait for it."""


class ExpirySweep:
    """Tells it once for each account and episode, however many schedulers sweep."""

    def __init__(self, *, owner: str) -> None:
        self._owner = owner
        self._next_at = datetime.min.replace(tzinfo=UTC)

    def is_due(self, now: datetime) -> bool:
        """Answer whether it is time to sweep."""
        return now >= self._next_at

    def run_aside(self, engine: Engine, gated: Collection[AppId], now: datetime) -> None:
        """Sweep in a transaction of its own, with little patience: while somebody holds the history, claims go on."""
        try:
            with engine.begin() as connection:
                connection.execute(text(f"SET LOCAL lock_timeout = '{PATIENCE_MS}ms'"))
                self.run(connection, gated, now)
        except DBAPIError as error:
            if not is_contention(error):
                raise
            self._next_at = now + EVERY

    def run(self, connection: Connection, gated: Collection[AppId], now: datetime) -> int:
        """Sweep the accounts of ``gated`` apps, if it is time to; returns how many were told about.

        What one sweep does not manage, the next one does, soon.
        """
        if not self.is_due(now):
            return 0
        began = time.monotonic()
        told = announcements.sweep_refresh_failing(connection, gated, actor=self._owner)
        rest = timedelta(seconds=time.monotonic() - began) * REST
        self._next_at = now + (rest if len(told) >= announcements.SWEPT_AT_ONCE else max(rest, EVERY))
        return len(told)


class RevocationSweep:
    """Sees to it that every revocation comes to its end (``store.revocations``), however many schedulers sweep."""

    def __init__(self, *, owner: str) -> None:
        self._owner = owner
        self._next_at = datetime.min.replace(tzinfo=UTC)

    def run_aside(self, engine: Engine, now: datetime) -> None:
        """Sweep if it is time to, in a transaction of its own and with little patience."""
        if now < self._next_at:
            return
        self._next_at = now + REVOCATIONS_EVERY
        try:
            with engine.begin() as connection:
                connection.execute(text(f"SET LOCAL lock_timeout = '{PATIENCE_MS}ms'"))
                revocations.sweep(connection, actor=self._owner)
        except DBAPIError as error:
            if not is_contention(error):
                raise


def gated_apps(
    known: Iterable[App], now: datetime, *, circuits_open: Collection[AppId] = ()
) -> frozenset[AppId]:
    """Return the apps of which nobody is asked, or one account or a few."""
    return frozenset(
        app.app_id
        for app in known
        if app.held_since is not None
        or (app.paused_until is not None and app.paused_until > now)
        or app.is_sampled
        or app.app_id in circuits_open
    )
