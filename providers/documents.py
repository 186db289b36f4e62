"""The document in the body of an answer: JSON or a form, as far as it can be read without guessing.

Total over every body, and strict about what may count as a provider's word: see :func:`parse`.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import parse_qsl

from providers.exchange import Answer
from providers.parameters import FORM_TYPE

Document = dict[str, Any] | list[Any]

MAX_FORM_FIELDS: Final = 1000


@dataclass(frozen=True, slots=True)
class Repeated:
    """What a member says that stands in one object several times, each time something else.

    Which one counts differs from reader to reader, so no rule sees a word in it (G4); only a token is taken from
    it, because losing one costs more than presenting a wrong one.
    """

    values: tuple[object, ...]


def _bounded_int(digits: str) -> int | None:
    """An integer that can be no expiry and no code is null: one absurd field must not cost us the tokens."""
    return int(digits) if len(digits) <= 30 else None


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the members of an object. Where a name is repeated, null and empty text yield to the others."""
    members = dict(pairs)
    if len(members) == len(pairs):
        return members
    told: dict[str, list[Any]] = {name: [] for name in members}
    for name, value in pairs:
        if value is not None and value != "":
            told[name].append(value)
    return {name: _agreed(values) for name, values in told.items()}


def _agreed(values: list[Any]) -> object:
    if not values:
        return None
    return values[-1] if all(value == values[-1] for value in values) else Repeated(tuple(values))


_JSON = json.JSONDecoder(parse_int=_bounded_int, object_pairs_hook=_members, strict=False)
_FORM = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}=")


def parse(answer: Answer) -> tuple[Document | None, bool]:
    """Return the object or list that the body holds, None for anything else; and whether that is the whole body.

    A form that is called something else and JSON with something behind it are not: such a body may bring tokens,
    but its word against a grant does not count. Bytes that are not UTF become replacement characters: an accent
    in an error description must not hide the error code beside it. ``providers.token_fields`` takes no token with one.
    """
    text = answer.body.decode(json.detect_encoding(answer.body), "replace").strip()
    is_form = answer.headers.get("content-type", "").lower().startswith(FORM_TYPE)
    if not text.startswith(("{", "[")) and (is_form or _FORM.match(text)):
        try:
            return _members(parse_qsl(text, max_num_fields=MAX_FORM_FIELDS)) or None, is_form
        except ValueError:
            return None, False
    try:
        document, end = _JSON.raw_decode(text)
    except (ValueError, RecursionError):
        return None, False
    return (document, end == len(text)) if isinstance(document, (dict, list)) else (None, False)
