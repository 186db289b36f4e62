"""What ``python -m chaos`` accepts, how a run is repeated, and what is kept of it. No run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from chaos import __main__ as command
from chaos.__main__ import again, main, make_parser
from chaos.command import check_targets, keep
from chaos.processes import ROOT
from tokenfleet.errors import UserError


@pytest.mark.parametrize(
    "words",
    [
        "--accounts -3",
        "--accounts 0",
        "--accounts 99",
        "--accounts 100001",
        "--accounts many",
        "--seconds nan",
        "--seconds inf",
        "--seconds 0",
        "--seconds -5",
        "--seconds 86401",
        "--seconds soon",
        "--seed -1",
        "--seed 1.5",
        "--see 1",
        "--only nobody.knows",
        "--only redis.flushed --json /nonexistent/rows.json",
        "--only redis.flushed --keep /dev/null/evidence",
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
    assert said.err.startswith("chaos: ")
    assert said.err.count("\n") == 1
    assert said.out == ""


@pytest.mark.parametrize(
    "words", ["--accounts 100 --seconds 5 --seed 0", "--accounts 100000 --seconds 86400"]
)
def test_the_limits_themselves_are_accepted(words: str) -> None:
    options = make_parser().parse_args(words.split())
    given = words.split()
    for name, value in zip(given[::2], given[1::2], strict=True):
        assert getattr(options, name.removeprefix("--")) == float(value)


def test_every_option_says_what_it_does_and_its_default() -> None:
    told = " ".join(make_parser().format_help().split())
    for default in ("600", "6000", "another one each time", "all rows", "nowhere"):
        assert f"(default: {default})" in told


@pytest.mark.parametrize(
    "options",
    [
        "",
        " --seconds 100 --accounts 2000",
        " --seconds 12.5",
        " --only redis.flushed --only worker.journal.after",
    ],
)
def test_a_run_is_repeated_with_its_own_options(options: str) -> None:
    assert again(4711, make_parser().parse_args(options.split())) == (
        f"make chaos CHAOS_ARGS='--seed 4711{options}'"
    )


def test_an_interrupted_run_has_no_verdict(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "_run", interrupted)
    assert main(["--only", "redis.flushed"]) == 130
    assert capsys.readouterr().err == "interrupted: no verdict\n"


def test_a_pipe_that_nobody_reads_ends_it_quietly() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        ended = subprocess.run(
            [sys.executable, "-m", "chaos", "--list"],
            stdout=writing,
            stderr=subprocess.PIPE,
            cwd=ROOT,
            # Unbuffered, nothing would be left for the flush at its end.
            env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
            check=False,
        )
    finally:
        os.close(writing)
    assert (ended.returncode, ended.stderr) == (141, b"")


def test_what_may_be_written_is_tried_and_left_as_it_was(tmp_path: Path) -> None:
    rows, evidence = tmp_path / "rows.json", tmp_path / "evidence"
    arguments = make_parser().parse_args(["--json", str(rows), "--keep", str(evidence)])
    check_targets(arguments)
    assert not rows.exists()
    assert list(evidence.iterdir()) == []
    rows.write_text("of another run")
    check_targets(arguments)
    assert rows.read_text() == "of another run"


def test_a_directory_is_no_place_for_the_rows(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be written: Is a directory"):
        check_targets(make_parser().parse_args(["--json", str(tmp_path)]))


def test_what_is_kept_takes_no_more_room_than_what_was_written(tmp_path: Path) -> None:
    processes = tmp_path / "home" / "processes"
    processes.mkdir(parents=True)
    lines = b"1.0 sent 7 1 abc\n" * 10_000
    with (processes / "00001-worker.witness").open("wb") as file:
        file.write(lines)
        file.truncate(64 * 1024 * 1024)
    (processes / "fleet.log").write_bytes(b"a log\0 as it is")
    keep(tmp_path / "home", tmp_path / "kept")
    kept = tmp_path / "kept" / "processes"
    assert (kept / "00001-worker.witness").read_bytes() == lines
    assert (kept / "fleet.log").read_bytes() == b"a log\0 as it is"


def test_a_run_that_never_began_has_nothing_to_keep(tmp_path: Path) -> None:
    keep(tmp_path / "home", tmp_path / "kept")
    assert not (tmp_path / "kept").exists()
