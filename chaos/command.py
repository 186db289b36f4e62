"""What the commands of the crash suite and of the drills have in common: their words, their files, their ends.

Exit codes: 0 if everything held, 1 if not, 2 if it could not run, 130 if it was interrupted, 141 if nobody reads.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NoReturn

from chaos.processes import copy_written
from tokenfleet.errors import UserError

INTERRUPTED: Final = 130
"""The exit code of what Ctrl-C ended, by the shell's convention."""
NOBODY_READS: Final = 141
"""That of what a closed pipe ended."""


class ReaderGoneError(Exception):
    """Nobody reads what we print any more."""


class Parser(argparse.ArgumentParser):
    """Says in one sentence what is wrong with the arguments, and exits with 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog.rpartition(' ')[2]}: {message}; --help shows all options\n")


def make_parser(name: str, description: str) -> Parser:
    """Return a parser of ``python -m name``."""
    return Parser(prog=f"python -m {name}", description=description, allow_abbrev=False)


def add_common_options(parser: Parser) -> None:
    """Add what every such command understands: which rows, which seed, where to write."""
    option = parser.add_argument
    option(
        "--seed",
        type=whole(0),
        metavar="N",
        help="repeat the choices of the run that printed it (default: another one each time)",
    )
    option(
        "--only",
        action="append",
        metavar="NAME",
        help="this row; may be given repeatedly (default: all rows)",
    )
    option("--json", type=Path, metavar="FILE", help="write the rows there, too (default: nowhere)")
    option("--keep", type=Path, metavar="DIRECTORY", help="keep logs and witnesses there (default: nowhere)")
    option("--list", action="store_true", help="list the rows, and run nothing")


def seconds(least: float, most: float) -> Callable[[str], float]:
    """Return what reads a number of seconds within bounds."""

    def parse(word: str) -> float:
        try:
            number = float(word)
        except ValueError:
            number = math.nan
        if not least <= number <= most:
            raise argparse.ArgumentTypeError(f"{word!r} is no number of seconds from {least} to {most:,}")
        return number

    return parse


def whole(least: int, most: int | None = None) -> Callable[[str], int]:
    """Return what reads a whole number within bounds."""
    allowed = f"from {least:,} to {most:,}" if most is not None else f"of at least {least}"

    def parse(word: str) -> int:
        try:
            number = int(word)
        except ValueError:
            number = least - 1
        if number < least or (most is not None and number > most):
            raise argparse.ArgumentTypeError(f"{word!r} is no whole number {allowed}")
        return number

    return parse


def check_targets(arguments: argparse.Namespace) -> None:
    """Raise :class:`UserError` unless the files that are asked for can be written, before ten minutes have passed."""
    if arguments.keep:
        with writing("--keep", arguments.keep):
            arguments.keep.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=arguments.keep):
                pass
    if arguments.json:
        existed = arguments.json.exists()
        with writing("--json", arguments.json):
            arguments.json.open("ab").close()
            if not existed:
                arguments.json.unlink()


@contextmanager
def writing(option: str, path: Path) -> Iterator[None]:
    """Turn a failure to write what an option names into a :class:`UserError`."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{option} {path} cannot be written: {error.strerror or error}") from error


def keep(home: Path, target: Path) -> None:
    """Copy the logs of a run, and what its processes wrote down, as far as there are any."""
    for name in ("processes", "home/logs"):
        if (home / name).is_dir():
            shutil.copytree(home / name, target / name, dirs_exist_ok=True, copy_function=copy_written)


@contextmanager
def home(name: str, kept: Path | None) -> Iterator[Path]:
    """Yield a directory for one run; its logs are kept in ``kept``, if that is given, however the run ends."""
    with tempfile.TemporaryDirectory(prefix=f"tokenfleet-{name}-") as directory:
        try:
            yield Path(directory)
        finally:
            if kept:
                with writing("--keep", kept):
                    keep(Path(directory), kept)


def run(name: str, command: Callable[[], int]) -> int:
    """Run ``command`` and return its exit code, or that of the way in which it could not run."""
    try:
        return command()
    except UserError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: no verdict", file=sys.stderr)
        return INTERRUPTED
    except ReaderGoneError:
        # The interpreter flushes once more at its end, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return NOBODY_READS


def say(sentence: str) -> None:
    """Print a sentence. Raises :class:`ReaderGoneError` when nobody reads."""
    try:
        print(sentence, flush=True)
    except BrokenPipeError as error:
        raise ReaderGoneError from error


def known(names: Iterable[str] | None, rows: Iterable[str]) -> None:
    """Raise :class:`UserError` when a name is no row's."""
    if unknown := sorted(set(names or ()) - set(rows)):
        raise UserError(f"no such row: {', '.join(unknown)}; --list shows them all")
