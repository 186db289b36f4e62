"""One run: every fault in turn under full load, then quiet, until the fleet has settled what was begun."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from sqlalchemy.exc import SQLAlchemyError

from chaos.crew import Crew
from chaos.customers import (
    RULE_EVERY_SECONDS,
    SAMPLE_EVERY_SECONDS,
    SIGN_IN_EVERY_SECONDS,
    SPREAD_STEP_SECONDS,
    Customers,
    Operator,
    Reader,
    Repeatedly,
    Spread,
)
from chaos.deaths import DieAtPoint, die_together
from chaos.evidence import gather
from chaos.points import Role
from chaos.scene import Fault, Scene
from chaos.stage import CLAIM_SECONDS, Stage
from chaos.verdict import Evidence, Window, counted
from tokenfleet.jobs import AccountId

SETTLE_SECONDS: Final = 60.0
"""How long at most the fleet may take to finish, once nothing breaks any more."""
RESERVED_SECONDS: Final = 20.0
"""Of a run's time, kept for settling and judging."""
QUIET_SECONDS: Final = 1.25 * CLAIM_SECONDS
MOST_VICTIMS: Final = 4
SETTLING: Final = "settling"
LEAST_PHASE_SECONDS: Final = 4.0
PHASE_SECONDS: Final = 25.0
"""So long is the shortest phase of deaths; rows are put together until each gets as much."""

_UNSETTLED: Final = """
    SELECT a.id FROM tokenfleet.accounts a
    JOIN tokenfleet.token_sets t ON t.account_id = a.id
    WHERE a.status = 'active' AND t.obtained_at < to_timestamp(:mark)
"""


class Campaign:
    """Performs the rows on a stage. Everything that is chosen follows from ``seed``."""

    def __init__(
        self,
        stage: Stage,
        deaths: Sequence[DieAtPoint],
        others: Sequence[Fault],
        *,
        seed: int,
        seconds: float,
        say: Callable[[str], None],
    ) -> None:
        self._stage = stage
        self._deaths = list(deaths)
        self._others = list(others)
        self._seed = seed
        self._ends = time.monotonic() + seconds - RESERVED_SECONDS
        self._say = say
        self._crew = Crew(stage)
        self._windows: list[Window] = []

    def run(self) -> Evidence:
        """Return what is to be judged."""
        stage = self._stage
        stage.sign_in(stage.subjects)
        stage.learn_ids()
        self._crew.wait_until_working()
        scene = Scene(stage, self._crew)
        reader, customers = Reader(stage), Customers(stage)
        reading = Repeatedly(reader, SAMPLE_EVERY_SECONDS, "reader")
        signing_in = Repeatedly(customers, SIGN_IN_EVERY_SECONDS, "customers")
        spreading = Repeatedly(Spread(stage), SPREAD_STEP_SECONDS, "spread")
        ruling = Repeatedly(Operator(stage), RULE_EVERY_SECONDS, "operator")
        for each in (reading, signing_in, spreading, ruling):
            each.start()
        self._break_everything(scene)
        self._say("nothing breaks any more: waiting until every account is settled")
        began, before = time.time(), stage.provider.totals().refreshes
        signing_in.stop()
        spreading.stop()
        unsettled = self._settle()
        ruling.stop()
        reading.stop()
        exit_codes = self._crew.stop()
        refreshes = stage.provider.totals().refreshes
        self._windows.append(
            Window(SETTLING, "nothing breaks any more", began, time.time(), 0, refreshes - before)
        )
        for child in self._crew.unexpected:
            self._say(f"a {child.order.role} ended by itself with {child.exit_code}")
        if any(exit_codes):
            self._say(f"exit codes at the end: {sorted(set(exit_codes))}")
        windows = [self._with_deaths(window) for window in self._windows]
        return gather(scene, windows, reader.samples, refreshes=refreshes, unsettled=unsettled)

    def _break_everything(self, scene: Scene) -> None:
        """Perform every row, in an order of the seed's, the deaths in groups."""
        chance = random.Random(self._seed)
        deaths = chance.sample(self._deaths, len(self._deaths))
        everything = max(self._ends - time.monotonic(), 0.0)
        share = everything / (len(deaths) + len(self._others))
        size = min(math.ceil(PHASE_SECONDS / max(share, 0.1)), MOST_VICTIMS)
        groups = -(-len(deaths) // size)
        phases: list[Fault | list[DieAtPoint]] = [
            *self._others,
            *(deaths[number::groups] for number in range(groups)),
        ]
        chance.shuffle(phases)
        while phases:
            phase = phases.pop()
            if isinstance(phase, list):
                # What the others leave, divided among the deaths that are still to come.
                kept = sum(max(each.least_seconds, share) for each in phases if isinstance(each, Fault))
                still = len(phase) + sum(len(each) for each in phases if isinstance(each, list))
                rest = self._ends - time.monotonic() - kept
                seconds = max(rest * len(phase) / still, LEAST_PHASE_SECONDS)
            else:
                seconds = max(phase.least_seconds, share)
            self._perform(scene, phase, seconds)

    def _perform(self, scene: Scene, phase: Fault | list[DieAtPoint], seconds: float) -> None:
        rows = phase if isinstance(phase, list) else [phase]
        began, before, injected = time.time(), self._stage.provider.totals().refreshes, 0
        # A generator of its own, so that --only meets the same choices as the whole run.
        chance = random.Random(f"{self._seed}/{rows[0].name}")
        if isinstance(phase, list):
            die_together(phase, scene, chance, seconds)
        else:
            injected = phase.run(scene, chance, seconds)
        ended, refreshes = time.time(), self._stage.provider.totals().refreshes - before
        for row in rows:
            window = Window(row.name, row.title, began, ended, injected, refreshes)
            self._windows.append(window)
            times = counted(self._with_deaths(window).injected, "time", "times")
            self._say(f"{ended - began:5.1f} s  {row.title:46} {times:>11}")

    def _with_deaths(self, window: Window) -> Window:
        """Return ``window`` with the deaths at its point, which are known by the victims' exit codes."""
        for fault in self._deaths:
            if fault.name == window.name:
                return replace(window, injected=deaths_at(self._stage, fault.point.name))
        return window

    def _settle(self) -> int:
        """Wait until every account was refreshed, or flipped, after the last fault; returns how many were not."""
        self._wait(QUIET_SECONDS)
        mark = time.time()
        ends = time.monotonic() + SETTLE_SECONDS
        while True:
            try:
                unsettled = self._stage.column(_UNSETTLED, mark=mark)
                # Without this, whoever failed last would wait out its backoff, some minutes.
                self._stage.ask_for_refresh([AccountId(int(str(each))) for each in unsettled])
            except SQLAlchemyError:
                unsettled = [None]
            if not unsettled or time.monotonic() >= ends:
                return len(unsettled)
            self._wait(1.0)

    def _wait(self, seconds: float) -> None:
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            self._crew.tend()
            time.sleep(0.02)


def deaths_at(stage: Stage, point: str) -> int:
    """Return how many processes have killed themselves at a point."""
    return sum(child.was_killed and child.order.point == point for child in stage.processes.children)


def deaths(stage: Stage) -> dict[Role, int]:
    """Return how many processes of each kind were killed with SIGKILL."""
    return {
        role: sum(child.was_killed for child in stage.processes.children if child.order.role is role)
        for role in Role
    }
