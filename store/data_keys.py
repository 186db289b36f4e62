"""The life of a data key: announced, primary, former; and what wraps it.

A new data key is *announced* first: it stands in ``data_keys``, seals nothing, and every process has time to unwrap
it. Then it is made the primary one, and the one before it is a former one, which still opens what it has sealed. So a
key service that goes away in the middle of a rotation leaves nobody without a key that somebody else seals with.

Invariants kept here:

* A ring has one primary key at any time; an announced key has a greater id than the primary one, a former key a
  smaller one.
* A key is re-wrapped by compare-and-set on what was wrapped, so two rotations at once do no harm, and one that was
  stopped is continued by the next.
* A new key is wrapped by the very key that wraps the primary one at that moment (looked at under its lock): whoever
  was frozen during a rotation, or was never given its key, brings back no key-encryption key that was retired.
* Data keys are never deleted: an answer in the journal of a machine that has been off for a month still opens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import Connection, Engine, text

from store import keys
from tokenfleet.errors import UserError
from tokenfleet.key_rings import KeyRing
from tokenfleet_client.envelope import DataKeys, Ring, WrappedKey
from tokenfleet_client.errors import EnvelopeError

MAX_SEALINGS: Final = 2**31
"""Half of what random nonces allow one key (NIST SP 800-38D, section 8.3): sealings are counted nearly, not exactly."""
MAX_AGE: Final = timedelta(days=30)
ANNOUNCED_FOR: Final = timedelta(seconds=90)
"""Several times as long as a process takes to notice an announced key."""
REWRAP_PASSES: Final = 5
"""Two or three do. More: somebody else wraps by another key at the same time."""

_LOAD = text("""
    SELECT id, ring, kek_id, wrapped, is_primary, created_at, sealings, clock_timestamp() AS now
    FROM tokenfleet.data_keys ORDER BY id
""")

_ADD_SEALINGS = text("""
    WITH locked AS MATERIALIZED (
        -- In one order: every worker does this every few seconds.
        SELECT k.id FROM tokenfleet.data_keys k WHERE k.id = ANY (CAST(:ids AS int[])) ORDER BY k.id
        FOR NO KEY UPDATE
    )
    UPDATE tokenfleet.data_keys k SET sealings = k.sealings + i.sealings
    FROM locked JOIN unnest(CAST(:ids AS int[]), CAST(:counts AS bigint[])) AS i (id, sealings) USING (id)
    WHERE k.id = i.id
""")

# Whoever comes second waits for the row, finds that it is primary no more, and changes nothing.
_DEMOTE = text("""
    UPDATE tokenfleet.data_keys SET is_primary = false WHERE ring = :ring AND is_primary AND id < :id
""")

_PROMOTE = text("UPDATE tokenfleet.data_keys SET is_primary = true WHERE id = :id AND ring = :ring")

# In the same order as _DEMOTE, so that an announcement and a promotion do not cross.
_PRIMARY = text("""
    SELECT id, kek_id FROM tokenfleet.data_keys WHERE ring = :ring AND is_primary FOR NO KEY UPDATE
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


