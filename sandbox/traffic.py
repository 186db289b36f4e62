"""When token requests came, and who was told to wait: what a client's pace is judged by.

Promise: a request of a watched prefix is noted with the moment of its arrival, whatever becomes of it, and so is
every ``Retry-After`` that goes out. Only who is watched costs memory: 16 bytes an arrival, of the latest million or
two. What was forgotten is counted, so that nobody takes a part for the whole.
"""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

REMEMBERED: Final = 1_000_000
"""Arrivals of one prefix that are remembered for certain."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """One token request. ``at`` is in POSIX seconds; ``seconds_left`` is how long the access token still lived."""

    at: float
    seconds_left: float


@dataclass(frozen=True, slots=True)
class Wait:
    """An answer that said: not before ``until``. It was ready to leave at ``at``."""

    at: float
    until: float


@dataclass(slots=True)
class _Record:
    arrived: array[float] = field(default_factory=lambda: array("d"))
    seconds_left: array[float] = field(default_factory=lambda: array("d"))
    waits: list[Wait] = field(default_factory=list)
    forgotten: int = 0


class Traffic:
    """The record of the prefixes that somebody watches."""

    def __init__(self, *, remembered: int = REMEMBERED) -> None:
        self._remembered = remembered
        self._records: dict[str, _Record] = {}

    def watch(self, prefix: str) -> None:
        """Note the requests of subjects whose names begin with ``prefix``, from now on."""
        self._records.setdefault(prefix, _Record())

    def is_watched(self, prefix: str) -> bool:
        """Answer whether somebody asked for this very prefix."""
        return prefix in self._records

    def arrived(self, subject: str, at: float, seconds_left: float) -> None:
        """Note a request."""
        for record in self._of(subject):
            record.arrived.append(at)
            record.seconds_left.append(seconds_left)
            if len(record.arrived) >= 2 * self._remembered:
                del record.arrived[: self._remembered]
                del record.seconds_left[: self._remembered]
                record.forgotten += self._remembered

    def told_to_wait(self, subject: str, wait: Wait) -> None:
        """Note an answer with a ``Retry-After``."""
        for record in self._of(subject):
            record.waits.append(wait)
            if len(record.waits) >= 2 * self._remembered:
                del record.waits[: self._remembered]
                record.forgotten += self._remembered

    def arrivals(self, prefix: str) -> Iterator[Arrival]:
        """Yield what is remembered of a watched prefix, in order. Requests may come while it is read."""
        record = self._records[prefix]
        for at, left in itertools.islice(
            zip(record.arrived, record.seconds_left, strict=False), len(record.arrived)
        ):
            yield Arrival(at, left)

    def waits(self, prefix: str) -> tuple[Wait, ...]:
        """Return who was told to wait, in order."""
        return tuple(self._records[prefix].waits)

    def forgotten(self, prefix: str) -> int:
        """Return how many arrivals and waits of a watched prefix are not remembered any more."""
        return self._records[prefix].forgotten

    def _of(self, subject: str) -> Iterator[_Record]:
        return (record for prefix, record in self._records.items() if subject.startswith(prefix))
