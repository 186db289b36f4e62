"""Values that are sealed under a former data key, sealed anew under the primary one, in small batches.

Invariants kept here:

* What is written is what was read, for the same account and generation: the row is locked from the reading to the
  writing. A refresh that saves meanwhile waits for one batch (milliseconds), no longer, and finds its generation.
* Nothing is locked while rows are looked for: where few of a million are left, that takes seconds.
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
    """What one batch did: rows that it had, values in them that are under another key now, values that do not open.

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
    from_here = {f"after_{name}": value for name, value in zip(table.keys, start, strict=True)}
    connection.execute(text("SET LOCAL statement_timeout = 0"))
    found = connection.execute(_find(table), parameters | from_here | {"limit": limit}).all()
    if not found:
        return Batch(0, 0, 0, None)
    wanted = {f"key_{name}": [row._mapping[name] for row in found] for name in table.keys}
    rows = connection.execute(_lock(table), parameters | wanted).all()
    values = unreadable = 0
    sealed: dict[str, list[bytes | None]] = {column.name: [] for column in table.columns}
    for row in rows:
        for column in table.columns:
            before = row._mapping[column.name]
            after_value = None
            if before is not None:
                binding = column.binding(row.owner, row._mapping[f"{column.name}_generation"])
                try:
                    after_value = _resealed(rings[column.ring], bytes(before), binding)
                except EnvelopeError:
                    unreadable += 1
            values += after_value is not None
            sealed[column.name].append(after_value)
    if values:
        names = {f"key_{name}": [row._mapping[name] for row in rows] for name in table.keys}
        connection.execute(_update(table), names | sealed)
    return Batch(len(rows), values, unreadable, table.key_of(found[-1]) if len(found) == limit else None)


def _resealed(keys: DataKeys, envelope: bytes, binding: Binding) -> bytes | None:
    """Return ``envelope`` under the primary key, None when it is that already. Raises :class:`EnvelopeError`."""
    if not keys.needs_reseal(envelope):
        return None
    return keys.seal(keys.open(envelope, binding, Purpose.RESEALING), binding)


def _former(table: SealedTable) -> str:
    """Return SQL for whether a row holds something that is under another key than the primary one."""
    return " OR ".join(f"{column.key} <> :{column.ring.value}_primary" for column in table.columns)


@cache
def _find(table: SealedTable) -> TextClause:
    keys = ", ".join(table.keys)
    after = ", ".join(f"CAST(:after_{name} AS bigint)" for name in table.keys)
    return text(f"""
        SELECT {keys} FROM tokenfleet.{table.name}
        WHERE ({keys}) > ({after}) AND ({_former(table)})
        ORDER BY {keys} LIMIT :limit
    """)


@cache
def _lock(table: SealedTable) -> TextClause:
    keys = ", ".join(f"t.{name}" for name in table.keys)
    arrays = ", ".join(f"CAST(:key_{name} AS bigint[])" for name in table.keys)
    columns = ", ".join(
        f"{column.name}, {column.generation} AS {column.name}_generation" for column in table.columns
    )
    return text(f"""
        SELECT {keys}, {table.owner} AS owner, {columns} FROM tokenfleet.{table.name} t
        WHERE ({keys}) IN (SELECT * FROM unnest({arrays})) AND ({_former(table)})
        FOR NO KEY UPDATE OF t SKIP LOCKED
    """)


@cache
def _update(table: SealedTable) -> TextClause:
    arrays = ", ".join(
        [f"CAST(:key_{name} AS bigint[])" for name in table.keys]
        + [f"CAST(:{column.name} AS bytea[])" for column in table.columns]
    )
    names = ", ".join([f"key_{name}" for name in table.keys] + [column.name for column in table.columns])
    # What stays is not written: a long value that lies out of line would be copied.
    changes = ", ".join(
        f"{column.name} = COALESCE(i.{column.name}, t.{column.name})" for column in table.columns
    )
    same = " AND ".join(f"t.{name} = i.key_{name}" for name in table.keys)
    return text(f"""
        UPDATE tokenfleet.{table.name} t SET {changes} FROM unnest({arrays}) AS i ({names}) WHERE {same}
    """)
