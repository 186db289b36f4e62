"""Server processes whose owner is gone.

Needed where the kernel does not end them (no PR_SET_PDEATHSIG outside Linux), and for the moment in which a
killed Postgres' backends are still leaving: a new server refuses to start beside them. Only for the holder of
the directory's lock; without it, the process found may be somebody's living server.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from embedded.process import wait_until

if TYPE_CHECKING:
    import psutil

_LEAVING_SECONDS: Final = 3.0


def end_leftovers(directory: Path, program: str) -> None:
    """End every ``program`` that works in ``directory``: give those already leaving a moment, then kill.

    Killing is safe: Postgres recovers from its write-ahead log, and Valkey holds nothing of value (G7).
    """
    # Looked up anew each time instead of waiting for the processes found: in a container whose first process
    # reaps nobody, the dead stay as zombies for ever.
    if _all_gone(directory, program):
        return
    for process in _working_in(directory, program):
        process.kill()
    _all_gone(directory, program)


def is_working_in(pid: int, directory: Path, program: str) -> bool:
    """Tell whether process ``pid`` is a ``program`` that works in ``directory``."""
    return any(process.pid == pid for process in _working_in(directory, program))


def _all_gone(directory: Path, program: str) -> bool:
    return wait_until(
        lambda: not any(_working_in(directory, program)),
        deadline_seconds=_LEAVING_SECONDS,
        every_seconds=0.05,
    )


def _working_in(directory: Path, program: str) -> Iterator[psutil.Process]:
    # Both servers change into their directory. The name alone would hit other people's servers, the directory
    # alone somebody's shell; process ids from files are handed out again after a reboot.
    # psutil comes with the `embedded` extra, and this module must be importable without it.
    import psutil

    for process in psutil.process_iter():
        try:
            if process.name() == program and Path(process.cwd()) == directory:
                yield process
        except psutil.Error:
            continue
