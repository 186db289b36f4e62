"""A worker keeps up with the data keys: new ones are unwrapped before they seal, and worn ones are replaced.

At its start and every :data:`LOOK_SECONDS` one short transaction adds up what was sealed and opened, says which keys
are held here (``store.key_holders``), and reads the few rows of ``data_keys``. Nothing of this is on the way of a
refresh: a key service is asked on a thread of its own, again at the next look while it is away, and what was unwrapped
goes on for as long as the process lives.

Any worker replaces a worn key (``store.data_keys``): it announces a new one, and makes it the primary one when it has
stood there for a while and every living worker holds it. Several at once do what one would.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Final

from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from store import data_keys, key_holders, keys
from store.data_keys import ANNOUNCED_FOR, DataKey, RingState
from store.keys import Vault
from store.unsealings import FLUSH_SECONDS, Tally
from tokenfleet import telemetry
from tokenfleet.errors import UserError
from tokenfleet.key_rings import KeyRing
from tokenfleet.settings import Settings
from tokenfleet.telemetry import Event
from tokenfleet_client.errors import KeyServiceUnavailable
from tokenfleet_client.unsealings import Purpose
from workers.key_thread import on_key_thread

LOOK_SECONDS: Final = FLUSH_SECONDS
LAST_SECONDS: Final = 2.0
"""How long a stop tries to write what was opened since the last look."""


class KeyWatch:
    """Keeps one vault up to date. One per worker process, and one per delivering one."""

    def __init__(self, engine: AsyncEngine, settings: Settings, vault: Vault, *, process: str) -> None:
        """``process`` holds the keys, and is who opens what ``vault`` opens."""
        self._unsealings = Tally(vault, process, told=_count)
        self._engine = engine
        self._settings = settings
        self._vault = vault
        self._process = process
        self.trouble: str | None = None
        """Why the keys cannot be kept up with just now; what is held goes on."""

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            await self._look_safely()
            await asyncio.sleep(LOOK_SECONDS)

    async def _look_safely(self) -> None:
        try:
            await self.look()
        except (SQLAlchemyError, OSError):
            # Postgres is away, which others tell.
            pass
        except (UserError, KeyServiceUnavailable) as error:
            self._say(str(error))
        except Exception as error:  # noqa: BLE001
            # This task must outlive whatever goes wrong in one look.
            telemetry.logger().warning(Event.HOUSEKEEPING_FAILED.value, error=type(error).__name__)
        else:
            self.trouble = None

    async def look(self) -> None:
        """Look once.

        Raises :class:`UserError` or :class:`KeyServiceUnavailable` when a key cannot be had; what is held stays.
        """
        vault = self._vault
        counted = data_keys.take_sealings(vault.access, vault.refresh)
        opened = self._unsealings.collect()
        read_at = time.monotonic()
        try:
            async with self._engine.begin() as connection:
                rows = await connection.run_sync(self._exchange, counted)
                await connection.run_sync(self._unsealings.add, opened)
        except BaseException:
            vault.access.sealings.update({k: n for k, n in counted.items() if k in vault.access.key_ids})
            vault.refresh.sealings.update({k: n for k, n in counted.items() if k in vault.refresh.key_ids})
            raise
        self._unsealings.settle(opened)
        if self._is_behind(rows):
            before = self._state()
            wrapped = [row.wrapped for row in rows]
            await on_key_thread(lambda: keys.renew(wrapped, self._settings, vault, read_at=read_at))
            if self._state() != before:
                telemetry.logger().info(Event.KEYS_RENEWED.value)
                async with self._engine.begin() as connection:
                    await connection.run_sync(self._tell)
            for ring in self._rings():
                self._say_lacking(data_keys.state_of(ring.ring, rows), self._held())
        for ring in self._rings():
            await self._replace_worn(ring, rows)

    async def close(self) -> None:
        """Write what was opened since the last look, if that is quickly done, and close the connections."""
        opened = self._unsealings.collect()
        with contextlib.suppress(SQLAlchemyError, OSError, TimeoutError):
            async with asyncio.timeout(LAST_SECONDS), self._engine.begin() as connection:
                await connection.run_sync(self._unsealings.add, opened)
        await self._engine.dispose()

    def _rings(self) -> tuple[KeyRing, KeyRing]:
        return self._settings.access_ring, self._settings.refresh_ring

    def _state(self) -> tuple[frozenset[int], int, int]:
        return self._held(), self._vault.access.primary_id, self._vault.refresh.primary_id

    def _held(self) -> frozenset[int]:
        return self._vault.access.key_ids | self._vault.refresh.key_ids

    def _is_behind(self, rows: list[DataKey]) -> bool:
        """Answer whether a key seals now, or will soon, that is not here, or not known here as that.

        Former ones that are not here are loaded when they are met (``workers.key_renewal``).
        """
        primaries = {self._vault.access.primary_id, self._vault.refresh.primary_id}
        states = [
            state for ring in self._rings() if (state := data_keys.state_of(ring.ring, rows)) is not None
        ]
        sealing = {state.primary.wrapped.data_key_id for state in states}
        announced = {state.announced.wrapped.data_key_id for state in states if state.announced is not None}
        return sealing != primaries or not announced <= self._held()

    def _say_lacking(self, state: RingState | None, held: frozenset[int]) -> None:
        if state is not None and state.announced is not None:
            wrapped = state.announced.wrapped
            if wrapped.data_key_id not in held:
                raise UserError(
                    f"data key {wrapped.data_key_id} of the {wrapped.ring.value} ring is announced and does not open "
                    f"here: is key-encryption key {wrapped.kek_id!r} in this machine's key list?"
                )

    async def _replace_worn(self, ring: KeyRing, rows: list[DataKey]) -> None:
        state = data_keys.state_of(ring.ring, rows)
        if state is None:
            return
        if state.announced is not None:
            if state.announced.age < ANNOUNCED_FOR:
                return
            key_id = state.announced.wrapped.data_key_id
            async with self._engine.begin() as connection:
                if await connection.run_sync(key_holders.lacking_data_key, key_id):
                    # Somebody's key service is away, or its key list old: who seals now goes on sealing.
                    return
                promoted = await connection.run_sync(data_keys.promote, ring.ring, key_id)
            if promoted:
                telemetry.logger().info(Event.KEY_PROMOTED.value, ring=ring.ring.value, data_key=key_id)
        elif state.primary.is_worn:
            wrapping = data_keys.wrapping_ring(ring, state)
            if wrapping is None:
                # Who was given the key that wraps now does it.
                return
            async with self._engine.begin() as connection:
                key_id = await connection.run_sync(keys.next_key_id)
            key = await on_key_thread(lambda: keys.make_data_key(wrapping, key_id, is_primary=False))
            async with self._engine.begin() as connection:
                announced = await connection.run_sync(data_keys.announce_key, key)
            if announced is None:
                # A rotation of the key-encryption key came in between: the next look wraps by the new one.
                return
            telemetry.logger().info(Event.KEY_ANNOUNCED.value, ring=ring.ring.value, data_key=announced)

    def _exchange(self, connection: Connection, counted: dict[int, int]) -> list[DataKey]:
        self._tell(connection)
        if counted:
            data_keys.add_sealings(connection, counted)
        return data_keys.load(connection)

    def _tell(self, connection: Connection) -> None:
        vault = self._vault
        primaries = {vault.access.primary_id, vault.refresh.primary_id}
        key_holders.tell(connection, self._process, self._rings(), self._held(), primaries)

    def _say(self, sentence: str) -> None:
        """Log what is wrong, once for as long as it lasts."""
        if sentence != self.trouble:
            telemetry.logger().error(Event.KEYS_UNUSABLE.value, error=sentence)
        self.trouble = sentence


def _count(purpose: Purpose, opened: int) -> None:
    telemetry.UNSEALED.labels(purpose.value).inc(opened)
