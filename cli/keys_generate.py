"""``tokenfleet keys generate``: key-encryption keys in a file."""

from __future__ import annotations

import os
import secrets
from datetime import UTC, datetime
from pathlib import Path

import click


@click.command()
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
@click.option(
    "--add", is_flag=True, help="Put new keys before those of an existing key file, to rotate to them."
)
def generate(output: Path | None, readers: Path | None, add: bool) -> None:
    """Make a new key-encryption key for each ring and write them to a file.

    Once for an installation, before the first `db upgrade` or `accounts import`. An existing file is never
    overwritten: without its keys nothing in the database can be opened again. With --readers beside an existing
    key file, only the readers' part of it is written. With --add the keys that are there stay, behind the new
    ones: give the file to every machine and restart what runs there, then run `keys rotate`.

    \b
    Examples:
      tokenfleet keys generate
      tokenfleet keys generate --output /etc/tokenfleet/keys.json --readers readers.json
      tokenfleet keys generate --add
    """
    from cli.bootstrap import add_keys, write_keys
    from cli.session import home_of, path_from
    from tokenfleet.errors import UserError
    from tokenfleet_client.envelope import KeyEncryptionKey, Ring

    if output is None:
        output = path_from("TOKENFLEET_KEYS_FILE", os.environ) or home_of(os.environ) / "keys.json"
    if readers is not None and readers.absolute() == output.absolute():
        raise click.UsageError("--readers must name another file than --output: readers get one ring only.")
    mark = f"{datetime.now(UTC):%Y%m%d}-{secrets.token_hex(3)}"
    rings = {ring: KeyEncryptionKey.generate(f"{ring.value}-{mark}") for ring in Ring}
    if add:
        if readers is not None:
            raise click.UsageError(
                "--readers goes with another call: first --add, then --readers FILE alone."
            )
        add_keys(output, rings)
        names = " and ".join(key.key_id for key in rings.values())
        click.echo(f"Put {names} first in {output}; what was there stays behind.")
        click.echo(
            "Give the file to every machine, and readers their part of it (move their old file away, then: tokenfleet "
            "keys generate --readers FILE); restart what runs there, then: tokenfleet keys rotate"
        )
        return
    if readers is not None and output.exists() and not readers.exists():
        _write_readers(readers)
        return
    if readers is not None and readers.exists():
        raise UserError(
            f"{readers} exists and is never overwritten: give another file, or move this one away; the key file "
            f"{output} stays where it is"
            if output.exists()
            else f"{readers} exists and is never overwritten: give another file, or move this one away"
        )
    if output.exists():
        raise UserError(
            f"{output} exists and is never overwritten: its keys may be the only ones that open your "
            "tokens; give another file, or move it away if you are sure"
        )
    write_keys(output, {ring: [key] for ring, key in rings.items()})
    click.echo(f"Wrote {' and '.join(key.key_id for key in rings.values())} to {output}, for your eyes only.")
    click.echo("Back it up apart from the database: without it, every connection has to be made anew.")
    if readers is not None:
        write_keys(readers, {Ring.ACCESS: [rings[Ring.ACCESS]]})
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
    from tokenfleet_client.envelope import KeyEncryptionKey, Ring

    ring = load_offline_settings().access_ring
    own = [key for key in ring.keys.values() if isinstance(key, KeyEncryptionKey)]
    if not ring.keys:
        raise UserError("the key file holds no access ring: restore it from your backup")
    if not own:
        raise UserError(
            "the access ring is in a key service: give readers access to that, there is no key to write"
        )
    write_keys(readers, {Ring.ACCESS: own})
    click.echo(f"Wrote the access ring alone to {readers}: give readers that file, never the other one.")
