"""The pace of an app: never more than the rate allows plus one burst, whoever asks and whatever Redis does."""

from __future__ import annotations

import itertools
import socket
import time
from collections.abc import Iterator
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis import Redis

from store import limits
from store.limits import KEY_PREFIX, LOCAL_SHARE, Budgets, Demand
from tests.support.racing import race
from tokenfleet.jobs import AppId

APP = AppId(1)
SLOW = 0.001
"""Requests per second so few that none is added while a test runs."""


@pytest.fixture
def redis(redis_url: str) -> Iterator[Redis]:
    with Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def budgets(redis: Redis) -> Budgets:
    return Budgets(redis)


def take(budgets: Budgets, wanted: int, *, per_second: float = SLOW, burst: int = 5) -> int:
    return budgets.take([Demand(APP, wanted, per_second, burst)])[APP]


# Shared, in Redis


def test_a_burst_is_granted_at_once_and_then_nothing(budgets: Budgets) -> None:
    assert [take(budgets, 3), take(budgets, 3), take(budgets, 3)] == [3, 2, 0]
    assert budgets.shared


def test_nobody_is_given_more_than_wanted(budgets: Budgets) -> None:
    assert [take(budgets, 0), take(budgets, 1), take(budgets, 100)] == [0, 1, 4]


def test_every_app_has_its_own_budget_in_one_call(budgets: Budgets) -> None:
    demands = [Demand(AppId(number), 10, SLOW, burst) for number, burst in ((1, 3), (2, 20), (3, 1))]

    assert budgets.take(demands) == {AppId(1): 3, AppId(2): 10, AppId(3): 1}
    assert budgets.take(demands) == {AppId(1): 0, AppId(2): 10, AppId(3): 0}
    assert budgets.take([]) == {}


def test_the_budget_grows_again_at_its_rate(budgets: Budgets) -> None:
    """The moments are Redis' own, so the bound is taken from outside: before the first and after the last."""
    began = time.monotonic()
    granted = 0
    while granted < 25:
        granted += take(budgets, 100, per_second=200, burst=5)
        assert granted <= 5 + 200 * (time.monotonic() - began) + 1
    assert time.monotonic() - began >= (25 - 5) / 200 - 0.01


def test_what_was_not_used_is_given_back(budgets: Budgets) -> None:
    assert take(budgets, 5) == 5
    take(budgets, -3)
    assert take(budgets, 5) == 3


def test_giving_back_more_than_was_taken_saves_nothing_up(budgets: Budgets) -> None:
    take(budgets, -1000)
    assert take(budgets, 1000) == 5


def test_schedulers_that_race_share_one_budget(redis_url: str) -> None:
    def one_scheduler() -> int:
        with Redis.from_url(redis_url) as client:
            budgets = Budgets(client)
            return sum(take(budgets, 3, burst=50) for _ in range(20))

    assert sum(race([one_scheduler] * 8)) == 50


def test_a_wiped_redis_grants_one_burst_more_and_no_error(budgets: Budgets, redis: Redis) -> None:
    assert take(budgets, 100) == 5
    redis.flushall()
    redis.script_flush()

    assert take(budgets, 100) == 5
    assert take(budgets, 100) == 0
    assert budgets.shared


def test_keys_end_by_themselves(budgets: Budgets, redis: Redis) -> None:
    take(budgets, 5, per_second=10, burst=5)

    [key] = redis.keys("*")
    assert key == f"{KEY_PREFIX}{APP}".encode()
    assert 0 < redis.pttl(key) <= 1500


@pytest.mark.parametrize("per_second", [0.01, 1, 3, 900, 1500, 300_000, 5_000_000])
def test_rates_from_very_slow_to_absurd_are_never_rounded_up(budgets: Budgets, per_second: float) -> None:
    began = time.monotonic()
    granted = sum(take(budgets, 1_000_000, per_second=per_second, burst=2) for _ in range(20))

    assert granted <= 2 + per_second * (time.monotonic() - began)


# Local, without Redis


@pytest.fixture
def budgets_without_redis() -> Iterator[Budgets]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        # Bound and not listening: connections are refused, and nobody else can get the port.
        with Redis(host="127.0.0.1", port=taken.getsockname()[1], socket_connect_timeout=1) as client:
            yield Budgets(client)


def test_without_redis_every_scheduler_takes_a_quarter(budgets_without_redis: Budgets) -> None:
    assert take(budgets_without_redis, 100, burst=40) == 10
    assert take(budgets_without_redis, 100, burst=40) == 0
    assert not budgets_without_redis.shared


def test_without_redis_the_smallest_burst_still_lets_one_through(budgets_without_redis: Budgets) -> None:
    assert take(budgets_without_redis, 100, burst=1) == 1


def test_redis_that_comes_back_is_used_again(redis_url: str) -> None:
    with Redis.from_url(redis_url) as client:
        budgets = Budgets(client)
        assert take(budgets, 100, burst=40) == 40
        client.set(f"{KEY_PREFIX}{APP}", "not a number")
        assert take(budgets, 100, burst=40) == 10
        assert not budgets.shared

        client.delete(f"{KEY_PREFIX}{APP}")
        assert take(budgets, 1, burst=40) == 1
        assert budgets.shared


steps = st.lists(
    st.tuples(
        st.integers(0, 3_000_000),  # microseconds that pass before
        st.integers(0, 60),  # requests wanted
        st.floats(0, 1),  # the part of the grant that is used
    ),
    min_size=1,
    max_size=30,
)


@given(
    steps=steps,
    per_second=st.floats(0.05, 5000),
    burst=st.integers(1, 200),
    start=st.integers(0, 10**14),
)
def test_in_no_window_is_more_used_than_the_rate_allows_plus_one_burst(
    steps: list[tuple[int, int, float]], per_second: float, burst: int, start: int
) -> None:
    budgets = Budgets(Redis())
    demand = partial(Demand, APP, per_second=per_second, burst=burst)
    now, used = start, []
    for passes, wanted, share in steps:
        now += passes
        granted = budgets._take_locally(demand(wanted=wanted), now)
        assert 0 <= granted <= wanted
        using = round(granted * share)
        budgets._take_locally(demand(wanted=using - granted), now)
        used.append((now, using))

    local_rate, local_burst = per_second * LOCAL_SHARE, max(1, int(burst * LOCAL_SHARE))
    for first, last in itertools.combinations_with_replacement(range(len(used)), 2):
        seconds = (used[last][0] - used[first][0]) / 1_000_000
        assert sum(count for _, count in used[first : last + 1]) <= local_rate * seconds + local_burst + 1e-6


@given(per_second=st.floats(0.001, 1_000_000))
def test_the_time_between_two_requests_is_never_rounded_down(per_second: float) -> None:
    assert limits._interval(per_second) * per_second >= 1_000_000 * (1 - 1e-12)


@given(per_second=st.floats(0.05, 5000), burst=st.integers(1, 200), start=st.integers(0, 10**14))
def test_after_silence_the_whole_burst_is_there_whatever_the_clock_shows(
    per_second: float, burst: int, start: int
) -> None:
    budgets = Budgets(Redis())
    demand = Demand(APP, 1000, per_second, burst)
    whole = max(1, int(burst * LOCAL_SHARE))

    assert budgets._take_locally(demand, start) == whole
    silence = int(whole * 1_000_000 / (per_second * LOCAL_SHARE)) + whole + 1
    assert budgets._take_locally(demand, start + silence) == whole
