"""The fleet over RabbitMQ instead of Redis: what the broker promises there, and what it need not.

A RabbitMQ of its own is started for this file. Leases and pace stay in Redis.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from uuid import uuid4

import pytest

from sandbox.config import SandboxConfig
from tests.support import rabbitmq
from tests.support.fleet import Fleet, eventually
from tests.support.processes import SCHEDULER, SHORT_LADDER, WORKER, Processes
from tests.support.rabbitmq import RabbitMQ
from tokenfleet.jobs import REFRESH_QUEUE

_MISSING = rabbitmq.missing()
pytestmark = [
    pytest.mark.skipif(_MISSING is not None, reason=str(_MISSING)),
    # An Erlang node takes 6 s of CPU to start, and does so twice.
    pytest.mark.timeout(300),
]

NO_BROKER = "the broker does not answer; nothing is claimed"
PATIENT_LADDER = {"claim_seconds": "120", "lease_seconds": "26", "http_timeout_seconds": "12"}
ACCOUNTS = tuple(f"customer-{number}" for number in range(20))


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMQ]:
    """A running RabbitMQ."""
    with RabbitMQ(tmp_path_factory.mktemp("broker") / "rabbitmq") as broker:
        yield broker


@pytest.fixture
def fleet(fleet: Fleet, broker: RabbitMQ) -> Fleet:
    """A fleet whose jobs travel by RabbitMQ; nothing of an earlier test waits there."""
    fleet.settings = replace(fleet.settings, broker_url=broker.url)
    purge(broker)
    return fleet


@pytest.fixture
def environ(environ: dict[str, str], broker: RabbitMQ) -> dict[str, str]:
    return environ | {"TOKENFLEET_BROKER_URL": broker.url}


@pytest.fixture
def sandbox_config() -> SandboxConfig:
    return SandboxConfig(access_lifetime_seconds=8)


def purge(broker: RabbitMQ) -> int:
    """Throw away every message that waits, and return how many did."""
    with broker.connect() as connection:
        channel = connection.default_channel
        channel.queue_declare(REFRESH_QUEUE, durable=True, auto_delete=False)
        return int(channel.queue_purge(REFRESH_QUEUE))


def consumers(broker: RabbitMQ) -> int:
    """Return how many workers take jobs; each is well before it does."""
    with broker.connect() as connection:
        declared = connection.default_channel.queue_declare(REFRESH_QUEUE, durable=True, auto_delete=False)
        return int(declared.consumer_count)


def test_the_jobs_of_a_killed_worker_come_back_at_once(
    fleet: Fleet, run: Processes, broker: RabbitMQ
) -> None:
    """RabbitMQ delivers again when a connection is lost. Nobody claims anew here, so nothing else brings them."""
    victim, heir = run.fleet(WORKER, WORKER, **PATIENT_LADDER)
    eventually(lambda: consumers(broker) == 2, what="both take jobs")
    victim.process.send_signal(signal.SIGSTOP)
    ids = fleet.connect(*ACCOUNTS)
    [claimed] = fleet.claim(claim=timedelta(minutes=2))
    fleet.publish([replace(claimed, job_id=str(uuid4()), accounts=(pair,)) for pair in claimed.accounts])
    eventually(lambda: fleet.server.ledger().refreshes == len(ids) // 2, what="half are the heir's")
    victim.kill()
    eventually(lambda: fleet.server.ledger().refreshes == len(ids), what="the other half, too")
    eventually(lambda: fleet.strays() == [])
    assert heir.stop() == 0
    assert fleet.server.ledger().presented_twice == 0


def test_a_fleet_outlives_a_purge_of_its_queue_and_a_broker_that_restarts_empty(
    fleet: Fleet, run: Processes, broker: RabbitMQ
) -> None:
    # One thread, so one message: the next one waits in the queue.
    members = run.fleet(SCHEDULER, WORKER, worker_threads="1", **SHORT_LADDER)
    scheduler, worker = members
    fleet.connect(*ACCOUNTS)

    def all_are_refreshed() -> None:
        """Return when each was asked about after this moment."""
        before = fleet.generations()
        eventually(
            lambda: all(fleet.generations()[subject] > number for subject, number in before.items()),
            within=40,
            what="every account is refreshed again",
        )

    all_are_refreshed()
    worker.process.send_signal(signal.SIGSTOP)
    eventually(lambda: purge(broker) > 0, what="a job is thrown away")
    worker.process.send_signal(signal.SIGCONT)
    all_are_refreshed()

    broker.kill()
    eventually(lambda: scheduler.health() == (503, [NO_BROKER]), what="/healthz says so")
    broker.wipe()
    broker.start()
    all_are_refreshed()
    for member in members:
        eventually(member.is_well, what="/healthz says 200")
    assert [member.stop() for member in members] == [0, 0]
    assert not any("Traceback" in member.text() for member in members)
    assert fleet.strays() == []
    ledger = fleet.server.ledger()
    assert (ledger.presented_twice, ledger.rejected) == (0, 0), ledger.violations
