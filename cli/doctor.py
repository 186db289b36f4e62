"""``tokenfleet doctor``: what is wrong here, and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from cli.output import json_option, make_console, print_json, shown

if TYPE_CHECKING:
    from cli.check import Check


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What ``doctor --json`` prints. ``healthy``: nothing fatal was found."""

    healthy: bool
    checks: Sequence[Check]


@click.command()
@json_option
@click.pass_context
def doctor(ctx: click.Context, as_json: bool) -> None:
    """Check everything a fleet needs, from this shell, and say what to do about each problem.

    Settings, Redis, broker, journal, provider definitions, Postgres, schema, clock, keys, apps, processes.
    Run it on a machine before starting a worker there, and whenever something is odd. Changes nothing. Exit
    code 1 when something fatal is found.

    \b
    Example:
      tokenfleet doctor
    """
    from cli.check import Verdict
    from cli.checkup import examine

    styles = {
        Verdict.OK: "green",
        Verdict.WARNING: "yellow",
        Verdict.FATAL: "bold red",
        Verdict.SKIPPED: "dim",
    }
    console = make_console()
    checks: list[Check] = []
    for check in examine():
        checks.append(check)
        if not as_json:
            console.print(f"{check.verdict.value:>8}  ", style=styles[check.verdict], end="", soft_wrap=True)
            console.print(shown(f"{check.name}: {check.message}"), soft_wrap=True)
    healthy = all(check.verdict is not Verdict.FATAL for check in checks)
    if as_json:
        print_json(Diagnosis(healthy, checks))
    if not healthy:
        ctx.exit(1)
