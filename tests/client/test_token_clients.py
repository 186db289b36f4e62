"""Both clients on a real Postgres, and on what may stand in front of one: each test with threads and with tasks."""

from __future__ import annotations

import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.engine import make_url

from embedded.binaries import find_postgres
from store import data_keys
from store import keys as vault_keys
from store.keys import Vault
from tests.support.builders import column, make_account, make_app
from tests.support.fleet import eventually
from tests.support.pooler import Pooler
from tests.support.proxy import Proxy
from tests.support.readers import Reading, libpq, obliging, requested
from tokenfleet.settings import Settings
from tokenfleet_client import (
    Account,
    ContractError,
    DatabaseUnavailable,
    NeedsReauth,
    StaleToken,
    UnknownAccount,
    UnknownKey,
)
from tokenfleet_client.contract import AccountStatus
from tokenfleet_client.envelope import Ring

SHORT = timedelta(seconds=5)
MakeReader = Callable[..., Reading]


def set_aside(engine: Engine, statement: str, **parameters: Any) -> None:
    with engine.begin() as connection:
        connection.execute(text(statement), parameters)


def test_a_fresh_token_is_read_with_all_that_a_call_needs(
    engine: Engine, vault: Vault, readable: str, make_reader: MakeReader
) -> None:
    app = make_app(engine, vault)
    account = make_account(
        engine,
        vault,
        app,
        external_id="c-1",
        tenant="t-1",
        scope="a b",
        variables={"instance_url": "https://x"},
    )
    token = make_reader(readable).get_token(Account("acme", "c-1"))

    assert token.value.reveal() == "access-1"
    assert (token.account_id, token.generation, token.tenant, token.scope) == (account, 1, "t-1", "a b")
    assert token.variables == {"instance_url": "https://x"}
    assert token.expires_at is not None
    assert token.expires_at.utcoffset() == timedelta(0)
    assert "access-1" not in repr(token)


def test_an_expired_token_is_asked_for_and_the_new_generation_awaited(
    engine: Engine, vault: Vault, readable: str, make_reader: MakeReader
) -> None:
    account = make_account(engine, vault, make_app(engine, vault), expires_in=timedelta(seconds=-1))
    reader = make_reader(readable)

    with obliging(engine, vault) as renewed:
        assert reader.get_token(account).value.reveal() == "access-2"
    assert renewed == [account]


def test_a_hundred_callers_make_one_question_and_all_are_served(
    engine: Engine, vault: Vault, readable: str, make_reader: MakeReader
) -> None:
    account = make_account(engine, vault, make_app(engine, vault), expires_in=SHORT)
    reader = make_reader(readable)

    with obliging(engine, vault) as renewed:
        served = reader.get_tokens([account] * 100)
    assert {token.value.reveal() if hasattr(token, "value") else token for token in served} == {"access-2"}
    assert renewed == [account]
    reader.close()
    with engine.connect() as connection:
        told = connection.execute(text("SELECT caller, purpose, opened FROM tokenfleet.unsealings")).all()
    assert [tuple(each) for each in told] == [("billing", "read", 1)]


def test_callers_of_many_accounts_are_served_over_four_connections(
    engine: Engine, vault: Vault, readable: str, make_reader: MakeReader
) -> None:
    app = make_app(engine, vault)
    accounts = [make_account(engine, vault, app) for _ in range(20)]
    reader = make_reader(readable)

    served = reader.get_tokens(accounts * 2)

    assert [token.account_id for token in served if hasattr(token, "account_id")] == accounts * 2
    with engine.connect() as connection:
        clients = connection.execute(
            text("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'tokenfleet-client'")
        ).scalar_one()
    assert 1 <= clients <= 4


def test_refusals_have_their_kinds(
    engine: Engine, vault: Vault, readable: str, make_reader: MakeReader
) -> None:
    app = make_app(engine, vault)
    ended = make_account(engine, vault, app, status=AccountStatus.NEEDS_REAUTH)
    expired = make_account(engine, vault, app, expires_in=timedelta(seconds=-1))
    reader = make_reader(readable)

    with pytest.raises(NeedsReauth):
        reader.get_token(ended)
    with pytest.raises(UnknownAccount):
        reader.get_token(Account("acme", "nobody"))
    began = time.monotonic()
    with pytest.raises(StaleToken):
        reader.get_token(expired, timeout=timedelta(seconds=0.2))
    assert time.monotonic() - began < 5


def test_a_reported_token_is_replaced_and_gone_from_memory(
    engine: Engine, vault: Vault, readable: str, make_reader: MakeReader
) -> None:
    account = make_account(engine, vault, make_app(engine, vault))
    reader = make_reader(readable)
    token = reader.get_token(account)

    with obliging(engine, vault):
        newer = reader.report_unauthorized(token)
    assert (newer.generation, newer.value.reveal()) == (2, "access-2")
    assert reader.report_unauthorized(token) == newer, "who is late gets what is there"
    assert requested(engine) == []
    assert reader.get_token(account) == newer


