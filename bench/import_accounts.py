"""Accounts imported per second: new ones, the same file again, and a new sign-in for each.

Everything runs on this machine: Postgres, and the command as an operator runs it, start included. Tokens are
as long as real ones (refresh 104 characters, access 205), every one is sealed, every commit is durable. With
TOKENFLEET_DATABASE_URL set, that database is used, which has to be empty.

    python bench/import_accounts.py [--accounts 200000] [--csv]
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil
import psycopg

from bench.definition import definition
from embedded.environment import Environment

COMMAND: Final = [sys.executable, "-m", "cli"]
PROVIDER: Final = "bench"


@dataclass(frozen=True, slots=True)
class Row:
    """What one import did and cost. CPU is in microseconds an account."""

    name: str
    outcome: str
    per_second: float
    seconds: float
    cpu_us_command: float
    cpu_us_postgres: float
    peak_mb: float


def lines(count: int, sign_in: int) -> Iterator[dict[str, Any]]:
    """Yield ``count`` accounts, with tokens that differ from one ``sign_in`` to another."""
    chance = random.Random(sign_in)
    for number in range(count):
        yield {
            "provider": PROVIDER,
            "external_id": f"customer-{number:08d}",
            "refresh_token": f"1//0{chance.randbytes(50).hex()}",
            "access_token": f"ya29.{chance.randbytes(100).hex()}",
            "token_type": "Bearer",
            "scope": "openid email profile",
            "expires_in": 3600,
            "tenant": f"tenant-{number % 5000}",
            "metadata": {"plan": "pro", "seats": number % 100},
        }


def write(path: Path, count: int, sign_in: int) -> None:
    """Write a file to import, in the format that its name says."""
    with path.open("w", newline="") as file:
        if path.suffix == ".csv":
            writer = csv.writer(file)
            for number, line in enumerate(lines(count, sign_in)):
                if number == 0:
                    writer.writerow(line)
                writer.writerow([*list(line.values())[:-1], json.dumps(line["metadata"])])
        else:
            file.writelines(json.dumps(line) + "\n" for line in lines(count, sign_in))


def postgres_cpu() -> float:
    """Return the CPU seconds of the Postgres below this process, connections that have ended included."""
    total = 0.0
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if "postgres" in process.name():
                times = process.cpu_times()
                total += times.user + times.system + times.children_user + times.children_system
    return total


def run(name: str, path: Path, environ: dict[str, str], database: str) -> Row:
    """Import ``path`` with the command and return what it cost."""
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("CHECKPOINT")
    before, began = postgres_cpu(), time.monotonic()
    words = [*COMMAND, "accounts", "import", str(path), "--json"]
    process = subprocess.Popen(words, env=environ, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    with process.stdout:
        summary = json.load(process.stdout)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    took = time.monotonic() - began
    if process.returncode:
        raise SystemExit(f"{name}: exit code {process.returncode}, {summary}")
    each = 1e6 / summary["lines"]
    done = {
        key: summary[key] for key in ("created", "reauthenticated", "updated", "unchanged") if summary[key]
    }
    return Row(
        name=name,
        outcome=", ".join(f"{count} {what}" for what, count in done.items()),
        per_second=summary["lines"] / took,
        seconds=took,
        cpu_us_command=(usage.ru_utime + usage.ru_stime) * each,
        cpu_us_postgres=(postgres_cpu() - before) * each,
        # Kilobytes on Linux, bytes on macOS.
        peak_mb=usage.ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3),
    )


def prepare(home: Path, servers: dict[str, str]) -> dict[str, str]:
    """Make keys, schema, a provider and its app; returns the environment of the commands."""
    providers = home / "providers"
    providers.mkdir()
    (providers / "bench.toml").write_text(definition("https://bench.invalid/token"))
    environ = {
        **os.environ,
        **servers,
        "TOKENFLEET_HOME": str(home),
        "TOKENFLEET_PROVIDERS_DIR": str(providers),
    }
    register = ("apps", "set", PROVIDER, "--client-id", "bench", "--client-secret-file", "-")
    for words, text in ((("keys", "generate"), ""), (("db", "upgrade"), ""), (register, "not-a-secret")):
        done = subprocess.run(
            [*COMMAND, *words], env=environ, input=text, text=True, capture_output=True, check=False
        )
        if done.returncode:
            raise SystemExit(f"tokenfleet {' '.join(words)}: {done.stderr}")
    return environ


def show(rows: list[Row], accounts: int) -> None:
    """Print the table."""
    print(f"\n{accounts:,} accounts, {os.cpu_count()} cores for everything")
    print(
        f"{'':24}{'accounts/s':>12}{'seconds':>9}{'CPU us: command':>17}{'Postgres':>10}{'peak MB':>9}   outcome"
    )
    for row in rows:
        print(
            f"{row.name:24}{row.per_second:12,.0f}{row.seconds:9.1f}{row.cpu_us_command:17.1f}"
            f"{row.cpu_us_postgres:10.1f}{row.peak_mb:9.0f}   {row.outcome}"
        )


def main() -> None:
    """Read the arguments, import three times, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--accounts", type=int, default=200_000)
    parser.add_argument("--csv", action="store_true", help="CSV instead of JSON Lines")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory, Environment(Path(directory), os.environ) as servers:
        home = Path(directory)
        environ = prepare(home, dict(servers.environ()))
        database = environ["TOKENFLEET_DATABASE_URL"].replace("+psycopg", "")
        suffix = ".csv" if arguments.csv else ".jsonl"
        first, second = home / f"first{suffix}", home / f"second{suffix}"
        write(first, arguments.accounts, 1)
        write(second, arguments.accounts, 2)
        rows = [
            run("new accounts", first, environ, database),
            run("the same file again", first, environ, database),
            run("a new sign-in for each", second, environ, database),
            run("the first file again", first, environ, database),
        ]
    show(rows, arguments.accounts)


if __name__ == "__main__":
    main()
