"""The life of a data key: announced, primary, former; and what wraps it.

A new data key is *announced* first: it stands in ``data_keys``, seals nothing, and every process has time to unwrap
it. Then it is made the primary one, and the one before it is a former one, which still opens what it has sealed. So a
key service that goes away in the middle of a rotation leaves nobody without a key that somebody else seals with.

Invariants kept here:

* A ring has one primary key at any time; an announced key has a greater id than the primary one, a former key a
  smaller one.
* A key is re-wrapped by compare-and-set on what was wrapped, so two rotations at once do no harm, and one that was
  stopped is continued by the next.
* Data keys are never deleted: an answer in the journal of a machine that has been off for a month still opens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import Connection, Engine, text

from store import keys
from tokenfleet.key_rings import KeyRing
from tokenfleet_client.envelope import DataKeys, Ring, WrappedKey

MAX_SEALINGS: Final = 2**31
"""Half of what random nonces allow one key (NIST SP 800-38D, section 8.3): sealings are counted nearly, not exactly."""
MAX_AGE: Final = timedelta(days=30)
ANNOUNCED_FOR: Final = timedelta(seconds=90)
"""Several times as long as a process takes to notice an announced key."""

_LOAD = text("""
    SELECT id, ring, kek_id, wrapped, is_primary, created_at, sealings, clock_timestamp() AS now
    FROM tokenfleet.data_keys ORDER BY id
""")

_ADD_SEALINGS = text("""
    UPDATE tokenfleet.data_keys k SET sealings = k.sealings + i.sealings
    FROM unnest(CAST(:ids AS int[]), CAST(:counts AS bigint[])) AS i (id, sealings)
    WHERE k.id = i.id
""")

# Whoever comes second waits for the row, finds that it is primary no more, and changes nothing.
_DEMOTE = text("""
    UPDATE tokenfleet.data_keys SET is_primary = false WHERE ring = :ring AND is_primary AND id < :id
""")

_PROMOTE = text("UPDATE tokenfleet.data_keys SET is_primary = true WHERE id = :id AND NOT is_primary")

# In the same order as _DEMOTE, so that an announcement and a promotion do not cross.
_PRIMARY = text("""
    SELECT id FROM tokenfleet.data_keys WHERE ring = :ring AND is_primary FOR NO KEY UPDATE
""")

_ANNOUNCED = text("SELECT max(id) FROM tokenfleet.data_keys WHERE ring = :ring AND id > :primary_id")

_REWRAP = text("""
    UPDATE tokenfleet.data_keys SET kek_id = :kek_id, wrapped = :wrapped
    WHERE id = :id AND wrapped = :before
""")


@dataclass(frozen=True, slots=True)
class DataKey:
    """One row of ``data_keys``. ``age`` is counted by the database's clock."""

    wrapped: WrappedKey
    created_at: datetime
    age: timedelta
    sealings: int

    @property
    def is_worn(self) -> bool:
        """Whether it should seal nothing more."""
        return self.age >= MAX_AGE or self.sealings >= MAX_SEALINGS


@dataclass(frozen=True, slots=True)
class RingState:
    """The keys of one ring: the one that seals, and the one that will, if it is announced."""

    primary: DataKey
    announced: DataKey | None


def load(connection: Connection) -> list[DataKey]:
    """Return every data key, oldest first."""
    return [
        DataKey(
            WrappedKey(row.id, Ring(row.ring), row.kek_id, bytes(row.wrapped), row.is_primary),
            row.created_at,
            row.now - row.created_at,
            row.sealings,
        )
        for row in connection.execute(_LOAD)
    ]


def state_of(ring: Ring, rows: list[DataKey]) -> RingState | None:
    """Return which key of ``ring`` seals and which is announced; None when the ring has no key yet."""
    ours = [row for row in rows if row.wrapped.ring is ring]
    primary = next((row for row in ours if row.wrapped.is_primary), None)
    if primary is None:
        return None
    later = [row for row in ours if row.wrapped.data_key_id > primary.wrapped.data_key_id]
    return RingState(primary, later[-1] if later else None)


