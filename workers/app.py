"""The worker's Celery application, for ``tokenfleet worker`` and for plain ``celery -A workers.app worker``."""

from __future__ import annotations

import functools
import os
import signal
import sys
import threading
from types import FrameType
from typing import Any, Final

from celery import Celery, signals
from celery.platforms import EX_OK
from celery.worker import state

from tokenfleet import telemetry
from tokenfleet.broker import make_celery
from tokenfleet.errors import UserError
from tokenfleet.jobs import ON_DEMAND_QUEUE, REFRESH_QUEUE
from tokenfleet.settings import Settings
from tokenfleet.telemetry import Event
from workers.bootstrap import Process
from workers.tasks import register

STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)


def make_worker(settings: Settings) -> tuple[Celery, Process]:
    """Return the Celery application with every task registered, and the process behind it.

    The process starts on Celery's ``worker_init``, before any job is fetched, and stops after the last one
    has finished (warm shutdown). From the first signal to stop on, no request starts; each of them, however
    often it comes, means the same warm shutdown. Celery would drop the requests in flight at a second Ctrl-C
    and at SIGQUIT, and with them the only copy of rotated tokens; who wants that has SIGKILL.
    """
    app = make_celery(settings)
    process = Process(settings)
    register(app, process)

    def on_init(**_: Any) -> None:
        try:
            # By now Celery has chosen the queues, whichever command line named them. Who takes refreshes takes those
            # that somebody waits for as well: a command line of the release before does not name their queue.
            queues = app.amqp.queues
            if REFRESH_QUEUE in queues.consume_from and ON_DEMAND_QUEUE not in queues.consume_from:
                queues.select_add(queues[ON_DEMAND_QUEUE])
            process.start(tuple(queues.consume_from))
        except UserError as error:
            sys.stderr.write(f"tokenfleet worker: {error}\n")
            raise SystemExit(1) from None
        except Exception as error:
            # SystemExit, because Celery logs any Exception of a signal handler and then works on without us.
            telemetry.alarm(Event.PROCESS_FAILED, error=type(error).__name__)
            raise SystemExit(1) from error

    def stop(_number: int, _frame: FrameType | None) -> None:
        process.stop_asking()
        state.should_stop = EX_OK

    def on_ready(**_: Any) -> None:
        # Celery has set handlers of its own by now.
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                signal.signal(number, stop)

    def on_shutdown(**_: Any) -> None:
        process.stop()

    signals.setup_logging.connect(lambda **_: None, weak=False)
    signals.worker_init.connect(on_init, weak=False)
    signals.worker_ready.connect(on_ready, weak=False)
    signals.worker_shutdown.connect(on_shutdown, weak=False)
    return app, process


@functools.cache
def _from_environment() -> Celery:
    try:
        settings = Settings.from_environ(os.environ)
    except UserError as error:
        sys.stderr.write(f"tokenfleet worker: {error}\n")
        raise SystemExit(1) from None
    telemetry.configure_logging(settings.tunables)
    return make_worker(settings)[0]


def __getattr__(name: str) -> Celery:
    """Build ``app`` from the environment when ``celery -A workers.app`` asks for it."""
    if name not in {"app", "celery"}:
        raise AttributeError(name)
    return _from_environment()
