"""``tokenfleet keys``: the group; each command is imported when it is called."""

from __future__ import annotations

import click

from cli.group import CommandGroup, Entry, Sections

SECTIONS: Sections = {
    "Set up": {
        "generate": Entry("cli.keys_generate:generate", "Make key-encryption keys, the first or new ones."),
    },
    "Take accounts elsewhere": {
        "recipient": Entry(
            "cli.keys_recipient:recipient", "Make or show the key to which another fleet seals an export."
        ),
    },
    "Look": {
        "status": Entry("cli.keys_status:status", "Show which keys there are, and what uses them."),
    },
    "Change": {
        "rotate": Entry(
            "cli.keys_rotate:rotate", "Bring everything under the newest keys, while the fleet runs."
        ),
        "retire": Entry("cli.keys_retire:retire", "Say whether a key-encryption key may be taken away."),
    },
}


@click.group(cls=CommandGroup, sections=SECTIONS)
def keys() -> None:
    """Make key-encryption keys, replace them, and see which ones are in use.

    Tokens are sealed with data keys that lie in the database, wrapped by key-encryption keys that do not.
    There are two rings: readers of access tokens get the access ring, only the fleet has the refresh ring.
    Key-encryption keys may lie in a file, in a variable, or in a key service: docs/keys.md.
    """
