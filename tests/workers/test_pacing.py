"""The pace as the authorization server sees it: real workers, real Redis, and the moments at which requests arrive."""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from redis import Redis
from sqlalchemy import text

from providers import load_registry
from sandbox.definition import definition_toml
from sandbox.faults import FaultKind, FaultRule
from store.limits import KEY_PREFIX
from tests.support.altering_proxy import AlteringProxy
from tests.support.arrivals import arrivals_at, peak
from tests.support.fleet import Fleet, eventually
from tokenfleet.jobs import AccountId, RefreshJob


@pytest.fixture
def providers(tmp_path: Path) -> Path:
    return tmp_path / "providers"


def set_rate(fleet: Fleet, providers: Path, rate: str) -> None:
    definition = definition_toml(fleet.server.url, fleet.server.config)
    (providers / "sandbox.toml").write_text(f"{definition}\n[rate]\n{rate}\n")
    fleet.registry = load_registry(providers, allow_http=True)


def connect(fleet: Fleet, count: int) -> list[AccountId]:
    return fleet.connect(*(f"customer-{number}" for number in range(count)))


def parts(jobs: Sequence[RefreshJob], size: int) -> list[RefreshJob]:
    return [
        RefreshJob(job.job_id, job.app_id, job.accounts[start : start + size])
        for job in jobs
        for start in range(0, len(job.accounts), size)
    ]


def attempts(fleet: Fleet) -> int:
    [total] = fleet.column("SELECT sum(attempts + unanswered)::int FROM tokenfleet.refresh_schedule")
    return int(total)


def test_two_workers_keep_one_pace_with_replays_a_wipe_of_redis_and_a_restart(
    fleet: Fleet, providers: Path, redis_url: str
) -> None:
    rate, burst = 40.0, 20
    connect(fleet, 110)
    set_rate(fleet, providers, f"requests_per_second = {rate}\nburst = {burst}")
    # Each of these is asked again at once: one more request.
    fleet.server.add_faults(FaultRule(kind=FaultKind.RESET_BEFORE, count=8))
    jobs = parts(fleet.claim(), 15)
    with arrivals_at(fleet.server) as arrivals, fleet.worker() as first:
        with fleet.worker() as second:
            running = [worker.submit(job) for job, worker in zip(jobs[:6], [first, second] * 3, strict=True)]
            eventually(lambda: len(arrivals) > 30, what="it is under way")
            with Redis.from_url(redis_url) as redis:
                redis.flushall()
            for future in running:
                future.result(30)
        with fleet.worker() as third:
            third.run(jobs[6:])

            def all_are_refreshed() -> bool:
                # The one that ended has given back whom it had not asked.
                third.run(parts(fleet.claim(), 15))
                return fleet.server.ledger().refreshes == 110

            eventually(all_are_refreshed, what="all are refreshed")
    assert len(arrivals) == 118
    assert peak(arrivals, rate, burst) <= 1
    assert fleet.server.ledger().presented_twice == 0


def test_the_most_urgent_of_those_who_wait_goes_first(fleet: Fleet, providers: Path, redis_url: str) -> None:
    ids = connect(fleet, 12)
    set_rate(fleet, providers, "requests_per_second = 40\nburst = 1")
    with fleet.engine.begin() as connection:
        connection.execute(
            text(
                "UPDATE tokenfleet.refresh_schedule SET next_refresh_at = now() - account_id * interval '1 min'"
            )
        )
    [job] = fleet.claim()
    shuffled = list(job.accounts)
    random.Random(1).shuffle(shuffled)
    with arrivals_at(fleet.server) as arrivals, fleet.worker() as worker:
        worker.run([RefreshJob(job.job_id, job.app_id, tuple(shuffled))])
        eventually(lambda: len(arrivals) == len(ids), what="all are asked")
    order = [len(ids) - 1 - int(arrival.subject.removeprefix("customer-")) for arrival in arrivals]
    # One whose moment this machine slept through takes the next slot.
    assert all(abs(place - urgency) <= 2 for place, urgency in enumerate(order)), order


def test_nobody_who_waits_for_a_slot_is_sent_into_a_pause_and_it_costs_them_nothing(
    fleet: Fleet, providers: Path
) -> None:
    """Not by the worker that heard of it, nor by another one that waits meanwhile."""
    ids = connect(fleet, 20)
    set_rate(fleet, providers, "requests_per_second = 5\nburst = 1")
    fleet.server.add_faults(FaultRule(kind=FaultKind.STATUS_429_RETRY_AFTER, retry_after_seconds=60))
    first_jobs = parts(fleet.claim(), 10)
    with arrivals_at(fleet.server) as arrivals, fleet.worker() as first, fleet.worker() as second:
        running = [worker.submit(job) for job, worker in zip(first_jobs, (first, second), strict=True)]
        for future in running:
            future.result(30)
        eventually(
            lambda: not any(fleet.row(account_id).claimed for account_id in ids) or late(fleet) == 0,
            what="those who waited are given back",
        )
        assert len(arrivals) == 1
        with fleet.engine.begin() as connection:
            connection.execute(text("UPDATE tokenfleet.refresh_schedule SET claimed_until = NULL"))
        second.run(fleet.claim())
        assert len(arrivals) == 1
    assert attempts(fleet) == 0
    assert fleet.current_app().paused_until is not None
    assert fleet.server.ledger().presented_twice == 0


