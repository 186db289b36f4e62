"""One owner per directory, by flock(2).

The kernel drops the lock with the last descriptor, so a killed owner never leaves a stale one behind; the
process id inside the file is for the message only and decides nothing.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Final

from embedded.process import wait_until
from tokenfleet.errors import UserError

LOCK_FILE: Final = "owner.lock"

_PATIENCE_SECONDS: Final = 0.2
"""Whoever asks :func:`is_owned` holds the lock for an instant; that is no reason to refuse."""


class DirectoryLock:
    """The right to use a directory alone, from :meth:`acquire` to :meth:`release`."""

    def __init__(self, directory: Path, *, advice: str) -> None:
        self._path = directory / LOCK_FILE
        self._advice = advice
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Take the lock at once, or raise :class:`UserError` naming the owner. Twice is harmless."""
        if self._descriptor is not None:
            return
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if not wait_until(lambda: _locks(descriptor, fcntl.LOCK_EX), deadline_seconds=_PATIENCE_SECONDS):
            owner = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(descriptor)
            raise UserError(f"{self._path.parent} is in use by another process (pid {owner}): {self._advice}")
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode("ascii"), 0)
        self._descriptor = descriptor

    def release(self) -> None:
        """Give the directory back. The file stays: removing it would race with the next owner."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def is_owned(directory: Path) -> bool:
    """Tell whether some living process holds the lock of ``directory``."""
    try:
        descriptor = os.open(directory / LOCK_FILE, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return not _locks(descriptor, fcntl.LOCK_SH)
    finally:
        os.close(descriptor)


def _locks(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
