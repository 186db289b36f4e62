"""When a token ends, from what an answer tells: total, and strict about what it believes.

A lifetime that is not a finite number from one second to ten years is treated as not told: an invented hour and an
endless token are the two mistakes that this module exists to avoid (DESIGN section 8), and a token that lives for a
millisecond would be renewed every second.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from providers.fields import TEN_YEARS_SECONDS
from providers.paths import Path, first
from providers.spec_answers import Duration, Moment

SHORTEST_LIFE: Final = timedelta(seconds=1)
LONGEST_LIFE: Final = timedelta(seconds=TEN_YEARS_SECONDS)
MAX_JWT_CHARACTERS: Final = 16_384

_NUMBER = re.compile(r"\s*[0-9]{1,15}(?:\.[0-9]{1,9})?\s*")
_UNITS: Final[Mapping[str, float]] = {
    "seconds": 1,
    "milliseconds": 0.001,
    "minutes": 60,
    "hours": 3600,
    "days": 86_400,
}
_EPOCH_UNITS: Final[Mapping[str, float]] = {"epoch_seconds": 1, "epoch_milliseconds": 0.001}


class ExpiryReader:
    """Reads one expiry: by lifetime, else by moment. Compiled once for each definition."""

    __slots__ = ("_at_paths", "_format", "_in_paths", "_unit")

    def __init__(self, lifetime: Duration, moment: Moment | None) -> None:
        self._in_paths = tuple(Path.compile(text) for text in lifetime.path)
        self._unit = _UNITS[lifetime.unit]
        self._at_paths = tuple(Path.compile(text) for text in moment.path) if moment else ()
        self._format = moment.format if moment else "iso8601"

    def read(self, document: dict[str, Any], now: datetime) -> datetime | None:
        """Return the expiry that ``document`` tells, or None."""
        seconds = _number(first(self._in_paths, document))
        if seconds is not None and 1 <= seconds * self._unit <= TEN_YEARS_SECONDS:
            return now + timedelta(seconds=seconds * self._unit)
        if not self._at_paths:
            return None
        value = first(self._at_paths, document)
        unit = _EPOCH_UNITS.get(self._format)
        if unit is None:
            return _believable(_iso8601(value), now)
        epoch = _number(value)
        return None if epoch is None else _believable(_epoch(epoch * unit), now)


def jwt_expiry(token: str, now: datetime) -> datetime | None:
    """Return the ``exp`` claim (RFC 7519 section 4.1.4) of ``token`` if it is a JWT that carries one.

    The signature is not checked: nothing but the time of the next refresh depends on it.
    """
    if len(token) > MAX_JWT_CHARACTERS or token.count(".") != 2:
        return None
    payload = token.split(".")[1]
    try:
        claims = json.loads(
            base64.b64decode(payload + "=" * (-len(payload) % 4), altchars=b"-_", validate=True)
        )
    except (binascii.Error, ValueError, RecursionError):
        return None
    epoch = _number(claims.get("exp")) if isinstance(claims, dict) else None
    return None if epoch is None else _believable(_epoch(epoch), now)


def _number(value: object) -> float | None:
    """Return a finite, non-negative number that JSON or a form may write as text, or None."""
    if isinstance(value, str):
        return float(value) if _NUMBER.fullmatch(value) else None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    # Compared before converted: float() of a huge integer raises. NaN compares false.
    return float(value) if 0 <= value < 10**16 else None


def _epoch(seconds: float) -> datetime | None:
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        return None


def _iso8601(value: object) -> datetime | None:
    if not isinstance(value, str) or len(value) > 64:
        return None
    try:
        moment = datetime.fromisoformat(value.strip())
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _believable(moment: datetime | None, now: datetime) -> datetime | None:
    """A token that ended before it was issued tells of a wrong clock, not of its life."""
    if moment is None:
        return None
    return moment.astimezone(UTC) if SHORTEST_LIFE <= moment - now <= LONGEST_LIFE else None
