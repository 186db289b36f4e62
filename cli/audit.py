"""``tokenfleet audit``: what operators did, read from a log that nobody can change."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import IO, TYPE_CHECKING, Any, Final, TypeVar

import click

from cli.moments import Moment
from cli.output import counted, escaped, json_option, moment, plain, print_json, print_table
from cli.unsealings import unsealings

if TYPE_CHECKING:
    from store.audit import AuditFilter, AuditRow

F = TypeVar("F", bound=Callable[..., Any])

MAX_ROWS: Final = 10_000


def filter_options(command: F) -> F:
    """Add the options that choose rows, as the parameters of :func:`_wanted`."""
    for option in reversed(
        (
            click.option("--since", type=Moment(), help="From this moment on (RFC 3339)."),
            click.option("--until", type=Moment(), help="Before this moment."),
            click.option("--actor", help="Only what this one did: operator:NAME, or NAME."),
            click.option("--action", help="Only this action: a command with a dot, as in apps.set."),
            click.option(
                "--target", help="Only what was done to this: account/4711, endpoint/3, incident/7."
            ),
        )
    ):
        command = option(command)
    return command


@click.group()
def audit() -> None:
    """Read what operators did: who, what, to what, why, from where; and who opened sealed values.

    Every command that changes something writes a row in the transaction of the change. Postgres refuses to change or
    delete a row, whoever asks. What happens to accounts by itself is in 'tokenfleet accounts history'.
    """


audit.add_command(unsealings)


@audit.command("list")
@filter_options
@click.option("--limit", type=click.IntRange(1, MAX_ROWS), default=50, show_default=True, help="How many.")
@json_option
def list_actions(
    since: datetime | None,
    until: datetime | None,
    actor: str | None,
    action: str | None,
    target: str | None,
    limit: int,
    as_json: bool,
) -> None:
    """List the newest actions, newest first.

    \b
    Examples:
      tokenfleet audit list
      tokenfleet audit list --target account/4711
      tokenfleet audit list --action apps.set --since 2026-11-20T00:00:00Z
    """
    from cli.session import database, load_settings
    from store import audit as log

    wanted = _wanted(since, until, actor, action, target)
    with database(load_settings()) as engine, engine.connect() as connection:
        rows = log.read_newest(connection, wanted, limit=limit)
    if as_json:
        print_json(rows)
        return
    if not rows:
        click.echo("No action matches.")
        return
    print_table(
        ("when", "actor", "host", "action", "target", "reason", "details"), (_line(row) for row in rows)
    )
    if len(rows) == limit:
        click.echo(
            f"Only the newest {counted(limit, 'row')}: --limit shows more, 'tokenfleet audit export' all.",
            err=True,
        )


@audit.command()
@filter_options
@click.option(
    "--output",
    type=click.File("x", encoding="utf-8"),
    help="File to write, which must not exist [default: standard output].",
)
def export(
    since: datetime | None,
    until: datetime | None,
    actor: str | None,
    action: str | None,
    target: str | None,
    output: IO[str] | None,
) -> None:
    """Write every action as JSON Lines, oldest first.

    Exact while operators work: it waits for what is being written at its beginning, has all of that, and nothing after
    it. The last line, on standard error, says from which moment on the next export has the rest: give it that as
    --since.

    \b
    Examples:
      tokenfleet audit export > audit.jsonl
      tokenfleet audit export --since 2026-11-01T00:00:00Z --until 2026-12-01T00:00:00Z --output november.jsonl
    """
    import msgspec

    from cli.session import database, load_settings
    from store import audit as log

    wanted = _wanted(since, until, actor, action, target)
    count = 0
    with database(load_settings()) as engine, engine.connect() as connection:
        with connection.begin():
            settled = log.settle(connection)
        for row in log.read_all(connection, wanted, up_to=settled.last_id):
            click.echo(escaped(msgspec.json.encode(row).decode()), file=output)
            count += 1
    end = settled.at if until is None else min(until, settled.at)
    click.echo(
        f"{counted(count, 'action')} written. The next export goes on with --since {end.isoformat()}",
        err=True,
    )


def _wanted(
    since: datetime | None, until: datetime | None, actor: str | None, action: str | None, target: str | None
) -> AuditFilter:
    from store.audit import Action, AuditFilter

    if action is not None and action not in {each.value for each in Action}:
        known = ", ".join(each.value for each in Action)
        raise click.UsageError(f"--action {action!r} is no action of ours; known: {known}.")
    if since is not None and until is not None and since >= until:
        raise click.UsageError("--since is not before --until: nothing could match.")
    if actor is not None and ":" not in actor:
        actor = f"operator:{actor}"
    return AuditFilter(since, until, actor, action, target)


def _line(row: AuditRow) -> tuple[str, ...]:
    return (
        moment(row.at),
        row.actor.removeprefix("operator:"),
        row.host,
        row.action,
        row.target,
        row.reason or "",
        ", ".join(f"{key}: {_text(value)}" for key, value in sorted((row.detail or {}).items())),
    )


def _text(value: object) -> str:
    if isinstance(value, list):
        return " ".join(map(plain, value)) or "any"
    if isinstance(value, dict):
        return " ".join(f"{key}={plain(each)}" for key, each in sorted(value.items())) or "none"
    return plain(value)
