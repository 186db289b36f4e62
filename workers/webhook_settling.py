"""Results of deliveries on their way to Postgres, in batches: one transaction for what comes in within a moment.

Promise: a result waits for Postgres while that is away, for as long as its claim may hold; after that somebody else
delivers once more, which at-least-once allows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from store import deliveries, endpoint_health
from store.deliveries import Result
from tokenfleet import telemetry
from tokenfleet.delivery_policy import DisabledReason
from tokenfleet.jobs import EndpointId
from tokenfleet.telemetry import Event
from workers.webhooks import in_database

WAIT_SECONDS: Final = 0.03
"""How long a result waits for company: a round of the relay, before which nothing would come of it."""
MAX_BATCH: Final = 500
AGAIN_SECONDS: Final = 0.5


class Settler:
    """Writes results on its event loop. :meth:`run` for ever; :meth:`drain` before the end."""

    def __init__(self, engine: AsyncEngine, *, claim_seconds: float) -> None:
        self._engine = engine
        self._claim_seconds = claim_seconds
        self._results: list[Result] = []
        self._came = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self.available = True
        """Whether the last batch could be written."""

    def put(self, result: Result) -> None:
        """Write ``result`` soon."""
        self._results.append(result)
        self._came.set()
        self._idle.clear()

    async def run(self) -> None:
        """Write what comes, for ever."""
        while True:
            await self._came.wait()
            await asyncio.sleep(WAIT_SECONDS)
            batch, self._results = self._results[:MAX_BATCH], self._results[MAX_BATCH:]
            if not self._results:
                self._came.clear()
            await self._write(batch)
            if not self._results:
                self._idle.set()

    async def drain(self) -> None:
        """Return when everything is written, or given up."""
        await self._idle.wait()

    async def _write(self, batch: Sequence[Result]) -> None:
        gives_up = asyncio.get_running_loop().time() + self._claim_seconds
        while True:
            try:
                disabled = await in_database(self._engine, _settle, batch)
            except (SQLAlchemyError, OSError) as error:
                self.available = False
                if asyncio.get_running_loop().time() >= gives_up:
                    telemetry.alarm(Event.WEBHOOK_UNSETTLED, results=len(batch), error=type(error).__name__)
                    return
                await asyncio.sleep(AGAIN_SECONDS)
            else:
                self.available = True
                for endpoint_id, reason in disabled.items():
                    telemetry.alarm(
                        Event.WEBHOOK_ENDPOINT_DISABLED, endpoint_id=endpoint_id, reason=reason.value
                    )
                return


def _settle(connection: Connection, batch: Sequence[Result]) -> dict[EndpointId, DisabledReason]:
    deliveries.settle(connection, batch)
    return endpoint_health.note(connection, batch)
