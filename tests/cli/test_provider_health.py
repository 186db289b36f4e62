"""``providers health`` on a real history: now against the day before, per app."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import Engine, text

from store import provider_health
from store.keys import Vault
from tests.cli.conftest import Shell
from tests.support.builders import make_account, make_app, park
from tokenfleet.jobs import AccountId
from tokenfleet_client.contract import AccountStatus


def _history(engine: Engine, account: AccountId, kind: str, code: str | None, times: int, ago: str) -> None:
    with engine.begin() as connection:
        connection.execute(
            text("""
                INSERT INTO tokenfleet.account_events (account_id, at, kind, code, duration_ms, actor)
                SELECT :account, now() - CAST(:ago AS interval), :kind, :code, 200, 'test'
                FROM generate_series(1, CAST(:times AS int))
            """),
            {"account": account, "kind": kind, "code": code, "times": times, "ago": ago},
        )


def test_an_app_in_trouble_is_named_beside_one_that_is_well(
    tokenfleet: Shell, engine: Engine, vault: Vault
) -> None:
    troubled = make_app(engine, vault, name="default")
    ill, *more = [make_account(engine, vault, troubled) for _ in range(4)]
    app = make_app(engine, vault, provider="calm", name="default")
    well = make_account(engine, vault, app)
    make_account(engine, vault, app, status=AccountStatus.NEEDS_REAUTH)
    for account in (ill, well):
        _history(engine, account, "refresh.succeeded", None, 990, "5 hours")
        _history(engine, account, "refresh.unavailable", "http_503", 10, "5 hours")
        _history(engine, account, "refresh.succeeded", None, 60, "2 minutes")
    for account in (ill, *more):
        _history(engine, account, "refresh.unavailable", "http_503", 10, "2 minutes")
    # Neither now nor of yesterday.
    _history(engine, well, "refresh.unavailable", "http_503", 500, "26 hours")

    ran = tokenfleet("providers", "health")

    assert ran.exit_code == 1
    assert (
        "acme/production/default: 40 of 100 attempts by 4 accounts ended in http_503 (40.0 %; usually 1.1 %"
        in ran.stdout
    )
    assert "Probably an outage at the provider." in ran.stdout
    assert "calm/production/default:" not in ran.stdout
    found = tokenfleet("providers", "health", "--json").document
    acme, calm = found["apps"]
    assert (acme["success_rate"], acme["usual_success_rate"]) == (0.6, pytest.approx(0.99))
    assert acme["reasons"] == [{"outcome": "unavailable", "code": "http_503", "attempts": 40, "accounts": 4}]
    assert (calm["attempts"], calm["accounts"], calm["needs_reauth"]) == (60, 2, 1)
    assert calm["spikes"] == []
    only = tokenfleet("providers", "health", "calm")
    assert (only.exit_code, "Nothing is unusual." in only.stdout) == (0, True)
    assert tokenfleet("providers", "health", "nobody").exit_code == 1


def test_one_account_that_fails_again_and_again_is_not_its_provider(
    tokenfleet: Shell, engine: Engine, vault: Vault
) -> None:
    account = make_account(engine, vault, make_app(engine, vault, name="default"))
    _history(engine, account, "refresh.unavailable", "http_503", 96, "2 minutes")
    ran = tokenfleet("providers", "health")
    assert "by 1 account ended in http_503 (100.0 %; of its past too little is known)" in ran.stdout
    assert "these accounts and not their provider" in ran.stdout
    assert "outage" not in ran.stdout


def test_a_fleet_that_asks_nobody_is_unusual_and_one_with_nothing_to_ask_is_not(
    tokenfleet: Shell, engine: Engine, vault: Vault
) -> None:
    app = make_app(engine, vault, name="default")
    make_account(engine, vault, app, due_in=timedelta(minutes=-5))
    assert tokenfleet("providers", "health").exit_code == 0
    late = make_account(engine, vault, app, due_in=timedelta(minutes=-30))
    ran = tokenfleet("providers", "health")
    assert (ran.exit_code, "nobody was asked in 10 min, and 1 account due" in ran.stdout) == (1, True)
    _history(engine, late, "refresh.succeeded", None, 1, "2 minutes")
    assert tokenfleet("providers", "health").exit_code == 0
    _history(engine, late, "refresh.succeeded", None, 1, "2 minutes")
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM tokenfleet.account_events"))
        connection.execute(text("UPDATE tokenfleet.oauth_apps SET paused_until = now() + interval '1 h'"))
    assert tokenfleet("providers", "health").exit_code == 0


def test_registrations_of_single_accounts_are_one_line(
    tokenfleet: Shell, engine: Engine, vault: Vault
) -> None:
    for number in range(12):
        app = make_app(engine, vault, name=f"account:customer-{number}")
        _history(engine, make_account(engine, vault, app), "refresh.succeeded", None, 2, "2 minutes")
    [found] = tokenfleet("providers", "health", "--json").document["apps"]
    assert (found["app"], found["registrations"], found["accounts"]) == ("account", 12, 12)
    assert found["attempts"] == 24
    assert "acme/production/account (12 registrations)" in tokenfleet("providers", "health").stdout


def test_more_attempts_than_can_be_read_are_estimated_and_said_to_be(
    tokenfleet: Shell, engine: Engine, vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    account = make_account(engine, vault, make_app(engine, vault, name="default"))
    _history(engine, account, "refresh.succeeded", None, 9_000, "2 minutes")
    _history(engine, account, "refresh.unavailable", "http_503", 3_000, "2 minutes")
    with engine.begin() as connection:
        connection.execute(text("ANALYZE tokenfleet.account_events"))
    monkeypatch.setattr(provider_health, "EXACT", 20)
    [found] = tokenfleet("providers", "health", "--json").document["apps"]
    assert found["sampled"] < 0.9
    assert found["attempts"] == pytest.approx(12_000, rel=0.3)
    assert found["success_rate"] == pytest.approx(0.75, abs=0.2)
    assert "about " in tokenfleet("providers", "health").stdout


def test_an_open_incident_is_unusual(tokenfleet: Shell, engine: Engine, vault: Vault) -> None:
    app = make_app(engine, vault, name="default")
    with engine.begin() as connection:
        incident = park(connection, app, make_account(engine, vault, app))
    ran = tokenfleet("providers", "health")
    assert ran.exit_code == 1
    assert f"incident {incident} is open" in ran.stdout
