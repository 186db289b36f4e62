"""Rows that nobody should have written: the one account is set aside with an alarm, everybody else is refreshed.

All of a test's accounts are in one job, so a bad row that took its company down would be seen.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from structlog.testing import capture_logs

from providers import load_registry
from sandbox.definition import definition_toml
from store.keys import Vault
from tests.support.fleet import Fleet
from tokenfleet.jobs import AccountId
from tokenfleet_client.envelope import KEY_BYTES, DataKeys, Ring, access_token_binding, refresh_token_binding

GOOD = ("first", "second", "third")
UNKNOWN_KEY = (2**31).to_bytes(4, "big")


def flipped(sealed: bytes, place: int) -> bytes:
    """Return ``sealed`` with one bit of one byte turned over."""
    place %= len(sealed)
    return sealed[:place] + bytes([sealed[place] ^ 1]) + sealed[place + 1 :]


Spoil = Callable[[Vault, AccountId, bytes, bytes, bytes], bytes | None]
"""From (vault, account, sealed refresh token, sealed access token, another's refresh token) to what is there."""

SEALED: dict[str, Spoil] = {
    "another account's": lambda vault, me, refresh, access, other: other,
    "the access token": lambda vault, me, refresh, access, other: access,
    "sealed by the access ring": lambda vault, me, refresh, access, other: vault.access.seal(
        "rt", refresh_token_binding(me, 1)
    ),
    "an access token's place": lambda vault, me, refresh, access, other: vault.refresh.seal(
        "rt", access_token_binding(me, 1)
    ),
    "of an older generation": lambda vault, me, refresh, access, other: vault.refresh.seal(
        "rt", refresh_token_binding(me, 0)
    ),
    "of a newer generation": lambda vault, me, refresh, access, other: vault.refresh.seal(
        "rt", refresh_token_binding(me, 2)
    ),
    "another installation's": lambda vault, me, refresh, access, other: DataKeys(
        Ring.REFRESH, {vault.refresh.primary_id: bytes(KEY_BYTES)}, vault.refresh.primary_id
    ).seal("rt", refresh_token_binding(me, 1)),
    "under an unknown key": lambda vault, me, refresh, access, other: refresh[:1] + UNKNOWN_KEY + refresh[5:],
    "of an unknown format": lambda vault, me, refresh, access, other: b"\x02" + refresh[1:],
    "a bit of the nonce": lambda vault, me, refresh, access, other: flipped(refresh, 7),
    "a bit of the token": lambda vault, me, refresh, access, other: flipped(refresh, 20),
    "a bit of the tag": lambda vault, me, refresh, access, other: flipped(refresh, -1),
    "cut by a byte": lambda vault, me, refresh, access, other: refresh[:-1],
    "cut to its header": lambda vault, me, refresh, access, other: refresh[:17],
    "longer by a byte": lambda vault, me, refresh, access, other: refresh + b"\0",
    "a single byte": lambda vault, me, refresh, access, other: b"\x01",
    "empty": lambda vault, me, refresh, access, other: b"",
    "in the clear": lambda vault, me, refresh, access, other: b"sandbox-rt-in-the-clear-and-longer-than-a-header",
    "missing": lambda vault, me, refresh, access, other: None,
    "an empty token": lambda vault, me, refresh, access, other: vault.refresh.seal("", refresh_token_binding(me, 1)),
}  # fmt: skip


def facts(fleet: Fleet, account_id: AccountId) -> tuple[Any, ...]:
    """Return (status, generation, quarantined, claimed, seconds to the next try, last error)."""
    with fleet.engine.connect() as connection:
        row = connection.execute(
            text(
                "SELECT a.status, t.generation, s.quarantined, s.claimed_until IS NOT NULL AS claimed, "
                "EXTRACT(epoch FROM s.next_refresh_at - now())::float AS wait, s.last_error "
                "FROM tokenfleet.accounts a JOIN tokenfleet.token_sets t ON t.account_id = a.id "
                "JOIN tokenfleet.refresh_schedule s ON s.account_id = a.id WHERE a.id = :id"
            ),
            {"id": account_id},
        ).one()
    return tuple(row)


def spoil(fleet: Fleet, statement: str, **parameters: object) -> None:
    """Write to the database what nobody should."""
    with fleet.engine.begin() as connection:
        connection.execute(text(statement), parameters)


@dataclass(slots=True)
class Said:
    """What the worker of a test has logged and printed."""

    logged: list[dict[str, Any]]
    capfd: pytest.CaptureFixture[str]

    def alarms(self) -> list[dict[str, Any]]:
        return [line for line in self.logged if line["log_level"] == "error"]

    def assert_calm(self) -> None:
        """No traceback and no token anywhere."""
        printed = self.capfd.readouterr()
        for output in (printed.out, printed.err, repr(self.logged)):
            assert "Traceback" not in output
            assert "exc_info" not in output
            assert "sandbox-rt-" not in output


@pytest.fixture
def said(capfd: pytest.CaptureFixture[str]) -> Iterator[Said]:
    with capture_logs() as logged:
        yield Said(logged, capfd)  # type: ignore[arg-type]


def test_a_refresh_token_that_does_not_open_sets_its_account_aside_and_nobody_else(
    fleet: Fleet, said: Said
) -> None:
    good = fleet.connect(*GOOD)
    bad = dict(zip(SEALED, fleet.connect(*SEALED), strict=True))
    with fleet.engine.connect() as connection:
        sealed = {
            row.account_id: (row.refresh_token, row.access_token)
            for row in connection.execute(text("SELECT * FROM tokenfleet.token_sets"))
        }
    for about, account_id in bad.items():
        refresh, access = sealed[account_id]
        spoilt = SEALED[about](fleet.vault, account_id, refresh, access, sealed[good[0]][0])
        spoil(
            fleet,
            "UPDATE tokenfleet.token_sets SET refresh_token = :spoilt WHERE account_id = :id",
            spoilt=spoilt,
            id=account_id,
        )
    jobs = fleet.claim()
    assert len(jobs) == 1
    with fleet.worker() as worker:
        worker.run(jobs)
        assert fleet.claim() == [], "what was set aside is not due"
    for account_id in good:
        assert fleet.row(account_id).generation == 2
    for about, account_id in bad.items():
        status, generation, quarantined, claimed, wait, error = facts(fleet, account_id)
        assert (status, generation, quarantined, claimed) == ("active", 1, True, False), about
        assert 5 * 3600 < wait <= 6 * 3600, about
        assert error in {"envelope_unreadable", "refresh_token_missing"}, about
        assert fleet.events(account_id) == ["refresh.our_fault"], about
        assert fleet.told(account_id) == [], about
    ledger = fleet.server.ledger()
    assert (ledger.refreshes, ledger.rejected) == (len(good), 0), "nothing was sent for them"
    set_aside = [alarm["attempt"] for alarm in said.alarms() if alarm["event"] == "account.quarantined"]
    assert sorted(set_aside) == sorted(f"{account_id}-1" for account_id in bad.values())
    said.assert_calm()


ABSURD = {
    "it never ends": ("token_sets", "expires_at = 'infinity'"),
    "it ended before time began": ("token_sets", "expires_at = '-infinity'"),
    "it ends after the year 9999": ("token_sets", "expires_at = '20000-01-01'"),
    "it ended before Christ": ("token_sets", "expires_at = '0044-03-15 BC'"),
    "it was obtained in no time": ("token_sets", "obtained_at = '-infinity'"),
    "it will be obtained": ("token_sets", "obtained_at = 'infinity'"),
    "its refresh token never ends": ("token_sets", "refresh_token_expires_at = 'infinity'"),
    "it was due before time began": ("refresh_schedule", "next_refresh_at = '-infinity'"),
    "it was due before Christ": ("refresh_schedule", "next_refresh_at = '0044-03-15 BC'"),
    "it has failed for ever": ("refresh_schedule", "attempts = 2147483646, failing_since = '-infinity'"),
    "its claim ended before time": ("refresh_schedule", "claimed_until = '-infinity'"),
    "its epochs are enormous": ("refresh_schedule", "claim_epoch = 9223372036854775000"),
}


def test_an_absurd_moment_harms_nobody_and_not_even_its_account(fleet: Fleet, said: Said) -> None:
    """Python's calendar ends where Postgres's goes on: one such row must not stop a tick or a job."""
    good = fleet.connect(*GOOD)
    absurd = dict(zip(ABSURD, fleet.connect(*ABSURD), strict=True))
    for about, (table, change) in ABSURD.items():
        spoil(fleet, f"UPDATE tokenfleet.{table} SET {change} WHERE account_id = :id", id=absurd[about])
    jobs = fleet.claim()
    assert len(jobs) == 1
    assert len(jobs[0].accounts) == len(good) + len(absurd)
    with fleet.worker() as worker:
        worker.run(jobs)
    for about, account_id in {**dict(zip(GOOD, good, strict=True)), **absurd}.items():
        row = fleet.row(account_id)
        assert (row.generation, row.status, row.attempts) == (2, "active", 0), about
        assert row.next_refresh_in is not None
        assert 0 < row.next_refresh_in < 3600, about
    assert fleet.strays() == []
    said.assert_calm()


HOSTS: dict[str, object] = {
    "somewhere else": {"host": "evil.example"},
    "an address that looks alike": {"host": "127.0.0.1.evil.example"},
    "a user name": {"host": "127.0.0.1@evil.example"},
    "a path": {"host": "evil.example/127.0.0.1"},
    "another port": {"host": "127.0.0.1:1"},
    "a line end": {"host": "127.0.0.1\r\nHost: evil.example"},
    "empty": {"host": ""},
    "a NUL": {"host": "127.0.0.1\ufffd"},
    "very long": {"host": "a." * 5000},
    "a number": {"host": 2130706433},
    "null": {"host": None},
    "a list": {"host": ["127.0.0.1"]},
    "an object": {"host": {"host": "127.0.0.1"}},
}


HOST_VARIABLE = """
[variables.host]
description = "where the sandbox is"
kind = "host"
pattern = ["127.0.0.1"]
default = "127.0.0.1"
"""


def test_variables_that_lead_to_another_host_are_not_followed(
    fleet: Fleet, said: Said, tmp_path: Path
) -> None:
    url = fleet.server.url.replace("127.0.0.1", "{host}")
    definition = definition_toml(fleet.server.url, fleet.server.config)
    definition = definition.replace(f'endpoint = "{fleet.server.url}/token"', f'endpoint = "{url}/token"')
    definition += HOST_VARIABLE
    (tmp_path / "providers" / "sandbox.toml").write_text(definition)
    fleet.registry = load_registry(tmp_path / "providers", allow_http=True)
    good = fleet.connect(*GOOD)
    bad = dict(zip(HOSTS, fleet.connect(*HOSTS), strict=True))
    for about, account_id in bad.items():
        spoil(
            fleet,
            "UPDATE tokenfleet.accounts SET variables = CAST(:variables AS jsonb) WHERE id = :id",
            variables=json.dumps(HOSTS[about]),
            id=account_id,
        )
    with fleet.worker() as worker:
        for _ in range(3):
            worker.run(fleet.claim())
            fleet.make_due(*bad.values())
    for account_id in good:
        assert fleet.row(account_id).generation == 2
    for about, account_id in bad.items():
        status, generation, _, claimed, _, error = facts(fleet, account_id)
        assert (status, generation, claimed) == ("active", 1, False), about
        assert error == ("variable_missing" if about == "null" else "variable_malformed"), about
        assert fleet.events(account_id) == ["refresh.our_fault"] * 3, about
        assert fleet.row(account_id).unanswered == 0, about
    ledger = fleet.server.ledger()
    assert (ledger.refreshes, ledger.rejected) == (len(good), 0)
    said.assert_calm()
    assert [alarm["event"] for alarm in said.alarms()] == ["account.quarantined"] * len(bad)


def test_an_app_whose_secret_does_not_open_is_held_and_its_accounts_stay_as_they_are(
    fleet: Fleet, said: Said
) -> None:
    ids = fleet.connect(*GOOD)
    spoil(
        fleet,
        "UPDATE tokenfleet.oauth_apps SET client_secret = (SELECT refresh_token FROM tokenfleet.token_sets LIMIT 1)",
    )
    with fleet.worker() as worker:
        worker.run(fleet.claim())
        assert fleet.current_app().held_code == "client_secret_missing"
        assert [fleet.row(account_id).status for account_id in ids] == ["active"] * len(ids)
        assert not any(fleet.row(account_id).quarantined for account_id in ids)
        assert (fleet.server.ledger().refreshes, fleet.server.ledger().rejected) == (0, 0)
        fleet.register(fleet.server.config.client_secret)
        worker.run(fleet.claim(count=1))
        worker.run(fleet.claim())
    assert [fleet.row(account_id).generation for account_id in ids] == [2] * len(ids)
    assert {alarm["event"] for alarm in said.alarms()} == {"app.secret_unreadable", "app.held"}
    said.assert_calm()


@pytest.mark.parametrize("status", ["paused", "revoked"])
def test_a_row_that_is_due_and_must_not_be_refreshed_is_looked_at_once(fleet: Fleet, status: str) -> None:
    """Otherwise every tick would claim it anew, for ever."""
    [account_id] = fleet.connect("customer")
    spoil(fleet, "UPDATE tokenfleet.accounts SET status = :status", status=status)
    if status == "revoked":
        # One that still has tokens is due for something else: store.revocations.
        spoil(fleet, "UPDATE tokenfleet.token_sets SET access_token = NULL, refresh_token = NULL")
    with fleet.worker() as worker:
        worker.run(fleet.claim())
        assert fleet.claim() == []
    assert facts(fleet, account_id)[:2] == (status, 1)
    assert fleet.server.ledger().refreshes == 0
