"""``/metrics`` and ``/healthz`` as a probe sees them: over HTTP, from outside."""

from __future__ import annotations

import json
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import pytest

from tokenfleet import telemetry
from tokenfleet.errors import UserError
from tokenfleet.health import Health, HealthServer

LOOPBACK: Final = "127.0.0.1"
PATIENCE_SECONDS: Final = 5


@contextmanager
def serving(health: Health) -> Iterator[HealthServer]:
    server = HealthServer(LOOPBACK, 0, lambda: health)
    try:
        yield server
    finally:
        server.stop()


def get(server: HealthServer, path: str) -> tuple[int, str]:
    """Return status and body of one GET, whatever the status."""
    url = f"http://{LOOPBACK}:{server.port}{path}"
    try:
        with urllib.request.urlopen(url, timeout=PATIENCE_SECONDS) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


@pytest.mark.parametrize(
    ("health", "code", "status"),
    [
        pytest.param(Health(), 200, "healthy", id="all is well"),
        pytest.param(Health(hampering=("slow",)), 207, "degraded", id="something hampers"),
        pytest.param(Health(fatal=("down",)), 503, "unhealthy", id="something stops the work"),
        pytest.param(Health(fatal=("down",), hampering=("slow",)), 503, "unhealthy", id="both"),
    ],
)
def test_a_probe_is_told_how_the_process_is_and_why(health: Health, code: int, status: str) -> None:
    with serving(health) as server:
        answered, body = get(server, "/healthz")
    assert answered == code
    assert json.loads(body) == {"status": status, "problems": [*health.fatal, *health.hampering]}


def test_a_probe_is_told_the_present_state_each_time() -> None:
    states = [Health(), Health(fatal=("down",)), Health()]
    server = HealthServer(LOOPBACK, 0, lambda: states.pop(0))
    try:
        assert [get(server, "/healthz")[0] for _ in range(3)] == [200, 503, 200]
    finally:
        server.stop()


def test_metrics_are_served_in_the_text_format() -> None:
    telemetry.IN_FLIGHT.set(0)
    with serving(Health()) as server:
        code, body = get(server, "/metrics")
    assert code == 200
    assert "# TYPE tokenfleet_in_flight gauge" in body
    assert "tokenfleet_in_flight 0.0" in body


@pytest.mark.parametrize("path", ["/", "/healthz/", "/metrics/x", "/favicon.ico"])
def test_another_path_is_not_found_and_told_the_right_ones(path: str) -> None:
    with serving(Health()) as server:
        assert get(server, path) == (404, "/metrics or /healthz\n")


def test_a_probe_leaves_no_line_in_the_log(capfd: pytest.CaptureFixture[str]) -> None:
    with serving(Health()) as server:
        get(server, "/healthz")
    assert capfd.readouterr() == ("", "")


def test_a_taken_port_is_one_clear_sentence() -> None:
    with serving(Health()) as server, pytest.raises(UserError) as refusal:
        HealthServer(LOOPBACK, server.port, Health)
    assert f"{LOOPBACK}:{server.port}" in str(refusal.value)
    assert "TOKENFLEET_METRICS_PORT" in str(refusal.value)


def test_a_stopped_server_gives_its_port_back() -> None:
    with serving(Health()) as server:
        port = server.port
    HealthServer(LOOPBACK, port, Health).stop()


def test_a_client_that_says_nothing_keeps_no_probe_waiting() -> None:
    with serving(Health()) as server, socket.create_connection((LOOPBACK, server.port)):
        assert get(server, "/healthz")[0] == 200


def test_a_client_that_says_nothing_does_not_keep_the_process_from_stopping() -> None:
    server = HealthServer(LOOPBACK, 0, Health)
    with socket.create_connection((LOOPBACK, server.port)) as silent:
        # Half a request, so that the server is certainly reading when it is told to stop.
        silent.sendall(b"GET /healthz HTTP/1.1\r\n")
        stopping = threading.Thread(target=server.stop, daemon=True)
        stopping.start()
        stopping.join(PATIENCE_SECONDS)
        assert not stopping.is_alive()


def test_a_client_that_goes_away_leaves_no_traceback(capfd: pytest.CaptureFixture[str]) -> None:
    with serving(Health()) as server:
        with socket.create_connection((LOOPBACK, server.port)) as gone:
            # Linger of zero: the close is a reset, as of a client that was killed.
            gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            gone.sendall(b"GET /healthz HTTP/1.1\r\n")
        assert get(server, "/healthz")[0] == 200
    assert capfd.readouterr() == ("", "")