def wrapping_ring(ring: KeyRing, state: RingState) -> KeyRing | None:
    """Return ``ring`` as a worker wraps a new data key: by the key that wraps the present one. None: it is not here.

    A machine that was given a new key-encryption key before the others must not wrap anything with it, for the others
    could not open it; and one that has the former ones only must not bring them back. ``keys rotate`` is where an
    operator says which key wraps.
    """
    kek = ring.keys.get(state.primary.wrapped.kek_id)
    return None if kek is None else replace(ring, primary=kek)


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

    Raises :class:`tokenfleet.errors.UserError` when another key than the ring's first wraps its present data key, and
    :class:`tokenfleet_client.errors.KeyServiceUnavailable`. No transaction is open meanwhile.
    """
    with engine.connect() as connection:
        key_id = keys.next_key_id(connection)
    key = keys.make_data_key(ring, key_id, is_primary=False)
    with engine.begin() as connection:
        announced = announce_key(connection, key)
    if announced is None:
        raise keys.overtaken(ring)
    return announced


def announce_key(connection: Connection, key: WrappedKey) -> int | None:
    """Store ``key`` as the announced one of its ring, unless there is one; returns the id of the announced one.

    None, and nothing is stored, when another key-encryption key wraps the primary one by now.
    """
    primary = connection.execute(_PRIMARY, {"ring": key.ring.value}).one()
    parameters = {"ring": key.ring.value, "primary_id": primary.id}
    announced: int | None = connection.execute(_ANNOUNCED, parameters).scalar_one()
    if announced is not None:
        return announced
    if key.kek_id != primary.kek_id:
        return None
    keys.insert(connection, key)
    return key.data_key_id


def promote(connection: Connection, ring: Ring, key_id: int) -> bool:
    """Make an announced key the primary one of its ring; False when it, or a later one, is that already.

    Raises :class:`LookupError`, for the transaction to be rolled back, when there is no such key.
    """
    if not connection.execute(_DEMOTE, {"ring": ring.value, "id": key_id}).rowcount:
        return False
    if not connection.execute(_PROMOTE, {"ring": ring.value, "id": key_id}).rowcount:
        raise LookupError(f"no data key {key_id} in the {ring.value} ring")
    return True


def rewrap(engine: Engine, ring: KeyRing) -> tuple[int, int]:
    """Wrap every data key of ``ring`` by the ring's primary key-encryption key; returns (done now, there are).

    Again until nothing is left to do: a worker may announce a key meanwhile, until the primary one is wrapped anew.
    Each key is a transaction of its own, and none is open while a key service is asked. Raises
    :class:`tokenfleet.errors.UserError` when a key is wrapped by one that is not configured here,
    :class:`tokenfleet_client.errors.EnvelopeError` when it does not open, and
    :class:`tokenfleet_client.errors.KeyServiceUnavailable`.
    """
    done = 0
    for _ in range(REWRAP_PASSES):
        with engine.connect() as connection:
            rows = [row.wrapped for row in load(connection) if row.wrapped.ring is ring.ring]
        todo = [row for row in rows if _is_behind(row, ring)]
        if not todo:
            return done, len(rows)
        done += _rewrap_each(engine, ring, todo)
    raise keys.overtaken(ring)


def _is_behind(row: WrappedKey, ring: KeyRing) -> bool:
    """Answer whether ``row`` is wrapped by another key than the ring's first, or by an older version of that."""
    assert ring.primary is not None
    return row.kek_id != ring.primary.key_id or ring.primary.is_outdated(row.wrapped)


def _rewrap_each(engine: Engine, ring: KeyRing, rows: list[WrappedKey]) -> int:
    """Wrap each of ``rows`` anew, the primary one first; one that does not open keeps none of the others from it."""
    assert ring.primary is not None
    refused: UserError | EnvelopeError | None = None
    done = 0
    for row in sorted(rows, key=lambda row: not row.is_primary):
        try:
            wrapped = _rewrapped(row, ring)
        except (UserError, EnvelopeError) as error:
            if row.is_primary:
                raise
            refused = refused or error
            continue
        with engine.begin() as connection:
            parameters = {"id": row.data_key_id, "kek_id": ring.primary.key_id, "wrapped": wrapped}
            done += connection.execute(_REWRAP, parameters | {"before": row.wrapped}).rowcount
    if refused is not None:
        raise refused
    return done


def _rewrapped(row: WrappedKey, ring: KeyRing) -> bytes:
    assert ring.primary is not None
    if row.kek_id not in ring.keys:
        raise keys.not_configured(row, ring)
    data_key = ring.keys[row.kek_id].unwrap(row.wrapped, row.ring, row.data_key_id)
    wrapped = ring.primary.wrap(data_key, row.ring, row.data_key_id)
    # What a key service gives back is what every token depends on: not believed before it has opened.
    if ring.primary.unwrap(wrapped, row.ring, row.data_key_id) != data_key:
        raise keys.unreliable(ring.primary.key_id)
    return wrapped
