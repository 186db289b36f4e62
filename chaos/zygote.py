"""A process that has imported everything and forks real workers and schedulers from itself.

A thousand deaths in ten minutes need a thousand starts, and importing Celery, SQLAlchemy and aiohttp anew costs
more than a second of CPU each time. A forked child is a process of its own that runs the very commands
``tokenfleet worker`` and ``tokenfleet scheduler``; only its imports were done before.

Promise: the zygote has no thread, no connection and no event loop, so a fork of it is sound. It ends when its
standard input is closed, and its children end with it, however it ends (PR_SET_PDEATHSIG).

It reads orders from standard input and writes notices to standard output, a line of JSON each.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import importlib
import os
import select
import signal
import sys
import threading
from pathlib import Path
from typing import Any, Final

import httpx

from chaos import points, witness
from chaos.orders import Deed, Notice, Order, State
from chaos.points import Role
from chaos.witness import Step, Witness

MODULES: Final = (
    "aiohttp", "celery.apps.worker", "celery.app.amqp", "celery.app.control", "celery.app.events",
    "celery.app.log", "celery.app.utils", "celery.app.trace", "celery.backends.base", "celery.backends.redis",
    "celery.concurrency.thread", "celery.events.state", "celery.fixups.django", "celery.loaders.app",
    "celery.worker.autoscale", "celery.worker.components", "celery.worker.consumer", "celery.worker.loops",
    "celery.worker.strategy", "cli.probes", "cli.scheduler", "cli.session", "cli.worker", "embedded.environment",
    "httpx_aiohttp", "kombu.transport.redis", "kombu.transport.pyamqp", "psycopg.types.array", "redis.asyncio",
    "scheduler.process", "sqlalchemy.dialects.postgresql.psycopg", "store.engine", "tokenfleet.telemetry",
    "uvloop", "workers.app", "workers.bootstrap", "workers.engine",
)  # fmt: skip
"""What a worker or a scheduler has imported once it works."""

_PR_SET_PDEATHSIG: Final = 1
_LOOK_SECONDS: Final = 1.0


def main() -> None:
    """Import, then fork children as ordered until standard input is closed."""
    for module in MODULES:
        importlib.import_module(module)
    if len(list(Path("/proc/self/task").iterdir())) != 1:
        raise RuntimeError("a module has started a thread: a fork of this process is unsound")
    _read_certificates()
    gc.collect()
    gc.freeze()
    _serve()


def _read_certificates() -> None:
    """Read the certificate authorities once for all children: that was half of what a start costs."""
    cached = functools.cache(httpx.create_ssl_context)
    cached()
    setattr(httpx, "create_ssl_context", cached)  # noqa: B010


def _serve() -> None:
    awake, wake = os.pipe()
    for descriptor in (awake, wake):
        os.set_blocking(descriptor, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    pending = b""
    _tell(Notice(0, State.READY))
    while True:
        readable, _, _ = select.select([0, awake], [], [], _LOOK_SECONDS)
        if awake in readable:
            os.read(awake, 4096)
        _look_after_children()
        if 0 not in readable:
            continue
        data = os.read(0, 65536)
        if not data:
            return
        *lines, pending = (pending + data).split(b"\n")
        for line in lines:
            _fork(Order.parse(line), prctl)


def _fork(order: Order, prctl: Any) -> None:
    owner = os.getpid()
    pid = os.fork()
    if pid:
        _tell(Notice(pid, State.STARTED, number=order.number))
        return
    status = 70
    try:
        prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != owner:
            os._exit(status)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        status = _live(order)
    except BaseException as error:  # noqa: BLE001
        # Whatever it was, this is a copy of the zygote and must not go on as one.
        sys.stderr.write(f"chaos {order.role}: {type(error).__name__}: {error}\n")
    finally:
        sys.stderr.flush()
        os._exit(status)


def _live(order: Order) -> int:
    """Be the process that ``order`` describes; returns its exit code, if it lives that long."""
    log = os.open(order.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.clear()
    os.environ.update(order.environ)
    if order.witness is not None:
        seen = Witness(Path(order.witness))
        if order.role is Role.WORKER:
            witness.install(seen)
        if order.point is not None:
            arm(order, seen)
    if order.role is Role.WORKER:
        from cli.worker import worker as command

        words = ["--queues", "refresh"]
    else:
        from cli.scheduler import scheduler as command

        words = []
    code = command.main(args=words, prog_name=f"tokenfleet {order.role}", standalone_mode=False)
    return code if isinstance(code, int) else 0


def arm(order: Order, seen: Witness) -> None:
    """Let this process die, or freeze, at the point that ``order`` names."""
    assert order.point is not None
    number = signal.SIGKILL if order.deed is Deed.DIE else signal.SIGSTOP

    def strike() -> None:
        seen.note(Step.STRUCK)
        # To this very thread, which then does not take another step. A signal to the process is taken by its main
        # thread, and meanwhile this one would go on for a moment.
        signal.pthread_kill(threading.get_ident(), number)

    points.install(points.POINTS[order.point], strike, nth=order.nth)


def _look_after_children() -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED | os.WCONTINUED)
        except ChildProcessError:
            return
        if pid == 0:
            return
        if os.WIFSTOPPED(status):
            _tell(Notice(pid, State.STOPPED))
        elif os.WIFCONTINUED(status):
            _tell(Notice(pid, State.CONTINUED))
        else:
            _tell(Notice(pid, State.ENDED, code=os.waitstatus_to_exitcode(status)))


def _tell(notice: Notice) -> None:
    os.write(1, notice.line())


if __name__ == "__main__":
    main()
