"""``scheduler`` and ``worker`` as processes: they start quietly, refuse in a sentence, and stop warmly."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import pytest

from store.keys import Vault
from tests.cli.conftest import Shell


def _run(environ: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cli", *words],
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_queue_that_nothing_is_sent_to_is_a_usage_error(tokenfleet: Shell) -> None:
    for queues in ("refersh", "refresh,other", ","):
        ran = tokenfleet("worker", "--queues", queues)
        assert ran.exit_code == 2
        assert "known: refresh" in ran.stderr


@pytest.mark.parametrize(
    ("command", "name", "value"),
    [
        ("worker", "TOKENFLEET_DATABASE_URL", "postgresql://x@127.0.0.1:1/x"),
        ("worker", "TOKENFLEET_REDIS_URL", "redis://127.0.0.1:1/0"),
        ("worker", "TOKENFLEET_BROKER_URL", "redis://127.0.0.1:1/0"),
        ("worker", "TOKENFLEET_JOURNAL_DIR", "/proc/self/journal"),
        ("worker", "TOKENFLEET_MAX_CLOCK_SKEW_SECONDS", "0.0000001"),
        ("scheduler", "TOKENFLEET_DATABASE_URL", "postgresql://x@127.0.0.1:1/x"),
        ("scheduler", "TOKENFLEET_REDIS_URL", "redis://127.0.0.1:1/0"),
    ],
)
def test_a_process_that_cannot_work_refuses_to_start_in_one_sentence(
    environ: dict[str, str], vault: Vault, command: str, name: str, value: str
) -> None:
    ran = _run(environ | {name: value}, command)
    assert ran.returncode == 1
    [line] = ran.stderr.splitlines()
    assert line.startswith("tokenfleet")


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("command", ["worker", "scheduler"])
def test_a_process_that_is_told_to_stop_ends_well(
    environ: dict[str, str], vault: Vault, command: str, signal_number: signal.Signals
) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "cli", command],
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        started = json.loads(process.stderr.readline())
        assert (started["event"], started["role"]) == ("process.started", command)
        process.send_signal(signal_number)
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert json.loads(errors.splitlines()[-1])["event"] == "process.stopped"
    # Celery's banner would be the first thing that anybody saw.
    assert "[config]" not in output
