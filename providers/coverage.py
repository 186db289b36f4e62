"""Which answers can still come to an error rule, after the rules before it have taken theirs.

The first rule that fits counts. A rule fits when any one of its alternatives does: a path with a value, with a
pattern, or with anything there. So a rule is dead when each of its alternatives, at each of its statuses, belongs to
an earlier rule; it need not be the same one. Sound and not complete: what is called dead can never fit, whatever is
answered; several patterns that only together stand for all that a later one does are not seen through.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from providers.paths import MAX_ELEMENTS
from providers.patterns import Pattern
from providers.rules import scalar_text, statuses_of
from providers.spec_answers import ErrorRule

_ANYTHING_ELSE: Final = "\N{NULL}"
"""Stands for a star's run of characters: only another star matches it."""


@dataclass(frozen=True, slots=True)
class Alternative:
    """One way in which a rule fits: a ``value``, a ``pattern`` or, with neither, anything at ``path``.

    Without a ``path`` it fits every body, a missing one too.
    """

    path: str | None = None
    value: str | None = None
    pattern: Pattern | None = None

    def takes(self, other: Alternative) -> bool:
        """Answer whether this one fits whatever ``other`` fits."""
        if self.path is None:
            return True
        if other.path is None or not _leads_to(self.path, other.path):
            return False
        if self.value is None and self.pattern is None:
            return True
        if other.value is not None:
            if self.pattern is not None:
                return self.pattern.matches(other.value)
            return self.value == other.value
        if other.pattern is not None and self.pattern is not None:
            return self.pattern.matches(other.pattern.text.replace("*", _ANYTHING_ELSE))
        return False


@dataclass(frozen=True, slots=True)
class Takers:
    """What an earlier rule takes away from a later one: by the rules' positions, ``rules``; never empty."""

    rules: frozenset[int]

    def __str__(self) -> str:
        return " and ".join(f"errors[{position + 1}]" for position in sorted(self.rules))


class Coverage:
    """What the earlier ones of ``rules`` take from a later one, which is named by its position."""

    def __init__(self, rules: Sequence[ErrorRule]) -> None:
        self._statuses = [statuses_of(rule.status) for rule in rules]
        self._alternatives = [tuple(alternatives(rule)) for rule in rules]

    def whole(self, position: int) -> Takers | None:
        """Return who takes all of a rule, or None while something can come to it."""
        return self._takers(position, self._alternatives[position], self._statuses[position])

    def status(self, position: int, status: int) -> Takers | None:
        """Return who takes all that a rule could fit at ``status``."""
        return self._takers(position, self._alternatives[position], frozenset({status}))

    def value(self, position: int, value: str) -> Takers | None:
        """Return who takes every answer with ``value`` at any of a rule's paths."""
        wanted = [each for each in self._alternatives[position] if each.value == value]
        return self._takers(position, wanted, self._statuses[position])

    def pattern(self, position: int, text: str) -> Takers | None:
        """Return who takes every answer with the pattern written as ``text`` at any of a rule's paths."""
        wanted = [each for each in self._alternatives[position] if each.pattern and each.pattern.text == text]
        return self._takers(position, wanted, self._statuses[position])

    def _takers(
        self, position: int, wanted: Sequence[Alternative], statuses: frozenset[int]
    ) -> Takers | None:
        takers: set[int] = set()
        for alternative in wanted:
            left = statuses
            for earlier in range(position):
                covered = self._statuses[earlier]
                if left & covered and any(each.takes(alternative) for each in self._alternatives[earlier]):
                    takers.add(earlier)
                    left -= covered
            if left:
                return None
        return Takers(frozenset(takers)) if takers else None


def alternatives(rule: ErrorRule) -> Iterator[Alternative]:
    """Yield every way in which ``rule`` fits an answer of one of its statuses."""
    if not rule.path:
        yield Alternative()
    for path in rule.path:
        if not rule.value and not rule.pattern:
            yield Alternative(path)
        for value in rule.value:
            if (text := scalar_text(value)) is not None:
                yield Alternative(path, value=text)
        for pattern in rule.pattern:
            yield Alternative(path, pattern=Pattern.compile(pattern))


def _leads_to(general: str, special: str) -> bool:
    """Answer whether ``general`` leads wherever ``special`` does: ``errors[].code`` to ``errors[0].code``."""
    theirs, ours = special.split("["), general.split("[")
    if len(theirs) != len(ours):
        return False
    for mine, their in zip(ours, theirs, strict=True):
        if mine == their:
            continue
        every, _, rest = mine.partition("]")
        index, _, other = their.partition("]")
        if every or rest != other or not index or int(index) >= MAX_ELEMENTS:
            return False
    return True
