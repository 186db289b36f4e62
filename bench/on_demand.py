"""What an on-demand refresh adds to the provider's own latency, while the fleet is busy with scheduled ones.

Everything runs on this machine: Postgres, Redis, a scheduler, workers, the token endpoint (``stand_in.py``), and the
readers, who ask in SQL as any service does. The accounts of the scheduled load have tokens of a minute, which are
renewed every 16 s or so; those that are asked for have an hour left, and a reader wants two. Half of the readers
wait for the notification, half look every few milliseconds. Measured is from before the call of ``request_refresh``
until the new generation is read, less the latency of the endpoint.

    python bench/on_demand.py [--scheduled 500] [--requests 600] [--per-second 30] [--latency-ms 200] [--workers 2]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import psycopg

from bench.definition import definition
from bench.refresh_throughput import COMMAND, HERE, running
from bench.stand_in import first_refresh_token
from embedded.environment import Environment
from tokenfleet_client.contract import REFRESHED_CHANNEL

LIFETIME_SECONDS: Final = 60
CYCLE_SECONDS: Final = 16
"""How old such a token is when it is renewed, nearly (``tokenfleet.tokens``)."""
POLL_SECONDS: Final = 0.005
LONGEST_START_SECONDS: Final = 180.0
PATIENCE_SECONDS: Final = 20.0
READERS: Final = 24

READ: Final = (
    "SELECT account_id, generation FROM tokenfleet_v1.access_tokens WHERE external_id LIKE 'wanted-%'"
)


@dataclass(frozen=True, slots=True)
class Waited:
    """One request, and how long it took in milliseconds beyond the endpoint's latency; None when it was in vain."""

    way: str
    overhead_ms: float | None


