"""A story is told again, and made as short as it can be while it still ends badly in the same way.

Hypothesis would do this too, draw by draw; leaving out whole acts takes a tenth of the time.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from tests.model.judge import Judge
from tests.model.machine import Act, Acts, settle
from tests.model.provider import Policy
from tests.model.world import Stage

PATIENCE_SECONDS: Final = 45.0
"""How long a story is shortened; what is reached by then is printed."""

_DETAILS: Final = re.compile(r"[0-9]+|ada|bob")


@dataclass(frozen=True)
class Teller:
    """Tells stories on one stage."""

    stage: Stage
    policy: Policy
    spared: frozenset[str]

    def tell(self, story: Sequence[Act]) -> AssertionError | None:
        """Let it all happen in a new world; returns what the judge says, None when all is well."""
        world = self.stage.new_world(self.policy)
        acts, judge = Acts(world), Judge(world)
        acts.spared = self.spared
        try:
            judge.look()
            for name, arguments in story:
                getattr(acts, name)(*arguments)
                judge.look()
            settle(world, judge)
        except AssertionError as error:
            return error
        finally:
            world.close()
        return None

    def shorten(self, story: Sequence[Act]) -> list[Act]:
        """Leave out all that does not matter to how ``story`` ends."""
        shortest, ending = list(story), _ending(self.tell(story))
        ends = time.monotonic() + PATIENCE_SECONDS
        size = len(shortest)
        while ending is not None and size and time.monotonic() < ends:
            for start in reversed(range(0, len(shortest), size)):
                shorter = shortest[:start] + shortest[start + size :]
                if time.monotonic() < ends and _ending(self.tell(shorter)) == ending:
                    shortest = shorter
            size //= 2
        return shortest


def spelled(story: Sequence[Act]) -> str:
    """Return a story as calls of :class:`~tests.model.machine.Acts`, to be put into a history."""
    return "\n".join(f"acts.{name}({', '.join(map(str, arguments))})" for name, arguments in story)


def _ending(error: AssertionError | None) -> str | None:
    return None if error is None else _DETAILS.sub("", str(error))[:40]
