"""Whether Postgres and Redis answer, as a worker's housekeeping sees it: for ``/healthz``, not for any request.

Promise: a look ends soon, also when a server takes connections and says nothing.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from store.leases import NO_ANSWER
from tokenfleet import telemetry
from tokenfleet.telemetry import Event

POSTGRES_PROBE_SECONDS: Final = 5.0
"""How long Postgres may leave a probe unanswered before the worker says so."""


class Surroundings:
    """What a worker depends on. Looked at by one task."""

    def __init__(self, engine: AsyncEngine, redis: Any) -> None:
        """``redis`` is the asynchronous client."""
        self._engine = engine
        self._redis = redis
        self._probing: asyncio.Task[bool] | None = None
        self.postgres_away = False
        self.redis_away = False

    async def look(self) -> None:
        """See who answers now."""
        self.redis_away = not await self._redis_answers()
        self.postgres_away = not await self._postgres_answers()

    async def _postgres_answers(self) -> bool:
        if self._probing is None or self._probing.done():
            self._probing = asyncio.create_task(self._probe_postgres())
        # Not cancelled: it ends with its connection, and until then there is no need for a second one.
        await asyncio.wait({self._probing}, timeout=POSTGRES_PROBE_SECONDS)
        return self._probing.done() and self._probing.result()

    async def _probe_postgres(self) -> bool:
        try:
            async with self._engine.connect() as connection:
                await connection.execute(text("SELECT 1"))
        except (SQLAlchemyError, OSError):
            return False
        return True

    async def _redis_answers(self) -> bool:
        try:
            await self._redis.ping()
        except NO_ANSWER as error:
            if not self.redis_away:
                telemetry.logger().error(Event.REDIS_UNAVAILABLE.value, error=type(error).__name__)
            return False
        return True
