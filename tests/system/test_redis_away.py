"""Redis cut off, slow, wiped or restarted while accounts are asked about: no token is presented twice, and nothing
needs a restart."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from redis import Redis
from redis.asyncio import Redis as AsyncRedis

import workers.engine
from embedded.valkey import EmbeddedValkey
from store.leases import KEY_PREFIX, Leases
from tests.support.builders import let_claims_expire
from tests.support.fleet import Fleet, eventually
from tests.support.processes import SCHEDULER, SHORT_LADDER, WORKER, Processes
from tests.support.proxy import Proxy
from tokenfleet.jobs import AccountId

AWAY = "Redis does not answer; refreshes go on without leases"

NO_BROKER = "the broker does not answer; nothing is claimed"


@pytest.fixture
def network(fleet: Fleet) -> Iterator[Proxy]:
    """The way of this fleet's workers to Redis."""
    with Proxy.before(fleet.settings.redis_url) as proxy:
        fleet.settings = replace(fleet.settings, redis_url=proxy.url(fleet.settings.redis_url))
        yield proxy


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The timeouts of production, shortened."""
    monkeypatch.setattr(workers.engine, "REDIS_TIMEOUT_SECONDS", 0.3)
    monkeypatch.setattr(workers.engine, "HOUSEKEEPING_SECONDS", 0.1)


def leases(redis_url: str) -> int:
    """Return how many leases there are now."""
    with Redis.from_url(redis_url) as redis:
        return sum(1 for _ in redis.scan_iter(f"{KEY_PREFIX}*"))


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("way", [Proxy.refuse, Proxy.black_hole, Proxy.stall])
def test_without_redis_a_message_delivered_twice_presents_the_token_once(
    fleet: Fleet, network: Proxy, redis_url: str, way: object
) -> None:
    assert callable(way)
    ids = fleet.connect(*(f"customer-{number}" for number in range(5)))
    with fleet.worker() as first, fleet.worker() as second:
        way(network)
        with fleet.server.hold():
            jobs = fleet.claim()
            running = [worker.submit(job) for worker in (first, second) for job in jobs]
            fleet.server.wait_for_held(len(ids))
            eventually(lambda: first.engine.problems() == ([], [AWAY]), what="/healthz says 207 and why")
        for each in running:
            each.result(30)
        assert {fleet.row(each).generation for each in ids} == {2}

        network.heal()
        for worker in (first, second):
            eventually(partial(lambda engine: engine.problems() == ([], []), worker.engine))
        fleet.make_due(*ids)
        with fleet.server.hold():
            again = [first.submit(job) for job in fleet.claim()]
            fleet.server.wait_for_held(len(ids))
            assert leases(redis_url) == len(ids), "leases are taken again, without a restart"
        for each in again:
            each.result(30)
    assert fleet.strays() == []
    ledger = fleet.server.ledger()
    assert (ledger.refreshes, ledger.presented_twice) == (2 * len(ids), 0), ledger.violations


def test_a_worker_outlives_connections_to_redis_that_are_reset_while_it_waits_for_an_answer(
    fleet: Fleet, network: Proxy
) -> None:
    """The writer finds the connection dead when it gives the leases back, and the next job when it takes its own."""
    ids = fleet.connect("first", "second")
    with fleet.worker() as worker:
        for _ in range(2):
            fleet.make_due(*ids)
            with fleet.server.hold():
                running = [worker.submit(job) for job in fleet.claim()]
                fleet.server.wait_for_held(len(ids))
                network.cut()
            for each in running:
                each.result(30)
            network.cut()
        assert worker.engine.problems()[0] == []
    assert [fleet.row(each).generation for each in ids] == [3, 3]
    assert fleet.server.ledger().presented_twice == 0


def test_a_slow_redis_is_waited_for(fleet: Fleet, network: Proxy, redis_url: str) -> None:
    ids = fleet.connect(*(f"customer-{number}" for number in range(5)))
    network.slow(0.15)
    with fleet.worker() as first, fleet.worker() as second:
        with fleet.server.hold():
            jobs = fleet.claim()
            running = [worker.submit(job) for worker in (first, second) for job in jobs]
            fleet.server.wait_for_held(len(ids))
            assert leases(redis_url) == len(ids)
        for each in running:
            each.result(30)
        eventually(lambda: leases(redis_url) == 0, what="the leases are given back")
    assert fleet.strays() == []
    ledger = fleet.server.ledger()
    assert (ledger.refreshes, ledger.presented_twice) == (len(ids), 0), ledger.violations


def test_a_lease_that_was_lost_while_the_provider_thinks_is_taken_again(fleet: Fleet, redis_url: str) -> None:
    """Until then the started claim keeps copies of the message out; from then on also the next claim's message."""
    tunables = fleet.settings.tunables.model_copy(update={"lease_seconds": 0.6})
    fleet.settings = replace(fleet.settings, tunables=tunables)
    [account_id] = fleet.connect("customer")
    with fleet.worker() as first, fleet.worker() as second:
        with fleet.server.hold():
            jobs = fleet.claim()
            running = first.submit(jobs[0])
            fleet.server.wait_for_held(1)
            with Redis.from_url(redis_url) as redis:
                redis.flushall()
            second.run(jobs)
            eventually(lambda: leases(redis_url) == 1, what="the lease is there again")
            let_claims_expire(fleet.engine)
            second.run(fleet.claim())
        running.result(30)
    assert fleet.row(account_id).generation == 2
    ledger = fleet.server.ledger()
    assert (ledger.refreshes, ledger.presented_twice) == (1, 0), ledger.violations


