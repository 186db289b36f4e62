"""A whole fleet that tells: a provider's word becomes a signed message, whatever dies in between."""

from __future__ import annotations

from redis import Redis

from sandbox.faults import FaultKind, FaultRule
from tests.support.fleet import Fleet, eventually
from tests.support.post_office import Office
from tests.support.processes import SCHEDULER, SHORT_LADDER, Processes
from tests.support.webhook_receiver import Receiver

REFRESHING = ("cli", "worker", "--queues", "refresh")
DELIVERING = ("cli", "worker", "--queues", "webhooks")
REJECTED = tuple(f"rejected-{number}" for number in range(12))
SETTINGS = SHORT_LADDER | {"allow_private_webhooks": "true", "webhook_timeout_seconds": "1"}


def test_every_account_that_is_given_up_is_told_once_through_a_killed_worker_and_a_wiped_redis(
    office: Office, receiver: Receiver, fleet: Fleet, run: Processes, redis_url: str
) -> None:
    endpoint = office.add(receiver.url)
    secret = office.secrets[endpoint].reveal()
    receiver.gate.clear()
    fleet.server.add_faults(FaultRule(kind=FaultKind.INVALID_GRANT, prefix="rejected"))
    ids = fleet.connect("well", *REJECTED)
    _, refreshing, first = run.fleet(SCHEDULER, REFRESHING, DELIVERING, **SETTINGS)
    eventually(lambda: len(receiver.received) > 0, what="the first is on its way")

    first.kill()
    with Redis.from_url(redis_url) as redis:
        redis.flushall()
    receiver.gate.set()
    [second] = run.fleet(DELIVERING, **SETTINGS)
    eventually(lambda: set(office.states(endpoint)) == {"delivered"} and len(office.states(endpoint)) == 12)

    assert {each.account for each in receiver.received} == set(ids[1:])
    assert len(set(receiver.ids())) == 12, "what came twice came under one id"
    assert all(each.is_signed_with(secret) for each in receiver.received)
    assert {each.document["event_type"] for each in receiver.received} == {
        "integrated_account:authentication_error"
    }
    assert "tokenfleet webhooks" not in " ".join(
        office.column("SELECT application_name FROM pg_stat_activity WHERE application_name LIKE :name",
                      name=f"%{refreshing.process.pid}%")
    ), "a worker of refreshes has no connection for webhooks"  # fmt: skip
    assert second.stop() == 0
