"""``make drills``: let everything go wrong that is no customer's fault, and see who is bothered, and how fast we are.

    .venv/bin/python -m drills [--short] [--accounts 10000] [--seed N] [--only NAME ...] [--json FILE]
                               [--keep DIRECTORY] [--list]

Exit code 0 only if every drill held; 1 if not, or if too little happened to say so; 2 if it could not run; 130 if
it was interrupted.
"""

from __future__ import annotations

import argparse
import json
import secrets
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

from chaos import command
from chaos.command import Parser, say
from chaos.verdict import counted
from chaos.world import World
from cli.up import stopped_by_signal
from drills import table
from drills.found import Evidence
from drills.plan import FULL, SHORT, Plan
from drills.rehearsal import Rehearsal
from drills.roster import Drill, all_drills
from drills.verdict import Row, judge
from sandbox.config import SandboxConfig

LATENCY_SECONDS: Final = 0.1
ACCOUNTS: Final = (1_000, 200_000)
"""With fewer the guard has no cause to trip."""


def make_parser() -> Parser:
    """Return what reads the command line."""
    parser = command.make_parser(
        "drills", "Let providers fail in every way, and judge the fleet by their record."
    )
    parser.add_argument(
        "--short",
        action="store_true",
        help="in two minutes instead of a quarter of an hour (default: in full)",
    )
    parser.add_argument(
        "--accounts",
        type=command.whole(*ACCOUNTS),
        help=f"of all drills together (default: {FULL.accounts}, {SHORT.accounts} in short)",
    )
    command.add_common_options(parser)
    return parser


def again(seed: int, arguments: argparse.Namespace) -> str:
    """Return the command that repeats a run: what differs from the defaults, and the seed."""
    words = [f"--seed {seed}"]
    if arguments.accounts is not None:
        words.append(f"--accounts {arguments.accounts}")
    words += [f"--only {name}" for name in dict.fromkeys(arguments.only or ())]
    return f"make drills{'-short' if arguments.short else ''} DRILLS_ARGS='{' '.join(words)}'"


def main(words: Sequence[str] | None = None) -> int:
    """Read the arguments, run, print the table; returns the exit code."""
    arguments = make_parser().parse_args(words)
    return command.run("drills", lambda: _main(arguments))


def _main(arguments: argparse.Namespace) -> int:
    plan = SHORT if arguments.short else FULL
    total = arguments.accounts or plan.accounts
    each = total // len(all_drills(plan, 1))
    drills = all_drills(plan, each)
    if arguments.list:
        for drill in drills:
            say(f"{drill.name:18} {drill.title}")
        return 0
    command.known(arguments.only, [drill.name for drill in drills])
    command.check_targets(arguments)
    drills = [drill for drill in drills if not arguments.only or drill.name in arguments.only]
    seed = secrets.randbelow(1_000_000) if arguments.seed is None else arguments.seed
    rows, troubles = _run(drills, plan, each, seed, arguments)
    held = all(row.held for row in rows) and not troubles
    if arguments.json:
        result = {"seed": seed, "held": held, "troubles": troubles, "rows": [asdict(row) for row in rows]}
        with command.writing("--json", arguments.json):
            arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0 if held else 1


def keep_evidence(found: Sequence[Evidence], target: Path) -> None:
    """Write down what was judged, a file for each drill."""
    for evidence in found:
        members = asdict(evidence)
        document = json.dumps(members, default=sorted, separators=(",", ":"))
        (target / f"{evidence.name}.json").write_text(document + "\n")


def _run(
    drills: Sequence[Drill], plan: Plan, each: int, seed: int, arguments: argparse.Namespace
) -> tuple[list[Row], list[str]]:
    pace = plan.pace(each)
    say(
        f"seed {seed}: {counted(len(drills), 'drill', 'drills')} with {each:,} accounts each, tokens of "
        f"{plan.access} s, a budget of {pace.requests_per_second:g} requests a second and {pace.burst} at once"
    )
    began = time.monotonic()
    config = SandboxConfig(
        access_lifetime_seconds=plan.access, latency_seconds=(LATENCY_SECONDS, LATENCY_SECONDS), seed=seed
    )
    definitions = [drill.definition(plan, each) for drill in drills]
    with (
        stopped_by_signal(),
        command.home("drills", arguments.keep) as home,
        World(home, config, settings={}, definitions=definitions, witnesses=False) as world,
    ):
        rehearsal = Rehearsal(world, drills, plan, accounts=each, seed=seed, say=say)
        found = rehearsal.run()
    if arguments.keep:
        with command.writing("--keep", arguments.keep):
            keep_evidence(found, arguments.keep)
    rows = [judge(evidence) for evidence in found]
    say("\n".join(["", *table.lines(rows, rehearsal.troubles)]))
    say(
        f"\n{counted(len(rows) * each, 'account', 'accounts')}, "
        f"{counted(sum(row.requests for row in rows), 'request', 'requests')}, "
        f"{time.monotonic() - began:.0f} s. Again:\n{again(seed, arguments)}"
    )
    return rows, rehearsal.troubles


if __name__ == "__main__":
    sys.exit(main())
