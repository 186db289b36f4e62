"""What a refresh costs, in things that can be counted on any machine: statements, round trips, messages.

A regression shows here as a number, not as a slower second. Whoever changes one of these numbers on purpose says so
in the commit, and measures (`bench/refresh_throughput.py`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

import pytest
from redis import Redis
from sqlalchemy import Engine, event

from tests.support.fleet import Fleet
from tokenfleet.jobs import MAX_BATCH

ONE_GROUP_SECONDS: Final = 1.0
"""Longer than the answers of one job take to come in, so that they make one group."""
NOT_OF_A_REFRESH: Final = ("tokenfleet.data_keys", "tokenfleet.key_holders", "tokenfleet.unsealings")
"""What a worker looks at every 15 seconds, however much it does meanwhile."""
MOST_ROUND_TRIPS: Final = 12
"""Of one job: its lease, the app's circuit and pace, the release. Nine were counted."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What was counted meanwhile."""

    statements: Counter[str]
    redis_commands: dict[str, int]

    @property
    def round_trips(self) -> int:
        """How often a client waited for Redis: what a script does inside the server counts once, as the script."""
        return sum(
            self.redis_commands.get(each, 0) for each in ("evalsha", "eval", "hgetall", "mget", "brpop")
        )


@contextmanager
def counted(redis_url: str) -> Iterator[list[Cost]]:
    """Count what every engine of this process sends to Postgres, and what the Redis server is asked."""
    statements: Counter[str] = Counter()
    cost: list[Cost] = []

    def note(*arguments: Any) -> None:
        statement = " ".join(str(arguments[2]).split())
        if not any(table in statement for table in NOT_OF_A_REFRESH):
            statements[statement] += 1

    with Redis.from_url(redis_url) as redis:
        redis.config_resetstat()
        event.listen(Engine, "before_cursor_execute", note)
        try:
            yield cost
        finally:
            event.remove(Engine, "before_cursor_execute", note)
        asked: dict[str, dict[str, int]] = redis.info("commandstats")
    ours = {name.removeprefix("cmdstat_"): values["calls"] for name, values in asked.items()}
    ignored = ("info", "config|resetstat", "client|setinfo", "hello", "select", "ping", "auth", "script|load")
    cost.append(Cost(statements, {n: count for n, count in ours.items() if n not in ignored}))


def cost_of(fleet: Fleet, redis_url: str, count: int) -> Cost:
    """Return what one job of ``count`` healthy accounts costs, from the message to the released lease."""
    tunables = fleet.settings.tunables.model_copy(update={"group_commit_seconds": ONE_GROUP_SECONDS})
    fleet.settings = replace(fleet.settings, tunables=tunables)
    fleet.connect(*(f"customer-{number}" for number in range(count)))
    [job] = fleet.claim()
    with fleet.worker() as worker, counted(redis_url) as cost:
        with fleet.server.hold():
            running = worker.submit(job)
            fleet.server.wait_for_held(count)
        running.result(30)
    assert set(fleet.generations().values()) == {2}
    return cost[0]


@pytest.mark.parametrize("count", [10, MAX_BATCH])
def test_a_job_costs_four_statements_however_many_accounts_it_has(
    fleet: Fleet, redis_url: str, count: int
) -> None:
    """The app, the fence, the reading of tokens, and one group that saves everything."""
    cost = cost_of(fleet, redis_url, count)

    assert list(cost.statements.values()) == [1, 1, 1, 1], "\n".join(cost.statements)
    assert cost.round_trips <= MOST_ROUND_TRIPS


def test_a_thousand_due_accounts_are_ten_messages_and_one_statement(fleet: Fleet, redis_url: str) -> None:
    fleet.connect(*(f"customer-{number}" for number in range(1000)))
    with counted(redis_url) as cost:
        jobs = fleet.claim()
        fleet.publish(jobs)

    assert [len(job.accounts) for job in jobs] == [MAX_BATCH] * 10
    assert list(cost[0].statements.values()) == [1]
    assert cost[0].redis_commands["lpush"] == 10
