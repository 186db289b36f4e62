"""A worker keeps up with the data keys: new ones are unwrapped before they seal, and worn ones are replaced.

Every :data:`LOOK_SECONDS` one short transaction adds up what was sealed and opened, and reads the few rows of
``data_keys``. Nothing of this is on the way of a refresh: a key service that is away is asked again at the next look,
and what was unwrapped goes on, for as long as the process lives.

Any worker replaces a worn key (``store.data_keys``): it announces a new one, and later makes it the primary one.
Several at once do what one would.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from store import data_keys, keys
from store.data_keys import ANNOUNCED_FOR, DataKey
from store.keys import Vault
from store.unsealings import FLUSH_SECONDS, Tally
from tokenfleet import telemetry
from tokenfleet.errors import UserError
from tokenfleet.key_rings import KeyRing
from tokenfleet.settings import Settings, process_name
from tokenfleet.telemetry import Event
from tokenfleet_client.errors import KeyServiceUnavailable
from tokenfleet_client.unsealings import Purpose

LOOK_SECONDS: Final = FLUSH_SECONDS
LAST_SECONDS: Final = 2.0
"""How long a stop tries to write what was opened since the last look."""


class KeyWatch:
    """Keeps one vault up to date. One per worker process, and one per delivering one."""

    def __init__(
        self, engine: AsyncEngine, settings: Settings, vault: Vault, *, caller: str | None = None
    ) -> None:
        """``caller`` is who opens what ``vault`` opens: this process, unless it is named."""
        self._unsealings = Tally(vault, caller or process_name(), told=_tell)
        self._engine = engine
        self._settings = settings
        self._vault = vault
        self._said: str | None = None

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                await self.look()
            except (SQLAlchemyError, OSError):
                # Postgres is away, which others tell.
                continue
            except (UserError, KeyServiceUnavailable) as error:
                self._say(str(error))
            except Exception as error:  # noqa: BLE001
                # This task must outlive whatever goes wrong in one look.
                telemetry.logger().warning(Event.HOUSEKEEPING_FAILED.value, error=type(error).__name__)
            else:
                self._said = None

    async def look(self) -> None:
        """Look once.

        Raises :class:`UserError` or :class:`KeyServiceUnavailable` when a key cannot be had; what is held stays.
        """
        vault = self._vault
        counted = data_keys.take_sealings(vault.access, vault.refresh)
        opened = self._unsealings.collect()
        try:
            async with self._engine.begin() as connection:
                rows = await connection.run_sync(_exchange, counted)
                await connection.run_sync(self._unsealings.add, opened)
        except BaseException:
            vault.access.sealings.update({k: n for k, n in counted.items() if k in vault.access.key_ids})
            vault.refresh.sealings.update({k: n for k, n in counted.items() if k in vault.refresh.key_ids})
            raise
        self._unsealings.settle(opened)
        if self._is_behind(rows):
            await asyncio.to_thread(keys.renew, [row.wrapped for row in rows], self._settings, vault)
            telemetry.logger().info(Event.KEYS_RENEWED.value)
        for ring in (self._settings.access_ring, self._settings.refresh_ring):
            await self._replace_worn(ring, rows)

    async def close(self) -> None:
        """Write what was opened since the last look, if that is quickly done, and close the connections."""
        opened = self._unsealings.collect()
        with contextlib.suppress(SQLAlchemyError, OSError, TimeoutError):
            async with asyncio.timeout(LAST_SECONDS), self._engine.begin() as connection:
                await connection.run_sync(self._unsealings.add, opened)
        await self._engine.dispose()

    def _is_behind(self, rows: list[DataKey]) -> bool:
        held = self._vault.access.key_ids | self._vault.refresh.key_ids
        primaries = {self._vault.access.primary_id, self._vault.refresh.primary_id}
        configured = self._settings.access_ring.keys.keys() | self._settings.refresh_ring.keys.keys()
        missing = {row.wrapped.data_key_id for row in rows if row.wrapped.kek_id in configured} - held
        return bool(missing) or primaries != {
            row.wrapped.data_key_id for row in rows if row.wrapped.is_primary
        }

    async def _replace_worn(self, ring: KeyRing, rows: list[DataKey]) -> None:
        state = data_keys.state_of(ring.ring, rows)
        if state is None:
            return
        if state.announced is not None:
            if state.announced.age < ANNOUNCED_FOR:
                return
            key_id = state.announced.wrapped.data_key_id
            async with self._engine.begin() as connection:
                promoted = await connection.run_sync(data_keys.promote, ring.ring, key_id)
            if promoted:
                telemetry.logger().info(Event.KEY_PROMOTED.value, ring=ring.ring.value, data_key=key_id)
        elif state.primary.is_worn:
            async with self._engine.connect() as connection:
                key_id = await connection.run_sync(keys.next_key_id)
            wrapping = data_keys.wrapping_ring(ring, state)
            key = await asyncio.to_thread(keys.make_data_key, wrapping, key_id, is_primary=False)
            async with self._engine.begin() as connection:
                announced = await connection.run_sync(data_keys.announce_key, key)
            telemetry.logger().info(Event.KEY_ANNOUNCED.value, ring=ring.ring.value, data_key=announced)

    def _say(self, sentence: str) -> None:
        """Log what is wrong, once for as long as it lasts."""
        if sentence != self._said:
            telemetry.logger().error(Event.KEYS_UNUSABLE.value, error=sentence)
        self._said = sentence


def _tell(purpose: Purpose, opened: int) -> None:
    telemetry.UNSEALED.labels(purpose.value).inc(opened)


def _exchange(connection: Connection, counted: dict[int, int]) -> list[DataKey]:
    if counted:
        data_keys.add_sealings(connection, counted)
    return data_keys.load(connection)
