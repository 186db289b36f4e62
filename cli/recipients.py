"""Whom a file is sealed to, as a command line names them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from tokenfleet.sealed_files import Recipient


def recipient_of(text: str) -> Recipient:
    """Return the public key given with ``--to``. Raises :class:`click.BadParameter`, which does not repeat it."""
    from tokenfleet.errors import UserError
    from tokenfleet.sealed_files import Recipient

    try:
        return Recipient.parse(text)
    except UserError as error:
        raise click.BadParameter(str(error), param_hint="--to") from None
