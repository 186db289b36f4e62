"""``tokenfleet worker``: one worker process, without Celery's own command line.

Celery's order, on which ``workers.app`` relies (Celery 5.7, ``celery/worker/worker.py``): ``worker_init``
is sent while the worker is built, before the pool and the consumer exist; on a warm shutdown the consumer
stops fetching, the pool waits for running tasks, and ``worker_shutdown`` is sent after that. A cold
shutdown sends none, so a running worker has none: ``workers.app`` takes the signals over.
"""

from __future__ import annotations

import signal
import warnings
from types import FrameType
from typing import Any, Final

import click

STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


@click.command()
@click.option(
    "--queues",
    metavar="NAME,...",
    help="Queues to serve, separated by commas [default: all of them].",
)
@click.option(
    "--concurrency",
    type=click.IntRange(1, 256),
    help="Jobs at once, each of up to 100 accounts [default: TOKENFLEET_WORKER_THREADS].",
)
@click.option("--hostname", help="Name of this worker for Celery, such as worker1@%h.")
@click.pass_context
def worker(ctx: click.Context, queues: str | None, concurrency: int | None, hostname: str | None) -> None:
    """Run a worker: it asks providers for new tokens and saves what they answer, or delivers webhooks.

    One process uses one core; run as many as you have cores to spare. SIGTERM or Ctrl-C, once or often, ends
    it when what is in flight is saved. It can be killed at any moment: what it had on disk is saved by the
    next worker on this machine.

    \b
    Example:
      tokenfleet worker --queues refresh
      tokenfleet worker --queues webhooks
    """
    from celery import signals
    from celery.platforms import EX_OK

    from cli.probes import broker_problem
    from cli.session import load_settings
    from tokenfleet import telemetry
    from tokenfleet.errors import UserError
    from workers.app import make_worker

    names = _queues(queues)
    settings = load_settings()
    telemetry.configure_logging(settings.tunables)
    if settings.broker_url != settings.redis_url and (problem := broker_problem(settings)) is not None:
        # Redis is looked at by the worker itself; a broker of its own would be waited for without a word.
        raise UserError(problem)
    app, _ = make_worker(settings)
    asked_to_stop: list[str] = []

    def on_shutting_down(how: str, **_: Any) -> None:
        asked_to_stop.append(how)

    signals.worker_shutting_down.connect(on_shutting_down, weak=False)
    _remember_early_signals()
    with warnings.catch_warnings():
        # Celery's warning about root is about pickle, which is not accepted here, and names an option of its
        # own command line.
        warnings.filterwarnings("ignore", message=r"(?s).*superuser privileges")
        process = app.Worker(
            hostname=hostname,
            queues=names,
            concurrency=concurrency,
            quiet=True,
            without_mingle=True,
            without_gossip=True,
            without_heartbeat=True,
        )
        process.start()
    # Celery calls an interrupted worker failed, even when everything was finished first.
    stopped_warmly = set(asked_to_stop) == {"Warm"}
    ctx.exit(EX_OK if stopped_warmly else process.exitcode or EX_OK)


def _remember_early_signals() -> None:
    """Let a worker that is told to stop while it starts finish starting, then stop as it always does.

    Celery listens to signals only after ``worker_init``, where the journal and the engine begin. A second signal
    of the same kind has its usual effect.
    """
    from celery.platforms import EX_OK
    from celery.worker import state

    def remember(number: int, _frame: FrameType | None) -> None:
        state.should_stop = EX_OK
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

    for number in STOP_SIGNALS:
        signal.signal(number, remember)


def _queues(text: str | None) -> list[str]:
    """Return the queues to serve. Raises :class:`click.UsageError` for one that nothing is sent to."""
    from tokenfleet.jobs import QUEUES

    if text is None:
        return list(QUEUES)
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    unknown = [name for name in names if name not in QUEUES]
    if unknown or not names:
        raise click.UsageError(
            f"--queues {text!r}: {', '.join(unknown) or 'nothing'} is no queue of ours; known: "
            f"{', '.join(QUEUES)}."
        )
    return names
