"""What the history costs: a row written, a day kept, and the commands that read it at a million accounts.

Rows are written as the fleet writes them: one statement and one durable commit for the answers of a few milliseconds.
CPU is that of the Postgres backend which writes, WAL and size are Postgres' own figures. With TOKENFLEET_DATABASE_URL
set, that database is used, which has to be empty.

    python bench/history.py [--accounts 1000000] [--past 6000000] [--rate 300]
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Final

import psutil
from sqlalchemy import Connection, Engine, text

from embedded.environment import Environment
from store import history, migrate, story
from store.details import details
from store.engine import database_now, make_engine
from store.provider_health import read_health
from tokenfleet.jobs import AccountId

BATCH: Final = 4
"""Answers that arrive within a group commit at 300 refreshes/s and a few workers: the dearest case."""
COMMITS: Final = 5_000

_APPS = text("""
    INSERT INTO tokenfleet.oauth_apps (provider, environment, name, client_id)
    SELECT 'bench-' || n, 'production', 'default', 'bench' FROM generate_series(1, 20) n
""")
_ACCOUNTS = text("""
    INSERT INTO tokenfleet.accounts (provider, environment, external_id, app_id, status)
    SELECT p.provider, 'production', 'customer-' || n, p.id, CASE WHEN n % 50 = 0 THEN 'needs_reauth' ELSE 'active' END
    FROM generate_series(1, CAST(:count AS int)) n
    JOIN tokenfleet.oauth_apps p ON p.id = 1 + n % 20
""")
_WRITE = """
    INSERT INTO tokenfleet.account_events
        (account_id, at, kind, code, generation, epoch, job_id, duration_ms, actor)
    SELECT 1 + (random() * (CAST(:accounts AS int) - 1))::int, {at},
           CASE WHEN n % 100 = 0 THEN 'refresh.unavailable' ELSE 'refresh.succeeded' END,
           CASE WHEN n % 100 = 0 THEN 'http_503' END, 4711, 4712, gen_random_uuid(), 150 + n % 100, 'host-4711-a47f01'
    FROM generate_series(1, CAST(:count AS int)) n
"""
_PAST = text(
    _WRITE.format(at="now() - interval '10 minutes' - interval '20 hours' * n / CAST(:count AS float)")
)
_LATELY = text(_WRITE.format(at="now() - interval '10 minutes' * n / CAST(:count AS float)"))
_NOW = text(_WRITE.format(at="clock_timestamp()"))


def main() -> None:
    """Read the arguments, fill a database, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--accounts", type=int, default=1_000_000)
    parser.add_argument("--past", type=int, default=6_000_000, help="rows of the day before")
    parser.add_argument("--rate", type=int, default=300, help="refreshes a second")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory, Environment(Path(directory), os.environ) as servers:
        engine = make_engine(servers.environ()["TOKENFLEET_DATABASE_URL"], application_name="bench")
        try:
            measure(engine, arguments.accounts, arguments.past, arguments.rate)
        finally:
            engine.dispose()


def measure(engine: Engine, accounts: int, past: int, rate: int) -> None:
    """Write and read, and print what that cost."""
    migrate.upgrade(engine)
    with engine.begin() as connection:
        today = history.utc_date(database_now(connection))
        # Yesterday gets a partition as well, as it had in its time.
        for date in (today - timedelta(days=1), today):
            history.maintain_partitions(connection, today=date, retention_days=30)
        connection.execute(_APPS)
    fill(engine, accounts, past, rate * 600)
    with engine.connect() as connection:
        size, rows = connection.execute(
            text("""
                SELECT sum(pg_total_relation_size(i.inhrelid))::float8,
                       (SELECT count(*) FROM tokenfleet.account_events)::float8
                FROM pg_inherits i WHERE i.inhparent = 'tokenfleet.account_events'::regclass
            """)
        ).one()
        day = rate * 86_400
        print(f"{accounts:,} accounts, {rows:,.0f} rows of history, {os.cpu_count()} cores for everything")
        print(f"a row on disk: {size / rows:.0f} bytes; a day at {rate}/s: {size / rows * day / 1e9:.1f} GB")
        write(connection, accounts, rate)
    for name, read in (("accounts history", one_account), ("providers health", health)):
        with engine.connect() as connection:
            read(connection)
            began = time.perf_counter()
            read(connection)
            print(f"reading for '{name}': {(time.perf_counter() - began) * 1000:,.0f} ms")
    with engine.begin() as connection:
        began = time.perf_counter()
        done = history.maintain_partitions(connection, today=today + timedelta(days=1), retention_days=1)
        print(f"retention: {', '.join(done[-1:])} in {(time.perf_counter() - began) * 1000:,.0f} ms")


def fill(engine: Engine, accounts: int, past: int, lately: int) -> None:
    """Make the accounts, the day before and the last ten minutes."""
    with engine.begin() as connection:
        connection.execute(text("SET LOCAL statement_timeout = 0"))
        connection.execute(_ACCOUNTS, {"count": accounts})
    with engine.begin() as connection:
        connection.execute(text("SET LOCAL statement_timeout = 0"))
        connection.execute(_PAST, {"count": past, "accounts": accounts})
        connection.execute(_LATELY, {"count": lately, "accounts": accounts})
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("SET statement_timeout = 0"))
        connection.execute(text("VACUUM ANALYZE"))
        connection.execute(text("RESET statement_timeout"))


def write(connection: Connection, accounts: int, rate: int) -> None:
    """Write small batches, each durably, with and without the rows; what differs is the history's."""
    process = psutil.Process(connection.execute(text("SELECT pg_backend_pid()")).scalar_one())
    connection.execute(text("CREATE TEMP TABLE beat (n int)"))
    connection.commit()

    def cost(work: Callable[[], object]) -> tuple[float, float]:
        wal = text("SELECT pg_current_wal_insert_lsn()")
        before, times = connection.execute(wal).scalar_one(), process.cpu_times()
        for _ in range(COMMITS):
            connection.execute(text("SELECT txid_current()"))
            work()
            connection.commit()
        after = connection.execute(
            text("SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), CAST(:before AS pg_lsn))::float8"),
            {"before": before},
        ).scalar_one()
        ended = process.cpu_times()
        cpu = ended.user + ended.system - times.user - times.system
        return cpu / COMMITS / BATCH * 1e6, after / COMMITS / BATCH

    def nothing() -> None:
        connection.execute(text("SELECT 1"))

    def rows() -> None:
        connection.execute(_NOW, {"count": BATCH, "accounts": accounts})

    bare_cpu, bare_wal = cost(nothing)
    cpu, wal = (one - other for one, other in zip(cost(rows), (bare_cpu, bare_wal), strict=True))
    print(
        f"a row written (batches of {BATCH}): {cpu:.0f} us of Postgres' CPU, {wal:,.0f} bytes of WAL; at {rate}/s: "
        f"{cpu * rate / 1e4:.1f} % of a core, {wal * rate / 1e6:.2f} MB/s of WAL"
    )


def one_account(connection: Connection) -> None:
    """Read what ``accounts history`` reads, of an account in the middle."""
    account_id = AccountId(50)
    found = details(connection, {account_id})[account_id]
    story.read_story(connection, found, limit=1000)


def health(connection: Connection) -> None:
    """Read what ``providers health`` reads."""
    read_health(connection, window=timedelta(minutes=10), provider=None)


if __name__ == "__main__":
    main()
