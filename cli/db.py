"""``tokenfleet db``: the schema that this release needs."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import click

from cli.output import json_option, print_facts, print_json, reason_option

if TYPE_CHECKING:
    from tokenfleet.settings import Settings


@click.group()
def db() -> None:
    """Create or upgrade the database schema, or check it.

    Run `upgrade` once for a new database and once for each new release, before its schedulers and workers
    start.
    """


@db.command()
@reason_option
def upgrade(reason: str | None) -> None:
    """Bring the database to the schema of this release.

    Safe to run again, and from many machines at once: one of them migrates. Nothing has to stop for it: it
    waits 2 s for a lock, steps back, and tries again for some minutes. Also makes the history partitions of
    the coming days, and the first data keys if key-encryption keys are configured.

    \b
    Example:
      TOKENFLEET_DATABASE_URL=postgresql://me@db/tokenfleet tokenfleet db upgrade
    """
    from cli.bootstrap import upgrade_database
    from cli.session import bare_database, load_settings
    from store.engine import schema_revision

    settings = load_settings()
    with bare_database(settings) as engine, engine.connect() as connection:
        before = schema_revision(connection)
    wanted = upgrade_database(settings, reason=reason)
    if before is not None and before > wanted:
        click.echo(f"The schema is at {before}, newer than this release needs ({wanted}), and serves it.")
    else:
        was = before == wanted
        click.echo(f"The schema was already at {wanted}." if was else f"The schema is now at {wanted}.")
    if settings.access_ring.primary is None or settings.refresh_ring.primary is None:
        click.echo("No keys are configured yet: run 'tokenfleet keys generate' before importing accounts.")
    else:
        click.echo("The data keys of both rings open with the configured key-encryption keys.")


@dataclass(frozen=True, slots=True)
class DatabaseCheck:
    """What ``db check`` found. Revisions and skew are None when Postgres did not answer."""

    ready: bool
    problem: str | None
    revision: str | None = None
    wanted: str | None = None
    clock_skew_seconds: float | None = None


@db.command()
@json_option
@click.pass_context
def check(ctx: click.Context, as_json: bool) -> None:
    """Say whether the database is fit for this release; exit code 1 if it is not.

    For deployment scripts and health checks: changes nothing.

    \b
    Example:
      tokenfleet db check && systemctl restart tokenfleet-worker
    """
    from cli.session import load_settings

    settings = load_settings()
    found = _check(settings)
    if as_json:
        print_json(found)
    else:
        skew = found.clock_skew_seconds
        print_facts(
            [
                ("database", settings.describe()["database"]),
                ("schema", found.revision or ("none" if found.wanted else "")),
                ("needed", found.wanted or ""),
                ("clock skew", "" if skew is None else f"{skew:+.3f} s"),
                ("ready", "yes" if found.ready else "no"),
            ]
        )
        if found.problem:
            click.echo(f"tokenfleet: {found.problem}", err=True)
    if not found.ready:
        ctx.exit(1)


def _check(settings: Settings) -> DatabaseCheck:
    from cli.session import bare_database
    from store import privileges
    from store.engine import SCHEMA_REVISION, check_ready, database_now, schema_revision
    from tokenfleet.errors import UserError

    with bare_database(settings) as engine:
        problem = None
        try:
            check_ready(engine, max_clock_skew=timedelta(seconds=settings.tunables.max_clock_skew_seconds))
        except UserError as error:
            problem = str(error)
            if error.__cause__ is not None:
                # Postgres did not answer; there is nothing to read the rest from.
                return DatabaseCheck(ready=False, problem=problem)
        with engine.connect() as connection:
            skew = time.time() - database_now(connection).timestamp()
            revision = schema_revision(connection)
            problem = problem or privileges.problem(connection)
    return DatabaseCheck(problem is None, problem, revision, SCHEMA_REVISION, round(skew, 3) + 0.0)
