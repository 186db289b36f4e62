"""``tokenfleet up``: everything on this machine, one screen, Ctrl-C stops it all."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import click
from rich.console import Console
from sqlalchemy.exc import DBAPIError

from cli.fleet import LocalFleet, own_environment
from cli.live import LiveView, Sampler
from store.engine import make_engine
from tokenfleet.settings import DEFAULT_HOME

SAMPLE_SECONDS = 1.0


@click.command()
@click.option(
    "--workers",
    default=2,
    show_default=True,
    type=click.IntRange(1, 64),
    help="Worker processes, beside one for webhooks.",
)
@click.option(
    "--schedulers", default=1, show_default=True, type=click.IntRange(1, 8), help="Scheduler processes."
)
def up(workers: int, schedulers: int) -> None:
    """Run a whole fleet on this machine, with a live view. Ctrl-C or SIGTERM stops it all.

    Brings an embedded Postgres and a Redis-compatible server unless TOKENFLEET_DATABASE_URL and
    TOKENFLEET_REDIS_URL are set. Data, keys and logs stay in TOKENFLEET_HOME (~/.tokenfleet), so the next
    'up' continues where this one stopped. In another terminal, the other commands find these servers by
    themselves.

    \b
    Example:
      tokenfleet up --workers 2
    """
    environ = own_environment()
    home = Path(environ.get("TOKENFLEET_HOME") or DEFAULT_HOME).expanduser()
    console = Console()
    console.print("Starting servers and bringing the database up to date ...")
    with (
        stopped_by_signal(),
        LocalFleet(home, environ, workers=workers, schedulers=schedulers, webhook_workers=1) as fleet,
    ):
        fleet.start()
        engine = make_engine(fleet.settings.database_url, application_name="tokenfleet up")
        footer = f"logs in {fleet.log_dir}   Ctrl-C stops everything"
        try:
            with LiveView("tokenfleet up", console, lambda: footer) as view:
                sampler = Sampler(engine, fleet.settings)
                while True:
                    fleet.check()
                    with contextlib.suppress(DBAPIError):
                        view.show(sampler.take(), fleet.states())
                    time.sleep(SAMPLE_SECONDS)
        except KeyboardInterrupt:
            console.print("Stopping: requests in flight are finished first ...")
        finally:
            engine.dispose()


@contextlib.contextmanager
def stopped_by_signal() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does, so that a service manager stops everything too."""

    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
