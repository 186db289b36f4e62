"""A whole fleet on this machine: servers, schema, keys, scheduler and workers, started and stopped as one.

``up`` and ``demo`` are this plus a view. The processes are the same commands that a Procfile starts, with the
same environment variables; nothing here is a shortcut through the code.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from cli.bootstrap import prepare_database
from embedded.environment import Environment
from embedded.ports import free_port
from embedded.supervisor import ChildState, Supervisor
from tokenfleet.jobs import REFRESH_QUEUE, WEBHOOK_QUEUE
from tokenfleet.settings import Settings

DRAIN_SECONDS: Final = 120.0
"""Longer than a worker's stop may take (``workers.engine.longest_stop_seconds``), so that it loses no answer."""
COMMAND: Final = (sys.executable, "-m", "cli")


class LocalFleet:
    """Everything on this machine, from ``with`` to its end. Leaves no process behind."""

    def __init__(
        self,
        home: Path,
        environ: Mapping[str, str],
        *,
        workers: int,
        schedulers: int = 1,
        webhook_workers: int = 0,
    ) -> None:
        """``environ`` may name servers and settings; what it lacks is brought along under ``home``."""
        self._environment = Environment(home, environ)
        self._workers = workers
        self._schedulers = schedulers
        self._webhook_workers = webhook_workers
        self._ends = ExitStack()
        self.environ: dict[str, str] = {}
        self.settings: Settings

    def __enter__(self) -> Self:
        with ExitStack() as ends:
            ends.enter_context(self._environment)
            self.environ = {"TOKENFLEET_LOG_FORMAT": "json", **self._environment.environ()}
            self.settings = prepare_database(self.environ)
            self.supervisor = ends.enter_context(
                Supervisor(self._environment.log_dir, grace_seconds=DRAIN_SECONDS)
            )
            self._ends = ends.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ends.close()

    @property
    def log_dir(self) -> Path:
        """Where every process of the fleet writes its log."""
        return self._environment.log_dir

    def start(self) -> None:
        """Start scheduler and workers, each with /metrics and /healthz on a free port."""
        for index in range(self._schedulers):
            self._launch(f"scheduler-{index + 1}", "scheduler")
        for index in range(self._workers):
            self._launch(f"worker-{index + 1}", "worker", "--queues", REFRESH_QUEUE)
        for index in range(self._webhook_workers):
            self._launch(f"webhooks-{index + 1}", "worker", "--queues", WEBHOOK_QUEUE)

    def check(self) -> None:
        """Raise ``UserError`` with its last words when a process could not even start; revive servers."""
        self.supervisor.check()
        self._environment.revive()

    def states(self) -> tuple[ChildState, ...]:
        """Return how every process is."""
        return self.supervisor.states()

    def _launch(self, name: str, *command: str) -> None:
        environ = {**self.environ, "TOKENFLEET_METRICS_PORT": str(free_port())}
        self.supervisor.start(name, (*COMMAND, *command), environ=environ)


def own_environment() -> dict[str, str]:
    """Return this process's environment, to hand on to the fleet's processes."""
    return dict(os.environ)
