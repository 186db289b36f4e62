"""The fleet's circuits, kept in Redis: one per provider app, by the rules of ``tokenfleet.circuit``.

Redis is no authority here either. What is not closed is remembered by every worker that knows of it and said again
with each report, so a wiped Redis has it back after one; what it had counted towards an opening is counted anew.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from store.leases import NO_ANSWER
from tokenfleet.circuit import CircuitState, Report, Standing
from tokenfleet.jobs import AppId

KEY_PREFIX: Final = "tokenfleet:circuit:"
_SCRIPT: Final = (Path(__file__).parent / "circuits.lua").read_text()
_STATES: Final = (CircuitState.CLOSED, CircuitState.OPEN, CircuitState.HALF_OPEN)
_LOOK: Final = Report()


class Circuits:
    """The circuits as workers report to them."""

    def __init__(self, redis: AsyncRedis, *, prefix: str = "") -> None:
        self._prefix = prefix + KEY_PREFIX
        self._script = redis.register_script(_SCRIPT)

    async def report(self, reports: Mapping[AppId, Report]) -> dict[AppId, Standing] | None:
        """Say what was heard of each app and return how they stand; None when Redis does not answer."""
        try:
            rows = await self._script(
                keys=_keys(self._prefix, reports), args=[_argument(report) for report in reports.values()]
            )
        except NO_ANSWER:
            return None
        return _standings(reports, rows)


class CircuitView:
    """The circuits for those who only look: schedulers and commands."""

    def __init__(self, redis: Redis, *, prefix: str = "") -> None:
        self._prefix = prefix + KEY_PREFIX
        self._script = redis.register_script(_SCRIPT)

    def read(self, app_ids: Sequence[AppId]) -> dict[AppId, Standing] | None:
        """Return how each app's circuit stands, in one round trip; None when Redis does not answer."""
        if not app_ids:
            return {}
        try:
            rows = self._script(keys=_keys(self._prefix, app_ids), args=[_argument(_LOOK) for _ in app_ids])
        except NO_ANSWER:
            return None
        return _standings(app_ids, rows)


def _keys(prefix: str, app_ids: Iterable[AppId]) -> list[str]:
    return [f"{prefix}{app_id}{part}" for app_id in app_ids for part in ("", ":failing", ":answering")]


def _argument(report: Report) -> str:
    said: dict[str, Any] = {}
    if report.answers:
        said |= {"answers": report.answers, "outages": report.outages, "varies": report.varies}
    if report.varies:
        said |= {"failing": list(report.failing), "answering": list(report.answering)}
    if report.trial is not None:
        said["trial"] = report.trial.value
    if report.wants_trial:
        said["wants_trial"] = True
    if report.memory is not None:
        said["memory"] = {
            "remaining_ms": report.memory.remaining_ms,
            "openings": report.memory.openings,
            "trial_left_ms": report.memory.trial_left_ms,
        }
    return json.dumps(said | {"chance": report.chance} if said else said)


def _standings(app_ids: Iterable[AppId], rows: Sequence[Sequence[int]]) -> dict[AppId, Standing]:
    return {
        app_id: Standing(
            _STATES[state],
            int(remaining),
            int(openings),
            int(trial_left),
            bool(granted),
            None if closed_for < 0 else int(closed_for),
        )
        for app_id, (state, remaining, openings, trial_left, granted, closed_for) in zip(
            app_ids, rows, strict=True
        )
    }
