"""Durable refreshes per second: the fleet beside a naive fleet and beside the floor, in one run.

Everything runs on this machine: Postgres, Redis, the contestants, and the token endpoint (``stand_in.py``,
whose CPU is shown and not counted). Each contestant gets a fresh endpoint and fresh accounts, a warm-up, and
the same measured window. Ratios are what counts; absolute figures depend on the machine and its neighbours.

    python bench/refresh_throughput.py [--accounts 50000] [--latency-ms 200] [--seconds 20] [--workers 2]
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
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from urllib.request import urlopen

import psutil
import psycopg
from redis import Redis

from bench.definition import definition
from bench.floor import CREATE, seal
from bench.stand_in import first_refresh_token
from embedded.environment import Environment

HERE: Final = Path(__file__).parent
NAIVE_WARM_UP_SECONDS: Final = 20.0
"""Dozens of prefork children import and connect before the first refresh; that is not held against them."""
COMMAND: Final = [sys.executable, "-m", "cli"]


@dataclass(frozen=True, slots=True)
class Usage:
    """CPU seconds so far, by part of the system."""

    contestant: float
    postgres: float
    redis: float
    endpoint: float

    def minus(self, other: Usage) -> Usage:
        """Return what was used since ``other``."""
        return Usage(
            self.contestant - other.contestant,
            self.postgres - other.postgres,
            self.redis - other.redis,
            self.endpoint - other.endpoint,
        )


@dataclass(frozen=True, slots=True)
class Row:
    """One contestant's result."""

    name: str
    per_second: float
    cpu_us: float
    cpu_us_contestant: float
    cpu_us_postgres: float
    cpu_us_redis: float
    peak_mb: float
    stale: int


