"""The harness's end of the zygote: real worker and scheduler processes, and what became of each."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from chaos.orders import Deed, Notice, Order, State
from chaos.points import Role
from tokenfleet.errors import UserError

ROOT: Final = Path(__file__).resolve().parent.parent
READY_SECONDS: Final = 60.0
STOP_SECONDS: Final = 30.0
WITNESS_SUFFIX: Final = ".witness"
_PORTION_BYTES: Final = 65536


@dataclass(slots=True, eq=False)
class Child:
    """One process. ``exit_code`` is None while it lives, negative for the signal that ended it."""

    order: Order
    began: float
    """POSIX seconds, as all moments here."""
    pid: int = 0
    exit_code: int | None = None
    ended: float | None = None
    killed: float | None = None
    """When the harness sent it SIGKILL, if it did."""
    stopped: float | None = None
    """When it was frozen, if it is."""

    @property
    def is_alive(self) -> bool:
        """Whether it has not ended; a frozen process has not."""
        return self.exit_code is None

    @property
    def was_killed(self) -> bool:
        """Whether SIGKILL ended it."""
        return self.exit_code == -signal.SIGKILL

    @property
    def witness(self) -> Path:
        """Where it wrote down what it did."""
        assert self.order.witness is not None
        return Path(self.order.witness)


class Processes:
    """The zygote and all that it forked, from ``with`` to its end. Leaves no process behind.

    ``directory`` takes the log and the witnesses; without ``witnesses`` the processes write down nothing.
    """

    def __init__(self, directory: Path, *, witnesses: bool = True) -> None:
        self._directory = directory
        self._witnesses = witnesses
        self.log: Final = directory / "fleet.log"
        self.children: list[Child] = []
        self._by_pid: dict[int, Child] = {}
        self._changed = threading.Condition()
        self._is_ready = False

    def __enter__(self) -> Self:
        self._directory.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._zygote = subprocess.Popen(
                [sys.executable, "-m", "chaos.zygote"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=ROOT,
                start_new_session=True,
            )
        self._listener = threading.Thread(target=self._listen, name="zygote", daemon=True)
        self._listener.start()
        with self._changed:
            ready = self._changed.wait_for(
                lambda: self._is_ready or self._zygote.poll() is not None, READY_SECONDS
            )
        if not ready or not self._is_ready:
            self.__exit__(None, None, None)
            raise UserError(f"the zygote did not come up; its last words are in {self.log}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._zygote.stdin is not None
        assert self._zygote.stdout is not None
        for child in self.children:
            if child.is_alive:
                self.signal(child, signal.SIGKILL)
        with suppress(BrokenPipeError):
            self._zygote.stdin.close()
        try:
            self._zygote.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._zygote.kill()
            self._zygote.wait()
        self._listener.join(STOP_SECONDS)
        self._zygote.stdout.close()

    def start(
        self,
        role: Role,
        environ: Mapping[str, str],
        *,
        point: str | None = None,
        nth: int = 1,
        deed: Deed = Deed.DIE,
    ) -> Child:
        """Fork one process and return it, without waiting until it works."""
        number = len(self.children)
        witness = None
        if self._witnesses:
            witness = str(self._directory / f"{number:05d}-{role}{WITNESS_SUFFIX}")
        assert witness is not None or point is None, "who dies at a point writes down what it held"
        order = Order(number, role, dict(environ), str(self.log), witness, point, nth, deed)
        child = Child(order, time.time())
        assert self._zygote.stdin is not None
        with self._changed:
            self.children.append(child)
            self._zygote.stdin.write(order.line())
            self._zygote.stdin.flush()
            if not self._changed.wait_for(lambda: child.pid, READY_SECONDS):
                raise UserError(f"the zygote does not fork; see {self.log}")
        return child

    def alive(self, role: Role) -> list[Child]:
        """Return the processes of one kind that have not ended."""
        return [child for child in self.children if child.is_alive and child.order.role is role]

    def signal(self, child: Child, number: signal.Signals) -> None:
        """Send a signal, if there still is such a process."""
        with self._changed:
            # The zygote reaps before it tells, but pids come round only after some 30,000 others.
            if child.is_alive:
                if number == signal.SIGKILL:
                    child.killed = time.time()
                with suppress(ProcessLookupError):
                    os.kill(child.pid, number)

    def wait(self, child: Child, seconds: float = STOP_SECONDS) -> int:
        """Return the exit code once it has ended. Raises :class:`TimeoutError`."""
        with self._changed:
            if not self._changed.wait_for(lambda: child.exit_code is not None, seconds):
                raise TimeoutError(f"{child.order.role} {child.pid} has not ended within {seconds:g} s")
        assert child.exit_code is not None
        return child.exit_code

    def stop(self, *children: Child) -> list[int]:
        """Send SIGTERM to all, wait for their ends, and return their exit codes."""
        for child in children:
            self.signal(child, signal.SIGCONT)
            self.signal(child, signal.SIGTERM)
        return [self.wait(child) for child in children]

    def _listen(self) -> None:
        assert self._zygote.stdout is not None
        for line in self._zygote.stdout:
            notice = Notice.parse(line)
            with self._changed:
                self._take(notice)
                self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()

    def _take(self, notice: Notice) -> None:
        if notice.state is State.READY:
            self._is_ready = True
            return
        if notice.number is not None:
            child = self.children[notice.number]
            child.pid = notice.pid
            self._by_pid[notice.pid] = child
            return
        child = self._by_pid[notice.pid]
        match notice.state:
            case State.STOPPED:
                child.stopped = time.time()
            case State.CONTINUED:
                child.stopped = None
            case _:
                child.exit_code, child.ended = notice.code, time.time()
                del self._by_pid[notice.pid]


def copy_written(source: str, target: str) -> None:
    """Copy a log, or what a process that has ended wrote into its witness.

    A witness is sparse, made with room for a million lines; a copy of all of it would take the whole room.
    """
    if not source.endswith(WITNESS_SUFFIX):
        shutil.copy2(source, target)
        return
    with Path(source).open("rb") as written, Path(target).open("wb") as kept:
        while portion := written.read(_PORTION_BYTES):
            lines, end, _ = portion.partition(b"\0")
            kept.write(lines)
            if end:
                break
    shutil.copymode(source, target)
