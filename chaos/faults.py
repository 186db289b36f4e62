"""The faults: one row of the table each, performed for some seconds under full load.

Every choice (which victim, how many hits deep, when) comes from the ``random.Random`` that a fault is given;
what it breaks it mends before it returns.
"""

from __future__ import annotations

import functools
import os
import random
import resource
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import ClassVar, Final

from redis import Redis
from redis.exceptions import RedisError
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from chaos.crew import Aim, Crew
from chaos.orders import Deed
from chaos.points import Point, Role, of
from chaos.stage import CLAIM_SECONDS, Stage
from sandbox.faults import FaultKind, FaultRule

TEND_SECONDS: Final = 0.02
FROZEN_SECONDS: Final = CLAIM_SECONDS + 1.5
"""Longer than a claim, so that another worker has begun the frozen one's accounts."""
LEAVERS_SHARE: Final = 0.1
"""Part of the accounts whose customers may revoke their grants at the provider."""


@dataclass(slots=True)
class Scene:
    """What a fault acts upon, and what it leaves on record."""

    stage: Stage
    crew: Crew
    revocations: list[tuple[str, float]] = field(default_factory=list)
    """Customers who ended their grants, and when."""

    @property
    def leavers(self) -> Sequence[str]:
        """Customers who may revoke."""
        return self.stage.subjects[: int(len(self.stage.subjects) * LEAVERS_SHARE)]

    def pass_time(self, seconds: float) -> None:
        """Wait, and replace whoever dies meanwhile."""
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            self.crew.tend()
            time.sleep(TEND_SECONDS)


class Fault(ABC):
    """One row. ``name`` is for ``--only``, ``title`` for the table."""

    name: str
    title: str
    least_seconds: float = 2.0
    """So long at least; more in a long run."""

    @abstractmethod
    def run(self, scene: Scene, chance: random.Random, seconds: float) -> int:
        """Do it for ``seconds``; return how many times."""


class DieAtPoint:
    """A row: victims kill themselves with SIGKILL, exactly at their point.

    Several such rows are performed together, each with a victim of its own: while one dies, others start.
    """

    stir_every_seconds: ClassVar[float] = 1.0

    def __init__(self, point: Point) -> None:
        self.name = f"{point.role}.{point.name}"
        self.title = f"{point.role} killed: {point.meaning}"
        self.point = point

    def aim(self, chance: random.Random) -> Aim:
        """Return what the next victim is armed with."""
        return Aim(self.point, chance.randint(1, self.point.depth))

    def stir(self, scene: Scene, chance: random.Random) -> None:
        """Make happen what leads to the point, where the ordinary load does not."""


class DieWhileAccountsMove(DieAtPoint):
    """The same, while customers revoke their grants, so that accounts change their status."""

    stir_every_seconds = 0.15
    AT_ONCE: ClassVar[int] = 4

    def stir(self, scene: Scene, chance: random.Random) -> None:
        leaving = chance.sample(scene.leavers, min(self.AT_ONCE, len(scene.leavers)))
        at = time.time()
        scene.revocations += [(subject, at) for subject in scene.stage.provider.revoke(leaving)]
        scene.stage.ask_for_refresh([scene.stage.ids[subject] for subject in leaving])


class DieWhilePublishing(DieAtPoint):
    """The same, while somebody asks for so many refreshes at once that a tick has several jobs."""

    stir_every_seconds = 0.4
    AT_ONCE: ClassVar[int] = 400

    def stir(self, scene: Scene, chance: random.Random) -> None:
        ids = list(scene.stage.ids.values())
        scene.stage.ask_for_refresh(chance.sample(ids, min(self.AT_ONCE, len(ids))))


def die_together(faults: Sequence[DieAtPoint], scene: Scene, chance: random.Random, seconds: float) -> None:
    """Perform ``faults`` for ``seconds``, all at once."""
    # A generator for each, so that a row's choices do not depend on its company.
    chances = {fault: random.Random(chance.random()) for fault in faults}
    scene.crew.aim(*(functools.partial(fault.aim, chances[fault]) for fault in faults))
    due = dict.fromkeys(faults, 0.0)
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        for fault in faults:
            if time.monotonic() >= due[fault]:
                due[fault] = time.monotonic() + fault.stir_every_seconds
                fault.stir(scene, chances[fault])
        scene.pass_time(TEND_SECONDS)
    scene.crew.stand_down()


