"""``make chaos``: kill the fleet in every way we know, a thousand times, and judge it by the ledger.

    python -m chaos [--seconds 600] [--accounts 5000] [--seed N] [--only NAME ...] [--json FILE] [--list]

Exit code 0 only if nothing was presented twice, nothing was lost and nobody had to sign in again for nothing.
"""

from __future__ import annotations

import argparse
import json
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Final

from chaos import table
from chaos.campaign import Campaign, deaths
from chaos.deaths import DieAtPoint, all_deaths
from chaos.faults import all_other_faults
from chaos.points import Role
from chaos.scene import Fault
from chaos.stage import Stage
from chaos.verdict import Verdict, judge
from cli.up import stopped_by_signal
from tokenfleet.errors import UserError

DEFAULT_SECONDS: Final = 600.0
DEFAULT_ACCOUNTS: Final = 5_000


def main() -> int:
    """Read the arguments, run, print the table; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m chaos", description="Kill the fleet in every way, and judge it by the ledger."
    )
    parser.add_argument("--seconds", type=float, default=DEFAULT_SECONDS, help="how long the faults take")
    parser.add_argument("--accounts", type=int, default=DEFAULT_ACCOUNTS)
    parser.add_argument("--seed", type=int, help="repeat the choices of a run that printed this seed")
    parser.add_argument("--only", action="append", metavar="NAME", help="this row; may be given repeatedly")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there, too")
    parser.add_argument("--keep", type=Path, metavar="DIRECTORY", help="keep logs and witnesses there")
    parser.add_argument("--list", action="store_true", help="list the rows")
    arguments = parser.parse_args()
    every: list[Fault | DieAtPoint] = [*all_deaths(), *all_other_faults()]
    rows = {row.name: row for row in every}
    if arguments.list:
        for row in rows.values():
            print(f"{row.name:24} {row.title}")
        return 0
    try:
        if unknown := sorted(set(arguments.only or ()) - rows.keys()):
            raise UserError(f"no such row: {', '.join(unknown)}; --list shows them all")
        rows = {name: row for name, row in rows.items() if not arguments.only or name in arguments.only}
        seed = secrets.randbelow(1_000_000) if arguments.seed is None else arguments.seed
        verdict = _run(rows, seed, arguments)
    except UserError as error:
        print(f"chaos: {error}", file=sys.stderr)
        return 2
    if arguments.json:
        result = {"seed": seed, "held": verdict.held, "problems": list(verdict.problems)}
        table_rows = [asdict(row) for row in (*verdict.rows, verdict.total)]
        arguments.json.write_text(json.dumps(result | {"rows": table_rows}, indent=2) + "\n")
    return 0 if verdict.held else 1


def _run(rows: Mapping[str, Fault | DieAtPoint], seed: int, arguments: argparse.Namespace) -> Verdict:
    print(
        f"seed {seed}: {len(rows)} faults, {arguments.accounts:,} accounts with tokens of 60 s, "
        f"{arguments.seconds:.0f} s",
        flush=True,
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
                _keep(home, arguments.keep)
    verdict = judge(evidence)
    rank = {name: number for number, name in enumerate(rows)}
    ordered = sorted(verdict.rows, key=lambda row: rank.get(row.name, len(rank)))
    verdict = replace(verdict, rows=ordered)
    print()
    print(*table.lines(verdict), sep="\n")
    print(
        f"\n{killed[Role.WORKER]:,} workers and {killed[Role.SCHEDULER]:,} schedulers killed with SIGKILL, "
        f"{verdict.total.refreshes:,} refreshes, {time.monotonic() - began:.0f} s. "
        f"Again: python -m chaos --seed {seed}",
        flush=True,
    )
    return verdict


def _say(sentence: str) -> None:
    print(sentence, flush=True)


def _keep(home: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for name in ("processes", "home/logs"):
        shutil.copytree(home / name, target / name, dirs_exist_ok=True)


if __name__ == "__main__":
    sys.exit(main())
