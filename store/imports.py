"""Accounts from a file into the fleet: a chunk of lines is one transaction, all of it or nothing.

Promises:

* Upsert on provider, environment and external id. What is in is never damaged: the same file may be imported
  twice, and an old one after the fleet has rotated its tokens (``store.import_judgement``).
* A bad line is reported and left out; it takes no good one with it, not even when it is Postgres that
  refuses it.
* An import that is interrupted has imported whole chunks; doing it again does the rest.
* Imports may run at once, and beside workers: a chunk that meets another writer is judged and written anew.
"""

from __future__ import annotations

import random
import socket
import time
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final
from uuid import UUID, uuid4

import psycopg
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError

from store import audit, import_creation, import_renewal
from store.engine import database_now
from store.import_admission import NumberedLine
from store.import_creation import Stamp
from store.import_plan import Plan, Planner
from store.import_rules import RulesOf
from store.import_source import BadLine, Chunk
from store.keys import Vault
from store.schedule import WAKE_CHANNEL
from tokenfleet.errors import UserError

WRITERS: Final = 3
"""Chunks written at once, each over its own connection: while some wait for Postgres, another one seals. No
two lines of an import are about one account, so they do not meet. On two cores that Postgres shares, two,
three and four writers did 21,100, 23,900 and 24,000 accounts/s; one did 17,900."""
_ATTEMPTS: Final = 5
_RETRY_SECONDS: Final = 0.1


@dataclass(slots=True)
class Tally:
    """Accounts of an import by what became of them; each has its line, or shares one with others."""

    created: int = 0
    reauthenticated: int = 0
    """Known accounts that got new tokens."""
    reactivated: int = 0
    """Those of them that had needed it."""
    paused: int = 0
    """Those of them that are paused, and stay so."""
    updated: int = 0
    """Known accounts whose description changed, and not their tokens."""
    unchanged: int = 0
    bad: int = 0
    shared: int = 0
    """How many of all these stand in the same line as one before them."""

    def add(self, other: Tally) -> None:
        """Add the lines of another chunk."""
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    @property
    def lines(self) -> int:
        """All lines that were not blank."""
        accounts = self.created + self.reauthenticated + self.updated + self.unchanged
        return accounts + self.bad - self.shared


@dataclass(frozen=True, slots=True)
class ChunkReport:
    """A chunk that is in the database: what became of its lines, and the bad ones in their order."""

    tally: Tally
    bad: tuple[BadLine, ...]
    last: int


