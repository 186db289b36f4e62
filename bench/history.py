"""What the history costs: a refresh with it and without it, a day kept, and the commands that read it.

Answers are saved by the fleet's own statement, four in a durable commit (the dearest case at 300 refreshes/s), in turns
with that statement without its part for the history: what differs between the two is the history's, in one run, on one
machine, whatever else it does. CPU is that of the Postgres backend which writes; WAL and sizes are Postgres' own
figures; the time of a statement is the client's, and without the commit. With TOKENFLEET_DATABASE_URL set, that
database is used, which has to be empty.

    python bench/history.py [--accounts 1000000] [--past 6000000] [--rate 300] [--refreshes 20000]
"""

from __future__ import annotations

import argparse
import os
import re
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Final
from uuid import UUID

import psutil
from sqlalchemy import Connection, Engine, TextClause, text

from embedded.environment import Environment
from store import history, migrate, settlement, story
from store.answers import SavedTokens, columns
from store.details import details
from store.engine import database_now, make_engine
from store.provider_health import read_health
from tokenfleet.jobs import AccountId, Epoch

BATCH: Final = 4
"""Answers that arrive within a group commit at 300 refreshes/s and a few workers: the dearest case."""
TURNS: Final = 3
"""How often each of the two is measured, after one turn that only warms up: page images after a checkpoint, plans."""

JOB: Final = UUID("00000000-0000-4000-8000-00000000000a")

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
_TOKENS = text("""
    INSERT INTO tokenfleet.token_sets (account_id, generation, epoch, access_token, refresh_token, obtained_at)
    SELECT n, 1, 1, decode(repeat(md5(n::text), 12), 'hex'), decode(repeat(md5(n::text), 6), 'hex'), now()
    FROM generate_series(1, CAST(:count AS int)) n
""")
_SCHEDULE = text("""
    INSERT INTO tokenfleet.refresh_schedule (account_id, app_id, next_refresh_at)
    SELECT n, 1 + n % 20, now() + interval '1 hour' FROM generate_series(1, CAST(:count AS int)) n
""")
WITH: Final = settlement.SAVE.text
WITHOUT, CUT = re.subn(
    r", history AS \(.*?\n    \)(?=\n    SELECT account_id, unscheduled)", "", WITH, flags=re.DOTALL
)
assert CUT == 1, "the statement that saves answers has changed: cut its history out"


