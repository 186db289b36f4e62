"""Starting and stopping: as a thread of a test, and as the process behind `tokenfleet sandbox`."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from sandbox.config import SandboxConfig
from sandbox.server import SandboxServer, run
from tests.cli.conftest import Shell
from tests.sandbox.client import Client
from tokenfleet.errors import UserError

PROGRAM = """
from sandbox.config import SandboxConfig
from sandbox.server import run
run(SandboxConfig(), host="127.0.0.1", port=0, ready=lambda url: print(url, flush=True))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_process_says_where_it_listens_and_ends_on_a_signal(number: signal.Signals) -> None:
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-c", PROGRAM]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environ, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert httpx.get(f"{url}/sandbox/ledger").json()["subjects"] == 0
        process.send_signal(number)
        assert process.wait(timeout=10) == 0


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "sandbox.example"])
def test_it_will_not_listen_to_other_machines(host: str) -> None:
    with pytest.raises(UserError, match=r"127\.0\.0\.1"):
        run(SandboxConfig(), host=host, port=0, ready=lambda url: None)


def test_the_command_names_the_option_that_allows_other_machines() -> None:
    ran = Shell({})("sandbox", "--host", "0.0.0.0", "--port", "0")
    assert ran.exit_code == 2
    assert "--insecure-remote" in ran.stderr


def test_a_port_in_use_is_explained() -> None:
    with SandboxServer() as first:
        taken = int(first.url.rpartition(":")[2])
        with pytest.raises(UserError, match=f"port {taken}.*choose another port"), SandboxServer(port=taken):
            pass


def test_leaving_the_context_ends_the_thread_and_whoever_waits() -> None:
    with ThreadPoolExecutor(1) as pool, httpx.Client() as http:
        with SandboxServer() as server:
            (grant,) = server.issue("acct-1")
            assert grant.tokens.refresh_token is not None
            form = {
                "grant_type": "refresh_token",
                "refresh_token": grant.tokens.refresh_token.reveal(),
                "client_id": server.config.client_id,
                "client_secret": server.config.client_secret.reveal(),
            }
            http.post(f"{server.url}/sandbox/hold")
            waiting = pool.submit(http.post, server.token_endpoint, data=form)
            server.wait_for_held(1)
        with pytest.raises(httpx.TransportError):
            waiting.result()
    assert "sandbox" not in {thread.name for thread in threading.enumerate()}


def test_no_token_and_no_request_is_logged(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    token = client.sign_in()
    client.refresh(token)
    client.refresh(token)
    assert "sandbox-rt-" not in caplog.text
    assert "sandbox-at-" not in caplog.text
    assert not [record for record in caplog.records if record.name.startswith("aiohttp")]
