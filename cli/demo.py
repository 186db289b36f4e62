"""``tokenfleet demo``: the main job, shown and judged."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import click
from rich.console import Console
from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError

from cli.fleet import COMMAND, LocalFleet, own_environment
from cli.live import LiveView, Sample, Sampler
from cli.up import stopped_by_signal
from cli.verdict import Check, compare, judge
from embedded.environment import DATABASE_VARIABLES
from sandbox.admin import import_line
from sandbox.config import SandboxConfig
from sandbox.definition import definition_toml
from sandbox.server import SandboxServer
from store import keys
from store.engine import make_engine
from tokenfleet.errors import UserError

SAMPLE_SECONDS: Final = 1.0
SLACK_SECONDS: Final = 10
"""Added to the lifetimes, for the first refreshes to begin."""
ENVIRONMENT: Final = "demo"
CLIENT_ID: Final = "demo-client"


@click.command()
@click.option(
    "--accounts", default=500, show_default=True, type=click.IntRange(1, 20_000), help="How many accounts."
)
@click.option(
    "--lifetime",
    default=60,
    show_default=True,
    type=click.IntRange(5, 3600),
    help="Seconds an access token lives.",
)
@click.option(
    "--lifetimes",
    default=3,
    show_default=True,
    type=click.IntRange(1, 100),
    help="How many of them to watch.",
)
@click.option("--workers", default=2, show_default=True, type=click.IntRange(1, 16), help="Worker processes.")
@click.option("--latency-ms", default=200.0, show_default=True, help="How long the sandbox takes to answer.")
def demo(accounts: int, lifetime: int, lifetimes: int, workers: int, latency_ms: float) -> None:
    """Keep short-lived accounts fresh before your eyes, and judge it.

    Starts a fleet and the sandbox authorization server, which rotates refresh tokens, accepts each once, and
    keeps a ledger. Imports accounts with tokens that live a minute, watches them as a reader would, every
    second, and ends by itself. The exit code is 0 only if the ledger shows that no token was presented twice,
    none was lost, and no reader saw a token about to expire.

    Nothing is left behind: servers, data and processes are gone at the end. With TOKENFLEET_DATABASE_URL and
    TOKENFLEET_REDIS_URL set, those servers are used, in a database of its own that is dropped at the end.

    \b
    Example:
      tokenfleet demo --accounts 500 --lifetime 60 --lifetimes 3
    """
    console = Console()
    config = SandboxConfig(
        access_lifetime_seconds=lifetime,
        latency_seconds=(latency_ms / 1000, latency_ms / 1000),
        client_id=CLIENT_ID,
    )
    with (
        stopped_by_signal(),
        tempfile.TemporaryDirectory(prefix="tokenfleet-demo-") as directory,
        scratch_database(own_environment()) as environ,
        SandboxServer(config) as sandbox,
    ):
        home = Path(directory)
        providers = home / "providers"
        providers.mkdir()
        (providers / "sandbox.toml").write_text(definition_toml(sandbox.url, config))
        # Jobs travel by Redis, under a prefix of the demo's own: a named broker may carry a real fleet's.
        environ.pop("TOKENFLEET_BROKER_URL", None)
        environ |= {
            "TOKENFLEET_PROVIDERS_DIR": str(providers),
            "TOKENFLEET_ALLOW_HTTP_PROVIDERS": "true",
            "TOKENFLEET_REDIS_PREFIX": f"demo-{uuid.uuid4().hex[:8]}:",
        }
        try:
            checks = _run(
                console,
                sandbox,
                config,
                home,
                environ,
                accounts=accounts,
                lifetimes=lifetimes,
                workers=workers,
            )
        except KeyboardInterrupt:
            raise UserError("the demo was stopped before its end: nothing was judged") from None
    _print_checks(console, checks)
    if not all(check.held for check in checks):
        raise UserError("the demo failed: a promise did not hold, see above")


def _run(
    console: Console,
    sandbox: SandboxServer,
    config: SandboxConfig,
    home: Path,
    environ: Mapping[str, str],
    *,
    accounts: int,
    lifetimes: int,
    workers: int,
) -> list[Check]:
    lifetime = config.access_lifetime_seconds
    console.print(
        f"Starting Postgres, Redis, the sandbox at {sandbox.url}, a scheduler, {workers} workers ..."
    )
    with LocalFleet(home, environ, workers=workers) as fleet:
        _command(fleet.environ, _set_app(), text=config.client_secret.reveal())
        lines = [
            import_line(grant, "sandbox", {"environment": ENVIRONMENT})
            for grant in sandbox.issue(*(f"customer-{number}" for number in range(1, accounts + 1)))
        ]
        _command(fleet.environ, ["accounts", "import", "-"], text="\n".join(lines))
        fleet.start()
        engine = make_engine(fleet.settings.database_url, application_name="tokenfleet demo")
        try:
            with engine.begin() as connection:
                vault = keys.open_vault(connection, fleet.settings)
            seconds = lifetime * lifetimes + SLACK_SECONDS
            samples = _watch(console, sandbox, fleet, Sampler(engine, fleet.settings), seconds)
            # Workers finish what is in flight; only then do ledger and database speak of the same moment.
            fleet.supervisor.stop()
            holdings = compare(engine, vault, sandbox.live(), ENVIRONMENT)
            return judge(sandbox.ledger(), holdings, samples, lifetime=lifetime, lifetimes=lifetimes)
        finally:
            engine.dispose()


def _watch(
    console: Console, sandbox: SandboxServer, fleet: LocalFleet, sampler: Sampler, seconds: float
) -> list[Sample]:
    """Sample every second until the time is over; a sample missed because Postgres was away is no sample."""
    samples: list[Sample] = []
    ends = time.monotonic() + seconds

    def footer() -> str:
        ledger = sandbox.ledger()
        return (
            f"the sandbox's ledger: {ledger.refreshes:,} refreshes answered, {ledger.presented_twice} tokens "
            f"presented twice, {ledger.rotations_lost} lost   ends in {max(0, int(ends - time.monotonic()))} s"
        )

    with LiveView("tokenfleet demo", console, footer) as view:
        while time.monotonic() < ends:
            tick = time.monotonic()
            fleet.check()
            with contextlib.suppress(DBAPIError):
                sample = sampler.take()
                samples.append(sample)
                view.show(sample, fleet.states())
            time.sleep(max(0.0, tick + SAMPLE_SECONDS - time.monotonic()))
    return samples


@contextlib.contextmanager
def scratch_database(environ: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """Yield ``environ`` with a database of its own on the server it names, dropped at the end.

    Without a server named, it is yielded as it is. Raises :class:`UserError` when the role may not create
    databases.
    """
    named = next((environ[name] for name in DATABASE_VARIABLES if environ.get(name)), None)
    if named is None:
        yield dict(environ)
        return
    url = make_url(named).set(drivername="postgresql+psycopg")
    name = f"tokenfleet_demo_{uuid.uuid4().hex[:10]}"
    admin = create_engine(url, isolation_level="AUTOCOMMIT", hide_parameters=True)
    try:
        with admin.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {name}"))
    except DBAPIError as error:
        raise UserError(
            f"the demo wants a database of its own on {url.host} and cannot create one: give it a role with "
            "CREATEDB, or unset TOKENFLEET_DATABASE_URL to use the embedded Postgres"
        ) from error
    try:
        yield {**environ, DATABASE_VARIABLES[0]: url.set(database=name).render_as_string(hide_password=False)}
    finally:
        with admin.connect() as connection:
            connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
        admin.dispose()


def _set_app() -> list[str]:
    words = ["apps", "set", "sandbox", "--environment", ENVIRONMENT, "--client-id", CLIENT_ID]
    return [*words, "--client-secret-file", "-"]


def _command(environ: Mapping[str, str], words: list[str], *, text: str) -> None:
    """Run one of our own commands, as an operator would."""
    done = subprocess.run(
        [*COMMAND, *words], env=dict(environ), input=text, text=True, capture_output=True, check=False
    )
    if done.returncode:
        raise UserError(f"'tokenfleet {' '.join(words)}' failed: {done.stderr.strip()}")


def _print_checks(console: Console, checks: list[Check]) -> None:
    width = max(len(check.promise) for check in checks)
    for check in checks:
        mark = "[green]held  [/]" if check.held else "[bold red]BROKEN[/]"
        console.print(f"{mark}  {check.promise:{width}}  {check.figure}", soft_wrap=True, highlight=False)
