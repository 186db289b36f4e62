"""``tokenfleet keys rotate|retire``: replace keys while the fleet runs, and know when an old one may go."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import click

from cli.output import counted, progress, reason_option

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine

    from store.keys import Vault
    from tokenfleet.key_rings import KeyRing

LAGGARDS_SECONDS: Final = 60.0
"""How long values that others still seal under a former key are waited for: several times what a worker takes to notice
the new one."""
SAY_SECONDS: Final = 10.0


@click.command()
@click.option("--data-keys", is_flag=True, help="Make a new data key for each ring first, and seal with it.")
@click.option(
    "--wait",
    "wait_seconds",
    type=click.FloatRange(min=0),
    default=90.0,
    show_default=True,
    help="Seconds that workers have to take up a new data key before it seals anything.",
)
@click.option(
    "--rate",
    type=click.IntRange(min=0),
    default=5000,
    show_default=True,
    help="Rows to seal anew per second at most; 0 is as fast as it goes.",
)
@reason_option
@click.pass_context
def rotate(ctx: click.Context, data_keys: bool, wait_seconds: float, rate: int, reason: str | None) -> None:
    """Wrap every data key by the first key-encryption key of its ring, and seal everything under the newest data key.

    The fleet goes on meanwhile. Stop it at any time and run it again: it goes on where it was. Before a new
    key-encryption key is used, every machine must have it (`keys generate --add`, or a line in the key list that names
    a key service); what runs already needs no restart for a new data key.

    Exit code 1 when something is left under a former key. Nothing that is opened by one is lost then: data keys are
    never deleted.

    \b
    Examples:
      tokenfleet keys rotate
      tokenfleet keys rotate --data-keys --rate 1000
    """
    from cli.session import database, load_settings, on_record
    from store import audit
    from store import data_keys as life
    from store import keys as vaults

    settings = load_settings()
    with database(settings) as engine:
        with engine.begin() as connection:
            vault = vaults.open_vault(connection, settings)
            # Written as it begins: what follows are many transactions, and it may be stopped in any of them.
            entry = audit.Entry("keys", {"data_keys": data_keys})
            audit.record(connection, on_record(), audit.Action.KEYS_ROTATE, [entry], reason=reason)
        rings = (settings.access_ring, settings.refresh_ring)
        for ring in rings:
            _rewrap(engine, ring)
        if data_keys:
            for ring in rings:
                life.announce(engine, ring)
        _promote(engine, rings, wait_seconds, reason)
        with engine.connect() as connection:
            rows = vaults.load_wrapped(connection)
        vaults.renew(rows, settings, vault)
        left = _Resealing(engine, vault, rate).run()
    if left:
        click.echo(
            f"not under the newest keys yet: {counted(left, 'value')}; 'tokenfleet keys status' shows where, and this "
            "can be run again when every worker is up to date",
            err=True,
        )
        ctx.exit(1)
    click.echo("Everything in the database is sealed under the newest data keys.")


def _rewrap(engine: Engine, ring: KeyRing) -> None:
    from store import data_keys as life

    assert ring.primary is not None
    done, there = life.rewrap(engine, ring)
    click.echo(
        f"{ring.ring.value} ring: {counted(there, 'data key')} wrapped by {ring.primary.key_id!r}, {done} of them now."
    )


def _promote(engine: Engine, rings: tuple[KeyRing, ...], wait_seconds: float, reason: str | None) -> None:
    """Make announced keys the primary ones, when they have been there for ``wait_seconds``."""
    from cli.session import on_record
    from store import audit
    from store import data_keys as life

    for ring in rings:
        while True:
            with engine.connect() as connection:
                state = life.state_of(ring.ring, life.load(connection))
            if state is None or state.announced is None:
                break
            key_id, left = (
                state.announced.wrapped.data_key_id,
                wait_seconds - state.announced.age.total_seconds(),
            )
            if left <= 0:
                with engine.begin() as connection:
                    life.promote(connection, ring.ring, key_id)
                    entry = audit.Entry(f"data-key/{key_id}", {"ring": ring.ring.value, "seals": True})
                    audit.record(connection, on_record(), audit.Action.KEYS_ROTATE, [entry], reason=reason)
                click.echo(f"{ring.ring.value} ring: data key {key_id} seals from now on.")
                break
            click.echo(
                f"{ring.ring.value} ring: data key {key_id} seals in {left:.0f} s, when every worker has it."
            )
            time.sleep(left)


class _Resealing:
    """Brings the rows of all tables under the primary keys, and says how far it is."""

    def __init__(self, engine: Engine, vault: Vault, rate: int) -> None:
        self._engine = engine
        self._vault = vault
        self._rate = rate
        self._rows = self._values = 0
        self._began = self._said_at = time.monotonic()

    def run(self) -> int:
        """Return how many values stay under a former key."""
        total = left = self._left()
        if not total:
            return 0
        with progress("Sealing anew", total=total) as advance:
            ends = time.monotonic() + LAGGARDS_SECONDS
            while left:
                before = self._values
                unreadable = self._pass(advance)
                left = self._left()
                if left <= unreadable or (self._values == before and time.monotonic() > ends):
                    break
                if self._values == before:
                    # Somebody has them locked, or seals on under a former key.
                    time.sleep(1.0)
                else:
                    ends = time.monotonic() + LAGGARDS_SECONDS
        seconds = time.monotonic() - self._began
        click.echo(
            f"{counted(self._rows, 'row')} sealed anew in {seconds:.1f} s ({self._rows / seconds:,.0f} rows/s)."
        )
        return left

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

        unreadable = 0
        for table in SEALED_TABLES:
            after: tuple[int, ...] | None = None
            while True:
                with self._engine.begin() as connection:
                    batch = reseal_batch(connection, self._vault, table, after)
                self._rows += batch.rows
                self._values += batch.values
                unreadable += batch.unreadable
                advance(batch.values)
                self._pace()
                if batch.after is None:
                    break
                after = batch.after
        with self._engine.begin() as connection:
            life.add_sealings(connection, life.take_sealings(self._vault.access, self._vault.refresh))
        return unreadable

    def _pace(self) -> None:
        now = time.monotonic()
        if now - self._said_at > SAY_SECONDS:
            self._said_at = now
            click.echo(
                f"{counted(self._rows, 'row')} sealed anew, {self._rows / (now - self._began):,.0f} rows/s",
                err=True,
            )
        if self._rate and (ahead := self._rows / self._rate - (now - self._began)) > 0:
            time.sleep(ahead)


@click.command()
@click.argument("key")
@click.pass_context
def retire(ctx: click.Context, key: str) -> None:
    """Say whether the key-encryption key KEY may be taken away, and refuse while anything needs it.

    What lies in a journal, on whatever machine, is sealed under a data key, and data keys are never deleted: so what
    wraps no data key any more is needed by nothing that lives. An old backup of the database still needs it.

    \b
    Example:
      tokenfleet keys retire refresh-20260301-1a2b3c
    """
    from cli.session import database, load_settings
    from store.keys import load_wrapped
    from tokenfleet.errors import UserError

    settings = load_settings()
    with database(settings) as engine, engine.connect() as connection:
        rows = load_wrapped(connection)
    needing = [f"{row.data_key_id} ({row.ring.value})" for row in rows if row.kek_id == key]
    if needing:
        raise UserError(
            f"key-encryption key {key!r} is in use: it wraps data key {', '.join(needing)}; put another one first in "
            "the key list and run 'tokenfleet keys rotate'"
        )
    first = [ring.ring.value for ring in (settings.access_ring, settings.refresh_ring) if _wraps(ring, key)]
    if first:
        raise UserError(
            f"key-encryption key {key!r} stands first in the {first[0]} ring and would wrap the next data key: put "
            "another one before it"
        )
    known = key in settings.access_ring.keys or key in settings.refresh_ring.keys
    click.echo(f"Nothing in this database needs {key!r} any more.")
    if known:
        click.echo(
            "Take it out of the key list on every machine. Keep it with the backups that were made before."
        )


def _wraps(ring: KeyRing, key: str) -> bool:
    return ring.primary is not None and ring.primary.key_id == key