class Listener:
    """Hears of new generations for all readers of this process."""

    def __init__(self, database: str) -> None:
        self._database = database
        self._waiting: dict[int, threading.Event] = {}
        self._stopping = False
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Begin to listen."""
        self._thread.start()
        self._ready.wait(PATIENCE_SECONDS)

    def stop(self) -> None:
        """Listen no more."""
        self._stopping = True
        self._thread.join()

    def expect(self, account_id: int) -> threading.Event:
        """Return what is set when the account is told of."""
        return self._waiting.setdefault(account_id, threading.Event())

    def _run(self) -> None:
        with psycopg.connect(self._database, autocommit=True) as connection:
            connection.execute(f"LISTEN {REFRESHED_CHANNEL}")
            self._ready.set()
            while not self._stopping:
                for each in connection.notifies(timeout=0.2, stop_after=1):
                    account_id, _, generation = each.payload.partition(" ")
                    if int(generation) > 1 and (waiting := self._waiting.get(int(account_id))):
                        waiting.set()


class Bench:
    """One run."""

    def __init__(self, arguments: argparse.Namespace, home: Path, environ: dict[str, str]) -> None:
        self.arguments = arguments
        self.home = home
        self.environ = environ
        self.database = environ["TOKENFLEET_DATABASE_URL"].replace("+psycopg", "")
        self._connections = threading.local()

    @contextlib.contextmanager
    def fleet(self) -> Iterator[None]:
        """Run everything, with the accounts in."""
        arguments = self.arguments
        command = [sys.executable, str(HERE / "stand_in.py"), "--latency-ms", str(arguments.latency_ms)]
        command += ["--expires-in", str(LIFETIME_SECONDS)]
        with contextlib.ExitStack() as stack:
            endpoint = stack.enter_context(running(command, self.environ, stdout=subprocess.PIPE))
            assert endpoint.stdout is not None
            port = int(endpoint.stdout.readline().split()[1])
            providers = self.home / "providers"
            providers.mkdir(exist_ok=True)
            (providers / "bench.toml").write_text(definition(f"http://127.0.0.1:{port}/token"))
            environ = self.environ | {
                "TOKENFLEET_HOME": str(self.home),
                "TOKENFLEET_PROVIDERS_DIR": str(providers),
                "TOKENFLEET_ALLOW_HTTP_PROVIDERS": "true",
                "TOKENFLEET_LOG_LEVEL": "warning",
            }
            self.command(environ, "keys", "generate")
            self.command(environ, "db", "upgrade")
            self.command(
                environ, "apps", "set", "bench", "--client-id", "bench", "--client-secret-file", "-",
                text="not-a-secret",
            )  # fmt: skip
            self.command(environ, "accounts", "import", "-", text="\n".join(self.lines()))
            with psycopg.connect(self.database, autocommit=True) as connection:
                connection.execute("VACUUM ANALYZE")
            for index in range(arguments.workers):
                log = self.home / f"worker-{index}.log"
                words = [*COMMAND, "worker", "--queues", "refresh"]
                stack.enter_context(running(words, environ, log=log))
            log = self.home / "scheduler.log"
            stack.enter_context(running([*COMMAND, "scheduler"], environ, log=log))
            yield

    def settle(self) -> None:
        """Wait until every account of the scheduled load was refreshed, then warm up."""
        query = "SELECT count(*) FROM tokenfleet_v1.access_tokens WHERE external_id LIKE 'due-%' AND generation = 1"
        ends = time.monotonic() + LONGEST_START_SECONDS
        with psycopg.connect(self.database, autocommit=True) as connection:
            while connection.execute(query).fetchone() != (0,) and time.monotonic() < ends:
                time.sleep(0.5)
        time.sleep(self.arguments.warm_up)

    def lines(self) -> Iterator[str]:
        """Return the accounts to import."""
        for account in range(self.arguments.scheduled * CYCLE_SECONDS):
            yield json.dumps(
                {
                    "provider": "bench",
                    "external_id": f"due-{account}",
                    "refresh_token": first_refresh_token(account),
                }
            )
        for number in range(self.arguments.requests):
            yield json.dumps(
                {
                    "provider": "bench",
                    "external_id": f"wanted-{number}",
                    "refresh_token": first_refresh_token(10_000_000 + number),
                    "access_token": f"a.{number}",
                    "expires_in": 3600,
                }
            )

    def run(self) -> tuple[list[Waited], float]:
        """Return what each request took, and how many scheduled refreshes a second there were meanwhile."""
        with self.fleet():
            self.settle()
            with psycopg.connect(self.database) as connection:
                wanted = [row[0] for row in connection.execute(READ)]
            listener = Listener(self.database)
            listener.start()
            before, began = self.refreshed(), time.monotonic()
            with ThreadPoolExecutor(READERS) as readers:
                list(readers.map(self.connect, range(READERS)))
                began = time.monotonic()
                results = []
                for number, account_id in enumerate(wanted):
                    time.sleep(max(began + number / self.arguments.per_second - time.monotonic(), 0.0))
                    way = self.by_notification if number % 2 else self.by_polling
                    results.append(readers.submit(way, account_id, listener))
                waited = [each.result() for each in results]
            rate = (self.refreshed() - before - len(waited)) / (time.monotonic() - began)
            listener.stop()
        return waited, rate

    def by_notification(self, account_id: int, listener: Listener) -> Waited:
        """Ask, and wait until it is told."""
        told = listener.expect(account_id)
        began = time.perf_counter()
        self.ask(account_id)
        told.wait(PATIENCE_SECONDS)
        return self.waited("LISTEN", began, self.generation(account_id) > 1)

    def by_polling(self, account_id: int, _: Listener) -> Waited:
        """Ask, and look until it is there."""
        began = time.perf_counter()
        self.ask(account_id)
        # A reader that polls knows that no provider answers at once.
        time.sleep(self.arguments.latency_ms / 1000)
        while time.perf_counter() < began + PATIENCE_SECONDS:
            if self.generation(account_id) > 1:
                return self.waited("polling", began, True)
            time.sleep(POLL_SECONDS)
        return self.waited("polling", began, False)

    def waited(self, way: str, began: float, is_there: bool) -> Waited:
        """Return how long it took."""
        took_ms = (time.perf_counter() - began) * 1000 - self.arguments.latency_ms
        return Waited(way, took_ms if is_there else None)

    def connect(self, _: int) -> None:
        """Give this thread a connection."""
        if not hasattr(self._connections, "mine"):
            self._connections.mine = psycopg.connect(self.database, autocommit=True)
        time.sleep(0.05)

    def ask(self, account_id: int) -> None:
        """Ask for two hours."""
        query = "SELECT answer FROM tokenfleet_v1.request_refresh(%s, '2 hours')"
        self.connect_once().execute(query, [account_id]).fetchone()

    def generation(self, account_id: int) -> int:
        """Return what a reader sees."""
        query = "SELECT generation FROM tokenfleet_v1.access_tokens WHERE account_id = %s"
        row = self.connect_once().execute(query, [account_id]).fetchone()
        return int(str(row[0])) if row else 0

    def connect_once(self) -> psycopg.Connection[tuple[object, ...]]:
        """Return this thread's connection."""
        if not hasattr(self._connections, "mine"):
            self._connections.mine = psycopg.connect(self.database, autocommit=True)
        connection: psycopg.Connection[tuple[object, ...]] = self._connections.mine
        return connection

    def refreshed(self) -> int:
        """Return how many refreshes the database has kept."""
        query = "SELECT COALESCE(sum(generation - 1), 0)::bigint FROM tokenfleet.token_sets"
        with psycopg.connect(self.database) as connection:
            row = connection.execute(query).fetchone()
        assert row is not None
        return int(row[0])

    def command(self, environ: dict[str, str], *words: str, text: str | None = None) -> None:
        """Run a tokenfleet command to its end."""
        done = subprocess.run(
            [*COMMAND, *words], env=environ, input=text, text=True, capture_output=True, check=False
        )
        if done.returncode:
            raise SystemExit(f"tokenfleet {' '.join(words)}: {done.stderr}")


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value below which ``share`` of them lie."""
    return sorted(values)[min(int(len(values) * share), len(values) - 1)]


def main() -> None:
    """Read the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--scheduled", type=int, default=500, help="scheduled refreshes a second")
    parser.add_argument("--requests", type=int, default=600)
    parser.add_argument("--per-second", type=float, default=30.0, help="requests a second")
    parser.add_argument("--latency-ms", type=float, default=200.0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--warm-up", type=float, default=20.0)
    parser.add_argument("--results", type=Path, help="append the row to this JSON Lines file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory, Environment(Path(directory), os.environ) as servers:
        waited, rate = Bench(arguments, Path(directory), dict(os.environ) | dict(servers.environ())).run()
    print(
        f"\n{rate:.0f} scheduled refreshes/s, {arguments.per_second:g} requests/s, the endpoint answers after "
        f"{arguments.latency_ms:g} ms, {os.cpu_count()} cores; added to that, in ms:"
    )
    print(f"{'':10}{'requests':>10}{'in vain':>9}{'p50':>8}{'p90':>8}{'p99':>8}{'max':>8}")
    row: dict[str, object] = {}
    for way in ("LISTEN", "polling"):
        took = [each.overhead_ms for each in waited if each.way == way and each.overhead_ms is not None]
        count = sum(each.way == way for each in waited)
        figures = [percentile(took, share) for share in (0.5, 0.9, 0.99, 1.0)] if took else []
        print(f"{way:10}{count:10}{count - len(took):9}" + "".join(f"{each:8.1f}" for each in figures))
        row[way] = dict(zip(("p50", "p90", "p99", "max"), figures, strict=False))
    if arguments.results:
        conditions = {
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": f"{os.cpu_count()} cores {platform.machine()}",
            "scheduled_per_second": round(rate),
            "per_second": arguments.per_second,
            "latency_ms": arguments.latency_ms,
        }
        with arguments.results.open("a") as file:
            file.write(json.dumps(conditions | row) + "\n")


if __name__ == "__main__":
    main()
