"""A worker's own view of a circuit, beside a fleet that sees more."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, cast

from providers.transport import boottime
from tokenfleet.circuit import LEAST_OUTAGES, CircuitState, Report, Standing
from tokenfleet.jobs import AppId
from workers.breaker import Breaker

APP = AppId(1)


class WellFleet:
    """Circuits that stay closed: the other workers are answered."""

    def __init__(self) -> None:
        self.outages: asyncio.Queue[int] = asyncio.Queue()

    async def report(self, reports: Mapping[AppId, Report]) -> dict[AppId, Standing]:
        """Take a report, and say that all is well."""
        for report in reports.values():
            self.outages.put_nowait(report.outages)
        return {app_id: Standing() for app_id in reports}


def test_a_guess_that_the_fleet_refutes_forgets_no_outage() -> None:
    """What was sent before a circuit closed says nothing; but this one was never open."""

    async def scenario() -> list[int]:
        fleet = WellFleet()
        breaker = Breaker(cast(Any, fleet), clock=boottime)
        sent_at = boottime()
        for _ in range(LEAST_OUTAGES):
            breaker.heard(APP, outage=True, endpoint=None, began=sent_at)
        assert breaker.standing(APP).state is CircuitState.OPEN
        reporting = asyncio.create_task(breaker.run())
        first = await fleet.outages.get()
        assert breaker.standing(APP).state is CircuitState.CLOSED
        breaker.heard(APP, outage=True, endpoint=None, began=sent_at)
        second = await fleet.outages.get()
        reporting.cancel()
        return [first, second]

    assert asyncio.run(asyncio.wait_for(scenario(), 20)) == [LEAST_OUTAGES, 1]
