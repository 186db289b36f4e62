"""The webhook side of a worker process: a loop of its own, so that no receiver and no batch holds up a refresh.

Built only where webhooks are delivered: at the start of a worker that does nothing else, at the first job in one that
serves every queue.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import threading
from collections.abc import Coroutine
from concurrent.futures import CancelledError, Future
from typing import Any, Final, TypeVar

import uvloop
from sqlalchemy.exc import SQLAlchemyError

from store import keys
from store.engine import make_async_engine
from tokenfleet import telemetry
from tokenfleet.broker import BROKER_SOCKET_SECONDS
from tokenfleet.jobs import DeliveryJob
from tokenfleet.settings import Settings, Tunables, process_name
from tokenfleet.telemetry import Event
from workers.key_watch import KeyWatch
from workers.receivers import Lookup, Receivers, look_up
from workers.webhook_settling import Settler
from workers.webhooks import Courier

R = TypeVar("R")

POOL_SIZE: Final = 3
"""Postgres connections of one worker: jobs that begin, and results."""
GIVE_UP_SECONDS: Final = 10.0
"""How long a stop waits for Postgres after the last answer. What is not written is delivered once more."""


CLOSE_SECONDS: Final = 5.0
BROKER_EXCHANGES: Final = 3
"""What Celery says to the broker at the end: acknowledgements, jobs given back, good-bye. Each may time out."""


def longest_stop_seconds(tunables: Tunables) -> float:
    """Return how long a worker of webhooks may take to stop, everything around it being away.

    The requests and the jobs end while Celery lets go of the broker; then what came of them is written.
    """
    jobs_and_broker = GIVE_UP_SECONDS + BROKER_EXCHANGES * BROKER_SOCKET_SECONDS
    return max(tunables.webhook_timeout_seconds, jobs_and_broker) + GIVE_UP_SECONDS + 2 * CLOSE_SECONDS


class WebhookEngine:
    """The running parts. Build with :meth:`start`, end with :meth:`stop`."""

    def __init__(self, settings: Settings, *, lookup: Lookup = look_up) -> None:
        self._settings = settings
        self._lookup = lookup
        self.name = f"{process_name()}-{secrets.token_hex(3)}"
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="webhooks", daemon=True)
        self._jobs: set[Future[None]] = set()

    def start(self) -> None:
        """Open everything; returns when jobs may run. Raises :class:`tokenfleet.errors.UserError`."""
        self._thread.start()
        try:
            self._submit(self._open()).result()
        except BaseException:
            self._loop.call_soon_threadsafe(self._loop.stop)
            raise

    def run(self, job: DeliveryJob) -> None:
        """Begin one job and return when its requests are on their way. Called from any thread."""
        running = self._submit(self._courier.run(job))
        self._jobs.add(running)
        try:
            running.result()
        except (CancelledError, SQLAlchemyError, OSError) as error:
            # Postgres is away: the claims expire, and the relay sends them again.
            state = getattr(getattr(error, "orig", None), "sqlstate", None)
            telemetry.logger().warning(
                Event.JOB_DROPPED.value, job_id=job.job_id, sqlstate=state, error=type(error).__name__
            )
        finally:
            self._jobs.discard(running)

    def stop_sending(self) -> None:
        """Begin no request from now on. Safe in a signal handler, and repeatable."""
        self._courier.stop()
        # The loop is closed when the order comes at the very end.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._loop.call_later, GIVE_UP_SECONDS, self._give_up_jobs)

    def _give_up_jobs(self) -> None:
        """Free the threads that wait for Postgres. What they had not begun is claimed again."""
        for job in tuple(self._jobs):
            job.cancel()

    def stop(self) -> None:
        """Finish the requests on their way, write what came of them, close everything."""
        self._submit(self._close()).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def problems(self) -> list[str]:
        """Return what hampers the delivery of webhooks, for ``/healthz``."""
        if self._settling.done() or self._watching.done():
            return ["webhooks: a part of this worker has ended; restart it"]
        return [] if self._settler.available else ["webhooks: Postgres refuses what came of deliveries"]

    async def _open(self) -> None:
        settings, tunables = self._settings, self._settings.tunables
        self._engine = make_async_engine(
            settings.database_url, application_name=f"tokenfleet webhooks {self.name}", pool_size=POOL_SIZE
        )
        async with self._engine.begin() as connection:
            wrapped = await connection.run_sync(keys.prepare, settings)
        vault = await asyncio.to_thread(keys.unwrapped, wrapped, settings)
        self._receivers = Receivers(
            timeout_seconds=tunables.webhook_timeout_seconds,
            allow_private=tunables.allow_private_webhooks,
            max_connections=tunables.max_in_flight,
            lookup=self._lookup,
        )
        claim = tunables.webhook_claim
        self._settler = Settler(self._engine, claim_seconds=claim.total_seconds())
        self._courier = Courier(
            self._engine,
            vault,
            self._receivers,
            self._settler.put,
            claim=claim,
            timeout_seconds=tunables.webhook_timeout_seconds,
            capacity=tunables.max_in_flight,
        )
        self._settling = asyncio.create_task(self._settler.run())
        self._key_watch = KeyWatch(self._engine, settings, vault, process=self.name)
        self._watching = asyncio.create_task(self._key_watch.run())

    async def _close(self) -> None:
        self._watching.cancel()
        self._courier.stop()
        await self._courier.drain()
        try:
            async with asyncio.timeout(GIVE_UP_SECONDS):
                await self._settler.drain()
        except TimeoutError:
            telemetry.logger().warning(Event.WEBHOOK_UNSETTLED.value)
        self._settling.cancel()
        await asyncio.wait([asyncio.ensure_future(self._receivers.aclose())], timeout=CLOSE_SECONDS)
        await asyncio.wait([asyncio.ensure_future(self._key_watch.close())], timeout=CLOSE_SECONDS)

    def _submit(self, coroutine: Coroutine[Any, Any, R]) -> Future[R]:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)
