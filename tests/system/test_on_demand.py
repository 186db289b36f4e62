"""A request of a reader, through every process: the scheduler, the broker, a worker that names no such queue."""

from __future__ import annotations

import time

import psycopg
from sqlalchemy import text
from sqlalchemy.engine import make_url

from tests.support.fleet import Fleet
from tests.support.processes import SCHEDULER, WORKER, Processes
from tokenfleet_client.contract import REFRESHED_CHANNEL

REQUESTS = 5


def test_a_reader_that_asks_has_its_token_long_before_a_tick_and_is_told(
    fleet: Fleet, run: Processes
) -> None:
    accounts = fleet.connect(*(f"customer-{number}" for number in range(REQUESTS)))
    with fleet.engine.begin() as connection:
        connection.execute(
            text("UPDATE tokenfleet.refresh_schedule SET next_refresh_at = now() + interval '1 hour'")
        )
    # Ticks that nobody would wait for.
    run.fleet(SCHEDULER, (*WORKER, "--queues", "refresh"), tick_seconds="20")
    plain = make_url(fleet.settings.database_url).set(drivername="postgresql")
    took = []
    with psycopg.connect(plain.render_as_string(hide_password=False), autocommit=True) as reader:
        reader.execute(f"LISTEN {REFRESHED_CHANNEL}")
        for account_id in accounts:
            began = time.monotonic()
            row = reader.execute(
                "SELECT answer FROM tokenfleet_v1.request_refresh(%s, '2 days')", [account_id]
            ).fetchone()
            assert row == ("requested",)
            [told] = [each.payload for each in reader.notifies(timeout=15, stop_after=1)]
            took.append(time.monotonic() - began)
            assert told == f"{account_id} 2"
    assert max(took) < 10, took
    assert fleet.server.ledger().refreshes == REQUESTS
