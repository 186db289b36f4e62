"""The processes that are always alive, and the victims among them.

Promise: whoever dies is replaced at the next :meth:`Crew.tend`, a victim by a victim while a fault asks for
it, so the fleet keeps working under every fault and a phase sees many deaths.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from chaos.orders import Deed
from chaos.points import Point, Role
from chaos.processes import Child
from chaos.world import World
from tokenfleet.errors import UserError

STEADY: Final = {Role.WORKER: 2, Role.SCHEDULER: 2}
"""How many of each kind are always alive that nobody aims at."""


@dataclass(frozen=True, slots=True)
class Aim:
    """What a victim is armed with."""

    point: Point
    nth: int
    deed: Deed = Deed.DIE


class Crew:
    """The processes of one run."""

    def __init__(self, stage: World) -> None:
        self._stage = stage
        self._steady: dict[Role, list[Child]] = {role: [] for role in Role}
        self._victims: dict[Callable[[], Aim], list[Child]] = {}
        self.unexpected: list[Child] = []
        """Steady processes that ended though nobody killed them."""

    def aim(self, *sources: Callable[[], Aim]) -> None:
        """Have one living victim of each source from now on; a source says what the next one is armed with."""
        self._victims |= {source: [] for source in sources}
        self.tend()

    def stand_down(self) -> None:
        """Have no victims any more; those that still live are told to stop, and finish their work."""
        for child in self._all_victims():
            if child.stopped is None:
                self._stage.processes.signal(child, signal.SIGTERM)
        self._victims.clear()

    def tend(self) -> None:
        """Replace whoever has ended. A frozen victim is replaced, too: it comes back beside the new one."""
        for role, children in self._steady.items():
            self.unexpected += [child for child in children if not child.is_alive]
            children[:] = [child for child in children if child.is_alive]
            children += [self._stage.start(role) for _ in range(STEADY[role] - len(children))]
        for source, victims in self._victims.items():
            victims[:] = [child for child in victims if child.is_alive]
            if not any(child.stopped is None for child in victims):
                aim = source()
                victims.append(
                    self._stage.start(aim.point.role, point=aim.point.name, nth=aim.nth, deed=aim.deed)
                )

    def wait_until_working(self, seconds: float = 90.0) -> None:
        """Return when every steady process has connected to Postgres.

        Raises :class:`UserError` with the log's last words when one ends instead, or none of that happens.
        """
        ends = time.monotonic() + seconds
        while time.monotonic() < ends and not self.unexpected:
            self.tend()
            up = self._stage.column(
                "SELECT count(DISTINCT application_name) FROM pg_stat_activity "
                "WHERE application_name SIMILAR TO 'tokenfleet (worker|scheduler) %'"
            )
            if up == [sum(map(len, self._steady.values()))]:
                return
            time.sleep(0.05)
        last_words = self._stage.processes.log.read_text(errors="replace")[-2000:]
        raise UserError(f"the fleet did not come up; its last words:\n{last_words}")

    def steady(self, role: Role) -> list[Child]:
        """Return the living processes of one kind that nobody aims at."""
        return [child for child in self._steady[role] if child.is_alive]

    def _all_victims(self) -> list[Child]:
        return [child for victims in self._victims.values() for child in victims if child.is_alive]

    def kill(self, child: Child) -> None:
        """End a steady process as a power cut would; it is replaced."""
        for children in self._steady.values():
            if child in children:
                children.remove(child)
        self._stage.processes.signal(child, signal.SIGKILL)

    def stop(self) -> list[int]:
        """Stop everybody as a deploy does; returns the exit codes of those that nobody aimed at."""
        self.stand_down()
        living = [child for child in self._stage.processes.children if child.is_alive]
        self._stage.processes.stop(*living)
        return [child.exit_code or 0 for child in living if child.order.point is None]
