"""The governor with a connection that is slow to come: no request leaves after its slot, and none is stuck for that."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast

from redis.asyncio import Redis

from providers.exchange import Answer, Exchange, Failure, FailureKind, TokenRequest
from providers.transport import boottime
from store.circuits import Circuits
from store.limits import KEY_PREFIX, Limits, Rate, Taken
from tests.providers.definitions import provider
from tokenfleet.jobs import AppId
from workers.breaker import Breaker
from workers.governor import CLAIM_EXPIRED, STRICT_TRIES, Governor, Sent
from workers.pacing import NotNow

APP = AppId(1)
REQUEST = TokenRequest("POST", "https://auth.example.com/token", {}, b"body")


class SlowToConnect:
    """A transport that takes longer to connect than any slot lasts, and sends nothing that is late."""

    def __init__(self) -> None:
        self.asked = 0

    async def ask(
        self, request: TokenRequest, *, send_before: float, timeout_seconds: float | None = None
    ) -> Exchange:
        self.asked += 1
        await asyncio.sleep(0.15)
        if boottime() >= send_before:
            return Failure(FailureKind.NOT_SENT, CLAIM_EXPIRED)
        return Answer(200)


class CountedLimits(Limits):
    """Counts the slots that it gives out."""

    slots = 0

    async def take(self, app_id: AppId, rate: Rate, wanted: int, *, paused_seconds: float = 0.0) -> Taken:
        """Take slots, and count them."""
        taken = await super().take(app_id, rate, wanted, paused_seconds=paused_seconds)
        self.slots += taken.slots.count
        return taken


def test_a_request_that_misses_its_slot_takes_another_one_and_is_not_kept_for_ever(redis_url: str) -> None:
    async def scenario() -> None:
        async with Redis.from_url(redis_url) as redis:
            await redis.hset(f"{KEY_PREFIX}{APP}", "arrival", 1)
            transport = SlowToConnect()
            limits = CountedLimits(redis, clock=boottime)
            governor = Governor(cast(Any, transport), limits, Breaker(Circuits(redis), clock=boottime))
            paced = provider("[rate]\nrequests_per_second = 10\nburst = 3")
            due_at = datetime.now(UTC)
            asking = cast(
                Any,
                SimpleNamespace(
                    app=SimpleNamespace(app_id=APP),
                    provider=paced,
                    send_before=boottime() + 30,
                    now=lambda _: due_at,
                ),
            )
            attempt = cast(Any, SimpleNamespace(due_at=due_at, probing=False))
            sent = await governor.send(REQUEST, asking, attempt)
            assert isinstance(sent, Sent)
            assert sent.exchange == Answer(200)
            assert transport.asked == STRICT_TRIES + 1
            assert limits.slots == transport.asked, "each try took a slot"
            governor.close()
            assert isinstance(await governor.send(REQUEST, asking, attempt), NotNow), "it is stopping"
            assert transport.asked == STRICT_TRIES + 1

    asyncio.run(asyncio.wait_for(scenario(), 20))
