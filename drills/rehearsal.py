"""One run: a fleet at its usual work, then everything goes wrong at once, each thing at a provider of its own."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from typing import Final

from chaos.crew import Crew
from chaos.customers import Repeatedly
from chaos.world import World
from drills.course import Course
from drills.evidence import gather
from drills.found import Evidence
from drills.plan import Plan
from drills.reader import Reader
from drills.roster import Drill

LEAVERS_SHARE: Final = 0.01
"""Part of each drill's accounts whose customers really end their grants while it lasts."""
LEAST_LEAVERS: Final = 2
LEAVE_WITHIN: Final = 0.8
"""They leave within this part of the time."""
LEEWAY_SECONDS: Final = 2.0
"""After the first refresh was due, until the fleet counts as being at its usual work."""
START_SECONDS: Final = 45.0
"""So long at most a fleet that has just started may take to get there."""
SAMPLE_EVERY_SECONDS: Final = 1.0
STEP_SECONDS: Final = 0.1
TELL_EVERY_SECONDS: Final = 60.0

_OVERDUE: Final = """
    SELECT count(*) FROM tokenfleet.refresh_schedule
    WHERE next_refresh_at < clock_timestamp() - interval '1 second'
"""


class Rehearsal:
    """Performs drills in a world. Everything that is chosen follows from ``seed``."""

    def __init__(
        self,
        world: World,
        drills: Sequence[Drill],
        plan: Plan,
        *,
        accounts: int,
        seed: int,
        say: Callable[[str], None],
    ) -> None:
        """``accounts`` are each drill's."""
        self._world = world
        self._plan = plan
        self._say = say
        self._crew = Crew(world)
        self.troubles: list[str] = []
        """What became of processes of the fleet that should not have."""
        self._courses = [course_of(drill, accounts, seed) for drill in drills]

    def run(self) -> list[Evidence]:
        """Return what is to be judged, drill by drill."""
        world, courses = self._world, self._courses
        signed_in = time.time()
        world.provider.watch([course.drill.prefix for course in courses])
        for course in courses:
            self._sign_in(course)
        self._crew.wait_until_working()
        leavers = [subject for course in courses for _, subject in course.leaving]
        reader = Reader(world.engine, (course.drill.name for course in courses), leavers)
        reading = Repeatedly(reader, SAMPLE_EVERY_SECONDS, "reader")
        reading.start()
        self._until(lambda: time.time() >= signed_in + self._plan.first_due + LEEWAY_SECONDS, math.inf)
        # Processes that have just started on a busy machine first work off what has waited for them.
        self._until(self._is_at_its_usual_work, START_SECONDS)
        quiet_since = time.time()
        self._until(lambda: False, self._plan.quiet)
        self._say("everything goes wrong now")
        for course in courses:
            course.begin(world)
        self._until(lambda: all(course.is_over for course in courses), math.inf)
        self._say("nothing is wrong any more: waiting until all are fresh again")
        self._until(lambda: self._are_settled(reader), self._plan.recovery)
        reading.stop()
        self._stop()
        reader()
        return gather(world, self._plan, courses, reader.seen, quiet_since)

    def _sign_in(self, course: Course) -> None:
        lines = self._world.provider.sign_in(
            course.subjects,
            provider=course.drill.name,
            seconds_left=self._plan.ages,
        )
        self._world.take_in(lines)

    def _until(self, condition: Callable[[], bool], seconds: float) -> None:
        """Let everything take its course until the condition holds, or the time is over."""
        ends = time.monotonic() + seconds
        told = time.monotonic()
        while not condition() and time.monotonic() < ends:
            self._crew.tend()
            for course in self._courses:
                course.advance(self._world)
            if time.monotonic() - told >= TELL_EVERY_SECONDS:
                told = time.monotonic()
                wrong = [course.drill.name for course in self._courses if course.is_on]
                self._say(f"still wrong: {', '.join(wrong) or 'nothing'}")
            time.sleep(STEP_SECONDS)

    def _is_at_its_usual_work(self) -> bool:
        return self._world.column(_OVERDUE) == [0]

    def _are_settled(self, reader: Reader) -> bool:
        """Answer whether readers see all fresh, exactly those flipped who left, and no incident open."""
        for course in self._courses:
            seen = reader.seen[course.drill.name]
            if not seen.is_fresh_since(course.ended) or seen.flipped_now != course.revoked.keys():
                return False
        open_now = "SELECT count(*) FROM tokenfleet.provider_incidents WHERE resolved_at IS NULL"
        return self._world.column(open_now) == [0]

    def _stop(self) -> None:
        exit_codes = self._crew.stop()
        self.troubles += [
            f"a {child.order.role} ended by itself with {child.exit_code}" for child in self._crew.unexpected
        ]
        if any(exit_codes):
            self.troubles.append(f"exit codes at the end: {sorted(set(exit_codes))}")


def course_of(drill: Drill, accounts: int, seed: int) -> Course:
    """Return the course of a drill: its customers, who of them leaves, and when."""
    # A generator of its own, so that --only meets the same choices as the whole run.
    chance = random.Random(f"{seed}/{drill.name}")
    subjects = tuple(f"{drill.prefix}{number:05d}" for number in range(accounts))
    leavers = chance.sample(subjects, max(round(accounts * LEAVERS_SHARE), LEAST_LEAVERS))
    leaving = sorted((chance.uniform(0.0, LEAVE_WITHIN), subject) for subject in leavers)
    return Course(drill, subjects, leaving)
