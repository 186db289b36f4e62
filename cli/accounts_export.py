"""``tokenfleet accounts export``: what accounts are, for anybody; or their tokens, for one recipient.

Promise: without ``--to`` nothing is unsealed. What is sealed is written whole or not at all, and never to a terminal;
memory does not grow with the fleet.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

from cli.departures import Departures
from cli.group import drop_output
from cli.new_file import NewPath, new_file
from cli.output import counted, progress, reason_option, shown
from cli.recipients import recipient_of
from tokenfleet_client.contract import AccountStatus

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from store.export_selection import ExportFilter
    from tokenfleet.jobs import AccountId
    from tokenfleet.sealed_files import Recipient
    from tokenfleet.settings import Settings


@click.command()
@click.argument("accounts", metavar="[ACCOUNT]...", nargs=-1)
@click.option("--provider", help="Only accounts at this provider.")
@click.option(
    "--environment", help="Only this environment; PROVIDER/EXTERNAL_ID is looked up in it, or in production."
)
@click.option("--tenant", help="Only accounts of this tenant.")
@click.option("--app", help="Only accounts of the apps with this name.")
@click.option("--status", type=click.Choice([status.value for status in AccountStatus]), help="Only these.")
@click.option("--all", "everything", is_flag=True, help="With --to: all accounts of this fleet.")
@click.option("--masked", is_flag=True, help="Show everything but tokens. The default.")
@click.option(
    "--to",
    "recipient_text",
    metavar="RECIPIENT",
    help="Seal the accounts with their tokens to this public key (age1...), and pause them here.",
)
@click.option(
    "--keep-running",
    is_flag=True,
    help="With --to: do not pause them. Only for a backup, or providers that never rotate.",
)
@click.option(
    "--wait",
    "wait_seconds",
    type=click.FloatRange(0),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="With --to: wait for refreshes that are under way.",
)
@click.option(
    "-o",
    "--output",
    type=NewPath(),
    help="File to write, which must not exist [default: standard output].",
)
@reason_option
@click.pass_context
def export(
    ctx: click.Context,
    accounts: tuple[str, ...],
    provider: str | None,
    environment: str | None,
    tenant: str | None,
    app: str | None,
    status: str | None,
    everything: bool,
    masked: bool,
    recipient_text: str | None,
    keep_running: bool,
    wait_seconds: float,
    output: Path | None,
    reason: str | None,
) -> None:
    """Write accounts as JSON Lines: masked, or sealed with their tokens for another fleet.

    Masked, which is the default, each line says what an account is and when things expire, and holds no token.

    With --to, each line is what 'accounts import' takes, tokens and all that this fleet has learned, and the whole is
    sealed to the RECIPIENT: the public key that 'tokenfleet keys recipient' prints at the other fleet. The accounts are
    paused here in the transaction in which their tokens are read, because a refresh token may be presented by one
    fleet only; readers here keep their last access token until it expires. One that is being refreshed is waited for.
    If the file gets lost, run the same command again. 'accounts import' brings accounts back that were away.

    Each ACCOUNT is an id or PROVIDER/EXTERNAL_ID; - reads them from standard input, one a line.

    \b
    Examples:
      tokenfleet accounts export --tenant t-204 > t-204.jsonl
      tokenfleet accounts export --tenant t-204 --to age1... --output t-204.jsonl.age
      tokenfleet accounts export acme/customer-17 --to age1... | ssh there tokenfleet accounts import - --identity ...
    """
    from cli.session import database, load_settings
    from store.export_selection import ExportFilter

    wanted = ExportFilter(provider, environment, tenant, app, AccountStatus(status) if status else None)
    if accounts and ExportFilter(provider, None, tenant, app, wanted.status):
        raise click.UsageError("Name accounts, or say which ones by options: not both.")
    if recipient_text is None:
        if keep_running:
            raise click.UsageError("--keep-running goes with --to: a masked export changes nothing.")
    elif masked:
        raise click.UsageError("--masked and --to exclude each other: what is sealed is whole.")
    elif not (accounts or wanted or everything):
        raise click.UsageError(
            "--to takes accounts away from this fleet: name them, choose by --provider, --tenant and the like, or say "
            "--all."
        )
    elif output is None and sys.stdout.isatty():
        raise click.UsageError("What is sealed is no text for a terminal: give --output FILE, or pipe it on.")
    # Before anything is connected to: a typing mistake is told at once.
    recipient = None if recipient_text is None else recipient_of(recipient_text)
    settings = load_settings()
    with database(settings) as engine:
        choice = _Choice(engine, accounts, environment, wanted)
        if recipient is None:
            failed = _export_masked(choice, output)
        else:
            failed = _export_sealed(
                choice,
                settings,
                recipient,
                output,
                keep_running=keep_running,
                wait_seconds=wait_seconds,
                reason=reason,
            )
    if failed:
        ctx.exit(1)


@dataclass(slots=True)
class _Choice:
    """The accounts that were asked for, a page at a time; says which of those that were named do not exist."""

    engine: Engine
    texts: Sequence[str]
    environment: str | None
    wanted: ExportFilter
    missing: int = 0

    def pages(self) -> Iterator[list[AccountId]]:
        from store import export_selection

        if not self.texts:
            yield from export_selection.pages(self.engine, self.wanted)
            return
        yield from self._named()

    def total(self) -> int | None:
        from store import export_selection

        return None if self.texts else export_selection.count(self.engine, self.wanted)

    def _named(self) -> Iterator[list[AccountId]]:
        from cli.references import find, missing, parse_all
        from store.export_selection import PAGE

        references = parse_all(self.texts, environment=self.environment or "production")
        for start in range(0, len(references), PAGE):
            batch = references[start : start + PAGE]
            with self.engine.connect() as connection:
                found = find(connection, batch)
            for reference in batch:
                if reference not in found:
                    self.missing += 1
                    click.echo(shown(f"tokenfleet: {reference.text}: {missing(reference)}"), err=True)
            if found:
                yield sorted({account.account_id for account in found.values()})


def _export_masked(choice: _Choice, output: Path | None) -> bool:
    import msgspec

    from store import export_selection

    count = 0
    with ExitStack() as stack:
        writer = _writer(stack, output)
        advance = stack.enter_context(progress("Writing", total=choice.total()))
        for ids in choice.pages():
            with choice.engine.connect() as connection:
                found = export_selection.masked(connection, ids)
            writer.write(b"".join(msgspec.json.encode(account) + b"\n" for account in found))
            count += len(found)
            advance(len(ids))
        writer.flush()
    click.echo(f"{counted(count, 'account')} written, masked: no token is in it.", err=True)
    return bool(choice.missing)


def _export_sealed(
    choice: _Choice,
    settings: Settings,
    recipient: Recipient,
    output: Path | None,
    *,
    keep_running: bool,
    wait_seconds: float,
    reason: str | None,
) -> bool:
    from cli.accounts_import import compose_rules
    from cli.session import load_providers, on_record
    from store import keys
    from store.export import Exporter
    from tokenfleet.errors import UserError
    from tokenfleet.sealed_files import seal

    registry = load_providers(settings)
    rules_of = compose_rules(registry)
    with choice.engine.begin() as connection:
        vault = keys.open_vault(connection, settings)
    exporter = Exporter(
        choice.engine,
        vault,
        lambda name: name not in registry or rules_of(name).credential == "refresh_token",
        recipient=recipient.text,
        by=on_record(),
        reason=reason,
        keep_running=keep_running,
    )
    with ExitStack() as stack:
        advance = stack.enter_context(progress("Sealing", total=choice.total()))
        departures = Departures(exporter, choice.pages(), advance, wait_seconds)
        try:
            # Before anybody is paused: a file that cannot be written is a mistake that changes nothing.
            writer = _writer(stack, output, empty=False)
            lines = iter(departures)
            # Without a line there is no file: nobody should carry an empty one to the other fleet.
            if (first := next(lines, None)) is not None:
                seal(chain((first,), lines), writer, recipient)
                writer.flush()
            stack.close()
        except BrokenPipeError:
            # No reader that has seen enough: of what is sealed, a beginning opens nothing.
            departures.tell_unfinished(keep_running=keep_running)
            drop_output()
            raise UserError("who reads this command's output ended before it was whole") from None
        except BaseException as error:
            if departures.gone or isinstance(error, KeyboardInterrupt):
                departures.tell_unfinished(keep_running=keep_running)
            raise
    stayed = departures.tell(recipient, output, keep_running=keep_running, named=bool(choice.texts))
    return stayed or bool(choice.missing)


def _writer(stack: ExitStack, output: Path | None, *, empty: bool = True) -> BinaryIO:
    return sys.stdout.buffer if output is None else stack.enter_context(new_file(output, empty=empty))
