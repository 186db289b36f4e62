"""``tokenfleet apps export|import``: client registrations with their secrets, sealed for another fleet.

A refresh token works with the client that it was issued to and with no other (RFC 6749 section 6), so accounts that
move need their apps where they go. Promise: a secret is in nothing but the sealed file; what is registered already is
replaced only when that is asked for, and by another client only while no account depends on it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO, Final

import click
import msgspec
from msgspec import Meta

from cli.new_file import NewPath, new_file
from cli.output import counted, reason_option, shown
from cli.recipients import recipient_of
from tokenfleet.errors import UserError
from tokenfleet_client.secret import Secret
from tokenfleet_client.unsealings import Purpose

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

    from providers import Registry
    from store.apps import App
    from store.keys import Vault
    from tokenfleet.settings import Settings

LINE_BYTES: Final = 1024 * 1024

_Name = Annotated[str, Meta(min_length=1, max_length=600)]


class AppLine(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One registration. A private key that signs is a client secret too."""

    provider: _Name
    environment: _Name
    name: _Name
    client_id: _Name
    client_secret: Secret | None = None
    client_certificate: Secret | None = None
    variables: dict[str, str] = {}  # msgspec copies it


@click.command()
@click.option("--provider", help="Only apps of this provider.")
@click.option("--all", "everything", is_flag=True, help="All apps of this fleet.")
@click.option(
    "--to",
    "recipient_text",
    metavar="RECIPIENT",
    required=True,
    help="The public key (age1...) that 'tokenfleet keys recipient' prints at the other fleet.",
)
@click.option(
    "-o",
    "--output",
    type=NewPath(),
    help="File to write, which must not exist [default: standard output].",
)
@reason_option
def export(
    provider: str | None, everything: bool, recipient_text: str, output: Path | None, reason: str | None
) -> None:
    """Seal client registrations with their secrets for another fleet.

    Nothing changes here: a client may be used by two fleets, a refresh token may not ('accounts export'). Spare
    secrets stay. What may be shown to anybody is in 'apps list --json'.

    \b
    Example:
      tokenfleet apps export --all --to age1... --output apps.jsonl.age
    """
    from cli.session import database, load_settings, on_record
    from store import apps as registrations
    from store import audit, keys
    from tokenfleet.sealed_files import seal

    if not (provider or everything):
        raise click.UsageError("Say which apps: --provider NAME, or --all.")
    if output is None and sys.stdout.isatty():
        raise click.UsageError("What is sealed is no text for a terminal: give --output FILE, or pipe it on.")
    recipient = recipient_of(recipient_text)
    settings = load_settings()
    with database(settings) as engine, engine.begin() as connection:
        vault = keys.open_vault(connection, settings)
        wanted = [app for app in registrations.all_apps(connection) if provider in (None, app.provider)]
        if not wanted:
            raise UserError(
                "no app is registered that this means: 'tokenfleet apps list' shows those that are"
            )
        lines = [_line(vault, app) for app in wanted]
        entries = [
            audit.Entry(
                audit.app_target(app.provider, app.environment, app.name),
                {"client_id": app.client_id, "recipient": recipient.text},
            )
            for app in wanted
        ]
        audit.record(connection, on_record(), audit.Action.APPS_EXPORT, entries, reason=reason)
    # What is on record may not have been written in the end; what was written is on record.
    with ExitStack() as stack:
        writer = sys.stdout.buffer if output is None else stack.enter_context(new_file(output))
        seal(lines, writer, recipient)
        writer.flush()
    click.echo(f"{counted(len(lines), 'app')} sealed to {recipient}.", err=True)


def _line(vault: Vault, app: App) -> bytes:
    from store.app_certificates import certificate_binding
    from store.apps import secret_binding

    line: dict[str, object] = {
        "provider": app.provider,
        "environment": app.environment,
        "name": app.name,
        "client_id": app.client_id,
        "variables": dict(app.variables),
    }
    if app.client_secret is not None:
        binding = secret_binding(app.app_id, app.secret_generation)
        line["client_secret"] = vault.refresh.open(app.client_secret, binding, Purpose.EXPORT)
    if app.client_certificate is not None and app.certificate_generation is not None:
        binding = certificate_binding(app.app_id, app.certificate_generation)
        line["client_certificate"] = vault.refresh.open(app.client_certificate, binding, Purpose.EXPORT)
    return msgspec.json.encode(line) + b"\n"


