"""Everything that is sealed brought under the primary data keys: pass by pass, paced, with a progress and an end."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import click

from cli.output import counted, progress

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine

    from store.keys import Vault

LAGGARDS_SECONDS: Final = 60.0
"""How long after the first pass values that others still seal under a former key are waited for: several times what a
worker takes to notice the new one."""
SAY_SECONDS: Final = 10.0
BURST_SECONDS: Final = 0.2
SETTLING_SECONDS: Final = 1.0
"""How long what a worker has sealed may be on its way into the database."""


class Resealing:
    """Brings the rows of all tables under the primary keys, and says how far it is."""

    def __init__(self, engine: Engine, vault: Vault, rate: int) -> None:
        self._engine = engine
        self._vault = vault
        self._rate = rate
        self._rows = self._values = self._total = 0
        self._busy = 1e-9
        self._began = self._said_at = self._next_at = time.monotonic()

    def run(self) -> tuple[int, list[str]]:
        """Return how many values stay under a former key, and which workers still seal under one."""
        self._total = self._left()
        behind = self._wait_for_workers(until=0.0)
        if not self._total and not behind:
            return 0, []
        with progress("Sealing anew", total=self._total) as advance:
            ends = 0.0
            while True:
                began, was_behind = time.monotonic(), behind
                unreadable = self._pass(advance)
                left = self._left()
                now = time.monotonic()
                # Everything was walked once. What is left was locked just then, or somebody does not know the new keys
                # yet; however much he goes on to seal, this ends.
                ends = ends or now + LAGGARDS_SECONDS
                if (left <= unreadable and not was_behind) or now > ends:
                    break
                # Each pass reads the whole table: on large ones not again at once.
                time.sleep(min(max(1.0, now - began), 10.0, LAGGARDS_SECONDS))
                behind = self._wait_for_workers(until=ends)
        seconds = time.monotonic() - self._began
        click.echo(
            f"{counted(self._rows, 'row')} sealed anew in {seconds:.1f} s ({self._rows / self._busy:,.0f} rows/s)."
        )
        return left, behind

    def _wait_for_workers(self, until: float) -> list[str]:
        """Wait for workers that do not seal with the new keys, and for what they have in hand; return who is late."""
        from store import key_holders

        primaries = {self._vault.access.primary_id, self._vault.refresh.primary_id}
        while True:
            with self._engine.connect() as connection:
                names = key_holders.behind(connection, primaries)
                living = key_holders.any_living(connection)
            if not names or time.monotonic() > until:
                break
            time.sleep(min(1.0, LAGGARDS_SECONDS))
        if living and not names:
            time.sleep(SETTLING_SECONDS)
        return names

    def _left(self) -> int:
        from store.sealed_places import uses

        primaries = {self._vault.access.primary_id, self._vault.refresh.primary_id}
        with self._engine.connect() as connection:
            return sum(use.values for use in uses(connection) if use.data_key_id not in primaries)

    def _pass(self, advance: Callable[[int], None]) -> int:
        """Walk every table once; returns how many values do not open."""
        from store import data_keys as life
        from store.resealing import reseal_batch
        from store.sealed_places import SEALED_TABLES

        unreadable, began = 0, time.monotonic()
        for table in SEALED_TABLES:
            after: tuple[int, ...] | None = None
            while True:
                with self._engine.begin() as connection:
                    batch = reseal_batch(connection, self._vault, table, after)
                self._rows += batch.rows
                self._values += batch.values
                unreadable += batch.unreadable
                advance(batch.values)
                self._pace(batch.rows)
                if batch.after is None:
                    break
                after = batch.after
        with self._engine.begin() as connection:
            life.add_sealings(connection, life.take_sealings(self._vault.access, self._vault.refresh))
        self._busy += time.monotonic() - began
        return unreadable

    def _pace(self, rows: int) -> None:
        """Say how far it is, and spare the database."""
        now = time.monotonic()
        if now - self._said_at > SAY_SECONDS:
            self._said_at = now
            click.echo(
                f"{self._values:,} of {self._total:,} values sealed anew, "
                f"{self._rows / (now - self._began):,.0f} rows/s",
                err=True,
            )
        if self._rate:
            # Counted from now where it was slower for a while: no burst makes up for that.
            self._next_at = max(self._next_at, now - BURST_SECONDS) + rows / self._rate
            if self._next_at > now:
                time.sleep(self._next_at - now)
