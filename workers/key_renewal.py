"""Data keys that were made after this process started are loaded when something is met that they have sealed.

Promise: a row that a sibling has sealed under a new key is not taken for damage. A key is in Postgres before anything
is sealed with it, so what one look did not find is not there, and nobody waits for it any more; and Postgres is looked
at once in :data:`RENEWAL_SECONDS` at most, however many rows name a key that nobody has. A key service that is away or
slow has said nothing, and neither has a machine whose key list is older than the key that seals now: the rows that need
it wait, for other workers too, and nothing else does.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from store import keys
from store.keys import Vault
from store.schedule import Attempt
from tokenfleet import telemetry
from tokenfleet.errors import UserError
from tokenfleet.settings import Settings
from tokenfleet.telemetry import Event
from tokenfleet_client.envelope import DataKeys, key_id_of
from workers.key_thread import on_key_thread

RENEWAL_SECONDS: Final = 5.0
PATIENCE_SECONDS: Final = 2.0
"""How long a job waits for a key service. Behind it the keys are there for the next one."""


class KeyRenewal:
    """Keeps one vault up to date. One per worker process."""

    def __init__(
        self,
        engine: AsyncEngine,
        settings: Settings,
        vault: Vault,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._settings = settings
        self._vault = vault
        self._clock = clock
        self._lock = asyncio.Lock()
        self._renewing: asyncio.Future[None] | None = None
        self._looked_at = float("-inf")
        self._has_seen = False
        self._strange: set[int] = set()
        """Keys that were met and are not here: the next look is for them."""
        self._absent: set[int] = set()
        """Keys that a look has not found."""

    def lacks_key_of(self, attempt: Attempt) -> bool:
        """Answer whether one of the account's tokens is sealed under a key that is not here."""
        lacks_access = self._lacks(self._vault.access, attempt.access_token)
        return self._lacks(self._vault.refresh, attempt.refresh_token) or lacks_access

    def lacks_key_of_secret(self, *sealed: bytes | None) -> bool:
        """Answer whether something of an app is sealed under a key that is not here."""
        return any(self._lacks(self._vault.refresh, each) for each in sealed)

    async def renew(self) -> float:
        """Load the data keys, and return 0; or return after how many seconds that may be tried."""
        asked_at = self._clock()
        async with self._lock:
            if self._has_seen and self._looked_at >= asked_at:
                # Somebody else has looked since.
                return 0.0
            if (left := self._looked_at + RENEWAL_SECONDS - asked_at) > 0:
                return left
            self._looked_at, self._has_seen = self._clock(), False
            if self._renewing is not None and not self._renewing.done():
                # Still at it. One thread hangs in a key service that hangs, and no second one.
                return RENEWAL_SECONDS
            strange, read_at = frozenset(self._strange), time.monotonic()
            try:
                async with self._engine.connect() as connection:
                    rows = await connection.run_sync(keys.load_wrapped)
            except (SQLAlchemyError, OSError):
                return RENEWAL_SECONDS
            # In a thread, for a key service may be asked; and the job that waits has claims that run out.
            renewing = self._renewing = on_key_thread(
                lambda: keys.renew(rows, self._settings, self._vault, read_at=read_at, wanted=strange)
            )
            done, _ = await asyncio.wait({renewing}, timeout=PATIENCE_SECONDS)
            if not done:
                renewing.add_done_callback(_told)
                return RENEWAL_SECONDS
            if _told(renewing) is not None:
                return RENEWAL_SECONDS
            # What was found may be given up for newer ones, and is asked for again when it is met again.
            self._absent |= strange - self._vault.access.key_ids - self._vault.refresh.key_ids
            self._strange -= strange
            self._has_seen = True
            return 0.0

    def _lacks(self, ring: DataKeys, envelope: bytes | None) -> bool:
        if envelope is None or ring.holds_key_of(envelope):
            return False
        key_id = key_id_of(envelope)
        if key_id in self._absent:
            return False
        self._strange.add(key_id)
        return True


def _told(renewing: asyncio.Future[None]) -> UserError | None:
    """Say how it went, and return what is wrong."""
    if renewing.cancelled():
        return None
    error = renewing.exception()
    if error is None:
        telemetry.logger().info(Event.KEYS_RENEWED.value)
        return None
    if not isinstance(error, UserError):
        raise error
    telemetry.logger().error(Event.KEYS_UNUSABLE.value, error=str(error))
    return error
