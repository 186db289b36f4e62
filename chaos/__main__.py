"""``make chaos``: kill the fleet in every way we know, a thousand times, and judge it by the ledger.

    .venv/bin/python -m chaos [--seconds 600] [--accounts 6000] [--seed N] [--only NAME ...] [--json FILE]
                              [--keep DIRECTORY] [--list]

Exit code 0 only if nothing was presented twice, nothing that was kept was lost and nobody had to sign in again
for nothing; 1 if not, or if too little happened to say so; 2 if it could not run; 130 if it was interrupted.
"""

from __future__ import annotations

import argparse
import json
import secrets
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Final

from chaos import command, table
from chaos.campaign import Campaign, deaths
from chaos.command import Parser, check_targets, say
from chaos.deaths import DieAtPoint, all_deaths
from chaos.faults import all_other_faults
from chaos.points import Role
from chaos.scene import Fault
from chaos.stage import Stage
from chaos.verdict import Verdict, counted, judge
from cli.up import stopped_by_signal

DEFAULT_SECONDS: Final = 600.0
DEFAULT_ACCOUNTS: Final = 6_000
SECONDS: Final = (5, 86_400)
ACCOUNTS: Final = (100, 100_000)


def make_parser() -> Parser:
    """Return what reads the command line."""
    parser = command.make_parser("chaos", "Kill the fleet in every way, and judge it by the ledger.")
    parser.add_argument(
        "--seconds",
        type=command.seconds(*SECONDS),
        default=DEFAULT_SECONDS,
        help="how long the run takes, about (default: %(default)g)",
    )
    parser.add_argument(
        "--accounts",
        type=command.whole(*ACCOUNTS),
        default=DEFAULT_ACCOUNTS,
        help="how many accounts the fleet keeps alive meanwhile (default: %(default)s)",
    )
    command.add_common_options(parser)
    return parser


def again(seed: int, arguments: argparse.Namespace) -> str:
    """Return the command that repeats a run: what differs from the defaults, and the seed."""
    words = [f"--seed {seed}"]
    if arguments.seconds != DEFAULT_SECONDS:
        words.append(f"--seconds {str(arguments.seconds).removesuffix('.0')}")
    if arguments.accounts != DEFAULT_ACCOUNTS:
        words.append(f"--accounts {arguments.accounts}")
    words += [f"--only {name}" for name in dict.fromkeys(arguments.only or ())]
    return f"make chaos CHAOS_ARGS='{' '.join(words)}'"


def main(words: Sequence[str] | None = None) -> int:
    """Read the arguments, run, print the table; returns the exit code."""
    arguments = make_parser().parse_args(words)
    return command.run("chaos", lambda: _main(arguments))


def _main(arguments: argparse.Namespace) -> int:
    every: list[Fault | DieAtPoint] = [*all_deaths(), *all_other_faults()]
    rows = {row.name: row for row in every}
    if arguments.list:
        for row in rows.values():
            say(f"{row.name:24} {row.title}")
        return 0
    command.known(arguments.only, rows)
    check_targets(arguments)
    rows = {name: row for name, row in rows.items() if not arguments.only or name in arguments.only}
    seed = secrets.randbelow(1_000_000) if arguments.seed is None else arguments.seed
    verdict = _run(rows, seed, arguments)
    if arguments.json:
        result = {"seed": seed, "held": verdict.held, "problems": list(verdict.problems)}
        table_rows = [asdict(row) for row in (*verdict.rows, verdict.total)]
        with command.writing("--json", arguments.json):
            arguments.json.write_text(json.dumps(result | {"rows": table_rows}, indent=2) + "\n")
    return 0 if verdict.held else 1


def _run(rows: Mapping[str, Fault | DieAtPoint], seed: int, arguments: argparse.Namespace) -> Verdict:
    say(
        f"seed {seed}: {counted(len(rows), 'fault', 'faults')}, {arguments.accounts:,} accounts "
        f"with tokens of 60 s, {arguments.seconds:g} s"
    )
    began = time.monotonic()
    with (
        stopped_by_signal(),
        command.home("chaos", arguments.keep) as home,
        Stage(home, accounts=arguments.accounts, seed=seed) as stage,
    ):
        campaign = Campaign(
            stage,
            [row for row in rows.values() if isinstance(row, DieAtPoint)],
            [row for row in rows.values() if isinstance(row, Fault)],
            seed=seed,
            seconds=arguments.seconds - (time.monotonic() - began),
            say=say,
        )
        evidence = campaign.run()
        killed = deaths(stage)
    verdict = judge(evidence)
    rank = {name: number for number, name in enumerate(rows)}
    ordered = sorted(verdict.rows, key=lambda row: rank.get(row.name, len(rank)))
    verdict = replace(verdict, rows=ordered)
    workers = counted(killed[Role.WORKER], "worker", "workers")
    schedulers = counted(killed[Role.SCHEDULER], "scheduler", "schedulers")
    say("\n".join(["", *table.lines(verdict)]))
    say(
        f"\n{workers} and {schedulers} killed with SIGKILL, "
        f"{counted(verdict.total.refreshes, 'refresh', 'refreshes')}, {time.monotonic() - began:.0f} s. "
        f"Again:\n{again(seed, arguments)}"
    )
    return verdict


if __name__ == "__main__":
    sys.exit(main())
