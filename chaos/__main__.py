"""``make chaos``: kill the fleet in every way we know, a thousand times, and judge it by the ledger.

    .venv/bin/python -m chaos [--seconds 600] [--accounts 6000] [--seed N] [--only NAME ...] [--json FILE]
                              [--keep DIRECTORY] [--list]

Exit code 0 only if nothing was presented twice, nothing that was kept was lost and nobody had to sign in again
for nothing; 1 if not, or if too little happened to say so; 2 if it could not run; 130 if it was interrupted.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Final, NoReturn

from chaos import table
from chaos.campaign import Campaign, deaths
from chaos.deaths import DieAtPoint, all_deaths
from chaos.faults import all_other_faults
from chaos.points import Role
from chaos.processes import copy_written
from chaos.scene import Fault
from chaos.stage import Stage
from chaos.verdict import Verdict, counted, judge
from cli.up import stopped_by_signal
from tokenfleet.errors import UserError

DEFAULT_SECONDS: Final = 600.0
DEFAULT_ACCOUNTS: Final = 6_000
SECONDS: Final = (5, 86_400)
ACCOUNTS: Final = (100, 100_000)
INTERRUPTED: Final = 130
"""The exit code of what Ctrl-C ended, by the shell's convention."""
NOBODY_READS: Final = 141
"""That of what a closed pipe ended."""


class ReaderGoneError(Exception):
    """Nobody reads what we print any more."""


class Parser(argparse.ArgumentParser):
    """Says in one sentence what is wrong with the arguments, and exits with 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"chaos: {message}; --help shows all options\n")


def make_parser() -> Parser:
    """Return what reads the command line."""
    parser = Parser(
        prog="python -m chaos",
        description="Kill the fleet in every way, and judge it by the ledger.",
        allow_abbrev=False,
    )
    option = parser.add_argument
    option(
        "--seconds",
        type=_seconds,
        default=DEFAULT_SECONDS,
        help="how long the run takes, about (default: %(default)g)",
    )
    option(
        "--accounts",
        type=_whole(*ACCOUNTS),
        default=DEFAULT_ACCOUNTS,
        help="how many accounts the fleet keeps alive meanwhile (default: %(default)s)",
    )
    option(
        "--seed",
        type=_whole(0),
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
    return parser


def _seconds(word: str) -> float:
    least, most = SECONDS
    try:
        seconds = float(word)
    except ValueError:
        seconds = math.nan
    if not least <= seconds <= most:
        raise argparse.ArgumentTypeError(f"{word!r} is no number of seconds from {least} to {most:,}")
    return seconds


def _whole(least: int, most: int | None = None) -> Callable[[str], int]:
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


def again(seed: int, arguments: argparse.Namespace) -> str:
    """Return the command that repeats a run: what differs from the defaults, and the seed."""
    words = [f"--seed {seed}"]
    if arguments.seconds != DEFAULT_SECONDS:
        words.append(f"--seconds {str(arguments.seconds).removesuffix('.0')}")
    if arguments.accounts != DEFAULT_ACCOUNTS:
        words.append(f"--accounts {arguments.accounts}")
    words += [f"--only {name}" for name in dict.fromkeys(arguments.only or ())]
    return f"make chaos CHAOS_ARGS='{' '.join(words)}'"


def check_targets(arguments: argparse.Namespace) -> None:
    """Raise :class:`UserError` unless the files that are asked for can be written, before ten minutes have passed."""
    if arguments.keep:
        with _writing("--keep", arguments.keep):
            arguments.keep.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=arguments.keep):
                pass
    if arguments.json:
        existed = arguments.json.exists()
        with _writing("--json", arguments.json):
            arguments.json.open("ab").close()
            if not existed:
                arguments.json.unlink()


@contextmanager
def _writing(option: str, path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{option} {path} cannot be written: {error.strerror or error}") from error


def keep(home: Path, target: Path) -> None:
    """Copy the logs of a run, and what its processes wrote down, as far as there are any."""
    for name in ("processes", "home/logs"):
        if (home / name).is_dir():
            shutil.copytree(home / name, target / name, dirs_exist_ok=True, copy_function=copy_written)


def main(words: Sequence[str] | None = None) -> int:
    """Read the arguments, run, print the table; returns the exit code."""
    try:
        return _main(make_parser().parse_args(words))
    except UserError as error:
        print(f"chaos: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: no verdict", file=sys.stderr)
        return INTERRUPTED
    except ReaderGoneError:
        # The interpreter flushes once more at its end, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return NOBODY_READS


def _main(arguments: argparse.Namespace) -> int:
    every: list[Fault | DieAtPoint] = [*all_deaths(), *all_other_faults()]
    rows = {row.name: row for row in every}
    if arguments.list:
        for row in rows.values():
            _say(f"{row.name:24} {row.title}")
        return 0
    if unknown := sorted(set(arguments.only or ()) - rows.keys()):
        raise UserError(f"no such row: {', '.join(unknown)}; --list shows them all")
    check_targets(arguments)
    rows = {name: row for name, row in rows.items() if not arguments.only or name in arguments.only}
    seed = secrets.randbelow(1_000_000) if arguments.seed is None else arguments.seed
    verdict = _run(rows, seed, arguments)
    if arguments.json:
        result = {"seed": seed, "held": verdict.held, "problems": list(verdict.problems)}
        table_rows = [asdict(row) for row in (*verdict.rows, verdict.total)]
        with _writing("--json", arguments.json):
            arguments.json.write_text(json.dumps(result | {"rows": table_rows}, indent=2) + "\n")
    return 0 if verdict.held else 1


def _run(rows: Mapping[str, Fault | DieAtPoint], seed: int, arguments: argparse.Namespace) -> Verdict:
    _say(
        f"seed {seed}: {counted(len(rows), 'fault', 'faults')}, {arguments.accounts:,} accounts "
        f"with tokens of 60 s, {arguments.seconds:g} s"
    )
    began = time.monotonic()
    with stopped_by_signal(), tempfile.TemporaryDirectory(prefix="tokenfleet-chaos-") as directory:
        home = Path(directory)
        try:
            with Stage(home, accounts=arguments.accounts, seed=seed) as stage:
                campaign = Campaign(
                    stage,
                    [row for row in rows.values() if isinstance(row, DieAtPoint)],
                    [row for row in rows.values() if isinstance(row, Fault)],
                    seed=seed,
                    seconds=arguments.seconds - (time.monotonic() - began),
                    say=_say,
                )
                evidence = campaign.run()
                killed = deaths(stage)
        finally:
            if arguments.keep:
                with _writing("--keep", arguments.keep):
                    keep(home, arguments.keep)
    verdict = judge(evidence)
    rank = {name: number for number, name in enumerate(rows)}
    ordered = sorted(verdict.rows, key=lambda row: rank.get(row.name, len(rank)))
    verdict = replace(verdict, rows=ordered)
    workers = counted(killed[Role.WORKER], "worker", "workers")
    schedulers = counted(killed[Role.SCHEDULER], "scheduler", "schedulers")
    _say("\n".join(["", *table.lines(verdict)]))
    _say(
        f"\n{workers} and {schedulers} killed with SIGKILL, "
        f"{counted(verdict.total.refreshes, 'refresh', 'refreshes')}, {time.monotonic() - began:.0f} s. "
        f"Again:\n{again(seed, arguments)}"
    )
    return verdict


def _say(sentence: str) -> None:
    try:
        print(sentence, flush=True)
    except BrokenPipeError as error:
        raise ReaderGoneError from error


if __name__ == "__main__":
    sys.exit(main())