class Importer:
    """One import. ``rules_of`` answers for provider names; ``actor`` stands in the history.

    With ``dry_run`` everything is judged and nothing is written. ``reason`` stands in the audit log.
    """

    def __init__(
        self,
        engine: Engine,
        vault: Vault,
        rules_of: RulesOf,
        *,
        actor: str,
        dry_run: bool = False,
        reason: str | None = None,
    ) -> None:
        self._engine = engine
        self._vault = vault
        self._planner = Planner(vault, rules_of)
        self._actor = actor
        self._dry_run = dry_run
        self._by = audit.Operator(actor, socket.gethostname())
        self._reason = reason
        self.import_id: Final[UUID] = uuid4()
        """The ``job_id`` of this import's rows in the history."""

    def run(self, chunks: Iterable[Chunk]) -> Generator[ChunkReport, None, None]:
        """Write ``chunks`` while the next ones are read; yield what became of them, in their order.

        Close it to end early: what is being written then is finished. Raises :class:`UserError` when Postgres
        fails for longer than a moment; what was yielded is in.
        """
        with ThreadPoolExecutor(max_workers=WRITERS, thread_name_prefix="import") as writers:
            writing: deque[Future[ChunkReport]] = deque()
            for chunk in chunks:
                finished = writing.popleft().result() if len(writing) == WRITERS else None
                writing.append(writers.submit(self.write, chunk))
                if finished is not None:
                    yield finished
            while writing:
                yield writing.popleft().result()

    def write(self, chunk: Chunk) -> ChunkReport:
        """Write one chunk. Raises :class:`UserError` when Postgres fails for longer than a moment."""
        tally, bad = self._write(chunk.lines)
        reasons = [*bad, *chunk.bad]
        # Accounts that share a line often share what is wrong with it: that is told once.
        told = sorted(dict.fromkeys(reasons), key=lambda each: each.number)
        tally.bad = len(told)
        tally.shared = chunk.shared - (len(reasons) - len(told))
        return ChunkReport(tally, tuple(told), chunk.last)

    def _write(self, lines: Sequence[NumberedLine]) -> tuple[Tally, list[BadLine]]:
        """Write ``lines``; when Postgres refuses one of them, find it by halving, and write the others."""
        if not lines:
            return Tally(), []
        try:
            plan = self._attempt(lines)
        except _Refused as error:
            if len(lines) == 1:
                return Tally(), [BadLine(lines[0].number, f"is refused by Postgres ({error})")]
            middle = len(lines) // 2
            tally, bad = self._write(lines[:middle])
            others, worse = self._write(lines[middle:])
            tally.add(others)
            return tally, bad + worse
        return _tally(plan), plan.bad

    def _attempt(self, lines: Sequence[NumberedLine]) -> Plan:
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                with self._engine.connect() as connection:
                    plan = self._transact(connection, lines)
                    if not self._dry_run:
                        connection.commit()
                    return plan
            except (DBAPIError, psycopg.Error) as error:
                # After a lost connection the commit may have happened: then the lines turn out unchanged.
                cause = error.orig if isinstance(error, DBAPIError) else error
                if _is_refusal(cause):
                    raise _Refused(type(cause).__name__) from None
                if attempt == _ATTEMPTS or not _is_passing(cause):
                    raise UserError(
                        f"Postgres failed ({type(cause).__name__}) at lines {lines[0].number} to "
                        f"{lines[-1].number}, none of which was imported: mend that and run the same command "
                        "again; what is in stays as it is"
                    ) from error
                time.sleep(_RETRY_SECONDS * attempt * (1 + random.random()))
        raise AssertionError("the last attempt returns or raises")

    def _transact(self, connection: Connection, lines: Sequence[NumberedLine]) -> Plan:
        stamp = Stamp(database_now(connection), self.import_id, self._actor)
        plan = self._planner.plan(connection, lines, stamp.now)
        if self._dry_run or not plan:
            return plan
        if plan.creations:
            import_creation.create(connection, self._vault, plan.creations, stamp)
        if plan.renewals:
            import_renewal.renew(connection, self._vault, plan.renewals, stamp)
        if plan.descriptions:
            import_renewal.redescribe(connection, plan.descriptions, stamp)
        # One row for a chunk, not for an account: the history of each account names the import.
        done = {"created": len(plan.creations), "reauthenticated": len(plan.renewals)}
        done["updated"] = sum(bool(description.changed) for description in plan.descriptions)
        if any(done.values()):
            entry = audit.Entry(f"import/{self.import_id}", done)
            audit.record(connection, self._by, audit.Action.ACCOUNTS_IMPORT, [entry], reason=self._reason)
        connection.execute(text("SELECT pg_notify(:channel, '')"), {"channel": WAKE_CHANNEL})
        return plan


class _Refused(Exception):
    """Postgres refuses the data of these lines, and always will."""


def _tally(plan: Plan) -> Tally:
    return Tally(
        created=len(plan.creations),
        reauthenticated=len(plan.renewals),
        reactivated=plan.reactivated,
        paused=plan.paused,
        updated=sum(bool(description.changed) for description in plan.descriptions),
        unchanged=plan.unchanged,
    )


def _is_passing(cause: BaseException | None) -> bool:
    """Answer whether another try may succeed: no connection, a deadlock, or somebody was faster."""
    somebody_was_faster = psycopg.errors.UniqueViolation | psycopg.errors.ForeignKeyViolation
    return isinstance(cause, psycopg.OperationalError | somebody_was_faster)


def _is_refusal(cause: BaseException | None) -> bool:
    """Answer whether the data are at fault: a value that does not fit, or is too large for Postgres."""
    if isinstance(cause, psycopg.IntegrityError):
        return not _is_passing(cause)
    return isinstance(cause, psycopg.DataError | psycopg.errors.ProgramLimitExceeded)
