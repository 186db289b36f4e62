"""Files as streams of chunks: JSON Lines and CSV, blank lines, long lines, wrong files, and repeated accounts."""

from __future__ import annotations

import gzip
import io
import json
import random
from datetime import UTC, datetime
from typing import Any

import pytest

from store import import_source
from store.import_rules import ProviderRules
from store.import_source import (
    CHUNK_LINES,
    LINE_BYTES,
    BadLine,
    Chunk,
    FirstLines,
    ImportFormat,
    UnreadableImport,
    read_chunks,
)
from tokenfleet.connected import ConnectedAccount
from tokenfleet.errors import UserError
from tokenfleet.outcome import TokenAnswer
from tokenfleet.presented import Presented
from tokenfleet.tokens import Margins
from tokenfleet_client.secret import Secret

NOW = datetime(2026, 11, 21, 7, 0, tzinfo=UTC)
HEADER = "provider,external_id,refresh_token"


def two_parts(answer: dict[str, Any], _received_at: datetime) -> list[ConnectedAccount]:
    """An account for each member of an answer; the member's value is its refresh token."""
    return [
        ConnectedAccount(part or None, TokenAnswer(Secret("access"), refresh_token=Secret(token)))
        for part, token in answer.items()
    ]


def rules_of(name: str) -> ProviderRules:
    if name == "unknown":
        raise UserError("there is no such provider")
    presents = Presented.NOTHING if name == "keyless" else Presented.REFRESH_TOKEN
    return ProviderRules(Margins(), lambda _variables: None, presents=presents, connect=two_parts)


def line(external_id: str, **fields: Any) -> str:
    return json.dumps(
        {"provider": "acme", "external_id": external_id, "refresh_token": f"refresh-{external_id}", **fields}
    )


def chunks_of(text: str | bytes, format: ImportFormat = ImportFormat.JSON_LINES) -> list[Chunk]:
    raw = text.encode() if isinstance(text, str) else text
    return list(read_chunks(io.BytesIO(raw), format, now=NOW, rules_of=rules_of))


def read(text: str | bytes, format: ImportFormat = ImportFormat.JSON_LINES) -> Chunk:
    [chunk] = chunks_of(text, format)
    return chunk


def ids(chunk: Chunk) -> list[tuple[int, str]]:
    return [(entry.number, entry.line.external_id) for entry in chunk.lines]


def test_lines_are_numbered_as_an_editor_numbers_them() -> None:
    chunk = read(f"{line('a')}\n\n   \r\n{line('b')}\r\nnonsense\n{line('c')}")
    assert ids(chunk) == [(1, "a"), (4, "b"), (6, "c")]
    assert chunk.bad == [BadLine(5, "is not a whole JSON object")]
    assert chunk.last == 6


def test_a_byte_order_mark_is_no_part_of_the_first_line() -> None:
    assert ids(read(b"\xef\xbb\xbf" + line("a").encode())) == [(1, "a")]
    assert ids(read(b"\xef\xbb\xbf" + f"{HEADER}\nacme,a,r".encode(), ImportFormat.CSV)) == [(2, "a")]


def test_an_empty_file_has_no_lines() -> None:
    assert chunks_of("") == []
    assert [chunk.lines for chunk in chunks_of("\n\n")] == []


def test_a_long_file_comes_in_chunks() -> None:
    total = CHUNK_LINES * 2 + 17
    chunks = chunks_of("\n".join(line(f"c{number}") for number in range(total)))
    assert [len(chunk.lines) for chunk in chunks] == [CHUNK_LINES, CHUNK_LINES, 17]
    assert [chunk.last for chunk in chunks] == [CHUNK_LINES, CHUNK_LINES * 2, total]


def test_long_lines_make_small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_source, "CHUNK_BYTES", 100_000)
    chunks = chunks_of("\n".join(line(f"c{number}", access_token="x" * 30_000) for number in range(10)))
    assert [len(chunk.lines) for chunk in chunks] == [4, 4, 2]


def test_a_line_beyond_every_measure_is_skipped_and_reported() -> None:
    chunk = read(f"{line('a')}\n{'x' * (3 * LINE_BYTES)}\n{line('b')}\n")
    assert ids(chunk) == [(1, "a"), (3, "b")]
    assert chunk.bad == [BadLine(2, "is longer than 1024 KiB")]


