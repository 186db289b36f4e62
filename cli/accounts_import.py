"""``tokenfleet accounts import``: reads a file, says what is wrong with it, and how it goes.

The composition of three things that do not know each other: the lines of a file (``store.import_source``),
the provider definitions, and the importer. Nothing that is printed repeats a value that could be a token.
"""

from __future__ import annotations

import gc
import json
import os
import stat
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Self

import click

from cli.new_file import NewPath, new_file
from cli.output import json_option, make_console, print_json, reason_option

if TYPE_CHECKING:
    from types import TracebackType

    from providers import Provider, Registry
    from store.import_rules import ProviderRules, RulesOf
    from store.import_source import BadLine
    from store.imports import ChunkReport, Tally

SHOWN_REASONS: Final = 20
"""Bad lines that are told one by one; a file of another kind has a million of them."""
PLAIN_EVERY_SECONDS: Final = 5.0


@click.command("import")
@click.argument("file", metavar="FILE|-", type=click.File("rb"))
@click.option(
    "--format",
    "format_name",
    type=click.Choice(["jsonl", "csv"]),
    help="Default: csv for a name that ends in .csv, else jsonl.",
)
@click.option(
    "--identity",
    "identity_file",
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="For a sealed export: the file that 'tokenfleet keys recipient' made here.",
)
@click.option("--dry-run", is_flag=True, help="Check every line against the database, and write nothing.")
@click.option(
    "--errors",
    "errors_file",
    metavar="FILE",
    type=NewPath(),
    help="Write number and reason of every bad line to this file, which must not exist, as JSON lines; "
    f"{SHOWN_REASONS} are shown anyway.",
)
@reason_option
@json_option
@click.pass_context
def import_accounts(
    ctx: click.Context,
    file: BinaryIO,
    format_name: str | None,
    identity_file: Path | None,
    dry_run: bool,
    errors_file: Path | None,
    reason: str | None,
    as_json: bool,
) -> None:
    """Import connections, or new tokens for known ones, from FILE or standard input.

    One JSON object per line, or CSV with a header. Needed: provider, external_id, and what the provider is presented
    with: mostly refresh_token (for a token exchange, the subject token); access_token where that is what
    renewals present, or is never renewed; nothing where the client alone is enough. Optional: access_token, token_type,
    scope, expires_at (RFC 3339) or expires_in (seconds), refresh_token_expires_at, tenant, environment
    (default: production), app (default: default), variables and metadata (objects; in CSV as JSON text).

    Or, in place of all tokens and expiries, answer: the object with which the token endpoint answered at connect,
    unchanged (in CSV as JSON text), and received_at (RFC 3339; default: now), from which its lifetimes count.
    It is read as the provider's definition says. Where that knows several token sets, each becomes an account,
    whose external id has a / and what the answer states added to it.

    An account is known by provider, environment and external_id. A token that was never imported before is a
    new sign-in: it replaces what is stored, and an account that needed it becomes active. One that was
    imported before leaves the tokens as they are, even if they were rotated since, so a file can be imported
    again at any time. An account without any token of its own is tried again if it needed a sign-in. What a
    line leaves out stays as it is.

    A sealed export of another fleet (docs/leaving.md) is opened with --identity. It brings along what that fleet
    knew: received_at, granted_at, learned_lifetime, answer_variables, client_id, status, exported_at, fingerprints.

    Bad lines are reported with their numbers and left out, the others go in, and the exit code is 1. It is 2
    when the file cannot be read at all.

    \b
    Examples:
      tokenfleet accounts import customers.jsonl --dry-run
      tokenfleet accounts import customers.csv --errors bad.jsonl
      echo '{"provider": "slack", "external_id": "team-7", "answer": {...}}' | tokenfleet accounts import -
      tokenfleet accounts import moved.jsonl.age --identity ~/.tokenfleet/identity.txt
      psql -XAtc "SELECT row_to_json(c) FROM connections c" | tokenfleet accounts import -
    """
    from cli.session import database, load_providers, load_settings, operator
    from store import keys
    from store.engine import database_now
    from store.import_source import ImportFormat, UnreadableImport, read_chunks
    from store.imports import Importer, Tally
    from tokenfleet.sealed_files import Identity, SealedFileError, opened

    identity = None if identity_file is None else Identity.read(identity_file)
    settings = load_settings()
    rules_of = compose_rules(load_providers(settings))
    wanted = ImportFormat(format_name or ("csv" if _name(file).endswith(".csv") else "jsonl"))
    tally = Tally()
    began = time.monotonic()
    # Whole or not at all: what stops an import half-way leaves no list that would pass for all bad lines.
    listing: AbstractContextManager[BinaryIO | None] = nullcontext()
    if errors_file is not None:
        listing = new_file(errors_file)
    with database(settings) as engine, listing as errors, _Narrator(file, errors) as narrator:
        with engine.begin() as connection:
            vault = keys.open_vault(connection, settings)
            now = database_now(connection)
        # What is loaded by now lives to the end: the garbage collector need not look at it for every chunk,
        # which took a tenth of the time.
        gc.freeze()
        importer = Importer(engine, vault, rules_of, actor=operator(), dry_run=dry_run, reason=reason)
        try:
            with (
                nullcontext(file) if identity is None else opened(file, identity) as lines,
                closing(importer.run(read_chunks(lines, wanted, now=now, rules_of=rules_of))) as reports,
            ):
                for report in reports:
                    tally.add(report.tally)
                    narrator.tell(report, tally)
        except UnreadableImport as error:
            raise click.BadParameter(str(error), param_hint="FILE") from error
        except SealedFileError as error:
            so_far = f"; until there {_sentence(tally)}" if tally.lines else "; nothing was imported"
            raise click.BadParameter(f"{error}{so_far}", param_hint="FILE") from error
        except KeyboardInterrupt:
            narrator.say(f"stopped: at least {_sentence(tally)}; run the same command again to do the rest")
            raise
    if not tally.lines:
        name = _name(file)
        source = "standard input" if name in ("", "-", "<stdin>") else name
        click.echo(f"there is nothing to import in {source}: it has no line with an account", err=True)
    seconds = time.monotonic() - began
    if as_json:
        print_json(ImportSummary.of(tally, str(importer.import_id), seconds, dry_run=dry_run))
    else:
        rate = f"{tally.lines / seconds:,.0f} lines/s"
        prefix = "nothing was written, this was a dry run: " if dry_run else ""
        click.echo(f"{prefix}{_sentence(tally)} in {seconds:.1f} s ({rate})")
    ctx.exit(1 if tally.bad else 0)


