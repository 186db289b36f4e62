"""Values that are sealed under a former data key, sealed anew under the primary one, in small batches.

Invariants kept here:

* What is written is what was read, for the same account and generation: the row is locked from the reading to the
  writing. A refresh that saves meanwhile waits for one batch (milliseconds), no longer, and finds its generation.
* Rows that somebody else has locked are passed over and found by the next pass: nobody who refreshes and nobody who
  re-seals ever waits for two rows of the other in different orders.
* Nothing is remembered of how far it came: what needs it can be seen in the head of each value, so a rotation that was
  killed goes on where it was, and two at once share the work.

The batches walk the primary keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from sqlalchemy import Connection, TextClause, text

from store.keys import Vault
from store.sealed_places import SealedTable
from tokenfleet_client.envelope import Binding, DataKeys, Ring
from tokenfleet_client.errors import EnvelopeError
from tokenfleet_client.unsealings import Purpose

BATCH: Final = 200
"""Rows of one transaction: four milliseconds of locks."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What one batch did: rows, values in them that are under another key now, values that do not open.

    ``after`` is where the next one begins, None at the end of the table.
    """

    rows: int
    values: int
    unreadable: int
    after: tuple[int, ...] | None


def reseal_batch(
    connection: Connection,
    vault: Vault,
    table: SealedTable,
    after: tuple[int, ...] | None,
    *,
    limit: int = BATCH,
) -> Batch:
    """Re-seal up to ``limit`` rows of ``table`` behind the key ``after``, in the caller's transaction.

    A value that does not open stays as it is, and is counted.
    """
    rings = {Ring.ACCESS: vault.access, Ring.REFRESH: vault.refresh}
    parameters: dict[str, Any] = {
        f"{ring.value}_primary": keys.primary_id.to_bytes(4, "big") for ring, keys in rings.items()
    }
    start = after or (-(2**31),) * len(table.keys)
    parameters |= {f"after_{name}": value for name, value in zip(table.keys, start, strict=True)}
    rows = connection.execute(_select(table), parameters | {"limit": limit}).all()
    values = unreadable = 0
    sealed: dict[str, list[bytes | None]] = {column.name: [] for column in table.columns}
    for row in rows:
        for column in table.columns:
            before = row._mapping[column.name]
            value = None if before is None else bytes(before)
            if value is not None:
                binding = column.binding(row.owner, row._mapping[f"{column.name}_generation"])
                resealed = _resealed(rings[column.ring], value, binding)
                values += resealed not in (None, value)
                unreadable += resealed is None
                value = resealed or value
            sealed[column.name].append(value)
    if values:
        names = {f"key_{name}": [row._mapping[name] for row in rows] for name in table.keys}
        connection.execute(_update(table), names | sealed)
    return Batch(len(rows), values, unreadable, table.key_of(rows[-1]) if len(rows) == limit else None)


def _resealed(keys: DataKeys, envelope: bytes, binding: Binding) -> bytes | None:
    """Return ``envelope`` under the primary key, as it is if it is that already; None when it does not open."""
    try:
        if not keys.needs_reseal(envelope):
            return envelope
        return keys.seal(keys.open(envelope, binding, Purpose.RESEALING), binding)
    except EnvelopeError:
        return None


@cache
def _select(table: SealedTable) -> TextClause:
    keys = ", ".join(table.keys)
    columns = ", ".join(
        f"{column.name}, {column.generation} AS {column.name}_generation" for column in table.columns
    )
    former = " OR ".join(f"{column.key} <> :{column.ring.value}_primary" for column in table.columns)
    after = ", ".join(f"CAST(:after_{name} AS bigint)" for name in table.keys)
    return text(f"""
        SELECT {keys}, {table.owner} AS owner, {columns} FROM tokenfleet.{table.name}
        WHERE ({keys}) > ({after}) AND ({former})
        ORDER BY {keys} LIMIT :limit FOR NO KEY UPDATE SKIP LOCKED
    """)


@cache
def _update(table: SealedTable) -> TextClause:
    arrays = ", ".join(
        [f"CAST(:key_{name} AS bigint[])" for name in table.keys]
        + [f"CAST(:{column.name} AS bytea[])" for column in table.columns]
    )
    names = ", ".join([f"key_{name}" for name in table.keys] + [column.name for column in table.columns])
    changes = ", ".join(f"{column.name} = i.{column.name}" for column in table.columns)
    same = " AND ".join(f"t.{name} = i.key_{name}" for name in table.keys)
    return text(f"""
        UPDATE tokenfleet.{table.name} t SET {changes} FROM unnest({arrays}) AS i ({names}) WHERE {same}
    """)
