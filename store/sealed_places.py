"""Every column of the database that holds sealed values: what is counted by key, and re-sealed.

``tests/store/test_resealing.py`` holds this list against the schema: a ``bytea`` column that is neither here nor named
there as something else fails. History, deliveries and the outbox hold no sealed value (G6).
"""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, Row, text

from store import records
from store.journal import SUFFIX
from tokenfleet_client.envelope import Binding, Ring, key_id_of
from tokenfleet_client.errors import EnvelopeError

KEY_ID: Final = "substring({column} FROM 2 FOR 4)"
"""The data key id in the head of an envelope (``tokenfleet_client.envelope``), as SQL."""


@dataclass(frozen=True, slots=True)
class SealedColumn:
    """One column. ``generation`` is SQL for the generation that its values are sealed for."""

    name: str
    ring: Ring
    subject: str
    field: str
    generation: str = "generation"

    @property
    def key(self) -> str:
        """The data key id of a value, as SQL."""
        return KEY_ID.format(column=self.name)

    def binding(self, owner: int, generation: int) -> Binding:
        """Return where the value of ``owner`` stands."""
        return Binding(self.ring, f"{self.subject}:{owner}", self.field, generation)


@dataclass(frozen=True, slots=True)
class SealedTable:
    """One table: its sealed columns, the columns of its primary key, and the one that owns what is sealed."""

    name: str
    columns: tuple[SealedColumn, ...]
    keys: tuple[str, ...]
    owner: str

    def key_of(self, row: Row[Any]) -> tuple[int, ...]:
        """Return the primary key of a row that was read with all columns of it."""
        return tuple(row._mapping[name] for name in self.keys)


def _tokens(generation: str = "generation") -> tuple[SealedColumn, ...]:
    return (
        SealedColumn("access_token", Ring.ACCESS, "account", "access_token", generation),
        SealedColumn("refresh_token", Ring.REFRESH, "account", "refresh_token", generation),
    )


SEALED_TABLES: Final = (
    SealedTable(
        "oauth_apps",
        (
            SealedColumn(
                "client_secret",
                Ring.REFRESH,
                "app",
                "client_secret",
                "COALESCE(secret_generation, generation)",
            ),
            SealedColumn(
                "client_certificate", Ring.REFRESH, "app", "client_certificate", "certificate_generation"
            ),
        ),
        keys=("id",),
        owner="id",
    ),
    SealedTable(
        "app_secrets",
        (SealedColumn("client_secret", Ring.REFRESH, "app", "client_secret"),),
        keys=("app_id", "position"),
        owner="app_id",
    ),
    SealedTable(
        "webhook_secrets",
        (SealedColumn("secret", Ring.REFRESH, "webhook_endpoint", "secret"),),
        keys=("endpoint_id", "generation"),
        owner="endpoint_id",
    ),
    SealedTable("token_candidates", _tokens(), keys=("id",), owner="account_id"),
    SealedTable("token_sets", _tokens(), keys=("account_id",), owner="account_id"),
)
"""The small ones first: what few rows hold is out of the way at once."""


@dataclass(frozen=True, slots=True)
class Use:
    """How many values in one place are sealed under one data key."""

    ring: Ring
    data_key_id: int
    place: str
    values: int


def uses(connection: Connection) -> list[Use]:
    """Return what is sealed under which key, by table and column. Reads every sealed row: seconds on millions.

    In a transaction of its caller's, whose statements may take as long as they need from now on.
    """
    connection.execute(text("SET LOCAL statement_timeout = 0"))
    found: list[Use] = []
    for table in SEALED_TABLES:
        for column in table.columns:
            rows = connection.execute(
                text(
                    f"SELECT {column.key} AS key, count(*) AS values FROM tokenfleet.{table.name} "
                    f"WHERE {column.name} IS NOT NULL GROUP BY 1 ORDER BY 1"
                )
            )
            place = f"{table.name}.{column.name}"
            found.extend(
                Use(column.ring, int.from_bytes(bytes(row.key), "big"), place, row.values) for row in rows
            )
    return found


def journal_uses(root: Path) -> list[Use]:
    """Return what the journals below ``root`` hold under which key, those of the living and damaged segments too.

    Raises :class:`OSError` when they may not be read from here.
    """
    counted: Counter[tuple[Ring, int]] = Counter()
    for path in sorted(root.glob(f"*/*{SUFFIX}")):
        # Removed meanwhile: then all of it is in Postgres.
        with suppress(FileNotFoundError):
            for answer in records.read(path, []):
                for ring, value in ((Ring.ACCESS, answer.access_token), (Ring.REFRESH, answer.refresh_token)):
                    with suppress(EnvelopeError):
                        counted[ring, key_id_of(value or b"")] += 1
    return [Use(ring, key_id, "journals here", count) for (ring, key_id), count in sorted(counted.items())]
