"""What a strict reviewer broke once, and must never break again."""

from __future__ import annotations

import time

from sqlalchemy import text

from sandbox.faults import FaultKind, FaultRule
from store import apps
from tests.support.fleet import Fleet, eventually
from tokenfleet.jobs import AppId, RefreshJob
from tokenfleet_client.secret import Secret
from workers.writer import LOCK_TIMEOUT_MS


def test_a_message_that_names_another_app_asks_nobody(fleet: Fleet) -> None:
    [account_id] = fleet.connect("customer")
    with fleet.engine.begin() as connection:
        other = apps.register(
            connection,
            fleet.vault.refresh,
            provider="sandbox",
            environment="staging",
            name="default",
            client_id="somebody-else",
            client_secret=Secret("of-somebody-else"),
            variables={},
        )
    [job] = fleet.claim()
    with fleet.worker() as worker:
        worker.run([RefreshJob(job.job_id, AppId(other.app_id), job.accounts)])
        assert fleet.server.ledger().rejected == 0
        worker.run([job])
    assert fleet.row(account_id).generation == 2


def test_jobs_of_an_app_that_was_paused_meanwhile_are_given_back(fleet: Fleet) -> None:
    ids = fleet.connect("first", "second")
    jobs = fleet.claim()
    with fleet.engine.begin() as connection:
        connection.execute(text("UPDATE tokenfleet.oauth_apps SET paused_until = now() + interval '1 hour'"))
    with fleet.worker() as worker:
        worker.run(jobs)
    assert fleet.server.ledger().refreshes == 0
    assert [fleet.row(account_id).claimed for account_id in ids] == [False, False]


def test_an_app_without_its_secret_is_held_and_mended_by_registering_it(fleet: Fleet) -> None:
    ids = fleet.connect("first", "second")
    with fleet.engine.begin() as connection:
        connection.execute(text("UPDATE tokenfleet.oauth_apps SET client_secret = NULL"))
    with fleet.worker() as worker:
        worker.run(fleet.claim())
        assert fleet.current_app().held_code == "client_secret_missing"
        assert not any(fleet.row(account_id).quarantined for account_id in ids)
        fleet.register(fleet.server.config.client_secret)
        worker.run(fleet.claim(count=1))
        assert fleet.current_app().held_since is None
        worker.run(fleet.claim())
    assert [fleet.row(account_id).generation for account_id in ids] == [2, 2]


def test_registering_an_app_again_ends_the_quarantine_of_its_accounts(fleet: Fleet) -> None:
    [account_id] = fleet.connect("customer")
    with fleet.engine.begin() as connection:
        connection.execute(
            text(
                "UPDATE tokenfleet.refresh_schedule "
                "SET quarantined = true, next_refresh_at = now() + interval '6 hours'"
            )
        )
    fleet.register(fleet.server.config.client_secret)
    assert fleet.row(account_id).quarantined is False
    assert len(fleet.claim()) == 1


def test_one_locked_row_holds_up_nobody_else(fleet: Fleet) -> None:
    locked, *others = fleet.connect(*(f"customer-{number}" for number in range(12)))
    with fleet.worker() as worker, fleet.engine.connect() as operator:
        operator.execute(
            text("SELECT 1 FROM tokenfleet.token_sets WHERE account_id = :id FOR UPDATE"), {"id": locked}
        )
        futures = [worker.submit(job) for job in fleet.claim()]
        eventually(
            lambda: all(fleet.row(account_id).generation == 2 for account_id in others),
            within=LOCK_TIMEOUT_MS / 1000 * 12,
            what="the others are saved",
        )
        assert worker.engine.problems() == ([], [])
        operator.rollback()
        eventually(lambda: fleet.row(locked).generation == 2, what="the locked one is saved at last")
        for future in futures:
            future.result(30)
    assert fleet.server.ledger().presented_twice == 0


def test_an_answer_that_postgres_does_not_hold_quarantines_its_account_and_keeps_it_on_disk(
    fleet: Fleet,
) -> None:
    refused, fine = fleet.connect("refused", "fine")
    with fleet.engine.begin() as connection:
        connection.execute(
            text(
                f"ALTER TABLE tokenfleet.token_sets ADD CONSTRAINT odd "
                f"CHECK (account_id <> {int(refused)} OR generation < 2)"
            )
        )
    with fleet.worker() as worker:
        worker.run(fleet.claim())
        eventually(lambda: fleet.row(refused).quarantined, what="the account is quarantined")
        assert fleet.row(fine).generation == 2
        fleet.claim()
    assert fleet.server.ledger().presented_twice == 0
    assert "refresh.succeeded" not in fleet.events(refused)
    assert list(fleet.settings.journal_dir.glob("*/*.segment")), "the successor is on disk"


def test_a_definition_this_worker_does_not_know_costs_the_account_nothing(fleet: Fleet) -> None:
    [account_id] = fleet.connect("customer")
    [job] = fleet.claim()
    with fleet.engine.begin() as connection:
        connection.execute(text("UPDATE tokenfleet.oauth_apps SET provider = 'unheard_of'"))
    with fleet.worker() as worker:
        worker.run([job])
        row = fleet.row(account_id)
        assert (row.claimed, row.unanswered, row.attempts) == (False, 0, 0)
        with fleet.engine.begin() as connection:
            connection.execute(text("UPDATE tokenfleet.oauth_apps SET provider = 'sandbox'"))
        worker.run(fleet.claim())
    assert fleet.row(account_id).generation == 2


def test_an_account_whose_client_is_rejected_again_and_again_waits_longer_each_time(fleet: Fleet) -> None:
    [account_id] = fleet.connect("customer")
    fleet.server.add_faults(FaultRule(kind=FaultKind.INVALID_CLIENT))
    waits: list[float] = []
    with fleet.worker() as worker:
        for _ in range(6):
            fleet.make_due(account_id)
            worker.run(fleet.claim(count=1))
            row = fleet.row(account_id)
            assert row.next_refresh_in is not None
            waits.append(row.next_refresh_in)
    assert fleet.row(account_id).status == "active"
    assert waits[-1] > 2 * waits[0]


def test_a_stop_gives_up_on_a_postgres_that_stays_away_and_leaves_the_answer_on_disk(
    fleet: Fleet, monkeypatch: object
) -> None:
    import workers.engine

    [account_id] = fleet.connect("customer")
    patience, workers.engine.GIVE_UP_SECONDS = workers.engine.GIVE_UP_SECONDS, 1.0  # type: ignore[misc]
    try:
        with fleet.worker() as worker:
            with fleet.server.hold():
                running = worker.submit(fleet.claim()[0])
                fleet.server.wait_for_held(1)
                with fleet.engine.begin() as connection:
                    connection.execute(text("ALTER TABLE tokenfleet.token_sets RENAME TO hidden"))
            eventually(lambda: worker.engine.problems()[0] != [], what="the writer has noticed")
            began = time.monotonic()
            worker.stop()
            running.result(30)
        assert time.monotonic() - began < 15
        with fleet.engine.begin() as connection:
            connection.execute(text("ALTER TABLE tokenfleet.hidden RENAME TO token_sets"))
    finally:
        workers.engine.GIVE_UP_SECONDS = patience  # type: ignore[misc]
    with fleet.worker():
        assert fleet.row(account_id).generation == 2, "the next worker adopted the journal"
    assert fleet.server.ledger().presented_twice == 0


def test_a_job_that_meets_connections_which_were_cut_is_done_at_once(fleet: Fleet) -> None:
    [account_id] = fleet.connect("customer")
    with fleet.worker() as worker:
        worker.run(fleet.claim())
        cut = fleet.column(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
            "WHERE datname = current_database() AND application_name LIKE 'tokenfleet worker%'"
        )
        assert cut
        fleet.make_due(account_id)
        worker.run(fleet.claim())
        assert fleet.row(account_id).generation == 3
