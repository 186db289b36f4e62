"""Whom an error concerns, and what becomes of an account that is answered as nobody has described."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from sqlalchemy import text

from providers import load_registry
from sandbox.definition import definition_toml
from store import unknowns
from store.unknowns import UnknownShape
from tests.support.altering_proxy import AlteringProxy
from tests.support.fleet import Fleet, Worker
from tokenfleet.jobs import AccountId

RULES = """
[[errors]]
outcome = "throttled"
status = 429
path = "scope"
value = "tenant"
affects = "connection"

[[errors]]
outcome = "client_rejected"
status = 401
path = "error"
value = "app_disabled"
affects = "connection"
"""

SENTINEL = "s3ntinel-0123456789"


@pytest.fixture
def proxy(fleet: Fleet, tmp_path: Path) -> Iterator[AlteringProxy]:
    """The only way to the sandbox that the fleet knows; the definition has :data:`RULES`."""
    with AlteringProxy(fleet.server.url) as proxy:
        definition = tmp_path / "providers" / "sandbox.toml"
        definition.write_text(definition_toml(proxy.url, fleet.server.config) + RULES)
        fleet.registry = load_registry(tmp_path / "providers", allow_http=True)
        yield proxy


def refuse(fleet: Fleet, proxy: AlteringProxy, refusals: Mapping[AccountId, tuple[int, object]]) -> None:
    """Answer accounts with a status and a document; everybody else reaches the sandbox."""
    tokens = {
        fleet.row(account_id).refresh_token.encode(): refusal for account_id, refusal in refusals.items()
    }
    host = urlsplit(fleet.server.url).netloc

    def respond(body: bytes) -> tuple[int, bytes]:
        for token, (status, document) in tokens.items():
            if token in body:
                return status, json.dumps(document).encode()
        with closing(http.client.HTTPConnection(host, timeout=30)) as connection:
            connection.request("POST", "/token", body, {"Content-Type": "application/x-www-form-urlencoded"})
            with connection.getresponse() as response:
                return response.status, response.read()

    proxy.answer = respond


def remembered(fleet: Fleet) -> list[UnknownShape]:
    with fleet.engine.connect() as connection:
        return unknowns.remembered(connection, "sandbox")


def ask_again(fleet: Fleet, worker: Worker, *ids: AccountId) -> None:
    fleet.make_due(*ids)
    worker.run(fleet.claim())


def test_what_concerns_one_connection_costs_the_others_nothing(fleet: Fleet, proxy: AlteringProxy) -> None:
    throttled, disabled, fine = fleet.connect("throttled", "disabled", "fine")
    with fleet.worker() as worker:
        refuse(
            fleet,
            proxy,
            {throttled: (429, {"scope": "tenant"}), disabled: (401, {"error": "app_disabled"})},
        )
        worker.run(fleet.claim())
        app = fleet.current_app()
        assert (app.paused_until, app.held_since) == (None, None)
        ask_again(fleet, worker, fine)
    waits, apart, refreshed = map(fleet.row, (throttled, disabled, fine))
    assert (waits.status, waits.quarantined, waits.last_error) == ("active", False, "tenant")
    assert waits.next_refresh_in is not None
    assert 2 < waits.next_refresh_in < 6
    assert (apart.status, apart.quarantined, apart.last_error) == ("active", True, "app_disabled")
    assert apart.next_refresh_in is not None
    assert 1700 < apart.next_refresh_in < 1900
    assert refreshed.generation == 3
    assert [fleet.told(each) for each in (throttled, disabled)] == [[], []]


def test_a_suspect_is_probed_twice_then_set_apart_and_nobody_is_told(
    fleet: Fleet, proxy: AlteringProxy, capfd: pytest.CaptureFixture[str]
) -> None:
    [account_id] = fleet.connect("customer")
    with fleet.engine.begin() as connection:
        # A long outage before it makes an odd answer no better known.
        connection.execute(text("UPDATE tokenfleet.refresh_schedule SET attempts = 40"))
    refuse(fleet, proxy, {account_id: (400, {"error": "consent_needed", "hint": SENTINEL})})
    with fleet.worker() as worker:
        for wait in (60, 600):
            ask_again(fleet, worker, account_id)
            row = fleet.row(account_id)
            assert row.next_refresh_in is not None
            assert wait * 0.7 < row.next_refresh_in < wait * 1.3
            assert (row.status, row.quarantined) == ("active", False)
        assert "account.quarantined" not in capfd.readouterr().out
        ask_again(fleet, worker, account_id)
        assert fleet.row(account_id).quarantined
        assert "account.quarantined" in capfd.readouterr().out
        [seen] = remembered(fleet)
        assert (seen.code, seen.times, seen.account_id) == ("consent_needed", 3, account_id)
        assert seen.shape == "400 {error:word,hint:text}"
        proxy.answer = None
        ask_again(fleet, worker, account_id)
        refuse(fleet, proxy, {account_id: (400, {"error": "consent_needed"})})
        ask_again(fleet, worker, account_id)
    row = fleet.row(account_id)
    assert (row.generation, row.quarantined, row.attempts) == (2, False, 1), "a success ends all doubt"
    assert fleet.told(account_id) == []
    assert fleet.column(
        "SELECT count(*) FROM tokenfleet.unknown_answers WHERE shape || code LIKE '%s3ntinel%'"
    ) == [0]
    ledger = fleet.server.ledger()
    assert (ledger.presented_twice, ledger.rejected) == (0, 0)


def test_a_successor_that_comes_with_an_answer_in_doubt_is_saved_even_in_quarantine(
    fleet: Fleet, proxy: AlteringProxy
) -> None:
    """The provider has rotated. What it sent beside the new token may be as odd as it likes."""
    [account_id] = fleet.connect("customer")
    with fleet.engine.begin() as connection:
        connection.execute(text("UPDATE tokenfleet.refresh_schedule SET doubts = 7"))
    proxy.alter = lambda document: json.dumps({"refresh_token": document["refresh_token"], "odd": 1}).encode()
    with fleet.worker() as worker:
        worker.run(fleet.claim())
        assert fleet.row(account_id).generation == 2
        [seen] = remembered(fleet)
        assert seen.shape == "200 {odd:number,refresh_token:text}"
        proxy.alter = lambda document: json.dumps(document).encode()
        ask_again(fleet, worker, account_id)
    assert fleet.row(account_id).generation == 3
    assert fleet.strays() == []
    ledger = fleet.server.ledger()
    assert (ledger.presented_twice, ledger.rejected, ledger.families_revoked) == (0, 0, 0), ledger.violations
