"""Data keys in Postgres, wrapped by key-encryption keys that Postgres never sees.

Promise: a process that holds the right key-encryption keys gets usable rings or one clear sentence; a key is
unwrapped once and kept in memory only, and of each ring at most :data:`MAX_HELD`. What a vault opens is counted
(``store.unsealings``).
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Final

from sqlalchemy import Connection, text

from store import unsealings
from tokenfleet.errors import UserError
from tokenfleet.key_rings import KeyRing
from tokenfleet.settings import Settings
from tokenfleet_client.envelope import KEY_BYTES, DataKeys, Ring, WrappedKey, unwrap_ring
from tokenfleet_client.errors import EnvelopeError, KeyMaterialError, KeyServiceUnavailable

MAX_HELD: Final = 256
"""Data keys of one ring that a process keeps unwrapped: twenty years of them at one a month."""

_CREATION_LOCK = 7_305_811_035


class KeysAway(UserError):
    """A key service does not answer now: what it keeps may open later, and is not damaged."""


@dataclass(slots=True)
class Vault:
    """The data keys of both rings, ready for use. :func:`reload` replaces them, under whoever holds the vault."""

    access: DataKeys
    refresh: DataKeys
    read_at: float = field(default=float("-inf"), repr=False, compare=False)
    """When the rows were read from which it was renewed last (:func:`time.monotonic`)."""
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)
    """Held while it is renewed, which may take a key service's time. Nobody else takes it."""


def load_wrapped(connection: Connection) -> list[WrappedKey]:
    """Return every data key, still wrapped."""
    rows = connection.execute(
        text("SELECT id, ring, kek_id, wrapped, is_primary FROM tokenfleet.data_keys ORDER BY id")
    )
    return [
        WrappedKey(row.id, Ring(row.ring), row.kek_id, bytes(row.wrapped), row.is_primary) for row in rows
    ]


def open_vault(connection: Connection, settings: Settings) -> Vault:
    """Return the keys of both rings, creating each ring's first data key when there is none.

    Raises :class:`UserError` when a key-encryption key is missing, is another installation's, or is kept by a service
    that is away. The caller's transaction is open while a service is asked: a worker, whose sessions may not be idle
    for long, uses :func:`prepare` and :func:`unwrapped`.
    """
    return unwrapped(prepare(connection, settings), settings)


def prepare(connection: Connection, settings: Settings) -> list[WrappedKey]:
    """Return every data key, still wrapped, creating each ring's first one when there is none.

    Raises as :func:`open_vault` does.
    """
    for ring in (settings.access_ring, settings.refresh_ring):
        if ring.primary is None:
            if (sealed_under := _sealed_under(connection, ring.ring)) is not None:
                raise UserError(
                    f"this database's {ring.ring.value} ring is sealed under key-encryption key {sealed_under!r}, and "
                    "none is configured: restore the key file, and set TOKENFLEET_KEYS_FILE to it"
                )
            raise UserError(
                f"no key-encryption key for the {ring.ring.value} ring is configured: run 'tokenfleet keys "
                "generate' and set TOKENFLEET_KEYS_FILE to the file it writes"
            )
        _ensure_primary(connection, ring)
    return load_wrapped(connection)


def unwrapped(rows: list[WrappedKey], settings: Settings) -> Vault:
    """Return the keys of both rings, ready for use. Raises as :func:`open_vault` does."""
    vault = Vault(_unwrap(settings.access_ring, rows), _unwrap(settings.refresh_ring, rows))
    unsealings.watch(vault)
    return vault


def reload(connection: Connection, settings: Settings, vault: Vault) -> None:
    """Load the keys of both rings into ``vault``: those that were made since are unwrapped, removed ones forgotten.

    Raises :class:`UserError` when a key-encryption key is missing or its service away; the vault then stays as it was.
    """
    read_at = time.monotonic()
    renew(load_wrapped(connection), settings, vault, read_at=read_at)


def renew(
    rows: list[WrappedKey],
    settings: Settings,
    vault: Vault,
    *,
    read_at: float,
    wanted: Collection[int] = (),
) -> None:
    """As :func:`reload`, with ``rows`` at hand and no connection held: it may ask a key service, for seconds.

    ``read_at`` is a moment of :func:`time.monotonic` before the rows were read: of two at once the one that has read
    later wins, whoever ends first, so that no vault ever goes back. ``wanted`` are keys that are held although they are
    not among the newest.
    """
    with vault.lock:
        if read_at < vault.read_at:
            return
        access = _unwrap(settings.access_ring, rows, vault.access, wanted)
        refresh = _unwrap(settings.refresh_ring, rows, vault.refresh, wanted)
        vault.access, vault.refresh, vault.read_at = access, refresh, read_at


