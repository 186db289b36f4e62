"""The relay: events to deliveries, due deliveries to jobs. On a thread of its own, beside the scheduler's loop.

Any number of relays may run. Invariants kept here:

* No refresh waits for it: it shares a process with the scheduler, and neither a connection nor a queue.
* Claims are committed before anything is sent; what cannot be sent is given back at once.
* Without workers nothing more is claimed, so the queue does not grow.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Final

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from scheduler.publisher import Publisher
from store import deliveries, outbox
from tokenfleet import telemetry
from tokenfleet.jobs import MAX_BATCH, WEBHOOK_QUEUE, DeliveryId, DeliveryJob, Epoch
from tokenfleet.settings import Tunables
from tokenfleet.telemetry import Event

BUSY_SECONDS: Final = 0.03
"""Between rounds while there is something to do. An endpoint's window is refilled once a round, so this is what bounds
how much one endpoint gets a second."""
IDLE_SECONDS: Final = 0.25
MAX_WAITING_JOBS: Final = 50
PRUNE_EVERY_SECONDS: Final = 60.0
PAUSED_WHEN_BROKEN_SECONDS: Final = 1.0


class Relay:
    """One relay. :meth:`start` its thread, and :meth:`stop` it."""

    def __init__(self, engine: Engine, publisher: Publisher, tunables: Tunables) -> None:
        """``engine`` and ``publisher`` are nobody else's: the relay's thread uses them, and closes them at its end."""
        self._engine = engine
        self._publisher = publisher
        self._claim = tunables.webhook_claim
        self._retention = timedelta(days=tunables.webhook_retention_days)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="relay", daemon=True)
        self._next_pruning = time.monotonic() + PRUNE_EVERY_SECONDS
        self._backlog = False
        self._trouble: str | None = None

    def start(self) -> None:
        """Begin on a thread."""
        self._thread.start()

    def stop(self) -> None:
        """Order the end; returns at once."""
        self._stopping.set()

    def join(self, timeout_seconds: float) -> None:
        """Wait for the end of the round at hand."""
        if self._thread.is_alive():
            self._thread.join(timeout_seconds)

    def trouble(self) -> str | None:
        """Return what is wrong now, in words for ``/healthz``, or None."""
        if self._trouble is None and self._backlog:
            return (
                f"more than {MAX_WAITING_JOBS} jobs wait in the queue {WEBHOOK_QUEUE!r}: start workers for it"
            )
        return self._trouble

    def tick(self) -> bool:
        """Do one round; answers whether the next one should come soon. Raises ``DBAPIError`` without Postgres."""
        with self._engine.begin() as connection:
            more = outbox.relay(connection)
        if time.monotonic() >= self._next_pruning:
            self._prune()
        waiting = self._publisher.waiting(WEBHOOK_QUEUE)
        self._backlog = waiting > MAX_WAITING_JOBS
        if self._backlog:
            return more
        with self._engine.begin() as connection:
            claims = deliveries.claim_due(connection, claim=self._claim)
        unsent = self._publisher.publish(list(make_jobs(claims)))
        if unsent:
            with self._engine.begin() as connection:
                for job in unsent:
                    deliveries.release(connection, job)
            self._note("the broker does not answer; no webhook is delivered", None)
            self._stopping.wait(PAUSED_WHEN_BROKEN_SECONDS)
            return False
        self._trouble = None
        return more or bool(claims)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                busy = self.tick()
            except DBAPIError as error:
                state = getattr(error.orig, "sqlstate", None)
                self._note("Postgres does not let the relay work", state)
                self._stopping.wait(PAUSED_WHEN_BROKEN_SECONDS)
            except Exception as error:  # noqa: BLE001
                # Whatever it is, webhooks must go on when it is over, and refreshes must not notice.
                self._note(f"the relay failed ({type(error).__name__})", None)
                self._stopping.wait(PAUSED_WHEN_BROKEN_SECONDS)
            else:
                self._stopping.wait(BUSY_SECONDS if busy else IDLE_SECONDS)
        self._publisher.close()
        self._engine.dispose()

    def _prune(self) -> None:
        with self._engine.begin() as connection:
            pruned = outbox.prune(connection, age=self._retention)
        self._next_pruning = time.monotonic() + (0.0 if pruned else PRUNE_EVERY_SECONDS)

    def _note(self, trouble: str, sqlstate: str | None) -> None:
        if self._trouble != trouble:
            telemetry.logger().error(Event.RELAY_FAILED.value, reason=trouble, sqlstate=sqlstate)
        self._trouble = trouble


def make_jobs(claims: Sequence[tuple[DeliveryId, Epoch]]) -> Iterator[DeliveryJob]:
    """Cut claims into jobs of equal size, the most urgent first."""
    count = -(-len(claims) // MAX_BATCH)
    for index in range(count):
        part = claims[len(claims) * index // count : len(claims) * (index + 1) // count]
        yield DeliveryJob(str(uuid.uuid4()), tuple(part))
