"""A key rotation of many accounts under refresh load: time, rate, whether readers notice (G1), and proof of its end.

Everything runs on this machine: Postgres, Redis, a token endpoint (``stand_in.py``), the scheduler, the workers, and a
reader that looks every second for the access token that expires first. An operator's procedure is followed to the
letter: a new key-encryption key for each ring is added and given to everybody, ``tokenfleet keys rotate --data-keys``
replaces key-encryption keys and data keys, ``tokenfleet keys retire`` agrees, and the old keys are taken away while the
refreshes go on. At the end the former data keys are deleted, and a process that holds nothing but the new keys has to
open every sealed value. Exit code 1 when a promise is broken.

    python bench/resealing.py --accounts 1000000 [--refreshes 300] [--rate 5000] [--workers 2]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final
from urllib.request import urlopen

import psycopg
from sqlalchemy import text

from bench.definition import definition
from bench.refresh_throughput import COMMAND, HERE, running
from bench.stand_in import PADDING, first_refresh_token
from embedded.environment import Environment
from store import data_keys, keys
from store.engine import make_engine
from store.sealed_places import SEALED_TABLES
from tokenfleet.settings import Settings
from tokenfleet_client.envelope import (
    KEY_BYTES,
    DataKeys,
    Ring,
    access_token_binding,
    refresh_token_binding,
)
from tokenfleet_client.unsealings import Purpose

CALM_SECONDS: Final = 20.0
FRESH_SECONDS: Final = 30.0
"""What G1 promises."""
EARLY_SECONDS: Final = 120.0
"""How long before it expires a token is due, in the middle of what the fleet itself chooses."""
WHOLE_LOOK_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class Sample:
    """What the reader saw at one moment: the shortest life of a token, and how late the latest refresh was."""

    at: float
    shortest_life: float
    lateness: float
    inactive: int


class Reader:
    """Looks every second for the active account whose access token expires first."""

    # Due accounts are the ones that expire first: no token is due later than 30 s before it expires, which is checked
    # whenever all of them are looked at. A scan of a million rows a second would measure the reader.
    _FIRST = """
        SELECT COALESCE(min(EXTRACT(epoch FROM t.expires_at - clock_timestamp())), 60)::float,
               COALESCE(max(EXTRACT(epoch FROM clock_timestamp() - s.next_refresh_at)), 0)::float,
               (SELECT count(*) FROM tokenfleet.accounts WHERE status <> 'active')
        FROM tokenfleet.refresh_schedule s JOIN tokenfleet.token_sets t USING (account_id)
        WHERE s.app_id = 1 AND s.next_refresh_at <= now() + interval '30 s'
    """
    _ALL = """
        SELECT min(EXTRACT(epoch FROM t.expires_at - clock_timestamp()))::float, 0::float,
               count(*) FILTER (WHERE t.status <> 'active'
                                OR s.next_refresh_at IS NULL OR s.next_refresh_at > t.expires_at - interval '30 s')
        FROM tokenfleet_v1.access_tokens t JOIN tokenfleet.refresh_schedule s USING (account_id)
    """

    def __init__(self, database: str) -> None:
        self._database = database
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reader")
        self.samples: list[Sample] = []

    def __enter__(self) -> Reader:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        whole_at = 0.0
        with psycopg.connect(self._database, autocommit=True) as connection:
            while not self._stop.is_set():
                began = time.monotonic()
                self.samples.append(self._look(connection, self._FIRST))
                if began - whole_at > WHOLE_LOOK_SECONDS:
                    whole_at = began
                    self.samples.append(self._look(connection, self._ALL))
                self._stop.wait(max(0.0, 1 - (time.monotonic() - began)))

    def _look(self, connection: psycopg.Connection[Any], query: str) -> Sample:
        row = connection.execute(query).fetchone()
        assert row is not None
        return Sample(time.monotonic(), *row)


@dataclass(frozen=True, slots=True)
class Phase:
    """A part of the run."""

    name: str
    began: float
    ended: float
    refreshed: int

    def shown(self, samples: list[Sample]) -> str:
        """Return one line: how long, refreshes per second, and what the reader saw."""
        seen = [each for each in samples if self.began <= each.at < self.ended]
        took = self.ended - self.began
        return (
            f"{self.name:34}{took:8.1f} s{self.refreshed / took:8.0f}/s"
            f"{min((each.shortest_life for each in seen), default=0):10.1f} s"
            f"{max((each.lateness for each in seen), default=0):10.1f} s{len(seen):9}"
        )


class Bench:
    """One run."""

    def __init__(self, arguments: argparse.Namespace, home: Path, environ: dict[str, str]) -> None:
        self.arguments = arguments
        self.home = home
        self.keys = home / "keys.json"
        self.environ = environ | {
            "TOKENFLEET_HOME": str(home),
            "TOKENFLEET_KEYS_FILE": str(self.keys),
            "TOKENFLEET_PROVIDERS_DIR": str(home / "providers"),
            "TOKENFLEET_ALLOW_HTTP_PROVIDERS": "true",
            "TOKENFLEET_LOG_LEVEL": "warning",
        }
        self.database = environ["TOKENFLEET_DATABASE_URL"].replace("+psycopg", "")
        self.phases: list[Phase] = []
        self.problems: list[str] = []

    def run(self) -> None:
        """Set up, rotate under load, judge, print."""
        life = max(600, round(self.arguments.accounts / self.arguments.refreshes) + 300)
        endpoint = [
            sys.executable,
            str(HERE / "stand_in.py"),
            "--latency-ms",
            "200",
            "--expires-in",
            str(life),
        ]
        with (
            running(endpoint, self.environ, stdout=subprocess.PIPE) as process,
            contextlib.ExitStack() as workers,
        ):
            assert process.stdout is not None
            self.port = int(process.stdout.readline().split()[1])
            began = time.monotonic()
            self.set_up()
            print(
                f"{self.arguments.accounts:,} accounts made in {time.monotonic() - began:.1f} s", flush=True
            )
            with running([*COMMAND, "scheduler"], self.environ, log=self.home / "scheduler.log"):
                self.start_workers(workers)
                with Reader(self.database) as reader:
                    self.rotate(workers)
                workers.close()
            self.judge(reader.samples)
        print(f"\n{'':34}{'time':>10}{'refreshed':>10}{'minimum to':>12}{'latest':>12}{'samples':>9}")
        print(f"{'':34}{'':>10}{'':>10}{'expiry':>12}{'refresh':>12}")
        for phase in self.phases:
            print(phase.shown(reader.samples))
        for problem in self.problems:
            print(f"BROKEN: {problem}")
        if self.problems:
            raise SystemExit(1)

    def set_up(self) -> None:
        """Make keys, tables, an app, and accounts that are due evenly over the time that refreshing all takes."""
        (self.home / "providers").mkdir()
        document = definition(f"http://127.0.0.1:{self.port}/token")
        (self.home / "providers" / "bench.toml").write_text(document)
        self.command("keys", "generate")
        self.command("db", "upgrade")
        words = ("apps", "set", "bench", "--client-id", "bench", "--client-secret-file", "-")
        self.command(*words, stdin="not-a-secret")
        fill(self.settings(), self.database, self.arguments.accounts, self.arguments.refreshes)

    def start_workers(self, workers: contextlib.ExitStack) -> None:
        """Start workers with the present keys."""
        for index in range(self.arguments.workers):
            log = self.home / f"worker-{index}.log"
            workers.enter_context(running([*COMMAND, "worker"], self.environ, log=log))

    def rotate(self, workers: contextlib.ExitStack) -> None:
        """Replace every key while the fleet refreshes."""
        while self.ledger()["answered"] < 5 * self.arguments.refreshes:
            time.sleep(1)
        with self.phase("before"):
            time.sleep(CALM_SECONDS)
        with self.phase("new key list, workers restarted"):
            self.command("keys", "generate", "--add")
            workers.close()
            self.start_workers(workers)
            time.sleep(10)
        with self.phase("keys rotate --data-keys"):
            wait, rate = str(self.arguments.wait), str(self.arguments.rate)
            print(self.command("keys", "rotate", "--data-keys", "--wait", wait, "--rate", rate), flush=True)
        rings = json.loads(self.keys.read_text())
        for ring in rings:
            print(self.command("keys", "retire", rings[ring][1].partition(":")[0]).splitlines()[0])
        with self.phase("old keys taken away, restarted"):
            self.keys.write_text(json.dumps({ring: rings[ring][:1] for ring in rings}))
            workers.close()
            self.start_workers(workers)
            time.sleep(CALM_SECONDS)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Note when a part of the run began and ended, and how much was refreshed in it."""
        began, before = time.monotonic(), self.ledger()["answered"]
        yield
        self.phases.append(Phase(name, began, time.monotonic(), self.ledger()["answered"] - before))

    def judge(self, samples: list[Sample]) -> None:
        """Note every promise that was broken."""
        shortest = min(sample.shortest_life for sample in samples)
        self.expect(shortest >= FRESH_SECONDS, f"a token had {shortest:.1f} s to live (G1)")
        self.expect(
            not any(sample.inactive for sample in samples), "accounts were not active, or not scheduled"
        )
        status = json.loads(self.command("keys", "status", "--json"))
        former = [key for key in status["data_keys"] if not key["is_primary"]]
        self.expect(len(former) == len(Ring), f"{len(former)} former data keys")
        self.expect(not any(key["uses"] for key in former), "a former data key is in use")
        self.expect(not status["lost"], "something is under a key that is not there")
        engine = make_engine(self.settings().database_url, application_name="bench judge")
        with engine.begin() as connection:
            connection.execute(text("DELETE FROM tokenfleet.data_keys WHERE NOT is_primary"))
        with engine.begin() as connection:
            present = data_keys.load(connection)
        began, opened, generations = time.monotonic(), *self.open_everything()
        engine.dispose()
        ledger = self.ledger()
        self.expect(ledger["stale"] == 0, f"{ledger['stale']} refresh tokens were presented twice (G2)")
        self.expect(
            generations == ledger["answered"], f"{ledger['answered']} answers, {generations} generations (G3)"
        )
        print(
            f"{opened:,} sealed values opened with {', '.join(key.wrapped.kek_id for key in present)} and data keys "
            f"{', '.join(str(key.wrapped.data_key_id) for key in present)} alone, in {time.monotonic() - began:.0f} s; "
            f"{ledger['answered']:,} refreshes, none presented twice"
        )

    def open_everything(self) -> tuple[int, int]:
        """Open every sealed value with what is configured now; return how many, and how often accounts were renewed."""
        settings = self.settings()
        engine = make_engine(settings.database_url, application_name="bench judge")
        with engine.begin() as connection:
            vault = keys.open_vault(connection, settings)
        engine.dispose()
        rings = {Ring.ACCESS: vault.access, Ring.REFRESH: vault.refresh}
        opened = generations = 0
        with psycopg.connect(self.database) as connection:
            for table in SEALED_TABLES:
                columns = ", ".join(f"{each.name}, {each.generation}" for each in table.columns)
                cursor = connection.cursor("everything", binary=True)
                cursor.itersize = 5000
                cursor.execute(f"SELECT {table.owner}, {columns} FROM tokenfleet.{table.name}".encode())
                for owner, *values in cursor:
                    for column, envelope, generation in zip(
                        table.columns, values[::2], values[1::2], strict=True
                    ):
                        if envelope is not None:
                            rings[column.ring].open(
                                envelope, column.binding(owner, generation), Purpose.VERIFY
                            )
                            opened += 1
                    if table.name == "token_sets":
                        generations += values[1] - 1
                cursor.close()
        return opened, generations

    def expect(self, holds: bool, problem: str) -> None:
        """Note ``problem`` unless it ``holds``."""
        if not holds:
            self.problems.append(problem)

    def settings(self) -> Settings:
        """Return the settings with the keys of this moment."""
        return Settings.from_environ(self.environ)

    def ledger(self) -> dict[str, int]:
        """Return what the token endpoint has counted."""
        with urlopen(f"http://127.0.0.1:{self.port}/ledger") as answer:
            document: dict[str, int] = json.load(answer)
        return document

    def command(self, *words: str, stdin: str | None = None) -> str:
        """Run a tokenfleet command to its end and return what it printed."""
        done = subprocess.run(
            [*COMMAND, *words], env=self.environ, input=stdin, text=True, stdout=subprocess.PIPE, check=False
        )
        if done.returncode:
            raise SystemExit(f"tokenfleet {' '.join(words)} ended with {done.returncode}: {done.stdout}")
        return done.stdout.strip()


