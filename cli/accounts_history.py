"""``tokenfleet accounts history``: the answer first, then everything that it was read from, on one screen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

import click

from cli.accounts_look import identity
from cli.output import (
    counted,
    duration,
    json_option,
    make_console,
    make_table,
    print_facts,
    print_json,
    print_wide,
)
from cli.output import shown as printable
from cli.references import environment_option, find_one
from cli.story import Answer, answer, delivery_text, who

if TYPE_CHECKING:
    from providers import Registry
    from store.audit import AuditRow
    from store.details import AccountDetail
    from store.history import HistoryRow
    from store.incidents import Incident
    from store.story import Story, Told
    from tokenfleet.settings import Settings

MAX_ROWS: Final = 10_000
LINES: Final = 20
"""What fits on one screen below the answer."""
_IN_HISTORY: Final = frozenset({"accounts.pause", "accounts.resume", "accounts.revoke"})
"""Actions that the history of the account tells as well."""


@dataclass(frozen=True, slots=True)
class AccountHistory:
    """What ``accounts history --json`` prints. ``why`` is how the account stands now."""

    account: AccountDetail
    answer: Answer
    why: Sequence[str]
    history: Sequence[HistoryRow]
    history_is_whole: bool
    actions: Sequence[AuditRow]
    app_actions: Sequence[AuditRow]
    incidents: Sequence[Incident]
    told: Sequence[Told]


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the timeline, or a run of neighbours that tell the same; ``at`` is the newest of them."""

    at: datetime
    what: str
    code: str = ""
    status: str = ""
    by: str = ""
    attempt: str = ""
    job: str = ""
    detail: str = ""
    fastest: int | None = None
    slowest: int | None = None
    count: int = 1
    oldest: datetime | None = None

    @property
    def tells(self) -> tuple[str, ...]:
        """What two lines have in common that are one run."""
        return self.what, self.code, self.status, self.detail


@click.command()
@click.argument("account")
@click.option(
    "--limit",
    type=click.IntRange(1, MAX_ROWS),
    default=1000,
    show_default=True,
    help="How many rows to read.",
)
@click.option("--full", is_flag=True, help=f"Print the whole timeline, not only the newest {LINES} lines.")
@environment_option
@json_option
def history(account: str, limit: int, full: bool, environment: str, as_json: bool) -> None:
    """Answer "why did it stop, when, and what did the provider say?" on one screen.

    First the answer, then what happened, newest first: refreshes (those that tell the same on one line), what
    operators did to it and to its app, incidents, and webhooks. `attempt` and `job` are what the logs of workers call
    them. --json has each row whole.

    \b
    Examples:
      tokenfleet accounts history acme/customer-17
      tokenfleet accounts history 4711 --full
    """
    from cli.explain import standing, why
    from cli.meanings import meaning_of
    from cli.session import database, load_settings
    from store.story import read_story

    settings = load_settings()
    with database(settings) as engine, engine.connect() as connection:
        found = find_one(connection, account, environment=environment)
        story = read_story(connection, found, limit=limit)
    answered = answer(found, story, lambda code: meaning_of(code, found.provider, _definitions(settings)))
    if as_json:
        print_json(
            AccountHistory(
                found,
                answered,
                why(found),
                story.history,
                story.is_whole,
                story.actions,
                story.app_actions,
                story.incidents,
                story.told,
            )
        )
        return
    print_facts(
        [
            *identity(found),
            ("what", answered.what),
            ("means", answered.means),
            ("before", answered.before),
            ("others", answered.others),
            ("told", answered.told),
            ("to do", answered.to_do),
            ("now", " ".join(standing(found))),
        ]
    )
    click.echo()
    _print_timeline(found, story, limit=limit, full=full)


def _definitions(settings: Settings) -> Registry | None:
    """A definition with a mistake must not hide a history."""
    from cli.session import load_providers
    from tokenfleet.errors import DefinitionError

    try:
        return load_providers(settings)
    except DefinitionError:
        return None


