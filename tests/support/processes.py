"""Schedulers and workers of a test: real processes, each with a log and a /healthz of its own."""

from __future__ import annotations

import http.client
import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from embedded.ports import LOOPBACK, free_port
from tests.support.fleet import eventually

SCHEDULER = ("cli", "scheduler")
WORKER = ("cli", "worker")
PLAIN_WORKER = ("celery", "-A", "workers.app", "worker")

SHORT_LADDER = {"http_timeout_seconds": "1", "lease_seconds": "2.5", "claim_seconds": "3"}
"""Settings under which a test can watch a claim expire."""

START_SECONDS = 60.0
"""A start costs a second of CPU, of which a busy machine has little to give. Nothing is judged by it."""
STOP_SECONDS = 30.0


class Member:
    """One process of the fleet."""

    def __init__(self, words: tuple[str, ...], environ: Mapping[str, str], log: Path) -> None:
        self.port = int(environ.get("TOKENFLEET_METRICS_PORT") or free_port())
        self.log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *words],
                env={**environ, "TOKENFLEET_METRICS_PORT": str(self.port)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    def get(self, path: str) -> tuple[int, bytes]:
        """Return status and body of a GET; status 0 when nobody listens."""
        connection = http.client.HTTPConnection(LOOPBACK, self.port, timeout=5)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read()
        except OSError:
            return 0, b""
        finally:
            connection.close()

    def health(self) -> tuple[int, list[str]]:
        """Return the status of /healthz and the problems it names."""
        status, body = self.get("/healthz")
        return status, json.loads(body)["problems"] if status else []

    def is_well(self) -> bool:
        """Answer whether it works; fail when it has ended instead."""
        assert self.process.poll() is None, f"it ended at once:\n{self.text()}"
        return self.health()[0] == 200

    def text(self) -> str:
        """Return all that it has printed."""
        return self.log.read_text()

    def events(self, event: str) -> list[dict[str, Any]]:
        """Return the log lines of one event."""
        lines = (json.loads(line) for line in self.text().splitlines() if line.startswith("{"))
        return [line for line in lines if line.get("event") == event]

    def stop(self) -> int:
        """Send SIGTERM and return the exit code."""
        self.process.terminate()
        return self.wait()

    def wait(self, within: float = STOP_SECONDS) -> int:
        """Return the exit code once it has ended by itself, ``within`` so many seconds."""
        return self.process.wait(within)

    def kill(self) -> None:
        """End it as a power cut would."""
        self.process.kill()
        self.process.wait(STOP_SECONDS)


class Processes:
    """Starts members; all that still run at the end of the test are ended with it."""

    def __init__(self, environ: Mapping[str, str], logs: Path) -> None:
        self.environ = dict(environ)
        self._logs = logs
        self.members: list[Member] = []

    def start(self, *words: str, **settings: str) -> Member:
        """Start ``python -m *words`` with further settings, without waiting for it."""
        environ = self.environ | {f"TOKENFLEET_{name.upper()}": value for name, value in settings.items()}
        log = self._logs / f"{len(self.members)}-{words[-1]}.log"
        member = Member(words, environ, log)
        self.members.append(member)
        return member

    def fleet(self, *kinds: tuple[str, ...], **settings: str) -> list[Member]:
        """Start members at once and return them when all are well."""
        members = [self.start(*words, **settings) for words in kinds]
        for member in members:
            try:
                eventually(member.is_well, within=START_SECONDS, what="/healthz says 200")
            except AssertionError as error:
                raise AssertionError(f"{error}; {member.health()}\n{member.text()}") from None
        return members

    def end(self) -> None:
        """Stop whoever still runs, all at once."""
        running = [member for member in self.members if member.process.poll() is None]
        for member in running:
            member.process.send_signal(signal.SIGCONT)
            member.process.terminate()
        for member in running:
            try:
                member.wait()
            except subprocess.TimeoutExpired:
                member.kill()


@contextmanager
def processes(environ: Mapping[str, str], logs: Path) -> Iterator[Processes]:
    """Yield a way to start processes that end with the block."""
    started = Processes(environ, logs)
    try:
        yield started
    finally:
        started.end()
