"""What a fault acts upon: the stage, the crew, and what is put on record."""

from __future__ import annotations

import random
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from chaos.crew import Crew
from chaos.stage import Stage

TEND_SECONDS: Final = 0.02
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
