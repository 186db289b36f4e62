"""Data keys in Postgres, wrapped by key-encryption keys that Postgres never sees.

Promise: a process that holds the right key-encryption keys gets usable rings or one clear sentence; a key is
unwrapped once and kept in memory only.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from sqlalchemy import Connection, text

from tokenfleet.errors import UserError
from tokenfleet.key_rings import KeyRing
from tokenfleet.settings import Settings
from tokenfleet_client.envelope import KEY_BYTES, DataKeys, Ring, WrappedKey, unwrap_ring
from tokenfleet_client.errors import EnvelopeError

_CREATION_LOCK = 7_305_811_035


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

    Raises :class:`UserError` when a key-encryption key is missing or is another installation's.
    """
    for ring in (settings.access_ring, settings.refresh_ring):
        if ring.primary is None:
            raise UserError(
                f"no key-encryption key for the {ring.ring.value} ring is configured: run 'tokenfleet keys "
                "generate' and set TOKENFLEET_KEYS_FILE to the file it writes"
            )
        _ensure_primary(connection, ring)
    rows = load_wrapped(connection)
    return Vault(_unwrap(settings.access_ring, rows), _unwrap(settings.refresh_ring, rows))


def reload(connection: Connection, settings: Settings, vault: Vault) -> None:
    """Load the keys of both rings into ``vault``, those too that were made since it was opened.

    Raises :class:`UserError` when a key-encryption key is missing; the vault then stays as it was.
    """
    rows = load_wrapped(connection)
    access, refresh = _unwrap(settings.access_ring, rows), _unwrap(settings.refresh_ring, rows)
    vault.access, vault.refresh = access, refresh


def _unwrap(ring: KeyRing, rows: list[WrappedKey]) -> DataKeys:
    try:
        return unwrap_ring(ring.ring, rows, ring.keys)
    except EnvelopeError as error:
        raise UserError(
            f"{error}: point TOKENFLEET_KEYS_FILE at the key file this database was set up with"
        ) from error


def _ensure_primary(connection: Connection, ring: KeyRing) -> None:
    """Create the ring's first data key; two processes that start at once create one."""
    assert ring.primary is not None
    exists = text("SELECT 1 FROM tokenfleet.data_keys WHERE ring = :ring AND is_primary")
    if connection.execute(exists, {"ring": ring.ring.value}).first():
        return
    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _CREATION_LOCK})
    if connection.execute(exists, {"ring": ring.ring.value}).first():
        return
    key_id: int = connection.execute(
        text("SELECT nextval(pg_get_serial_sequence('tokenfleet.data_keys', 'id'))")
    ).scalar_one()
    wrapped = ring.primary.wrap(os.urandom(KEY_BYTES), ring.ring, key_id)
    connection.execute(
        text("""
            INSERT INTO tokenfleet.data_keys (id, ring, kek_id, wrapped, is_primary)
            OVERRIDING SYSTEM VALUE VALUES (:id, :ring, :kek_id, :wrapped, true)
        """),
        {"id": key_id, "ring": ring.ring.value, "kek_id": ring.primary.key_id, "wrapped": wrapped},
    )
