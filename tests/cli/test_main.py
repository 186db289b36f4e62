"""The command line as a whole: it teaches, starts quickly, and fails in sentences."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError

from cli.failures import sentences_for
from cli.group import CommandGroup, Failure, Root
from cli.main import SECTIONS, root
from tests.cli.conftest import Shell
from tokenfleet_client.errors import KeyMaterialError

NOBODY = "postgresql://x@127.0.0.1:1/x"
HEAVY = ("sqlalchemy", "psycopg", "celery", "redis", "pydantic", "cryptography", "rich", "structlog", "httpx")


def _commands(group: click.Group, *path: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from _commands(command, *path, name)


def test_help_lists_every_command_under_a_heading(tokenfleet: Shell) -> None:
    ran = tokenfleet("--help")
    assert ran.exit_code == 0
    for heading, entries in SECTIONS.items():
        assert f"{heading}:" in ran.stdout
        for name in entries:
            assert f"  {name} " in ran.stdout


def test_help_needs_none_of_the_heavy_libraries() -> None:
    program = (
        "import sys\n"
        "from cli.main import root\n"
        "root(['--help'], prog_name='tokenfleet', standalone_mode=False)\n"
        f"print('loaded:', [name for name in {HEAVY!r} if name in sys.modules])\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True
    )
    assert ran.stdout.endswith("loaded: []\n")


def test_every_command_is_named_as_it_is_called_and_explains_itself() -> None:
    for path, command in _commands(root):
        assert command.name == path[-1], path
        assert command.help, path
        if not isinstance(command, click.Group):
            assert "Example" in command.help, f"{' '.join(path)} shows no example"


def test_every_reading_command_prints_json_on_request() -> None:
    reading = {
        ("db", "check"),
        ("keys", "status"),
        ("providers", "list"),
        ("providers", "show"),
        ("providers", "validate"),
        ("apps", "list"),
        ("apps", "show"),
        ("accounts", "list"),
        ("accounts", "show"),
        ("accounts", "history"),
        ("status",),
        ("doctor",),
    }
    commands = dict(_commands(root))
    for path in reading:
        names = {parameter.name for parameter in commands[path].params}
        assert "as_json" in names, path


def test_a_misspelt_command_is_a_usage_error_that_names_the_right_one(tokenfleet: Shell) -> None:
    ran = tokenfleet("acounts")
    assert ran.exit_code == 2
    assert "accounts" in ran.stderr
    assert tokenfleet("accounts", "lsit").exit_code == 2


def test_every_problem_of_the_settings_is_a_line_of_its_own(tokenfleet: Shell) -> None:
    ran = tokenfleet("status", TOKENFLEET_DATABASE_URL="mysql://somewhere/x", TOKENFLEET_TICK_SECONDS="often")
    assert ran.exit_code == 1
    lines = ran.stderr.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("tokenfleet: TOKENFLEET_") for line in lines)


def test_an_unreachable_database_is_one_sentence_without_its_password(tokenfleet: Shell) -> None:
    url = "postgresql://somebody:hush@127.0.0.1:1/nowhere"
    for words in (("accounts", "list"), ("apps", "list"), ("keys", "status"), ("db", "upgrade")):
        ran = tokenfleet(*words, TOKENFLEET_DATABASE_URL=url)
        assert ran.exit_code == 1
        [line] = ran.stderr.splitlines()
        assert line.startswith("tokenfleet: Postgres")
        assert "TOKENFLEET_DATABASE_URL" in line
        assert "hush" not in line


def test_a_database_without_schema_is_sent_to_db_upgrade(tokenfleet: Shell, servers: dict[str, str]) -> None:
    ran = tokenfleet("accounts", "list", TOKENFLEET_DATABASE_URL=servers["TOKENFLEET_DATABASE_URL"])
    assert ran.exit_code == 1
    assert ran.stderr.endswith("run 'tokenfleet db upgrade'\n")


def _failing_with(error: Exception) -> click.Group:
    @click.group(cls=Root, sections={}, invoke_without_command=True)
    def group() -> None:
        raise error

    return group


def test_a_fault_of_ours_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        _failing_with(ZeroDivisionError()).main([], standalone_mode=False)


def test_an_unusable_key_is_a_sentence_and_not_a_traceback() -> None:
    with pytest.raises(Failure) as caught:
        _failing_with(KeyMaterialError("the key is short")).main([], standalone_mode=False)
    assert caught.value.sentences == ("the key is short",)
    assert caught.value.exit_code == 1


def test_a_statement_that_the_database_forbids_says_what_to_do(engine: Engine) -> None:
    with engine.connect() as connection:
        connection.execute(text("SET LOCAL ROLE pg_monitor"))
        with pytest.raises(DBAPIError) as refused:
            connection.execute(text("SELECT * FROM tokenfleet.accounts"))
    [sentence] = sentences_for(refused.value) or []
    assert "permission denied" in sentence
    assert "grant it the right" in sentence


def test_interrupting_a_question_ends_as_any_other_command_does() -> None:
    assert _failing_with(click.Abort()).main([], standalone_mode=False) == 130


def test_interrupting_ends_quietly_with_130(environ: dict[str, str]) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "cli", "status", "--watch", "--json"],
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().startswith("{")
        process.send_signal(signal.SIGINT)
        errors = process.stderr.read()
        assert process.wait(20) == 130
    assert errors.strip() == ""


@pytest.mark.parametrize("words", ["--help", "providers show oidc --json"])
def test_a_full_disk_behind_the_output_is_one_sentence(words: str) -> None:
    with Path("/dev/full").open("wb") as full:
        ran = subprocess.run(
            [sys.executable, "-m", "cli", *words.split()],
            stdout=full,
            stderr=subprocess.PIPE,
            env={"TOKENFLEET_DATABASE_URL": NOBODY, "TOKENFLEET_REDIS_URL": "redis://127.0.0.1:1/0"},
            text=True,
            timeout=60,
            check=False,
        )
    assert ran.returncode == 1
    assert ran.stderr == (
        "tokenfleet: what this command prints cannot be written (No space left on device): free some space, or "
        "send it elsewhere\n"
    )


@pytest.mark.parametrize("words", ["providers list", "doctor"])
def test_a_reader_that_has_seen_enough_ends_a_command_quietly_as_a_pipe_does(words: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as nobody_reads:
        ran = subprocess.run(
            [sys.executable, "-m", "cli", *words.split()],
            stdout=nobody_reads,
            stderr=subprocess.PIPE,
            env={"TOKENFLEET_DATABASE_URL": NOBODY, "TOKENFLEET_REDIS_URL": "redis://127.0.0.1:1/0"},
            timeout=60,
            check=False,
        )
    assert (ran.returncode, ran.stderr) == (128 + signal.SIGPIPE, b"")


def test_interrupting_while_python_loads_the_command_line_leaves_no_traceback() -> None:
    """What is loaded first waits for the interrupt, as a slow disk would let it."""
    program = (
        "import builtins, os, signal, sys\n"
        "load = builtins.__import__\n"
        "def slow(name, *arguments, **named):\n"
        "    if name == 'cli.main':\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "    return load(name, *arguments, **named)\n"
        "builtins.__import__ = slow\n"
        "import runpy\n"
        "runpy.run_module('cli.__main__', run_name='__main__')\n"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60, check=False)
    assert (ran.returncode, ran.stderr) == (-signal.SIGINT, b"")


def test_a_failure_prints_a_line_for_each_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    Failure(["one", "two"]).show()
    assert capsys.readouterr().err == "tokenfleet: one\ntokenfleet: two\n"


def test_a_group_knows_only_its_own_commands() -> None:
    group = CommandGroup("group", sections={})
    assert group.get_command(click.Context(group), "anything") is None
