"""Rows in which processes die, or freeze, of their own hand at a point, or are killed from outside.

Every choice (how many hits deep, which victim, when) comes from the ``random.Random`` that a row is given.
"""

from __future__ import annotations

import functools
import random
import signal
import time
from collections.abc import Iterator, Sequence
from typing import ClassVar, Final

from chaos.crew import Aim
from chaos.orders import Deed
from chaos.points import Point, Role, of
from chaos.scene import TEND_SECONDS, Fault, Scene
from chaos.stage import CLAIM_SECONDS

FROZEN_SECONDS: Final = CLAIM_SECONDS + 1.5
"""Longer than a claim, so that another worker has begun the frozen one's accounts."""


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
        scene.crew.aim(*(functools.partial(aim) for _ in range(self.AT_ONCE)))
        aiming = True
        while True:
            scene.pass_time(0.1)
            frozen = [child for child in scene.stage.processes.children[first:] if child.stopped is not None]
            if aiming and time.monotonic() >= ends and (frozen or woken or time.monotonic() >= ends + 5):
                scene.crew.stand_down()
                aiming = False
            for child in frozen:
                if child.stopped is not None and time.time() - child.stopped >= FROZEN_SECONDS:
                    woken.add(child.order.number)
                    scene.stage.processes.signal(child, signal.SIGCONT)
                    # It finishes what it held, as any process that is told to stop.
                    scene.stage.processes.signal(child, signal.SIGTERM)
            if not aiming and not frozen:
                return len(woken)


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
