"""Mistakes in definitions, told to people: file, line, key, and the reason in plain words.

Where in the text a key stands is ``providers.toml_lines``.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, get_args

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from providers.spec import ProviderSpec
from providers.toml_lines import Lines, Location

__all__ = ["Lines", "Location", "Problem", "close_matches", "key_text", "suggestion", "told"]

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_QUOTED = re.compile(r"'([^']*)'")

_TYPES: Final = {
    "string_type": "must be text in quotes",
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "date_type": "must be a date such as 2026-01-31, without quotes",
    "model_type": "must be a table",
    "dict_type": "must be a table",
    "tuple_type": "must be a list",
    "finite_number": "must be a finite number",
}
_BOUNDS: Final = {
    "greater_than": "must be more than {gt:.15g}",
    "greater_than_equal": "must be at least {ge:.15g}",
    "less_than": "must be less than {lt:.15g}",
    "less_than_equal": "must be at most {le:.15g}",
    "string_too_short": "must not be empty",
    "string_too_long": "must have at most {max_length} characters",
    "too_short": "must have at least {min_length} entries",
}


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One mistake in one definition."""

    file: str
    line: int | None
    key: str
    reason: str

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        return f"{place}: {self.key} {self.reason}" if self.key else f"{place}: {self.reason}"


def key_text(location: Location) -> str:
    """Return ``location`` as people write it: ``errors[2].status``."""
    text = ""
    for part in location:
        if isinstance(part, int):
            text += f"[{part + 1}]"
        else:
            text += f"{'.' * bool(text)}{part if _BARE.fullmatch(part) else json.dumps(part)}"
    return text


def told(errors: Sequence[ErrorDetails]) -> list[tuple[Location, str]]:
    """Return the location and reason of each validation error, one for each location."""
    found: dict[Location, list[str]] = {}
    for error in errors:
        location = _location(error)
        reason = _reason(error, location)
        if reason not in (reasons := found.setdefault(location, [])):
            reasons.append(reason)
    return [(location, " or ".join(reasons)) for location, reasons in found.items()]


def close_matches(name: str, known: Sequence[str]) -> list[str]:
    """Return the one known word that ``name`` looks like a typo of, if there is one."""
    return difflib.get_close_matches(name, known, n=1)


def suggestion(name: str, known: Sequence[str]) -> str:
    """Return ``: did you mean 'x'?`` when ``name`` looks like a typo of something known."""
    close = close_matches(name, known)
    return f": did you mean {close[0]!r}?" if close else ""


def _reason(error: ErrorDetails, location: Location) -> str:
    kind, context, value = error["type"], error.get("ctx", {}), error["input"]
    if kind == "missing":
        hint = ": without refresh tokens, its policy is 'never'" if location == ("rotation",) else ""
        return f"is missing{hint}"
    if kind == "extra_forbidden":
        name = str(location[-1])
        known = list(_model_at(location[:-1]).model_fields)
        return f"is not a known key{suggestion(name, known) or ' here: known are ' + ', '.join(known)}"
    if kind == "literal_error":
        choices = _QUOTED.findall(context["expected"])
        hint = suggestion(value, choices) if isinstance(value, str) else ""
        return f"must be one of {', '.join(choices)}{hint}"
    if kind == "value_error":
        return str(context["error"])
    if kind in _BOUNDS:
        return _BOUNDS[kind].format_map(context)
    return _TYPES.get(kind, error["msg"][0].lower() + error["msg"][1:])


def _location(error: ErrorDetails) -> Location:
    if error["type"] == "extra_forbidden":  # its last part is what somebody wrote, whatever it looks like
        return (*_known_part(error["loc"][:-1]), error["loc"][-1])
    return _known_part(error["loc"])


def _known_part(location: tuple[int | str, ...]) -> Location:
    """Drop what pydantic adds to a location: the member of a union, and the mark of a key."""
    kept: list[str | int] = []
    for part in location:
        if isinstance(part, str) and (part == "[key]" or "[" in part or part in _UNION_MEMBERS):
            break
        kept.append(part)
    return tuple(kept)


_UNION_MEMBERS: Final = frozenset({"constrained-str", "constrained-int", "str", "int", "bool"})


def _model_at(location: Location) -> type[BaseModel]:
    model: type[BaseModel] = ProviderSpec
    for part in location:
        if isinstance(part, str) and part in model.model_fields:
            model = _model_in(model.model_fields[part].annotation) or model
    return model


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type):
        return annotation if issubclass(annotation, BaseModel) else None
    for argument in get_args(annotation):
        if (found := _model_in(argument)) is not None:
            return found
    return None
