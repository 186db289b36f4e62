"""Answers on their way from the page cache to the disk, whatever Postgres does meanwhile.

An append survives the death of the process; only ``fdatasync`` lets it survive the machine (``store.journal``). One
call covers all that was appended before it, so it waits a moment for company, and there is never more than one.
"""

from __future__ import annotations

import asyncio
from typing import Final

from store.journal import Journal, JournalUnwritable

RETRY_SECONDS: Final = 0.5


class Flusher:
    """Forces a journal to its disk. Runs on the worker's event loop, the waiting on a thread."""

    def __init__(self, journal: Journal, *, wait_seconds: float) -> None:
        self._journal = journal
        self._wait_seconds = wait_seconds
        self._appended = asyncio.Event()

    def note(self) -> None:
        """Say that something was appended: it is on the disk after ``wait_seconds`` and at most two calls."""
        self._appended.set()

    async def run(self) -> None:
        """Flush for ever."""
        loop = asyncio.get_running_loop()
        while True:
            await self._appended.wait()
            await asyncio.sleep(self._wait_seconds)
            self._appended.clear()
            try:
                await loop.run_in_executor(None, self._journal.sync)
            except JournalUnwritable:
                # It shows in the journal's own trouble, and stops new attempts. What was appended is still owed.
                await asyncio.sleep(RETRY_SECONDS)
                self._appended.set()
