"""Re-sealing every account under new data keys while refreshes are saved: how fast, and what the refreshes feel.

Everything runs on this machine: Postgres, ``tokenfleet keys rotate --data-keys``, and one process that refreshes with
the real statements (claim, start, open, seal, save) at a fixed rate; only the providers are left out. At the end every
value must open with the new data keys alone, and every answer must be the generation that it was saved as.

    python bench/resealing.py [--accounts 100000] [--refreshes 300] [--rate 5000]
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any, Final

import psycopg
from sqlalchemy import Engine, text

from cli.bootstrap import prepare_database
from embedded.environment import Environment
from store import apps, keys, schedule, settlement
from store.answers import SavedTokens
from store.engine import make_engine
from store.keys import Vault
from store.schedule import Allowance, Attempt
from store.sealed_places import uses
from tokenfleet.jobs import AppId, RefreshJob
from tokenfleet.settings import Settings
from tokenfleet_client.envelope import access_token_binding, refresh_token_binding
from tokenfleet_client.secret import Secret
from tokenfleet_client.unsealings import Purpose

COMMAND: Final = [sys.executable, "-m", "cli"]
CLAIM: Final = timedelta(seconds=30)
TOKEN: Final = "t" * 900
TICK_SECONDS: Final = 0.1
FOLLOW_SECONDS: Final = 1.0
CALM_SECONDS: Final = 15.0


@dataclass(slots=True)
class Felt:
    """What the refreshing process saw: when it saved, how long that took, how late it started, what was lost."""

    saves: list[tuple[float, float, float]] = field(default_factory=list)
    refreshed: int = 0
    lost: int = 0


def refresh(settings: Settings, app_id: AppId, rate: int, count: int, stop: Event, results: Any) -> None:
    """Refresh what is due until told to stop, following the data keys as a worker does."""
    engine = make_engine(settings.database_url, application_name="bench refreshes", pool_size=2)
    with engine.begin() as connection:
        vault = keys.open_vault(connection, settings)
    felt, followed = Felt(), time.monotonic()
    while not stop.is_set():
        began = time.monotonic()
        if began - followed > FOLLOW_SECONDS:
            followed = began
            with engine.connect() as connection:
                keys.reload(connection, settings, vault)
        for _ in range(1 + int(2 * rate * TICK_SECONDS) // 100):
            refresh_some(engine, settings, vault, app_id, felt, timedelta(seconds=count / rate))
        time.sleep(max(0.0, TICK_SECONDS - (time.monotonic() - began)))
    results.put(felt)


def refresh_some(
    engine: Engine, settings: Settings, vault: Vault, app_id: AppId, felt: Felt, interval: timedelta
) -> None:
    """Claim, start and save up to 100 accounts."""
    with engine.begin() as connection:
        claims = schedule.claim_due(connection, [Allowance(app_id, 100, 1000)], claim=CLAIM).get(app_id, [])
        due = connection.execute(
            text(
                "SELECT COALESCE(max(EXTRACT(epoch FROM now() - next_refresh_at)), 0) "
                "FROM tokenfleet.refresh_schedule WHERE account_id = ANY (:ids)"
            ),
            {"ids": [each.account_id for each in claims]},
        ).scalar_one()
    if not claims:
        return
    job = RefreshJob(str(uuid.uuid4()), app_id, tuple((each.account_id, each.epoch) for each in claims))
    with engine.begin() as connection:
        attempts = schedule.start(connection, job, claim=CLAIM)
    missing = [each for each in attempts if not vault.refresh.holds_key_of(each.refresh_token or b"")]
    if missing:
        with engine.connect() as connection:
            keys.reload(connection, settings, vault)
    answers = [_answer(vault, attempt, interval) for attempt in attempts]
    began = time.monotonic()
    with engine.begin() as connection:
        result = settlement.save_refreshed(connection, answers, actor="bench")
    felt.saves.append((began, time.monotonic() - began, float(due)))
    felt.refreshed += len(result.saved)
    felt.lost += len(answers) - len(result.saved)


def _answer(vault: Vault, attempt: Attempt, interval: timedelta) -> SavedTokens:
    now = datetime.now(UTC)
    assert attempt.refresh_token is not None
    place = refresh_token_binding(attempt.account_id, attempt.generation)
    assert vault.refresh.open(attempt.refresh_token, place, Purpose.VERIFY).startswith(TOKEN)
    following = (attempt.account_id, attempt.generation + 1)
    return SavedTokens(
        account_id=attempt.account_id,
        epoch=attempt.epoch,
        generation=attempt.generation,
        access_token=vault.access.seal(f"{TOKEN}{following[1]}", access_token_binding(*following)),
        refresh_token=vault.refresh.seal(f"{TOKEN}{following[1]}", refresh_token_binding(*following)),
        token_type="Bearer",
        scope=None,
        expires_at=now + timedelta(hours=1),
        obtained_at=now,
        refresh_token_expires_at=None,
        variables={},
        next_refresh_at=now + interval,
        job_id=uuid.uuid4(),
        duration_ms=200,
        activates=False,
    )


def connect(engine: Engine, settings: Settings, vault: Vault, count: int, rate: int) -> AppId:
    """Make ``count`` accounts, due evenly over the time in which ``rate`` refreshes all of them."""
    with engine.begin() as connection:
        app_id = apps.register(
            connection,
            vault.refresh,
            provider="bench",
            environment="production",
            name="default",
            client_id="bench",
            client_secret=Secret("secret"),
            variables={},
        ).app_id
    with psycopg.connect(settings.database_url.replace("+psycopg", "")) as connection:
        connection.execute("SET search_path = tokenfleet")
        connection.execute(
            "INSERT INTO accounts (provider, environment, external_id, app_id, status) "
            "SELECT 'bench', 'production', n::text, %s, 'active' FROM generate_series(1, %s) AS n",
            (app_id, count),
        )
        ids = [row[0] for row in connection.execute("SELECT id FROM accounts ORDER BY id")]
        with connection.cursor().copy(
            "COPY token_sets (account_id, generation, epoch, access_token, refresh_token, expires_at, obtained_at) "
            "FROM STDIN"
        ) as copy:
            now = datetime.now(UTC)
            for each in ids:
                access = vault.access.seal(f"{TOKEN}1", access_token_binding(each, 1))
                refresh_token = vault.refresh.seal(f"{TOKEN}1", refresh_token_binding(each, 1))
                copy.write_row((each, 1, 1, access, refresh_token, now + timedelta(hours=1), now))
    with psycopg.connect(settings.database_url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute("VACUUM ANALYZE")
        connection.execute(
            "INSERT INTO tokenfleet.refresh_schedule (account_id, app_id, next_refresh_at) "
            "SELECT id, app_id, now() + interval '1 second' "
            "* (5 + (row_number() OVER (ORDER BY random())) / %s::float) FROM tokenfleet.accounts",
            (rate,),
        )
        connection.execute("ANALYZE tokenfleet.refresh_schedule")
    return app_id


def judge(engine: Engine, settings: Settings, refreshed: int) -> None:
    """Fail unless the former keys are unused, all values open, and no answer is missing."""
    with engine.begin() as connection:
        vault = keys.open_vault(connection, settings)
        primaries = {vault.access.primary_id, vault.refresh.primary_id}
        assert {use.data_key_id for use in uses(connection)} == primaries, "a former key is in use"
        rows = connection.execute(
            text("SELECT account_id, generation, access_token, refresh_token FROM tokenfleet.token_sets")
        )
        generations = 0
        for row in rows:
            place = (row.account_id, row.generation)
            assert (
                vault.access.open(row.access_token, access_token_binding(*place), Purpose.VERIFY)
                == f"{TOKEN}{place[1]}"
            )
            assert (
                vault.refresh.open(row.refresh_token, refresh_token_binding(*place), Purpose.VERIFY)
                == f"{TOKEN}{place[1]}"
            )
            generations += row.generation - 1
    assert generations == refreshed, f"{refreshed} answers, {generations} generations"


def percentiles(saves: list[tuple[float, float, float]], since: float, until: float) -> str:
    """Return how long saves between two moments took."""
    taken = sorted(seconds for at, seconds, _ in saves if since <= at < until)
    late = max((late for at, _, late in saves if since <= at < until), default=0.0)
    at = [taken[int(len(taken) * share)] * 1000 for share in (0.5, 0.99)] if taken else [0.0, 0.0]
    worst = max(taken, default=0) * 1000
    shown = f"p50 {at[0]:6.1f} ms   p99 {at[1]:6.1f} ms   worst {worst:6.1f} ms"
    return f"{len(taken):6} saves   {shown}   begun at most {late:.2f} s late"


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--accounts", type=int, default=100_000)
    parser.add_argument("--refreshes", type=int, default=300, help="per second")
    parser.add_argument("--rate", type=int, default=5000, help="of keys rotate; 0 is as fast as it goes")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as home, Environment(Path(home), os.environ) as environment:
        environ = os.environ | dict(environment.environ())
        settings = prepare_database(environ)
        engine = make_engine(settings.database_url, application_name="bench", pool_size=2)
        with engine.begin() as connection:
            vault = keys.open_vault(connection, settings)
        app_id = connect(engine, settings, vault, arguments.accounts, arguments.refreshes)
        context = multiprocessing.get_context("spawn")
        stop, results = context.Event(), context.Queue()
        load = context.Process(
            target=refresh,
            args=(settings, app_id, arguments.refreshes, arguments.accounts, stop, results),
        )
        load.start()
        try:
            calm = time.monotonic()
            time.sleep(CALM_SECONDS)
            began = time.monotonic()
            subprocess.run(
                [*COMMAND, "keys", "rotate", "--data-keys", "--wait", "3", "--rate", str(arguments.rate)],
                env=environ,
                check=True,
            )
            ended = time.monotonic()
        finally:
            stop.set()
        felt: Felt = results.get(timeout=60)
        load.join()
        judge(engine, settings, felt.refreshed)
        engine.dispose()
    print(f"calm      {percentiles(felt.saves, calm, began)}")
    print(f"rotating  {percentiles(felt.saves, began, ended)}")
    print(f"refreshed {felt.refreshed}, lost {felt.lost}")
    print(f"{arguments.accounts} accounts in {ended - began:.1f} s, former keys unused, every value opens")


if __name__ == "__main__":
    main()
