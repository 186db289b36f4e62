"""The shape of an error that no rule describes: enough to complete a definition, no value of the answer.

An answer can repeat what we sent it, tokens included, and can use anything as a member name. So names are
only told when they look like names, and a value only when it can be nothing but a word (G6).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

MAX_MEMBERS: Final = 12
MAX_DEPTH: Final = 3

_NAME = re.compile(r"[A-Za-z][A-Za-z_.-]{0,31}[0-9]{0,2}")
_WORD = re.compile(r"(?=.{3,40}$)(?:[a-z]{1,16}(?:_[a-z]{1,16})*|[A-Z]{1,16}(?:_[A-Z]{1,16})*)")
_ERROR_NAMES: Final = ("error", "code", "error_code", "errorCode", "status", "reason")
_KINDS: Final[Mapping[type, str]] = {
    str: "text",
    bool: "bool",
    int: "number",
    float: "number",
    type(None): "null",
}


def error_word(document: object) -> str | None:
    """Return the error code that ``document`` states in an ordinary place, if it is plainly a word."""
    if not isinstance(document, dict):
        return None
    for name in _ERROR_NAMES:
        value = document.get(name)
        if isinstance(value, str) and _WORD.fullmatch(value):
            return value.lower()
    return None


def shape_of(status: int, document: object) -> str:
    """Return ``status`` and the member names and kinds of ``document``, None if it was unreadable."""
    return f"{status} {'unreadable' if document is None else _shape(document, MAX_DEPTH)}"


def _shape(value: object, depth: int) -> str:
    if isinstance(value, dict):
        if not depth:
            return "{...}"
        names = sorted(value, key=str)[:MAX_MEMBERS]
        members = [f"{_shown(name)}:{_shape(value[name], depth - 1)}" for name in names]
        return "{" + ",".join(members + ["..."] * (len(value) > MAX_MEMBERS)) + "}"
    if isinstance(value, list):
        if not value or not depth:
            return "[...]" if value else "[]"
        return f"[{_shape(value[0], depth - 1)}]"
    return _KINDS.get(type(value), "?")


def _shown(name: object) -> str:
    return name if isinstance(name, str) and _NAME.fullmatch(name) else "?"
