"""A worker's engine against a strict authorization server, real Postgres and real Redis.

The sandbox's ledger is the judge of "presented once".
"""

from __future__ import annotations

import hashlib
from datetime import timedelta

import pytest
from redis import Redis
from sqlalchemy import text

from sandbox.faults import FaultKind, FaultRule
from sandbox.selection import Stage
from store.leases import KEY_PREFIX
from tests.support.fleet import Fleet, eventually
from tokenfleet.jobs import AccountId, RefreshJob
from tokenfleet_client.secret import Secret


def sha256(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def assert_holds_what_the_server_expects(fleet: Fleet, *ids: AccountId) -> None:
    live = {tokens.refresh_token_sha256: tokens.access_token_sha256 for tokens in fleet.server.live()}
    for account_id in ids:
        row = fleet.row(account_id)
        assert live.get(sha256(row.refresh_token)) == sha256(row.access_token)


def test_every_due_account_is_refreshed_once_and_scheduled_again(fleet: Fleet) -> None:
    ids = fleet.connect(*(f"customer-{number}" for number in range(250)))
    with fleet.worker() as worker:
        worker.run(fleet.claim())
    assert fleet.server.ledger().refreshes == 250
    assert fleet.server.ledger().presented_twice == 0
    assert_holds_what_the_server_expects(fleet, *ids)
    row = fleet.row(ids[0])
    assert (row.generation, row.claimed, row.attempts) == (2, False, 0)
    assert row.next_refresh_in is not None
    assert 3600 - 180 - 5 < row.next_refresh_in <= 3600 - 60
    assert fleet.events(ids[0]) == ["refresh.succeeded"]
    assert fleet.told(ids[0]) == []


def test_nothing_is_left_in_redis_or_in_the_journal_after_a_refresh(fleet: Fleet, redis_url: str) -> None:
    fleet.connect("customer")
    with fleet.worker() as worker:
        worker.run(fleet.claim())
        with Redis.from_url(redis_url) as redis:
            eventually(lambda: redis.keys(f"{KEY_PREFIX}*") == [], what="the lease is given back")
    assert not list(fleet.settings.journal_dir.iterdir())


def test_a_message_delivered_twice_to_two_workers_presents_the_token_once(fleet: Fleet) -> None:
    fleet.connect(*(f"customer-{number}" for number in range(50)))
    [job] = fleet.claim()
    with fleet.worker() as first, fleet.worker() as second:
        futures = [worker.submit(job) for worker in (first, second, first, second)]
        for future in futures:
            future.result(30)
    assert fleet.server.ledger().refreshes == 50
    assert fleet.server.ledger().presented_twice == 0


def test_a_message_delivered_twice_is_harmless_even_when_redis_was_wiped_in_between(
    fleet: Fleet, redis_url: str
) -> None:
    fleet.connect("customer")
    [job] = fleet.claim()
    with fleet.worker() as first, fleet.worker() as second:
        with fleet.server.hold():
            running = first.submit(job)
            fleet.server.wait_for_held(1)
            with Redis.from_url(redis_url) as redis:
                redis.flushall()
            second.run([job])
        running.result(30)
    assert fleet.server.ledger().refreshes == 1
    assert fleet.server.ledger().presented_twice == 0


def test_a_stale_epoch_finds_nothing_to_start(fleet: Fleet) -> None:
    [account_id] = fleet.connect("customer")
    [stale] = fleet.claim(claim=timedelta(0))
    [fresh] = fleet.claim()
    with fleet.worker() as worker:
        worker.run([stale])
        assert fleet.server.ledger().refreshes == 0
        worker.run([fresh])
    assert fleet.row(account_id).generation == 2


def test_a_revoked_grant_becomes_needs_reauth_with_one_event_and_is_never_asked_again(fleet: Fleet) -> None:
    [account_id] = fleet.connect("customer")
    fleet.server.revoke("customer")
    with fleet.worker() as worker:
        worker.run(fleet.claim())
    row = fleet.row(account_id)
    assert (row.status, row.status_reason, row.next_refresh_in) == ("needs_reauth", "invalid_grant", None)
    assert fleet.told(account_id) == ["integrated_account:authentication_error"]
    assert fleet.events(account_id) == ["account.grant_rejected"]
    assert fleet.claim() == []


def test_the_outbox_holds_what_the_contract_says_and_no_token(fleet: Fleet) -> None:
    [account_id] = fleet.connect("customer")
    fleet.server.revoke("customer")
    with fleet.worker() as worker:
        worker.run(fleet.claim())
    [payload] = fleet.column("SELECT payload FROM tokenfleet.outbox")
    assert payload == {
        "id": account_id,
        "integration_name": "sandbox",
        "external_id": "customer",
        "tenant": None,
        "environment": "production",
        "status": "needs_reauth",
        "last_error": "invalid_grant",
    }


def test_a_wrong_client_secret_holds_the_app_and_flips_nobody(fleet: Fleet) -> None:
    ids = fleet.connect(*(f"customer-{number}" for number in range(20)))
    fleet.register(Secret("not-the-right-one"))
    with fleet.worker() as worker:
        worker.run(fleet.claim())
        app = fleet.current_app()
        assert (app.held_since is not None, app.held_code) == (True, "invalid_client")
        assert {fleet.row(account_id).status for account_id in ids} == {"active"}
        asked = fleet.server.ledger().rejected
        for account_id in ids:
            fleet.make_due(account_id)
        worker.run(fleet.claim())
        assert fleet.server.ledger().rejected == asked, "a held app is not asked"
        fleet.register(fleet.server.config.client_secret)
        # The probe first, and when it has succeeded the others.
        worker.run(fleet.claim(count=1))
        worker.run(fleet.claim())
    assert fleet.current_app().held_since is None
    assert_holds_what_the_server_expects(fleet, *ids)
    assert fleet.server.ledger().presented_twice == 0


def test_a_probe_that_succeeds_ends_the_hold(fleet: Fleet) -> None:
    [account_id] = fleet.connect("customer")
    fleet.server.add_faults(FaultRule(kind=FaultKind.INVALID_CLIENT, count=1))
    with fleet.worker() as worker:
        worker.run(fleet.claim())
        assert fleet.current_app().held_since is not None
        fleet.make_due(account_id)
        worker.run(fleet.claim(count=1))
    assert fleet.current_app().held_since is None
    assert fleet.row(account_id).generation == 2


@pytest.mark.parametrize(
    "kind", [FaultKind.STATUS_429_RETRY_AFTER, FaultKind.STATUS_503_RETRY_AFTER], ids=["429", "503"]
)
def test_a_throttling_provider_is_left_alone_until_it_said_and_costs_the_account_nothing(
    fleet: Fleet, kind: FaultKind
) -> None:
    [account_id] = fleet.connect("customer")
    fleet.server.add_faults(FaultRule(kind=kind, retry_after_seconds=120, count=1))
    with fleet.worker() as worker:
        worker.run(fleet.claim())
    row = fleet.row(account_id)
    assert (row.status, row.attempts, row.generation) == ("active", 0, 1)
    paused_until = fleet.current_app().paused_until
    assert paused_until is not None
    [seconds] = fleet.column(
        "SELECT EXTRACT(epoch FROM paused_until - now())::float FROM tokenfleet.oauth_apps"
    )
    assert 110 < seconds <= 121
    assert row.next_refresh_in is not None
    assert row.next_refresh_in > 110


@pytest.mark.parametrize("kind", [FaultKind.STATUS_500, FaultKind.HTML_403], ids=["500", "html-403"])
def test_an_unavailable_provider_costs_a_short_wait_and_no_status(fleet: Fleet, kind: FaultKind) -> None:
    [account_id] = fleet.connect("customer")
    fleet.server.add_faults(FaultRule(kind=kind, count=1))
    with fleet.worker() as worker:
        worker.run(fleet.claim())
        row = fleet.row(account_id)
        assert (row.status, row.attempts, row.generation) == ("active", 1, 1)
        assert row.next_refresh_in is not None
        assert row.next_refresh_in < 5
        fleet.make_due(account_id)
        worker.run(fleet.claim())
    row = fleet.row(account_id)
    assert (row.generation, row.attempts, row.last_error) == (2, 0, None)
    assert fleet.events(account_id) == ["refresh.unavailable", "refresh.succeeded"]


def test_a_connection_reset_before_the_server_acted_is_mended_by_one_replay(fleet: Fleet) -> None:
    [account_id] = fleet.connect("customer")
    fleet.server.add_faults(FaultRule(kind=FaultKind.RESET_BEFORE, count=1))
    with fleet.worker() as worker:
        worker.run(fleet.claim())
    assert fleet.row(account_id).generation == 2
    assert fleet.server.ledger().presented_twice == 0


def test_an_answer_lost_after_rotation_is_counted_as_rotation_lost(fleet: Fleet) -> None:
    [account_id] = fleet.connect("customer")
    fleet.server.add_faults(FaultRule(kind=FaultKind.RESET_AFTER, count=1))
    with fleet.worker() as worker:
        worker.run(fleet.claim())
    row = fleet.row(account_id)
    assert (row.status, row.status_reason) == ("needs_reauth", "rotation_lost")
    assert fleet.server.ledger().presented_twice == 0
    assert fleet.server.ledger().replays_after_loss == 1


def test_a_good_answer_that_lost_the_race_is_kept_as_a_candidate(fleet: Fleet) -> None:
    [account_id] = fleet.connect("customer")
    with fleet.worker() as worker, fleet.server.hold(stage=Stage.AFTER_DECIDING):
        running = worker.submit(fleet.claim()[0])
        fleet.server.wait_for_held(1)
        with fleet.engine.begin() as connection:
            connection.execute(text("UPDATE tokenfleet.token_sets SET generation = generation + 5"))
    running.result(30)
    [candidate] = fleet.column("SELECT generation FROM tokenfleet.token_candidates")
    assert candidate == 2
    assert "refresh.lost_race" in fleet.events(account_id)


def test_an_envelope_that_was_moved_quarantines_that_account_only(fleet: Fleet) -> None:
    first, second = fleet.connect("first", "second")
    with fleet.engine.begin() as connection:
        connection.execute(
            text(
                "UPDATE tokenfleet.token_sets t SET refresh_token = o.refresh_token "
                "FROM tokenfleet.token_sets o WHERE t.account_id = :first AND o.account_id = :second"
            ),
            {"first": first, "second": second},
        )
    with fleet.worker() as worker:
        worker.run(fleet.claim())
    [quarantined, error] = [
        fleet.column(f"SELECT {column} FROM tokenfleet.refresh_schedule WHERE account_id = :id", id=first)[0]
        for column in ("quarantined", "last_error")
    ]
    assert (quarantined, error) == (True, "envelope_unreadable")
    assert fleet.row(second).generation == 2
    assert fleet.server.ledger().refreshes == 1


def test_a_stop_waits_for_the_answer_and_saves_it(fleet: Fleet) -> None:
    [account_id] = fleet.connect("customer")
    with fleet.worker() as worker:
        with fleet.server.hold():
            running = worker.submit(fleet.claim()[0])
            fleet.server.wait_for_held(1)
        worker.stop()
        running.result(30)
    assert fleet.row(account_id).generation == 2
    assert_holds_what_the_server_expects(fleet, account_id)


def test_an_account_whose_lease_somebody_holds_is_postponed_and_not_asked(
    fleet: Fleet, redis_url: str
) -> None:
    held, free = fleet.connect("held", "free")
    with Redis.from_url(redis_url) as redis:
        redis.set(f"{KEY_PREFIX}{held}", "somebody else")
        with fleet.worker() as worker:
            worker.run(fleet.claim())
    assert fleet.row(free).generation == 2
    assert fleet.row(held).generation == 1
    assert fleet.server.ledger().refreshes == 1


def test_refreshes_go_on_while_redis_is_away(fleet: Fleet, settings: object) -> None:
    from dataclasses import replace

    [account_id] = fleet.connect("customer")
    fleet.settings = replace(fleet.settings, redis_url="redis://127.0.0.1:1/0")
    with fleet.worker() as worker:
        worker.run(fleet.claim())
    assert fleet.row(account_id).generation == 2


def test_a_job_of_a_removed_app_gives_its_claims_back(fleet: Fleet) -> None:
    [account_id] = fleet.connect("customer")
    [job] = fleet.claim()
    stray = RefreshJob(job.job_id, type(job.app_id)(10**9), job.accounts)
    with fleet.worker() as worker:
        worker.run([stray])
    assert fleet.row(account_id).claimed is False
    assert fleet.server.ledger().refreshes == 0
