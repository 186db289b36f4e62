"""What is read from a real database: who is stale, who flipped, who was told, whose tokens are not the provider's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from drills.evidence import Books, ill_saved
from drills.reader import Reader
from sandbox.config import SandboxConfig
from sandbox.server import SandboxServer
from store.keys import Vault
from tests.support.fleet import Fleet
from tokenfleet.settings import Settings


@pytest.fixture
def fleet(engine: Engine, vault: Vault, settings: Settings, tmp_path: Path) -> Iterator[Fleet]:
    """Accounts of one provider, named sandbox, freshly signed in."""
    with SandboxServer(SandboxConfig()) as server:
        yield Fleet(engine, vault, settings, server, tmp_path / "providers")


def change(fleet: Fleet, statement: str) -> None:
    with fleet.engine.begin() as connection:
        connection.execute(text(statement))


def set_life(fleet: Fleet, subject: str, seconds: int) -> None:
    change(
        fleet,
        f"UPDATE tokenfleet.token_sets SET expires_at = now() + interval '{seconds} seconds' "
        f"WHERE account_id = (SELECT id FROM tokenfleet.accounts WHERE external_id = '{subject}')",
    )


def set_status(fleet: Fleet, subject: str, status: str) -> None:
    change(fleet, f"UPDATE tokenfleet.accounts SET status = '{status}' WHERE external_id = '{subject}'")


def test_a_reader_counts_who_has_less_than_was_promised_and_stays(fleet: Fleet) -> None:
    fleet.connect("shop", "inn", "bar", "left")
    reader = Reader(fleet.engine, ["sandbox"], ["left"])
    reader()
    set_life(fleet, "shop", 25)
    set_life(fleet, "inn", 35)
    set_life(fleet, "left", 0)
    reader()
    set_status(fleet, "bar", "needs_reauth")
    reader()
    seen = reader.seen["sandbox"]
    assert [stale for _, stale in seen.stale] == [0, 1, 2]
    assert not seen.is_fresh_since(0.0)


def test_a_reader_remembers_who_flipped_and_was_taken_back(fleet: Fleet) -> None:
    fleet.connect("shop", "inn")
    reader = Reader(fleet.engine, ["sandbox"], [])
    set_status(fleet, "shop", "needs_reauth")
    reader()
    set_status(fleet, "shop", "active")
    set_status(fleet, "inn", "needs_reauth")
    reader()
    seen = reader.seen["sandbox"]
    assert seen.flipped.keys() == {"shop", "inn"}
    assert seen.flipped["shop"] < seen.flipped["inn"]
    assert seen.flipped_now == {"inn"}


def test_freshness_before_a_moment_says_nothing_of_the_time_after_it(fleet: Fleet) -> None:
    fleet.connect("shop")
    reader = Reader(fleet.engine, ["sandbox"], [])
    reader()
    [(at, _)] = reader.seen["sandbox"].stale
    assert reader.seen["sandbox"].is_fresh_since(at)
    assert not reader.seen["sandbox"].is_fresh_since(at + 0.001)


def test_tokens_that_are_not_the_providers_are_found(fleet: Fleet) -> None:
    fleet.connect("shop-1", "shop-2", "inn-1")
    assert ill_saved(fleet.engine, fleet.vault, fleet.server.live()) == frozenset()
    fleet.server.issue("shop-2", "inn-1")
    assert ill_saved(fleet.engine, fleet.vault, fleet.server.live(), "shop-") == {"shop-2"}
    assert ill_saved(fleet.engine, fleet.vault, fleet.server.live()) == {"shop-2", "inn-1"}


def test_a_token_that_is_believed_to_live_longer_than_it_does_is_found(fleet: Fleet) -> None:
    fleet.connect("shop")
    change(fleet, "UPDATE tokenfleet.token_sets SET expires_at = expires_at + interval '20 seconds'")
    assert ill_saved(fleet.engine, fleet.vault, fleet.server.live()) == {"shop"}


def test_the_books_say_what_was_told_and_which_incidents_there_were(fleet: Fleet) -> None:
    [shop] = fleet.connect("shop")
    change(
        fleet,
        f"""
        INSERT INTO tokenfleet.outbox (account_id, event_type, payload) VALUES ({shop}, 'flipped', '{{}}');
        INSERT INTO tokenfleet.outbox (account_id, event_type, payload) VALUES ({shop}, 'back', '{{}}');
        INSERT INTO tokenfleet.outbox (account_id, event_type, payload)
            VALUES (NULL, 'opened', '{{"integration_name": "sandbox"}}');
        INSERT INTO tokenfleet.provider_incidents (app_id, kind, code, opened_at, resolved_at, resolution)
            VALUES ({fleet.app.app_id}, 'client_rejected', 'x', to_timestamp(7), to_timestamp(9), 'recovered');
        INSERT INTO tokenfleet.provider_incidents (app_id, kind, code) VALUES
            ({fleet.app.app_id}, 'client_rejected', 'x')
        """,
    )
    books = Books.read(fleet.engine)
    assert [(told.subject, told.event) for told in books.told["sandbox"]] == [
        ("shop", "flipped"),
        ("shop", "back"),
    ]
    assert books.incidents_told == {"sandbox": {"opened": 1}}
    first, second = books.incidents["sandbox"]
    assert (first.kind, first.opened, first.resolved) == ("client_rejected", 7.0, 9.0)
    assert second.resolved is None
