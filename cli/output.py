"""What commands print: tables for people, one JSON document for programs.

Promise: without a terminal there is no colour code, no cursor movement and no cut-off cell; JSON has the
names of the records it is made of, times in RFC 3339, and is the only thing on standard output.
"""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any, Final, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

_UNITS: Final = (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1))
_UNLIMITED_COLUMNS: Final = 10_000
_STEERING: Final = re.compile(r"[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
"""Control characters above ASCII, and those that turn the direction of what follows."""
READABLE_COLUMNS: Final = 110
"""Longer lines of prose are hard to read, however wide the terminal is."""


def json_option(command: F) -> F:
    """Add ``--json`` to a command, as the parameter ``as_json``."""
    option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
    return option(command)


def reason_option(command: F) -> F:
    """Add ``--reason`` to a command that changes something, as the parameter ``reason``."""
    return click.option("--reason", help="Why, for the audit log.")(command)


def print_json(document: object, *, indent: int = 2) -> None:
    """Print a record, or a list of records, as JSON; ``indent`` -1 keeps it on one line."""
    import msgspec

    click.echo(escaped(msgspec.json.format(msgspec.json.encode(document), indent=indent).decode()))


def escaped(document: str) -> str:
    """Return a JSON document that steers no terminal: JSON escapes some control characters, and allows the others."""
    return _STEERING.sub(lambda found: f"\\u{ord(found[0]):04x}", document)


def make_console(*, stderr: bool = False) -> Any:
    """Return a rich console on standard output, or on standard error."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, emoji=False, markup=False)


def print_wide(console: Any, renderable: Any) -> None:
    """Print a table; where no terminal limits the width, as wide as its cells need and without padding."""
    if console.is_terminal:
        console.print(renderable)
        return
    from rich.measure import Measurement

    options = console.options.update(width=_UNLIMITED_COLUMNS)
    # A last column of empty cells is measured as nothing, and drawn as one.
    console.width = max(console.width, Measurement.get(console, options, renderable).maximum + 1)
    with console.capture() as captured:
        console.print(renderable)
    for line in captured.get().splitlines():
        click.echo(line.rstrip())


def make_table(*headings: str) -> Any:
    """Return an empty table without rules; a heading that starts with ``>`` is a column of numbers."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for heading in headings:
        name = heading.removeprefix(">")
        table.add_column(name, justify="right" if name != heading else "left", overflow="fold")
    return table


def print_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print ``rows`` under ``headings``."""
    table = make_table(*headings)
    for row in rows:
        table.add_row(*map(shown, row))
    print_wide(make_console(), table)


def print_facts(facts: Iterable[tuple[str, str]]) -> None:
    """Print names and values below each other; a fact without a value is left out."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in facts:
        if value:
            table.add_row(name, shown(value))
    print_wide(make_console(), table)


def print_wrapped(lines: Iterable[str], *, indent: int = 0) -> None:
    """Print sentences, each from a line of its own; broken between words where a terminal limits the width."""
    width = min(make_console().width, READABLE_COLUMNS) if sys.stdout.isatty() else _UNLIMITED_COLUMNS
    for line in lines:
        text = textwrap.fill(
            shown(line),
            width,
            initial_indent=" " * indent,
            subsequent_indent=" " * (indent + 4),
            break_long_words=False,
            break_on_hyphens=False,
        )
        click.echo(text)


@contextmanager
def progress(description: str, *, total: int | None) -> Iterator[Callable[[int], None]]:
    """Show a bar on standard error while the block runs, if that is a terminal.

    Yields a function to call with the number of steps just done.
    """
    if not sys.stderr.isatty():
        yield lambda _steps: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=make_console(stderr=True), transient=True) as bar:
        task = bar.add_task(description, total=total)
        yield lambda steps: bar.advance(task, steps)


def shown(text: str) -> str:
    """Return ``text`` with what could steer a terminal made visible: some of it comes from outside."""
    return "".join(
        each if each.isprintable() or each == "\n" else "\N{REPLACEMENT CHARACTER}" for each in text
    )


def plain(value: object) -> str:
    """Return a value of a detail as text: yes and no for what is true and false."""
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)


def clipped(text: str, limit: int) -> str:
    """Return ``text`` on one line, cut off after ``limit`` characters."""
    line = " ".join(text.split())
    return line if len(line) <= limit else f"{line[: limit - 1]}…"


def counted(number: int, noun: str) -> str:
    """Return ``1 account``, ``1,200 accounts``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def duration(span: timedelta) -> str:
    """Return a span in its two largest units: ``3 min 20 s``, ``2 d 4 h``; below 10 s with a decimal."""
    seconds = abs(span.total_seconds())
    if seconds < 10:
        return f"{seconds:.1f} s"
    rest = round(seconds)
    parts: list[str] = []
    for unit, size in _UNITS:
        count, rest = divmod(rest, size)
        if count:
            parts.append(f"{count} {unit}")
        if len(parts) == 2 or (parts and not count):
            break
    return " ".join(parts[:2])


def moment(at: datetime | None) -> str:
    """Return ``2026-11-21 07:12:21Z``, or nothing for None."""
    return "" if at is None else f"{at:%Y-%m-%d %H:%M:%S}Z"


def relative(at: datetime | None, now: datetime) -> str:
    """Return ``in 3 min`` or ``3 min ago``, or nothing for None."""
    if at is None:
        return ""
    return f"in {duration(at - now)}" if at >= now else f"{duration(now - at)} ago"


def dated(at: datetime | None, now: datetime) -> str:
    """Return ``2026-11-21 07:12:21Z (3 min ago)``, or nothing for None."""
    return "" if at is None else f"{moment(at)} ({relative(at, now)})"
