"""Processes this program owns.

Invariant: an owned process does not outlive its owner, even an owner ended by SIGKILL. On Linux the kernel
sees to it (prctl(2), PR_SET_PDEATHSIG); elsewhere the next start on the same directory ends what is left
(:mod:`embedded.leftovers`).
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

TAIL_LINES: Final = 15
TAIL_BYTES: Final = 8192

_PR_SET_PDEATHSIG: Final = 1
# Bound here, in the parent: between fork and exec only this one call is made.
_PRCTL = ctypes.CDLL(None, use_errno=True).prctl if sys.platform == "linux" else None


@dataclass(frozen=True, slots=True)
class Launch:
    """What to start, and where its output goes. ``uid`` and ``gid`` make the child another account."""

    argv: tuple[str, ...]
    environ: Mapping[str, str] = field(repr=False)
    log_file: Path
    cwd: Path | None = None
    death_signal: signal.Signals = signal.SIGKILL
    uid: int | None = None
    gid: int | None = None


@dataclass(frozen=True, slots=True)
class StopStep:
    """A signal, and how long the process gets to obey it."""

    signal: signal.Signals
    patience_seconds: float


class _ForkingThread:
    """The thread that forks for everybody, to the end of this process.

    The kernel ties PR_SET_PDEATHSIG to the *thread* that forked, not to its process: a server started from a
    short-lived thread would die with that thread.
    """

    def __init__(self) -> None:
        self._begin()
        # A forked copy of this process has the executor's memory but not its thread, and would wait for ever.
        os.register_at_fork(after_in_child=self._begin)

    def spawn(self, launch: Launch) -> tuple[subprocess.Popen[bytes], int]:
        return self._executor.submit(_spawn, launch).result()

    def _begin(self) -> None:
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="embedded-fork")


_FORKING_THREAD: Final = _ForkingThread()


class OwnedProcess:
    """One run of a program, in a session of its own, so that a terminal's Ctrl-C reaches its owner only."""

    def __init__(self, launch: Launch) -> None:
        """Start ``launch``. Raises :class:`OSError` when the program cannot be executed."""
        self._log_file = launch.log_file
        self._popen, self._log_start = _FORKING_THREAD.spawn(launch)
        self._group_lock = threading.Lock()
        self._group_ended = False
        self.pid: Final = self._popen.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; a negative number is the signal that ended it."""
        code = self._popen.poll()
        if code is not None:
            self._end_group()
        return code

    def wait(self, seconds: float | None = None) -> bool:
        """Wait for the end, for at most ``seconds``, and tell whether it came."""
        try:
            self._popen.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        self._end_group()
        return True

    def ask_to_stop(self, number: signal.Signals) -> None:
        """Send a signal to the process, if there still is one."""
        if self.exit_code is None:
            self._popen.send_signal(number)

    def stop(self, steps: Sequence[StopStep]) -> None:
        """End the process: each step in turn, then SIGKILL for it and all that is left of its group."""
        for step in steps:
            self.ask_to_stop(step.signal)
            if self.wait(step.patience_seconds):
                return
        self._popen.kill()
        self.wait()

    def log_tail(self) -> str:
        """Return the last lines this run has written, and nothing of the runs before it."""
        with suppress(OSError), self._log_file.open("rb") as log:
            end = log.seek(0, os.SEEK_END)
            log.seek(max(self._log_start, end - TAIL_BYTES))
            lines = log.read().decode("utf-8", "replace").splitlines()
            return "\n".join(lines[-TAIL_LINES:])
        return ""

    def _end_group(self) -> None:
        # Whatever the program started itself. Its process id, which is the group's, was given back a moment
        # ago when its exit code was read; later it may be somebody else's, hence never a second time.
        with self._group_lock:
            if not self._group_ended:
                self._group_ended = True
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(self.pid, signal.SIGKILL)


def _spawn(launch: Launch) -> tuple[subprocess.Popen[bytes], int]:
    owner = os.getpid()

    def die_with_owner() -> None:
        # Runs in the child after the change of account, which would have cleared the setting.
        if _PRCTL is not None:
            _PRCTL(_PR_SET_PDEATHSIG, int(launch.death_signal), 0, 0, 0)
        if os.getppid() != owner:
            os._exit(1)

    with launch.log_file.open("ab") as log:
        log_start = log.seek(0, os.SEEK_END)
        popen = subprocess.Popen(
            launch.argv,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=launch.cwd,
            env=dict(launch.environ),
            user=launch.uid,
            group=launch.gid,
            extra_groups=None if launch.uid is None else (),
            start_new_session=True,
            # The warning is about locks that other threads may hold at the fork. Nothing here takes one: two
            # system calls, the function for the first looked up long before.
            preexec_fn=die_with_owner,  # noqa: PLW1509
        )
    return popen, log_start


def wait_until(
    condition: Callable[[], bool], *, deadline_seconds: float, every_seconds: float = 0.01
) -> bool:
    """Ask ``condition`` until it holds or the deadline has passed, and tell which of both it was."""
    deadline = time.monotonic() + deadline_seconds
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(every_seconds)
    return True


def fresh_log(path: Path) -> Path:
    """Return ``path``, empty: what an earlier start wrote is kept beside it as ``<name>.1``.

    One generation: logs cannot grow over many starts, and the start that failed can still be read.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with suppress(FileNotFoundError):
        path.replace(path.with_name(path.name + ".1"))
    path.touch(mode=0o600)
    return path
