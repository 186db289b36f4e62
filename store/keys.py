"""Data keys in Postgres, wrapped by key-encryption keys that Postgres never sees.

Promise: a process that holds the right key-encryption keys gets usable rings or one clear sentence; a key is
unwrapped once and kept in memory only. What a vault opens is counted (``store.unsealings``).
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from sqlalchemy import Connection, text

from store import unsealings
from tokenfleet.errors import UserError
from tokenfleet.key_rings import KeyRing
from tokenfleet.settings import Settings
from tokenfleet_client.envelope import KEY_BYTES, DataKeys, Ring, WrappedKey, unwrap_ring
from tokenfleet_client.errors import EnvelopeError, KeyServiceUnavailable

_CREATION_LOCK = 7_305_811_035


class KeysAway(UserError):
    """A key service does not answer now: what it keeps may open later, and is not damaged."""


@dataclass(slots=True)
class Vault:
    """The data keys of both rings, ready for use. :func:`reload` replaces them, under whoever holds the vault."""

    access: DataKeys
    refresh: DataKeys


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
    renew(load_wrapped(connection), settings, vault)


def renew(rows: list[WrappedKey], settings: Settings, vault: Vault) -> None:
    """As :func:`reload`, with ``rows`` at hand and no connection held: it may ask a key service, for seconds."""
    access = _unwrap(settings.access_ring, rows, vault.access)
    refresh = _unwrap(settings.refresh_ring, rows, vault.refresh)
    vault.access, vault.refresh = access, refresh


def _unwrap(ring: KeyRing, rows: list[WrappedKey], held: DataKeys | None = None) -> DataKeys:
    try:
        return unwrap_ring(ring.ring, rows, ring.keys, held)
    except EnvelopeError as error:
        raise UserError(
            f"{error}: point TOKENFLEET_KEYS_FILE at the key file this database was set up with"
        ) from error
    except KeyServiceUnavailable as error:
        raise _away(error) from error


def _away(error: KeyServiceUnavailable) -> KeysAway:
    return KeysAway(f"{error}; a process needs it when it starts, those that run go on without")


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


def unreliable(key_id: str) -> UserError:
    """Return the error for a key service that does not give back what it was given."""
    return UserError(f"key {key_id!r} does not unwrap what it has just wrapped: nothing was changed")
