"""Words for spans and moments, and text that cannot steer a terminal."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest

from cli.output import (
    clipped,
    counted,
    dated,
    duration,
    escaped,
    moment,
    print_json,
    print_table,
    relative,
    shown,
)
from tokenfleet_client.secret import Secret

NOW = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0.0 s"),
        (9.94, "9.9 s"),
        (10, "10 s"),
        (59.6, "1 min"),
        (200, "3 min 20 s"),
        (3600, "1 h"),
        (3605, "1 h"),
        (86_399, "23 h 59 min"),
        (2 * 86_400 + 4 * 3600 + 59, "2 d 4 h"),
        (-90, "1 min 30 s"),
    ],
)
def test_a_span_is_told_in_its_two_largest_units(seconds: float, words: str) -> None:
    assert duration(timedelta(seconds=seconds)) == words


def test_a_table_breaks_no_cell_where_no_terminal_limits_it(capsys: pytest.CaptureFixture[str]) -> None:
    words = "2030-01-02 03:01:05Z (3 min ago) " * 3
    print_table(("a", "b", ""), [("1" * 60, words.strip(), "")])
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_moments_are_told_beside_their_distance() -> None:
    assert moment(NOW) == "2030-01-02 03:04:05Z"
    assert relative(NOW + timedelta(minutes=3), NOW) == "in 3 min"
    assert dated(NOW - timedelta(minutes=3), NOW) == "2030-01-02 03:01:05Z (3 min ago)"
    assert moment(None) == relative(None, NOW) == dated(None, NOW) == ""


def test_numbers_agree_with_their_noun() -> None:
    assert (counted(1, "account"), counted(1200, "account")) == ("1 account", "1,200 accounts")


def test_control_characters_are_made_visible() -> None:
    assert shown("a\x1b[31mb\x07\r\u202e") == "a�[31mb���"
    assert shown("naïve\nlines") == "naïve\nlines"


def test_a_secret_in_a_document_is_a_fault_and_not_a_leak(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(TypeError):
        print_json({"token": Secret("planted")})
    assert "planted" not in capsys.readouterr().out


def test_json_steers_no_terminal_and_says_the_same() -> None:
    text = "csi \x9b31m, delete \x7f, overridden \u202egnp.exe, isolated \u2066, \u00fc and \U0001f511 as they are"
    document = escaped(json.dumps({"reason": text}, ensure_ascii=False))
    assert json.loads(document) == {"reason": text}
    assert not any(each in document for each in "\x9b\x7f\u202e\u2066")
    assert "\u00fc and \U0001f511" in document


def test_a_long_text_of_many_lines_is_one_line_that_was_cut() -> None:
    assert clipped("as it is", 20) == "as it is"
    assert clipped("a\n  b" + "c" * 40, 10) == "a bcccccc…"
