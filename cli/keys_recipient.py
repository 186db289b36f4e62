"""``tokenfleet keys recipient``: the key pair to which another fleet seals accounts that come here."""

from __future__ import annotations

import os
from pathlib import Path

import click


@click.command()
@click.option(
    "--identity",
    "identity_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File with the private part [default: identity.txt in TOKENFLEET_HOME].",
)
def recipient(identity_file: Path | None) -> None:
    """Print the key to which another fleet seals an export for this one.

    What is printed is public: send it there, in a way in which nobody can replace it. The private part stays in a file
    for your eyes only, and opens what is sealed ('accounts import --identity'). It is made when the file does not
    exist; else only its public part is shown. It is what age-keygen makes, so the age command opens exports too.

    \b
    Examples:
      tokenfleet keys recipient
      tokenfleet keys recipient --identity /etc/tokenfleet/identity.txt
    """
    from cli.new_file import new_file
    from cli.session import home_of
    from tokenfleet.sealed_files import Identity

    path = identity_file or home_of(os.environ) / "identity.txt"
    if path.exists():
        identity = Identity.read(path)
    else:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        identity = Identity.generate(str(path))
        with new_file(path) as file:
            file.write(identity.document().encode())
        click.echo(
            f"Wrote the private part to {path}, for your eyes only; delete it when all is imported.", err=True
        )
    click.echo(identity.recipient)
