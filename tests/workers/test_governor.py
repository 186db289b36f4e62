"""The governor with a connection that is slow to come: no request leaves after its slot, and none is stuck for that."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast

from redis.asyncio import Redis

from providers.exchange import Answer, Exchange, Failure, FailureKind, TokenRequest
from providers.transport import boottime
from store.circuits import KEY_PREFIX as CIRCUIT_PREFIX
from store.circuits import Circuits
from store.limits import KEY_PREFIX, Limits, Rate, Taken
from tests.providers.definitions import provider
from tests.support.arrivals import Arrival, peak
from tokenfleet.circuit import CircuitState
from tokenfleet.jobs import AppId
from workers.breaker import Breaker
from workers.governor import CLAIM_EXPIRED, STRICT_TRIES, Governor, Sent
from workers.pacing import NotNow, Pacer

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


class SleepyScript:
    """A script whose first answer finds its process asleep: stopped, swapped out, its machine moved."""

    def __init__(self, script: Any, seconds: float) -> None:
        self._script, self._seconds = script, seconds

    async def __call__(self, **arguments: Any) -> Any:
        answer = await self._script(**arguments)
        seconds, self._seconds = self._seconds, 0.0
        await asyncio.sleep(seconds)
        return answer


class CountedLimits(Limits):
    """Counts the slots that it gives out."""

    slots = 0

    async def take(self, app_id: AppId, rate: Rate, wanted: int, *, paused_seconds: float = 0.0) -> Taken:
        """Take slots, and count them."""
        taken = await super().take(app_id, rate, wanted, paused_seconds=paused_seconds)
        self.slots += taken.slots.count
        return taken


def asking_at(rate: str) -> tuple[Any, Any]:
    """Return what a request of a provider with this rate is made with."""
    due_at = datetime.now(UTC)
    asking = SimpleNamespace(
        app=SimpleNamespace(app_id=APP),
        provider=provider(f"[rate]\n{rate}"),
        send_before=boottime() + 30,
        now=lambda _: due_at,
    )
    return asking, SimpleNamespace(due_at=due_at, probing=False, is_requested=False, was_due=True)


def test_a_request_that_misses_its_slot_takes_another_one_and_is_not_kept_for_ever(redis_url: str) -> None:
    async def scenario() -> None:
        async with Redis.from_url(redis_url) as redis:
            await redis.hset(f"{KEY_PREFIX}{APP}", "arrival", 1)
            transport = SlowToConnect()
            limits = CountedLimits(redis, clock=boottime)
            governor = Governor(cast(Any, transport), limits, Breaker(Circuits(redis), clock=boottime))
            asking, attempt = asking_at("requests_per_second = 10\nburst = 3")
            sent = await governor.send(REQUEST, asking, attempt)
            assert isinstance(sent, Sent)
            assert sent.exchange == Answer(200)
            assert transport.asked == STRICT_TRIES + 1
            assert limits.slots == transport.asked, "each try took a slot"
            governor.close()
            assert isinstance(await governor.send(REQUEST, asking, attempt), NotNow), "it is stopping"
            assert transport.asked == STRICT_TRIES + 1

    asyncio.run(asyncio.wait_for(scenario(), 20))


def test_the_trial_of_a_half_open_circuit_leaves_at_its_slot_too(redis_url: str) -> None:
    async def scenario() -> None:
        async with Redis.from_url(redis_url) as redis:
            await redis.hset(f"{KEY_PREFIX}{APP}", "arrival", 1)
            await redis.hset(f"{CIRCUIT_PREFIX}{APP}", mapping={"until": 1, "openings": 1})
            transport = SlowToConnect()
            limits = CountedLimits(redis, clock=boottime)
            breaker = Breaker(Circuits(redis), clock=boottime)
            assert (await breaker.look(APP)).state is CircuitState.HALF_OPEN
            governor = Governor(cast(Any, transport), limits, breaker)
            asking, attempt = asking_at("requests_per_second = 10\nburst = 3")
            sent = await governor.send(REQUEST, asking, attempt)
            assert isinstance(sent, Sent)
            assert sent.is_trial, "it is still the trial"
            assert limits.slots == transport.asked == STRICT_TRIES + 1, "it missed two slots and took another"

    asyncio.run(asyncio.wait_for(scenario(), 20))


def test_slots_that_a_sleeping_process_hears_of_too_late_are_not_used(redis_url: str) -> None:
    """The other workers have gone on meanwhile: both together would be above the budget."""
    rate = Rate.of(50, 20)

    async def scenario() -> list[float | NotNow]:
        async with Redis.from_url(redis_url) as redis:
            await redis.hset(f"{KEY_PREFIX}{APP}", "arrival", 1)
            pacers: list[Pacer] = []
            for _ in range(2):
                limits = Limits(redis, clock=boottime)
                if not pacers:
                    limits._script = cast(Any, SleepyScript(limits._script, 1.0))
                pacers.append(
                    Pacer(
                        limits,
                        clock=boottime,
                        paused_seconds=lambda _: 0.0,
                        on_pause=lambda _app, _seconds: None,
                    )
                )
            sleepy, awake = pacers
            slots = [sleepy.slot(APP, rate, urgency=0.0, by=boottime() + 20) for _ in range(15)]
            late = asyncio.gather(*slots)
            await asyncio.sleep(0.99)
            slots = [awake.slot(APP, rate, urgency=0.0, by=boottime() + 20) for _ in range(15)]
            return [*await asyncio.gather(*slots), *await late]

    moments = asyncio.run(asyncio.wait_for(scenario(), 20))
    arrivals = [Arrival("", moment) for moment in moments if not isinstance(moment, NotNow)]
    assert len(arrivals) == 30
    assert peak(arrivals, rate.per_second, rate.burst) <= 1
