"""``tokenfleet audit unsealings``: who opens sealed values, for what, how many, and whether that is usual."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

import click

from cli.moments import Moment
from cli.output import counted, dated, json_option, print_json, print_table, print_wrapped, relative, shown
from tokenfleet_client.unsealings import Purpose

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from store.unsealing_report import CallerSum, Wanted
    from store.unsealing_spikes import Group, Spike

SHOWN: Final = 30
"""Callers of one screen."""
USUALLY_SHOWN: Final = timedelta(days=1)
WHAT_TO_DO: Final = "docs/keys.md, 'When far more is opened than usual', says what to do."


@dataclass(frozen=True, slots=True)
class Caller:
    """One line. ``per_minute`` is the mean since ``since``; ``last_minute`` the last one with a count.

    ``now`` and ``expected`` are of everything that its database role opens for the purpose: within the last ten
    minutes, and how many would be no surprise. ``expected`` is None where any number is explained, or nobody can tell
    yet, or nothing is opened now. ``spike`` says that one lasts.
    """

    purpose: str
    caller: str
    database_role: str
    opened: int
    per_minute: float
    last_minute: datetime
    now: int
    usual: int
    expected: int | None
    spike: bool


@dataclass(frozen=True, slots=True)
class Report:
    """What ``--json`` prints."""

    at: datetime
    since: datetime
    spikes: Sequence[Spike]
    callers: Sequence[Caller]


@click.command()
@click.option("--since", type=Moment(), help="From this moment on (RFC 3339) [default: a day ago].")
@click.option("--purpose", type=click.Choice([each.value for each in Purpose]), help="Only this purpose.")
@click.option("--caller", help="Only callers whose name begins so, as in operator:ada.")
@click.option("--export", is_flag=True, help="Write every count by the minute, as JSON Lines, oldest first.")
@json_option
@click.pass_context
def unsealings(
    ctx: click.Context,
    since: datetime | None,
    purpose: str | None,
    caller: str | None,
    export: bool,
    as_json: bool,
) -> None:
    """Show who opened sealed values: tokens and secrets, by purpose and caller.

    Workers count what they open, commands what their operator makes them open, and readers what they say through
    tokenfleet-client. Counts arrive within 15 seconds. Exit code 1 while far more is opened than is explained or usual.

    "role now" is what all callers of the line's database role opened for its purpose within the last ten minutes, and
    "expected" how many would be no surprise: "-" where any number is explained, or nobody can tell yet.

    \b
    Examples:
      tokenfleet audit unsealings
      tokenfleet audit unsealings --purpose export --since 2026-11-01T00:00:00Z
      tokenfleet audit unsealings --export --since 2026-11-20T00:00:00Z > unsealings.jsonl
    """
    from cli.session import database, load_settings
    from store.engine import database_now
    from store.unsealing_report import Wanted

    if export and as_json:
        raise click.UsageError("--export writes JSON Lines: leave --json out.")
    with database(load_settings()) as engine, engine.connect() as connection:
        now = database_now(connection)
        begin = since or now - USUALLY_SHOWN
        if begin >= now:
            raise click.UsageError("--since is not in the past: nothing could match.")
        wanted = Wanted(begin, None if purpose is None else Purpose(purpose), caller)
        if export:
            _export(connection, wanted)
            return
        report = _report(connection, wanted, now)
    if as_json:
        print_json(report)
    else:
        _print(report)
    if report.spikes:
        ctx.exit(1)


def _export(connection: Connection, wanted: Wanted) -> None:
    import msgspec

    from store.unsealing_report import minutes

    count = 0
    for row in minutes(connection, wanted):
        click.echo(msgspec.json.encode(row).decode())
        count += 1
    click.echo(f"{counted(count, 'count')} written.", err=True)


def _report(connection: Connection, wanted: Wanted, now: datetime) -> Report:
    from store import unsealing_spikes
    from store.unsealing_report import sums

    groups = {
        (group.openings.purpose.value, group.database_role): group
        for group in unsealing_spikes.read_groups(connection)
    }
    spikes = unsealing_spikes.open_spikes(connection)
    lasting = {(spike.purpose, spike.database_role) for spike in spikes}
    minutes = max((now - wanted.since) / timedelta(minutes=1), 1.0)
    callers = [
        _caller(each, groups.get((each.purpose, each.database_role)), minutes, lasting)
        for each in sums(connection, wanted)
    ]
    return Report(now, wanted.since, spikes, callers)


def _caller(row: CallerSum, group: Group | None, minutes: float, lasting: set[tuple[str, str]]) -> Caller:
    from tokenfleet.unsealing import expected_of

    return Caller(
        purpose=row.purpose,
        caller=row.caller,
        database_role=row.database_role,
        opened=row.opened,
        per_minute=round(row.opened / minutes, 2),
        last_minute=row.last_minute,
        now=0 if group is None else group.openings.opened,
        usual=0 if group is None else group.openings.usual,
        expected=None if group is None else expected_of(group.openings),
        spike=(row.purpose, row.database_role) in lasting,
    )


def _print(report: Report) -> None:
    if not report.callers:
        click.echo("Nothing was opened.")
    else:
        print_table(
            (
                "purpose",
                "caller",
                "database role",
                ">opened",
                ">a minute",
                "last",
                ">role now",
                ">expected",
                "",
            ),
            (_line(each, report.at) for each in report.callers[:SHOWN]),
        )
        if len(report.callers) > SHOWN:
            more = report.callers[SHOWN:]
            total = sum(each.opened for each in more)
            click.echo(
                f"and {counted(len(more), 'line')} more with {total:,} openings: --purpose and --caller choose, "
                "--json has all."
            )
        click.echo()
    if report.spikes:
        print_wrapped(
            [
                f"Far more is opened than is explained or usual since {dated(spike.began_at, report.at)}: "
                f"{shown(spike.sentence)}."
                for spike in report.spikes
            ]
            + [WHAT_TO_DO]
        )
    else:
        click.echo("Nothing is unusual.")


def _line(caller: Caller, now: datetime) -> tuple[str, ...]:
    return (
        caller.purpose,
        caller.caller,
        caller.database_role,
        f"{caller.opened:,}",
        f"{caller.per_minute:,.1f}",
        relative(caller.last_minute, now),
        f"{caller.now:,}",
        "-" if caller.expected is None else f"{caller.expected:,}",
        "SPIKE" if caller.spike else "",
    )
