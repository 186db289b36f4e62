"""The processes that are always alive, and the victims among them.

Promise: whoever dies is replaced at the next :meth:`Crew.tend`, victims by victims while a fault asks for
them, so the fleet keeps working under every fault and a phase sees many deaths.
"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from chaos.orders import Deed
from chaos.points import POINTS, Point, Role
from chaos.processes import Child
from chaos.stage import Stage

STEADY: Final = {Role.WORKER: 2, Role.SCHEDULER: 1}
"""How many of each kind nobody aims at, while a fault has victims of that kind."""
VICTIMS: Final = {Role.WORKER: 2, Role.SCHEDULER: 1}
"""How many victims there are beside them; in quiet times steady ones take their places, but for one worker."""
QUIET: Final = {Role.WORKER: 3, Role.SCHEDULER: 2}


@dataclass(frozen=True, slots=True)
class Aim:
    """What the next victim is armed with."""

    point: Point
    nth: int
    deed: Deed = Deed.DIE


class Crew:
    """The processes of one run."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._steady: dict[Role, list[Child]] = {role: [] for role in Role}
        self._victims: list[Child] = []
        self._next_aim: Callable[[], Aim] | None = None
        self._aimed_role: Role | None = None
        self.unexpected: list[Child] = []
        """Steady processes that ended though nobody killed them."""

    def aim(self, role: Role, next_aim: Callable[[], Aim]) -> None:
        """Have victims of ``role`` from now on; ``next_aim`` says what each is armed with."""
        self._aimed_role, self._next_aim = role, next_aim
        self.tend()

    def stand_down(self) -> None:
        """Have no victims any more; those that still live are told to stop, and finish their work."""
        self._aimed_role = self._next_aim = None
        for child in self._victims:
            if child.is_alive and child.stopped is None:
                self._stage.processes.signal(child, signal.SIGTERM)
        self._victims = [child for child in self._victims if child.is_alive and child.stopped is not None]
        self.tend()

    def tend(self) -> None:
        """Replace whoever has ended."""
        for role, children in self._steady.items():
            self.unexpected += [child for child in children if not child.is_alive]
            children[:] = [child for child in children if child.is_alive]
            wanted = STEADY[role] if role is self._aimed_role else QUIET[role]
            children += [self._stage.start(role) for _ in range(wanted - len(children))]
        self._victims = [child for child in self._victims if child.is_alive]
        if self._aimed_role is not None and self._next_aim is not None:
            free = [child for child in self._victims if child.stopped is None]
            for _ in range(VICTIMS[self._aimed_role] - len(free)):
                aim = self._next_aim()
                self._victims.append(
                    self._stage.start(self._aimed_role, point=aim.point.name, nth=aim.nth, deed=aim.deed)
                )

    def wait_until_working(self, seconds: float = 30.0) -> None:
        """Return when every steady process has connected to Postgres. Raises :class:`TimeoutError`."""
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            self.tend()
            up = self._stage.column(
                "SELECT count(DISTINCT application_name) FROM pg_stat_activity "
                "WHERE application_name SIMILAR TO 'tokenfleet (worker|scheduler) %'"
            )
            if up == [sum(map(len, self._steady.values()))]:
                return
            time.sleep(0.05)
        raise TimeoutError(f"the fleet did not come up within {seconds:g} s; see {self._stage.processes.log}")

    def steady(self, role: Role) -> list[Child]:
        """Return the living processes of one kind that nobody aims at."""
        return [child for child in self._steady[role] if child.is_alive]

    def frozen(self) -> list[Child]:
        """Return the victims that have frozen themselves."""
        return [child for child in self._victims if child.is_alive and child.stopped is not None]

    def dismiss(self, child: Child) -> None:
        """Let a victim go: told to stop, it finishes what it has."""
        self._stage.processes.signal(child, signal.SIGTERM)
        self._victims.remove(child)

    def kill(self, child: Child) -> None:
        """End a steady process as a power cut would; it is replaced."""
        for children in self._steady.values():
            if child in children:
                children.remove(child)
        self._stage.processes.signal(child, signal.SIGKILL)

    def stop(self) -> list[int]:
        """Stop everybody as a deploy does; returns the exit codes."""
        self.stand_down()
        return self._stage.processes.stop(*(child for child in self._stage.processes.children if child.is_alive))


def at_point(name: str, chance: random.Random) -> Callable[[], Aim]:
    """Return a source of aims at one point, each some hits deep."""
    point = POINTS[name]
    return lambda: Aim(point, chance.randint(1, point.depth))