def fill(settings: Settings, database: str, count: int, rate: int) -> None:
    """Make ``count`` accounts of app 1, sealed by two processes."""
    with psycopg.connect(database) as connection:
        connection.execute(
            "INSERT INTO tokenfleet.accounts (id, provider, environment, external_id, app_id, status) "
            "OVERRIDING SYSTEM VALUE "
            "SELECT n, 'bench', 'production', n::text, 1, 'active' FROM generate_series(1, %s) AS n",
            (count,),
        )
    # About when everything is there and runs, the first are due.
    now = datetime.now(UTC)
    begin = now + timedelta(seconds=20 + 4 * count * seconds_of_one() + EARLY_SECONDS)
    middle, context = count // 2 + 1, multiprocessing.get_context("spawn")
    halves = [
        context.Process(target=fill_tokens, args=(settings, database, range(*ends), rate, begin, count))
        for ends in ((1, middle), (middle, count + 1))
    ]
    for half in halves:
        half.start()
    for half in halves:
        half.join()
        assert half.exitcode == 0
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO tokenfleet.refresh_schedule (account_id, app_id, next_refresh_at) "
            "SELECT account_id, 1, expires_at - %s * interval '1 s' FROM tokenfleet.token_sets",
            (EARLY_SECONDS,),
        )
        connection.execute(
            "VACUUM ANALYZE tokenfleet.accounts, tokenfleet.token_sets, tokenfleet.refresh_schedule"
        )
        row = connection.execute(
            "SELECT now() - min(next_refresh_at) FROM tokenfleet.refresh_schedule"
        ).fetchone()
        assert row is not None
        # Up to a minute of refreshes is caught up with at once; more would break G1 before anything began.
        if row[0] > timedelta(seconds=60):
            raise SystemExit(f"making the accounts took {row[0]} too long: is the machine busy?")
        connection.execute("CHECKPOINT")


