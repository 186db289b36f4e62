"""Migrating: one migrator at a time, the others wait and find the work done, and nobody else is touched."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from textwrap import dedent

import pytest
from sqlalchemy import Engine, text

from store import engine as engines
from store import migrate
from store.engine import SCHEMA_REVISION, check_ready, make_engine, schema_revision
from tests.support.builders import column, empty_database
from tests.support.racing import in_background, wait_until_blocked
from tokenfleet.errors import UserError

MIGRATION_LOCK = 7_305_811_034


@pytest.fixture
def empty(servers: dict[str, str]) -> Iterator[Engine]:
    """An engine on an empty database of its own."""
    with empty_database(servers) as engine:
        yield engine


def revision(engine: Engine) -> str | None:
    with engine.connect() as connection:
        return schema_revision(connection)


def test_the_release_needs_the_newest_migration() -> None:
    assert migrate.head_revision() == SCHEMA_REVISION


def test_an_empty_database_is_brought_to_what_the_release_needs(empty: Engine) -> None:
    assert revision(empty) is None

    migrate.upgrade(empty)

    assert revision(empty) == SCHEMA_REVISION


def test_migrating_again_changes_nothing(engine: Engine) -> None:
    before = column(engine, "SELECT oid FROM pg_class WHERE relname = 'accounts'")

    migrate.upgrade(engine)

    assert column(engine, "SELECT oid FROM pg_class WHERE relname = 'accounts'") == before


MIGRATOR = dedent("""
    import os
    from store import migrate
    from store.engine import make_engine
    migrate.upgrade(make_engine(os.environ["TOKENFLEET_DATABASE_URL"], application_name="migrator"))
""")


def test_machines_that_migrate_at_once_take_turns_and_all_succeed(empty: Engine) -> None:
    url = empty.url.render_as_string(hide_password=False)
    with empty.connect() as starter:
        starter.execute(text("SELECT pg_advisory_lock(:key)"), {"key": MIGRATION_LOCK})
        migrators = [
            subprocess.Popen(
                [sys.executable, "-c", MIGRATOR],
                env=os.environ | {"TOKENFLEET_DATABASE_URL": url},
                stderr=subprocess.PIPE,
            )
            for _ in range(3)
        ]
        wait_until_blocked(empty, 3)
        starter.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": MIGRATION_LOCK})
        errors = [migrator.communicate(timeout=60)[1] for migrator in migrators]

    assert [(each.returncode, error) for each, error in zip(migrators, errors, strict=True)] == [(0, b"")] * 3
    assert column(empty, "SELECT version_num FROM tokenfleet.alembic_version") == [SCHEMA_REVISION]


def test_a_second_migrator_waits_longer_than_for_any_other_lock(
    empty: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "LOCK_TIMEOUT_MS", 20)
    monkeypatch.setattr(engines, "STATEMENT_TIMEOUT_MS", 50)
    second = make_engine(empty.url.render_as_string(hide_password=False), application_name="second")
    try:
        with empty.connect() as first:
            first.execute(text("SELECT pg_advisory_lock(:key)"), {"key": MIGRATION_LOCK})
            migrating = in_background(partial(migrate.upgrade, second))
            wait_until_blocked(empty)
            time.sleep(0.1)
            assert not migrating.done()
            first.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": MIGRATION_LOCK})
        migrating.result(20)
    finally:
        second.dispose()

    assert revision(empty) == SCHEMA_REVISION


def test_a_migrators_connection_goes_back_to_its_pool_as_it_was(empty: Engine) -> None:
    with empty.connect() as connection:
        pid = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()

    migrate.upgrade(empty)

    with empty.connect() as connection:
        assert connection.execute(text("SELECT pg_backend_pid()")).scalar_one() == pid
        shown = [
            connection.execute(text(f"SHOW {name}")).scalar_one()
            for name in ("lock_timeout", "statement_timeout")
        ]
        held = connection.execute(
            text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = :pid"), {"pid": pid}
        )
        assert held.scalar_one() == 0
    assert shown == ["10s", "30s"]


def test_another_application_that_uses_alembic_in_the_same_database_is_left_alone(empty: Engine) -> None:
    with empty.begin() as connection:
        connection.execute(text("CREATE TABLE public.alembic_version (version_num text PRIMARY KEY)"))
        connection.execute(text("INSERT INTO public.alembic_version VALUES ('theirs')"))
        connection.execute(text("CREATE TABLE public.accounts (id int)"))

    migrate.upgrade(empty)

    assert column(empty, "SELECT version_num FROM public.alembic_version") == ["theirs"]
    assert revision(empty) == SCHEMA_REVISION


def test_a_database_that_a_newer_release_has_migrated_is_refused_in_one_sentence(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("UPDATE tokenfleet.alembic_version SET version_num = '9999'"))

    with pytest.raises(UserError) as refused:
        migrate.upgrade(engine)

    message = str(refused.value)
    assert "\n" not in message
    assert "9999" in message
    assert "run the release that migrated it" in message


def test_a_migrated_database_is_ready(empty: Engine) -> None:
    migrate.upgrade(empty)

    check_ready(empty, max_clock_skew=timedelta(minutes=5))