def test_who_waits_hears_of_a_refresh(
    engine: Engine, vault: Vault, readable: str, make_reader: MakeReader
) -> None:
    account = make_account(engine, vault, make_app(engine, vault), expires_in=SHORT)
    reader = make_reader(readable)

    with obliging(engine, vault):
        reader.get_token(account)
    assert reader.hears is True


def test_behind_a_pooler_nobody_listens_and_everybody_is_served(
    engine: Engine, vault: Vault, database_url: str, readable: str, make_reader: MakeReader
) -> None:
    app = make_app(engine, vault)
    fresh = make_account(engine, vault, app)
    expired = [make_account(engine, vault, app, expires_in=SHORT) for _ in range(5)]
    with Pooler(readable) as pooler:
        reader = make_reader(pooler.url(database_url))

        assert reader.get_token(fresh).generation == 1
        with obliging(engine, vault):
            served = reader.get_tokens(expired)
        assert [getattr(token, "generation", token) for token in served] == [2] * 5
        eventually(lambda: reader.hears is None, what="found out that listening is of no use")
        assert [token.account_id for token in reader.current_tokens()] == [fresh, *expired]
        assert pooler.unsupported == []
        reader.close()


def test_a_database_that_restarts_is_not_noticed_by_who_holds_a_token_and_waited_for_by_who_does_not(
    engine: Engine, vault: Vault, database_url: str, readable: str, make_reader: MakeReader
) -> None:
    app = make_app(engine, vault)
    held, other = make_account(engine, vault, app), make_account(engine, vault, app)
    with Proxy.before(libpq(database_url)) as proxy:
        reader = make_reader(libpq(proxy.url(database_url)))
        token = reader.get_token(held)

        proxy.refuse()
        assert reader.get_token(held) == token
        with pytest.raises(DatabaseUnavailable):
            reader.get_token(other, timeout=timedelta(seconds=0.3))
        proxy.heal()
        assert reader.get_token(other).generation == 1


def test_a_connection_that_was_cut_while_idle_is_replaced(
    engine: Engine, vault: Vault, readable: str, make_reader: MakeReader
) -> None:
    app = make_app(engine, vault)
    first, second = make_account(engine, vault, app), make_account(engine, vault, app)
    reader = make_reader(readable)
    reader.get_token(first)
    set_aside(
        engine,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'tokenfleet-client'",
    )

    assert reader.get_token(second).generation == 1


def test_a_database_that_never_answers_is_given_up_in_time_and_a_valid_token_served_meanwhile(
    engine: Engine, vault: Vault, database_url: str, readable: str, make_reader: MakeReader
) -> None:
    app = make_app(engine, vault)
    held = make_account(engine, vault, app, expires_in=timedelta(minutes=2))
    other = make_account(engine, vault, app)
    with Proxy.before(libpq(database_url)) as proxy:
        reader = make_reader(libpq(proxy.url(database_url)))
        token = reader.get_token(held)

        proxy.stall()
        began = time.monotonic()
        with pytest.raises(DatabaseUnavailable, match="time"):
            reader.get_token(other, timeout=timedelta(seconds=0.5))
        # More than it lives, so the database is asked for another one; it has what it has.
        assert reader.get_token(held, timedelta(minutes=5)) == token
        assert time.monotonic() - began < 20
        proxy.heal()


def test_keys_that_rotate_under_a_reader_are_found(
    engine: Engine, vault: Vault, settings: Settings, readable: str, make_reader: MakeReader
) -> None:
    app = make_app(engine, vault)
    account = make_account(engine, vault, app)
    reader = make_reader(readable)
    reader.get_token(account)
    key_id = data_keys.announce(engine, settings.access_ring)
    with engine.begin() as connection:
        data_keys.promote(connection, Ring.ACCESS, key_id)
        vault_keys.reload(connection, settings, vault)
    assert vault.access.primary_id == key_id
    sealed_anew = make_account(engine, vault, app)

    assert reader.get_token(sealed_anew).value.reveal() == "access-1"


def test_a_reader_without_the_right_key_says_so(
    engine: Engine, vault: Vault, readable: str, make_reader: MakeReader
) -> None:
    account = make_account(engine, vault, make_app(engine, vault))
    set_aside(engine, "UPDATE tokenfleet.token_sets SET access_token = overlay(access_token placing :id from 2)",
              id=bytes([0, 0, 0, 99]))  # fmt: skip

    with pytest.raises(UnknownKey, match="99"):
        make_reader(readable).get_token(account)