def fill_tokens(
    settings: Settings, database: str, ids: range, rate: int, begin: datetime, count: int
) -> None:
    """Seal and copy the tokens of some of ``count`` accounts, of which the first expires at ``begin``."""
    engine = make_engine(settings.database_url, application_name="bench")
    with engine.begin() as connection:
        vault = keys.open_vault(connection, settings)
    engine.dispose()
    now = datetime.now(UTC)
    with (
        psycopg.connect(database) as copying,
        copying.cursor() as cursor,
        cursor.copy(
            "COPY tokenfleet.token_sets (account_id, generation, epoch, access_token, refresh_token, token_type, "
            "expires_at, obtained_at) FROM STDIN (FORMAT BINARY)"
        ) as copy,
    ):
        copy.set_types(["int8", "int8", "int8", "bytea", "bytea", "text", "timestamptz", "timestamptz"])
        for each in ids:
            access = vault.access.seal(f"a.{each}.0.{PADDING}", access_token_binding(each, 1))
            refresh = vault.refresh.seal(first_refresh_token(each), refresh_token_binding(each, 1))
            # Neighbours in the table are not due together.
            due = (each * 7919) % count / rate
            expires_at = begin + timedelta(seconds=due)
            copy.write_row((each, 1, 0, access, refresh, "Bearer", expires_at, now))


def seconds_of_one() -> float:
    """Return how long it takes to seal one account's tokens here and now."""
    ring = DataKeys(Ring.ACCESS, {1: os.urandom(KEY_BYTES)}, 1)
    began = time.perf_counter()
    for _ in range(5000):
        ring.seal(PADDING, access_token_binding(1, 1))
        ring.seal(PADDING, refresh_token_binding(1, 1))
    return (time.perf_counter() - began) / 5000


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--accounts", type=int, default=100_000)
    parser.add_argument("--refreshes", type=int, default=300, help="per second")
    parser.add_argument("--rate", type=int, default=5000, help="of keys rotate; 0 is as fast as it goes")
    parser.add_argument("--wait", type=float, default=20, help="of keys rotate: until a new data key seals")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as home, Environment(Path(home), os.environ) as servers:
        Bench(arguments, Path(home), dict(os.environ) | dict(servers.environ())).run()


if __name__ == "__main__":
    main()
