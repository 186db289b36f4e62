"""What readers ask for, at the provider: one request however many ask, and nothing around a pace."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import psycopg
from sqlalchemy import text
from sqlalchemy.engine import make_url

from providers import load_registry
from sandbox.definition import definition_toml
from tests.support.arrivals import arrivals_at
from tests.support.fleet import Fleet, eventually
from tokenfleet.jobs import AccountId
from tokenfleet_client.contract import REFRESHED_CHANNEL

EXPIRED = "UPDATE tokenfleet.token_sets SET expires_at = now() - interval '1 minute'"
CALLERS = 20
CALLS = 50


def execute(fleet: Fleet, statement: str) -> None:
    with fleet.engine.begin() as connection:
        connection.execute(text(statement))


def test_a_thousand_requests_for_one_expired_account_are_one_request_at_the_provider(fleet: Fleet) -> None:
    [account_id] = fleet.connect("customer")
    execute(fleet, EXPIRED)
    execute(fleet, "UPDATE tokenfleet.refresh_schedule SET next_refresh_at = now() + interval '1 hour'")
    url = make_url(fleet.settings.database_url).set(drivername="postgresql")
    plain = url.render_as_string(hide_password=False)

    def call(_: int) -> list[str]:
        with psycopg.connect(plain, autocommit=True) as connection:
            query = f"SELECT answer FROM tokenfleet_v1.request_refresh({account_id})"
            return [row[0] for _ in range(CALLS) for row in connection.execute(query)]

    with psycopg.connect(plain, autocommit=True) as listener, fleet.worker() as worker:
        listener.execute(f"LISTEN {REFRESHED_CHANNEL}")
        with ThreadPoolExecutor(CALLERS) as callers:
            calls = [callers.submit(call, number) for number in range(CALLERS)]
            jobs = []
            while not (all(each.done() for each in calls) and fleet.row(account_id).generation > 1):
                jobs += fleet.claim()
                worker.run(jobs[-1:])
            answers = [answer for each in calls for answer in each.result()]
        heard = [each.payload for each in listener.notifies(timeout=1, stop_after=1)]
    assert len(answers) == CALLERS * CALLS
    assert set(answers) <= {"requested", "fresh"}
    assert answers[0] == "requested"
    assert fleet.server.ledger().refreshes == 1
    assert fleet.server.ledger().presented_twice == 0
    assert heard == [f"{account_id} 2"]


def test_a_requested_account_goes_ahead_of_a_paced_crowd_that_waits_already(
    fleet: Fleet, tmp_path: Path
) -> None:
    crowd = fleet.connect(*(f"due-{number}" for number in range(60)))
    definition = definition_toml(fleet.server.url, fleet.server.config)
    (tmp_path / "providers" / "sandbox.toml").write_text(
        f"{definition}\n[rate]\nrequests_per_second = 20\nburst = 1\n"
    )
    fleet.registry = load_registry(tmp_path / "providers", allow_http=True)
    [job] = fleet.claim()
    wanted = AccountId(fleet.connect("wanted")[0])
    execute(fleet, EXPIRED)
    with arrivals_at(fleet.server) as arrivals, fleet.worker() as worker:
        running = worker.submit(job)
        eventually(lambda: len(arrivals) >= 3, what="the crowd is on its way")
        with fleet.engine.begin() as connection:
            connection.execute(text("SELECT * FROM tokenfleet_v1.request_refresh(:id)"), {"id": wanted})
        [requested] = [each for each in fleet.claim() if each.is_requested]
        asked_after = len(arrivals)
        running_too = worker.submit(replace(requested))
        eventually(lambda: any(each.subject == "wanted" for each in arrivals), what="it is asked about")
        place = [each.subject for each in arrivals].index("wanted")
        for each in (running, running_too):
            each.result(30)
    # Slots are taken for a tenth of a second at a time: two are given out already, and its job takes a moment.
    assert place - asked_after < 20 < len(crowd)
    assert fleet.server.ledger().presented_twice == 0
