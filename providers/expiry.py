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
from email.utils import parsedate_to_datetime
from typing import Any, Final

from providers.fields import TEN_YEARS_SECONDS
from providers.paths import Path, first
from providers.spec_answers import Duration, Moment

SHORTEST_LIFE: Final = timedelta(seconds=1)
LONGEST_LIFE: Final = timedelta(seconds=TEN_YEARS_SECONDS)
MAX_JWT_CHARACTERS: Final = 16_384
MAX_MOMENT_CHARACTERS: Final = 64

_RFC3339 = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})[T ]([0-9]{2}:[0-9]{2}:[0-9]{2})(?:[.,]([0-9]{1,9}))?"
    r" ?(Z|UTC|GMT|[+-][0-9]{2}(?::?[0-9]{2})?)?"
)
_UTC_NAMES: Final = frozenset({None, "Z", "UTC", "GMT"})
_NUMBER = re.compile(r"\s*[0-9]{1,15}(?:\.[0-9]{1,9})?\s*")
_UNITS: Final[Mapping[str, float]] = {
    "seconds": 1,
    "milliseconds": 0.001,
    "minutes": 60,
    "hours": 3600,
    "days": 86_400,
}
_CLOCKS: Final[Mapping[str, tuple[int, int, int]]] = {
    "days_hours_minutes": (86_400, 3600, 60),
    "hours_minutes_seconds": (3600, 60, 1),
}
"""What each of three numbers between colons counts, in seconds. The second and third stay below the next larger."""
_CLOCK = re.compile(r"\s*([0-9]{1,6}):([0-9]{1,2}):([0-9]{1,2})\s*")
_EPOCH_UNITS: Final[Mapping[str, float]] = {"epoch_seconds": 1, "epoch_milliseconds": 0.001}


class ExpiryReader:
    """Reads one expiry: by lifetime, else by moment. Compiled once for each definition."""

    __slots__ = ("_at_paths", "_format", "_in_paths", "_seconds", "_unit", "_zero_is_never")

    def __init__(self, lifetime: Duration, moment: Moment | None) -> None:
        self._in_paths = tuple(Path.compile(text) for text in lifetime.path)
        self._unit = _UNITS[lifetime.unit]
        self._seconds = _CLOCKS.get(lifetime.format)
        self._zero_is_never = lifetime.zero_is_never
        self._at_paths = tuple(Path.compile(text) for text in moment.path) if moment else ()
        self._format = moment.format if moment else "iso8601"

    def read(self, document: dict[str, Any], now: datetime) -> datetime | None:
        """Return the expiry that ``document`` tells, or None."""
        seconds = self._lifetime(document)
        if seconds is not None and 1 <= seconds <= TEN_YEARS_SECONDS:
            return now + timedelta(seconds=seconds)
        if not self._at_paths:
            return None
        value = first(self._at_paths, document)
        match self._format:
            case "iso8601":
                return _believable(_iso8601(value), now)
            case "http_date":
                return _believable(_http_date(value), now)
        epoch = _number(value)
        return None if epoch is None else _believable(_epoch(epoch * _EPOCH_UNITS[self._format]), now)

    def says_never(self, document: dict[str, Any]) -> bool:
        """Answer whether ``document`` says that the token lives until it is revoked: with 0, where that means it."""
        return self._zero_is_never and self._lifetime(document) == 0

    def _lifetime(self, document: dict[str, Any]) -> float | None:
        value = first(self._in_paths, document)
        if self._seconds is not None:
            return _clock_seconds(value, self._seconds)
        number = _number(value)
        return None if number is None else number * self._unit


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


def _clock_seconds(value: object, units: tuple[int, int, int]) -> float | None:
    """Return the seconds in three numbers between colons."""
    found = _CLOCK.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        return None
    many, middle, few = map(int, found.groups())
    large, medium, small = units
    if middle * medium >= large or few * small >= medium:
        return None
    return many * large + middle * medium + few * small


def _iso8601(value: object) -> datetime | None:
    """Return the moment in ``value``: RFC 3339 as providers spell it, or what else of ISO 8601 Python reads."""
    if not isinstance(value, str) or len(value) > MAX_MOMENT_CHARACTERS:
        return None
    text = value.strip().upper()
    if found := _RFC3339.fullmatch(text):
        day, time, fraction, offset = found.groups()
        # Python takes microseconds and rounds nothing; how it treats other fractions differs between versions.
        text = f"{day}T{time}.{(fraction or '0')[:6]:0<6}"
        text += "+00:00" if offset in _UTC_NAMES else offset
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _http_date(value: object) -> datetime | None:
    """Return the moment in an HTTP date (RFC 9110 section 5.6.7), in any of its three forms: always UTC."""
    if not isinstance(value, str) or len(value) > MAX_MOMENT_CHARACTERS:
        return None
    try:
        moment = parsedate_to_datetime(value)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _believable(moment: datetime | None, now: datetime) -> datetime | None:
    """A token that ended before it was issued tells of a wrong clock, not of its life."""
    if moment is None:
        return None
    return moment.astimezone(UTC) if SHORTEST_LIFE <= moment - now <= LONGEST_LIFE else None