def _print_timeline(account: AccountDetail, story: Story, *, limit: int, full: bool) -> None:
    lines = list(_folded(sorted(_lines(account, story), key=lambda line: line.at, reverse=True)))
    if not lines:
        click.echo("Nothing has been recorded about it.")
        return
    shown = lines if full else lines[:LINES]
    # Few columns and one sentence, so that it reads on 80 columns; --json has workers and whole job ids.
    table = make_table("when", "what", ">took", "attempt, job")
    for column in (0, 2, 3):
        table.columns[column].no_wrap = True
    for line in shown:
        when = f"{line.at:%m-%d %H:%M:%S}Z"
        cells = (when, _what(line), _took(line), f"{line.attempt} {line.job}".strip())
        table.add_row(*map(printable, cells))
    print_wide(make_console(), table)
    if len(shown) < len(lines):
        click.echo(f"{counted(len(lines) - len(shown), 'older line')} more: --full shows all.", err=True)
    if not story.is_whole:
        click.echo(f"Only the newest {counted(limit, 'row')} were read: --limit reads more.", err=True)


def _lines(account: AccountDetail, story: Story) -> Iterator[Line]:
    for row in story.history:
        yield Line(
            row.at,
            row.kind,
            row.code or "",
            f"{row.status_from or ''} → {row.status_to}".strip() if row.status_to else "",
            who(row.actor),
            "" if row.epoch is None else f"{account.account_id}-{row.epoch}",
            "" if row.job_id is None else str(row.job_id)[:8],
            _details_text(row),
            row.duration_ms,
            row.duration_ms,
        )
    for action in (*story.actions, *story.app_actions):
        if action.action not in _IN_HISTORY:
            reason = f"reason: {action.reason}" if action.reason else ""
            yield Line(action.at, action.action, by=who(action.actor), detail=reason)
    for incident in story.incidents:
        name = f"incident {incident.incident_id}"
        yield Line(incident.opened_at, f"{name} opened", incident.code, detail=incident.kind.value)
        if incident.resolved_at is not None and incident.resolution is not None:
            yield Line(
                incident.resolved_at,
                f"{name} {incident.resolution.value}",
                by=who(incident.actor or ""),
                detail=f"reason: {incident.reason}" if incident.reason else "",
            )
    for told in story.told:
        # Told of in the transaction of what it is about, which has begun before: it stands above that.
        at = told.at + timedelta(seconds=1) if told.finished_at is None else told.finished_at
        yield Line(at, f"told {told.event_type.partition(':')[2]}", detail=delivery_text(told))


def _folded(lines: Sequence[Line]) -> Iterator[Line]:
    """Yield ``lines``, newest first, neighbours that tell the same as one."""
    run: Line | None = None
    for line in lines:
        if run is not None and run.tells == line.tells:
            run = replace(
                run,
                count=run.count + 1,
                oldest=line.at,
                fastest=_least(run.fastest, line.fastest),
                slowest=_most(run.slowest, line.slowest),
            )
            continue
        if run is not None:
            yield run
        run = line
    if run is not None:
        yield run


def _least(one: int | None, other: int | None) -> int | None:
    return other if one is None else one if other is None else min(one, other)


def _most(one: int | None, other: int | None) -> int | None:
    return other if one is None else one if other is None else max(one, other)


def _what(line: Line) -> str:
    times = f" x{line.count:,} in {duration(line.at - line.oldest)}" if line.oldest else ""
    code = f" ({line.code})" if line.code else ""
    by = f"by {line.by}" if line.by.startswith("operator ") else ""
    return ", ".join(filter(None, (f"{line.what}{code}{times}", line.status, by, line.detail)))


def _took(line: Line) -> str:
    if line.fastest is None or line.slowest is None:
        return ""
    if line.fastest == line.slowest:
        return f"{line.fastest:,} ms"
    return f"{line.fastest:,} to {line.slowest:,} ms"


def _details_text(row: HistoryRow) -> str:
    told = {key: value for key, value in sorted((row.detail or {}).items()) if value != row.code}
    return ", ".join(f"{key}: {value}" for key, value in told.items())
