"""``tokenfleet keys retire``: know when a key-encryption key may go."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import click

from cli.output import counted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenfleet.settings import Settings
    from tokenfleet_client.envelope import WrappedKey


@click.command()
@click.argument("key")
@click.pass_context
def retire(ctx: click.Context, key: str) -> None:
    """Say whether the key-encryption key KEY may be taken away, and refuse while anything needs it.

    What lies in a journal, on whatever machine, is sealed under a data key, and data keys are never deleted: so what
    wraps no data key any more is needed by nothing that lives. An old backup of the database still needs it. Data keys
    themselves are not retired.

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
    rings = (settings.access_ring, settings.refresh_ring)
    needing = [row for row in rows if row.kek_id == key]
    if needing:
        shown = ", ".join(f"{row.data_key_id} ({row.ring.value})" for row in needing)
        raise UserError(
            f"key-encryption key {key!r} is in use: it wraps data key {shown}{_in_journals(settings, needing)}; put "
            "another one first in the key list and run 'tokenfleet keys rotate'"
        )
    first = [ring.ring.value for ring in rings if ring.primary is not None and ring.primary.key_id == key]
    if first:
        raise UserError(
            f"key-encryption key {key!r} stands first in the {first[0]} ring and would wrap the next data key: put "
            "another one before it"
        )
    if not any(key in ring.keys for ring in rings):
        raise UserError(_unknown(key, rows))
    click.echo(f"Nothing in this database needs {key!r} any more.")
    click.echo(
        "Take it out of the key list on every machine. Keep it with the backups that were made before."
    )


def _in_journals(settings: Settings, needing: Sequence[WrappedKey]) -> str:
    """Return what of this machine's journals is under these data keys, to be said after them."""
    from store.sealed_places import journal_uses

    ids = {(row.ring, row.data_key_id) for row in needing}
    with suppress(OSError):
        values = sum(
            use.values for use in journal_uses(settings.journal_dir) if (use.ring, use.data_key_id) in ids
        )
        if values:
            return f", under which {counted(values, 'value')} in this machine's journals may be the only live ones"
    return ""


def _unknown(key: str, rows: Sequence[WrappedKey]) -> str:
    """Return the sentence for a name that is no key-encryption key's: a slip must not be taken for a yes."""
    if key in {str(row.data_key_id) for row in rows}:
        return (
            f"{key} is a data key, and these are never retired: the journal of a machine that is off may hold the only "
            "live refresh token under it; 'tokenfleet keys rotate --data-keys' leaves nothing in the database under it"
        )
    return (
        f"no key-encryption key is named {key!r}: it stands in no key list here and wraps nothing; 'tokenfleet keys "
        "status' shows the names"
    )
