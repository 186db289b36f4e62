"""The shape of an error that no rule describes: enough to complete a definition, no value of the answer.

An answer can repeat what we sent it, tokens included, and can use anything as a member name. So names are
only told when they look like names, and a value only when it can be nothing but a word (G6). Where errors usually
have their code, the shape says that a word stands there: ``word``, or ``WORD`` in capitals.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from providers.paths import Path

MAX_MEMBERS: Final = 12
MAX_DEPTH: Final = 3

_NAME = re.compile(r"[A-Za-z][A-Za-z_.-]{0,31}[0-9]{0,2}")
_WORD = re.compile(r"(?=.{3,40}$)(?:[a-z]{1,16}(?:_[a-z]{1,16})*|[A-Z]{1,16}(?:_[A-Z]{1,16})*)")
CODE_PATHS: Final = (
    "error", "code", "error_code", "errorCode", "error.code", "error.type", "error.error", "errors[0].code",
    "errors[0].errorType", "[0].errorCode", "[0].code", "error_subtype", "error_summary", "status", "reason",
    "error.status", "title", "result",
)  # fmt: skip
"""Where providers state the code of an error, the most telling first."""
_CODE_NAMES: Final = frozenset(re.findall(r"[a-zA-Z_]+", " ".join(CODE_PATHS)))
_COMPILED: Final = tuple(Path.compile(path) for path in CODE_PATHS)
_KINDS: Final[Mapping[type, str]] = {
    str: "text",
    bool: "bool",
    int: "number",
    float: "number",
    type(None): "null",
}


def error_word(document: object) -> str | None:
    """Return the error code that ``document`` states in an ordinary place, if it is plainly a word."""
    for path in _COMPILED:
        for value in path.values(document):
            if isinstance(value, str) and _WORD.fullmatch(value):
                return value.lower()
    return None


def shape_of(status: int, document: object) -> str:
    """Return ``status`` and the member names and kinds of ``document``, None if it was unreadable."""
    return f"{status} {'unreadable' if document is None else _shape(document, MAX_DEPTH)}"


def _shape(value: object, depth: int, name: str = "") -> str:
    if isinstance(value, dict):
        if not depth:
            return "{...}"
        members = [f"{_shown(key)}:{_shape(value[key], depth - 1, key)}" for key in _told(value)]
        return "{" + ",".join(members + ["..."] * (len(value) > MAX_MEMBERS)) + "}"
    if isinstance(value, list):
        if not value or not depth:
            return "[...]" if value else "[]"
        return f"[{_shape(value[0], depth - 1)}]"
    if isinstance(value, str) and name in _CODE_NAMES and _WORD.fullmatch(value):
        return "word" if value.islower() else "WORD"
    if value == "":
        return "empty"
    return _KINDS.get(type(value), "?")


def _told(members: Mapping[str, object]) -> list[str]:
    """Return the names of which a shape tells: those of codes first, when it cannot tell of all."""
    return sorted(sorted(members, key=lambda name: (name not in _CODE_NAMES, name))[:MAX_MEMBERS])


def _shown(name: object) -> str:
    return name if isinstance(name, str) and _NAME.fullmatch(name) else "?"
