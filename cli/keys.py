"""``tokenfleet keys``: key-encryption keys in a file, and the data keys that they wrap."""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.output import json_option, print_json, print_table

if TYPE_CHECKING:
    from tokenfleet.key_rings import KeyRing
    from tokenfleet_client.envelope import WrappedKey


@click.group()
def keys() -> None:
    """Make key-encryption keys, and see which ones are in use.

    Tokens are sealed with data keys that lie in the database, wrapped by key-encryption keys that do not.
    There are two rings: readers of access tokens get the access ring, only the fleet has the refresh ring.
    """


@keys.command()
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File to write [default: $TOKENFLEET_KEYS_FILE, else keys.json in TOKENFLEET_HOME].",
)
@click.option(
    "--readers",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Also write the access ring alone to this file, for services that read access tokens.",
)
def generate(output: Path | None, readers: Path | None) -> None:
    """Make a new key-encryption key for each ring and write them to a file.

    Once for an installation, before the first `db upgrade` or `accounts import`. An existing file is never
    overwritten: without its keys nothing in the database can be opened again. With --readers beside an existing
    key file, only the readers' part of it is written.

    \b
    Examples:
      tokenfleet keys generate
      tokenfleet keys generate --output /etc/tokenfleet/keys.json --readers readers.json
    """
    from cli.bootstrap import write_keys
    from cli.session import home_of, path_from
    from tokenfleet.errors import UserError
    from tokenfleet_client.envelope import KeyEncryptionKey, Ring

    if output is None:
        output = path_from("TOKENFLEET_KEYS_FILE", os.environ) or home_of(os.environ) / "keys.json"
    if readers is not None and readers.absolute() == output.absolute():
        raise click.UsageError("--readers must name another file than --output: readers get one ring only.")
    if readers is not None and output.exists() and not readers.exists():
        _write_readers(readers)
        return
    for path in (output, readers):
        if path is not None and path.exists():
            raise UserError(
                f"{path} exists and is never overwritten: its keys may be the only ones that open your "
                "tokens; give another file, or move it away if you are sure"
            )
    mark = f"{datetime.now(UTC):%Y%m%d}-{secrets.token_hex(3)}"
    rings = {ring: KeyEncryptionKey.generate(f"{ring.value}-{mark}") for ring in Ring}
    write_keys(output, rings)
    click.echo(f"Wrote {' and '.join(key.key_id for key in rings.values())} to {output}, for your eyes only.")
    click.echo("Back it up apart from the database: without it, every connection has to be made anew.")
    if readers is not None:
        write_keys(readers, {Ring.ACCESS: rings[Ring.ACCESS]})
        click.echo(f"Wrote the access ring alone to {readers}: give readers that file, never the other one.")
    else:
        click.echo("Readers get the list under 'access' only: --readers FILE writes it to a file of its own.")
    if output.absolute() != home_of(os.environ) / "keys.json":
        click.echo(f"Set TOKENFLEET_KEYS_FILE={output.absolute()} for schedulers, workers and commands.")


def _write_readers(readers: Path) -> None:
    """Write the access ring of the configured keys for readers."""
    from cli.bootstrap import write_keys
    from cli.session import load_offline_settings
    from tokenfleet.errors import UserError
    from tokenfleet_client.envelope import Ring

    primary = load_offline_settings().access_ring.primary
    if primary is None:
        raise UserError("the key file holds no access ring: restore it from your backup")
    write_keys(readers, {Ring.ACCESS: primary})
    click.echo(f"Wrote the access ring alone to {readers}: give readers that file, never the other one.")


@dataclass(frozen=True, slots=True)
class DataKeyStatus:
    """One data key; never its material."""

    data_key_id: int
    ring: str
    is_primary: bool
    kek_id: str
    opens: bool
    problem: str | None


@dataclass(frozen=True, slots=True)
class KeysStatus:
    """Which key-encryption keys this process was given, and which data keys the database holds."""

    access_keks: tuple[str, ...]
    refresh_keks: tuple[str, ...]
    data_keys: tuple[DataKeyStatus, ...]


@keys.command()
@json_option
@click.pass_context
def status(ctx: click.Context, as_json: bool) -> None:
    """Show which data keys there are and whether this process can open them.

    Exit code 1 if the key that seals new values of a configured ring does not open. Use it on a new machine
    before starting a worker there. Shows ids, never key material.

    \b
    Example:
      tokenfleet keys status --json
    """
    from cli.session import database, load_settings
    from store.keys import load_wrapped
    from tokenfleet_client.envelope import Ring

    settings = load_settings()
    with database(settings) as engine, engine.connect() as connection:
        wrapped = load_wrapped(connection)
    rings = {Ring.ACCESS: settings.access_ring, Ring.REFRESH: settings.refresh_ring}
    found = KeysStatus(
        access_keks=tuple(settings.access_ring.keys),
        refresh_keks=tuple(settings.refresh_ring.keys),
        data_keys=tuple(_status_of(row, rings[row.ring]) for row in wrapped),
    )
    if as_json:
        print_json(found)
    else:
        _print(found)
    # A reader is given one ring on purpose, and needs no other.
    given = {ring for ring, configured in rings.items() if configured.keys} or set(Ring)
    if any(key.is_primary and not key.opens and key.ring in given for key in found.data_keys):
        ctx.exit(1)


def _status_of(row: WrappedKey, ring: KeyRing) -> DataKeyStatus:
    from tokenfleet_client.errors import EnvelopeError

    problem = None
    kek = ring.keys.get(row.kek_id)
    if kek is None:
        problem = f"key-encryption key {row.kek_id!r} is not configured here"
    else:
        try:
            kek.unwrap(row.wrapped, row.ring, row.data_key_id)
        except EnvelopeError as error:
            problem = str(error)
    return DataKeyStatus(
        row.data_key_id, row.ring.value, row.is_primary, row.kek_id, problem is None, problem
    )


def _print(found: KeysStatus) -> None:
    for ring, keks in (("access", found.access_keks), ("refresh", found.refresh_keks)):
        click.echo(f"Key-encryption keys of the {ring} ring here: {', '.join(keks) or 'none'}")
    if not found.data_keys:
        click.echo("The database holds no data keys yet; 'tokenfleet db upgrade' makes them.")
        return
    click.echo()
    print_table(
        ("ring", ">data key", "wrapped by", "use", "opens here"),
        (
            (
                key.ring,
                str(key.data_key_id),
                key.kek_id,
                "seals and opens" if key.is_primary else "opens only",
                "yes" if key.opens else f"no: {key.problem}",
            )
            for key in found.data_keys
        ),
    )
