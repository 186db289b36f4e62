"""A worker's side of the circuits: what it has heard of each app, said to the fleet twice a second.

Invariants kept here:

* What is reported is what the provider did; what was sent before a circuit closed says nothing of what came after.
* A healthy app costs one Redis call of this process per half second, whatever its traffic.
* What this process knows to be open it says again with each report, so a wiped Redis has it back at once. Without
  Redis it judges by what it has heard itself.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Final

from store.circuits import Circuits
from store.leases import SILENCE_SECONDS
from tokenfleet.circuit import LEAST_OUTAGES, Circuit, CircuitState, Memory, Report, Standing, Trial
from tokenfleet.jobs import AppId

REPORT_SECONDS: Final = 0.5
FRESH_SECONDS: Final = 1.0
"""How old a copy may be by which a job is begun."""
MOST_ENDPOINTS: Final = 64
"""Endpoints named in one report: enough to tell a provider that is down from a tenant that is."""

CLOSED: Final = Standing()


@dataclass(slots=True)
class _Copy:
    """What this process knows of one circuit, and what it has not yet said."""

    known: Standing = field(default_factory=Standing)
    known_at: float = float("-inf")
    own: Circuit = field(default_factory=Circuit)
    guessed: bool = False
    """Opened by what this process has heard alone, a moment ago: not yet worth telling others."""
    closed_at: float = float("-inf")
    answers: int = 0
    outages: int = 0
    varies: bool = False
    failing: set[str] = field(default_factory=set)
    answering: set[str] = field(default_factory=set)
    trial: Trial | None = None

    def standing(self, now: float) -> Standing:
        """Return how the circuit stands now, as far as we know."""
        if self.known.state is CircuitState.CLOSED:
            return self.known
        passed = int((now - self.known_at) * 1000)
        remaining = max(0, self.known.remaining_ms - passed)
        return replace(
            self.known,
            state=CircuitState.OPEN if remaining else CircuitState.HALF_OPEN,
            remaining_ms=remaining,
            trial_left_ms=max(0, self.known.trial_left_ms - passed),
        )


class Breaker:
    """The circuits as one worker process knows them. Runs on one event loop."""

    def __init__(self, circuits: Circuits, *, clock: Callable[[], float]) -> None:
        self._circuits = circuits
        self._clock = clock
        self._copies: dict[AppId, _Copy] = {}
        self._wake = asyncio.Event()
        self._chance = random.SystemRandom().random
        self._silent_until = float("-inf")

    def standing(self, app_id: AppId) -> Standing:
        """Return how an app's circuit stands, as far as this process knows."""
        copy = self._copies.get(app_id)
        if copy is None or copy.known.state is CircuitState.CLOSED:
            # Every request asks.
            return CLOSED if copy is None else copy.known
        return copy.standing(self._clock())

    async def look(self, app_id: AppId) -> Standing:
        """Return how an app's circuit stands, after asking Redis if it is long since we did."""
        copy = self._copy(app_id)
        if self._clock() - copy.known_at > FRESH_SECONDS:
            await self._report([app_id])
        return copy.standing(self._clock())

    async def take_trial(self, app_id: AppId) -> bool:
        """Answer whether this process may send the one request that a half-open circuit lets through."""
        standings = await self._report([app_id], wants_trial=True)
        return standings[app_id].trial_granted

    def heard(self, app_id: AppId, *, outage: bool, endpoint: str | None, began: float) -> None:
        """Note one answer, or that there was none. ``endpoint`` is given where it differs between accounts."""
        copy = self._copy(app_id)
        if copy.known.state is not CircuitState.CLOSED or (outage and began < copy.closed_at):
            return
        copy.answers += 1
        if endpoint is not None:
            copy.varies = True
            endpoints = copy.failing if outage else copy.answering
            if len(endpoints) < MOST_ENDPOINTS:
                endpoints.add(hashlib.blake2b(endpoint.encode(), digest_size=8).hexdigest())
        if outage:
            copy.outages += 1
            if copy.outages >= LEAST_OUTAGES:
                # Not in half a second: until then, hundreds more could be sent to a provider that is down.
                self._guess(copy)
                self._wake.set()

    def tried(self, app_id: AppId, trial: Trial) -> None:
        """Say what became of the trial; the fleet is told at once."""
        self._copy(app_id).trial = trial
        self._wake.set()

    async def run(self) -> None:
        """Report for ever."""
        while True:
            try:
                async with asyncio.timeout(REPORT_SECONDS):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()
            news = [
                app_id
                for app_id, copy in self._copies.items()
                if copy.answers or copy.trial is not None or copy.known.state is not CircuitState.CLOSED
            ]
            if news:
                await self._report(news)

    def _copy(self, app_id: AppId) -> _Copy:
        # Every answer comes here: a new one is not built only to be thrown away.
        copy = self._copies.get(app_id)
        if copy is None:
            copy = self._copies[app_id] = _Copy()
        return copy

    def _guess(self, copy: _Copy) -> None:
        now = self._clock()
        # On a circuit for the occasion: what is pending goes into our own with the report.
        standing = deepcopy(copy.own).report(self._pending(copy, wants_trial=False), int(now * 1000))
        if standing.state is not CircuitState.CLOSED:
            copy.known, copy.known_at, copy.guessed = standing, now, True

    def _pending(self, copy: _Copy, *, wants_trial: bool) -> Report:
        memory: Memory | None = None
        if not copy.guessed:
            memory = copy.standing(self._clock()).memory()
        return Report(
            answers=copy.answers,
            outages=copy.outages,
            varies=copy.varies,
            failing=tuple(copy.failing),
            # Only beside failures does it matter who answers.
            answering=tuple(copy.answering) if copy.outages or copy.own.failing else (),
            trial=copy.trial,
            wants_trial=wants_trial,
            memory=memory,
            chance=self._chance(),
        )

    async def _report(self, app_ids: list[AppId], *, wants_trial: bool = False) -> dict[AppId, Standing]:
        reports: dict[AppId, Report] = {}
        own: dict[AppId, Standing] = {}
        for app_id in app_ids:
            copy = self._copy(app_id)
            reports[app_id] = self._pending(copy, wants_trial=wants_trial)
            own[app_id] = copy.own.report(reports[app_id], int(self._clock() * 1000))
            copy.answers = copy.outages = 0
            copy.failing, copy.answering, copy.trial = set(), set(), None
        standings = None
        if self._clock() >= self._silent_until:
            standings = await self._circuits.report(reports)
            if standings is None:
                self._silent_until = self._clock() + SILENCE_SECONDS
        for app_id, standing in (standings or own).items():
            self._adopt(self._copies[app_id], standing)
        return standings or own

    def _adopt(self, copy: _Copy, standing: Standing) -> None:
        now = self._clock()
        if standing.state is CircuitState.CLOSED and copy.known.state is not CircuitState.CLOSED:
            copy.closed_at = now
        copy.known, copy.known_at, copy.guessed = standing, now, False
        now_ms, memory = int(now * 1000), standing.memory()
        if memory is not None:
            copy.own.until, copy.own.openings = now_ms + memory.remaining_ms, memory.openings
            copy.own.trial_until = now_ms + memory.trial_left_ms if memory.trial_left_ms else 0
        elif copy.own.until:
            copy.own = Circuit()
