"""Which keys the running workers have: what a rotation asks before it lets a key seal, or wrap.

Every worker says so at each of its looks (``workers.key_watch``). Invariants kept here:

* A key that a living worker lacks seals nothing and wraps nothing (``store.data_keys``, ``tokenfleet keys rotate``): a
  rotation that was begun before every machine had its key list stops, and no refresh does.
* A rotation ends when every living worker seals with the new keys, not when nothing happens to be under the former
  ones.
* Who has not been seen for :data:`ALIVE_FOR` is gone or frozen, and holds nobody up. If it wakes, it loads what it
  meets (``workers.key_renewal``).
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import timedelta
from typing import Final

from sqlalchemy import Connection, text

from tokenfleet.key_rings import KeyRing
from tokenfleet_client.envelope import Ring

ALIVE_FOR: Final = timedelta(seconds=45)
"""Three looks."""
FORGOTTEN_AFTER: Final = timedelta(hours=1)

_TELL = text("""
    WITH gone AS (
        DELETE FROM tokenfleet.key_holders
        WHERE process <> :process AND seen_at < clock_timestamp() - CAST(:forgotten_after AS interval)
    )
    INSERT INTO tokenfleet.key_holders AS h (process, keks, data_keys, seals_with, seen_at)
    VALUES (:process, :keks, :data_keys, :seals_with, clock_timestamp())
    ON CONFLICT (process) DO UPDATE
    SET keks = EXCLUDED.keks, data_keys = EXCLUDED.data_keys, seals_with = EXCLUDED.seals_with,
        seen_at = EXCLUDED.seen_at
""")

_LACKING = """
    SELECT process FROM tokenfleet.key_holders
    WHERE seen_at > clock_timestamp() - CAST(:alive_for AS interval) AND NOT {has} ORDER BY process
"""

_LACKING_DATA_KEY = text(_LACKING.format(has="CAST(:data_key_id AS int) = ANY (data_keys)"))

_LACKING_KEK = text(_LACKING.format(has="CAST(:kek AS text) = ANY (keks)"))


_BEHIND = text(_LACKING.format(has="(CAST(:data_key_ids AS int[]) <@ seals_with)"))

_LIVING = text("""
    SELECT EXISTS (
        SELECT 1 FROM tokenfleet.key_holders WHERE seen_at > clock_timestamp() - CAST(:alive_for AS interval))
""")


def tell(
    connection: Connection,
    process: str,
    rings: Collection[KeyRing],
    data_key_ids: Collection[int],
    seals_with: Collection[int],
) -> None:
    """Say which key-encryption keys ``process`` was given, which data keys it has unwrapped, and which of them seal."""
    parameters = {
        "process": process,
        "keks": [_named(ring.ring, key_id) for ring in rings for key_id in ring.keys],
        "data_keys": sorted(data_key_ids),
        "seals_with": sorted(seals_with),
        "forgotten_after": FORGOTTEN_AFTER,
    }
    connection.execute(_TELL, parameters)


def lacking_data_key(connection: Connection, data_key_id: int) -> list[str]:
    """Return the living workers that have not unwrapped a data key."""
    parameters = {"data_key_id": data_key_id, "alive_for": ALIVE_FOR}
    return list(connection.execute(_LACKING_DATA_KEY, parameters).scalars())


def lacking_kek(connection: Connection, ring: Ring, key_id: str) -> list[str]:
    """Return the living workers that were not given a key-encryption key of ``ring``."""
    parameters = {"kek": _named(ring, key_id), "alive_for": ALIVE_FOR}
    return list(connection.execute(_LACKING_KEK, parameters).scalars())


def behind(connection: Connection, primary_ids: Collection[int]) -> list[str]:
    """Return the living workers that do not seal with these data keys yet."""
    parameters = {"data_key_ids": sorted(primary_ids), "alive_for": ALIVE_FOR}
    return list(connection.execute(_BEHIND, parameters).scalars())


def any_living(connection: Connection) -> bool:
    """Answer whether a worker runs."""
    return bool(connection.execute(_LIVING, {"alive_for": ALIVE_FOR}).scalar_one())


def _named(ring: Ring, key_id: str) -> str:
    return f"{ring.value}/{key_id}"
