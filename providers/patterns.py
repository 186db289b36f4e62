"""Patterns of a definition: ``*`` stands for any run of characters, everything else for itself.

Definitions are untrusted input, so there are no regular expressions in the language: a pattern is matched
piece by piece from the left, which cannot backtrack, whatever its author meant by it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

MAX_PATTERN_CHARACTERS: Final = 200
MAX_SUBJECT_CHARACTERS: Final = 4096
"""Only this much of a text is looked at: an error message, not an upload."""


_REGULAR_EXPRESSION: Final = re.compile(
    r"\.[*+?]|\\[a-zA-Z.*+?()\[\]{}|^$]|\(\?|\A\^|\$\Z|[)\]]\+|\[\^|\[[a-z0-9]-[a-z0-9]"
)
"""What people write who think of regular expressions, in which most of it would mean itself here and never fit."""


@dataclass(frozen=True, slots=True)
class Pattern:
    """A compiled pattern. Matches the whole text; letter case makes no difference."""

    text: str
    head: str
    middle: tuple[str, ...]
    tail: str | None

    @classmethod
    @lru_cache(maxsize=4096)
    def compile(cls, text: str) -> Pattern:
        """Return the pattern written as ``text``, compiled once for all.

        Raises :class:`ValueError` with the reason.
        """
        if not text.strip("*"):
            raise ValueError("matches everything: write some of the text that is expected")
        if len(text) > MAX_PATTERN_CHARACTERS:
            raise ValueError(f"is longer than {MAX_PATTERN_CHARACTERS} characters")
        if found := _REGULAR_EXPRESSION.search(text):
            raise ValueError(
                f"looks like a regular expression ({found[0]!r}), which patterns are not: * alone stands for any run "
                "of characters, everything else for itself"
            )
        head, *rest = text.casefold().split("*")
        if not rest:
            return cls(text, head, (), None)
        return cls(text, head, tuple(piece for piece in rest[:-1] if piece), rest[-1])

    def matches(self, subject: str) -> bool:
        """Answer whether the whole of ``subject`` has the form of this pattern."""
        subject = subject[:MAX_SUBJECT_CHARACTERS].casefold()
        if self.tail is None:
            return subject == self.head
        if not subject.startswith(self.head):
            return False
        position = len(self.head)
        for piece in self.middle:
            found = subject.find(piece, position)
            if found < 0:
                return False
            position = found + len(piece)
        return len(subject) - len(self.tail) >= position and subject.endswith(self.tail)
