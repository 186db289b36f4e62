"""Keeps the processes of ``tokenfleet up`` running, and ends them all.

Promise: a child that crashes is started again, with growing pauses and in plain sight; a child that cannot
even begin is reported with its own last words instead; none is left behind, not even by a killed owner
(:mod:`embedded.process`). SIGTERM comes first, so workers finish what is in flight.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from embedded.process import Launch, OwnedProcess, fresh_log
from tokenfleet.errors import UserError

GRACE_SECONDS: Final = 30.0
"""How long children get to finish after SIGTERM."""
SETTLING_SECONDS: Final = 3.0
"""A first run that ends by itself sooner is a mistake to report, not a crash to repeat."""
SHORTEST_PAUSE_SECONDS: Final = 0.5
LONGEST_PAUSE_SECONDS: Final = 30.0
"""Pauses double between crashes; a run longer than this starts the count anew."""


@dataclass(frozen=True, slots=True)
class ChildState:
    """What can be seen of a child. ``pid`` is None while it is not running."""

    name: str
    pid: int | None
    restarts: int
    last_end: str | None
    log_file: Path


class Supervisor:
    """Owner of named child processes; also a context manager that stops them at its end."""

    def __init__(self, log_dir: Path, *, grace_seconds: float = GRACE_SECONDS) -> None:
        self._log_dir = log_dir
        self._grace_seconds = grace_seconds
        self._children: dict[str, _Child] = {}

    def start(
        self, name: str, argv: Sequence[str], *, environ: Mapping[str, str], cwd: Path | None = None
    ) -> None:
        """Start a child; its output goes to ``<name>.log``. Does not wait: see :meth:`check`.

        Raises :class:`UserError` when the program cannot be executed, ValueError for a name in use.
        """
        if name in self._children:
            raise ValueError(f"there is a child named {name} already")
        try:
            log_file = fresh_log(self._log_dir / f"{name}.log")
            child = _Child(name, Launch(argv=tuple(argv), environ=environ, log_file=log_file, cwd=cwd))
        except OSError as error:
            raise UserError(f"{name} could not be started: {error.filename}: {error.strerror}") from error
        self._children[name] = child

    def check(self) -> None:
        """Raise :class:`UserError`, with the end of its log, if a child ended right after its first start."""
        for child in self._children.values():
            child.check()

    def states(self) -> tuple[ChildState, ...]:
        """Return how every child is, in the order of their starts."""
        return tuple(child.state() for child in self._children.values())

    def stop(self) -> None:
        """End all children: SIGTERM to all at once, SIGKILL to those still there after the grace."""
        children = list(self._children.values())
        for child in children:
            child.ask_to_stop()
        deadline = time.monotonic() + self._grace_seconds
        for child in children:
            child.end(within_seconds=max(0.0, deadline - time.monotonic()))
        self._children.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class _Child:
    """One name, many runs. Its thread waits for the end of a run and begins the next."""

    def __init__(self, name: str, launch: Launch) -> None:
        self._name = name
        self._launch = launch
        self._guard = threading.Lock()
        self._stopping = threading.Event()
        self._restarts = 0
        self._last_end: str | None = None
        self._failure: str | None = None
        self._process: OwnedProcess | None = OwnedProcess(launch)
        self._thread = threading.Thread(
            target=self._keep_running, args=(self._process,), name=f"child-{name}", daemon=True
        )
        self._thread.start()

    def check(self) -> None:
        with self._guard:
            if self._failure is not None:
                raise UserError(self._failure)

    def state(self) -> ChildState:
        with self._guard:
            return ChildState(
                name=self._name,
                pid=None if self._process is None else self._process.pid,
                restarts=self._restarts,
                last_end=self._last_end,
                log_file=self._launch.log_file,
            )

    def ask_to_stop(self) -> None:
        with self._guard:
            self._stopping.set()
            if self._process is not None:
                self._process.ask_to_stop(signal.SIGTERM)

    def end(self, *, within_seconds: float) -> None:
        # After ask_to_stop no new run begins, so this process is the last one.
        with self._guard:
            process = self._process
        if process is not None and not process.wait(within_seconds):
            process.stop(())
        self._thread.join()

    def _keep_running(self, process: OwnedProcess) -> None:
        pause_seconds = SHORTEST_PAUSE_SECONDS
        run: OwnedProcess | None = process
        first = True
        while not self._stopping.is_set():
            began = time.monotonic()
            if run is not None:
                run.wait()
                lasted_seconds = time.monotonic() - began
                if self._record_end(run, settled=not first or lasted_seconds >= SETTLING_SECONDS):
                    return
                if lasted_seconds > LONGEST_PAUSE_SECONDS:
                    pause_seconds = SHORTEST_PAUSE_SECONDS
            first = False
            self._stopping.wait(pause_seconds)
            pause_seconds = min(2 * pause_seconds, LONGEST_PAUSE_SECONDS)
            run = self._begin_again()

    def _record_end(self, run: OwnedProcess, *, settled: bool) -> bool:
        """Note how a run ended, and tell whether it was the last."""
        code = run.exit_code or 0
        with self._guard:
            self._process = None
            self._last_end = f"exit code {code}" if code >= 0 else f"ended by {_signal_name(-code)}"
            if self._stopping.is_set():
                return True
            # A signal is somebody's doing, from outside; only an exit of its own speaks of a mistake.
            if not settled and code >= 0:
                self._failure = (
                    f"{self._name} ended at once ({self._last_end}); its last words "
                    f"({self._launch.log_file}):\n{run.log_tail()}"
                )
                return True
        return False

    def _begin_again(self) -> OwnedProcess | None:
        with self._guard:
            if self._stopping.is_set():
                return None
            self._restarts += 1
            try:
                self._process = OwnedProcess(self._launch)
            except OSError as error:
                # The program is being replaced, or the machine is out of processes: the next pause may help.
                self._last_end = f"{error.filename}: {error.strerror}"
                self._process = None
            return self._process


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
