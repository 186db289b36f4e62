"""Records of the journal: how one answer stands in a file, and how it is read from a damaged one.

A record is::

    u32 length of payload | u32 CRC-32 of payload | payload (MessagePack of SavedTokens, sealed values only)

Promise: what is read is what was written, proven by its checksum, or it is reported as damage. Behind damage
the reading goes on at the next whole record: the answers there may be the only live successors of their
tokens (G3).
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from store.answers import SavedTokens

_HEADER: Final = struct.Struct(">II")
_PAYLOAD_START: Final = re.compile(rb"(?:[\x80-\x8f]|\xde..)\xaaaccount_id", re.DOTALL)
"""How every payload begins: a MessagePack map, the first field of which is ``account_id``. Of how many fields is not
said, since a release before this one wrote fewer."""

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(SavedTokens)


@dataclass(frozen=True, slots=True)
class Damage:
    """A place in a segment where something else stands than a whole record."""

    path: Path
    offset: int
    reason: str


def frame(answer: SavedTokens) -> bytes:
    """Return the record of one answer."""
    payload = _encoder.encode(answer)
    return _HEADER.pack(len(payload), zlib.crc32(payload)) + payload


def read(path: Path, damage: list[Damage]) -> Iterator[SavedTokens]:
    """Yield every whole record of a segment; add to ``damage`` what is none."""
    content = path.read_bytes()
    offset = 0
    while offset < len(content):
        record, after = _record_at(content, offset)
        if isinstance(record, SavedTokens):
            yield record
            offset = after
            continue
        damage.append(Damage(path, offset, record))
        found = _PAYLOAD_START.search(content, offset + _HEADER.size + 1)
        if found is None:
            return
        offset = found.start() - _HEADER.size


def _record_at(content: bytes, offset: int) -> tuple[SavedTokens | str, int]:
    """Return the record at ``offset`` and where it ends, or the reason why there is none."""
    start = offset + _HEADER.size
    if start > len(content):
        return "torn header", offset
    length, checksum = _HEADER.unpack_from(content, offset)
    payload = content[start : start + length]
    if len(payload) != length:
        return "torn record", offset
    if zlib.crc32(payload) != checksum:
        return "checksum does not match", offset
    try:
        return _decoder.decode(payload), start + length
    except (msgspec.ValidationError, msgspec.DecodeError):
        return "not a record of this version", offset
