"""How parameters travel: form bodies and queries (RFC 6749 appendix B), JSON documents with nested objects."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Final
from urllib.parse import quote_plus

FORM_TYPE: Final = "application/x-www-form-urlencoded"
JSON_TYPE: Final = "application/json"


_quoted_name = lru_cache(maxsize=1024)(quote_plus)
"""Names come from definitions and are the same in every request. No value is remembered: it may be a secret."""


def form(parameters: Mapping[str, str]) -> str:
    """Return ``parameters`` form-encoded, for a body or a query."""
    return "&".join([f"{_quoted_name(name)}={quote_plus(value)}" for name, value in parameters.items()])


def with_query(url: str, query: str) -> str:
    """Return ``url`` with ``query`` added to the one that it may have."""
    if not query:
        return url
    return f"{url}{'&' if '?' in url else '?'}{query}"


def json_body(parameters: Mapping[str, str]) -> bytes:
    """Return ``parameters`` as a JSON object of text; a dot in a name leads into an object.

    Raises :class:`UnicodeEncodeError` for text that has no UTF-8.
    """
    return json.dumps(nested(parameters), ensure_ascii=False).encode()


def nested(parameters: Mapping[str, str]) -> dict[str, object]:
    """Return ``parameters`` with each dotted name as a member of nested objects."""
    document: dict[str, object] = {}
    for name, value in parameters.items():
        *outer, last = name.split(".")
        place = document
        for part in outer:
            inner = place.setdefault(part, {})
            assert isinstance(inner, dict)
            place = inner
        place[last] = value
    return document