class DieAnytime(Fault):
    """SIGKILL from outside, at any moment."""

    name = "worker.anytime"
    title = "worker killed: at any moment"

    def run(self, scene: Scene, chance: random.Random, seconds: float) -> int:
        ends, count = time.monotonic() + seconds, 0
        while time.monotonic() < ends:
            scene.pass_time(chance.uniform(0.3, 0.7))
            scene.crew.kill(chance.choice(scene.crew.steady(Role.WORKER)))
            count += 1
        return count


class Freeze(Fault):
    """Workers stop themselves (SIGSTOP) at a point, sleep through lease and claim, and go on."""

    name = "worker.frozen"
    title = "worker frozen past its claim"
    least_seconds = FROZEN_SECONDS + 2.5
    AT_ONCE: ClassVar[int] = 3

    def run(self, scene: Scene, chance: random.Random, seconds: float) -> int:
        points = of(Role.WORKER)

        def aim() -> Aim:
            point = chance.choice(points)
            return Aim(point, chance.randint(1, point.depth), Deed.FREEZE)

        first = len(scene.stage.processes.children)
        woken: set[int] = set()
        ends = time.monotonic() + seconds - FROZEN_SECONDS
        sources = [functools.partial(aim) for _ in range(self.AT_ONCE)]
        scene.crew.aim(*sources)
        while True:
            scene.pass_time(0.1)
            if time.monotonic() >= ends:
                scene.crew.stand_down()
            frozen = [child for child in scene.stage.processes.children[first:] if child.stopped is not None]
            for child in frozen:
                if child.stopped is not None and time.time() - child.stopped >= FROZEN_SECONDS:
                    woken.add(child.order.number)
                    scene.stage.processes.signal(child, signal.SIGCONT)
                    # It finishes what it held, as any process that is told to stop.
                    scene.stage.processes.signal(child, signal.SIGTERM)
            if not frozen and time.monotonic() >= ends:
                return len(woken)


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
        mend: Callable[[Scene], None] = lambda _: None,
    ) -> None:
        self.name, self.title = name, title
        self._act, self._mend, self._pause = act, mend, pause
        self.least_seconds = least_seconds

    def run(self, scene: Scene, chance: random.Random, seconds: float) -> int:
        ends, count = time.monotonic() + seconds, 0
        try:
            while True:
                self._act(scene, chance)
                count += 1
                scene.pass_time(chance.uniform(*self._pause))
                if time.monotonic() >= ends:
                    return count
        finally:
            self._mend(scene)


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


def all_deaths() -> Iterator[DieAtPoint]:
    """Yield a row for every point."""
    kinds: dict[str, type[DieAtPoint]] = {
        "outbox.before": DieWhileAccountsMove,
        "outbox.after": DieWhileAccountsMove,
        "publish.within": DieWhilePublishing,
    }
    for role in (Role.SCHEDULER, Role.WORKER):
        for point in of(role):
            yield kinds.get(point.name, DieAtPoint)(point)


def all_other_faults() -> list[Fault]:
    """Return the rows that are performed one by one."""
    return [
        DieAnytime(),
        Freeze(),
        Strike("redis.flushed", "Redis flushed (FLUSHALL)", _flush_redis, pause=(0.5, 2.0), least_seconds=3),
        Strike("redis.restarted", "Redis killed and started again", _restart_redis, pause=(1.0, 3.0), least_seconds=4),
        Strike("redis.frozen", "Redis frozen for 2 to 4 s", _freeze_redis, pause=(1.0, 2.0), least_seconds=5),
        Strike(
            "postgres.restarted", "Postgres stopped at once, restarted", _restart_postgres, pause=(3.0, 5.0), least_seconds=6
        ),
        Strike(
            "postgres.disconnected", "Postgres drops all connections", _disconnect_postgres, pause=(0.3, 1.5), least_seconds=3
        ),
        Misbehave(
            "provider.reset_before", "provider resets, not acted on",
            FaultRule(kind=FaultKind.RESET_BEFORE, probability=0.05),
        ),
        Misbehave(
            "provider.reset_after", "provider rotates, then resets",
            FaultRule(kind=FaultKind.RESET_AFTER, probability=0.02),
        ),
        Misbehave(
            "provider.half_answer", "provider's answer cut in half",
            FaultRule(kind=FaultKind.HALF_ANSWER, probability=0.02),
        ),
        Misbehave(
            "provider.late_answer", "provider answers after the timeout",
            FaultRule(kind=FaultKind.SLOW, probability=0.02, seconds=4.0),
        ),
        Strike("journal.full", "journal's disk full for a while", _fill_journal_disk, pause=(0.5, 1.0), least_seconds=3),
    ]  # fmt: skip