def wrapping_ring(ring: KeyRing, state: RingState) -> KeyRing:
    """Return ``ring`` as a worker wraps a new data key: by the key that wraps the present one, if it is here.

    A machine that was given a new key-encryption key before the others must not wrap anything with it: the others
    could not open it. ``keys rotate`` is where an operator says that all have it.
    """
    kek = ring.keys.get(state.primary.wrapped.kek_id)
    return ring if kek is None else replace(ring, primary=kek)


def add_sealings(connection: Connection, counted: Mapping[int, int]) -> None:
    """Add to how many values each data key has sealed."""
    ids = sorted(counted)
    connection.execute(_ADD_SEALINGS, {"ids": ids, "counts": [counted[key_id] for key_id in ids]})


def take_sealings(*rings: DataKeys) -> dict[int, int]:
    """Return what was sealed since the last time, by key id, and begin anew."""
    taken: dict[int, int] = {}
    for ring in rings:
        taken |= ring.sealings
        ring.sealings.clear()
    return taken


def announce(engine: Engine, ring: KeyRing) -> int:
    """Announce a new data key for ``ring``, unless one is announced already; returns its id.

    Raises :class:`tokenfleet_client.errors.KeyServiceUnavailable`. No transaction is open meanwhile.
    """
    with engine.connect() as connection:
        key_id = keys.next_key_id(connection)
    key = keys.make_data_key(ring, key_id, is_primary=False)
    with engine.begin() as connection:
        return announce_key(connection, key)


def announce_key(connection: Connection, key: WrappedKey) -> int:
    """Store ``key`` as the announced one of its ring, unless there is one; returns the id of the announced one."""
    primary_id = connection.execute(_PRIMARY, {"ring": key.ring.value}).scalar_one()
    parameters = {"ring": key.ring.value, "primary_id": primary_id}
    announced: int | None = connection.execute(_ANNOUNCED, parameters).scalar_one()
    if announced is not None:
        return announced
    keys.insert(connection, key)
    return key.data_key_id


def promote(connection: Connection, ring: Ring, key_id: int) -> bool:
    """Make an announced key the primary one of its ring; False when it, or a later one, is that already."""
    if not connection.execute(_DEMOTE, {"ring": ring.value, "id": key_id}).rowcount:
        return False
    connection.execute(_PROMOTE, {"id": key_id})
    return True


def rewrap(engine: Engine, ring: KeyRing) -> tuple[int, int]:
    """Wrap every data key of ``ring`` by the ring's primary key-encryption key; returns (done now, there are).

    Each key is a transaction of its own, and none is open while a key service is asked. Raises
    :class:`tokenfleet.errors.UserError` when a key is wrapped by one that is not configured here,
    :class:`tokenfleet_client.errors.EnvelopeError` when it does not open, and
    :class:`tokenfleet_client.errors.KeyServiceUnavailable`.
    """
    assert ring.primary is not None
    with engine.connect() as connection:
        rows = [row.wrapped for row in load(connection) if row.wrapped.ring is ring.ring]
    done = 0
    for row in rows:
        if row.kek_id == ring.primary.key_id and not ring.primary.is_outdated(row.wrapped):
            continue
        if row.kek_id not in ring.keys:
            raise keys.not_configured(row, ring)
        data_key = ring.keys[row.kek_id].unwrap(row.wrapped, row.ring, row.data_key_id)
        wrapped = ring.primary.wrap(data_key, row.ring, row.data_key_id)
        # What a key service gives back is what every token depends on: not believed before it has opened.
        if ring.primary.unwrap(wrapped, row.ring, row.data_key_id) != data_key:
            raise keys.unreliable(ring.primary.key_id)
        with engine.begin() as connection:
            parameters = {"id": row.data_key_id, "kek_id": ring.primary.key_id, "wrapped": wrapped}
            done += connection.execute(_REWRAP, parameters | {"before": row.wrapped}).rowcount
    return done, len(rows)
