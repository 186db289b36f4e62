"""``tokenfleet``: every command by name. A command is imported when it is called, not before."""

from __future__ import annotations

import signal

import click

from cli.group import Entry, Root, Sections

SECTIONS: Sections = {
    "Try it": {
        "demo": Entry("cli.demo:demo", "Watch a fleet keep short-lived accounts fresh, then see it proved."),
        "up": Entry("cli.up:up", "Run everything on this machine, servers included, until Ctrl-C."),
        "sandbox": Entry("cli.sandbox:sandbox", "Run an authorization server that rotates and misbehaves."),
    },
    "Set it up": {
        "db": Entry("cli.db:db", "Create or upgrade the database schema, or check it."),
        "keys": Entry("cli.keys:keys", "Make key-encryption keys, and see which ones are in use."),
        "providers": Entry("cli.providers:providers", "List, explain and validate provider definitions."),
        "apps": Entry("cli.apps:apps", "Register your OAuth clients: client id, secret and variables."),
    },
    "Run it": {
        "scheduler": Entry("cli.scheduler:scheduler", "Run a scheduler: claims accounts that are due."),
        "worker": Entry("cli.worker:worker", "Run a worker: asks providers and saves what they answer."),
    },
    "Look after it": {
        "accounts": Entry(
            "cli.accounts:accounts", "Import, list, explain, refresh, pause and resume accounts."
        ),
        "webhooks": Entry(
            "cli.webhooks:webhooks", "Tell other systems: endpoints, secrets, deliveries, replays."
        ),
        "incidents": Entry("cli.incidents:incidents", "See provider incidents, and rule on them."),
        "audit": Entry("cli.audit:audit", "Read what operators did: who, what, to what, why."),
        "status": Entry("cli.status:status", "Show on one screen how the fleet is doing."),
        "doctor": Entry("cli.doctor:doctor", "Check everything here and say what to do about each problem."),
    },
}


def _print_version(ctx: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    if not wanted:
        return
    from importlib.metadata import PackageNotFoundError, version

    try:
        installed = version("tokenfleet")
    except PackageNotFoundError:
        installed = "(run from a checkout)"
    click.echo(f"tokenfleet {installed}")
    ctx.exit()


@click.group(
    name="tokenfleet",
    cls=Root,
    sections=SECTIONS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Settings come from TOKENFLEET_… variables; 'tokenfleet doctor' shows what is missing. "
    "Every command explains itself: tokenfleet COMMAND --help.",
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the version and exit.",
)
def root() -> None:
    """Keep your customers' OAuth connections alive.

    Tokenfleet renews every account's access token before it expires and writes it to your Postgres, where
    your services read it.

    \b
    On an empty machine:         tokenfleet demo
    With your own Postgres:      tokenfleet db upgrade, keys generate, apps set, accounts import,
                                 then scheduler and worker
    """


def main() -> None:
    """Run the command that ``sys.argv`` names, and exit."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    root(prog_name="tokenfleet")
