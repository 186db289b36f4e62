"""``tokenfleet scheduler``: one scheduler process."""

from __future__ import annotations

import click


@click.command()
def scheduler() -> None:
    """Run a scheduler: it claims accounts that are due and sends them to workers as jobs.

    Run one, or several for redundancy: they share the work and need no leader. SIGTERM or Ctrl-C ends it
    after the batch at hand; nothing is lost if it is killed.

    \b
    Example:
      tokenfleet scheduler
    """
    from cli.session import load_settings
    from scheduler.process import serve
    from tokenfleet import telemetry

    settings = load_settings()
    telemetry.configure_logging(settings.tunables)
    serve(settings)
