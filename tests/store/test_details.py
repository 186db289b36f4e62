"""One account whole, without its tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from datetime import timedelta

from sqlalchemy import Engine, text

from store import apps
from store.details import details
from store.keys import Vault
from tests.support.builders import claim, make_account, make_app
from tokenfleet.jobs import AccountId
from tokenfleet_client.contract import AccountStatus


def _leaves(value: object) -> Iterator[object]:
    if is_dataclass(value):
        for field in fields(value):
            yield from _leaves(getattr(value, field.name))
    else:
        yield value


def test_an_account_is_shown_with_its_facts_and_never_with_a_sealed_value(
    engine: Engine, vault: Vault
) -> None:
    app = make_app(engine, vault, name="main")
    account_id = make_account(
        engine, vault, app, tenant="t-1", variables={"region": "eu"}, metadata={"plan": 3}, scope="read"
    )
    with engine.connect() as connection:
        account = details(connection, [account_id])[account_id]
    assert account.status is AccountStatus.ACTIVE
    assert (account.tenant, account.variables, account.metadata) == ("t-1", {"region": "eu"}, {"plan": 3})
    assert account.app.name == "main"
    assert account.token is not None
    assert (account.token.generation, account.token.scope) == (1, "read")
    assert account.token.has_access_token
    assert account.token.has_refresh_token
    assert not any(isinstance(leaf, bytes | memoryview) for leaf in _leaves(account))


def test_a_claim_and_a_hold_are_told(engine: Engine, vault: Vault) -> None:
    app = make_app(engine, vault)
    account_id = make_account(engine, vault, app)
    claim(engine, app)
    with engine.begin() as connection:
        apps.hold(connection, app, "invalid_client", generation=1, probe_after=timedelta(seconds=30))
        account = details(connection, [account_id])[account_id]
    assert account.schedule is not None
    assert account.schedule.claimed_until is not None
    assert account.schedule.claimed_until > account.database_now
    assert (account.schedule.claim_epoch, account.schedule.started_epoch) == (1, 0)
    assert account.app.held_code == "invalid_client"


def test_an_account_without_tokens_and_schedule_is_shown_all_the_same(engine: Engine, vault: Vault) -> None:
    account_id = make_account(engine, vault, make_app(engine, vault))
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM tokenfleet.token_sets"))
        connection.execute(text("DELETE FROM tokenfleet.refresh_schedule"))
        account = details(connection, [account_id])[account_id]
    assert account.token is None
    assert account.schedule is None


def test_accounts_that_do_not_exist_are_left_out(engine: Engine) -> None:
    with engine.connect() as connection:
        assert details(connection, [AccountId(1), AccountId(2**63 - 1)]) == {}
