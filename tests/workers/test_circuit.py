"""A provider that is down, as the authorization server and the accounts see it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from concurrent.futures import wait
from dataclasses import replace

import pytest
from redis import Redis
from sqlalchemy import text

from sandbox.faults import FaultKind, FaultRule
from sandbox.selection import Stage
from store.circuits import KEY_PREFIX, CircuitView
from tests.support.arrivals import arrivals_at
from tests.support.fleet import Fleet, Worker, eventually
from tokenfleet.circuit import CircuitState
from tokenfleet.jobs import AccountId


@pytest.fixture
def redis(redis_url: str) -> Iterator[Redis]:
    with Redis.from_url(redis_url) as client:
        yield client


def state(fleet: Fleet, redis: Redis) -> CircuitState:
    standings = CircuitView(redis).read([fleet.app.app_id])
    assert standings is not None
    return standings[fleet.app.app_id].state


def lengthen(fleet: Fleet, redis: Redis) -> None:
    """Keep the circuit open for as long as the test needs."""
    redis.hset(f"{KEY_PREFIX}{fleet.app.app_id}", "until", 4_000_000_000_000)


def end_the_wait(fleet: Fleet, redis: Redis) -> None:
    """Let the time pass for which the circuit stays open."""
    redis.hset(f"{KEY_PREFIX}{fleet.app.app_id}", "until", 1)


def break_down(fleet: Fleet, redis: Redis, worker: Worker) -> list[AccountId]:
    """Let the provider fail for twelve accounts."""
    ids = fleet.connect(*(f"first-{number}" for number in range(12)))
    fleet.server.add_faults(FaultRule(kind=FaultKind.STATUS_500, prefix="first-"))
    worker.run(fleet.claim())
    eventually(lambda: state(fleet, redis) is CircuitState.OPEN, what="the circuit opens")
    lengthen(fleet, redis)
    return ids


def let_everybody_be_claimed(fleet: Fleet) -> None:
    with fleet.engine.begin() as connection:
        connection.execute(
            text("UPDATE tokenfleet.refresh_schedule SET claimed_until = NULL, next_refresh_at = now()")
        )


def release_unstarted(fleet: Fleet) -> None:
    with fleet.engine.begin() as connection:
        connection.execute(
            text(
                "UPDATE tokenfleet.refresh_schedule SET claimed_until = NULL WHERE started_epoch < claim_epoch"
            )
        )


def test_nobody_is_asked_while_it_is_open_by_no_worker_and_it_costs_them_nothing(
    fleet: Fleet, redis: Redis
) -> None:
    with fleet.worker() as first, fleet.worker() as second, arrivals_at(fleet.server) as arrivals:
        break_down(fleet, redis, first)
        asked = len(arrivals)
        others = fleet.connect(*(f"other-{number}" for number in range(20)))
        for worker in (first, second):
            worker.run(fleet.claim())
        assert len(arrivals) == asked
    rows = [fleet.row(account_id) for account_id in others]
    assert {(row.attempts, row.unanswered, row.last_error) for row in rows} == {(0, 0, None)}


def test_failures_that_arrive_while_it_is_open_cost_the_accounts_nothing(fleet: Fleet, redis: Redis) -> None:
    late = fleet.connect(*(f"late-{number}" for number in range(5)))
    fleet.server.add_faults(FaultRule(kind=FaultKind.STATUS_500, prefix="late-", stage=Stage.AFTER_DECIDING))
    with fleet.worker() as worker:
        with fleet.server.hold(prefix="late-"):
            running = [worker.submit(job) for job in fleet.claim()]
            fleet.server.wait_for_held(len(late))
            failed = break_down(fleet, redis, worker)
        wait(running, 30)
        eventually(lambda: fleet.row(late[-1]).last_error == "http_500", what="the late ones are settled")
    assert {fleet.row(account_id).attempts for account_id in failed} <= {0, 1}
    for account_id in late:
        row = fleet.row(account_id)
        assert (row.status, row.attempts) == ("active", 0)
    assert fleet.column(
        "SELECT count(failing_since) FROM tokenfleet.refresh_schedule WHERE account_id = ANY (:ids)", ids=late
    ) == [0]


def test_of_two_workers_one_tries_one_account_and_its_success_closes_the_circuit(
    fleet: Fleet, redis: Redis
) -> None:
    with fleet.worker() as first, fleet.worker() as second, arrivals_at(fleet.server) as arrivals:
        break_down(fleet, redis, first)
        second.run(fleet.claim())
        let_everybody_be_claimed(fleet)
        fleet.server.clear_faults()
        asked = len(arrivals)
        end_the_wait(fleet, redis)
        with fleet.server.hold():
            # Each is offered several accounts, until one of them has seen that it is half open, and twice more.
            for further in itertools.count():
                jobs = [(worker, job) for worker in (first, second) for job in fleet.claim(count=4)]
                wait([worker.submit(job) for worker, job in jobs], 30)
                if len(arrivals) > asked and further > 3:
                    break
                release_unstarted(fleet)
            assert len(arrivals) == asked + 1
            assert state(fleet, redis) is CircuitState.HALF_OPEN
        eventually(lambda: state(fleet, redis) is CircuitState.CLOSED, what="the circuit closes")
        let_everybody_be_claimed(fleet)

        def all_well() -> bool:
            release_unstarted(fleet)
            second.run(fleet.claim())
            return fleet.server.ledger().refreshes >= 12

        eventually(all_well, what="everybody is refreshed")
    assert fleet.server.ledger().presented_twice == 0


def test_a_trial_that_fails_opens_it_again_and_costs_its_account_nothing(fleet: Fleet, redis: Redis) -> None:
    with fleet.worker() as worker, arrivals_at(fleet.server) as arrivals:
        break_down(fleet, redis, worker)
        let_everybody_be_claimed(fleet)
        before = fleet.column("SELECT attempts FROM tokenfleet.refresh_schedule ORDER BY account_id")
        asked = len(arrivals)
        end_the_wait(fleet, redis)

        def tried() -> bool:
            release_unstarted(fleet)
            worker.run(fleet.claim())
            return len(arrivals) > asked

        eventually(tried, what="one account is tried")
        eventually(lambda: state(fleet, redis) is CircuitState.OPEN, what="the circuit opens again")
        assert len(arrivals) == asked + 1
        standings = CircuitView(redis).read([fleet.app.app_id])
    assert standings is not None
    assert standings[fleet.app.app_id].openings == 2
    assert fleet.column("SELECT attempts FROM tokenfleet.refresh_schedule ORDER BY account_id") == before


def test_a_wiped_redis_has_an_open_circuit_back_from_the_workers_that_live(
    fleet: Fleet, redis: Redis
) -> None:
    with fleet.worker() as worker:
        break_down(fleet, redis, worker)
        fleet.connect("another")
        worker.run(fleet.claim())
        redis.flushall()
        eventually(lambda: state(fleet, redis) is CircuitState.OPEN, within=5, what="it is open again")


def test_without_redis_a_worker_opens_its_own_circuit(fleet: Fleet) -> None:
    fleet.connect(*(f"first-{number}" for number in range(12)))
    fleet.server.add_faults(FaultRule(kind=FaultKind.STATUS_500))
    fleet.settings = replace(fleet.settings, redis_url="redis://127.0.0.1:1/0")
    with fleet.worker() as worker, arrivals_at(fleet.server) as arrivals:
        worker.run(fleet.claim())
        asked = len(arrivals)
        fleet.connect("other")
        worker.run(fleet.claim())
        assert len(arrivals) == asked


def test_a_customers_own_trouble_is_no_outage(fleet: Fleet, redis: Redis) -> None:
    fleet.connect(*(f"customer-{number}" for number in range(15)))
    fleet.server.add_faults(FaultRule(kind=FaultKind.HTML_403))
    with fleet.worker() as worker:
        worker.run(fleet.claim())
        fleet.connect("other")
        fleet.server.clear_faults()
        worker.run(fleet.claim())
    assert fleet.server.ledger().refreshes == 1
    assert state(fleet, redis) is CircuitState.CLOSED
