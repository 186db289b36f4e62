"""Accounts exported per second: masked, sealed and paused, and taken in from the sealed file by a fleet without any.

As ``bench/import_accounts.py``: everything on this machine, the commands as an operator runs them, start included. The
peak of memory shows that it does not grow with the fleet.

    python bench/export_accounts.py [--accounts 200000]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psycopg

from bench.import_accounts import COMMAND, postgres_cpu, prepare, write
from embedded.environment import Environment


@dataclass(frozen=True, slots=True)
class Row:
    """What one command did and cost. CPU is in microseconds an account."""

    name: str
    per_second: float
    seconds: float
    cpu_us_command: float
    cpu_us_postgres: float
    peak_mb: float
    file_mb: float


def run(name: str, words: list[str], file: Path, accounts: int, environ: dict[str, str]) -> Row:
    """Run one command over ``accounts`` and return what it cost; ``file`` is what it reads or writes."""
    before, began = postgres_cpu(), time.monotonic()
    process = subprocess.Popen([*COMMAND, *words], env=environ, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    took = time.monotonic() - began
    if process.returncode:
        raise SystemExit(f"{name}: exit code {process.returncode}")
    return Row(
        name=name,
        per_second=accounts / took,
        seconds=took,
        cpu_us_command=(usage.ru_utime + usage.ru_stime) * 1e6 / accounts,
        cpu_us_postgres=(postgres_cpu() - before) * 1e6 / accounts,
        # Kilobytes on Linux, bytes on macOS.
        peak_mb=usage.ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3),
        file_mb=file.stat().st_size / 1e6,
    )


def main() -> None:
    """Read the arguments, export and import, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--accounts", type=int, default=200_000)
    accounts: int = parser.parse_args().accounts
    with tempfile.TemporaryDirectory() as directory, Environment(Path(directory), os.environ) as servers:
        home = Path(directory)
        environ = prepare(home, dict(servers.environ()))
        first, masked, sealed, identity = (
            home / name for name in ("first.jsonl", "masked", "sealed", "identity")
        )
        write(first, accounts, 1)
        made = subprocess.run(
            [*COMMAND, "keys", "recipient", "--identity", str(identity)],
            env=environ,
            capture_output=True,
            check=True,
        )
        to = ["--to", made.stdout.decode().strip()]
        rows = [
            run("import", ["accounts", "import", str(first)], first, accounts, environ),
            run("export, masked", ["accounts", "export", "-o", str(masked)], masked, accounts, environ),
            run(
                "export, sealed",
                ["accounts", "export", "--all", *to, "-o", str(sealed)],
                sealed,
                accounts,
                environ,
            ),
        ]
        with psycopg.connect(environ["TOKENFLEET_DATABASE_URL"].replace("+psycopg", "")) as connection:
            connection.execute("TRUNCATE tokenfleet.accounts CASCADE")
        rows.append(
            run(
                "import, sealed",
                ["accounts", "import", str(sealed), "--identity", str(identity)],
                sealed,
                accounts,
                environ,
            )
        )
    print(f"\n{accounts:,} accounts, {os.cpu_count()} cores for everything")
    print(
        f"{'':16}{'accounts/s':>12}{'seconds':>9}{'CPU us: command':>17}{'Postgres':>10}{'peak MB':>9}{'file MB':>9}"
    )
    for row in rows:
        print(
            f"{row.name:16}{row.per_second:12,.0f}{row.seconds:9.1f}{row.cpu_us_command:17.1f}"
            f"{row.cpu_us_postgres:10.1f}{row.peak_mb:9.0f}{row.file_mb:9.1f}"
        )


if __name__ == "__main__":
    main()
