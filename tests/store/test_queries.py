"""Lists of accounts: complete, narrow, and from an index wherever the page stands."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, event, text

from store import queries, settlement
from store.keys import Vault
from store.queries import AccountFilter, AccountName, Trouble
from tests.support.builders import (
    ACTOR,
    answer,
    begin_attempt,
    make_account,
    make_app,
    make_many_accounts,
    park,
)
from tokenfleet.jobs import AccountId
from tokenfleet_client.contract import AccountStatus


def _ids(connection: Connection, wanted: AccountFilter, after: AccountId | None = None) -> list[AccountId]:
    return [
        account.account_id for account in queries.list_accounts(connection, wanted, after=after, limit=100)
    ]


def test_pages_hold_every_account_once_though_accounts_come_meanwhile(engine: Engine, vault: Vault) -> None:
    app = make_app(engine, vault)
    made = [make_account(engine, vault, app) for _ in range(5)]
    seen: list[AccountId] = []
    after: AccountId | None = None
    while True:
        with engine.connect() as connection:
            page = queries.list_accounts(connection, AccountFilter(), after=after, limit=2)
        if not page:
            break
        seen += [account.account_id for account in page]
        after = page[-1].account_id
        if len(made) < 7:
            made.append(make_account(engine, vault, app))
    assert seen == sorted(made)


def test_each_filter_narrows_the_list(engine: Engine, vault: Vault) -> None:
    acme = make_app(engine, vault, provider="acme", name="default")
    beta = make_app(engine, vault, provider="beta", environment="staging", name="default")
    plain = make_account(engine, vault, acme)
    tenants = make_account(engine, vault, acme, tenant="t-1")
    gone = make_account(engine, vault, beta, status=AccountStatus.NEEDS_REAUTH)
    with engine.connect() as connection:
        assert _ids(connection, AccountFilter()) == [plain, tenants, gone]
        assert _ids(connection, AccountFilter(provider="acme")) == [plain, tenants]
        assert _ids(connection, AccountFilter(environment="staging")) == [gone]
        assert _ids(connection, AccountFilter(status=AccountStatus.NEEDS_REAUTH)) == [gone]
        assert _ids(connection, AccountFilter(tenant="t-1")) == [tenants]
        assert _ids(connection, AccountFilter(provider="acme", status=AccountStatus.NEEDS_REAUTH)) == []
        assert _ids(connection, AccountFilter(), after=plain) == [tenants, gone]


def test_accounts_are_listed_by_what_troubles_them(engine: Engine, vault: Vault) -> None:
    app = make_app(engine, vault)
    ids = {trouble: make_account(engine, vault, app) for trouble in Trouble}
    make_account(engine, vault, app)
    with engine.begin() as connection:
        for trouble, doubts, quarantined in (
            ("failing", 0, False),
            ("suspect", 1, False),
            ("quarantined", 3, True),
        ):
            connection.execute(
                text(
                    "UPDATE tokenfleet.refresh_schedule SET failing_since = now(), doubts = :doubts, "
                    "quarantined = :quarantined WHERE account_id = :id"
                ),
                {"doubts": doubts, "quarantined": quarantined, "id": ids[Trouble(trouble)]},
            )
        park(connection, app, ids[Trouble.PARKED])
        listed = {
            trouble: [
                each.account_id
                for each in queries.list_accounts(
                    connection, AccountFilter(trouble=trouble), after=None, limit=9
                )
            ]
            for trouble in Trouble
        }
    assert listed.pop(Trouble.FAILING) == [
        ids[Trouble.FAILING],
        ids[Trouble.SUSPECT],
        ids[Trouble.QUARANTINED],
    ]
    assert listed == {trouble: [ids[trouble]] for trouble in listed}


def test_a_line_says_what_troubles_an_account(engine: Engine, vault: Vault) -> None:
    account_id = make_account(engine, vault, make_app(engine, vault, name="main"))
    with engine.begin() as connection:
        connection.execute(
            text(
                "UPDATE tokenfleet.refresh_schedule SET failing_since = now(), last_error = 'http_503', "
                "quarantined = true"
            )
        )
        [account] = queries.list_accounts(connection, AccountFilter(), after=None, limit=10)
    assert account.account_id == account_id
    assert (account.app, account.last_error, account.quarantined) == ("main", "http_503", True)
    assert account.failing_since is not None


def test_names_are_found_in_their_environment_only(engine: Engine, vault: Vault) -> None:
    app = make_app(engine, vault, environment="staging")
    account_id = make_account(engine, vault, app, external_id="with/slash")
    name = AccountName("acme", "staging", "with/slash")
    with engine.connect() as connection:
        found = queries.resolve(connection, [name, AccountName("acme", "production", "with/slash")])
    assert found == {name: account_id}


def test_progress_moves_when_new_tokens_are_in(engine: Engine, vault: Vault) -> None:
    app = make_app(engine, vault)
    account_id = make_account(engine, vault, app)
    with engine.connect() as connection:
        before = queries.progress(connection, [account_id])[account_id]
    attempt = begin_attempt(engine, app, account_id)
    with engine.begin() as connection:
        refreshed = answer(vault, account_id, epoch=attempt.epoch, generation=attempt.generation)
        settlement.save_refreshed(connection, [refreshed], actor=ACTOR)
        after = queries.progress(connection, [account_id])[account_id]
    assert (before.generation, after.generation) == (1, 2)


def test_history_is_newest_first_and_no_longer_than_asked(engine: Engine, vault: Vault) -> None:
    app = make_app(engine, vault)
    account_id = make_account(engine, vault, app)
    with engine.begin() as connection:
        for epoch in (1, 2, 3):
            connection.execute(
                text(
                    "INSERT INTO tokenfleet.account_events (account_id, kind, epoch, actor) "
                    "VALUES (:id, 'refresh.succeeded', :epoch, 'test')"
                ),
                {"id": account_id, "epoch": epoch},
            )
        rows = queries.history_of(connection, account_id, limit=2)
    assert [row.epoch for row in rows] == [3, 2]


@contextmanager
def _explained(engine: Engine) -> Iterator[list[str]]:
    """Collect the plan of every SELECT that is executed in the block."""
    plans: list[str] = []

    def before(_: Connection, cursor: Any, statement: str, parameters: Any, *__: Any) -> None:
        if statement.startswith("SELECT"):
            cursor.execute("EXPLAIN " + statement, parameters)
            plans.append("\n".join(row[0] for row in cursor.fetchall()))

    event.listen(engine, "before_cursor_execute", before)
    yield plans
    event.remove(engine, "before_cursor_execute", before)


@pytest.mark.parametrize(
    ("wanted", "after", "index"),
    [
        pytest.param(AccountFilter(), AccountId(10_000), "pk_accounts", id="middle"),
        pytest.param(
            AccountFilter(status=AccountStatus.NEEDS_REAUTH), None, "ix_accounts_troubled", id="troubled"
        ),
        pytest.param(AccountFilter(tenant="t-1"), None, "ix_accounts_tenant", id="tenant"),
        pytest.param(
            AccountFilter(trouble=Trouble.SUSPECT), None, "ix_refresh_schedule_failing", id="suspects"
        ),
        pytest.param(
            AccountFilter(trouble=Trouble.PARKED), None, "ix_refresh_schedule_incident", id="parked"
        ),
    ],
)
def test_a_page_comes_from_an_index_and_reads_no_table_whole(
    engine: Engine, vault: Vault, wanted: AccountFilter, after: AccountId | None, index: str
) -> None:
    app = make_app(engine, vault)
    make_account(engine, vault, app, status=AccountStatus.NEEDS_REAUTH, tenant="t-1")
    make_many_accounts(engine, app, 20_000, due_from=timedelta(minutes=1), due_to=timedelta(hours=1))
    with _explained(engine) as plans, engine.connect() as connection:
        queries.list_accounts(connection, wanted, after=after, limit=50)
    [plan] = [plan for plan in plans if "accounts" in plan]
    assert index in plan
    for table in ("accounts", "token_sets", "refresh_schedule"):
        assert f"Seq Scan on {table}" not in plan
