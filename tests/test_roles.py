"""deploy/postgres/roles.sql: the fleet works as the application's role, which can do nothing to the audit log."""

from __future__ import annotations

import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final

import pytest
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DBAPIError

from cli.bootstrap import upgrade_database
from embedded.binaries import find_postgres
from store import audit, history, privileges, settlement, unsealing_spikes
from store.engine import database_now, make_engine
from store.keys import Vault
from store.unsealings import Tally
from tests.cli.conftest import Shell
from tests.support.builders import ACTOR, answer, begin_attempt, make_account, make_app, now
from tokenfleet.settings import Settings
from tokenfleet_client.envelope import access_token_binding
from tokenfleet_client.unsealings import Purpose

FILE: Final = Path(__file__).resolve().parent.parent / "deploy" / "postgres" / "roles.sql"
PSQL: Final = find_postgres().bin_dir / "psql"
REFUSED: Final = (
    "UPDATE tokenfleet.audit_log SET reason = 'x'",
    "DELETE FROM tokenfleet.audit_log",
    "TRUNCATE tokenfleet.audit_log",
    "DROP TABLE tokenfleet.audit_log",
    "DROP SCHEMA tokenfleet CASCADE",
    "ALTER TABLE tokenfleet.audit_log DISABLE TRIGGER ALL",
    "ALTER TABLE tokenfleet.audit_log RENAME TO old",
    (
        "CREATE OR REPLACE FUNCTION tokenfleet.audit_log_refuse() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RETURN NULL; END $$"
    ),
    (
        "CREATE TRIGGER swallow BEFORE INSERT ON tokenfleet.audit_log FOR EACH ROW "
        "EXECUTE FUNCTION suppress_redundant_updates_trigger()"
    ),
    "CREATE RULE swallow AS ON INSERT TO tokenfleet.audit_log DO INSTEAD NOTHING",
    "UPDATE tokenfleet.alembic_version SET version_num = '0001'",
    "UPDATE tokenfleet.unsealings SET opened = 1",
    "DELETE FROM tokenfleet.unsealings",
    "TRUNCATE tokenfleet.unsealings",
    "ALTER TABLE tokenfleet.unsealings DISABLE TRIGGER ALL",
    (
        "CREATE OR REPLACE FUNCTION tokenfleet.unsealings_guard() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RETURN NEW; END $$"
    ),
    (
        "CREATE OR REPLACE FUNCTION tokenfleet_v1.report_unsealings(caller text, purpose text, opened integer) "
        "RETURNS void LANGUAGE sql AS ''"
    ),
    "SELECT FROM tokenfleet.audit_log FOR UPDATE",
    "ALTER TABLE tokenfleet.audit_log OWNER TO CURRENT_USER",
    "ALTER TABLE tokenfleet.audit_log SET SCHEMA tokenfleet_v1",
    "ALTER TABLE tokenfleet.audit_log ENABLE ROW LEVEL SECURITY",
    "CREATE POLICY nothing ON tokenfleet.audit_log USING (false)",
    "CREATE TABLE tokenfleet.heir () INHERITS (tokenfleet.audit_log)",
    "ALTER FUNCTION tokenfleet.audit_log_stamp() SET search_path = tokenfleet",
    "DROP FUNCTION tokenfleet.audit_log_turn() CASCADE",
    "DROP TRIGGER audit_log_append_only ON tokenfleet.audit_log",
    "SET session_replication_role = replica",
    "SELECT setval('tokenfleet.audit_log_id_seq', 1)",
    "SELECT nextval('tokenfleet.audit_log_id_seq')",
    "LOCK TABLE tokenfleet.audit_log IN ACCESS EXCLUSIVE MODE",
    # What Postgres fills in is nobody's to choose.
    (
        "INSERT INTO tokenfleet.audit_log (id, actor, host, action, target) OVERRIDING SYSTEM VALUE "
        "VALUES (9000000000000000000, 'a', 'h', 'x', 't')"
    ),
    (
        "INSERT INTO tokenfleet.audit_log (at, actor, host, action, target) "
        "VALUES (now() - interval '1 year', 'a', 'h', 'x', 't')"
    ),
    (
        "INSERT INTO tokenfleet.audit_log (database_role, actor, host, action, target) "
        "VALUES ('somebody', 'a', 'h', 'x', 't')"
    ),
    (
        "INSERT INTO tokenfleet.audit_log (actor, host, action, target) VALUES ('a', 'h', 'x', 't') "
        "ON CONFLICT (id) DO UPDATE SET reason = 'x'"
    ),
)


@dataclass(frozen=True, slots=True)
class Roles:
    """URLs of one database, by the role that connects."""

    superuser: str
    owner: str
    app: str


@pytest.fixture
def roles(settings: Settings) -> Iterator[Roles]:
    """The roles that the file makes, and the one that runs it."""
    mark = uuid.uuid4().hex[:8]
    owner, app = f"owner_{mark}", f"app_{mark}"
    url = make_url(settings.database_url)
    admin = create_engine(url, isolation_level="AUTOCOMMIT")
    for _ in range(2):  # It can be repeated.
        run_file(url, owner, app)
    with admin.connect() as connection:
        for role in (owner, app):
            connection.execute(text(f"ALTER ROLE {role} PASSWORD 'word'"))
    as_owner, as_app = (url.set(username=role, password="word") for role in (owner, app))
    yield Roles(*(each.render_as_string(hide_password=False) for each in (url, as_owner, as_app)))
    with admin.connect() as connection:
        for role in (app, owner):
            connection.execute(text(f"REASSIGN OWNED BY {role} TO CURRENT_USER"))
            connection.execute(text(f"DROP OWNED BY {role}"))
        connection.execute(text(f"DROP ROLE {owner}"))
        connection.execute(text(f"DROP ROLE {app}"))
    admin.dispose()


def run_file(url: URL, owner: str, app: str) -> None:
    """Run the file as documented."""
    plain = url.set(drivername="postgresql").render_as_string(hide_password=False)
    words = [str(PSQL), plain, "-qX", "-v", f"owner={owner}", "-v", f"app={app}", "-f", str(FILE)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture
def as_app(roles: Roles) -> Iterator[Engine]:
    """An engine that connects as the application's role."""
    engine = make_engine(roles.app, application_name="test")
    yield engine
    engine.dispose()


@pytest.fixture
def as_owner(roles: Roles) -> Iterator[Engine]:
    """An engine that connects as the role that migrates."""
    engine = make_engine(roles.owner, application_name="test")
    yield engine
    engine.dispose()


def test_the_fleet_works_as_the_application_and_cannot_touch_the_audit_log(
    as_app: Engine, vault: Vault
) -> None:
    app = make_app(as_app, vault)
    account = make_account(as_app, vault, app)
    attempt = begin_attempt(as_app, app, account)
    with as_app.begin() as connection:
        refreshed = answer(vault, account, epoch=attempt.epoch, generation=1)
        settlement.save_refreshed(connection, [refreshed], actor=ACTOR)
        entry = audit.Entry(audit.account_target(account))
        by = audit.Operator("operator:ada", "host")
        audit.record(connection, by, audit.Action.ACCOUNTS_PAUSE, [entry], reason=None)
    tally = Tally(vault, "worker-1")
    for _ in range(2):
        vault.access.open(refreshed.access_token, access_token_binding(account, 2), Purpose.PROBE)
        with as_app.begin() as connection:
            tally.add(connection, tally.collect())
    with as_app.begin() as connection:
        assert unsealing_spikes.look(connection) is not None
        assert unsealing_spikes.prune(connection, retention=timedelta(days=30)) == 0
    with as_app.begin() as connection:
        today = history.utc_date(database_now(connection))
        # What the scheduler does to the history every day.
        done = history.maintain_partitions(connection, today=today, retention_days=30)
        done += history.maintain_partitions(connection, today=today + timedelta(days=3), retention_days=1)
    assert any(each.startswith("created") for each in done)
    assert any(each.startswith("dropped") for each in done)

    for statement in REFUSED:
        with as_app.connect() as connection, pytest.raises(DBAPIError) as refused:
            connection.execute(text(statement))
        assert getattr(refused.value.orig, "sqlstate", None) == "42501", statement
    with as_app.connect() as connection:
        assert len(audit.read_newest(connection, audit.AuditFilter(), limit=9)) == 1
        assert not audit.can_be_lifted(connection)


def test_a_function_of_the_application_cannot_tell_the_log_another_time(as_app: Engine) -> None:
    """The application may create functions where its sessions look for them first: never the log's triggers."""
    with as_app.begin() as connection:
        for name, kind, lie in (
            ("clock_timestamp", "timestamptz", "'2020-01-01Z'"),
            ("inet_client_addr", "inet", "'192.0.2.1'"),
        ):
            connection.execute(
                text(
                    f"CREATE FUNCTION tokenfleet.{name}() RETURNS {kind} LANGUAGE sql AS $$ SELECT {kind} {lie} $$"
                )
            )
        connection.execute(text("SET LOCAL search_path = tokenfleet, pg_catalog"))
        by = audit.Operator("operator:ada", "host")
        audit.record(connection, by, audit.Action.ACCOUNTS_PAUSE, [audit.Entry("account/1")], reason=None)
        [row] = audit.read_newest(connection, audit.AuditFilter(), limit=9)
    assert row.at > now() - timedelta(minutes=5)
    assert row.client_address != "192.0.2.1"


def test_what_the_owner_makes_later_the_application_may_use_without_running_the_file_again(
    roles: Roles, as_owner: Engine, as_app: Engine, environ: dict[str, str]
) -> None:
    # 'db upgrade' as the owner: the schema is there, partitions of the history are not.
    upgrade_database(Settings.from_environ(environ | {"TOKENFLEET_DATABASE_URL": roles.owner}))
    # What a migration of a later release does.
    with as_owner.begin() as connection:
        connection.execute(
            text("CREATE TABLE tokenfleet.later (id bigint GENERATED ALWAYS AS IDENTITY, word text)")
        )
        connection.execute(text("CREATE VIEW tokenfleet_v1.later AS SELECT word FROM tokenfleet.later"))
    with as_app.begin() as connection:
        connection.execute(text("INSERT INTO tokenfleet.later (word) VALUES ('well')"))
        connection.execute(text("UPDATE tokenfleet.later SET word = 'better'"))
        words = connection.execute(text("SELECT word FROM tokenfleet_v1.later")).scalars().all()
        assert words == ["better"]
        today = history.utc_date(database_now(connection))
        # Partitions that the owner has made are dropped by the scheduler in their time.
        done = history.maintain_partitions(connection, today=today + timedelta(days=3), retention_days=1)
        assert len([each for each in done if each.startswith("dropped")]) == 2
        assert privileges.problem(connection) is None


def test_what_somebody_else_has_made_is_told_until_the_file_is_run_again(
    roles: Roles, environ: dict[str, str]
) -> None:
    tokenfleet = Shell(environ | {"TOKENFLEET_DATABASE_URL": roles.app})
    url = make_url(roles.superuser)
    superuser = create_engine(url)
    with superuser.begin() as connection:
        connection.execute(text("CREATE TABLE tokenfleet.stray (word text)"))
    superuser.dispose()
    checked = tokenfleet("db", "check")
    assert (checked.exit_code, "tokenfleet.stray" in checked.stderr) == (1, True)
    assert "roles.sql" in checked.stderr
    told = tokenfleet("doctor", "--json").document["checks"]
    assert [each["verdict"] for each in told if each["name"] == "rights"] == ["fatal"]
    run_file(url, str(make_url(roles.owner).username), str(make_url(roles.app).username))
    assert tokenfleet("db", "check").exit_code == 0


def test_a_partition_of_another_role_stays_and_is_told_and_does_not_stop_the_scheduler(
    roles: Roles, as_app: Engine
) -> None:
    with as_app.begin() as connection:
        today = history.utc_date(database_now(connection))
        history.maintain_partitions(connection, today=today, retention_days=30)
    superuser = create_engine(roles.superuser)
    foreign = f"tokenfleet.account_events_{today:%Y%m%d}"
    with superuser.begin() as connection:
        connection.execute(text(f"ALTER TABLE {foreign} OWNER TO CURRENT_USER"))
    superuser.dispose()
    with as_app.begin() as connection:
        told = privileges.problem(connection)
        done = history.maintain_partitions(connection, today=today + timedelta(days=3), retention_days=1)
    assert told is not None
    assert foreign in told
    # What is the application's own is made and dropped all the same.
    assert [each.split()[0] for each in done] == ["created"] * 3 + ["dropped"]


def test_one_role_for_everything_is_told_that_it_could_lift_the_protection(engine: Engine) -> None:
    with engine.connect() as connection:
        assert audit.can_be_lifted(connection)
