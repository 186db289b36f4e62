"""The numbers of ``status``: right, and cheap where there are many accounts."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, event, text

from store import apps, overview, settlement
from store.engine import make_engine
from store.keys import Vault
from store.overview import Overview, StatusCount, read_overview
from tests.support.builders import (
    ACTOR,
    answer,
    begin_attempt,
    claim,
    deferral,
    make_account,
    make_accounts,
    make_app,
    make_many_accounts,
    now,
)
from tokenfleet.settings import Settings
from tokenfleet_client.contract import AccountStatus

HOUR = timedelta(hours=1)


def _read(engine: Engine) -> Overview:
    with engine.begin() as connection:
        return read_overview(connection)


def test_an_empty_fleet_has_nothing_to_tell(engine: Engine) -> None:
    fleet = _read(engine)
    assert (fleet.counts, fleet.apps, fleet.last_minute) == ((), (), ())
    assert (fleet.failing.accounts, fleet.failing.since, fleet.expiry.lowest) == (0, None, None)


def test_accounts_are_counted_by_provider_and_status(engine: Engine, vault: Vault) -> None:
    acme, beta = make_app(engine, vault), make_app(engine, vault, provider="beta")
    for app, status in ((acme, "active"), (acme, "active"), (acme, "paused"), (beta, "needs_reauth")):
        make_account(engine, vault, app, status=AccountStatus(status))
    assert _read(engine).counts == (
        StatusCount("acme", AccountStatus.ACTIVE, 2),
        StatusCount("acme", AccountStatus.PAUSED, 1),
        StatusCount("beta", AccountStatus.NEEDS_REAUTH, 1),
    )


def test_due_accounts_wait_or_are_claimed_never_both(engine: Engine, vault: Vault) -> None:
    app = make_app(engine, vault)
    make_accounts(engine, vault, app, 3)
    make_account(engine, vault, app, due_in=-HOUR)
    make_account(engine, vault, app, due_in=HOUR)
    claim(engine, app, count=1)
    [load] = _read(engine).apps
    assert (load.due, load.claimed) == (3, 1)
    # The one that was an hour late is claimed; the others have only just become due.
    assert load.oldest_due_at is not None
    assert now() - load.oldest_due_at < HOUR


def test_a_held_and_a_paused_app_say_so(engine: Engine, vault: Vault) -> None:
    held, paused = make_app(engine, vault, name="a"), make_app(engine, vault, name="b")
    with engine.begin() as connection:
        apps.hold(connection, held, "invalid_client", generation=1, probe_after=timedelta(seconds=30))
        apps.pause_until(connection, [paused], [now() + HOUR])
    first, second = _read(engine).apps
    assert (first.held_code, second.held_code) == ("invalid_client", None)
    assert second.paused_until is not None


def test_failing_and_quarantined_accounts_are_counted(engine: Engine, vault: Vault) -> None:
    app = make_app(engine, vault)
    for quarantined in (False, True):
        attempt = begin_attempt(engine, app, make_account(engine, vault, app))
        with engine.begin() as connection:
            settlement.defer(connection, [deferral(attempt, quarantined=quarantined)], actor=ACTOR)
    failing = _read(engine).failing
    assert (failing.accounts, failing.quarantined) == (2, 1)
    assert failing.since is not None


def test_the_lowest_expiry_is_found_among_failing_accounts_too(engine: Engine, vault: Vault) -> None:
    app = make_app(engine, vault)
    make_account(engine, vault, app, expires_in=HOUR, due_in=timedelta(0))
    failing = make_account(engine, vault, app, expires_in=timedelta(seconds=20), due_in=HOUR)
    make_account(engine, vault, app, expires_in=-HOUR, status=AccountStatus.PAUSED)
    with engine.begin() as connection:
        connection.execute(
            text("UPDATE tokenfleet.refresh_schedule SET failing_since = now() WHERE account_id = :id"),
            {"id": failing},
        )
    fleet = _read(engine)
    assert fleet.expiry.lowest is not None
    assert timedelta(0) < fleet.expiry.lowest - fleet.at <= timedelta(seconds=20)
    assert fleet.expiry.expired == 0


def test_an_expired_token_of_an_active_account_is_counted(engine: Engine, vault: Vault) -> None:
    make_account(engine, vault, make_app(engine, vault), expires_in=-HOUR)
    assert _read(engine).expiry.expired == 1


def test_the_last_minute_is_told_by_outcome_and_code(engine: Engine, vault: Vault) -> None:
    app = make_app(engine, vault)
    good = begin_attempt(engine, app, make_account(engine, vault, app))
    bad = begin_attempt(engine, app, make_account(engine, vault, app))
    with engine.begin() as connection:
        refreshed = answer(vault, good.account_id, epoch=good.epoch, generation=good.generation)
        settlement.save_refreshed(connection, [refreshed], actor=ACTOR)
        settlement.defer(connection, [deferral(bad)], actor=ACTOR)
        connection.execute(
            text(
                "INSERT INTO tokenfleet.account_events (account_id, at, kind, actor) VALUES "
                "(1, now() - interval '2 minutes', 'refresh.succeeded', 'test'), "
                "(1, now(), 'account.paused', 'test')"
            )
        )
    fleet = _read(engine)
    assert {(each.kind, each.code, each.attempts) for each in fleet.last_minute} == {
        ("refresh.succeeded", None, 1),
        ("refresh.unavailable", "http_503", 1),
    }
    assert fleet.refreshed_last_minute == 1


def test_a_process_is_counted_once_however_many_connections_it_has(
    engine: Engine, settings: Settings
) -> None:
    worker = make_engine(settings.database_url, application_name="tokenfleet worker host-1-abc", pool_size=2)
    scheduler = make_engine(settings.database_url, application_name="tokenfleet scheduler host-2")
    try:
        with worker.connect(), worker.connect(), scheduler.connect():
            processes = _read(engine).processes
    finally:
        worker.dispose()
        scheduler.dispose()
    assert (processes.schedulers, processes.workers) == (1, 1)


def test_a_process_that_is_not_heard_of_is_told_apart(
    engine: Engine, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen = make_engine(settings.database_url, application_name="tokenfleet worker host-1-abc")
    speaking = make_engine(settings.database_url, application_name="tokenfleet scheduler host-2")
    monkeypatch.setattr(overview, "SILENCE", timedelta(seconds=1))
    try:
        with frozen.connect() as silent, speaking.connect() as talking:
            silent.execute(text("SELECT 1"))
            talking.execute(text("SELECT pg_sleep(1.1)"))
            processes = _read(engine).processes
    finally:
        frozen.dispose()
        speaking.dispose()
    assert processes.workers_silent_since is not None
    assert processes.schedulers_silent_since is None


@pytest.fixture
def plans(engine: Engine) -> list[str]:
    """The plan of every statement of an overview over many accounts, few of which are due or failing."""
    collected: list[str] = []

    def before(_: Connection, cursor: Any, statement: str, parameters: Any, *__: Any) -> None:
        if "tokenfleet." in statement:
            cursor.execute("EXPLAIN " + statement, parameters)
            collected.append("\n".join(row[0] for row in cursor.fetchall()))

    event.listen(engine, "before_cursor_execute", before)
    return collected


def test_only_the_counts_read_a_whole_table(engine: Engine, vault: Vault, plans: list[str]) -> None:
    app = make_app(engine, vault)
    make_many_accounts(engine, app, 30_000, due_from=timedelta(seconds=-10), due_to=HOUR)
    plans.clear()
    _read(engine)
    [counts] = [plan for plan in plans if "Seq Scan on accounts" in plan]
    assert "Aggregate" in counts
    joined = "\n".join(plans)
    for table in ("refresh_schedule", "token_sets"):
        assert f"Seq Scan on {table}" not in joined
    assert "ix_refresh_schedule_due" in joined
    assert "ix_refresh_schedule_failing" in joined
    assert overview.NEAREST < 30_000
