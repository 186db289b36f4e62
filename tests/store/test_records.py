"""Records of the release before this one, and what that release makes of ours: a deploy goes on beside both."""

from __future__ import annotations

import struct
import zlib
from dataclasses import fields, make_dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, get_type_hints

import msgspec

from store.answers import SavedTokens
from store.records import Damage, frame, read
from tests.store.test_journal import MOMENT, record

NEW = ("probing", "grant_ends_at", "learned_lifetime")
"""The fields that the release before this one does not know."""


def framed(payload: bytes) -> bytes:
    return struct.pack(">II", len(payload), zlib.crc32(payload)) + payload


def old_frame(answer: SavedTokens) -> bytes:
    """The record that the release before this one writes."""
    whole = msgspec.msgpack.decode(msgspec.msgpack.encode(answer))
    return framed(msgspec.msgpack.encode({name: value for name, value in whole.items() if name not in NEW}))


def test_a_record_of_the_release_before_is_read_and_its_next_visit_is_a_refresh(tmp_path: Path) -> None:
    path, damage = tmp_path / "segment", list[Damage]()
    path.write_bytes(old_frame(record(1)))
    assert list(read(path, damage)) == [record(1)]
    assert (record(1).probing, record(1).grant_ends_at, damage) == (False, None, [])


def test_behind_damage_the_records_of_both_releases_are_found(tmp_path: Path) -> None:
    """Fewer fields begin with another byte: nobody may look for the one only."""
    first, second, third = record(1), record(2), record(3)
    torn = bytearray(frame(first))
    torn[20] ^= 0xFF
    path, damage = tmp_path / "segment", list[Damage]()
    path.write_bytes(bytes(torn) + old_frame(second) + bytes(torn) + frame(third))
    assert list(read(path, damage)) == [second, third]
    assert len(damage) == 2


def test_what_the_new_fields_say_survives_the_file(tmp_path: Path) -> None:
    answer = replace(
        record(1), probing=True, grant_ends_at=MOMENT, learned_lifetime=timedelta(minutes=47, microseconds=1)
    )
    path = tmp_path / "segment"
    path.write_bytes(frame(answer))
    assert list(read(path, [])) == [answer]


def test_the_release_before_reads_our_records() -> None:
    """Its workers adopt the journals of ours while both run; the tokens in them must not be lost on it."""
    hints = get_type_hints(SavedTokens)
    old: Any = make_dataclass(
        "SavedTokens", [(each.name, hints[each.name]) for each in fields(SavedTokens) if each.name not in NEW]
    )
    decoded = msgspec.msgpack.Decoder(old).decode(frame(replace(record(1), probing=True))[8:])
    assert decoded.refresh_token == record(1).refresh_token
    assert decoded.next_refresh_at == record(1).next_refresh_at
