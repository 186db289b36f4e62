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

An adopter renames the directory away before it removes it, and looks at the name again after it got the lock:
so two processes never adopt the same journal, and none adopts one that is being removed. Adopters of one root
take turns (:func:`adopting`): whoever finds no orphan knows that nobody is in the middle of one either.

Nothing here waits: an append is one system call of about 2 microseconds.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NewType

from store import records
from store.answers import SavedTokens
from store.records import Damage
from tokenfleet.errors import UserError
from tokenfleet.jobs import AccountId

Segment = NewType("Segment", int)

SEGMENT_BYTES: Final = 8 * 1024 * 1024
_SUFFIX: Final = ".segment"
_LOCK_NAME: Final = "lock"
_DONE: Final = ".done"
_DAMAGED: Final = "damaged"

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
            os.close(self._descriptor)
        if self.unsettled() == 0:
            _remove(self.directory)
        if self._lock is not None:
            os.close(self._lock)

    def _create(self) -> int | None:
        """Make our directory and return its lock."""
        # Locked under a name that nobody adopts, then renamed: a sibling never sees it unlocked.
        unborn = self.directory.with_name(f".{self.directory.name}")
        unborn.mkdir(parents=True, mode=0o700, exist_ok=True)
        lock = _lock(os.open(unborn / _LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o600))
        unborn.rename(self.directory)
        _sync_directory(self.directory.parent)
        return lock

    def _is_removed(self) -> bool:
        """Answer whether what we write would be found by nobody."""
        try:
            found = (self.directory / _LOCK_NAME).stat()
        except FileNotFoundError:
            return True
        return self._lock is not None and not os.path.samestat(found, os.fstat(self._lock))

    def _roll(self) -> None:
        """Start a new segment; drop the previous one when it is already settled."""
        # The number is used up even if this fails, so that the next try does not meet the file of this one.
        self._next += 1
        number = Segment(self._next)
        path = self.directory / f"{number:016d}{_SUFFIX}"
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


class Orphan:
    """The journal of a process that died, locked for us. Replay it, then :meth:`discard` it."""

    def __init__(self, directory: Path, lock: int) -> None:
        self.directory = directory
        self._lock = lock
        self.damage: list[Damage] = []

    def __iter__(self) -> Iterator[SavedTokens]:
        """Yield every whole record, oldest first; note in ``damage`` where one is torn or corrupt."""
        self.damage.clear()
        for path in segments(self.directory):
            yield from records.read(path, self.damage)

    def refuse(self, reason: str) -> None:
        """Note that a record cannot be settled: :meth:`discard` will keep the segments for a person."""
        self.damage.extend(Damage(path, 0, reason) for path in segments(self.directory))

    def discard(self) -> None:
        """Remove it: everything in it is settled. Damaged segments are kept beside it for a person."""
        for path in {damage.path for damage in self.damage}:
            keep = self.directory.parent / _DAMAGED
            keep.mkdir(exist_ok=True, mode=0o700)
            path.replace(keep / f"{self.directory.name}-{path.name}")
        _remove(self.directory)
        os.close(self._lock)

    def release(self) -> None:
        """Leave it as it is, for a later try."""
        os.close(self._lock)


@contextmanager
def adopting(root: Path) -> Iterator[bool]:
    """Yield True while it is the caller's turn to adopt, False when somebody else is at it."""
    try:
        opened = os.open(root, os.O_RDONLY)
    except FileNotFoundError:
        yield True
        return
    descriptor = _lock(opened)
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            os.close(descriptor)


def orphans(root: Path) -> Iterator[Orphan]:
    """Yield the journals below ``root`` whose process is dead, each locked for the caller."""
    if not root.is_dir():
        return
    for directory in sorted(root.iterdir()):
        if directory.name.endswith(_DONE):
            shutil.rmtree(directory, ignore_errors=True)
        lock = None if directory.name.startswith(".") else _adopt(directory)
        if lock is not None:
            yield Orphan(directory, lock)


def find(root: Path, wanted: Mapping[AccountId, int]) -> list[SavedTokens]:
    """Return the answers on this disk that were asked for with the ``wanted`` generations, oldest first.

    Living processes' journals are read too: one that is frozen, or cut off from Postgres, cannot tell what it
    has. Torn records at a living journal's end are passed over; they are not there yet.
    """
    found: list[SavedTokens] = []
    for path in sorted(root.glob(f"*/*{_SUFFIX}")):
        if path.parent.name == _DAMAGED:
            continue
        # Removed meanwhile: then all of it is in Postgres.
        with suppress(FileNotFoundError):
            answers = records.read(path, [])
            found.extend(answer for answer in answers if wanted.get(answer.account_id) == answer.generation)
    return sorted(found, key=lambda answer: (answer.account_id, answer.epoch))


def segments(directory: Path) -> list[Path]:
    """Return the segments of one journal, oldest first."""
    return sorted(directory.glob(f"*{_SUFFIX}"))


def summary(root: Path) -> Mapping[str, int]:
    """Return bytes on disk of each journal below ``root``, for people."""
    if not root.is_dir():
        return {}
    return {
        directory.name: sum(path.stat().st_size for path in segments(directory))
        for directory in sorted(root.iterdir())
        if directory.is_dir()
    }


def _remove(directory: Path) -> None:
    """Remove a journal whose lock the caller holds. What an interruption leaves, the next adopter clears."""
    hidden = directory.with_name(f".{directory.name}{_DONE}")
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


def _adopt(directory: Path) -> int | None:
    """Return the lock of a dead process's journal, or None when it lives or is no journal (any more)."""
    try:
        opened = os.open(directory / _LOCK_NAME, os.O_RDWR)
    except (FileNotFoundError, NotADirectoryError):
        return None
    descriptor = _lock(opened)
    if descriptor is None or (directory / _LOCK_NAME).exists():
        return descriptor
    # Its adopter had it until now and has removed it.
    os.close(descriptor)
    return None


def _lock(descriptor: int) -> int | None:
    """Lock an open file and return its descriptor; close it and return None when somebody else holds it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor
