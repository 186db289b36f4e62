"""``providers health`` on a real history: now against the day before, per app."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine, text

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
    ill = make_account(engine, vault, make_app(engine, vault, name="default"))
    app = make_app(engine, vault, provider="calm", name="default")
    well = make_account(engine, vault, app)
    make_account(engine, vault, app, status=AccountStatus.NEEDS_REAUTH)
    for account in (ill, well):
        _history(engine, account, "refresh.succeeded", None, 990, "5 hours")
        _history(engine, account, "refresh.unavailable", "http_503", 10, "5 hours")
        _history(engine, account, "refresh.succeeded", None, 60, "2 minutes")
    _history(engine, ill, "refresh.unavailable", "http_503", 40, "2 minutes")
    # Neither now nor of yesterday.
    _history(engine, well, "refresh.unavailable", "http_503", 500, "26 hours")

    ran = tokenfleet("providers", "health")

    assert ran.exit_code == 1
    assert (
        "acme/production/default: 40 of 100 attempts ended in http_503 (40.0 %, usually 1.1 %" in ran.stdout
    )
    assert "Probably an outage at the provider." in ran.stdout
    assert "calm/production/default:" not in ran.stdout
    found = tokenfleet("providers", "health", "--json").document
    acme, calm = found["apps"]
    assert (acme["success_rate"], acme["usual_success_rate"]) == (0.6, pytest.approx(0.99))
    assert (calm["attempts"], calm["accounts"], calm["needs_reauth"]) == (60, 2, 1)
    assert calm["spikes"] == []
    only = tokenfleet("providers", "health", "calm")
    assert (only.exit_code, "Nothing is unusual." in only.stdout) == (0, True)
    assert tokenfleet("providers", "health", "nobody").exit_code == 1


def test_an_open_incident_is_unusual(tokenfleet: Shell, engine: Engine, vault: Vault) -> None:
    app = make_app(engine, vault, name="default")
    with engine.begin() as connection:
        incident = park(connection, app, make_account(engine, vault, app))
    ran = tokenfleet("providers", "health")
    assert ran.exit_code == 1
    assert f"incident {incident} is open" in ran.stdout