@click.command("import")
@click.argument("file", metavar="FILE|-", type=click.File("rb"))
@click.option(
    "--identity",
    "identity_file",
    metavar="FILE",
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The file that 'tokenfleet keys recipient' made here.",
)
@click.option("--replace", is_flag=True, help="Also apps that are registered here already.")
@reason_option
@click.pass_context
def import_(
    ctx: click.Context, file: BinaryIO, identity_file: Path, replace: bool, reason: str | None
) -> None:
    """Register the clients that another fleet has sealed for this one.

    What is registered here under the same provider, environment and name stays as it is, unless you say --replace.

    \b
    Example:
      tokenfleet apps import apps.jsonl.age --identity ~/.tokenfleet/identity.txt
    """
    from cli.session import database, load_providers, load_settings
    from store import keys
    from tokenfleet.sealed_files import Identity, SealedFileError, opened

    identity = Identity.read(identity_file)
    settings = load_settings()
    with database(settings) as engine:
        with engine.begin() as connection:
            vault = keys.open_vault(connection, settings)
        arrival = _Arrival(engine, vault, load_providers(settings), settings, reason, replace=replace)
        try:
            with opened(file, identity) as stream:
                arrival.take(stream)
        except SealedFileError as error:
            raise click.BadParameter(str(error), param_hint="FILE") from error
    stayed = f", {arrival.stayed:,} registered already (--replace replaces them)" if arrival.stayed else ""
    click.echo(f"{counted(arrival.registered, 'app')} registered{stayed}.")
    for number, reason_text in arrival.bad:
        click.echo(shown(f"line {number}: {reason_text}"), err=True)
    if arrival.bad:
        ctx.exit(1)


@dataclass(slots=True)
class _Arrival:
    """Registers apps, each in a transaction of its own."""

    engine: Engine
    vault: Vault
    registry: Registry
    settings: Settings
    reason: str | None
    replace: bool
    registered: int = 0
    stayed: int = 0
    bad: list[tuple[int, str]] = field(default_factory=list)

    def take(self, stream: BinaryIO) -> None:
        for number, raw in enumerate(_raw_lines(stream), start=1):
            try:
                line = _decoder.decode(raw)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                self.bad.append((number, "is not an app as 'tokenfleet apps export' writes it"))
                continue
            try:
                with self.engine.begin() as connection:
                    self._register(connection, line)
            except UserError as error:
                self.bad.append((number, str(error)))

    def _register(self, connection: Connection, line: AppLine) -> None:
        from cli.apps import checked_variables
        from cli.session import on_record
        from store import app_certificates, apps, audit

        definition = self.registry.get(line.provider)
        variables = checked_variables(
            definition, line.variables, allow_http=self.settings.tunables.allow_http_providers
        )
        before = apps.find(connection, line.provider, line.environment, line.name)
        if before is not None and not self.replace:
            self.stayed += 1
            return
        if before is not None and before.client_id != line.client_id:
            tied = apps.count_accounts(connection, before.app_id)
            if tied:
                raise UserError(
                    f"{line.provider}/{line.environment}/{line.name} is another client here, and "
                    f"{counted(tied, 'account')} cannot be refreshed with any other (RFC 6749 section 6): it stays"
                )
        app = apps.register(
            connection,
            self.vault.refresh,
            provider=line.provider,
            environment=line.environment,
            name=line.name,
            client_id=line.client_id,
            client_secret=line.client_secret,
            variables=variables,
        )
        if line.client_certificate is not None:
            app_certificates.put(connection, self.vault.refresh, app.app_id, line.client_certificate)
        elif before is not None and before.client_certificate is not None:
            app_certificates.remove(connection, app.app_id)
        what = {"before": "new" if before is None else "replaced", "client_id": line.client_id}
        entry = audit.Entry(audit.app_target(line.provider, line.environment, line.name), what)
        audit.record(connection, on_record(), audit.Action.APPS_IMPORT, [entry], reason=self.reason)
        self.registered += 1


def _raw_lines(stream: BinaryIO) -> Iterator[bytes]:
    while raw := stream.readline(LINE_BYTES):
        yield raw


def _secret(expected: type, value: object) -> Secret:
    if expected is not Secret or not isinstance(value, str):
        raise TypeError(expected.__name__)
    return Secret(value)


_decoder: Final = msgspec.json.Decoder(AppLine, dec_hook=_secret)
