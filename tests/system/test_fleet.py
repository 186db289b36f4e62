"""Several schedulers and workers at once, and what their readers and the provider see of it.

The tokens live 8 s, so an account is due between 1.6 s and 2.7 s after each refresh, and what readers find would
run out 5.3 s after that at the earliest.
"""

from __future__ import annotations

import signal
import time

import pytest
from redis import Redis

from sandbox.config import SandboxConfig
from tests.support.builders import values
from tests.support.fleet import Fleet, eventually
from tests.support.processes import SCHEDULER, SHORT_LADDER, WORKER, Processes
from tokenfleet.jobs import REFRESH_QUEUE

LIFETIME = 8
LIFETIMES = 3
ACCOUNTS = tuple(f"customer-{number}" for number in range(60))


@pytest.fixture
def sandbox_config() -> SandboxConfig:
    return SandboxConfig(access_lifetime_seconds=LIFETIME)


def watch(fleet: Fleet, seconds: float) -> float:
    """Look as a reader does, several times a second; return the shortest life that was left in any token."""
    shortest = float(LIFETIME)
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        shortest = min(shortest, fleet.shortest_life())
        time.sleep(0.1)
    return shortest


def test_two_schedulers_and_two_workers_keep_every_account_fresh_and_present_no_token_twice(
    fleet: Fleet, run: Processes
) -> None:
    members = run.fleet(SCHEDULER, SCHEDULER, WORKER, WORKER, **SHORT_LADDER)
    fleet.connect(*ACCOUNTS)
    shortest = watch(fleet, LIFETIMES * LIFETIME)
    assert [member.stop() for member in members] == [0, 0, 0, 0]
    ledger = fleet.server.ledger()
    assert ledger.presented_twice == 0, ledger.violations
    assert (ledger.rejected, ledger.rotations_lost, ledger.families_revoked) == (0, 0, 0)
    assert fleet.strays() == []
    assert min(fleet.server.subject(subject).refreshes for subject in ACCOUNTS) >= 2 * LIFETIMES
    assert shortest > 0
    workers = members[2:]
    assert all(member.events("job.started") for member in workers), "both workers had their share"
    with fleet.engine.connect() as connection:
        opened = values(
            connection, "SELECT sum(opened) FROM tokenfleet.unsealings WHERE purpose = 'refresh'"
        )[0]
        callers = values(connection, "SELECT count(DISTINCT caller) FROM tokenfleet.unsealings")[0]
    # Each refresh opened one token and it is on record, also what was opened since the last look before the stop.
    assert ledger.refreshes <= opened <= ledger.refreshes + len(ACCOUNTS)
    assert callers == 2


def test_a_wiped_redis_costs_a_moment_and_no_token(fleet: Fleet, run: Processes, redis_url: str) -> None:
    _, first, second = run.fleet(SCHEDULER, WORKER, WORKER, **SHORT_LADDER)
    fleet.connect(*ACCOUNTS)
    eventually(lambda: min(fleet.generations().values()) > 1, what="every account was refreshed")
    with Redis.from_url(redis_url) as redis:
        for worker in (first, second):
            worker.process.send_signal(signal.SIGSTOP)
        eventually(lambda: redis.llen(REFRESH_QUEUE) != 0, what="jobs wait in the queue")
        before = fleet.generations()
        # The jobs in the queue, the leases, the messages that were delivered and not acknowledged: all gone.
        redis.flushall()
        for worker in (first, second):
            worker.process.send_signal(signal.SIGCONT)
        shortest = float(LIFETIME)

        def refreshed_since(earlier: dict[str, int]) -> bool:
            nonlocal shortest
            shortest = min(shortest, fleet.shortest_life())
            return all(fleet.generations()[subject] > number for subject, number in earlier.items())

        eventually(lambda: refreshed_since(before), what="what was lost is claimed again")
        for _ in range(20):
            redis.flushall()
            shortest = min(shortest, watch(fleet, 0.1))
        before = fleet.generations()
        eventually(lambda: refreshed_since(before), what="the fleet is in step again")
    assert shortest > 0
    run.end()
    ledger = fleet.server.ledger()
    assert ledger.presented_twice == 0, ledger.violations
    assert (ledger.rejected, ledger.rotations_lost, ledger.families_revoked) == (0, 0, 0)
    assert fleet.strays() == []
