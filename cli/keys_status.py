"""``tokenfleet keys status``: which keys there are, what opens here, and what still uses what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

import click

from cli.output import counted, json_option, print_json, print_table

if TYPE_CHECKING:
    from store.data_keys import DataKey
    from store.sealed_places import Use
    from tokenfleet.key_rings import KeyRing


@dataclass(frozen=True, slots=True)
class PlaceStatus:
    """How many values in one table's column, or in the journals of this machine, are sealed under a data key."""

    place: str
    values: int


@dataclass(frozen=True, slots=True)
class DataKeyStatus:
    """One data key; never its material. ``outdated`` is whether its key-encryption key has a newer version."""

    data_key_id: int
    ring: str
    is_primary: bool
    is_announced: bool
    kek_id: str
    opens: bool
    outdated: bool
    problem: str | None
    created_at: datetime
    sealings: int
    uses: tuple[PlaceStatus, ...]


@dataclass(frozen=True, slots=True)
class LostStatus:
    """How many values in one place name a data key that the database does not have: nobody can open them."""

    ring: str
    data_key_id: int
    place: str
    values: int


@dataclass(frozen=True, slots=True)
class KeysStatus:
    """Which key-encryption keys this process was given, and which data keys the database holds."""

    access_keks: tuple[str, ...]
    refresh_keks: tuple[str, ...]
    data_keys: tuple[DataKeyStatus, ...]
    lost: tuple[LostStatus, ...]
    journals_readable: bool


@click.command()
@json_option
@click.pass_context
def status(ctx: click.Context, as_json: bool) -> None:
    """Show which data keys there are, whether this process can open them, and what is sealed under each.

    Counts every sealed value in the database and in this machine's journals: some seconds on millions of accounts.
    Exit code 1 if the key that seals new values of a configured ring does not open. Use it on a new machine
    before starting a worker there. Shows ids, never key material.

    \b
    Example:
      tokenfleet keys status --json
    """
    from cli.session import database, load_settings
    from store import data_keys
    from store.sealed_places import journal_uses, uses
    from tokenfleet_client.envelope import Ring

    settings = load_settings()
    with database(settings) as engine:
        with engine.begin() as connection:
            rows = data_keys.load(connection)
        with engine.begin() as connection:
            found_uses = uses(connection)
    readable = True
    try:
        found_uses += journal_uses(settings.journal_dir)
    except OSError:
        readable = False
    rings = {Ring.ACCESS: settings.access_ring, Ring.REFRESH: settings.refresh_ring}
    announced = {
        state.announced.wrapped.data_key_id
        for ring in Ring
        if (state := data_keys.state_of(ring, rows)) is not None and state.announced is not None
    }
    found = KeysStatus(
        access_keks=tuple(settings.access_ring.keys),
        refresh_keks=tuple(settings.refresh_ring.keys),
        data_keys=tuple(_status_of(row, rings[row.wrapped.ring], announced, found_uses) for row in rows),
        lost=_lost(rows, found_uses),
        journals_readable=readable,
    )
    if as_json:
        print_json(found)
    else:
        _print(found)
    # A reader is given one ring on purpose, and needs no other.
    given = {ring for ring, configured in rings.items() if configured.keys} or set(Ring)
    if any(key.is_primary and not key.opens and key.ring in given for key in found.data_keys):
        ctx.exit(1)


def _status_of(row: DataKey, ring: KeyRing, announced: set[int], uses: Sequence[Use]) -> DataKeyStatus:
    from tokenfleet_client.errors import EnvelopeError, KeyServiceUnavailable

    wrapped, problem, outdated = row.wrapped, None, False
    kek = ring.keys.get(wrapped.kek_id)
    if kek is None:
        problem = f"key-encryption key {wrapped.kek_id!r} is not configured here"
    else:
        try:
            kek.unwrap(wrapped.wrapped, wrapped.ring, wrapped.data_key_id)
            outdated = kek.is_outdated(wrapped.wrapped)
        except (EnvelopeError, KeyServiceUnavailable) as error:
            problem = str(error)
    return DataKeyStatus(
        data_key_id=wrapped.data_key_id,
        ring=wrapped.ring.value,
        is_primary=wrapped.is_primary,
        is_announced=wrapped.data_key_id in announced,
        kek_id=wrapped.kek_id,
        opens=problem is None,
        outdated=outdated,
        problem=problem,
        created_at=row.created_at,
        sealings=row.sealings,
        uses=tuple(
            PlaceStatus(use.place, use.values)
            for use in uses
            if (use.ring, use.data_key_id) == (wrapped.ring, wrapped.data_key_id)
        ),
    )


def _lost(rows: Sequence[DataKey], uses: Sequence[Use]) -> tuple[LostStatus, ...]:
    there = {(row.wrapped.ring, row.wrapped.data_key_id) for row in rows}
    return tuple(
        LostStatus(use.ring.value, use.data_key_id, use.place, use.values)
        for use in uses
        if (use.ring, use.data_key_id) not in there
    )


def _print(found: KeysStatus) -> None:
    for ring, keks in (("access", found.access_keks), ("refresh", found.refresh_keks)):
        click.echo(f"Key-encryption keys of the {ring} ring here: {', '.join(keks) or 'none'}")
    if not found.data_keys:
        click.echo("The database holds no data keys yet; 'tokenfleet db upgrade' makes them.")
        return
    click.echo()
    print_table(
        ("ring", ">data key", "wrapped by", "use", ">sealed so far", "opens here"),
        (
            (
                key.ring,
                str(key.data_key_id),
                key.kek_id + (" (older version)" if key.outdated else ""),
                _use_of(key),
                f"{key.sealings:,}",
                "yes" if key.opens else f"no: {key.problem}",
            )
            for key in found.data_keys
        ),
    )
    click.echo()
    places = [
        (key.ring, str(key.data_key_id), use.place, f"{use.values:,}")
        for key in found.data_keys
        for use in key.uses
    ]
    if places:
        print_table(("ring", ">data key", "what is under it", ">values"), places)
    else:
        click.echo("Nothing is sealed yet.")
    for lost in found.lost:
        click.echo(
            f"{counted(lost.values, 'value')} in {lost.place} {'names' if lost.values == 1 else 'name'} data key "
            f"{lost.data_key_id} of the {lost.ring} ring, which this database does not have: damaged, or of another "
            "backup.",
            err=True,
        )
    if not found.journals_readable:
        click.echo("The journals of this machine may not be read from here, and are not counted.", err=True)


def _use_of(key: DataKeyStatus) -> str:
    if key.is_primary:
        return "seals and opens"
    return "will seal soon" if key.is_announced else "opens only"
