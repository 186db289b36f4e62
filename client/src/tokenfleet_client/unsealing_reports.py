"""How many tokens this process has opened, told to the database in batches for the audit.

Invariant: counting never fails and never waits, and what cannot be told disturbs nobody who reads.
"""

from __future__ import annotations

import re
import threading
from typing import Final

from tokenfleet_client.unsealings import Openings

REPORT_SECONDS: Final = 15.0
REPORT_COUNT: Final = 1000
REFUSED_SECONDS: Final = 600.0
"""How long nothing is told to a database that has no such function, or refuses it to this role."""


class UnsealingReports:
    """What was opened since it was last told. Any thread may call."""

    def __init__(self, caller: str) -> None:
        """Count for ``caller``. Raises :class:`ValueError` for what the audit does not take as a name."""
        if not re.fullmatch(r"[!-~]([ -~]{0,98}[!-~])?", caller):
            raise ValueError("caller= is the name of this service: 1 to 100 printable ASCII characters")
        self.caller = caller
        self._silent_until = 0.0
        self.start_anew()

    def start_anew(self) -> None:
        """Count from nothing, as a forked child does: its parent tells of what the parent opened."""
        self._lock = threading.Lock()
        self._opened = 0

    @property
    def untold(self) -> int:
        """How many were opened and not told of."""
        return self._opened

    def count(self, openings: Openings) -> None:
        """Take what was opened since the last time."""
        self.put_back(sum(openings.take().values()))

    def put_back(self, opened: int) -> None:
        """Add what could not be told."""
        with self._lock:
            self._opened += opened

    def take(self, now: float) -> int:
        """Return what is to be told at ``now`` and count from nothing; what nobody wants to hear is dropped."""
        with self._lock:
            opened, self._opened = self._opened, 0
        return opened if now >= self._silent_until else 0

    def refused(self, now: float) -> None:
        """Tell nothing for a while: the database does not want it."""
        self._silent_until = now + REFUSED_SECONDS
