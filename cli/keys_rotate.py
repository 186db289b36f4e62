"""``tokenfleet keys rotate``: replace keys while the fleet runs.

Promise: no key wraps or seals anything before every living worker has it, and whatever step it is killed at, the next
run goes on from there.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Final

import click

from cli.output import counted, reason_option

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Connection, Engine

    from store.keys import Vault
    from tokenfleet.key_rings import KeyRing
    from tokenfleet.settings import Settings

HOLDERS_SECONDS: Final = 60.0
"""How long workers that lack a key are waited for: longer than one that has ended counts as living."""


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
    a key service) and what runs there be restarted: while a worker lacks it, nothing is changed. For a new data key
    nothing is restarted; it seals nothing before every worker has it.

    Exit code 1 when a worker lacks a key, and when something is left under a former key. Nothing that is opened by one
    is lost then: data keys are never deleted.

    \b
    Examples:
      tokenfleet keys rotate
      tokenfleet keys rotate --data-keys --rate 1000
    """
    from cli.resealing import Resealing
    from cli.session import database, load_settings, on_record
    from store import audit
    from store import data_keys as life
    from store import keys as vaults

    settings = load_settings()
    rings = (settings.access_ring, settings.refresh_ring)
    with database(settings) as engine:
        with engine.begin() as connection:
            vault = vaults.open_vault(connection, settings)
        _wait_for_key_lists(engine, rings)
        with engine.begin() as connection:
            # Written as it begins: what follows are many transactions, and it may be stopped in any of them.
            entry = audit.Entry("keys", {"data_keys": data_keys})
            audit.record(connection, on_record(), audit.Action.KEYS_ROTATE, [entry], reason=reason)
        for ring in rings:
            _rewrap(engine, ring)
        if data_keys:
            for ring in rings:
                life.announce(engine, ring)
        _promote(engine, rings, wait_seconds, reason)
        _hold_all(engine, settings, vault)
        left, behind = Resealing(engine, vault, rate).run()
    if left:
        click.echo(
            f"not under the newest keys yet: {counted(left, 'value')}; 'tokenfleet keys status' shows where, and this "
            "can be run again when every worker is up to date",
            err=True,
        )
    if behind:
        click.echo(
            f"still sealing under former keys: {', '.join(behind)}; their logs say why ('keys.unusable')",
            err=True,
        )
    if left or behind:
        ctx.exit(1)
    click.echo("Everything in the database is sealed under the newest data keys.")


def _wait_for_key_lists(engine: Engine, rings: tuple[KeyRing, ...]) -> None:
    """Return when every living worker has the key that wraps from now on. Raises :class:`UserError`."""
    from store import key_holders

    for ring in rings:
        assert ring.primary is not None
        key_id = ring.primary.key_id
        _wait_for_workers(
            engine,
            partial(key_holders.lacking_kek, ring=ring.ring, key_id=key_id),
            f"key-encryption key {key_id!r} of the {ring.ring.value} ring",
            "nothing was changed: give it to every machine, restart what runs there, and run this again",
        )


def _wait_for_workers(
    engine: Engine, lacking: Callable[[Connection], list[str]], what: str, then: str
) -> None:
    from tokenfleet.errors import UserError

    ends, said = time.monotonic() + HOLDERS_SECONDS, False
    while True:
        with engine.connect() as connection:
            names = lacking(connection)
        if not names:
            return
        if time.monotonic() > ends:
            shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
            raise UserError(
                f"{what} is not in the hands of {counted(len(names), 'worker')} ({shown}): {then}"
            )
        if not said:
            said = True
            click.echo(f"Waiting for {counted(len(names), 'worker')} to take up {what}.")
        time.sleep(min(1.0, HOLDERS_SECONDS))


def _hold_all(engine: Engine, settings: Settings, vault: Vault) -> None:
    """Load the data keys into ``vault``; of very many those that something is sealed under."""
    from store import keys as vaults
    from store.sealed_places import uses

    read_at = time.monotonic()
    with engine.begin() as connection:
        rows = vaults.load_wrapped(connection)
        wanted = {use.data_key_id for use in uses(connection)} if len(rows) > vaults.MAX_HELD else set()
    vaults.renew(rows, settings, vault, read_at=read_at, wanted=wanted)


def _rewrap(engine: Engine, ring: KeyRing) -> None:
    from store import data_keys as life

    assert ring.primary is not None
    done, there = life.rewrap(engine, ring)
    click.echo(
        f"{ring.ring.value} ring: {counted(there, 'data key')} wrapped by {ring.primary.key_id!r}, {done} of them now."
    )


def _promote(engine: Engine, rings: tuple[KeyRing, ...], wait_seconds: float, reason: str | None) -> None:
    """Make announced keys the primary ones: those that every worker has, and that are ``wait_seconds`` old."""
    from cli.session import on_record
    from store import audit, key_holders
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
                _wait_for_workers(
                    engine,
                    partial(key_holders.lacking_data_key, data_key_id=key_id),
                    f"data key {key_id} of the {ring.ring.value} ring",
                    "it seals nothing until they have it; their logs say why they have not ('keys.unusable')",
                )
                with engine.begin() as connection:
                    # Unless a worker or another rotation was first, and it is on record there.
                    if life.promote(connection, ring.ring, key_id):
                        entry = audit.Entry(f"data-key/{key_id}", {"ring": ring.ring.value, "seals": True})
                        audit.record(
                            connection, on_record(), audit.Action.KEYS_ROTATE, [entry], reason=reason
                        )
                click.echo(f"{ring.ring.value} ring: data key {key_id} seals from now on.")
                break
            click.echo(
                f"{ring.ring.value} ring: data key {key_id} seals in {left:.0f} s, when every worker has it."
            )
            time.sleep(left)
