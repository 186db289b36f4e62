"""When token requests arrive at a sandbox, and whose they are: what a provider's own rate limit would see."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from sandbox.ledger import Presentation
from sandbox.server import SandboxServer
from sandbox.tokens import RefreshTokenRef


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request, at a moment of the monotonic clock."""

    subject: str
    at: float


@contextmanager
def arrivals_at(server: SandboxServer) -> Iterator[list[Arrival]]:
    """Yield a list that grows with each request that presents a refresh token."""
    ledger = server._authority.ledger
    arrivals: list[Arrival] = []
    present = ledger.present

    def note(ref: RefreshTokenRef, connected: Callable[[], bool]) -> Presentation:
        presentation = present(ref, connected)
        arrivals.append(Arrival(presentation.entry.subject, time.monotonic()))
        return presentation

    ledger.present = note  # type: ignore[method-assign]
    try:
        yield arrivals
    finally:
        ledger.present = present  # type: ignore[method-assign]


def peak(arrivals: Sequence[Arrival], per_second: float, burst: int) -> float:
    """Return the worst window as a share of what is allowed in it: ``per_second * window + burst``."""
    moments = sorted(arrival.at for arrival in arrivals)
    return max(
        (last - first + 1) / (per_second * (moments[last] - moments[first]) + burst)
        for last in range(len(moments))
        for first in range(last + 1)
    )
