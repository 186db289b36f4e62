"""The run as people read it: a line for each receiver, two for those who must not notice, the reasons under them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

from drills.receivers.found import Endpoint, Evidence
from drills.receivers.roster import Pace
from drills.receivers.verdict import Latency, Verdict, percentiles

_HEADS: Final = ("events", "deliv'd", "failed", "wait", "tries", "p50 s", "p99 s", "stray")
_WIDTHS: Final = (8, 9, 8, 8, 7, 8, 8, 7)
_NAME: Final = 13
_DOES: Final = 34


def lines(evidence: Evidence, verdict: Verdict, pace: Pace) -> Iterator[str]:
    """Yield the lines to print."""
    yield f"{'receiver':{_NAME}}{'what it does':{_DOES}}{_cells(_HEADS)}  in the end"
    rule = "-" * (_NAME + _DOES + sum(_WIDTHS) + 22)
    yield rule
    for endpoint in evidence.endpoints:
        yield _line(endpoint, pace)
    yield rule
    yield "stray: packets to anywhere but the address that was looked at. p50, p99: from the event to its delivery."
    yield "* the database is told so in the middle of the hour"
    yield ""
    yield f"{'':{_NAME + _DOES}}{'before':>19}{'in trouble':>19}{'ratio':>16}"
    yield f"{'':{_NAME + _DOES}}{'p50 s':>10}{'p99 s':>9}{'p50 s':>10}{'p99 s':>9}{'p50':>9}{'p99':>7}"
    for latency in (verdict.refreshes, verdict.healthy):
        yield _latency(latency)
    yield ""
    if not verdict.problems:
        yield "Held: nobody else noticed, nothing is missing or out of order, no packet went astray."
    for problem in verdict.problems:
        yield f"FAILED: {problem}."


def _line(endpoint: Endpoint, pace: Pace) -> str:
    median, most = percentiles([each.delay for each in endpoint.delivered])
    cells = (
        f"{len(endpoint.told):,}",
        f"{len(endpoint.delivered):,}",
        f"{endpoint.failed:,}",
        f"{endpoint.waiting:,}",
        f"{endpoint.attempts:,}",
        _seconds(median),
        _seconds(most),
        f"{endpoint.strayed:,}",
    )
    does = endpoint.kind.does.format(slow=pace.slow)
    return f"{endpoint.kind.name:{_NAME}}{does:{_DOES}}{_cells(cells)}  {_end(endpoint)}"


def _end(endpoint: Endpoint) -> str:
    words = ", ".join(sorted(endpoint.errors, key=lambda word: -endpoint.errors[word])[:1])
    if endpoint.disabled_reason:
        return f"disabled: {endpoint.disabled_reason}"
    return f"spared: {words}" if endpoint.is_spared else "ready"


def _latency(latency: Latency) -> str:
    (early, earliest), (late, latest) = latency.before, latency.during
    what = f"{latency.what} ({sum(latency.counts):,})"
    return (
        f"{what:{_NAME + _DOES}}{early:>10.3f}{earliest:>9.3f}{late:>10.3f}{latest:>9.3f}"
        f"{late / early if early else math.nan:>9.2f}{latest / earliest if earliest else math.nan:>7.2f}"
    )


def _cells(cells: tuple[str, ...]) -> str:
    return "".join(f"{cell:>{width}}" for cell, width in zip(cells, _WIDTHS, strict=True))


def _seconds(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}"