@pytest.fixture
def tenants_reader(engine: Engine, database_url: str) -> Iterator[str]:
    """A connection string of a role that ``deploy/postgres/reader.sql`` made for the tenant ``t-1``."""
    role = f"reader_{uuid.uuid4().hex[:8]}"
    script = Path(__file__).resolve().parent.parent.parent / "deploy" / "postgres" / "reader.sql"
    words = [libpq(database_url), "-qX", "-v", f"reader={role}", "-v", "tenant=t-1", "-f", str(script)]
    subprocess.run([str(find_postgres().bin_dir / "psql"), *words], check=True)
    set_aside(engine, f"ALTER ROLE {role} PASSWORD 'reader'")
    url = make_url(libpq(database_url)).set(username=role, password="reader")
    yield url.render_as_string(hide_password=False)
    set_aside(engine, f"DROP OWNED BY {role}")
    set_aside(engine, f"DROP ROLE {role}")


def test_a_tenants_reader_reads_asks_reports_and_tells_with_the_roles_grants(
    engine: Engine, vault: Vault, tenants_reader: str, make_reader: MakeReader
) -> None:
    app = make_app(engine, vault)
    expired = make_account(engine, vault, app, tenant="t-1", expires_in=SHORT)
    foreign = make_account(engine, vault, app, tenant="t-2", external_id="foreign")
    reader = make_reader(tenants_reader)

    with obliging(engine, vault):
        token = reader.get_token(expired)
        assert reader.report_unauthorized(token).generation == 3
    assert reader.hears is True
    assert [token.account_id for token in reader.current_tokens()] == [expired]
    for other in (foreign, Account("acme", "foreign")):
        with pytest.raises(UnknownAccount):
            reader.get_token(other)
    reader.close()
    with engine.connect() as connection:
        assert connection.execute(text("SELECT sum(opened) FROM tokenfleet.unsealings")).scalar_one() == 3


def test_current_tokens_come_page_by_page_and_only_those_that_can_be_used(
    engine: Engine,
    vault: Vault,
    readable: str,
    make_reader: MakeReader,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tokenfleet_client.reading.PAGE", 2)
    acme, other = make_app(engine, vault), make_app(engine, vault, provider="other")
    sandbox = make_app(engine, vault, environment="sandbox")
    mine = [make_account(engine, vault, acme, tenant="t-1") for _ in range(5)]
    make_account(engine, vault, acme, tenant="t-2")
    make_account(engine, vault, acme, tenant="t-1", expires_in=timedelta(seconds=-1))
    make_account(engine, vault, acme, tenant="t-1", status=AccountStatus.PAUSED)
    elsewhere = make_account(engine, vault, other, tenant="t-1")
    tried = make_account(engine, vault, sandbox, tenant="t-1")
    reader = make_reader(readable)

    def ids(**filters: str | None) -> list[int]:
        return [token.account_id for token in reader.current_tokens(**filters)]

    assert ids(tenant="t-1") == [*mine, elsewhere]
    assert ids(tenant="t-1", provider="acme") == mine
    assert ids(tenant="t-1", environment="sandbox") == [tried]
    assert ids(tenant="t-1", environment=None) == [*mine, elsewhere, tried]
    assert ids(tenant="nobody") == []
    assert requested(engine) == []


def test_a_database_that_cannot_count_unsealings_is_read_all_the_same(
    engine: Engine, vault: Vault, readable: str, make_reader: MakeReader
) -> None:
    account = make_account(engine, vault, make_app(engine, vault))
    set_aside(engine, "DROP FUNCTION tokenfleet_v1.report_unsealings(text, text, integer)")
    reader = make_reader(readable)

    assert reader.get_token(account).generation == 1
    reader.close()


def test_a_database_without_the_contract_is_an_operators_matter(
    engine: Engine, readable: str, make_reader: MakeReader
) -> None:
    set_aside(engine, "DROP VIEW tokenfleet_v1.access_tokens")

    with pytest.raises(ContractError, match="operator"):
        make_reader(readable).get_token(1)


def test_a_closed_reader_asks_nothing_more(
    engine: Engine, vault: Vault, readable: str, make_reader: MakeReader
) -> None:
    account = make_account(engine, vault, make_app(engine, vault))
    reader = make_reader(readable)
    reader.get_token(account)
    reader.close()
    still_open = (
        "SELECT pid FROM pg_stat_activity "
        "WHERE application_name = 'tokenfleet-client' AND datname = current_database()"
    )
    eventually(lambda: column(engine, still_open) == [], what="every connection of the reader is closed")


@pytest.mark.parametrize("database", ["nonsense", "postgresql+psycopg://u:hidden@h/d", "host=h pass word"])
def test_what_is_no_connection_string_is_told_without_being_repeated(
    database: str, make_reader: MakeReader
) -> None:
    with pytest.raises(ValueError, match="database=") as refusal:
        make_reader(database)
    assert "hidden" not in str(refusal.value)
