"""Content encodings (RFC 9110 section 8.4) that arrive although we ask for none, undone within a bound."""

from __future__ import annotations

import zlib
from typing import Final

_INFLATABLE: Final = frozenset({"gzip", "x-gzip", "deflate"})
_GZIP_OR_ZLIB: Final = 47
"""A window size that lets zlib recognise which of the two it reads."""


def decoded(body: bytes, encoding: str, max_bytes: int) -> tuple[bytes, str | None]:
    """Return ``body`` without ``encoding``, or empty and a word for what is wrong.

    Never produces more than ``max_bytes`` and one: a small body that unfolds to a huge one costs nothing.
    """
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        return body, None
    if encoding not in _INFLATABLE:
        return b"", "unknown_encoding"
    inflate = zlib.decompressobj(wbits=_GZIP_OR_ZLIB)
    try:
        decoded = inflate.decompress(body, max_bytes + 1)
    except zlib.error:
        return b"", "bad_encoding"
    if len(decoded) > max_bytes:
        return b"", "answer_too_large"
    return decoded, None if inflate.eof else "answer_cut"
