"""What a receiver's answer to a webhook means, and when it is sent again. Pure and total.

Follows Standard Webhooks 1.0, section "Deliverability and reliability": 2xx is a delivery, 410 ends the endpoint, a
redirect is a failure like any other, ``Retry-After`` is honoured, and a delivery is tried ten times within about three
days: oftener when its endpoint comes and goes, and for no shorter time.

How an *endpoint* is spared that fails whatever it is sent stands beside its row (``store.endpoint_health``), because
many workers see a part of it each; its numbers stand here.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from itertools import accumulate
from typing import Final

RETRY_DELAYS: Final = tuple(
    timedelta(seconds=seconds) for seconds in (5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400)
)
"""From one attempt to the next: 75 hours and a half in all, before jitter."""
JITTER: Final = 0.2
"""Each delay is longer or shorter by up to this part, so that what failed together does not come back together."""
LONGEST_PAUSE: Final = timedelta(hours=1)
"""As long as a receiver may ask us to wait by ``Retry-After``."""

TOLERATED_FAILURES: Final = 5
"""Failures in a row, whatever was sent, after which an endpoint is spared: one request at a time, now and then."""
SHORTEST_REST: Final = timedelta(seconds=5)
LONGEST_REST: Final = timedelta(minutes=5)
"""How long a spared endpoint is left alone: half as long as it has been failing, within these bounds."""
DISABLED_AFTER: Final = timedelta(days=3)
"""An endpoint that has failed for so long, without one success, is disabled."""
PATIENCE_MS: Final = 500
"""An endpoint that answers within this time is sent as much at once as it allows; a slower one less in proportion."""


class DeliveryState(StrEnum):
    """Where a delivery stands."""

    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"


class DisabledReason(StrEnum):
    """Why an endpoint gets nothing any more."""

    GONE = "gone"
    """It answered 410."""
    FAILING = "failing"
    """It has failed for :data:`DISABLED_AFTER`."""
    OPERATOR = "operator"
    REMOVED = "removed"
    """It is being removed."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What came of one request: a status, or a machine word for why there is none."""

    status: int | None
    error: str | None = None
    retry_after: timedelta | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of a delivery, and what its endpoint asked for.

    ``wait`` is set when it stays pending. ``pause`` asks to leave the whole endpoint alone for so long, ``is_gone``
    to leave it alone for good.
    """

    state: DeliveryState
    error: str | None = None
    wait: timedelta | None = None
    pause: timedelta | None = None
    is_gone: bool = False


def judge(reply: Reply, *, attempts: int, age: timedelta, jitter: float) -> Verdict:
    """Return what ``reply`` to attempt number ``attempts`` (from 1) means.

    ``age`` is how long ago the delivery was put in line; ``jitter`` is random, from 0 to 1.
    """
    status = reply.status
    if status is not None and 200 <= status < 300:
        return Verdict(DeliveryState.DELIVERED)
    error = reply.error or f"http_{status}"
    if status == 410:
        return Verdict(DeliveryState.FAILED, error, is_gone=True)
    pause = None
    if status in {429, 503} and reply.retry_after is not None:
        pause = min(max(reply.retry_after, timedelta(0)), LONGEST_PAUSE)
    retry = min(max(attempts, 1) - 1, _retries_due(age))
    if retry == len(RETRY_DELAYS):
        return Verdict(DeliveryState.FAILED, error, pause=pause)
    delay = RETRY_DELAYS[retry] * (1 - JITTER + 2 * JITTER * jitter)
    return Verdict(DeliveryState.PENDING, error, wait=max(delay, pause or delay), pause=pause)


def _retries_due(age: timedelta) -> int:
    """Return how many retries can have been due at that age by the plan.

    What was put off is tried early when its endpoint takes something. Such attempts do not count against it: with an
    endpoint that comes and goes, ten would be used up within minutes.
    """
    moments = accumulate(delay * (1 - JITTER) for delay in RETRY_DELAYS)
    return sum(moment <= age for moment in moments)
