"""One worker process: its event loop, and everything that lives on it.

Celery's pool threads hand jobs over with :meth:`Engine.run` and wait; all I/O happens on one loop in one
background thread. The engine is built after the process has started, never at import, so nothing is shared
across a fork.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import secrets
import threading
from collections.abc import Coroutine, Mapping
from concurrent.futures import CancelledError, Future
from datetime import timedelta
from typing import Any, Final, TypeVar

import uvloop
from redis.asyncio import Redis
from sqlalchemy.exc import SQLAlchemyError

from providers import Registry
from providers.transport import Transport, boottime
from store import keys
from store.circuits import Circuits
from store.engine import make_async_engine
from store.journal import Journal
from store.leases import Leases
from store.limits import Limits, count_workers
from tokenfleet import telemetry
from tokenfleet.broker import BROKER_SOCKET_SECONDS
from tokenfleet.jobs import AccountId, RefreshJob
from tokenfleet.settings import Settings, Tunables, process_name
from tokenfleet.telemetry import Event
from workers.breaker import Breaker
from workers.candidates import Candidates
from workers.composition import compose_refresher
from workers.flushing import Flusher
from workers.governor import Governor
from workers.key_watch import KeyWatch
from workers.pacing import LONGEST_WAIT_SECONDS
from workers.replay import adopt_orphans, consult_journals
from workers.room import STRAGGLER_SECONDS
from workers.surroundings import Surroundings
from workers.writer import LOCK_TIMEOUT_MS, GroupWriter

R = TypeVar("R")

POOL_SIZE: Final = 4
"""Postgres connections of one worker that read and start jobs."""
WRITER_POOL_SIZE: Final = 2
"""Connections that only write, so that no answer ever waits for a job to give one back."""
GC_THRESHOLD: Final = 50_000
HOUSEKEEPING_SECONDS: Final = 5.0
HOUSEKEEPINGS_PER_CLAIM: Final = 6
"""At least so often, so that what a sibling left behind is saved before its claims expire."""
GIVE_UP_SECONDS: Final = 15.0
"""How long a stop waits for Postgres: for jobs that have not begun to ask, from the order to stop; for answers, from
the last one. The journal keeps them for the next worker."""
CLOSE_SECONDS: Final = 5.0
"""How long a stop waits for connections to close."""
BROKER_EXCHANGES: Final = 3
"""What Celery says to the broker at the end: acknowledgements, jobs given back, good-bye. Each may time out."""
PROBE_AFTER: Final = timedelta(seconds=30)
REDIS_TIMEOUT_SECONDS: Final = 2.0


def longest_stop_seconds(tunables: Tunables) -> float:
    """Return how long a worker may take to stop, everything around it being away: the grace period it needs.

    The requests end, a replay that waits for its slot included, while Celery waits for jobs and lets go of the broker;
    then what is in hand is written.
    """
    requests = 2 * tunables.http_timeout_seconds + LONGEST_WAIT_SECONDS
    jobs_and_broker = GIVE_UP_SECONDS + BROKER_EXCHANGES * BROKER_SOCKET_SECONDS
    return max(requests, jobs_and_broker) + GIVE_UP_SECONDS + STRAGGLER_SECONDS + 2 * CLOSE_SECONDS


class Engine:
    """The running parts of a worker. Build with :meth:`start`, end with :meth:`stop`."""

    def __init__(self, settings: Settings, registry: Registry) -> None:
        self._settings = settings
        self._registry = registry
        self.name = f"{process_name()}-{secrets.token_hex(3)}"
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="engine", daemon=True)
        self._jobs: set[Future[None]] = set()

    def start(self) -> None:
        """Open everything and replay what a dead process left; returns when jobs may run.

        Raises :class:`tokenfleet.errors.UserError` when a key or the journal is unusable.
        """
        self._thread.start()
        self._submit(self._open()).result()
        # What is loaded now lives for ever. With the default threshold the collector walked thousands of
        # requests in flight again and again: a third of the worker's CPU.
        gc.freeze()
        gc.set_threshold(GC_THRESHOLD, 20, 50)

    def run(self, job: RefreshJob) -> None:
        """Run one job and return when it is done. Called from any thread."""
        running = self._submit(self._refresher.run(job))
        self._jobs.add(running)
        try:
            running.result()
        except CancelledError:
            telemetry.logger().warning(Event.JOB_DROPPED.value, job_id=job.job_id, reason="stopping")
        except (SQLAlchemyError, OSError) as error:
            # Postgres is away: nothing was started, the claims expire, the scheduler sends them again.
            state = getattr(getattr(error, "orig", None), "sqlstate", None)
            reason = type(error).__name__
            telemetry.logger().warning(
                Event.JOB_DROPPED.value, job_id=job.job_id, sqlstate=state, error=reason
            )
        finally:
            self._jobs.discard(running)

    def stop_asking(self) -> None:
        """Begin no request from now on; what is on its way goes on. Safe in a signal handler, and repeatable."""
        self._refresher.stop()
        # The loop is closed when the order comes at the very end.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._hurry_jobs)

    def stop(self) -> None:
        """Finish what is in flight, write it, close everything.

        Returns in the end, whatever is away: a request takes twice the provider timeout at most, with the wait for
        its replay's slot between, and :data:`GIVE_UP_SECONDS` after the last one what Postgres has not taken is left
        to the journal. The one exception is an answer that neither Postgres nor the disk takes: it is waited for
        until we are killed.
        """
        self._submit(self._close()).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def problems(self) -> tuple[list[str], list[str]]:
        """Return (what makes this worker useless, what merely hampers it), for ``/healthz``."""
        fatal: list[str] = []
        hampered: list[str] = []
        if not self._writer.available:
            fatal.append("Postgres refuses writes; answers wait in the journal")
        elif self._surroundings.postgres_away:
            fatal.append("Postgres does not answer; no refresh starts")
        if self._journal.trouble is not None:
            fatal.append(f"the journal cannot be written ({self._journal.trouble}); no refresh starts")
        parts = (
            self._writing,
            self._flushing,
            self._leasing,
            self._reporting,
            self._housekeeping,
            self._watching,
        )
        if any(task.done() for task in parts):
            fatal.append("a part of this worker has ended; restart it")
        if self._surroundings.redis_away:
            hampered.append("Redis does not answer; refreshes go on without leases")
        if self._key_watch.trouble is not None:
            hampered.append(f"keys are not up to date; what is held goes on: {self._key_watch.trouble}")
        return fatal, hampered

    async def _open(self) -> None:
        settings, tunables = self._settings, self._settings.tunables
        self._engine = make_async_engine(
            settings.database_url, application_name=f"tokenfleet worker {self.name}", pool_size=POOL_SIZE
        )
        async with self._engine.begin() as connection:
            wrapped = await connection.run_sync(keys.prepare, settings)
        self._vault = await asyncio.to_thread(keys.unwrapped, wrapped, settings)
        self._writing_engine = make_async_engine(
            settings.database_url,
            application_name=f"tokenfleet writer {self.name}",
            pool_size=WRITER_POOL_SIZE,
            lock_timeout_ms=LOCK_TIMEOUT_MS,
        )
        self._redis = Redis.from_url(
            settings.redis_url,
            socket_timeout=REDIS_TIMEOUT_SECONDS,
            socket_connect_timeout=REDIS_TIMEOUT_SECONDS,
        )
        self._surroundings = Surroundings(self._engine, self._redis)
        self._journal = Journal(settings.journal_dir, self.name)
        self._transport = Transport(
            timeout_seconds=tunables.http_timeout_seconds, max_connections=tunables.max_in_flight
        )
        leases = Leases(self._redis, life_seconds=tunables.lease_seconds, prefix=tunables.redis_prefix)
        self._writer = GroupWriter(
            self._writing_engine,
            self._journal,
            leases,
            owner=self.name,
            wait_seconds=tunables.group_commit_seconds,
            probe_after=PROBE_AFTER,
        )
        self._candidates = Candidates(self._engine, self._vault, self._writer)
        self._flusher = Flusher(self._journal, wait_seconds=tunables.group_commit_seconds)
        self._limits = Limits(self._redis, prefix=tunables.redis_prefix, clock=boottime)
        breaker = Breaker(Circuits(self._redis, prefix=tunables.redis_prefix), clock=boottime)
        governor = Governor(self._transport, self._limits, breaker)
        self._refresher = compose_refresher(
            settings,
            tunables,
            engine=self._engine,
            registry=self._registry,
            vault=self._vault,
            leases=leases,
            journal=self._journal,
            flusher=self._flusher,
            writer=self._writer,
            candidates=self._candidates,
            governor=governor,
            owner=self.name,
            consult=self._consult,
        )
        await self._adopt()
        self._writing = asyncio.create_task(self._writer.run())
        self._flushing = asyncio.create_task(self._flusher.run())
        self._leasing = asyncio.create_task(self._refresher.keep_leases())
        self._reporting = asyncio.create_task(breaker.run())
        self._housekeeping = asyncio.create_task(self._keep_house())
        self._key_watch = KeyWatch(self._engine, settings, self._vault, process=self.name)
        self._watching = asyncio.create_task(self._key_watch.run())

    def _hurry_jobs(self) -> None:
        """Let jobs that wait for room go at once, and those that wait for Postgres after a while."""
        self._closing = self._loop.create_task(self._refresher.hurry())
        self._loop.call_later(GIVE_UP_SECONDS, self._give_up_jobs)

    def _give_up_jobs(self) -> None:
        """Free the threads that wait for jobs. What was asked goes on; what was not is claimed again."""
        for job in tuple(self._jobs):
            job.cancel()

    async def _close(self) -> None:
        self._housekeeping.cancel()
        self._watching.cancel()
        self._refresher.stop()
        await self._refresher.hurry()
        if await self._drained():
            self._writer.close()
        else:
            self._writing.cancel()
            telemetry.alarm(Event.JOURNAL_LEFT, records=self._journal.unsettled())
        for task in (self._leasing, self._flushing, self._reporting):
            task.cancel()
        # Whoever waits for a job is told of its end, also when it was given up: no thread may wait for ever.
        others = asyncio.all_tasks() - {asyncio.current_task()}
        if others:
            _, unfinished = await asyncio.wait(others, timeout=STRAGGLER_SECONDS)
            for task in unfinished:
                task.cancel()
            if unfinished:
                await asyncio.wait(unfinished, timeout=CLOSE_SECONDS)
        closings = (
            self._transport.aclose(),
            self._redis.aclose(),
            self._key_watch.close(),
            self._writing_engine.dispose(),
        )
        await asyncio.wait([asyncio.ensure_future(each) for each in closings], timeout=CLOSE_SECONDS)
        self._journal.close()

    async def _drained(self) -> bool:
        """Wait until every attempt is settled; False when Postgres does not take what is in hand.

        Nothing is lost by giving up: no request is on its way, and every answer is in the journal.
        """
        draining = asyncio.create_task(self._refresher.drain())
        ends = self._loop.time() + GIVE_UP_SECONDS
        while not draining.done():
            await asyncio.wait({draining}, timeout=0.2)
            if self._transport.asking or self._writer.in_memory_only:
                ends = self._loop.time() + GIVE_UP_SECONDS
            elif self._loop.time() > ends:
                draining.cancel()
                return False
        return True

    async def _keep_house(self) -> None:
        """Adopt journals of siblings that died, and notice when disk, Redis or Postgres go or come back."""
        claim_seconds = self._settings.tunables.claim_seconds
        while True:
            await asyncio.sleep(min(HOUSEKEEPING_SECONDS, claim_seconds / HOUSEKEEPINGS_PER_CLAIM))
            try:
                await self._surroundings.look()
                if self._journal.trouble is not None:
                    self._journal.check()
                await self._adopt()
                if not self._surroundings.postgres_away:
                    await self._count_workers()
                if self._writer.available:
                    await self._candidates.restore_deposed()
            except Exception as error:  # noqa: BLE001
                # This task must outlive whatever goes wrong in one round: it is the one that notices recovery.
                telemetry.logger().warning(Event.HOUSEKEEPING_FAILED.value, error=type(error).__name__)

    async def _count_workers(self) -> None:
        """See how many share the pace of each app while Redis is away."""
        async with self._engine.connect() as connection:
            self._limits.workers = await connection.run_sync(count_workers)

    async def _adopt(self) -> int:
        return await adopt_orphans(self._engine, self._settings.journal_dir, actor=self.name)

    async def _consult(self, wanted: Mapping[AccountId, int]) -> frozenset[AccountId]:
        return await consult_journals(self._engine, self._settings.journal_dir, wanted, actor=self.name)

    def _submit(self, coroutine: Coroutine[Any, Any, R]) -> Future[R]:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)
