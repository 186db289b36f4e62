"""One run: every fault in turn under full load, then quiet, until the fleet has settled what was begun."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from typing import Final

from sqlalchemy.exc import SQLAlchemyError

from chaos.crew import Crew
from chaos.customers import SAMPLE_EVERY_SECONDS, SIGN_IN_EVERY_SECONDS, Customers, Reader, Repeatedly
from chaos.evidence import gather
from chaos.faults import DieAtPoint, Fault, Scene
from chaos.points import Role
from chaos.stage import CLAIM_SECONDS, Stage
from chaos.verdict import Evidence, Window
from tokenfleet.jobs import AccountId

SETTLE_SECONDS: Final = 60.0
"""How long at most the fleet may take to finish, once nothing breaks any more."""
SETTLING_SHARE: Final = 12.0
"""Seconds of a run's time that are kept for it."""
QUIET_SECONDS: Final = 1.5 * CLAIM_SECONDS
SPREAD_SECONDS: Final = 12.0
"""Accounts are made due one after another over so long: a fleet's ordinary load, no herd."""

_UNSETTLED: Final = """
    SELECT a.id FROM tokenfleet.accounts a
    JOIN tokenfleet.token_sets t ON t.account_id = a.id
    JOIN tokenfleet.refresh_schedule s ON s.account_id = a.id
    WHERE a.status = 'active' AND (t.obtained_at < to_timestamp(:mark) OR s.claimed_until IS NOT NULL)
"""


class Campaign:
    """Performs ``faults`` on a stage. Everything that is chosen follows from ``seed``."""

    def __init__(
        self, stage: Stage, faults: Sequence[Fault], *, seed: int, seconds: float, say: Callable[[str], None]
    ) -> None:
        self._stage = stage
        self._faults = list(faults)
        random.Random(seed).shuffle(self._faults)
        self._rank = {fault.name: rank for rank, fault in enumerate(faults)}
        self._seed = seed
        self._seconds = seconds
        self._say = say
        self._crew = Crew(stage)
        self._windows: list[Window] = []

    def run(self) -> Evidence:
        """Return what is to be judged."""
        stage = self._stage
        stage.sign_in(stage.subjects)
        stage.learn_ids()
        self._crew.wait_until_working()
        self._spread()
        scene = Scene(stage, self._crew)
        reader, customers = Reader(stage), Customers(stage)
        around = [
            Repeatedly(reader, SAMPLE_EVERY_SECONDS, "reader"),
            Repeatedly(customers, SIGN_IN_EVERY_SECONDS, "customers"),
        ]
        for each in around:
            each.start()
        weights = sum(fault.weight for fault in self._faults)
        ends = time.monotonic() + self._seconds - SETTLING_SHARE
        for number, fault in enumerate(self._faults, start=1):
            # What is left is divided among those that are left: one that took longer costs all others a little.
            share = max(ends - time.monotonic(), 0.0) * fault.weight / weights
            weights -= fault.weight
            self._perform(scene, fault, share, number)
        self._say("nothing breaks any more: waiting until every account is settled")
        began, before = time.time(), stage.provider.totals().refreshes
        around[1].stop()
        unsettled = self._settle()
        around[0].stop()
        exit_codes = self._crew.stop()
        quiet = Window("settling", "nothing breaks any more", began, time.time(), 0, 0)
        refreshes = stage.provider.totals().refreshes - before
        self._windows.append(quiet)
        windows = [self._counted(window) for window in self._windows]
        windows[-1] = Window(quiet.name, quiet.title, quiet.began, quiet.ended, 0, refreshes)
        evidence = gather(scene, windows, reader.samples, unsettled=unsettled)
        for child in self._crew.unexpected:
            self._say(f"a {child.order.role} ended by itself with {child.exit_code}")
        if any(exit_codes):
            self._say(f"exit codes at the end: {sorted(set(exit_codes))}")
        return evidence

    @property
    def order(self) -> dict[str, int]:
        """The rank of each row in the table; rows are performed in another order."""
        return self._rank

    def _perform(self, scene: Scene, fault: Fault, seconds: float, number: int) -> None:
        began, before = time.time(), self._stage.provider.totals().refreshes
        # A generator of its own, so that --only meets the same choices as the whole run.
        injected = fault.run(scene, random.Random(f"{self._seed}/{fault.name}"), seconds) or 0
        refreshes = self._stage.provider.totals().refreshes - before
        window = Window(fault.name, fault.title, began, time.time(), injected, refreshes)
        self._windows.append(window)
        shown = self._counted(window)
        self._say(
            f"{number:2}/{len(self._faults)}  {fault.title:43} {shown.injected:5,} times, "
            f"{refreshes:7,} refreshes in {window.ended - began:4.1f} s"
        )

    def _counted(self, window: Window) -> Window:
        """Return ``window`` with the deaths at its point, which are known by the victims' exit codes."""
        fault = next((each for each in self._faults if each.name == window.name), None)
        if not isinstance(fault, DieAtPoint):
            return window
        deaths = sum(
            child.was_killed and child.order.point == fault.point.name
            for child in self._stage.processes.children
        )
        return Window(window.name, window.title, window.began, window.ended, deaths, window.refreshes)

    def _spread(self) -> None:
        """Make the accounts' due moments as even as they are in a fleet that has run for long."""
        ids = list(self._stage.ids.values())
        began = time.monotonic()
        step = max(len(ids) // int(SPREAD_SECONDS / 0.1), 1)
        for start in range(0, len(ids), step):
            self._stage.ask_for_refresh(ids[start : start + step])
            self._crew.tend()
            time.sleep(max(0.0, began + SPREAD_SECONDS * start / len(ids) - time.monotonic()))

    def _settle(self) -> int:
        """Wait until every account was refreshed, or flipped, after the last fault; returns how many were not."""
        self._wait(QUIET_SECONDS)
        mark = time.time()
        ends = time.monotonic() + SETTLE_SECONDS
        asked: set[object] = set()
        while True:
            try:
                unsettled = self._stage.column(_UNSETTLED, mark=mark)
                new = [AccountId(int(str(each))) for each in unsettled if each not in asked]
                asked.update(unsettled)
                if new:
                    self._stage.ask_for_refresh(new)
            except SQLAlchemyError:
                unsettled = [None]
            if not unsettled or time.monotonic() >= ends:
                return len(unsettled)
            self._wait(0.3)

    def _wait(self, seconds: float) -> None:
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            self._crew.tend()
            time.sleep(0.02)


def deaths(stage: Stage) -> dict[Role, int]:
    """Return how many processes of each kind were killed with SIGKILL."""
    return {
        role: sum(child.was_killed for child in stage.processes.children if child.order.role is role)
        for role in Role
    }
