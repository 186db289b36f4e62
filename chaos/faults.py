"""Faults of servers, of the provider and of the disk: one row of the table each.

Every choice comes from the ``random.Random`` that a fault is given; what it breaks it mends before it returns.
"""

from __future__ import annotations

import os
import random
import resource
import signal
import time
from collections.abc import Callable
from contextlib import suppress

from redis import Redis
from redis.exceptions import RedisError
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from chaos.deaths import DieAnytime, Freeze
from chaos.points import Role
from chaos.scene import Fault, Scene
from sandbox.faults import FaultKind, FaultRule


class Strike(Fault):
    """Something happens to a server every few seconds."""

    def __init__(
        self,
        name: str,
        title: str,
        act: Callable[[Scene, random.Random], None],
        *,
        pause: tuple[float, float],
        least_seconds: float,
    ) -> None:
        self.name, self.title = name, title
        self._act, self._pause = act, pause
        self.least_seconds = least_seconds

    def run(self, scene: Scene, chance: random.Random, seconds: float) -> int:
        ends, count = time.monotonic() + seconds, 0
        while True:
            self._act(scene, chance)
            count += 1
            scene.pass_time(chance.uniform(*self._pause))
            if time.monotonic() >= ends:
                return count


class Misbehave(Fault):
    """The provider strikes a part of all requests."""

    def __init__(self, name: str, title: str, rule: FaultRule) -> None:
        self.name, self.title, self._rule = name, title, rule

    def run(self, scene: Scene, chance: random.Random, seconds: float) -> int:
        before = scene.stage.provider.struck()
        scene.stage.provider.misbehave(self._rule)
        try:
            scene.pass_time(seconds)
        finally:
            scene.stage.provider.behave()
        return scene.stage.provider.struck() - before


def _flush_redis(scene: Scene, _: random.Random) -> None:
    with suppress(RedisError), Redis.from_url(scene.stage.settings.redis_url, socket_timeout=5) as redis:
        redis.flushall()


def _restart_redis(scene: Scene, chance: random.Random) -> None:
    server = scene.stage.valkey
    _signal(server.pid, signal.SIGKILL)
    scene.pass_time(chance.uniform(0.1, 1.0))
    scene.stage.revive()


def _freeze_redis(scene: Scene, chance: random.Random) -> None:
    server = scene.stage.valkey
    _signal(server.pid, signal.SIGSTOP)
    try:
        scene.pass_time(chance.uniform(2.0, 4.0))
    finally:
        _signal(server.pid, signal.SIGCONT)


def _restart_postgres(scene: Scene, chance: random.Random) -> None:
    # SIGQUIT is the immediate shutdown: no checkpoint, recovery at the next start.
    _signal(scene.stage.postgres.pid, signal.SIGQUIT)
    scene.pass_time(chance.uniform(0.1, 1.0))
    scene.stage.revive()


def _disconnect_postgres(scene: Scene, _: random.Random) -> None:
    with suppress(SQLAlchemyError), scene.stage.engine.connect() as connection:
        connection.execute(
            text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        )


def _fill_journal_disk(scene: Scene, chance: random.Random) -> None:
    worker = chance.choice(scene.crew.steady(Role.WORKER))
    unlimited = resource.RLIM_INFINITY
    with suppress(ProcessLookupError):
        resource.prlimit(worker.pid, resource.RLIMIT_FSIZE, (0, unlimited))
        try:
            scene.pass_time(chance.uniform(0.5, 1.5))
        finally:
            resource.prlimit(worker.pid, resource.RLIMIT_FSIZE, (unlimited, unlimited))


def _signal(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def all_other_faults() -> list[Fault]:
    """Return the rows that are performed one by one."""

    def strike(
        name: str,
        title: str,
        act: Callable[[Scene, random.Random], None],
        pause: tuple[float, float],
        least: float,
    ) -> Fault:
        return Strike(name, title, act, pause=pause, least_seconds=least)

    def misbehave(
        name: str, title: str, kind: FaultKind, probability: float, seconds: float | None = None
    ) -> Fault:
        return Misbehave(name, title, FaultRule(kind=kind, probability=probability, seconds=seconds))

    return [
        DieAnytime(),
        Freeze(),
        strike("redis.flushed", "Redis flushed (FLUSHALL)", _flush_redis, (0.5, 2.0), 3),
        strike("redis.restarted", "Redis killed and started again", _restart_redis, (1.0, 3.0), 4),
        strike("redis.frozen", "Redis frozen for 2 to 4 s", _freeze_redis, (1.0, 2.0), 5),
        strike("postgres.restarted", "Postgres stopped at once, restarted", _restart_postgres, (3.0, 5.0), 6),
        strike(
            "postgres.disconnected", "Postgres drops all connections", _disconnect_postgres, (0.3, 1.5), 3
        ),
        misbehave("provider.reset_before", "provider resets, not acted on", FaultKind.RESET_BEFORE, 0.05),
        misbehave("provider.reset_after", "provider rotates, then resets", FaultKind.RESET_AFTER, 0.02),
        misbehave("provider.half_answer", "provider's answer cut in half", FaultKind.HALF_ANSWER, 0.02),
        misbehave("provider.late_answer", "provider answers after the timeout", FaultKind.SLOW, 0.02, 4.0),
        strike("journal.full", "journal's disk full for a while", _fill_journal_disk, (0.5, 1.0), 3),
    ]
