"""Paths into an answer: ``error``, ``authed_user.access_token``, ``errors[0].code``, ``error_codes[]``.

A step is a member name, ``[n]`` an element of a list, ``[]`` every element. Reading is total: where the
document has another shape, a path leads nowhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

MAX_PATH_CHARACTERS: Final = 200
MAX_ELEMENTS: Final = 64
"""How many elements of a list ``[]`` looks at."""

MAX_EVERY_STEPS: Final = 2

PATH_FORM: Final = r"(?:[A-Za-z0-9_$@-]+|\[[0-9]{0,3}\])(?:\.[A-Za-z0-9_$@-]+|\[[0-9]{0,3}\])*"
_PATH = re.compile(PATH_FORM)
_STEP = re.compile(r"\[([0-9]*)\]|([A-Za-z0-9_$@-]+)")


class _Every:
    """The step ``[]``."""


_EVERY: Final = _Every()


@dataclass(frozen=True, slots=True)
class Path:
    """A compiled path."""

    text: str
    steps: tuple[str | int | _Every, ...]

    @classmethod
    @lru_cache(maxsize=4096)
    def compile(cls, text: str) -> Path:
        """Return the path written as ``text``, compiled once for all definitions: they share most of theirs.

        Raises :class:`ValueError` with the reason, in plain words.
        """
        if len(text) > MAX_PATH_CHARACTERS or not _PATH.fullmatch(text):
            raise ValueError(
                "is not a path: write names joined by dots, [0] for an element, [] for every element"
            )
        if text.count("[]") > MAX_EVERY_STEPS:
            raise ValueError(f"looks at every element of more than {MAX_EVERY_STEPS} lists within each other")
        steps: list[str | int | _Every] = []
        for index, name in _STEP.findall(text):
            steps.append(name or (int(index) if index else _EVERY))
        return cls(text, tuple(steps))

    def values(self, document: object) -> Iterator[object]:
        """Yield what stands at this path in ``document``, which came out of a JSON or form parser."""
        return _walk(document, self.steps)


def first(paths: tuple[Path, ...], document: dict[str, Any]) -> object:
    """Return the first value other than null that one of ``paths`` leads to, or None."""
    for path in paths:
        steps = path.steps
        if len(steps) == 1 and type(steps[0]) is str:
            value: object = document.get(steps[0])
            if value is not None:
                return value
            continue
        for value in _walk(document, steps):
            if value is not None:
                return value
    return None


def _walk(value: object, steps: tuple[str | int | _Every, ...]) -> Iterator[object]:
    for position, step in enumerate(steps):
        if isinstance(step, str):
            if not isinstance(value, dict) or step not in value:
                return
            value = value[step]
        elif isinstance(step, int):
            if not isinstance(value, list) or step >= len(value):
                return
            value = value[step]
        else:
            if isinstance(value, list):
                for element in value[:MAX_ELEMENTS]:
                    yield from _walk(element, steps[position + 1 :])
            return
    yield value
