"""Writing and reading answers by the paths of a definition, apart from the code that the fleet reads them with.

A kit that asked the reader under test where a value stands would agree with it about every mistake.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeGuard

Document = dict[str, Any] | list[Any]

_STEP = re.compile(r"\[(\d*)\]|([^.\[\]]+)")


def with_value(document: Document | None, path: str, value: object) -> Document:
    """Return ``document`` with ``value`` at ``path``; it is changed. ``[]`` is the first element.

    Raises :class:`ValueError` when something of another shape stands in the way.
    """
    steps = _steps(path)
    root: Any = document
    if root is None:
        root = [] if isinstance(steps[0], int) else {}
    place = root
    for step, following in zip(steps, [*steps[1:], None], strict=True):
        fresh: object = value if following is None else [] if isinstance(following, int) else {}
        if isinstance(step, int) and isinstance(place, list):
            place.extend(None for _ in range(step + 1 - len(place)))
            if following is None or place[step] is None:
                place[step] = fresh
        elif isinstance(step, str) and isinstance(place, dict):
            if following is None or place.get(step) is None:
                place[step] = fresh
        else:
            raise ValueError(f"{path} does not fit to what stands there")  # noqa: TRY004
        place = place[step]
    assert isinstance(root, (dict, list))
    return root


def values_at(document: object, path: str) -> Iterator[object]:
    """Yield what stands at ``path``; null and empty text are nothing."""
    found: list[object] = [document]
    for index, name in _STEP.findall(path):
        if name:
            found = [each[name] for each in found if isinstance(each, Mapping) and name in each]
        elif index:
            found = [each[int(index)] for each in found if _is_list(each) and len(each) > int(index)]
        else:
            found = [element for each in found if _is_list(each) for element in each]
    return (each for each in found if each is not None and each != "")


def written(value: object) -> str | None:
    """Return how a definition writes ``value``, None for what is no single value."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, (str, int, float)) else None


def fits_pattern(pattern: str, text: str) -> bool:
    """Answer whether ``text`` has the form of ``pattern``, in which * is any run of characters."""
    expression = ".*".join(map(re.escape, pattern.split("*")))
    return re.fullmatch(expression, text, re.IGNORECASE | re.DOTALL) is not None


def instance_of(pattern: str) -> str:
    """Return a text that has the form of ``pattern``."""
    return pattern.replace("*", "seven")


def _steps(path: str) -> list[str | int]:
    return [name or int(index or 0) for index, name in _STEP.findall(path)]


def _is_list(value: object) -> TypeGuard[Sequence[object]]:
    return isinstance(value, Sequence) and not isinstance(value, str)
