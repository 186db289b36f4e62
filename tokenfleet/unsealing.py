"""What makes so many openings of sealed values a spike. Pure.

Two measures, the first of which needs no history:

* **Work on record.** What opens to refresh, probe or revoke writes a row of history for each attempt, and what imports
  or seals anew is on record in the audit log. Openings that such work explains are none of anybody's concern, however
  many: an outage that is caught up with is no spike. What is left over is.
* **What is usual.** For reading, exporting and the rest: the second highest of the last days' busiest windows. The
  second, so that a job of every night or every week is usual from its second time on, and one day on which somebody
  took everything teaches nothing.

Promise: below a floor, or before counts have been kept for :data:`LEAST_DAYS`, what is only unusual is no spike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from tokenfleet_client.unsealings import Purpose

WINDOW: Final = timedelta(minutes=10)
"""What is compared: so much time up to now, with the busiest stretch of that length of each day."""
USUAL_DAYS: Final = 14
LEAST_DAYS: Final = 2
FACTOR: Final = 3
"""How many times the usual."""
PER_ATTEMPT: Final = 4
"""Values that one attempt opens at most: the two tokens, the one that is kept, and one to spare."""
LEAST: Final = 500
"""Fewer within a window are nobody's spike."""
_LEAST: Final[Mapping[Purpose, int]] = {
    # One by one, each a token in the clear outside of here.
    Purpose.EXPORT: 50,
    # No token: the secret of an endpoint, at every attempt to deliver. A receiver that comes back gets many at once.
    Purpose.WEBHOOK: 20_000,
}
EXPLAINED_BY_WORK: Final = frozenset({Purpose.REFRESH, Purpose.PROBE, Purpose.REVOKE, Purpose.APP_SECRET})
"""Each attempt leaves a row in the history of its account."""
EXPLAINED_BY_RECORD: Final = frozenset({Purpose.IMPORT, Purpose.RESEALING})
"""Bulk by nature: an operator's command, on record in the audit log, that shows nobody what it opens."""


@dataclass(frozen=True, slots=True)
class Openings:
    """What was opened for one purpose by one database role in the last :data:`WINDOW`, and what there is to explain it.

    ``busiest`` has the most within a window of each of the last days, in any order; days without may be left out.
    ``days`` is for how long counts have been kept. ``attempts`` counts the work on record in the same time, for
    :data:`EXPLAINED_BY_WORK`; ``on_record`` says that a command is in the audit log, for :data:`EXPLAINED_BY_RECORD`.
    """

    purpose: Purpose
    opened: int
    busiest: Sequence[int] = ()
    days: float = 0.0
    attempts: int = 0
    on_record: bool = False

    @property
    def usual(self) -> int:
        """The second highest of the busiest windows."""
        return sorted(self.busiest)[-2] if len(self.busiest) > 1 else 0


def expected_of(openings: Openings) -> int | None:
    """Return how many openings would be no surprise at most; None when any number is explained, or nobody can tell."""
    least = _LEAST.get(openings.purpose, LEAST)
    if openings.purpose in EXPLAINED_BY_WORK:
        return max(least + PER_ATTEMPT * openings.attempts, openings.usual)
    if openings.purpose in EXPLAINED_BY_RECORD and openings.on_record:
        return None
    if openings.days < LEAST_DAYS:
        return None
    return max(least, FACTOR * openings.usual)


def is_spike(openings: Openings, *, lasting: bool = False) -> bool:
    """Answer whether so many openings are a spike. One that is ``lasting`` ends at half of what makes a new one."""
    expected = expected_of(openings)
    if expected is None:
        return False
    return openings.opened * (2 if lasting else 1) > expected