def test_a_second_line_about_an_account_names_the_first() -> None:
    chunk = read("\n".join([line("a"), line("b"), line("a", refresh_token="refresh-2"), line("a")]))
    assert ids(chunk) == [(1, "a"), (2, "b")]
    assert [bad.number for bad in chunk.bad] == [3, 4]
    assert {bad.reason for bad in chunk.bad} == {"is about the same account as line 1: keep one of them"}


def test_the_first_line_is_remembered_across_chunks() -> None:
    total = CHUNK_LINES + 1
    lines = [line(f"c{number}") for number in range(total)]
    [*_, last] = chunks_of("\n".join([*lines, line("c3")]))
    assert last.bad == [BadLine(total + 1, "is about the same account as line 4: keep one of them")]


def test_accounts_of_other_providers_or_environments_are_others() -> None:
    text = [line("a"), line("a", provider="other"), line("a", environment="staging", refresh_token="other")]
    assert len(read("\n".join(text)).lines) == 3


def test_the_default_environment_is_the_same_said_or_not() -> None:
    chunk = read("\n".join([line("a"), line("a", environment="production")]))
    assert [entry.environment for entry in chunk.lines] == ["production"]
    assert len(chunk.bad) == 1


def test_a_line_may_be_about_several_accounts() -> None:
    answers = [{"": "bot-1", "user": "user-1"}, {"": "bot-2"}, {"": "bot-3", "user": "bot-1"}]
    text = "\n".join(
        line(f"team-{number}", refresh_token=None, answer=answer) for number, answer in enumerate(answers)
    )
    chunk = read(text)
    assert ids(chunk) == [(1, "team-0"), (1, "team-0/user"), (2, "team-1"), (3, "team-2")]
    assert chunk.bad == [BadLine(3, "has the same refresh token as line 1: one grant is one account's")]
    assert chunk.shared == 2, "four accounts and a reason stand in three lines"


def test_one_token_in_two_sets_of_an_answer_is_told() -> None:
    chunk = read(line("team", refresh_token=None, answer={"": "bot-1", "user": "bot-1"}))
    assert chunk.bad == [
        BadLine(1, "has the same refresh token for two accounts: one grant is one account's")
    ]


def test_an_account_of_an_answer_is_the_same_as_one_of_a_line() -> None:
    text = line("team/user") + "\n" + line("team", refresh_token=None, answer={"user": "other"})
    assert read(text).bad == [BadLine(2, "is about the same account as line 1: keep one of them")]


def test_accounts_that_live_by_their_client_alone_have_no_token_in_common() -> None:
    without = {"provider": "keyless", "refresh_token": None, "access_token": "the same"}
    assert len(read("\n".join([line("a", **without), line("b", **without)])).lines) == 2


def test_an_unknown_provider_is_told_before_anything_is_asked_of_its_line() -> None:
    chunk = read(line("a", provider="unknown", refresh_token=None))
    assert chunk.bad == [BadLine(1, "there is no such provider")]


def test_a_bad_line_does_not_count_as_the_first() -> None:
    chunk = read("\n".join([line("a", expires_in=-1), line("a")]))
    assert ids(chunk) == [(2, "a")]