def late(fleet: Fleet) -> int:
    """Return how many claims were started and not given back."""
    [count] = fleet.column(
        "SELECT count(*) FROM tokenfleet.refresh_schedule "
        "WHERE claimed_until > clock_timestamp() AND started_epoch = claim_epoch"
    )
    return int(count)


def test_a_good_answer_that_leaves_no_request_is_saved_and_pauses_the_app_until_the_reset(
    fleet: Fleet, providers: Path
) -> None:
    connect(fleet, 1)
    with AlteringProxy(fleet.server.url) as proxy, ExitStack() as stack:
        proxy.headers = {"X-Left": "0", "X-Reset": "600"}
        headers = 'remaining_header = "X-Left"\nreset_header = "X-Reset"'
        definition = definition_toml(proxy.url, fleet.server.config)
        (providers / "sandbox.toml").write_text(f"{definition}\n[rate]\n{headers}\n")
        fleet.registry = load_registry(providers, allow_http=True)
        worker = stack.enter_context(fleet.worker())
        worker.run(fleet.claim())
        [generation] = fleet.generations().values()
        assert generation == 2
        [seconds] = fleet.column(
            "SELECT EXTRACT(epoch FROM paused_until - now())::float FROM tokenfleet.oauth_apps"
        )
        assert 590 < seconds <= 601
        fleet.connect("another")
        worker.run(fleet.claim())
    assert fleet.server.ledger().refreshes == 1


def test_a_tiny_budget_asks_one_and_lets_the_others_wait_without_an_attempt(
    fleet: Fleet, providers: Path, redis_url: str
) -> None:
    ids = connect(fleet, 4)
    set_rate(fleet, providers, "requests_per_second = 0.05\nburst = 1")
    with Redis.from_url(redis_url) as redis:
        redis.hset(f"{KEY_PREFIX}{fleet.app.app_id}", "arrival", 1)
        with arrivals_at(fleet.server) as arrivals, fleet.worker() as worker:
            worker.run(fleet.claim())
            eventually(lambda: late(fleet) == 0, what="the others are given back")
            assert len(arrivals) == 1
            # They wait for about as long as the slot is away, and nobody takes them for answers lost.
            [waiting] = fleet.column(
                "SELECT count(*) FROM tokenfleet.refresh_schedule "
                "WHERE claimed_until > now() + interval '9 seconds' AND last_error IS NULL"
            )
            assert waiting == len(ids) - 1
            redis.hset(f"{KEY_PREFIX}{fleet.app.app_id}", "arrival", 1)
    assert attempts(fleet) == 0


def test_without_redis_a_paced_app_goes_on_slowly(fleet: Fleet, providers: Path) -> None:
    connect(fleet, 4)
    set_rate(fleet, providers, "requests_per_second = 40\nburst = 40")
    fleet.settings = replace(fleet.settings, redis_url="redis://127.0.0.1:1/0")
    with arrivals_at(fleet.server) as arrivals, fleet.worker() as worker:
        worker.run(fleet.claim())
        eventually(lambda: len(arrivals) == 4, what="all are asked")
    assert arrivals[-1].at - arrivals[0].at >= 3 / 10 * 0.9, "a quarter of the rate, and no burst"


def test_a_success_ends_the_row_of_pauses_that_nobody_gave_a_length(fleet: Fleet) -> None:
    connect(fleet, 1)
    with fleet.engine.begin() as connection:
        connection.execute(text("UPDATE tokenfleet.oauth_apps SET throttles = 3"))
    with fleet.worker() as worker:
        worker.run(fleet.claim())
    assert fleet.current_app().throttles == 0


def test_an_app_without_a_rate_costs_no_redis_call_per_request(fleet: Fleet, redis_url: str) -> None:
    connect(fleet, 100)
    with Redis.from_url(redis_url) as redis, fleet.worker() as worker:
        jobs = parts(fleet.claim(), 50)
        redis.config_resetstat()
        worker.run(jobs)
        eventually(lambda: fleet.server.ledger().refreshes == 100, what="all are refreshed")
        stats = redis.info("commandstats")
    scripts = sum(entry["calls"] for name, entry in stats.items() if name.startswith("cmdstat_eval"))
    # Two leases taken, given back with some commits, one look at the circuit each, some reports.
    assert scripts < 40
    assert not redis.keys(f"{KEY_PREFIX}*")
