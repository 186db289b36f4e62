"""deploy/postgres/roles.sql: the fleet works as the application's role, which can do nothing to the audit log."""

from __future__ import annotations

import subprocess
import uuid
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Final

import pytest
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError

from embedded.binaries import find_postgres
from store import audit, history, settlement, unsealing_spikes
from store.engine import database_now, make_engine
from store.keys import Vault
from store.unsealings import Tally
from tests.support.builders import ACTOR, answer, begin_attempt, make_account, make_app
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
)


@pytest.fixture
def as_app(settings: Settings) -> Iterator[Engine]:
    """An engine that connects as the application's role, made by the file."""
    mark = uuid.uuid4().hex[:8]
    owner, app = f"owner_{mark}", f"app_{mark}"
    url = make_url(settings.database_url)
    admin = create_engine(url, isolation_level="AUTOCOMMIT")
    plain = url.set(drivername="postgresql").render_as_string(hide_password=False)
    for _ in range(2):  # It can be repeated.
        words = [str(PSQL), plain, "-qX", "-v", f"owner={owner}", "-v", f"app={app}", "-f", str(FILE)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
    with admin.connect() as connection:
        connection.execute(text(f"ALTER ROLE {app} PASSWORD 'app'"))
    engine = make_engine(
        url.set(username=app, password="app").render_as_string(hide_password=False), application_name="test"
    )
    yield engine
    engine.dispose()
    with admin.connect() as connection:
        for role in (app, owner):
            connection.execute(text(f"REASSIGN OWNED BY {role} TO CURRENT_USER"))
            connection.execute(text(f"DROP OWNED BY {role}"))
        connection.execute(text(f"DROP ROLE {owner}"))
        connection.execute(text(f"DROP ROLE {app}"))
    admin.dispose()


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


def test_one_role_for_everything_is_told_that_it_could_lift_the_protection(engine: Engine) -> None:
    with engine.connect() as connection:
        assert audit.can_be_lifted(connection)
