"""One job of webhooks: which of its deliveries are still ours, each sent once and judged. Hop 9.

Invariants kept here:

* A delivery is sent only after its claim was started in Postgres, and with what was read then; no request begins that
  the claim may not outlive.
* Deliveries share nothing but the process's room: one that is slow delays no other, and no thread waits for it.
* The secret of an endpoint is in the clear for the moment of signing, and kept nowhere.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Concatenate, Final, ParamSpec, TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from providers.connections import boottime
from store import deliveries
from store.deliveries import Delivery, Result
from store.endpoints import secret_binding
from store.keys import Vault
from tokenfleet import telemetry
from tokenfleet.delivery_policy import Reply, Verdict, judge
from tokenfleet.jobs import DeliveryJob
from tokenfleet.telemetry import Event
from tokenfleet_client.errors import EnvelopeError, KeyMaterialError
from tokenfleet_client.secret import Secret
from tokenfleet_client.unsealings import Purpose
from tokenfleet_client.webhooks import sign
from workers.receivers import Receivers, Sent

P = ParamSpec("P")
R = TypeVar("R")

POSTPONE: Final = timedelta(seconds=1)
"""How long deliveries wait for which this process has no room."""


class Courier:
    """Delivers jobs of webhooks on its event loop. ``settle`` is told of every result."""

    def __init__(
        self,
        engine: AsyncEngine,
        vault: Vault,
        receivers: Receivers,
        settle: Callable[[Result], None],
        *,
        claim: timedelta,
        timeout_seconds: float,
        capacity: int,
    ) -> None:
        self._engine = engine
        self._vault = vault
        self._receivers = receivers
        self._settle = settle
        self._claim = claim
        self._timeout_seconds = timeout_seconds
        self._capacity = capacity
        self._room = capacity
        self._sending: set[asyncio.Task[None]] = set()
        self._stopping = False

    async def run(self, job: DeliveryJob) -> None:
        """Begin to deliver what of ``job`` is still ours, and return: the claims remember it, not the message."""
        wanted = len(job.deliveries)
        if self._stopping or wanted > self._room:
            wait = timedelta(0) if self._stopping else POSTPONE
            await in_database(self._engine, deliveries.release, job, wait=wait)
            return
        self._room -= wanted
        try:
            # Counted from before the statement, so that ours ends before the database's does.
            send_before = boottime() + self._claim.total_seconds() - self._timeout_seconds
            started = await in_database(self._engine, deliveries.start, job, claim=self._claim)
        except BaseException:
            self._room += wanted
            raise
        self._room += wanted - len(started)
        if len(started) < wanted:
            await self._release_rest(job, started)
        if self._is_stopping():
            self._room += len(started)
            await in_database(self._engine, deliveries.abandon, started)
            return
        for delivery in started:
            task = asyncio.create_task(self._deliver(delivery, send_before))
            self._sending.add(task)
            task.add_done_callback(self._ended)

    def stop(self) -> None:
        """Begin nothing any more; jobs are given back at once. Safe in a signal handler."""
        self._stopping = True

    async def drain(self) -> None:
        """Return when every request has ended."""
        while self._sending:
            await asyncio.wait(set(self._sending))

    def _is_stopping(self) -> bool:
        # It changes while we wait, at any await.
        return self._stopping

    async def _release_rest(self, job: DeliveryJob, started: Sequence[Delivery]) -> None:
        """Give back what was not started: finished by now, or its endpoint is disabled or spared."""
        begun = {each.delivery_id for each in started}
        rest = tuple(pair for pair in job.deliveries if pair[0] not in begun)
        await in_database(self._engine, deliveries.release, DeliveryJob(job.job_id, rest))

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._sending.discard(task)
        self._room += 1
        if not task.cancelled() and (error := task.exception()) is not None:
            # A fault of ours. The claim ends by itself; the alarm brings a person.
            telemetry.alarm(Event.ATTEMPT_FAILED, error=type(error).__name__)

    async def _deliver(self, delivery: Delivery, send_before: float) -> None:
        telemetry.WEBHOOKS_IN_FLIGHT.inc()
        try:
            if delivery.attempts == 0:
                delay = (delivery.database_now - delivery.created_at).total_seconds()
                telemetry.WEBHOOK_DELAY_SECONDS.observe(max(delay, 0.0))
            if boottime() >= send_before:
                # This machine slept, or the loop hung: somebody else has it by now.
                return
            sent = await send(self._receivers, self._vault, delivery)
            verdict = judge(
                sent.reply,
                attempts=delivery.attempts + 1,
                age=delivery.database_now - delivery.queued_at,
                jitter=random.random(),
            )
            self._settle(result_of(delivery, sent, verdict))
            telemetry.WEBHOOKS.labels(_outcome(sent.reply, verdict)).inc()
            telemetry.WEBHOOK_SECONDS.observe(sent.duration_ms / 1000)
        finally:
            telemetry.WEBHOOKS_IN_FLIGHT.dec()


async def send(receivers: Receivers, vault: Vault, delivery: Delivery) -> Sent:
    """Sign one delivery with all the secrets that its endpoint has now, and send it."""
    body = body_of(delivery)
    try:
        secrets = [
            Secret(
                vault.refresh.open(sealed, secret_binding(delivery.endpoint_id, generation), Purpose.WEBHOOK)
            )
            for generation, sealed in delivery.secrets
        ]
        headers = sign(secrets, str(delivery.event_id), datetime.now(UTC), body)
    except (EnvelopeError, KeyMaterialError):
        telemetry.alarm(Event.WEBHOOK_SECRET_UNREADABLE, endpoint_id=delivery.endpoint_id)
        return Sent(Reply(None, "secret_unreadable"), datetime.now(UTC), 0)
    return await receivers.send(delivery.url, headers, body)


def body_of(delivery: Delivery) -> bytes:
    """Return the body of a delivery: the same bytes at every attempt."""
    event_type = json.dumps(delivery.event_type)
    timestamp = delivery.created_at.astimezone(UTC).isoformat().replace("+00:00", "Z")
    return f'{{"event_type":{event_type},"payload":{delivery.payload},"timestamp":"{timestamp}"}}'.encode()


def result_of(delivery: Delivery, sent: Sent, verdict: Verdict) -> Result:
    """Return what is to be written about one attempt."""
    return Result(
        delivery_id=delivery.delivery_id,
        epoch=delivery.epoch,
        endpoint_id=delivery.endpoint_id,
        verdict=verdict,
        status=sent.reply.status,
        duration_ms=sent.duration_ms,
        at=sent.at,
    )


def _outcome(reply: Reply, verdict: Verdict) -> str:
    """Return the label of a metric: a receiver may answer any of a thousand statuses."""
    if verdict.error is not None and verdict.error == f"http_{reply.status}" and reply.status is not None:
        return f"http_{reply.status // 100}xx"
    return verdict.error or "delivered"


async def in_database(
    engine: AsyncEngine,
    function: Callable[Concatenate[Connection, P], R],
    *args: P.args,
    **kwargs: P.kwargs,
) -> R:
    """Run a function of ``store`` in one transaction of its own; once more when the connection was a dead one.

    What a lost commit has done already is not done again: claims and states guard every statement.
    """
    try:
        async with engine.begin() as connection:
            return await connection.run_sync(function, *args, **kwargs)
    except DBAPIError as error:
        if not error.connection_invalidated:
            raise
    async with engine.begin() as connection:
        return await connection.run_sync(function, *args, **kwargs)
