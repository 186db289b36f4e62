"""``tokenfleet accounts history``: the answer first, then everything that it was read from, on one screen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final

import click

from cli.accounts_look import identity
from cli.output import (
    clipped,
    counted,
    json_option,
    make_console,
    make_table,
    moment,
    print_facts,
    print_json,
    print_wide,
)
from cli.output import shown as printable
from cli.references import environment_option, find_one
from cli.story import Answer, answer
from cli.timeline import timeline

if TYPE_CHECKING:
    from providers import Registry
    from store.audit import AuditRow
    from store.details import AccountDetail
    from store.history import HistoryRow
    from store.incidents import Incident
    from store.story import Story, Told
    from tokenfleet.settings import Settings

MAX_ROWS: Final = 100_000
LINES: Final = 20
"""What fits on one screen below the answer."""
FACT_CHARACTERS: Final = 300


@dataclass(frozen=True, slots=True)
class AccountHistory:
    """What ``accounts history --json`` prints. ``why`` is how the account stands now."""

    account: AccountDetail
    answer: Answer
    why: Sequence[str]
    history: Sequence[HistoryRow]
    history_is_whole: bool
    history_kept_since: datetime | None
    actions: Sequence[AuditRow]
    app_actions: Sequence[AuditRow]
    incidents: Sequence[Incident]
    told: Sequence[Told]


@click.command()
@click.argument("account")
@click.option(
    "--limit",
    type=click.IntRange(1, MAX_ROWS),
    default=10_000,
    show_default=True,
    help="How many rows to read.",
)
@click.option("--full", is_flag=True, help=f"Print the whole timeline, not only {LINES} lines.")
@environment_option
@json_option
def history(account: str, limit: int, full: bool, environment: str, as_json: bool) -> None:
    """Answer "why did it stop, when, and what did the provider say?" on one screen.

    First the answer, then what happened, newest first: refreshes (those that tell the same on one line, and where
    there are too many lines for a screen all neighbours that failed, or succeeded), what operators did to it and to
    its app, incidents, and webhooks. `attempt` and `job` are what the logs of workers call them; times are UTC.
    --json has each row whole.

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
                story.kept_since,
                story.actions,
                story.app_actions,
                story.incidents,
                story.told,
            )
        )
        return
    print_facts(
        [
            *((name, clipped(value, FACT_CHARACTERS)) for name, value in identity(found)),
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
    lines = timeline(account, story, room=None if full else LINES)
    if not lines:
        click.echo("Nothing has been recorded about it.")
    else:
        shown = lines if full else lines[:LINES]
        # Few columns and one sentence, so that it reads on 80 columns; --json has workers and whole job ids.
        table = make_table("when", "what", ">took", "attempt, job")
        for column in (0, 2, 3):
            table.columns[column].no_wrap = True
        for line in shown:
            when = _when(line.at, account.database_now)
            cells = (when, line.told, line.took, f"{line.attempt} {line.job}".strip())
            table.add_row(*map(printable, cells))
        print_wide(make_console(), table)
        if len(shown) < len(lines):
            click.echo(f"{counted(len(lines) - len(shown), 'older line')} more: --full shows all.", err=True)
    if not story.is_whole:
        click.echo(f"Only the newest {counted(limit, 'row')} were read: --limit reads more.", err=True)
    elif story.kept_since is not None:
        click.echo(
            f"The account is older than its history: what was before {moment(story.kept_since)} is no longer kept "
            "(TOKENFLEET_HISTORY_RETENTION_DAYS)."
        )


def _when(at: datetime, now: datetime) -> str:
    # The year where it is another one: operators' actions are kept for ever.
    return f"{at:%m-%d %H:%M:%S}Z" if at.year == now.year else f"{at:%Y-%m-%d %H:%M}Z"
