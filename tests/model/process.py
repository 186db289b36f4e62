"""A worker process of the model: the real use case, its collaborators, and a seam at every await.

What runs is what runs in production: ``Refresher``, ``Asker``, ``GroupWriter``, ``Leases``, ``Journal`` and
``adopt_orphans``, put together by
``workers.composition``. Only the three wires to the outside are cut open:
Postgres, Redis and the provider are reached through the classes here, which stop before and after everything
they do. What they do is done by a real Postgres and a real Redis, in one piece: interleavings inside one
transaction are not explored here (``tests/support/racing.py`` is for them).

:meth:`WorkerProcess.kill` is ``kill -9``: the kernel closes its files, so its locks are free; nothing that it had
not yet written is ever written.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

import psycopg
from redis import ConnectionError as RedisAway
from sqlalchemy import Connection
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from providers.exchange import Exchange, Failure, FailureKind, TokenRequest
from store.answers import SavedTokens
from store.journal import Journal, Segment
from store.leases import Leases
from tests.model.provider import Call
from tests.model.stepped_loop import SteppedLoop
from tokenfleet.circuit import Standing
from tokenfleet.jobs import AccountId, AppId, RefreshJob
from workers.breaker import Breaker
from workers.candidates import Candidates
from workers.composition import compose_refresher
from workers.flushing import Flusher
from workers.governor import Governor
from workers.refresh import SAVING_SECONDS
from workers.replay import adopt_orphans, consult_journals
from workers.writer import GroupWriter

if TYPE_CHECKING:
    from tests.model.world import World

R = TypeVar("R")

PROBE_AFTER: Final = timedelta(seconds=30)
BUSY_STEPS: Final = 2_000
"""More callbacks than anything here takes: whoever runs on beyond them waits for somebody in a loop."""
BURIAL_ROUNDS: Final = 20
FILES: Final = Path("/proc/self/fd")


class Trouble(Enum):
    """What Postgres does to one transaction of one process."""

    REFUSED = "the connection is refused"
    ROLLED_BACK = "the connection breaks at the commit, which did not happen"
    COMMITTED = "the connection breaks at the commit, which did happen"


class Database:
    """Stands where ``AsyncEngine`` does: one real transaction at a time, with a stop before and after it."""

    def __init__(self, process: WorkerProcess) -> None:
        self._process = process

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[_Transaction]:
        process = self._process
        await process.pause()
        trouble = process.troubles.popleft() if process.troubles else None
        if trouble is Trouble.REFUSED:
            raise _broken()
        with process.world.engine.connect() as connection:
            transaction = connection.begin()
            try:
                yield _Transaction(connection)
            except BaseException:
                transaction.rollback()
                raise
            if trouble is Trouble.ROLLED_BACK:
                transaction.rollback()
            else:
                transaction.commit()
        await process.pause()
        if trouble is not None:
            raise _broken()

    connect = begin
    """A transaction that reads may as well be committed."""


class _Transaction:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def run_sync(self, function: Callable[..., R], *args: Any, **kwargs: Any) -> R:
        return function(self._connection, *args, **kwargs)


def _broken() -> OperationalError:
    return OperationalError(
        "the model", {}, psycopg.OperationalError("the connection is lost"), connection_invalidated=True
    )


class RedisWire:
    """Stands where the asynchronous Redis client does: real scripts, with a stop before and after them."""

    def __init__(self, process: WorkerProcess) -> None:
        self._process = process

    def register_script(self, script: str) -> Callable[..., Awaitable[Any]]:
        """Return the script, run by the real server."""
        process = self._process
        registered = process.world.redis.register_script(script)

        async def run(keys: Sequence[str], args: Sequence[Any]) -> Any:
            await process.pause()
            if process.world.redis_away:
                raise RedisAway("the model")
            answer = registered(keys=keys, args=args)
            process.world.note_leases(keys, args[0])
            await process.pause()
            return answer

        return run


class ProviderWire:
    """Stands where ``Transport`` does."""

    def __init__(self, process: WorkerProcess) -> None:
        self._process = process

    async def ask(
        self,
        request: TokenRequest,
        *,
        send_before: float | None = None,
        timeout_seconds: float | None = None,
    ) -> Exchange:
        """Send one request and wait for what a rule makes of it, as long as a call may take."""
        process, world = self._process, self._process.world
        await process.pause()
        assert send_before is not None
        if world.now >= send_before:
            return Failure(FailureKind.NOT_SENT, "claim_expired")
        call_seconds = world.tunables.http_timeout_seconds
        call = world.server.receive(
            request, process.name, process.loop.create_future(), send_before + call_seconds + SAVING_SECONDS
        )
        timer = process.loop.call_later(call_seconds, self._time_is_over, call)
        exchange = await call.exchange
        timer.cancel()
        return exchange

    def _time_is_over(self, call: Call) -> None:
        if not call.answered:
            self._process.world.server.reset(call)


class NoCircuit(Breaker):
    """Every circuit is closed, whatever is heard: two accounts that lose a dozen answers are no outage."""

    def __init__(self, process: WorkerProcess) -> None:
        super().__init__(cast(Any, None), clock=lambda: process.world.now)

    async def look(self, app_id: AppId) -> Standing:
        """Look at nothing, which is a wire less to stop at."""
        return Standing()

    def heard(self, app_id: AppId, *, outage: bool, endpoint: str | None, began: float) -> None:
        """Forget it."""


class KeptJournal(Journal):
    """The real journal; the world is told what reached it."""

    world: World

    def append(self, answer: SavedTokens) -> Segment:
        """Write one answer and note that it is on disk."""
        segment = super().append(answer)
        self.world.note_journalled(self.directory.name, answer)
        return segment


class WorkerProcess:
    """One worker. Does nothing unless it is stepped."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.loop = SteppedLoop(lambda: world.now, self._on_error)
        self.alive = True
        self.frozen = False
        self.open = False
        """It has adopted what it found and takes jobs."""
        self.troubles: deque[Trouble] = deque()
        self._adopting = 0
        self._adopters_files: set[int] = set()
        self._tasks: list[asyncio.Task[Any]] = []
        self._journal = KeptJournal(world.journals, name)
        self._journal.world = world
        database = cast(Any, Database(self))
        self._database = database
        leases = Leases(cast(Any, RedisWire(self)), life_seconds=world.tunables.lease_seconds)
        self.writer = GroupWriter(
            database,
            self._journal,
            leases,
            owner=name,
            wait_seconds=world.tunables.group_commit_seconds,
            probe_after=PROBE_AFTER,
        )
        self._candidates = Candidates(database, world.vault, self.writer)
        governor = Governor(
            cast(Any, ProviderWire(self)), cast(Any, None), NoCircuit(self), clock=lambda: world.now
        )
        self._refresher = compose_refresher(
            world.settings,
            world.tunables,
            engine=database,
            registry=world.registry,
            vault=world.vault,
            leases=leases,
            journal=self._journal,
            flusher=Flusher(self._journal, wait_seconds=world.tunables.group_commit_seconds),
            writer=self.writer,
            candidates=self._candidates,
            governor=governor,
            owner=name,
            consult=self._consult,
        )
        self._start(self._open())

    @property
    def adopting(self) -> bool:
        """Whether it holds a dead sibling's journal, or the right to look for one."""
        return bool(self._adopters_files)

    def take(self, job: RefreshJob) -> None:
        """Receive a message."""
        self._start(self._run(job))

    def keep_house(self) -> None:
        """Adopt what dead siblings left, as every worker does every few seconds."""
        self._start(self._try_to_adopt())

    def run(self, steps: int = BUSY_STEPS) -> int:
        """Go on for so many callbacks, or until there is nothing to do; returns how many there were."""
        if not self.alive or self.frozen:
            return 0
        for taken in range(steps):
            if not self.loop.step():
                return taken
            if self._adopting:
                self._note_files()
        return steps

    def kill(self) -> None:
        """End like ``kill -9``."""
        self.alive = self.open = False
        self.world.server.bury(self.name)
        held = {
            fd for fd, path in _open_files(self.world.journals) if self._owns(path)
        } | self._adopters_files
        with Path(os.devnull).open("r+b") as nothing:
            for descriptor in held:
                # Releases the lock and keeps the number: what unwinds below closes it again.
                os.dup2(nothing.fileno(), descriptor)
        # The tasks end without a word: every wire is cut, and the files are gone.
        for _ in range(BURIAL_ROUNDS):
            pending = [task for task in self._tasks if not task.done()]
            if not pending:
                break
            for task in asyncio.all_tasks(self.loop):
                task.cancel()
            while self.loop.step():
                pass
        os.close(self._journal._descriptor)
        if self._journal._lock is not None:
            os.close(self._journal._lock)

    async def pause(self) -> None:
        """Stop for a moment: here the process may be left for ever."""
        await asyncio.sleep(0)
        if not self.alive:
            raise asyncio.CancelledError

    def _start(self, coroutine: Any) -> None:
        self._tasks = [task for task in self._tasks if not task.done()]
        self._tasks.append(self.loop.start(coroutine))

    async def _open(self) -> None:
        while True:
            try:
                await self._adopt()
                break
            except (SQLAlchemyError, OSError):
                await asyncio.sleep(1)
        self._start(self.writer.run())
        self._start(self._refresher.keep_leases())
        self.open = True

    async def _run(self, job: RefreshJob) -> None:
        try:
            await self._refresher.run(job)
        except (SQLAlchemyError, OSError):
            return

    async def _try_to_adopt(self) -> None:
        try:
            await self._adopt()
            await self._candidates.restore_deposed()
        except (SQLAlchemyError, OSError):
            return

    async def _adopt(self) -> int:
        self._adopting += 1
        try:
            return await adopt_orphans(self._database, self.world.journals, actor=self.name)
        finally:
            self._adopting -= 1

    async def _consult(self, wanted: Mapping[AccountId, int]) -> frozenset[AccountId]:
        await self.pause()
        return await consult_journals(self._database, self.world.journals, wanted, actor=self.name)

    def _note_files(self) -> None:
        """Note which files of the journals are open that are nobody's own: the adopter's."""
        others: set[int] = set()
        for process in self.world.processes:
            if process is not self:
                others |= process._adopters_files
        self._adopters_files = {
            descriptor
            for descriptor, path in _open_files(self.world.journals)
            if descriptor not in others
            and not any(process._owns(path) for process in self.world.processes if process.alive)
        }

    def _owns(self, path: Path) -> bool:
        return path.is_relative_to(self._journal.directory)

    def _on_error(self, context: dict[str, Any]) -> None:
        if self.alive:
            self.world.errors.append(f"{self.name}: {context.get('message')}: {context.get('exception')!r}")


def _open_files(root: Path) -> list[tuple[int, Path]]:
    """Return this process's open files at or below ``root``."""
    found: list[tuple[int, Path]] = []
    for entry in FILES.iterdir():
        try:
            target = entry.readlink()
        except FileNotFoundError:
            continue
        if target == root or root in target.parents:
            found.append((int(entry.name), target))
    return found
