"""A test event, sent from here: the same signing and the same socket as a worker's."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from sqlalchemy import Engine

from store import audit, deliveries, endpoints, keys, outbox
from store.deliveries import Delivery
from store.endpoints import Endpoint
from store.keys import Vault
from tokenfleet.delivery_policy import DeliveryState, Verdict, judge
from tokenfleet.jobs import DeliveryId, Epoch
from tokenfleet.settings import Settings
from tokenfleet_client.webhooks import EventType
from workers.receivers import Receivers, Sent
from workers.webhooks import result_of, send


@dataclass(frozen=True, slots=True)
class Trial:
    """What came of a test. ``error`` is None when the endpoint took it."""

    event_id: UUID
    status: int | None
    error: str | None
    duration_ms: int


def send_test(
    engine: Engine, settings: Settings, endpoint: Endpoint, *, by: audit.Operator, reason: str | None
) -> Trial:
    """Send a test event to ``endpoint`` once, write it into the log of deliveries, and return what came of it."""
    with engine.begin() as connection:
        vault = keys.open_vault(connection, settings)
        event = outbox.tell_test(connection, endpoint.endpoint_id, EventType.TEST.value)
        secrets = endpoints.sealed_secrets(connection, endpoint.endpoint_id)
        entry = audit.Entry(audit.endpoint_target(endpoint.endpoint_id), {"url": endpoint.url})
        audit.record(connection, by, audit.Action.WEBHOOKS_TEST, [entry], reason=reason)
    delivery = Delivery(
        delivery_id=DeliveryId(0),
        epoch=Epoch(0),
        endpoint_id=endpoint.endpoint_id,
        url=endpoint.url,
        secrets=tuple(secrets),
        event_id=event.event_id,
        event_type=event.event_type,
        payload=json.dumps(event.payload),
        created_at=event.created_at,
        attempts=0,
        queued_at=event.created_at,
        database_now=event.created_at,
    )
    sent = asyncio.run(_send(settings, vault, delivery))
    verdict = judge(sent.reply, attempts=1, age=timedelta(0), jitter=0.5)
    if verdict.state is not DeliveryState.DELIVERED:
        # Nobody waits for a test to succeed in two days.
        verdict = Verdict(DeliveryState.FAILED, verdict.error)
    with engine.begin() as connection:
        deliveries.record_test(connection, event.event_id, result_of(delivery, sent, verdict))
    return Trial(event.event_id, sent.reply.status, verdict.error, sent.duration_ms)


async def _send(settings: Settings, vault: Vault, delivery: Delivery) -> Sent:
    tunables = settings.tunables
    receivers = Receivers(
        timeout_seconds=tunables.webhook_timeout_seconds,
        allow_private=tunables.allow_private_webhooks,
        max_connections=1,
    )
    try:
        return await send(receivers, vault, delivery)
    finally:
        await receivers.aclose()
