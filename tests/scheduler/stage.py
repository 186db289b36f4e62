"""What the tests of the scheduler do and look at: real Postgres, and the broker's queue read raw."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from redis import Redis
from sqlalchemy import Engine, text

from providers import load_registry
from sandbox.definition import definition_toml
from scheduler.loop import Scheduler, TickResult
from scheduler.publisher import Publisher
from store import apps
from store.circuits import CircuitView
from tests.support.fleet import Fleet, eventually
from tokenfleet.broker import make_celery
from tokenfleet.jobs import REFRESH_QUEUE, AccountId, Epoch, RefreshJob


def make_scheduler(
    fleet: Fleet, redis: Redis, *, engine: Engine | None = None, **tunables: float
) -> Scheduler:
    """One more scheduler of the fleet, on the test's connections unless it is given an engine of its own."""
    settings = fleet.settings
    adjusted = settings.tunables.model_copy(update=tunables)
    publisher = Publisher(make_celery(settings), claim=timedelta(seconds=adjusted.claim_seconds))
    return Scheduler(engine or fleet.engine, fleet.registry, CircuitView(redis), publisher, adjusted)


@contextmanager
def running(scheduler: Scheduler) -> Iterator[threading.Thread]:
    """Run a scheduler's loop on a thread until the block ends."""
    thread = threading.Thread(target=scheduler.run, name="scheduler")
    thread.start()
    try:
        yield thread
    finally:
        scheduler.stop()
        thread.join(10)
        assert not thread.is_alive(), "the scheduler did not stop"


def messages(redis: Redis) -> list[Any]:
    """Return what stands in the broker's queue, oldest first."""
    raw: Any = redis.lrange(REFRESH_QUEUE, 0, -1)
    return [json.loads(message) for message in reversed(raw)]


def jobs(redis: Redis) -> list[RefreshJob]:
    """Return the jobs in the broker's queue, oldest first."""
    bodies = (json.loads(base64.b64decode(message["body"])) for message in messages(redis))
    return [RefreshJob.parse(arguments) for arguments, _, _ in bodies]


def published(redis: Redis) -> list[tuple[AccountId, Epoch]]:
    """Return every account and epoch in the broker's queue."""
    return [pair for job in jobs(redis) for pair in job.accounts]


def wait_until_published(redis: Redis, account_id: AccountId, epoch: int) -> None:
    eventually(lambda: (account_id, epoch) in published(redis), within=10, what="it is published")


def claims(fleet: Fleet) -> set[tuple[int, int]]:
    """Return every claimed account and its epoch."""
    with fleet.engine.connect() as connection:
        rows = connection.execute(
            text(
                "SELECT account_id, claim_epoch FROM tokenfleet.refresh_schedule "
                "WHERE claimed_until > clock_timestamp()"
            )
        )
        return {(row.account_id, row.claim_epoch) for row in rows}


def connect(fleet: Fleet, count: int, prefix: str = "customer") -> list[AccountId]:
    return fleet.connect(*(f"{prefix}-{number}" for number in range(count)))


def execute(fleet: Fleet, statement: str, **parameters: object) -> None:
    with fleet.engine.begin() as connection:
        connection.execute(text(statement), parameters)


def set_rate(fleet: Fleet, providers: Path, rate: str) -> None:
    """Give the sandbox's definition a ``[rate]`` table."""
    definition = definition_toml(fleet.server.url, fleet.server.config)
    (providers / "sandbox.toml").write_text(f"{definition}\n[rate]\n{rate}\n")
    fleet.registry = load_registry(providers, allow_http=True)


def hold(fleet: Fleet) -> None:
    """Hold the app, its probe due at once."""
    with fleet.engine.begin() as connection:
        began = apps.hold(
            connection,
            fleet.app.app_id,
            "invalid_client",
            generation=fleet.app.generation,
            probe_after=timedelta(0),
        )
    assert began


def at_once(*functions: Callable[[], TickResult]) -> list[TickResult]:
    """Call ``functions`` on threads that leave together."""
    barrier = threading.Barrier(len(functions))
    results: list[TickResult] = []

    def call(function: Callable[[], TickResult]) -> None:
        barrier.wait()
        results.append(function())

    threads = [threading.Thread(target=call, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(results) == len(functions)
    return results
