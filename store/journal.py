"""Answers that reached this process, on disk before Postgres has them (G3).

Layout: one directory per process below the journal root, holding ``lock`` (held with ``flock`` while the
process lives) and numbered segments. A segment is a sequence of records::

    u32 length of payload | u32 CRC-32 of payload | payload (MessagePack of SavedTokens, sealed values only)

Guarantees:

* :meth:`Journal.append` returns after ``write(2)``: the answer survives the death of this process
  (``kill -9``), because the page cache belongs to the kernel.
* :meth:`Journal.sync` returns after ``fdatasync(2)``: what was appended before survives the machine, as far
  as its disk keeps promises.
* A segment is removed when everything in it is settled in Postgres. Replaying is idempotent (see
  ``store.settlement``), so a record that was settled but not yet removed does no harm.
* A torn or corrupt tail is detected and reported, never guessed at; the records before it are replayed.

Nothing here waits: an append is one system call of about 2 microseconds.
"""

from __future__ import annotations

import fcntl
import os
import struct
import threading
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NewType

import msgspec

from store.settlement import SavedTokens
from tokenfleet.errors import UserError

Segment = NewType("Segment", int)

SEGMENT_BYTES: Final = 8 * 1024 * 1024
MAX_RECORD_BYTES: Final = 4 * 1024 * 1024
_HEADER: Final = struct.Struct(">II")
_SUFFIX: Final = ".segment"
_LOCK_NAME: Final = "lock"

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(SavedTokens)


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
        # Locked under a name that nobody adopts, then renamed: a sibling never sees it unlocked.
        unborn = root / f".{name}"
        try:
            unborn.mkdir(parents=True, mode=0o700)
            self._lock = _lock(unborn)
            unborn.rename(self.directory)
            self._segments: dict[Segment, _Open] = {}
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
        payload = _encoder.encode(answer)
        record = _HEADER.pack(len(payload), zlib.crc32(payload)) + payload
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
            raise JournalUnwritable(str(error.strerror or error)) from error
        current.bytes_written += written
        current.unsettled += 1
        return self._current

    def sync(self) -> None:
        """Force what was appended to the disk. Safe beside :meth:`append` on another thread."""
        try:
            with self._guard:
                os.fdatasync(self._descriptor)
        except OSError as error:
            raise JournalUnwritable(str(error.strerror or error)) from error

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

    def writable(self) -> bool:
        """Answer whether an append would work now."""
        try:
            self._probe()
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Close; remove the directory when everything in it is settled, else leave it to be adopted."""
        with self._guard:
            os.close(self._descriptor)
        if self.unsettled() == 0:
            _remove(self.directory)
        if self._lock is not None:
            os.close(self._lock)

    def _roll(self) -> None:
        """Start a new segment; drop the previous one when it is already settled."""
        with self._guard:
            previous = self._segments.get(self._current)
            number = Segment(self._current + 1)
            path = self.directory / f"{number:016d}{_SUFFIX}"
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
            if self._descriptor >= 0:
                os.fdatasync(self._descriptor)
                os.close(self._descriptor)
            self._descriptor = descriptor
        finished = previous is not None and previous.unsettled == 0
        if finished and previous is not None:
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
            os.fdatasync(descriptor)
        finally:
            os.close(descriptor)
            path.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class Damage:
    """A segment that ends in something else than a whole record."""

    path: Path
    offset: int
    reason: str


class Orphan:
    """The journal of a process that died, locked for us. Replay it, then :meth:`discard` it."""

    def __init__(self, directory: Path, lock: int) -> None:
        self.directory = directory
        self._lock = lock
        self.damage: list[Damage] = []

    def __iter__(self) -> Iterator[SavedTokens]:
        """Yield every whole record, oldest first; note in ``damage`` where one is torn or corrupt."""
        for path in segments(self.directory):
            yield from _read(path, self.damage)

    def discard(self) -> None:
        """Remove it: everything in it is settled. Damaged segments are kept beside it for a person."""
        for damage in self.damage:
            keep = self.directory.parent / "damaged"
            keep.mkdir(exist_ok=True, mode=0o700)
            damage.path.replace(keep / f"{self.directory.name}-{damage.path.name}")
        _remove(self.directory)
        os.close(self._lock)

    def release(self) -> None:
        """Leave it as it is, for a later try."""
        os.close(self._lock)


def orphans(root: Path) -> Iterator[Orphan]:
    """Yield the journals below ``root`` whose process is dead, each locked for the caller."""
    if not root.is_dir():
        return
    for directory in sorted(root.iterdir()):
        if directory.name.startswith(".") or not (directory / _LOCK_NAME).exists():
            continue
        lock = _lock(directory)
        if lock is not None:
            yield Orphan(directory, lock)


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


def _read(path: Path, damage: list[Damage]) -> Iterator[SavedTokens]:
    content = path.read_bytes()
    offset = 0
    while offset < len(content):
        if offset + _HEADER.size > len(content):
            damage.append(Damage(path, offset, "torn header"))
            return
        length, checksum = _HEADER.unpack_from(content, offset)
        payload = content[offset + _HEADER.size : offset + _HEADER.size + length]
        if length > MAX_RECORD_BYTES or len(payload) != length:
            damage.append(Damage(path, offset, "torn record"))
            return
        if zlib.crc32(payload) != checksum:
            damage.append(Damage(path, offset, "checksum does not match"))
            return
        try:
            yield _decoder.decode(payload)
        except (msgspec.ValidationError, msgspec.DecodeError):
            damage.append(Damage(path, offset, "not a record of this version"))
            return
        offset += _HEADER.size + length


def _lock(directory: Path) -> int | None:
    descriptor = os.open(directory / _LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _remove(directory: Path) -> None:
    for path in segments(directory):
        path.unlink(missing_ok=True)
    (directory / _LOCK_NAME).unlink(missing_ok=True)
    directory.rmdir()
