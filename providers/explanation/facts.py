"""What an explanation is made of, and the words that all of its parts use."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from providers.explanation.unconfirmed import Topic, Unconfirmed

_UNITS: Final = (("day", 86_400), ("hour", 3600), ("minute", 60), ("second", 1))
_YEAR_SECONDS: Final = 365 * 86_400

MARK: Final = "[not confirmed]"
"""What follows a sentence that nobody has confirmed."""


@dataclass(frozen=True, slots=True)
class Fact:
    """A sentence or several about one thing, which ``label`` names.

    ``topics`` are what it tells of, ``codes`` the error codes in it: by these it is found in doubt.
    """

    label: str
    text: str
    topics: frozenset[Topic] = frozenset()
    codes: frozenset[str] = frozenset()

    def line(self, unconfirmed: Unconfirmed) -> str:
        """Return it as one line, marked if it is in doubt."""
        mark = f" {MARK}" if unconfirmed.covers(self.topics, self.codes) else ""
        return f"{self.label}: {self.text}{mark}"


@dataclass(frozen=True, slots=True)
class Section:
    """Facts that belong together."""

    title: str
    facts: tuple[Fact, ...]


def fact(label: str, text: str, *topics: Topic) -> Fact:
    """Return the fact ``text``, told of ``label``."""
    return Fact(label, text, frozenset(topics))


def duration_text(duration: timedelta | int) -> str:
    """Return ``duration`` (or that many seconds) in its two largest units: ``1 day 2 hours``."""
    seconds = int(duration.total_seconds() if isinstance(duration, timedelta) else duration)
    return " ".join(_units(seconds)[:2]) or "0 seconds"


def exact_duration(seconds: int) -> str:
    """Return ``seconds`` in words, and as the number of the definition where the words leave some of it out."""
    text = duration_text(seconds)
    return text if len(_units(seconds)) <= 2 else f"{text} ({seconds} s)"


def either(texts: Iterable[object]) -> str:
    """Return ``texts``, any one of which will do."""
    return " or ".join(map(str, texts))


def together(texts: Sequence[str]) -> str:
    """Return ``texts`` as one enumeration: ``a, b and c``."""
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"


def scalar(value: object) -> str:
    """Return a value as a definition writes it, text without its quotes."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def assignments(values: Mapping[str, object], sign: str = "=") -> str:
    """Return names and values: ``a=1, b=2``."""
    return ", ".join(f"{name}{sign}{scalar(value)}" for name, value in values.items())


def one_line(text: str) -> str:
    """Return ``text``, which may have been written over several lines, on one."""
    return " ".join(text.split())


def _units(seconds: int) -> list[str]:
    """Return how many of each unit ``seconds`` are, the largest first; years only where nothing else is left."""
    if seconds and seconds % _YEAR_SECONDS == 0:
        return [_counted(seconds // _YEAR_SECONDS, "year")]
    parts: list[str] = []
    for unit, size in _UNITS:
        count, seconds = divmod(seconds, size)
        if count:
            parts.append(_counted(count, unit))
    return parts


def _counted(count: int, unit: str) -> str:
    return f"{count} {unit}{'s' * (count != 1)}"
