"""The fleet's circuits in a real Redis: the same rules as in Python, one trial for everybody, and no loss by a wipe."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from store import circuits
from store.circuits import KEY_PREFIX, Circuits, CircuitView
from tests.support.racing import PATIENCE_SECONDS
from tokenfleet.circuit import Circuit, CircuitState, Memory, Report, Standing, Trial
from tokenfleet.jobs import AppId

APP, OTHER = AppId(1), AppId(2)
DOWN = Report(answers=12, outages=12)


@pytest.fixture
def redis(redis_url: str) -> Iterator[Redis]:
    with Redis.from_url(redis_url) as client:
        yield client


def say(url: str, *rounds: Mapping[AppId, Report]) -> list[dict[AppId, Standing] | None]:
    """Report round after round, each from a worker of its own."""

    async def scenario() -> list[dict[AppId, Standing] | None]:
        answers = []
        for reports in rounds:
            client = AsyncRedis.from_url(url)
            answers.append(await Circuits(client).report(reports))
            await client.aclose()
        return answers

    return asyncio.run(asyncio.wait_for(scenario(), PATIENCE_SECONDS))


def test_what_several_workers_heard_opens_one_circuit_and_no_other(redis_url: str, redis: Redis) -> None:
    part = {APP: Report(answers=4, outages=4), OTHER: Report(answers=9)}
    *_, last = say(redis_url, part, part, part)
    assert last is not None
    assert (last[APP].state, last[OTHER].state) == (CircuitState.OPEN, CircuitState.CLOSED)
    seen = CircuitView(redis).read([APP, OTHER, AppId(3)])
    assert seen is not None
    assert [seen[app].state.value for app in seen] == ["open", "closed", "closed"]
    assert 3000 < seen[APP].remaining_ms <= 5000


def test_a_circuit_that_was_wiped_is_open_again_after_one_report_of_who_knows_it(
    redis_url: str, redis: Redis
) -> None:
    [opened] = say(redis_url, {APP: DOWN})
    assert opened is not None
    redis.flushall()
    redis.script_flush()
    assert CircuitView(redis).read([APP]) == {APP: Standing()}
    [again] = say(redis_url, {APP: Report(memory=opened[APP].memory())})
    seen = CircuitView(redis).read([APP])
    assert again is not None
    assert seen is not None
    assert again[APP].state is seen[APP].state is CircuitState.OPEN
    assert seen[APP].openings == 1


def test_of_many_workers_one_is_the_trial(redis_url: str, redis: Redis) -> None:
    say(redis_url, {APP: DOWN})
    redis.hset(f"{KEY_PREFIX}{APP}", "until", 1)

    async def scenario() -> list[bool]:
        client = AsyncRedis.from_url(redis_url)
        workers = [Circuits(client) for _ in range(8)]
        answers = await asyncio.gather(*(each.report({APP: Report(wants_trial=True)}) for each in workers))
        await client.aclose()
        return [answer is not None and answer[APP].trial_granted for answer in answers]

    assert sum(asyncio.run(scenario())) == 1
    _, closed = say(redis_url, {APP: Report(answers=50, outages=50)}, {APP: Report(trial=Trial.ANSWERED)})
    assert closed is not None
    assert closed[APP].state is CircuitState.CLOSED
    seen = CircuitView(redis).read([APP])
    assert seen is not None
    assert seen[APP].closed_for_ms is not None


def test_one_host_that_is_down_opens_nothing_however_many_accounts_it_has(
    redis_url: str, redis: Redis
) -> None:
    dead = Report(answers=90, outages=90, varies=True, failing=["dead"])
    rest = [replace(dead, failing=["dead", f"other-{number}"]) for number in range(2)]
    first, second, third = say(redis_url, {APP: dead}, {APP: dead}, {APP: rest[0]})
    assert first is not None
    assert second is not None
    assert third is not None
    assert [each[APP].state.value for each in (first, second, third)] == ["closed", "closed", "open"]


def test_redis_that_is_away_is_none() -> None:
    assert say("redis://127.0.0.1:1/0", {APP: DOWN}) == [None]
    with Redis.from_url("redis://127.0.0.1:1/0") as away:
        assert CircuitView(away).read([APP]) is None


def test_everything_ends_by_itself(redis_url: str, redis: Redis) -> None:
    say(redis_url, {APP: replace(DOWN, varies=True, failing=["a", "b"], answering=["c"])})
    keys = redis.keys("*")
    assert len(keys) == 3
    assert all(0 < redis.pttl(key) <= 600_000 for key in keys)


@pytest.fixture(scope="module")
def plain(servers: dict[str, str]) -> Any:
    with Redis.from_url(servers["TOKENFLEET_REDIS_URL"]) as client:
        yield client


TIMED = circuits._SCRIPT.replace("redis.call('TIME')", "{table.remove(ARGV), table.remove(ARGV)}")
endpoints = st.lists(st.sampled_from("abcd"), max_size=3, unique=True)
reports = st.builds(
    lambda answers, outages, varies, failing, answering, trial, wants, memory, chance: Report(
        answers,
        min(outages, answers),
        varies and answers > 0,
        failing if varies and answers else (),
        answering if varies and answers else (),
        trial,
        wants,
        memory,
        chance,
    ),
    st.integers(0, 30),
    st.integers(0, 30),
    st.booleans(),
    endpoints,
    endpoints,
    st.none() | st.sampled_from(Trial),
    st.booleans(),
    st.none() | st.builds(Memory, st.integers(0, 60_000), st.integers(1, 9), st.integers(0, 30_000)),
    st.sampled_from([0.0, 0.25, 1.0]),
)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.tuples(st.integers(0, 20_000), reports), min_size=1, max_size=20))
def test_the_script_in_redis_and_the_rules_in_python_are_the_same(
    plain: Redis, steps: list[tuple[int, Report]]
) -> None:
    keys = circuits._keys("same:", [APP])
    plain.delete(*keys)
    script, circuit, now = plain.register_script(TIMED), Circuit(), 1_800_000_000_000
    for passes, report in steps:
        now += passes
        expected = circuit.report(report, now)
        seconds, thousandths = divmod(now, 1000)
        rows = script(keys=keys, args=[circuits._argument(report), thousandths * 1000, seconds])
        assert circuits._standings([APP], rows)[APP] == expected
