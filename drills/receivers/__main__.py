"""``make drills-receivers``: receivers of webhooks that are slow, dead, hostile or at home here, and who notices.

    .venv/bin/python -m drills.receivers [--short] [--json FILE] [--keep DIRECTORY] [--list]

A scheduler, a worker of refreshes and one of webhooks as real processes, refreshing all the while. First with one
healthy receiver, then with all the others beside it. Exit code 0 only if every promise held; 1 if not, or if too little
happened to say so; 2 if it could not run; 130 if it was interrupted.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

from chaos import command
from chaos.command import Parser, say
from chaos.world import World
from cli.up import stopped_by_signal
from drills.receivers import table
from drills.receivers.course import ACCESS_SECONDS, Course, Far
from drills.receivers.gathering import gather
from drills.receivers.roster import KINDS, Pace
from drills.receivers.verdict import judge
from sandbox.config import SandboxConfig

FULL: Final = Pace(60.0)
SHORT: Final = Pace(12.0)
LATENCY_SECONDS: Final = 0.1


def make_parser() -> Parser:
    """Return what reads the command line."""
    parser = command.make_parser(
        "drills.receivers", "Let receivers of webhooks misbehave in every way, and see who notices."
    )
    option = parser.add_argument
    option(
        "--short", action="store_true", help=f"with an hour of {SHORT.hour:g} s (default: {FULL.hour:g} s)"
    )
    option("--json", type=Path, metavar="FILE", help="write the findings there, too")
    option("--keep", type=Path, metavar="DIRECTORY", help="keep the logs there")
    option("--list", action="store_true", help="list the receivers, and run nothing")
    return parser


def main(words: Sequence[str] | None = None) -> int:
    """Read the arguments, run, print the table; returns the exit code."""
    arguments = make_parser().parse_args(words)
    return command.run("drills.receivers", lambda: _main(arguments))


def _main(arguments: argparse.Namespace) -> int:
    pace = SHORT if arguments.short else FULL
    if arguments.list:
        for kind in KINDS:
            say(f"{kind.name:13} {kind.does.format(slow=pace.slow)}")
        return 0
    command.check_targets(arguments)
    began = time.monotonic()
    say(
        f"an hour in {pace.hour:g} s: waits between attempts pass {pace.factor:g} times faster than in life; a request "
        f"is given {pace.timeout:g} s"
    )
    config = SandboxConfig(
        access_lifetime_seconds=ACCESS_SECONDS, latency_seconds=(LATENCY_SECONDS, LATENCY_SECONDS)
    )
    settings = {"TOKENFLEET_WEBHOOK_TIMEOUT_SECONDS": f"{pace.timeout:g}"}
    with (
        stopped_by_signal(),
        command.home("receivers", arguments.keep) as home,
        World(home, config, settings=settings, witnesses=False) as world,
        Far(pace) as far,
    ):
        course = Course(world, far, pace, say)
        course.run()
        evidence = gather(world, course, far.ask("ledger"), far.ports)
    verdict = judge(evidence)
    say("\n".join(["", *table.lines(evidence, verdict, pace)]))
    say(f"\n{time.monotonic() - began:.0f} s")
    if arguments.json:
        with command.writing("--json", arguments.json):
            document = {"verdict": asdict(verdict), "evidence": asdict(evidence)}
            arguments.json.write_text(json.dumps(document, default=str) + "\n")
    return 1 if verdict.problems else 0


if __name__ == "__main__":
    sys.exit(main())
