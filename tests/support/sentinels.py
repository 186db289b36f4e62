"""Looking for secrets where none may be, however they are spelled there."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from urllib.parse import quote


def spellings(sentinel: str) -> Iterator[bytes]:
    """Yield the ways in which ``sentinel`` may stand somewhere inside of something else."""
    raw = sentinel.encode()
    yield raw
    yield quote(sentinel, safe="").encode()
    yield raw.hex().encode()
    yield raw.hex().upper().encode()
    for offset in range(3):
        # What precedes shifts the letters of base64, and the last ones depend on what follows.
        letters = base64.b64encode(bytes(offset) + raw)[offset + (offset > 0) : -4]
        yield letters
        yield letters.replace(b"+", b"-").replace(b"/", b"_")


def leaks(sentinels: Mapping[str, str], found: Mapping[str, bytes]) -> list[str]:
    """Return which sentinel stands where."""
    return [
        f"{name} in {place}"
        for name, sentinel in sentinels.items()
        for place, content in found.items()
        if any(spelling in content for spelling in spellings(sentinel))
    ]
