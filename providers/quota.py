"""Rate headers: how many requests are left, and when there will be more, as a definition names them.

Total: what is missing or cannot be read says nothing.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import Final

from providers.exchange import Answer
from providers.spec import Rate

LONGEST: Final = timedelta(days=366)
"""A reset further away is a number that means something else."""


class QuotaHeaders:
    """The rate headers of one definition. Immutable; safe in any thread."""

    __slots__ = ("_format", "_remaining", "_reset")

    def __init__(self, rate: Rate) -> None:
        self._remaining = rate.remaining_header.lower() if rate.remaining_header else None
        self._reset = rate.reset_header.lower() if rate.reset_header else None
        self._format = rate.reset_format

    def resets_in(self, answer: Answer, now: datetime) -> timedelta | None:
        """Return how long it is until there are more requests; None when the answer does not say."""
        value = answer.headers.get(self._reset, "").strip() if self._reset else ""
        if not value:
            return None
        try:
            moment = self._moment(value, now)
        except (ValueError, OverflowError, OSError):
            return None
        wait = max(moment - now, timedelta(0))
        return wait if wait <= LONGEST else None

    def used_up_for(self, answer: Answer, now: datetime) -> timedelta | None:
        """Return for how long no request is left; None while there are some, or when it does not say."""
        if self._remaining is None:
            return None
        try:
            left = float(answer.headers.get(self._remaining, ""))
        except ValueError:
            return None
        return self.resets_in(answer, now) if left < 1 else None

    def _moment(self, value: str, now: datetime) -> datetime:
        if self._format == "iso8601":
            moment = datetime.fromisoformat(value)
            return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        number = float(value)
        if not math.isfinite(number):
            raise ValueError("not a number of seconds")
        if self._format == "seconds":
            return now + timedelta(seconds=number)
        return datetime.fromtimestamp(number / (1000 if self._format == "epoch_milliseconds" else 1), UTC)