@dataclass(frozen=True, slots=True)
class ImportSummary:
    """What ``--json`` prints. ``import_id`` is the ``job_id`` of the import's rows in the history."""

    import_id: str
    dry_run: bool
    lines: int
    created: int
    reauthenticated: int
    reactivated: int
    paused: int
    updated: int
    unchanged: int
    bad: int
    seconds: float
    lines_per_second: float

    @classmethod
    def of(cls, tally: Tally, import_id: str, seconds: float, *, dry_run: bool) -> Self:
        """Return the summary of an import that took ``seconds``."""
        return cls(
            import_id=import_id,
            dry_run=dry_run,
            lines=tally.lines,
            created=tally.created,
            reauthenticated=tally.reauthenticated,
            reactivated=tally.reactivated,
            paused=tally.paused,
            updated=tally.updated,
            unchanged=tally.unchanged,
            bad=tally.bad,
            seconds=round(seconds, 3),
            lines_per_second=round(tally.lines / seconds, 1),
        )


def compose_rules(registry: Registry) -> RulesOf:
    """Return what an import needs to know of each provider, by its name."""

    @cache
    def rules_of(name: str) -> ProviderRules:
        return _rules(registry.get(name))

    return rules_of


def _rules(provider: Provider) -> ProviderRules:
    from providers import RequestBuildError
    from store.import_rules import ProviderRules

    required = provider.required_variables()

    def check(variables: Mapping[str, str]) -> str | None:
        if missing := sorted(required - variables.keys()):
            return (
                f"{provider.name} needs the variable {' and '.join(missing)}: give it under 'variables', or "
                f"to the app ('tokenfleet providers show {provider.name}' explains it)"
            )
        try:
            # As a worker would. What cannot be built is told now, not when it is due.
            provider.check_variables(variables)
        except RequestBuildError as error:
            return str(error)
        return None

    def nothing_to_check(_variables: Mapping[str, str]) -> str | None:
        return None

    check_variables = check if provider.spec.variables else nothing_to_check
    return ProviderRules(
        provider.margins,
        check_variables,
        provider.lifetimes,
        presents=provider.presents,
        connect=provider.connect_reader().read,
    )


