"""What was opened, on its way from the memory of a process to the table ``unsealings``.

Promises:

* Opening costs no statement: counts are added up in memory and written every :data:`FLUSH_SECONDS`, a row for each
  purpose. What was opened since is lost with a process that is killed, and with nothing else: while Postgres is away
  the counts wait, each for the minute that it belongs to.
* Nothing is counted too low for a lost connection: what may or may not have been committed is added once more.
* A count is added to and never lowered; Postgres sees to it (migration 0007), and notes the database role.

A command counts what it opens between :func:`counting_for` and its end, whichever way it gets its keys.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import SQLAlchemyError

from tokenfleet_client.unsealings import Purpose

if TYPE_CHECKING:
    from store.keys import Vault

FLUSH_SECONDS: Final = 15.0
OLDEST_SECONDS: Final = 3_500
"""Postgres puts nothing further into the past than an hour: what waited for longer counts as so old."""

# In one order, so that two commands of one operator do not wait for each other crosswise.
_ADD = text("""
    INSERT INTO tokenfleet.unsealings AS u (minute, purpose, caller, opened)
    SELECT date_trunc('minute', clock_timestamp() - least(i.age, :oldest) * interval '1 second') AS minute, i.purpose,
           CAST(:caller AS text), sum(i.opened)
    FROM unnest(CAST(:ages AS float8[]), CAST(:purposes AS text[]), CAST(:counts AS bigint[]))
        AS i (age, purpose, opened)
    GROUP BY 1, 2 ORDER BY 1, 2
    ON CONFLICT ON CONSTRAINT pk_unsealings DO UPDATE SET opened = u.opened + EXCLUDED.opened
""")

Batch = Mapping[tuple[Purpose, int], int]
"""Counts by purpose and minute of the process's own clock."""


class Tally:
    """What one vault opened and Postgres does not have yet. One per vault and process."""

    def __init__(
        self,
        vault: Vault,
        caller: str,
        *,
        told: Callable[[Purpose, int], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``told`` hears of every count once, as soon as it is collected. ``clock`` is in seconds."""
        self._vault = vault
        self._caller = caller
        self._told = told
        self._clock = clock
        self._pending: dict[tuple[Purpose, int], int] = {}

    def collect(self) -> Batch:
        """Take up what was opened since the last time; returns all that waits to be written."""
        minute = int(self._clock() // 60)
        for ring in (self._vault.access, self._vault.refresh):
            for purpose, opened in ring.openings.take().items():
                self._pending[purpose, minute] = self._pending.get((purpose, minute), 0) + opened
                if self._told is not None:
                    self._told(purpose, opened)
        return dict(self._pending)

    def add(self, connection: Connection, batch: Batch) -> None:
        """Write ``batch``, in the caller's transaction; :meth:`settle` it when that is committed."""
        if not batch:
            return
        now = self._clock()
        keys = list(batch)
        connection.execute(
            _ADD,
            {
                "caller": self._caller,
                "oldest": OLDEST_SECONDS,
                "purposes": [purpose.value for purpose, _ in keys],
                "ages": [max(0.0, now - 60.0 * (minute + 1)) for _, minute in keys],
                "counts": [batch[key] for key in keys],
            },
        )

    def settle(self, batch: Batch) -> None:
        """Forget what was written."""
        for key, opened in batch.items():
            left = self._pending[key] - opened
            if left:
                self._pending[key] = left
            else:
                del self._pending[key]


class _Command:
    """Writes what the vaults of one command opened, every :data:`FLUSH_SECONDS` and at its end."""

    def __init__(self, engine: Engine, caller: str) -> None:
        self._engine = engine
        self._caller = caller
        self._tallies: list[Tally] = []
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def watch(self, vault: Vault) -> None:
        """Count what ``vault`` opens from now on."""
        self._tallies.append(Tally(vault, self._caller))
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="unsealings", daemon=True)
            self._thread.start()

    def close(self) -> int:
        """Write the rest; returns how many openings could not be put on record."""
        if self._thread is None:
            return 0
        self._ended.set()
        self._thread.join()
        try:
            self._flush()
        except (SQLAlchemyError, OSError):
            return sum(sum(tally.collect().values()) for tally in self._tallies)
        return 0

    def _run(self) -> None:
        while not self._ended.wait(FLUSH_SECONDS):
            with suppress(SQLAlchemyError, OSError):
                self._flush()

    def _flush(self) -> None:
        for tally in tuple(self._tallies):
            batch = tally.collect()
            if batch:
                with self._engine.begin() as connection:
                    tally.add(connection, batch)
                tally.settle(batch)


_COMMAND: ContextVar[_Command | None] = ContextVar("command", default=None)


@contextmanager
def counting_for(engine: Engine, caller: str, *, lost: Callable[[int], None]) -> Iterator[None]:
    """Put on record what every vault opens that is opened within, as opened by ``caller``.

    ``lost`` is told, at the end, how many openings Postgres did not take.
    """
    command = _Command(engine, caller)
    token = _COMMAND.set(command)
    try:
        yield
    finally:
        _COMMAND.reset(token)
        if unrecorded := command.close():
            lost(unrecorded)


def watch(vault: Vault) -> None:
    """Let the command around, if there is one, count what ``vault`` opens."""
    command = _COMMAND.get()
    if command is not None:
        command.watch(vault)