def test_first_lines_agree_with_a_dict_over_many_accounts() -> None:
    chance = random.Random(7)
    table, expected = FirstLines(), dict[tuple[str, str, str], int]()
    for number in range(1, 60_000):
        account = ("acme", "production", f"c{chance.randrange(40_000)}")
        assert table.note(account, number) == expected.get(account)
        expected.setdefault(account, number)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'[{"provider": "acme"}]', "it is one JSON array"),
        (b'\n\n [\n{"provider": "acme"}]', "it is one JSON array"),
        (b'{\n  "provider": "acme"\n}', "its JSON objects are spread over several lines"),
        (HEADER.encode() + b"\nacme,a,r", "it looks like CSV: say --format csv"),
        (gzip.compress(b"{}", mtime=0), "it is compressed"),
        ('{"provider": "acme"}'.encode("utf-16"), "it is UTF-16 text"),
    ],
)
def test_a_file_that_is_not_json_lines_is_told_as_a_whole(content: bytes, reason: str) -> None:
    with pytest.raises(UnreadableImport, match=reason):
        chunks_of(content)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "it has no CSV header"),
        ("\n", "it has no CSV header"),
        ('{"provider": "acme"}', "it looks like JSON: say --format jsonl"),
        ("provider;external_id;refresh_token", "its columns are not separated by commas"),
        ("provider,refresh_token", "its CSV header lacks external_id"),
        ("provider,external_id,refresh_token,colour", "its CSV header has the unknown column 'colour'"),
        ("acme,customer-1,1//0aB3aB3aB3aB3aB3", r"its CSV header has the unknown column"),
        ("provider,provider,external_id,refresh_token", "its CSV header names a column twice"),
        ('"provider', "its first line is not a CSV header"),
    ],
)
def test_a_csv_file_without_a_usable_header_is_told_as_a_whole(content: str, reason: str) -> None:
    with pytest.raises(UnreadableImport, match=reason) as caught:
        chunks_of(content, ImportFormat.CSV)
    assert "aB3" not in str(caught.value)


def test_csv_rows_may_quote_commas_line_breaks_and_json() -> None:
    content = f'{HEADER},metadata\r\nacme,"a,1",r-1,"{{""plan"":\n""pro""}}"\r\n\r\nacme,b,r-2,\r\n'
    chunk = read(content, ImportFormat.CSV)
    assert ids(chunk) == [(2, "a,1"), (5, "b")]
    assert chunk.lines[0].line.metadata == {"plan": "pro"}
    assert chunk.lines[1].line.metadata is None


def test_csv_columns_may_stand_in_any_order_with_spaces_around_their_names() -> None:
    chunk = read("refresh_token, external_id ,provider\nr-1,a,acme", ImportFormat.CSV)
    assert ids(chunk) == [(2, "a")]


def test_bad_csv_rows_are_left_out_and_the_others_go_on() -> None:
    content = b"\n".join(
        [
            HEADER.encode(),
            b"acme,a,r-1,surplus",
            b"acme,b",
            b"acme,\xff,r-3",
            b'acme,"c"d,r-4',
            b"acme,e,r-5",
        ]
    )
    chunk = read(content, ImportFormat.CSV)
    assert ids(chunk) == [(6, "e")]
    assert chunk.bad == [
        BadLine(2, "has 4 columns where the header has 3"),
        BadLine(3, "has 2 columns where the header has 3"),
        BadLine(4, "is not UTF-8 text"),
        BadLine(5, "is not a CSV row: is a quote not closed, or not doubled?"),
    ]


def test_a_quote_that_is_never_closed_says_how_far_it_reached() -> None:
    content = f'{HEADER}\nacme,a,r-1\nacme,"b,r-2\nacme,c,r-3\nacme,d,r-4\n'
    chunk = read(content, ImportFormat.CSV)
    assert ids(chunk) == [(2, "a")]
    assert chunk.bad == [BadLine(3, "and all up to line 5 cannot be read: is a quote not closed?")]


def test_reading_leaves_the_stream_open() -> None:
    stream = io.BytesIO(f"{HEADER}\nacme,a,r".encode())
    assert list(read_chunks(stream, ImportFormat.CSV, now=NOW, rules_of=rules_of))
    assert not stream.closed


def test_a_stream_that_breaks_is_told_as_a_whole() -> None:
    class Broken(io.RawIOBase):
        def readable(self) -> bool:
            return True

        def readinto(self, _buffer: Any) -> int:
            raise OSError(5, "Input/output error")

    with pytest.raises(UnreadableImport, match=r"it cannot be read to its end \(Input/output error\)"):
        list(read_chunks(io.BufferedReader(Broken()), ImportFormat.JSON_LINES, now=NOW, rules_of=rules_of))


def test_one_refresh_token_for_two_accounts_is_refused_without_repeating_it() -> None:
    chunk = read("\n".join([line("a", refresh_token="same"), line("b", refresh_token="same"), line("c")]))
    assert [numbered.line.external_id for numbered in chunk.lines] == ["a", "c"]
    assert chunk.bad == [BadLine(2, "has the same refresh token as line 1: one grant is one account's")]