class _Narrator:
    """Tells on standard error how it goes: a bar on a terminal, a line every few seconds elsewhere."""

    def __init__(self, file: BinaryIO, errors_file: BinaryIO | None) -> None:
        self._file = file
        self._errors_file = errors_file
        self._size = _size(file)
        self._untold = 0
        self._told = 0
        self._next = time.monotonic() + PLAIN_EVERY_SECONDS
        self._bar: Any = None
        self._ends = ExitStack()

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
            console = make_console(stderr=True)
            self._bar = self._ends.enter_context(Progress(*columns, console=console, transient=True))
            self._bar.add_task("importing", total=self._size)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._untold:
            where = "see the errors file" if self._errors_file else "--errors FILE lists them all"
            self.say(f"... and {self._untold:,} more bad lines: {where}")
        self._ends.close()

    def say(self, sentence: str) -> None:
        """Print a line of its own."""
        if self._bar is not None:
            self._bar.console.print(sentence, soft_wrap=True)
        else:
            click.echo(sentence, err=True)

    def tell(self, report: ChunkReport, tally: Tally) -> None:
        """Tell of one more chunk; ``tally`` is of all so far."""
        self._tell_bad(report.bad)
        if self._bar is not None:
            done = self._file.tell() if self._size else None
            self._bar.update(self._bar.task_ids[0], completed=done, description=f"{tally.lines:,} lines")
        elif time.monotonic() >= self._next:
            self._next = time.monotonic() + PLAIN_EVERY_SECONDS
            self.say(f"line {report.last:,}: {_sentence(tally)} so far")

    def _tell_bad(self, bad: Iterable[BadLine]) -> None:
        for line in bad:
            if self._told < SHOWN_REASONS:
                self._told += 1
                self.say(f"line {line.number}: {line.reason}")
            else:
                self._untold += 1
            if self._errors_file is not None:
                told = json.dumps({"line": line.number, "reason": line.reason})
                self._errors_file.write(f"{told}\n".encode())


def _name(file: BinaryIO) -> str:
    """Return the name of a file; standard input may be something that has none."""
    return str(getattr(file, "name", ""))


def _size(file: BinaryIO) -> int | None:
    """Return the size of a regular file; of a pipe nobody knows it."""
    try:
        status = os.fstat(file.fileno())
    except OSError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def _sentence(tally: Tally) -> str:
    return ", ".join(_parts(tally))


def _parts(tally: Tally) -> Iterator[str]:
    yield f"{tally.created:,} created"
    if tally.reauthenticated:
        marks = [f"{tally.reactivated:,} active again"] if tally.reactivated else []
        marks += [f"{tally.paused:,} paused still"] if tally.paused else []
        again = f" ({', '.join(marks)})" if marks else ""
        yield f"{tally.reauthenticated:,} re-authenticated{again}"
    if tally.updated:
        yield f"{tally.updated:,} updated"
    if tally.unchanged:
        yield f"{tally.unchanged:,} unchanged"
    yield f"{tally.bad:,} bad"