class Bench:
    """One run: servers, endpoint, measurement."""

    def __init__(self, arguments: argparse.Namespace, home: Path, environ: dict[str, str]) -> None:
        self.arguments = arguments
        self.home = home
        self.environ = environ
        self.database = environ["TOKENFLEET_DATABASE_URL"].replace("+psycopg", "")
        self.redis = environ["TOKENFLEET_REDIS_URL"]
        self.peak_mb = 0.0

    @contextlib.contextmanager
    def endpoint(self) -> Iterator[int]:
        """Run a token endpoint; yields its port."""
        command = [sys.executable, str(HERE / "stand_in.py")]
        command += ["--latency-ms", str(self.arguments.latency_ms)]
        command += ["--expires-in", str(self.arguments.expires_in)]
        with running(command, self.environ, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            yield int(process.stdout.readline().split()[1])

    def usage(self) -> Usage:
        """Return CPU used so far by everything below this process; note the largest contestant process."""
        parts: dict[str, float] = {"contestant": 0.0, "postgres": 0.0, "redis": 0.0, "endpoint": 0.0}
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                line = " ".join(process.cmdline())
                times = process.cpu_times()
                if "stand_in" in line:
                    part = "endpoint"
                elif "postgres" in process.name():
                    part = "postgres"
                elif "valkey" in process.name() or "redis-server" in process.name():
                    part = "redis"
                else:
                    part = "contestant"
                    self.peak_mb = max(self.peak_mb, process.memory_info().rss / 1e6)
                parts[part] += times.user + times.system
        return Usage(**parts)

    def measure(self, name: str, count: Callable[[], int], port: int, *, warm_up: float = 0.0) -> Row:
        """Warm up, then measure for the window; ``count`` says how many refreshes are durable so far."""
        self.peak_mb = 0.0
        time.sleep(max(warm_up, self.arguments.warm_up))
        before, usage, began = count(), self.usage(), time.monotonic()
        while time.monotonic() < began + self.arguments.seconds:
            time.sleep(1)
            self.usage()
        done, used, took = count() - before, self.usage().minus(usage), time.monotonic() - began
        with urlopen(f"http://127.0.0.1:{port}/ledger") as answer:
            stale = json.load(answer)["stale"]
        each = 1e6 / max(done, 1)
        return Row(
            name=name,
            per_second=done / took,
            cpu_us=(used.contestant + used.postgres + used.redis) * each,
            cpu_us_contestant=used.contestant * each,
            cpu_us_postgres=used.postgres * each,
            cpu_us_redis=used.redis * each,
            peak_mb=self.peak_mb,
            stale=stale,
        )

    def fleet(self) -> Row:
        """The real thing: import, scheduler, worker processes, every feature on."""
        with self.endpoint() as port, contextlib.ExitStack() as stack:
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
            lines = (
                json.dumps(
                    {
                        "provider": "bench",
                        "external_id": str(account),
                        "refresh_token": first_refresh_token(account),
                    }
                )
                for account in range(self.arguments.accounts)
            )
            self.command(environ, "accounts", "import", "-", text="\n".join(lines))
            with psycopg.connect(self.database, autocommit=True) as connection:
                connection.execute("VACUUM ANALYZE")
            for index in range(self.arguments.workers):
                log = self.home / f"worker-{index}.log"
                stack.enter_context(running([*COMMAND, "worker"], environ, log=log))
            log = self.home / "scheduler.log"
            stack.enter_context(running([*COMMAND, "scheduler"], environ, log=log))
            name = f"fleet, {self.arguments.workers} workers"
            return self.measure(name, self.saved_by_fleet, port)

    def saved_by_fleet(self) -> int:
        """Return how many refreshes the database has kept."""
        query = "SELECT COALESCE(sum(generation - 1), 0) FROM tokenfleet.token_sets"
        with psycopg.connect(self.database) as connection:
            row = connection.execute(query).fetchone()
        assert row is not None
        return int(row[0])

    def fill_floor(self) -> None:
        """Make the table that the naive fleet and the floor share."""
        with psycopg.connect(self.database, autocommit=True) as connection:
            connection.execute("DROP TABLE IF EXISTS floor")
            connection.execute(CREATE)
            with connection.cursor().copy("COPY floor (id, refresh_token) FROM STDIN") as copy:
                for account in range(self.arguments.accounts):
                    copy.write_row((account, seal(first_refresh_token(account).encode())))
            connection.execute("VACUUM ANALYZE floor")

    def floor(self, processes: int) -> Row:
        """The least work possible, in one or two processes."""
        self.fill_floor()
        with self.endpoint() as port, contextlib.ExitStack() as stack:
            for part in range(processes):
                command = [sys.executable, str(HERE / "floor.py"), "--database", self.database]
                command += ["--endpoint", f"http://127.0.0.1:{port}/token", "--part", str(part)]
                command += ["--parts", str(processes), "--accounts", str(self.arguments.accounts)]
                command += ["--seconds", str(self.arguments.warm_up + self.arguments.seconds + 5)]
                stack.enter_context(running(command, self.environ))
            return self.measure(f"floor, {processes} processes", answered(port), port)

    def naive(self, pool: str, concurrency: int) -> Row:
        """A task per account, in two worker processes of the given pool."""
        self.fill_floor()
        Redis.from_url(self.redis).flushall()
        with self.endpoint() as port, contextlib.ExitStack() as stack:
            environ = self.environ | {
                "NAIVE_DATABASE": self.database,
                "NAIVE_REDIS": self.redis,
                "NAIVE_ENDPOINT": f"http://127.0.0.1:{port}/token",
            }
            command = [sys.executable, "-m", "celery", "-A", "bench.naive", "worker", "--loglevel", "ERROR"]
            command += ["--pool", pool, "--concurrency", str(concurrency)]
            command += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
            for index in range(2):
                stack.enter_context(
                    running([*command, "-n", f"naive{index}"], environ, log=self.home / "naive.log")
                )
            feeder = "from bench import naive; [naive.refresh.delay(i) for i in range({})]"
            feed = [sys.executable, "-c", feeder.format(self.arguments.accounts)]
            stack.enter_context(running(feed, environ))
            name = f"naive, 2 x {concurrency} {pool}"
            return self.measure(name, answered(port), port, warm_up=NAIVE_WARM_UP_SECONDS)

    def command(self, environ: dict[str, str], *words: str, text: str | None = None) -> None:
        """Run a tokenfleet command to its end."""
        done = subprocess.run(
            [*COMMAND, *words], env=environ, input=text, text=True, capture_output=True, check=False
        )
        if done.returncode:
            raise SystemExit(f"tokenfleet {' '.join(words)}: {done.stderr}")


def answered(port: int) -> Callable[[], int]:
    """Return a counter of answers, which equal updates for contestants that write each answer at once."""

    def count() -> int:
        with urlopen(f"http://127.0.0.1:{port}/ledger") as answer:
            return int(json.load(answer)["answered"])

    return count


@contextlib.contextmanager
def running(
    command: list[str], environ: dict[str, str], *, log: Path | None = None, stdout: int | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run ``command`` until the block ends, then end it."""
    with contextlib.ExitStack() as stack:
        errors: Any = stack.enter_context(log.open("ab")) if log else subprocess.DEVNULL
        process = subprocess.Popen(command, env=environ, stdout=stdout or errors, stderr=errors)
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdout is not None:
                process.stdout.close()


def show(rows: list[Row], arguments: argparse.Namespace) -> None:
    """Print the table."""
    print(
        f"\n{arguments.accounts} accounts, provider answers after {arguments.latency_ms:g} ms, "
        f"{os.cpu_count()} cores, {arguments.seconds:g} s measured"
    )
    print(
        f"{'':28}{'refreshes/s':>12}{'CPU us each':>12}{'  of it own':>11}{'postgres':>9}{'redis':>7}"
        f"{'peak MB/process':>17}{'stale':>7}"
    )
    for row in rows:
        print(
            f"{row.name:28}{row.per_second:12.0f}{row.cpu_us:12.0f}{row.cpu_us_contestant:11.0f}"
            f"{row.cpu_us_postgres:9.0f}{row.cpu_us_redis:7.0f}{row.peak_mb:17.0f}{row.stale:7}"
        )
    by_kind = {kind: max((r.per_second for r in rows if r.name.startswith(kind)), default=0.0)
               for kind in ("fleet", "naive", "floor")}  # fmt: skip
    for kind in ("naive", "floor"):
        if by_kind["fleet"] and by_kind[kind]:
            print(f"fleet / {kind}: {by_kind['fleet'] / by_kind[kind]:.2f}")


def main() -> None:
    """Read the arguments, run every contestant, print and keep the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--accounts", type=int, default=50_000)
    parser.add_argument("--latency-ms", type=float, default=200.0)
    parser.add_argument(
        "--expires-in", type=int, default=45, help="lifetime of the endpoint's tokens, seconds"
    )
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--warm-up", type=float, default=10.0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", choices=["fleet", "naive", "floor"], action="append")
    parser.add_argument("--results", type=Path, help="append the rows to this JSON Lines file")
    arguments = parser.parse_args()
    chosen = arguments.only or ["floor", "naive", "fleet"]
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as directory, Environment(Path(directory), os.environ) as servers:
        bench = Bench(arguments, Path(directory), dict(os.environ) | dict(servers.environ()))
        if "floor" in chosen:
            rows += [bench.floor(1), bench.floor(2)]
        if "naive" in chosen:
            rows += [bench.naive("threads", 32), bench.naive("prefork", 24)]
        if "fleet" in chosen:
            rows += [bench.fleet()]
    show(rows, arguments)
    if arguments.results:
        with arguments.results.open("a") as file:
            for row in rows:
                conditions = {
                    "at": datetime.now(UTC).isoformat(timespec="seconds"),
                    "machine": f"{os.cpu_count()} cores {platform.machine()}",
                    "latency_ms": arguments.latency_ms,
                    "accounts": arguments.accounts,
                }
                file.write(json.dumps(conditions | asdict(row)) + "\n")


if __name__ == "__main__":
    main()
