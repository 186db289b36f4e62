"""What ``python -m drills`` accepts, and how a run is repeated. No run."""

from __future__ import annotations

import pytest

from drills.__main__ import again, main, make_parser


@pytest.mark.parametrize(
    "words",
    [
        "--accounts 999",
        "--accounts 200001",
        "--accounts many",
        "--seed -1",
        "--only nobody_knows",
        "--short --only unknown",
        "--json /nonexistent/rows.json",
        "--keep /dev/null/evidence",
    ],
)
def test_what_cannot_be_run_is_refused_in_one_sentence(
    words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code: object = main(words.split())
    except SystemExit as ended:
        code = ended.code
    assert code == 2
    said = capsys.readouterr()
    assert said.err.startswith("drills: ")
    assert said.err.count("\n") == 1
    assert said.out == ""


@pytest.mark.parametrize(
    ("words", "command"),
    [
        ("", "make drills DRILLS_ARGS='--seed 4711'"),
        ("--short", "make drills-short DRILLS_ARGS='--seed 4711'"),
        (
            "--accounts 5000 --only down --only secret",
            "make drills DRILLS_ARGS='--seed 4711 --accounts 5000 --only down --only secret'",
        ),
    ],
)
def test_a_run_is_repeated_with_its_own_options(words: str, command: str) -> None:
    assert again(4711, make_parser().parse_args(words.split())) == command


def test_the_drills_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    assert "provider down: refused, reset, 500" in capsys.readouterr().out
