"""What other processes have left in their journals: the dead ones', to be adopted, and the living ones', to be read.

An adopter renames the directory away before it removes it, and looks at the name again after it got the lock: so two
processes never adopt the same journal, and none adopts one that is being removed. Nobody waits for an adopter: one that
is frozen in the middle keeps its journal to itself, and :func:`find` reads that all the same.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from store import records
from store.answers import SavedTokens
from store.journal import DAMAGED, DONE, LOCK_NAME, SUFFIX, lock_file, remove, segments
from store.records import Damage
from tokenfleet.jobs import AccountId

UNBORN_SECONDS: Final = 3600.0
"""A journal that has not got its name after so long belongs to a process that died while it made it."""


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
            keep = self.directory.parent / DAMAGED
            keep.mkdir(exist_ok=True, mode=0o700)
            path.replace(keep / f"{self.directory.name}-{path.name}")
        remove(self.directory)
        self.release()

    def release(self) -> None:
        """Give up the lock, once: a journal that is still there is left for a later try."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def orphans(root: Path) -> Iterator[Orphan]:
    """Yield the journals below ``root`` whose process is dead, each locked for the caller."""
    if not root.is_dir():
        return
    for directory in sorted(root.iterdir()):
        if directory.name.endswith(DONE) or _is_stillborn(directory):
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
    for directory in _entries(root):
        for path in _entries(directory) if directory.name != DAMAGED else ():
            # Removed meanwhile: then all of it is in Postgres.
            with suppress(FileNotFoundError, NotADirectoryError):
                answers = records.read(path, []) if path.suffix == SUFFIX else ()
                found.extend(each for each in answers if wanted.get(each.account_id) == each.generation)
    return sorted(found, key=lambda answer: (answer.account_id, answer.epoch))


def _entries(directory: Path) -> list[Path]:
    """Return what is in a directory; nothing when it is gone, or is none."""
    with suppress(FileNotFoundError, NotADirectoryError):
        return sorted(directory.iterdir())
    return []


def _is_stillborn(directory: Path) -> bool:
    """Answer whether its process died before it could rename it; nothing was ever written there."""
    if not directory.name.startswith("."):
        return False
    with suppress(FileNotFoundError):
        return directory.is_dir() and directory.stat().st_mtime < time.time() - UNBORN_SECONDS
    return False


def _adopt(directory: Path) -> int | None:
    """Return the lock of a dead process's journal, or None when it lives or is no journal (any more)."""
    try:
        opened = os.open(directory / LOCK_NAME, os.O_RDWR)
    except (FileNotFoundError, NotADirectoryError):
        return None
    descriptor = lock_file(opened)
    if descriptor is None or (directory / LOCK_NAME).exists():
        return descriptor
    # Its adopter had it until now and has removed it.
    os.close(descriptor)
    return None
