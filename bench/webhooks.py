"""Webhooks delivered per second by one worker process, beside two loops that teams write first, in one run.

Everything runs on this machine: Postgres, Redis, a scheduler, one worker of the queue ``webhooks``, and a receiver that
answers after a fixed latency and does nothing else. Every delivery counted is written down as delivered. ``--dead``
adds endpoints at a receiver that never answers, each sent every event as well.

    python bench/webhooks.py [--events 6000] [--endpoints 8] [--latency-ms 50] [--dead 0]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import httpx
import psutil
import psycopg
import uvloop

from cli.bootstrap import prepare_database
from embedded.environment import Environment
from store import endpoints, keys
from store.engine import make_engine
from store.keys import Vault
from tokenfleet_client.secret import Secret
from tokenfleet_client.webhooks import sign

COMMAND: Final = [sys.executable, "-m", "cli"]
THREADS: Final = 32
NAIVE_SECONDS: Final = 8.0
LOOK_SECONDS: Final = 0.2
"""Between two looks at how many are delivered. They are counted, which costs the machine that is measured."""
ANSWER: Final = b"HTTP/1.1 204 No Content\r\n\r\n"


class Receiver(asyncio.Protocol):
    """One keep-alive connection of the receiver; requests on it come one after another."""

    def __init__(self, latency: float) -> None:
        self._latency = latency
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[:end].lower()
            length = int(head.partition(b"content-length:")[2].split(b"\r\n", 1)[0] or 0)
            if len(self._buffer) < end + 4 + length:
                return
            self._buffer = self._buffer[end + 4 + length :]
            if self._latency >= 0:
                asyncio.get_running_loop().call_later(self._latency, self._answer)

    def _answer(self) -> None:
        if not self._transport.is_closing():
            self._transport.write(ANSWER)


async def receive(latency_ms: float) -> None:
    """Serve until killed; a negative latency never answers."""
    server = await asyncio.get_running_loop().create_server(
        lambda: Receiver(latency_ms / 1000), "127.0.0.1", 0, backlog=4096
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    async with server:
        await server.serve_forever()


@contextlib.contextmanager
def receiver(latency_ms: float) -> Iterator[str]:
    """Run a receiver; yields its URL."""
    command = [sys.executable, __file__, "--receiver", f"--latency-ms={latency_ms}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}/"
        finally:
            process.kill()


@dataclass(frozen=True, slots=True)
class Row:
    """One contestant's result."""

    name: str
    delivered: int
    seconds: float
    cpu_us: float

    def __str__(self) -> str:
        each = f"{self.cpu_us:9.0f}" if self.cpu_us else "        -"
        return f"{self.name:<34}{self.delivered / self.seconds:9.0f}{each}"


