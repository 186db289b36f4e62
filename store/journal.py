"""Answers that reached this process, on disk before Postgres has them (G3).

Layout: one directory per process below the journal root, holding ``lock`` (held with ``flock`` while the
process lives) and numbered segments, each a sequence of ``store.records``.

Guarantees:

* :meth:`Journal.append` returns after ``write(2)``: the answer survives the death of this process
  (``kill -9``), because the page cache belongs to the kernel.
* :meth:`Journal.sync` returns after ``fdatasync(2)``: what was appended before survives the machine, as far
  as its disk keeps promises.
* A segment is removed when everything in it is settled in Postgres. Replaying is idempotent (see
  ``store.settlement``), so a record that was settled but not yet removed does no harm.
* A torn or corrupt record is detected by its checksum and reported, never guessed at; every whole record
  before and after it is replayed.

What others find here is read in ``store.orphans``.

Nothing here waits: an append is one system call of about 2 microseconds.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NewType

from store import records
from store.answers import SavedTokens
from tokenfleet.errors import UserError

Segment = NewType("Segment", int)

SEGMENT_BYTES: Final = 8 * 1024 * 1024
SUFFIX: Final = ".segment"
LOCK_NAME: Final = "lock"
DONE: Final = ".done"
DAMAGED: Final = "damaged"

# macOS has no fdatasync.
_sync_data = os.fsync if sys.platform == "darwin" else os.fdatasync


class JournalUnwritable(Exception):
    """The journal cannot be written (disk full, directory gone). No new request may start."""


@dataclass(slots=True)
class _Open:
    """One segment that still exists: how many of its records are not settled."""

    path: Path
    unsettled: int = 0
    bytes_written: int = 0


class Journal:
    """The journal of this process. Appends on one thread; ``sync`` may run on another."""

    def __init__(self, root: Path, name: str) -> None:
        """Create ``root/name``, which must not exist, and lock it.

        Raises :class:`UserError` when the directory cannot be created or written.
        """
        self.directory = root / name
        self.trouble: str | None = None
        """Why the disk refused the last write; no new request may start until :meth:`check` clears it."""
        try:
            self._lock = self._create()
            self._segments: dict[Segment, _Open] = {}
            self._next = 0
            self._current = Segment(0)
            self._descriptor = -1
            self._guard = threading.Lock()
            self._roll()
            self._probe()
        except OSError as error:
            raise UserError(
                f"the journal directory {self.directory} cannot be written ({error.strerror}): answers could "
                "be lost, so no refresh starts; free space, or point TOKENFLEET_JOURNAL_DIR elsewhere"
            ) from error

    def append(self, answer: SavedTokens) -> Segment:
        """Write one sealed answer; returns the segment to settle it in.

        Raises :class:`JournalUnwritable` when the disk refuses; the answer then exists in memory only.
        """
        record = records.frame(answer)
        current = self._segments[self._current]
        try:
            if current.bytes_written >= SEGMENT_BYTES:
                self._roll()
                current = self._segments[self._current]
            written = os.write(self._descriptor, record)
            if written != len(record):
                # A short write leaves a torn record: cut it off, so that later ones stay readable.
                os.ftruncate(self._descriptor, current.bytes_written)
                raise OSError("short write")
        except OSError as error:
            raise self._refused(str(error.strerror or error)) from error
        current.bytes_written += written
        current.unsettled += 1
        return self._current

    def sync(self) -> None:
        """Force what was appended to the disk. Safe beside :meth:`append` on another thread."""
        try:
            with self._guard:
                _sync_data(self._descriptor)
                removed = os.fstat(self._descriptor).st_nlink == 0
        except OSError as error:
            raise self._refused(str(error.strerror or error)) from error
        if removed:
            raise self._refused(f"somebody removed {self.directory}")

    def settle(self, segment: Segment, count: int = 1) -> None:
        """Note that ``count`` records of ``segment`` are in Postgres; drop the segment when all are."""
        entry = self._segments[segment]
        entry.unsettled -= count
        if entry.unsettled == 0 and segment != self._current:
            entry.path.unlink(missing_ok=True)
            del self._segments[segment]

    def unsettled(self) -> int:
        """Return how many answers are on disk and not yet in Postgres."""
        return sum(entry.unsettled for entry in self._segments.values())

    def check(self) -> None:
        """Clear ``trouble`` when an append would work now. A directory that somebody removed is made anew."""
        try:
            if self._is_removed():
                removed, self._lock = self._lock, self._create()
                if removed is not None:
                    os.close(removed)
                self._roll()
            self._probe()
        except OSError as error:
            self._refused(str(error.strerror or error))
        else:
            self.trouble = None

    def _refused(self, reason: str) -> JournalUnwritable:
        self.trouble = reason
        return JournalUnwritable(reason)

    def close(self) -> None:
        """Close; remove the directory when everything in it is settled, else leave it to be adopted."""
        with self._guard:
            if self.unsettled():
                with suppress(OSError):
                    _sync_data(self._descriptor)
            os.close(self._descriptor)
        if self.unsettled() == 0:
            remove(self.directory)
        if self._lock is not None:
            os.close(self._lock)

    def _create(self) -> int | None:
        """Make our directory and return its lock."""
        # Locked under a name that nobody adopts, then renamed: a sibling never sees it unlocked.
        unborn = self.directory.with_name(f".{self.directory.name}")
        unborn.mkdir(parents=True, mode=0o700, exist_ok=True)
        lock = lock_file(os.open(unborn / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o600))
        unborn.rename(self.directory)
        _sync_directory(self.directory.parent)
        return lock

    def _is_removed(self) -> bool:
        """Answer whether what we write would be found by nobody."""
        try:
            found = (self.directory / LOCK_NAME).stat()
        except FileNotFoundError:
            return True
        return self._lock is not None and not os.path.samestat(found, os.fstat(self._lock))

    def _roll(self) -> None:
        """Start a new segment; drop the previous one when it is already settled."""
        # The number is used up even if this fails, so that the next try does not meet the file of this one.
        self._next += 1
        number = Segment(self._next)
        path = self.directory / f"{number:016d}{SUFFIX}"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        try:
            _sync_directory(self.directory)
            with self._guard:
                if self._descriptor >= 0:
                    _sync_data(self._descriptor)
                finished, self._descriptor = self._descriptor, descriptor
        except OSError:
            os.close(descriptor)
            path.unlink(missing_ok=True)
            raise
        if finished >= 0:
            os.close(finished)
        previous = self._segments.get(self._current)
        if previous is not None and previous.unsettled == 0:
            previous.path.unlink(missing_ok=True)
            del self._segments[self._current]
        self._current = number
        self._segments[number] = _Open(path)

    def _probe(self) -> None:
        """Write and remove a block, as an append would. Raises :class:`OSError`."""
        path = self.directory / "probe"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            os.write(descriptor, bytes(4096))
            _sync_data(descriptor)
        finally:
            os.close(descriptor)
            path.unlink(missing_ok=True)


def segments(directory: Path) -> list[Path]:
    """Return the segments of one journal, oldest first."""
    return sorted(directory.glob(f"*{SUFFIX}"))


def summary(root: Path) -> Mapping[str, int]:
    """Return bytes on disk of each journal below ``root``, for people."""
    if not root.is_dir():
        return {}
    return {
        directory.name: sum(path.stat().st_size for path in segments(directory))
        for directory in sorted(root.iterdir())
        if directory.is_dir()
    }


def remove(directory: Path) -> None:
    """Remove a journal whose lock the caller holds. What an interruption leaves, the next adopter clears."""
    hidden = directory.with_name(f".{directory.name}{DONE}")
    with suppress(FileNotFoundError):
        directory.rename(hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def _sync_directory(directory: Path) -> None:
    """Make the names in a directory as durable as what is in the files."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lock_file(descriptor: int) -> int | None:
    """Lock an open file and return its descriptor; close it and return None when somebody else holds it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor
