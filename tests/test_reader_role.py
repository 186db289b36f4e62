"""deploy/postgres/reader.sql: what a reader's role can do, and everything that it must not.

The catalog is walked, so that a table, view or function of tomorrow is covered the day it comes.
"""

from __future__ import annotations

import subprocess
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from embedded.binaries import find_postgres
from store.keys import Vault
from tests.support.builders import HOUR, column, make_account, make_app
from tokenfleet.jobs import AccountId
from tokenfleet.settings import Settings

FILE: Final = Path(__file__).resolve().parent.parent / "deploy" / "postgres" / "reader.sql"
PSQL: Final = find_postgres().bin_dir / "psql"
NOT_ALLOWED: Final = "42501"

VIEWS: Final = {"tokenfleet_v1.access_tokens", "tokenfleet_v1.access_keys"}
FUNCTIONS: Final = {"request_refresh", "report_unauthorized", "report_unsealings"}
"""The third comes with a migration of its own."""

OURS: Final = "n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'"
GRANTED_RELATIONS: Final = f"""
    SELECT n.nspname || '.' || c.relname, p.privilege
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace,
         unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'REFERENCES', 'TRIGGER']) AS p (privilege)
    WHERE {OURS} AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
      AND (has_table_privilege(:role, c.oid, p.privilege)
           OR (p.privilege IN ('SELECT', 'INSERT', 'UPDATE', 'REFERENCES')
               AND has_any_column_privilege(:role, c.oid, p.privilege)))
"""
GRANTED_FUNCTIONS: Final = f"""
    SELECT n.nspname || '.' || f.proname FROM pg_proc f JOIN pg_namespace n ON n.oid = f.pronamespace
    WHERE {OURS} AND has_function_privilege(:role, f.oid, 'EXECUTE')
      AND has_schema_privilege(:role, n.oid, 'USAGE')
"""
OTHER_GRANTS: Final = f"""
    SELECT n.nspname || ' create' FROM pg_namespace n WHERE has_schema_privilege(:role, n.oid, 'CREATE')
    UNION ALL
    SELECT n.nspname || ' use' FROM pg_namespace n
    WHERE {OURS} AND n.nspname <> 'public' AND has_schema_privilege(:role, n.oid, 'USAGE')
    UNION ALL
    SELECT privilege FROM unnest(ARRAY['CREATE', 'TEMPORARY']) AS p (privilege)
    WHERE has_database_privilege(:role, current_database(), privilege)
    UNION ALL
    SELECT c.relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE {OURS} AND CASE c.relkind WHEN 'S' THEN has_sequence_privilege(:role, c.oid, 'USAGE, SELECT, UPDATE') END
    UNION ALL
    SELECT 'member of ' || g.rolname FROM pg_roles g WHERE g.rolname <> :role AND pg_has_role(:role, g.oid, 'MEMBER')
    UNION ALL
    SELECT 'is more' FROM pg_roles WHERE rolname = :role
      AND (rolsuper OR rolcreaterole OR rolcreatedb OR rolreplication OR rolbypassrls)
"""
REFUSED: Final = (
    "SET ROLE {owner}",
    "SET SESSION AUTHORIZATION {owner}",
    "ALTER ROLE {role} SUPERUSER",
    "GRANT {owner} TO {role}",
    "CREATE ROLE {role}_more",
    "COPY (SELECT 1) TO PROGRAM 'true'",
    "COPY (SELECT 1) TO '/dev/null'",
    "COPY tokenfleet.token_sets TO STDOUT",
    "SELECT pg_read_file('postgresql.conf')",
    "SELECT pg_ls_dir('.')",
    "SELECT lo_create(0)",
    "SELECT lo_creat(-1)",
    "SELECT lo_from_bytea(0, 'x')",
    "SELECT lo_import('/etc/hostname')",
    "SELECT * FROM pg_authid",
    "SELECT * FROM pg_user_mapping",
    "SELECT * FROM pg_statistic",
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{owner}' AND pid <> pg_backend_pid()",
    "SELECT pg_reload_conf()",
    "CREATE TABLE mine (id int)",
    "CREATE TABLE public.mine (id int)",
    "CREATE TEMPORARY TABLE mine (id int)",
    "CREATE FUNCTION pg_temp.mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "CREATE VIEW tokenfleet_v1.mine AS SELECT 1",
    "CREATE SCHEMA mine",
    "CREATE EXTENSION pg_trgm",
    "CREATE PUBLICATION mine FOR ALL TABLES",
    "CREATE EVENT TRIGGER mine ON ddl_command_start EXECUTE FUNCTION tokenfleet.audit_log_refuse()",
    "ALTER SYSTEM SET work_mem = '1GB'",
    "SET session_replication_role = replica",
    "ALTER VIEW tokenfleet_v1.access_tokens SET (security_barrier = false)",
    "DROP FUNCTION tokenfleet_v1.request_refresh(bigint, interval)",
    "CREATE FUNCTION tokenfleet_v1.request_refresh(int) RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "SELECT * FROM tokenfleet.reader_asks(1, interval '1 h', NULL)",
    "SELECT tokenfleet.audit_log_refuse()",
    "SELECT nextval('tokenfleet.accounts_id_seq')",
)


@dataclass(frozen=True, slots=True)
class Accounts:
    """One of each tenant, and one of none."""

    acme: AccountId
    other: AccountId
    nobodys: AccountId


Login = Callable[..., Engine]


@pytest.fixture
def accounts(engine: Engine, vault: Vault) -> Accounts:
    app = make_app(engine, vault)
    return Accounts(
        make_account(engine, vault, app, tenant="acme", external_id="1", due_in=HOUR),
        make_account(
            engine, vault, app, tenant="other", external_id="planted-name", scope="planted", due_in=HOUR
        ),
        make_account(engine, vault, app, external_id="(planted", due_in=HOUR),
    )


@pytest.fixture
def login(settings: Settings) -> Iterator[Login]:
    """Make a reader's role with the file, and log in as it."""
    url = make_url(settings.database_url)
    plain = url.set(drivername="postgresql").render_as_string(hide_password=False)
    admin = create_engine(url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    made: set[str] = set()

    def log_in(role: str, *, tenant: str | None = None, bare: str | None = None) -> Engine:
        made.add(role)
        words = [str(PSQL), plain, "-qX", "-v", f"reader={role}", "-f", str(FILE)]
        words += [] if tenant is None else ["-v", f"tenant={tenant}"]
        for _ in range(0 if bare is not None else 2):  # It can be repeated.
            done = subprocess.run(words, capture_output=True, text=True, check=False)
            assert (done.returncode, done.stderr) == (0, "")
        with admin.connect() as connection:
            if bare is not None:
                connection.execute(text(f"CREATE ROLE {role} LOGIN"))
                connection.execute(text(bare))
            connection.execute(text(f"ALTER ROLE {role} PASSWORD 'reader'"))
        return create_engine(url.set(username=role, password="reader"), poolclass=NullPool)

    yield log_in
    with admin.connect() as connection:
        for role in made:
            connection.execute(text(f"DROP OWNED BY {role}"))
            connection.execute(text(f"DROP ROLE {role}"))


@pytest.fixture
def mark() -> str:
    return uuid.uuid4().hex[:8]


def state_of(reader: Engine, statement: str) -> str | None:
    """Return with which SQLSTATE a statement is refused, None when it is not."""
    with reader.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        try:
            connection.exec_driver_sql(statement)
        except DBAPIError as error:
            return getattr(error.orig, "sqlstate", None)
    return None


def seen(reader: Engine, where: str = "true") -> list[Any]:
    return column(reader, f"SELECT account_id FROM tokenfleet_v1.access_tokens WHERE {where} ORDER BY 1")


def test_a_reader_can_do_what_the_contract_says_and_nothing_else(
    engine: Engine, login: Login, accounts: Accounts, mark: str
) -> None:
    role = f"reader_{mark}"
    reader = login(role)
    barrier = "SELECT reloptions::text FROM pg_class WHERE oid = 'tokenfleet_v1.access_tokens'::regclass"
    assert column(engine, barrier) == ["{security_barrier=true}"]
    assert seen(reader) == [accounts.acme, accounts.other, accounts.nobodys]
    assert column(reader, "SELECT is_primary FROM access_keys WHERE false") == []
    for call in (f"request_refresh({accounts.acme})", f"report_unauthorized({accounts.acme}, 9)"):
        assert column(reader, f"SELECT answer FROM {call}") == ["fresh"]
    assert state_of(reader, "LISTEN tokenfleet_v1_refreshed") is None

    with engine.connect() as connection:
        relations = connection.execute(text(GRANTED_RELATIONS), {"role": role}).all()
        functions = set(connection.execute(text(GRANTED_FUNCTIONS), {"role": role}).scalars())
        others = set(connection.execute(text(OTHER_GRANTS), {"role": role}).scalars())
        tables = connection.execute(
            text(
                "SELECT n.nspname || '.' || c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
                "WHERE n.nspname = 'tokenfleet' AND c.relkind IN ('r', 'p', 'v')"
            )
        ).scalars()
        hidden = [str(each) for each in tables]
    assert {tuple(each) for each in relations} == {(view, "SELECT") for view in VIEWS}
    assert {"tokenfleet_v1.request_refresh", "tokenfleet_v1.report_unauthorized"} <= functions
    assert functions <= {f"tokenfleet_v1.{each}" for each in FUNCTIONS}
    assert others == {"tokenfleet_v1 use"}
    assert {"tokenfleet.token_sets", "tokenfleet.readers", "tokenfleet.reader_standing"} <= set(hidden)
    with reader.connect() as connection:
        for relation in hidden:
            for statement in (f"TABLE {relation}", f"EXPLAIN TABLE {relation}", f"DELETE FROM {relation}"):
                with pytest.raises(DBAPIError) as refused, connection.begin_nested():
                    connection.exec_driver_sql(statement)
                assert getattr(refused.value.orig, "sqlstate", None) == NOT_ALLOWED, statement


def test_no_function_with_its_owners_rights_finds_a_name_where_a_session_may_make_one(
    engine: Engine, login: Login, mark: str
) -> None:
    """Types are looked for in ``pg_temp`` first, unless it is named: a domain's check would run with those rights."""
    settings = column(engine, "SELECT array_to_string(proconfig, ';') FROM pg_proc WHERE prosecdef")
    assert set(settings) == {"search_path=pg_catalog, pg_temp"}

    reader = login(f"reader_{mark}")
    with engine.begin() as connection:
        database = engine.url.database
        connection.exec_driver_sql(f'GRANT TEMPORARY ON DATABASE "{database}" TO reader_{mark}')
    for type_name, call in (
        ("text", "report_unsealings('me', 'read', 1)"),
        ("timestamptz", "request_refresh(1)"),
        ("timestamptz", "report_unauthorized(1, 1)"),
    ):
        with reader.connect() as connection:
            connection.exec_driver_sql(
                f"CREATE DOMAIN pg_temp.{type_name} AS pg_catalog.{type_name} CHECK (length(VALUE::varchar) < 0)"
            )
            connection.exec_driver_sql(f"SELECT * FROM tokenfleet_v1.{call}")


def test_whatever_else_a_reader_tries_is_refused(engine: Engine, login: Login, mark: str) -> None:
    role = f"reader_{mark}"
    reader = login(role)
    assert engine.url.username is not None
    with engine.connect() as somebody:
        somebody.execute(text("SELECT 'planted in a query'"))
        for statement in REFUSED:
            told = state_of(reader, statement.format(role=role, owner=engine.url.username))
            assert told == NOT_ALLOWED, statement
        queries = column(reader, "SELECT query FROM pg_stat_activity WHERE usename <> session_user")
    assert queries
    assert not [query for query in queries if query and "planted" in query]


def test_a_tenants_reader_finds_nothing_of_another_tenants(
    engine: Engine, login: Login, accounts: Accounts, mark: str
) -> None:
    reader = login(f"acme_{mark}", tenant="acme")
    assert seen(reader) == [accounts.acme]
    assert column(reader, "SELECT count(*) FROM access_tokens") == [1]
    for hidden in (accounts.other, accounts.nobodys, 10**9):
        assert seen(reader, f"account_id = {hidden}") == []
        for call in (f"request_refresh({hidden}, '1 year')", f"report_unauthorized({hidden}, 1)"):
            assert column(reader, f"SELECT answer FROM {call}") == []
    assert column(engine, "SELECT count(requested_at) FROM tokenfleet.refresh_schedule") == [0]
    assert column(reader, f"SELECT answer FROM request_refresh({accounts.acme}, '1 year')") == ["requested"]


@pytest.mark.parametrize(
    "oracle",
    [
        "external_id::bigint > 0",
        # On a column of another table than the tenant's: without the barrier it is looked at first.
        "scope::int IS NULL",
        "1 / (CASE WHEN tenant = 'acme' THEN 1 ELSE 0 END) = 1",
        "CAST(external_id AS int) + length(pg_sleep(0)::text) >= 0",
        "encode(access_token, 'escape')::text LIKE '%' AND external_id::int > 0",
    ],
)
def test_no_error_of_a_condition_tells_of_a_row_behind_the_barrier(
    login: Login, accounts: Accounts, mark: str, oracle: str
) -> None:
    assert seen(login(f"acme_{mark}", tenant="acme"), oracle) == [accounts.acme]


def test_nothing_that_a_session_can_set_widens_what_it_sees(
    engine: Engine, login: Login, accounts: Accounts, mark: str
) -> None:
    acme, wide = f"acme_{mark}", f"wide_{mark}"
    login(wide)
    reader = login(acme, tenant="acme")
    with reader.connect() as connection:
        for setting in (
            "role = 'none'",
            "row_security = off",
            "search_path = public",
            "tokenfleet.tenant = 'other'",
        ):
            connection.exec_driver_sql(f"SET {setting}")
        assert len(connection.exec_driver_sql("SELECT FROM tokenfleet_v1.access_tokens").all()) == 1
    # Who is a member of a reader's role is that reader; whoever else may read the view finds nothing in it.
    member = login(f"member_{mark}", bare=f"GRANT {acme} TO member_{mark}")
    assert seen(member) == [accounts.acme]
    stranger = login(
        f"stranger_{mark}",
        bare=f"GRANT USAGE ON SCHEMA tokenfleet_v1 TO stranger_{mark};"
        f"GRANT SELECT ON ALL TABLES IN SCHEMA tokenfleet_v1 TO stranger_{mark}",
    )
    assert seen(stranger) == []
    # The file narrows and never widens; several tenants may be named one after the other.
    assert seen(login(acme)) == [accounts.acme]
    assert seen(login(acme, tenant="other")) == [accounts.acme, accounts.other]
    assert seen(login(wide, tenant="other")) == [accounts.other]
