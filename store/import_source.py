"""A file of accounts as a stream of chunks: JSON Lines or CSV, from a file or a pipe.

Memory does not grow with the file but for one thing: which accounts and refresh tokens were seen, 36 to 72 bytes
a line (50 MB for a million). Two refresh tokens for one account, or one for two accounts, are a mistake that only
the file's author can solve: we cannot know which of them is live, so the second line is reported and left out.
"""

from __future__ import annotations

import csv
import io
from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from functools import partial
from typing import BinaryIO, Final

from store.import_admission import Admission, NumberedLine
from store.import_line import FIELDS, REQUIRED, ImportLine, LineRejected, parse_json, parse_record, spelled
from store.import_rules import RulesOf
from tokenfleet.errors import UserError

CHUNK_LINES: Final = 5000
"""Written in one transaction: some 0.2 seconds, so that a worker that meets one of its accounts waits no
longer than that. Larger ones are not faster."""
CHUNK_BYTES: Final = 8 * 1024 * 1024
LINE_BYTES: Final = 1024 * 1024

_HASH_BITS: Final = 0xFFFF_FFFF_FFFF_FFFF


class ImportFormat(StrEnum):
    """How accounts are written down."""

    JSON_LINES = "jsonl"
    CSV = "csv"


class UnreadableImport(UserError):
    """The file as a whole is not what it should be; nothing of the rest of it was imported."""


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that was left out, and why, without any of its values."""

    number: int
    reason: str


@dataclass(slots=True)
class Chunk:
    """Consecutive lines of a file. ``last`` is the number of the last one read, good, bad or blank.

    ``shared`` is how many of ``lines`` and ``bad`` stand in the same line of the file as one before them.
    """

    lines: list[NumberedLine] = field(default_factory=list)
    bad: list[BadLine] = field(default_factory=list)
    last: int = 0
    shared: int = 0


class FirstLines:
    """Which line of this import was the first to speak of an account.

    An open-addressing table of 64-bit hashes and line numbers in two arrays, 12 bytes a slot: a dict would
    take four times that. Two accounts are taken for one with a probability of 3 in 100 million for a million
    accounts; the second one would be reported, not lost.
    """

    def __init__(self) -> None:
        self._used = 0
        self._allot(1 << 12)

    def note(self, account: tuple[str, str, str], number: int) -> int | None:
        """Return the line that spoke of ``account`` before, or None and remember that ``number`` did."""
        # Zero marks a free slot.
        found = self._place(hash(account) & _HASH_BITS or 1, number)
        if found is None:
            self._used += 1
            if self._used * 3 > len(self._hashes) * 2:
                self._grow()
        return found

    def _place(self, digest: int, number: int) -> int | None:
        hashes, mask = self._hashes, self._mask
        slot = digest & mask
        while known := hashes[slot]:
            if known == digest:
                return self._numbers[slot]
            slot = (slot + 1) & mask
        hashes[slot] = digest
        self._numbers[slot] = number
        return None

    def _allot(self, slots: int) -> None:
        self._mask = slots - 1
        self._hashes = array("Q", bytes(8 * slots))
        self._numbers = array("I", bytes(4 * slots))

    def _grow(self) -> None:
        hashes, numbers = self._hashes, self._numbers
        self._allot(2 * len(hashes))
        for digest, number in zip(hashes, numbers, strict=True):
            if digest:
                self._place(digest, number)


def read_chunks(
    stream: BinaryIO, format: ImportFormat, *, now: datetime, rules_of: RulesOf
) -> Iterator[Chunk]:
    """Yield the lines of ``stream``. ``now`` is the database's clock; ``rules_of`` answers for provider names.

    Raises :class:`UnreadableImport` when the whole is of another kind than ``format``, or reading fails.
    """
    try:
        yield from _chunks(stream, format, Admission(rules_of, now=now), now)
    except OSError as error:
        raise UnreadableImport(f"it cannot be read to its end ({error.strerror})") from error


def _chunks(stream: BinaryIO, format: ImportFormat, admission: Admission, now: datetime) -> Iterator[Chunk]:
    numbered = _json_lines(stream) if format is ImportFormat.JSON_LINES else _csv_rows(stream)
    first_lines, first_tokens = FirstLines(), FirstLines()
    chunk, size = Chunk(), 0
    for number, length, parse in numbered:
        chunk.last = number
        size += length
        try:
            admitted = admission.admit(number, parse(now=now))
        except LineRejected as error:
            chunk.bad.append(BadLine(number, error.reason))
        else:
            chunk.shared += len(admitted) - 1
            for entry in admitted:
                reason = _repeats(entry, first_lines, first_tokens)
                if reason is None:
                    chunk.lines.append(entry)
                else:
                    chunk.bad.append(BadLine(number, reason))
        if len(chunk.lines) + len(chunk.bad) >= CHUNK_LINES or size >= CHUNK_BYTES:
            yield chunk
            chunk, size = Chunk(), 0
    if chunk.last:
        yield chunk


def _repeats(entry: NumberedLine, first_lines: FirstLines, first_tokens: FirstLines) -> str | None:
    """Return why ``entry`` cannot go in beside what was read before it, None when it can."""
    provider, number = entry.line.provider, entry.number
    first = first_lines.note((provider, entry.environment, entry.line.external_id), number)
    if first is not None:
        return f"is about the same account as line {first}: keep one of them"
    if entry.credential is None:
        return None
    # One grant under two accounts would be presented twice, and cost both of them the connection.
    first = first_tokens.note(("token", provider, entry.credential.reveal()), number)
    if first is None:
        return None
    kind = "refresh token" if entry.line.refresh_token else "access token"
    if first == number:
        return f"has the same {kind} for two accounts: one grant is one account's"
    return f"has the same {kind} as line {first}: one grant is one account's"


_Parse = Callable[..., ImportLine]
"""Takes ``now``; raises :class:`LineRejected`."""


def _json_lines(stream: BinaryIO) -> Iterator[tuple[int, int, _Parse]]:
    number = 0
    began = False
    while raw := stream.readline(LINE_BYTES):
        number += 1
        if not began:
            if number == 1:
                raw = raw.removeprefix(b"\xef\xbb\xbf")
            began = bool(raw.strip())
            _refuse_other_kinds(raw)
        if len(raw) == LINE_BYTES and not raw.endswith(b"\n"):
            while raw and not raw.endswith(b"\n"):
                raw = stream.readline(LINE_BYTES)
            yield number, LINE_BYTES, partial(_reject, f"is longer than {LINE_BYTES // 1024} KiB")
        elif not raw.isspace():
            yield number, len(raw), partial(parse_json, raw)


def _refuse_other_kinds(beginning: bytes) -> None:
    """Say at once what a thousand bad lines would say less clearly."""
    text = beginning.strip()
    if beginning.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UnreadableImport("it is UTF-16 text: save it as UTF-8")
    if beginning.startswith((b"age-encryption.org/", b"-----BEGIN AGE ENC")):
        raise UnreadableImport(
            "it is sealed: say --identity FILE, with the file that 'tokenfleet keys recipient' made for it"
        )
    if beginning.startswith(b"\x1f\x8b"):
        raise UnreadableImport("it is compressed: pipe it through 'gunzip -c' and import '-'")
    if text.startswith(b"["):
        raise UnreadableImport(
            "it is one JSON array: write one object per line, for instance with jq -c '.[]'"
        )
    if text == b"{":
        raise UnreadableImport(
            "its JSON objects are spread over several lines: write one object per line (jq -c)"
        )
    if not text.startswith(b"{") and any(name.encode() in text for name in REQUIRED):
        raise UnreadableImport("it looks like CSV: say --format csv")


def _csv_rows(stream: BinaryIO) -> Iterator[tuple[int, int, _Parse]]:
    # What is not UTF-8 survives decoding as lone surrogates, so that one bad row does not end the reading.
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
    try:
        reader = csv.reader(iter(partial(text.readline, LINE_BYTES), ""), strict=True)
        header = _header(reader)
        while True:
            number = reader.line_num + 1
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error:
                yield number, LINE_BYTES, partial(_reject, _unreadable(number, reader.line_num))
                continue
            if any(row):
                yield number, sum(map(len, row)), partial(_parse_row, header, row)
    finally:
        # The stream is the caller's; the wrapper would close it.
        text.detach()


def _header(reader: Iterator[list[str]]) -> list[str]:
    try:
        header = [name.strip() for name in next(reader, [])]
    except csv.Error:
        raise UnreadableImport("its first line is not a CSV header") from None
    if not any(header):
        raise UnreadableImport("it has no CSV header: the first line must name the columns")
    if header[0].startswith(("{", "[")):
        raise UnreadableImport("it looks like JSON: say --format jsonl")
    if len(header) == 1 and (";" in header[0] or "\t" in header[0]):
        raise UnreadableImport("its columns are not separated by commas: save it with commas")
    known = ", ".join(FIELDS)
    for name in header:
        if name not in FIELDS:
            shown = spelled(name) or "(not shown)"
            raise UnreadableImport(f"its CSV header has the unknown column {shown}: known are {known}")
    if len(set(header)) < len(header):
        raise UnreadableImport("its CSV header names a column twice")
    missing = [name for name in REQUIRED if name not in header]
    if missing:
        raise UnreadableImport(f"its CSV header lacks {', '.join(missing)}")
    return header


def _unreadable(first: int, last: int) -> str:
    if last > first:
        return f"and all up to line {last} cannot be read: is a quote not closed?"
    return "is not a CSV row: is a quote not closed, or not doubled?"


def _parse_row(header: list[str], row: list[str], *, now: datetime) -> ImportLine:
    if len(row) != len(header):
        raise LineRejected(f"has {len(row)} columns where the header has {len(header)}")
    record: Mapping[str, str] = {name: cell for name, cell in zip(header, row, strict=True) if cell}
    try:
        for cell in record.values():
            cell.encode()
    except UnicodeEncodeError:
        raise LineRejected("is not UTF-8 text") from None
    return parse_record(record, now=now)


def _reject(reason: str, *, now: datetime) -> ImportLine:
    raise LineRejected(reason)
