"""``tokenfleet accounts import``: from files and pipes, with every mistake told and no token repeated."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text

from cli import accounts_import
from store.import_source import CHUNK_LINES
from tests.cli.conftest import Ran, Shell
from tests.support.racing import wait_until
from tokenfleet_client.envelope import KeyEncryptionKey

COMMAND = (sys.executable, "-m", "cli", "accounts", "import")


def line(name: str, /, **fields: Any) -> str:
    least = {"provider": "google", "external_id": name, "refresh_token": f"refresh-{name}"}
    return json.dumps({**least, **fields}) + "\n"


def count(engine: Engine) -> int:
    with engine.connect() as connection:
        counted: int = connection.execute(text("SELECT count(*) FROM tokenfleet.accounts")).scalar_one()
    return counted


@pytest.fixture
def fleet(tokenfleet: Shell, tmp_path: Path) -> Shell:
    """A shell whose database knows one app of google."""
    register(tokenfleet, tmp_path, "google")
    return tokenfleet


def register(shell: Shell, directory: Path, provider: str) -> None:
    secret = directory / "client.secret"
    secret.write_text("client-secret")
    words = ("apps", "set", provider, "--client-id", "client-1", "--client-secret-file", str(secret))
    assert shell(*words).exit_code == 0


def bring(shell: Shell, path: Path, content: str, *options: str) -> Ran:
    path.write_text(content)
    return shell("accounts", "import", str(path), *options)


def test_a_file_is_imported_and_summed_up_in_one_line(fleet: Shell, tmp_path: Path, engine: Engine) -> None:
    ran = bring(fleet, tmp_path / "accounts.jsonl", line("a") + line("b"))
    assert ran.exit_code == 0
    assert ran.stdout.startswith("2 created, 0 bad in ")
    assert ran.stderr == ""
    assert count(engine) == 2


def test_standard_input_is_imported(fleet: Shell, engine: Engine) -> None:
    ran = fleet("accounts", "import", "-", stdin=line("a"))
    assert ran.exit_code == 0
    assert count(engine) == 1


INSTALLATION = {
    "ok": True,
    "access_token": "access-bot",
    "refresh_token": "refresh-bot",
    "expires_in": 43_200,
    "bot_user_id": "B1",
    "authed_user": {
        "id": "U7",
        "access_token": "access-user",
        "refresh_token": "refresh-user",
        "expires_in": 43_200,
    },
}


def installed(name: str, **answer: Any) -> str:
    """Return a line that brings the answer of an installation, and nothing that is in it."""
    return line(name, provider="slack_rotating", refresh_token=None, answer={**INSTALLATION, **answer})


def test_the_answer_that_connected_a_customer_is_imported_as_it_came(
    tokenfleet: Shell, tmp_path: Path, engine: Engine
) -> None:
    register(tokenfleet, tmp_path, "slack_rotating")
    ran = bring(tokenfleet, tmp_path / "installed.jsonl", installed("team-7"), "--json")
    assert ran.exit_code == 0
    assert {name: json.loads(ran.stdout)[name] for name in ("lines", "created")} == {"lines": 1, "created": 2}
    with engine.connect() as connection:
        names = connection.execute(text("SELECT external_id FROM tokenfleet.accounts ORDER BY id")).scalars()
        assert list(names) == ["team-7/B1", "team-7/U7"]
    row = (
        '"team-8","slack_rotating","' + json.dumps(INSTALLATION).replace("-", "-8").replace('"', '""') + '"\n'
    )
    ran = bring(tokenfleet, tmp_path / "installed.csv", "external_id,provider,answer\n" + row)
    assert ran.stdout.startswith("2 created, 0 bad"), ran.stderr


def test_an_answer_that_connects_nobody_is_told_by_its_line_and_not_repeated(
    tokenfleet: Shell, tmp_path: Path
) -> None:
    register(tokenfleet, tmp_path, "slack_rotating")
    content = installed("a", ok=False) + installed("b", authed_user={"id": "U8", "access_token": "access-8"})
    ran = bring(tokenfleet, tmp_path / "installed.jsonl", content)
    assert ran.exit_code == 1
    told = ran.stderr.splitlines()
    assert told[0].startswith("line 1: answer is not a success of this provider's token endpoint")
    assert told[1].startswith("line 2: answer has no refresh token in its token set user")
    assert "access-" not in ran.stderr + ran.stdout


@pytest.mark.parametrize(
    ("name", "content"),
    [("nobody.jsonl", ""), ("blank.jsonl", "\n\n"), ("head.csv", "provider,external_id,refresh_token\n")],
)
def test_a_file_without_accounts_is_said_to_have_none(
    fleet: Shell, tmp_path: Path, name: str, content: str
) -> None:
    file = tmp_path / name
    file.write_text(content)
    ran = fleet("accounts", "import", str(file))
    assert ran.exit_code == 0
    assert ran.stderr == f"there is nothing to import in {file}: it has no line with an account\n"
    assert "nothing to import in standard input" in fleet("accounts", "import", "-", stdin="").stderr


def test_a_csv_file_is_known_by_its_name_or_by_the_option(fleet: Shell, tmp_path: Path) -> None:
    content = 'provider,external_id,refresh_token,metadata\ngoogle,{},refresh-1,"{{""plan"": ""pro""}}"\n'
    assert bring(fleet, tmp_path / "accounts.csv", content.format("a")).stdout.startswith("1 created")
    ran = bring(fleet, tmp_path / "accounts.txt", content.format("b"), "--format", "csv")
    assert ran.stdout.startswith("1 created")


def test_the_same_file_may_be_imported_again(fleet: Shell, tmp_path: Path) -> None:
    bring(fleet, tmp_path / "accounts.jsonl", line("a"))
    again = fleet("accounts", "import", str(tmp_path / "accounts.jsonl"))
    assert again.exit_code == 0
    assert again.stdout.startswith("0 created, 1 unchanged, 0 bad")


def test_bad_lines_are_told_and_the_exit_code_says_so(fleet: Shell, tmp_path: Path, engine: Engine) -> None:
    content = line("a") + "nonsense\n" + line("b", provider="hubspt") + line("a") + line("c")
    ran = bring(fleet, tmp_path / "accounts.jsonl", content)
    assert ran.exit_code == 1
    assert ran.stdout.startswith("2 created, 3 bad in ")
    assert ran.stderr.splitlines() == [
        "line 2: is not a whole JSON object",
        "line 3: there is no provider 'hubspt': did you mean hubspot?",
        "line 4: is about the same account as line 1: keep one of them",
    ]
    assert count(engine) == 2


def test_the_first_bad_lines_are_shown_and_the_file_of_errors_has_them_all(
    fleet: Shell, tmp_path: Path
) -> None:
    ran = bring(fleet, tmp_path / "accounts.jsonl", "nonsense\n" * 25 + line("a"))
    assert ran.stderr.count("is not a whole JSON object") == accounts_import.SHOWN_REASONS
    assert "... and 5 more bad lines: --errors FILE lists them all" in ran.stderr
    errors = tmp_path / "errors.jsonl"
    ran = fleet("accounts", "import", str(tmp_path / "accounts.jsonl"), "--errors", str(errors))
    assert "... and 5 more bad lines: see the errors file" in ran.stderr
    listed = [json.loads(each) for each in errors.read_text().splitlines()]
    assert listed == [{"line": number, "reason": "is not a whole JSON object"} for number in range(1, 26)]


def test_a_list_of_bad_lines_replaces_neither_the_input_nor_any_other_file(
    tokenfleet: Shell, tmp_path: Path
) -> None:
    path, new = tmp_path / "accounts.jsonl", tmp_path / "bad.jsonl"
    ran = bring(tokenfleet, path, line("a"), "--errors", str(path))
    assert (ran.exit_code, f"{path} exists and is never overwritten" in ran.stderr) == (2, True)
    assert path.read_text() == line("a")
    # Nor does one stay of a command that failed.
    refused = tokenfleet("accounts", "import", str(path), "--identity", str(path), "--errors", str(new))
    unreachable = "postgresql+psycopg://nobody@127.0.0.1:1/none"
    failed = tokenfleet(
        "accounts", "import", str(path), "--errors", str(new), TOKENFLEET_DATABASE_URL=unreachable
    )
    assert (refused.exit_code, failed.exit_code, new.exists()) == (1, 1, False)


def test_json_is_the_only_thing_on_standard_output(fleet: Shell, tmp_path: Path) -> None:
    ran = bring(fleet, tmp_path / "accounts.jsonl", line("a") + "nonsense\n", "--json")
    assert ran.exit_code == 1
    counts = {key: ran.document[key] for key in ("lines", "created", "reauthenticated", "unchanged", "bad")}
    assert counts == {"lines": 2, "created": 1, "reauthenticated": 0, "unchanged": 0, "bad": 1}
    assert ran.document["dry_run"] is False
    assert ran.document["seconds"] > 0


def test_a_dry_run_says_that_it_wrote_nothing(fleet: Shell, tmp_path: Path, engine: Engine) -> None:
    ran = bring(fleet, tmp_path / "accounts.jsonl", line("a") + "nonsense\n", "--dry-run")
    assert ran.exit_code == 1
    assert ran.stdout.startswith("nothing was written, this was a dry run: 1 created, 1 bad")
    assert count(engine) == 0


def test_a_reauthentication_says_how_many_accounts_are_active_again(
    fleet: Shell, tmp_path: Path, engine: Engine
) -> None:
    bring(fleet, tmp_path / "accounts.jsonl", line("a") + line("b"))
    with engine.begin() as connection:
        connection.execute(
            text("UPDATE tokenfleet.accounts SET status = 'needs_reauth' WHERE external_id = 'a'")
        )
    again = line("a", refresh_token="new-a") + line("b", refresh_token="new-b")
    ran = bring(fleet, tmp_path / "accounts.jsonl", again)
    assert ran.stdout.startswith("0 created, 2 re-authenticated (1 active again), 0 bad")


def test_variables_are_checked_as_a_worker_would_use_them(fleet: Shell, tmp_path: Path) -> None:
    register(fleet, tmp_path, "oidc")
    endpoint = "https://sso.example/token"
    content = "".join(
        [
            line("a", provider="oidc"),
            line("b", provider="oidc", variables={"token_endpoint": "not a url"}),
            line("c", provider="oidc", variables={"token_endpoint": endpoint}),
        ]
    )
    ran = bring(fleet, tmp_path / "accounts.jsonl", content)
    assert ran.stdout.startswith("1 created, 2 bad")
    missing, malformed = ran.stderr.splitlines()
    assert missing.startswith("line 1: oidc needs the variable token_endpoint: give it under 'variables'")
    assert malformed.startswith("line 2: the variable 'token_endpoint' must be")


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("accounts.jsonl", "[]", "it is one JSON array"),
        ("accounts.jsonl", "provider,external_id,refresh_token\n", "it looks like CSV: say --format csv"),
        ("accounts.csv", "provider,refresh_token\n", "its CSV header lacks external_id"),
    ],
)
def test_a_file_of_another_kind_is_a_usage_error(
    fleet: Shell, tmp_path: Path, name: str, content: str, sentence: str
) -> None:
    ran = bring(fleet, tmp_path / name, content)
    assert ran.exit_code == 2
    assert sentence in ran.stderr


def test_a_file_that_cannot_be_opened_is_a_usage_error(fleet: Shell, tmp_path: Path) -> None:
    for words in (["absent.jsonl"], [str(tmp_path)], [], ["-", "--errors", str(tmp_path / "no" / "errors")]):
        assert fleet("accounts", "import", *words).exit_code == 2


def test_an_unreachable_postgres_is_told_in_one_sentence(fleet: Shell, tmp_path: Path) -> None:
    (tmp_path / "accounts.jsonl").write_text(line("a"))
    url = "postgresql://nobody@127.0.0.1:1/nothing"
    ran = fleet("accounts", "import", str(tmp_path / "accounts.jsonl"), TOKENFLEET_DATABASE_URL=url)
    assert ran.exit_code == 1
    assert len(ran.stderr.splitlines()) == 1
    assert "does not answer" in ran.stderr


def test_another_installations_keys_are_told_and_nothing_is_written(
    fleet: Shell, tmp_path: Path, engine: Engine
) -> None:
    keys = tmp_path / "other.json"
    keys.touch(mode=0o600)
    keys.write_text(
        json.dumps({ring: [KeyEncryptionKey.generate("other").export()] for ring in ("access", "refresh")})
    )
    (tmp_path / "accounts.jsonl").write_text(line("a"))
    words = ("accounts", "import", str(tmp_path / "accounts.jsonl"))
    ran = fleet(*words, TOKENFLEET_KEYS_FILE=str(keys))
    assert ran.exit_code == 1
    assert "TOKENFLEET_KEYS_FILE" in ran.stderr
    assert count(engine) == 0


def test_no_token_is_ever_printed(fleet: Shell, tmp_path: Path, engine: Engine) -> None:
    token = "1//0sEnTiNeL-" + "x7" * 30
    names = ("provider", "external_id", "access_token", "tenant", "environment", "app", "expires_at", "scope")
    content = "".join(
        [
            *(line(f"c-{name}", **{name: token, "refresh_token": token + name}) for name in names),
            line("d", **{token: "x"}),
            json.dumps([token]) + "\n",
            f'{{"refresh_token": "{token}\n',
            line("e", refresh_token=token + "\n"),
            line("f", refresh_token=token) * 2,
        ]
    )
    errors = tmp_path / "errors.jsonl"
    ran = bring(fleet, tmp_path / "accounts.jsonl", content, "--errors", str(errors))
    assert ran.exit_code == 1
    assert "sEnTiNeL" not in ran.stdout + ran.stderr + errors.read_text()
    assert count(engine) > 1


def test_without_a_terminal_a_long_import_tells_how_far_it_is(
    fleet: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accounts_import, "PLAIN_EVERY_SECONDS", 0.0)
    content = "".join(line(f"c{number}") for number in range(CHUNK_LINES + 1))
    ran = bring(fleet, tmp_path / "accounts.jsonl", content)
    assert ran.stderr.splitlines()[0] == f"line {CHUNK_LINES:,}: {CHUNK_LINES:,} created, 0 bad so far"


def test_on_a_terminal_bad_lines_stand_beside_a_bar(fleet: Shell, tmp_path: Path) -> None:
    path = tmp_path / "accounts.jsonl"
    path.write_text("nonsense\n" + "".join(line(f"c{number}") for number in range(CHUNK_LINES * 2)))
    ours, theirs = pty.openpty()
    environ = {**inherited(fleet.environ), "TERM": "xterm", "COLUMNS": "100"}
    process = subprocess.Popen([*COMMAND, str(path)], env=environ, stderr=theirs, stdout=subprocess.PIPE)
    os.close(theirs)
    seen = read_terminal(ours)
    stdout, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert stdout.startswith(b"10,000 created, 1 bad")
    assert "line 1: is not a whole JSON object" in seen
    assert "10,001 lines" in seen
    assert "\N{BOX DRAWINGS HEAVY HORIZONTAL}" in seen


def test_an_interrupted_import_says_what_is_in(fleet: Shell, engine: Engine) -> None:
    process = subprocess.Popen(
        [*COMMAND, "-"],
        env=inherited(fleet.environ),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    process.stdin.write("".join(line(f"c{number}") for number in range(CHUNK_LINES)))
    process.stdin.flush()
    wait_until(lambda: count(engine) == CHUNK_LINES, "the first chunk")
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stdout == ""
    assert "run the same command again to do the rest" in stderr
    assert "Traceback" not in stderr
    assert count(engine) == CHUNK_LINES


def inherited(environ: Mapping[str, str]) -> dict[str, str]:
    """Return this process's environment with the fleet's settings in place of its own."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("TOKENFLEET_")}
    return {**own, **environ}


def read_terminal(descriptor: int) -> str:
    """Return everything that is written to a terminal until its other end is closed."""
    parts: list[bytes] = []
    try:
        while part := os.read(descriptor, 65_536):
            parts.append(part)
    except OSError:
        # Linux reports the other end's closing as an I/O error.
        pass
    os.close(descriptor)
    return b"".join(parts).decode()
