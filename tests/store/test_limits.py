"""Slots of an app: one sequence for everybody who asks, whatever Redis forgets, and a small share without it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis import Redis as SyncRedis
from redis.asyncio import Redis
from sqlalchemy import Engine

from store import limits
from store.engine import make_engine
from store.limits import KEY_PREFIX, Limits, Rate, count_workers
from tests.support.racing import PATIENCE_SECONDS
from tokenfleet.jobs import AppId
from tokenfleet.pace import HORIZON_US, SECOND_US, Pace, take
from tokenfleet.settings import Settings

R = TypeVar("R")

APP = AppId(1)
KEY = f"{KEY_PREFIX}{APP}"
FAST = Rate.of(1000, 100)
SLOW = Rate.of(0.05, 1)
NOBODY_LISTENS = "redis://127.0.0.1:1/0"


def run(coroutine: Coroutine[Any, Any, R]) -> R:
    return asyncio.run(asyncio.wait_for(coroutine, PATIENCE_SECONDS))


@contextlib.asynccontextmanager
async def connected(url: str) -> AsyncIterator[Redis]:
    client = Redis.from_url(url)
    try:
        yield client
    finally:
        await client.aclose()


async def all_moments(takers: list[Limits], rate: Rate, rounds: int) -> list[float]:
    """Let everybody take at once, again and again; returns the moments of all slots, in order."""
    moments: list[float] = []

    async def take_some(taker: Limits) -> None:
        for _ in range(rounds):
            taken = await taker.take(APP, rate, 7)
            moments.extend(taken.moment(index) for index in range(taken.slots.count))
            await asyncio.sleep(0.02)

    await asyncio.gather(*(take_some(taker) for taker in takers))
    return sorted(moments)


def assert_within(rate: Rate, moments: list[float], burst: int) -> None:
    for last in range(len(moments)):
        for first in range(last + 1):
            window = moments[last] - moments[first]
            # The clocks of takers are compared by when the answers came: some milliseconds.
            assert last - first + 1 <= rate.per_second * (window + 0.05) + burst


def test_workers_that_race_share_one_sequence_of_slots(redis_url: str) -> None:
    async def scenario() -> None:
        async with connected(redis_url) as redis:
            rate = Rate.of(50, 10)
            moments = await all_moments([Limits(redis) for _ in range(6)], rate, rounds=25)
            assert len(moments) > 15
            assert_within(rate, moments, 10)

    run(scenario())


def test_a_wiped_redis_grants_no_second_burst(redis_url: str) -> None:
    async def scenario() -> None:
        async with connected(redis_url) as redis:
            rate = Rate.of(10, 100)
            taker, other = Limits(redis), Limits(redis)
            await redis.hset(KEY, mapping={"arrival": "1"})
            assert (await taker.take(APP, rate, 1000)).slots.count == 81, (
                "two seconds of the rate are kept for jitter"
            )
            await redis.flushall()
            await redis.script_flush()
            for each in (other, taker, other):
                assert (await each.take(APP, rate, 1000)).slots.count <= 1

    run(scenario())


def test_a_worker_that_starts_anew_goes_on_where_the_fleet_is(redis_url: str) -> None:
    async def scenario() -> None:
        async with connected(redis_url) as redis:
            await Limits(redis).take(APP, SLOW, 1)
            taken = await Limits(redis).take(APP, SLOW, 1)
            assert taken.slots.count == 0
            assert 19 < taken.slots.first_us / SECOND_US < 23

    run(scenario())


def test_a_slot_is_never_in_the_past_of_who_asked_nor_beyond_the_horizon(redis_url: str) -> None:
    async def scenario() -> None:
        async with connected(redis_url) as redis:
            await redis.hset(KEY, mapping={"arrival": "1"})
            taken = await Limits(redis).take(APP, FAST, 10_000)
            offsets = [taken.slots.offset_us(index) for index in range(taken.slots.count)]
            assert offsets[0] == 0
            assert FAST.pace.tolerance_us // 1000 < len(offsets) <= HORIZON_US // 1000 + 52
            assert max(offsets) <= HORIZON_US

    run(scenario())


def test_a_pause_that_one_worker_knows_of_is_everybodys_and_survives_a_wipe_with_who_knows_it(
    redis_url: str,
) -> None:
    async def scenario() -> None:
        async with connected(redis_url) as redis:
            first, second = Limits(redis), Limits(redis)
            assert (await first.take(APP, FAST, 1, paused_seconds=30)).slots.count == 0
            taken = await second.take(APP, FAST, 1)
            assert (taken.slots.count, round(taken.paused_seconds)) == (0, 30)
            await redis.flushall()
            await second.take(APP, FAST, 1, paused_seconds=29)
            assert round((await first.take(APP, FAST, 1)).paused_seconds) == 29

    run(scenario())


def test_keys_end_by_themselves(redis_url: str) -> None:
    async def scenario() -> None:
        async with connected(redis_url) as redis:
            await Limits(redis).take(APP, FAST, 1)
            assert 3_000_000 < await redis.pttl(KEY) < 4_000_000

    run(scenario())


def test_without_redis_all_workers_together_take_half_of_the_rate_at_most() -> None:
    async def scenario() -> None:
        async with connected(NOBODY_LISTENS) as redis:
            rate = Rate.of(200, 10)
            takers = [Limits(redis) for _ in range(4)]
            for taker in takers:
                taker.workers = len(takers)
            moments = await all_moments(takers, rate, rounds=30)
            seconds = moments[-1] - moments[0]
            assert 5 < len(moments) <= 100 * (seconds + 0.1) + len(takers)

    run(scenario())


def test_a_lone_worker_without_redis_takes_a_quarter_of_the_rate() -> None:
    async def scenario() -> None:
        async with connected(NOBODY_LISTENS) as redis:
            taken = await Limits(redis).take(APP, Rate.of(100, 50), 1000)
            assert taken.slots.interval_us >= SECOND_US / 25

    run(scenario())


def test_who_sent_without_redis_gets_no_burst_from_the_redis_that_comes_back(redis_url: str) -> None:
    async def scenario() -> None:
        now = [100.0]
        async with connected(NOBODY_LISTENS) as away, connected(redis_url) as here:
            rate = Rate.of(10, 100)
            await here.hset(KEY, mapping={"arrival": "1"})
            taker = Limits(away, clock=lambda: now[0])
            await taker.take(APP, rate, 1)
            taker._script = here.register_script(limits._SCRIPT)
            assert (await taker.take(APP, rate, 1000)).slots.interval_us > SECOND_US / 10, (
                "it is still silent"
            )
            now[0] += 60
            assert (await taker.take(APP, rate, 1000)).slots.count <= 1

    run(scenario())


def test_workers_are_counted_by_their_connections(engine: Engine, settings: Settings) -> None:
    with engine.connect() as connection:
        assert count_workers(connection) == 1
    others = [
        make_engine(settings.database_url, application_name=f"tokenfleet worker {name}")
        for name in ("a", "b")
    ]
    with others[0].connect(), others[0].connect(), others[1].connect(), engine.connect() as connection:
        assert count_workers(connection) == 2
    for other in others:
        other.dispose()


@pytest.mark.parametrize(("rate", "burst"), [(0.05, 1), (0.001, 3), (100_000.0, 100_000)])
def test_tiny_and_huge_rates_work(redis_url: str, rate: float, burst: int) -> None:
    async def scenario() -> None:
        async with connected(redis_url) as redis:
            await redis.hset(KEY, mapping={"arrival": "1"})
            each = Rate.of(rate, burst)
            first = await Limits(redis).take(APP, each, 1_000_000)
            assert 1 <= first.slots.count <= burst
            second = await Limits(redis).take(APP, each, 1)
            if rate < 1:
                assert second.slots.count == 0
                assert second.slots.first_us >= SECOND_US

    run(scenario())


@pytest.fixture(scope="module")
def plain(servers: dict[str, str]) -> Any:
    with SyncRedis.from_url(servers["TOKENFLEET_REDIS_URL"]) as redis:
        yield redis


TIMED = limits._SCRIPT.replace("redis.call('TIME')", "{ARGV[7], ARGV[8]}")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(st.tuples(st.integers(0, 3_000_000), st.integers(0, 60)), min_size=1, max_size=10),
    rate=st.floats(0.01, 5000),
    burst=st.integers(1, 200),
    start=st.integers(10**15, 2 * 10**15),
)
def test_the_script_in_redis_and_the_rules_in_python_are_the_same(
    plain: SyncRedis, steps: list[tuple[int, int]], rate: float, burst: int, start: int
) -> None:
    plain.delete("pace")
    pace, arrival, now = Pace.of(rate, burst), None, start
    script = plain.register_script(TIMED)
    for passes, wanted in steps:
        now += passes
        arrival, slots = take(arrival, now, wanted, pace)
        moment = divmod(now, SECOND_US)
        answer = script(
            keys=["pace"], args=[wanted, pace.interval_us, pace.tolerance_us, HORIZON_US, 0, 0, *moment]
        )
        assert answer == [slots.count, slots.first_us, 0]