def test_nobody_waits_to_give_leases_back_to_a_redis_that_just_did_not_answer(redis_url: str) -> None:
    """The writer would wait between two commits. Who waits needs a new connection, and the proxy counts these."""

    async def use(network: Proxy) -> list[int]:
        redis = AsyncRedis.from_url(network.url(redis_url), socket_timeout=0.2)
        held = Leases(redis, life_seconds=30)
        one = [AccountId(1)]
        connections: list[int] = []
        network.stall()
        assert await held.take(one, "me") is None
        connections.append(network.accepted)
        await held.give_back(one, "me")
        connections.append(network.accepted)
        network.heal()
        assert await held.take(one, "me") == frozenset(one)
        await held.give_back(one, "me")
        await redis.aclose()
        return connections

    with Proxy.before(redis_url) as network:
        before, after = asyncio.run(use(network))
    assert before == after
    assert leases(redis_url) == 0, "once it has answered, leases are given back"


def test_a_fleet_needs_no_restart_after_its_redis_was_cut_off_and_restarted_empty(
    fleet: Fleet, run: Processes, tmp_path: Path
) -> None:
    """One server carries jobs, leases and pace here, as it does by default."""
    with EmbeddedValkey(tmp_path / "valkey") as valkey, Proxy.before(valkey.url) as network:
        members = run.fleet(SCHEDULER, WORKER, redis_url=network.url(valkey.url), **SHORT_LADDER)
        scheduler, worker = members
        ids = fleet.connect(*(f"customer-{number}" for number in range(20)))

        def are_at(generation: int) -> bool:
            return set(fleet.generations().values()) == {generation}

        eventually(lambda: are_at(2))
        network.black_hole()
        fleet.make_due(*ids)
        eventually(lambda: worker.health() == (207, [AWAY]), what="/healthz says so")
        network.heal()
        eventually(lambda: are_at(3), what="fresh again after the partition")

        valkey.stop()
        fleet.make_due(*ids)
        eventually(lambda: NO_BROKER in scheduler.health()[1], what="/healthz says so")
        assert scheduler.health()[0] == 503
        valkey.start()
        eventually(lambda: are_at(4), what="fresh again after the restart")
        for member in members:
            eventually(member.is_well, what="/healthz says 200")
        assert [member.stop() for member in members] == [0, 0]
    assert fleet.strays() == []
    assert not any("Traceback" in member.text() for member in members)
    ledger = fleet.server.ledger()
    assert (ledger.refreshes, ledger.presented_twice) == (3 * len(ids), 0), ledger.violations