class Bench:
    """One run on servers of its own."""

    def __init__(self, arguments: argparse.Namespace, environ: dict[str, str]) -> None:
        self.arguments = arguments
        self.environ = environ
        self.settings = prepare_database(environ)
        self.database = self.settings.database_url.replace("+psycopg", "")
        self.engine = make_engine(self.settings.database_url, application_name="bench")
        with self.engine.begin() as connection:
            self.vault: Vault = keys.open_vault(connection, self.settings)

    def fleet(self, url: str, dead_url: str) -> Row:
        """Measure one worker process from its first delivery to its last."""
        count = self.arguments.endpoints
        with self.engine.begin() as connection:
            for index in range(count):
                endpoints.add(
                    connection, self.vault.refresh, url=f"{url}{index}", event_types=[f"bench:{index}"]
                )
            for _ in range(self.arguments.dead):
                endpoints.add(connection, self.vault.refresh, url=dead_url)
        self.tell(f"'bench:' || n % {count}")
        started = [self.start("scheduler"), self.start("worker", "--queues", "webhooks")]
        try:
            worker = psutil.Process(started[1].pid)
            with psycopg.connect(self.database, autocommit=True) as connection:
                while not (before := delivered(connection)):
                    time.sleep(LOOK_SECONDS)
                began, cpu = time.monotonic(), _cpu(worker)
                while (now := delivered(connection)) < self.arguments.events:
                    time.sleep(LOOK_SECONDS)
                seconds = time.monotonic() - began
                used = _cpu(worker) - cpu
        finally:
            for process in started:
                process.terminate()
            for process in started:
                process.wait(60)
        return Row("worker process", now - before, seconds, used / (now - before) * 1e6)

    def naive(self, name: str, url: str, *, threads: int) -> Row:
        """Post events in order with httpx, marking each one: one loop, or a pool of threads."""
        secret = Secret("whsec_" + "A" * 43 + "=")
        with psycopg.connect(self.database, autocommit=True) as connection:
            connection.execute("DROP TABLE IF EXISTS naive")
            connection.execute(
                "CREATE TABLE naive AS SELECT id, payload, false AS done FROM tokenfleet.outbox LIMIT 20000"
            )
            connection.execute("CREATE UNIQUE INDEX ON naive (id)")
            rows = connection.execute("SELECT id, payload FROM naive").fetchall()
        ends = time.monotonic() + NAIVE_SECONDS
        done = 0

        def work(part: list[Any]) -> int:
            posted = 0
            with httpx.Client() as http, psycopg.connect(self.database, autocommit=True) as own:
                for event_id, payload in part:
                    if time.monotonic() > ends:
                        break
                    body = json.dumps({"event_type": "x", "timestamp": "t", "payload": payload}).encode()
                    headers = sign([secret], str(event_id), _now(), body)
                    http.post(url, content=body, headers=headers).raise_for_status()
                    own.execute("UPDATE naive SET done = true WHERE id = %s", [event_id])
                    posted += 1
            return posted

        began, cpu = time.monotonic(), _cpu(psutil.Process())
        with ThreadPoolExecutor(threads) as pool:
            done = sum(pool.map(work, [rows[index::threads] for index in range(threads)]))
        seconds = time.monotonic() - began
        return Row(name, done, seconds, (_cpu(psutil.Process()) - cpu) / done * 1e6)

    def tell(self, event_type: str) -> None:
        """Write the events, each of an account of its own."""
        with psycopg.connect(self.database) as connection:
            connection.execute(
                "INSERT INTO tokenfleet.outbox (account_id, event_type, payload) "
                f"SELECT n, {event_type}, jsonb_build_object('id', n, 'external_id', 'customer-' || n, "
                "'integration_name', 'acme', 'tenant', 'blue', 'environment', 'production', "
                "'status', 'needs_reauth', 'last_error', 'invalid_grant') "
                f"FROM generate_series(1, {self.arguments.events}) n"
            )

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        """Start a process of the fleet."""
        return subprocess.Popen([*COMMAND, *words], env=self.environ, stderr=subprocess.DEVNULL)


def delivered(connection: psycopg.Connection[Any]) -> int:
    """Return how many are written down as delivered."""
    row = connection.execute(
        "SELECT count(*) FROM tokenfleet.webhook_deliveries WHERE state = 'delivered'"
    ).fetchone()
    assert row is not None
    return int(row[0])


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _now() -> Any:
    from datetime import UTC, datetime

    return datetime.now(UTC)


def main() -> None:
    """Read the arguments and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--events", type=int, default=6000)
    parser.add_argument("--endpoints", type=int, default=8)
    parser.add_argument("--latency-ms", type=float, default=50.0)
    parser.add_argument("--dead", type=int, default=0, help="endpoints beside them that never answer")
    parser.add_argument(
        "--fleet-only", action="store_true", help="leave out the loops that teams write first"
    )
    parser.add_argument("--receiver", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.receiver:
        uvloop.run(receive(arguments.latency_ms))
        return
    with (
        tempfile.TemporaryDirectory(prefix="tokenfleet-bench-") as home,
        Environment(Path(home), os.environ) as environment,
        receiver(arguments.latency_ms) as url,
        receiver(-1) as dead_url,
    ):
        environ = {
            **environment.environ(),
            "TOKENFLEET_ALLOW_PRIVATE_WEBHOOKS": "true",
            "TOKENFLEET_LOG_LEVEL": "error",
        }
        bench = Bench(arguments, environ)
        rows: list[Callable[[], Row]] = [
            lambda: bench.fleet(url, dead_url),
            lambda: bench.naive("naive: one loop, one after another", url, threads=1),
            lambda: bench.naive(f"naive: {THREADS} threads", url, threads=THREADS),
        ]
        print(f"{'':<34}{'webhooks/s':>9}{' CPU us':>8}")
        for measure in rows[: 1 if arguments.fleet_only else None]:
            print(measure(), flush=True)


if __name__ == "__main__":
    main()
