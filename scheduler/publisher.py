"""Turning claims into jobs on the broker."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Final, TypeVar

from celery import Celery
from kombu.connection import Connection
from kombu.exceptions import OperationalError

from store.claiming import Claim
from tokenfleet.broker import ANONYMOUS_EXCHANGE
from tokenfleet.jobs import MAX_BATCH, REFRESH_QUEUE, AppId, DeliveryJob, RefreshJob

J = TypeVar("J", RefreshJob, DeliveryJob)

MAX_CLOCK_SKEW: Final = timedelta(minutes=5)
"""How far two machines' clocks may be apart unless the settings say otherwise."""


def make_jobs(app_id: AppId, claims: Sequence[Claim]) -> Iterator[RefreshJob]:
    """Cut one app's claims into jobs, the most urgent first.

    Jobs are of equal size rather than full and a rest, so that one tick's work spreads over the workers. Accounts that
    readers wait for are sent on demand, but once: who was not taken there goes the ordinary way, where workers of the
    release before find him too.
    """
    for is_requested in (True, False):
        kind = [claim for claim in claims if (claim.is_requested and not claim.is_untaken) is is_requested]
        count = -(-len(kind) // MAX_BATCH)
        for index in range(count):
            part = kind[len(kind) * index // count : len(kind) * (index + 1) // count]
            pairs = tuple((claim.account_id, claim.epoch) for claim in part)
            yield RefreshJob(str(uuid.uuid4()), app_id, pairs, is_requested)


class Publisher:
    """Sends jobs by their stable task name. Does not retry: what is not sent is claimed again."""

    def __init__(self, app: Celery, *, claim: timedelta, max_clock_skew: timedelta = MAX_CLOCK_SKEW) -> None:
        self._app = app
        self._watching: Connection | None = None
        # Celery compares the wall clocks of two machines, so both may be off by as much as they are allowed to.
        self._life_seconds = (claim + 2 * max_clock_skew).total_seconds()

    def publish(self, jobs: Sequence[J]) -> list[J]:
        """Send jobs; returns those that could not be sent because the broker does not answer.

        A message outlives its claim by what the clocks may disagree; later it would have nothing to start.
        """
        if not jobs:
            return []
        for position, job in enumerate(jobs):
            try:
                self._app.send_task(
                    job.task,
                    args=job.payload(),
                    task_id=job.job_id,
                    # With the anonymous exchange Celery goes by the queue alone, not by a routing key.
                    exchange=ANONYMOUS_EXCHANGE,
                    queue=job.queue,
                    expires=self._life_seconds,
                    ignore_result=True,
                    retry=False,
                )
            except (OperationalError, OSError):
                return list(jobs[position:])
        return []

    def waiting(self, queue: str = REFRESH_QUEUE) -> int:
        """Return how many jobs lie in ``queue``; 0 when the broker does not tell."""
        if self._watching is None:
            self._watching = self._app.connection_for_write()
        connection = self._watching
        try:
            # As workers declare it, not passively: an empty queue does not exist in Redis, and each such answer
            # would cost a connection.
            declared = connection.default_channel.queue_declare(queue, durable=True, auto_delete=False)
            return int(declared.message_count)
        except (OperationalError, OSError, *connection.connection_errors, *connection.channel_errors):
            # Kombu lets the errors of the broker's own library through here.
            self.close()
            return 0

    def close(self) -> None:
        """Close what :meth:`waiting` keeps open."""
        if self._watching is not None:
            with contextlib.suppress(Exception):
                self._watching.close()  # type: ignore[no-untyped-call]
            self._watching = None

    def broker_answers(self) -> bool:
        """Answer whether the broker can be reached now."""
        try:
            with self._app.connection_for_write() as connection:
                connection.ensure_connection(max_retries=1, interval_start=0, timeout=2)
        except (OperationalError, OSError):
            return False
        return True
