"""``tokenfleet status``: one screen that tells the truth about the fleet."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from cli.output import json_option, make_console, print_json, print_wide

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from cli.probes import FleetStatus
    from store.unsealing_spikes import Spike
    from tokenfleet.settings import Settings


@click.command()
@json_option
@click.option("--watch", is_flag=True, help="Show it again and again until Ctrl-C.")
@click.option(
    "--every",
    "every_seconds",
    type=click.FloatRange(0.5, 3600),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="How often, with --watch.",
)
@click.pass_context
def status(ctx: click.Context, as_json: bool, watch: bool, every_seconds: float) -> None:
    """Show how the fleet is doing: accounts, what is due and how late, failures, expiry, servers, journals.

    The first thing to look at when something seems wrong; `doctor` then says what to do. Exit code 1 when
    something that every fleet needs is not usable: Postgres, its schema, Redis, the broker or the keys. With
    --watch and --json it prints a document a line.

    \b
    Examples:
      tokenfleet status
      tokenfleet status --watch
    """
    from cli.session import bare_database, load_settings

    settings = load_settings()
    with bare_database(settings) as engine:
        if watch:
            _watch(engine, settings, as_json=as_json, every_seconds=every_seconds)
        found = _read(engine, settings)
    if as_json:
        print_json(found)
    else:
        from cli.status_view import render

        print_wide(make_console(), render(found))
    if found.problems:
        ctx.exit(1)


def _watch(engine: Engine, settings: Settings, *, as_json: bool, every_seconds: float) -> None:
    """Show the status until somebody interrupts."""
    console = make_console()
    if as_json or not console.is_terminal:
        while True:
            found = _read(engine, settings)
            if as_json:
                print_json(found, indent=-1)
            else:
                from cli.status_view import render

                print_wide(console, render(found))
            time.sleep(every_seconds)
    from rich.live import Live

    from cli.status_view import render

    with Live(console=console, auto_refresh=False, screen=True) as live:
        while True:
            live.update(render(_read(engine, settings)), refresh=True)
            time.sleep(every_seconds)


def _read(engine: Engine, settings: Settings) -> FleetStatus:
    """Return the status as it is now; what cannot be read becomes a problem, never an exception."""
    from datetime import timedelta

    from sqlalchemy.exc import DBAPIError

    from cli.failures import sentences_for
    from cli.probes import FleetStatus, circuits, journals, ring_problem, server_problems
    from store.engine import check_ready
    from store.keys import load_wrapped
    from store.overview import read_overview
    from store.unsealing_spikes import open_spikes
    from tokenfleet.errors import UserError

    problems: list[str] = []
    fleet = None
    spikes: list[Spike] = []
    try:
        check_ready(engine, max_clock_skew=timedelta.max)
        with engine.connect() as connection:
            fleet = read_overview(connection)
            wrapped = load_wrapped(connection)
            spikes = open_spikes(connection)
        rings = (settings.access_ring, settings.refresh_ring)
        problems += filter(None, (ring_problem(ring, wrapped) for ring in rings))
    except (UserError, DBAPIError) as error:
        sentences = sentences_for(error)
        if sentences is None:
            raise
        problems += sentences
    problems += server_problems(settings)
    opened = circuits(settings, [app.app_id for app in fleet.apps], fleet.at) if fleet else None
    return FleetStatus(fleet, opened, journals(settings.journal_dir), problems, spikes)