def main() -> None:
    """Read the arguments, fill a database, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--accounts", type=int, default=1_000_000)
    parser.add_argument("--past", type=int, default=6_000_000, help="rows of the day before")
    parser.add_argument("--rate", type=int, default=300, help="refreshes a second")
    parser.add_argument("--refreshes", type=int, default=20_000, help="answers saved in each turn")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory, Environment(Path(directory), os.environ) as servers:
        engine = make_engine(servers.environ()["TOKENFLEET_DATABASE_URL"], application_name="bench")
        try:
            measure(engine, arguments.accounts, arguments.past, arguments.rate, arguments.refreshes)
        finally:
            engine.dispose()


def measure(engine: Engine, accounts: int, past: int, rate: int, refreshes: int) -> None:
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
        write(connection, min(accounts, refreshes), rate)
    for name, read in (("accounts history", one_account), ("providers health", health)):
        with engine.connect() as connection:
            process = psutil.Process(connection.execute(text("SELECT pg_backend_pid()")).scalar_one())
            read(connection)
            before, began = process.cpu_times(), time.perf_counter()
            read(connection)
            after, took = process.cpu_times(), time.perf_counter() - began
            cpu = after.user + after.system - before.user - before.system
            print(f"reading for '{name}': {took * 1000:,.0f} ms, {cpu * 1000:,.0f} ms of Postgres' CPU")
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


@dataclass(frozen=True, slots=True)
class Cost:
    """What one saved answer costs."""

    cpu_us: float
    wal_bytes: float
    statement_us: float


def write(connection: Connection, refreshes: int, rate: int) -> None:
    """Save answers with and without their rows in the history, in turns; what differs is the history's."""
    connection.execute(_TOKENS, {"count": refreshes})
    connection.execute(_SCHEDULE, {"count": refreshes})
    connection.commit()
    turns: dict[str, list[Cost]] = {WITH: [], WITHOUT: []}
    for turn in range(2 * (TURNS + 1)):
        # A, B, B, A, …: what grows or warms up while this runs is in both alike.
        statement = (WITH, WITHOUT)[(turn + 1) // 2 % 2]
        turns[statement].append(save(connection, text(statement), refreshes, generation=turn + 1))
    bare, whole = (middle(turns[each][1:]) for each in (WITHOUT, WITH))
    for name, one, other, unit in (
        ("Postgres' CPU", whole.cpu_us, bare.cpu_us, "us"),
        ("WAL", whole.wal_bytes, bare.wal_bytes, "bytes"),
        ("statement", whole.statement_us, bare.statement_us, "us"),
    ):
        print(
            f"a refresh saved, {name}: {one:,.0f} {unit} with its row in the history, {other:,.0f} without: "
            f"{one / other:.2f} times"
        )
    cpu, wal = whole.cpu_us - bare.cpu_us, whole.wal_bytes - bare.wal_bytes
    print(f"the history at {rate}/s: {cpu * rate / 1e4:.1f} % of a core, {wal * rate / 1e6:.2f} MB/s of WAL")


def save(connection: Connection, statement: TextClause, refreshes: int, *, generation: int) -> Cost:
    """Save one answer for each account, :data:`BATCH` in a commit."""
    process = psutil.Process(connection.execute(text("SELECT pg_backend_pid()")).scalar_one())
    begun = connection.execute(text("SELECT pg_current_wal_insert_lsn()")).scalar_one()
    before, seconds = process.cpu_times(), 0.0
    for first in range(1, refreshes + 1, BATCH):
        answers = [an_answer(each, generation) for each in range(first, min(first + BATCH, refreshes + 1))]
        parameters = columns(answers) | {"actor": "host-4711-a47f01"}
        began = time.perf_counter()
        connection.execute(statement, parameters).all()
        seconds += time.perf_counter() - began
        connection.commit()
    after = process.cpu_times()
    wal = connection.execute(
        text("SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), CAST(:begun AS pg_lsn))::float8"),
        {"begun": begun},
    ).scalar_one()
    connection.commit()
    cpu = after.user + after.system - before.user - before.system
    return Cost(cpu / refreshes * 1e6, wal / refreshes, seconds / refreshes * 1e6)


def an_answer(account_id: int, generation: int) -> SavedTokens:
    """Return a good answer with tokens as large as sealed ones are."""
    now = datetime.now(UTC)
    return SavedTokens(
        account_id=AccountId(account_id),
        epoch=Epoch(generation + 1),
        generation=generation,
        access_token=os.urandom(192),
        refresh_token=os.urandom(96),
        token_type="Bearer",
        scope=None,
        expires_at=now + timedelta(hours=1),
        obtained_at=now,
        refresh_token_expires_at=None,
        variables={},
        next_refresh_at=now + timedelta(minutes=58),
        job_id=JOB,
        duration_ms=200,
        activates=False,
    )


def middle(costs: Sequence[Cost]) -> Cost:
    """Return the medians."""
    return Cost(
        *(median(getattr(each, name) for each in costs) for name in ("cpu_us", "wal_bytes", "statement_us"))
    )


def one_account(connection: Connection) -> None:
    """Read what ``accounts history`` reads, of an account in the middle."""
    account_id = AccountId(50)
    found = details(connection, {account_id})[account_id]
    story.read_story(connection, found, limit=10_000)


def health(connection: Connection) -> None:
    """Read what ``providers health`` reads."""
    read_health(connection, window=timedelta(minutes=10), provider=None)


if __name__ == "__main__":
    main()