def _held_rows(ring: Ring, rows: list[WrappedKey], wanted: Collection[int]) -> list[WrappedKey]:
    """Return which keys of ``ring`` a process holds: what seals or will seal, what is wanted, then the newest."""
    ours = [row for row in rows if row.ring is ring]
    primary_id = next((row.data_key_id for row in ours if row.is_primary), 0)
    ours.sort(key=lambda row: (row.data_key_id < primary_id, row.data_key_id not in wanted, -row.data_key_id))
    return ours[:MAX_HELD]


def _unwrap(
    ring: KeyRing, rows: list[WrappedKey], held: DataKeys | None = None, wanted: Collection[int] = ()
) -> DataKeys:
    try:
        return unwrap_ring(ring.ring, _held_rows(ring.ring, rows, wanted), ring.keys, held)
    except (EnvelopeError, KeyMaterialError) as error:
        raise UserError(
            f"{error}: point TOKENFLEET_KEYS_FILE at the key file this database was set up with"
        ) from error
    except KeyServiceUnavailable as error:
        raise _away(error) from error


def _away(error: KeyServiceUnavailable) -> KeysAway:
    return KeysAway(f"{error}; a process needs it when it starts, those that run go on without")


def _sealed_under(connection: Connection, ring: Ring) -> str | None:
    """Return the name of the key-encryption key that wraps what ``ring`` seals with, None when there is nothing."""
    found: str | None = connection.execute(
        text("SELECT kek_id FROM tokenfleet.data_keys WHERE ring = :ring AND is_primary"),
        {"ring": ring.value},
    ).scalar()
    return found


def _ensure_primary(connection: Connection, ring: KeyRing) -> None:
    """Create the ring's first data key; two processes that start at once create one."""
    exists = text("SELECT 1 FROM tokenfleet.data_keys WHERE ring = :ring AND is_primary")
    if connection.execute(exists, {"ring": ring.ring.value}).first():
        return
    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _CREATION_LOCK})
    if connection.execute(exists, {"ring": ring.ring.value}).first():
        return
    try:
        insert(connection, make_data_key(ring, next_key_id(connection), is_primary=True))
    except KeyServiceUnavailable as error:
        raise _away(error) from error


def next_key_id(connection: Connection) -> int:
    """Return an id that no other data key has or will have."""
    key_id: int = connection.execute(
        text("SELECT nextval(pg_get_serial_sequence('tokenfleet.data_keys', 'id'))")
    ).scalar_one()
    return key_id


def make_data_key(ring: KeyRing, key_id: int, *, is_primary: bool) -> WrappedKey:
    """Return a new data key, wrapped by the ring's primary key, and stored nowhere yet.

    Raises :class:`KeyServiceUnavailable`.
    """
    assert ring.primary is not None
    wrapped = ring.primary.wrap(os.urandom(KEY_BYTES), ring.ring, key_id)
    return WrappedKey(key_id, ring.ring, ring.primary.key_id, wrapped, is_primary)


def insert(connection: Connection, key: WrappedKey) -> None:
    """Store a new data key."""
    connection.execute(
        text("""
            INSERT INTO tokenfleet.data_keys (id, ring, kek_id, wrapped, is_primary)
            OVERRIDING SYSTEM VALUE VALUES (:id, :ring, :kek_id, :wrapped, :is_primary)
        """),
        {
            "id": key.data_key_id,
            "ring": key.ring.value,
            "kek_id": key.kek_id,
            "wrapped": key.wrapped,
            "is_primary": key.is_primary,
        },
    )


def not_configured(row: WrappedKey, ring: KeyRing) -> UserError:
    """Return the error for a data key whose key-encryption key this process was not given."""
    return UserError(
        f"data key {row.data_key_id} of the {ring.ring.value} ring is wrapped by key-encryption key "
        f"{row.kek_id!r}, which is not configured here: keep it in the key list, behind the new one, until "
        "'tokenfleet keys rotate' has finished"
    )


def overtaken(ring: KeyRing) -> UserError:
    """Return the error for a ring that somebody else wraps by another key at the same time."""
    return UserError(
        f"somebody else is rotating the {ring.ring.value} ring to another key-encryption key: let one of you finish, "
        "with the same key first in both lists, and run 'tokenfleet keys rotate' again"
    )


def unreliable(key_id: str) -> UserError:
    """Return the error for a key service that does not give back what it was given."""
    return UserError(f"key {key_id!r} does not unwrap what it has just wrapped: nothing was changed")
