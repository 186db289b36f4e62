"""Migrating: one migrator at a time, the others wait and find the work done, and nobody else is touched."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from textwrap import dedent, indent
from types import SimpleNamespace

import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, text

from store import engine as engines
from store import migrate
from store.engine import SCHEMA_REVISION, check_ready, make_engine, schema_revision
from tests.support.builders import column, empty_database
from tests.support.racing import in_background, wait_until, wait_until_blocked
from tokenfleet.errors import UserError

MIGRATION_LOCK = 7_305_811_034

THIS = SCHEMA_REVISION
NEXT, SECOND, THIRD = (f"{int(THIS) + later:04}" for later in (1, 2, 3))
"""Schemas of releases to come."""


@pytest.fixture
def empty(servers: dict[str, str]) -> Iterator[Engine]:
    """An engine on an empty database of its own."""
    with empty_database(servers) as engine:
        yield engine


class Newer:
    """Migrations of releases to come, which the real path finds beside those of this one."""

    def __init__(self, versions: Path) -> None:
        self.versions = versions

    def __call__(self, revision: str, compatible_from: str | None, body: str = "pass") -> None:
        """Add one; ``compatible_from`` None leaves the word out."""
        lines = [
            "from alembic import op",
            f"revision, down_revision = {revision!r}, '{int(revision) - 1:04}'",
            *([f"compatible_from = {compatible_from!r}"] if compatible_from else []),
            "def upgrade():",
            indent(dedent(body).strip(), "    "),
        ]
        (self.versions / f"{revision}_later.py").write_text("\n".join(lines))


COLUMN = "op.execute('ALTER TABLE tokenfleet.accounts ADD COLUMN later text')"
INDEX = """
    with op.get_context().autocommit_block():
        op.execute("SET lock_timeout = 0")
        op.execute("DROP INDEX CONCURRENTLY IF EXISTS tokenfleet.ix_later")
        op.execute("CREATE INDEX CONCURRENTLY ix_later ON tokenfleet.refresh_schedule (attempts)")
"""


@pytest.fixture
def newer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Newer:
    versions = tmp_path / "versions"
    versions.mkdir()
    ours = Path(migrate.__file__).parent / "migrations"

    def config() -> Config:
        config = Config()
        config.set_main_option("script_location", str(ours))
        config.set_main_option("path_separator", "space")
        config.set_main_option("version_locations", f"{ours / 'versions'} {versions}")
        return config

    monkeypatch.setattr(migrate, "_config", config)
    return Newer(versions)


@pytest.fixture
def from_this_release(newer: Newer, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Forget the newer migrations: from here on, this release is the one that is running."""

    def forget() -> None:
        for path in newer.versions.glob("*.py"):
            path.unlink()

    return forget


def sessions(engine: Engine, name: str, query: str = "") -> int:
    """Return how many sessions an application has whose latest statement matches ``query``."""
    with engine.connect() as connection:
        found: int = connection.execute(
            text("SELECT count(*) FROM pg_stat_activity WHERE application_name = :name AND query ~ :query"),
            {"name": name, "query": query},
        ).scalar_one()
    return found


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
    migrate.LOCK_TRIES = 1
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
        wait_until(lambda: sessions(empty, "migrator") == 3, "three migrators are here")
        starter.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": MIGRATION_LOCK})
        errors = [migrator.communicate(timeout=60)[1] for migrator in migrators]

    assert [(each.returncode, error) for each, error in zip(migrators, errors, strict=True)] == [(0, b"")] * 3
    assert column(empty, "SELECT version_num FROM tokenfleet.alembic_version") == [SCHEMA_REVISION]


def test_a_second_migrator_that_waits_is_not_in_the_way_of_the_first(
    engine: Engine, newer: Newer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CREATE INDEX CONCURRENTLY waits for every open transaction: one that waits for the migrator is a deadlock."""
    monkeypatch.setattr(migrate, "LOCK_TRIES", 1)
    newer(NEXT, THIS, INDEX)
    url = engine.url.render_as_string(hide_password=False)
    with engine.connect() as writer:
        writer.execute(text("LOCK TABLE tokenfleet.refresh_schedule IN ROW EXCLUSIVE MODE"))
        first_migrates = in_background(partial(migrate.upgrade, engine))
        wait_until_blocked(engine)
        second = subprocess.Popen(
            [sys.executable, "-c", MIGRATOR],
            env=os.environ | {"TOKENFLEET_DATABASE_URL": url},
            stderr=subprocess.PIPE,
        )
        wait_until(lambda: sessions(engine, "migrator", "advisory|COMMIT") == 1, "the second waits")
    first_migrates.result(20)
    assert (second.communicate(timeout=60)[1], second.returncode) == (b"", 0)

    assert revision(engine) == NEXT
    assert column(
        engine, "SELECT indisvalid FROM pg_index WHERE indexrelid = 'tokenfleet.ix_later'::regclass"
    ) == [True]


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


def test_this_release_runs_on_the_schema_of_a_newer_one_that_says_so(
    engine: Engine, newer: Newer, from_this_release: Callable[[], None]
) -> None:
    newer(NEXT, THIS, COLUMN)
    migrate.upgrade(engine)
    from_this_release()

    check_ready(engine, max_clock_skew=timedelta(minutes=5))
    migrate.upgrade(engine)

    assert revision(engine) == NEXT, "'db upgrade' of this release leaves it as it is: a deploy can be undone"


def test_a_release_that_is_older_than_the_database_says_which_one_to_deploy(
    engine: Engine, newer: Newer, from_this_release: Callable[[], None]
) -> None:
    newer(NEXT, THIS, COLUMN)
    newer(SECOND, NEXT, "op.execute('ALTER TABLE tokenfleet.oauth_apps DROP COLUMN variables')")
    # What was refused once stays refused, whatever a later migration says of its own step.
    newer(THIRD, THIS)
    migrate.upgrade(engine)
    from_this_release()

    with pytest.raises(UserError) as refused:
        check_ready(engine, max_clock_skew=timedelta(minutes=5))
    with pytest.raises(UserError) as not_migrated:
        migrate.upgrade(engine)

    message = str(refused.value)
    assert message.startswith("this release is older than the database at ")
    assert message.endswith(
        f"it is for schema {THIS}, the database is at {THIRD}: deploy a release for schema {NEXT} or newer"
    )
    assert "\n" not in str(not_migrated.value)
    assert THIRD in str(not_migrated.value)
    assert "run the release that migrated it" in str(not_migrated.value)


def test_a_newer_release_refuses_the_schema_of_an_older_one_and_says_how_to_migrate(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "SCHEMA_REVISION", NEXT)

    with pytest.raises(UserError, match=rf"is at schema {THIS}, not {NEXT}: run 'tokenfleet db upgrade'$"):
        check_ready(engine, max_clock_skew=timedelta(minutes=5))


def test_a_database_from_before_the_rule_is_migrated_and_serves_what_its_migrations_say(
    engine: Engine, newer: Newer, from_this_release: Callable[[], None]
) -> None:
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE tokenfleet.alembic_version DROP COLUMN compatible_from"))
    check_ready(engine, max_clock_skew=timedelta(minutes=5))
    newer(NEXT, THIS, COLUMN)
    migrate.upgrade(engine)
    from_this_release()

    check_ready(engine, max_clock_skew=timedelta(minutes=5))


def unsafe(script: ScriptDirectory) -> list[str]:
    """Return the migrations that do not keep the release before them running."""
    return [
        each.revision
        for each in script.walk_revisions()
        if each.down_revision and getattr(each.module, "compatible_from", "9999") > str(each.down_revision)
    ]


def test_every_migration_keeps_the_release_before_it_running(newer: Newer) -> None:
    assert unsafe(ScriptDirectory.from_config(migrate._config())) == []

    newer(NEXT, THIS)
    newer(SECOND, SECOND)
    newer(THIRD, None)
    assert unsafe(ScriptDirectory.from_config(migrate._config())) == [THIRD, SECOND]


def test_a_migration_that_does_not_get_its_lock_steps_back_and_tries_again(
    engine: Engine, newer: Newer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everybody queues behind it meanwhile, but nobody for longer than it waits itself."""
    newer(NEXT, THIS, COLUMN)
    pausing, go_on = threading.Event(), threading.Event()

    def pause(seconds: float) -> None:
        if seconds == migrate.LOCK_PAUSE_SECONDS:
            pausing.set()
            assert go_on.wait(20)

    monkeypatch.setattr(migrate, "time", SimpleNamespace(sleep=pause))
    with engine.connect() as reporter:
        reporter.execute(text("SELECT count(*) FROM tokenfleet.accounts"))
        migrating = in_background(partial(migrate.upgrade, engine))
        wait_until_blocked(engine)
        # Behind the migration, which waits for the reporter.
        assert column(engine, "SELECT count(*) FROM tokenfleet.accounts") == [0]
        assert pausing.wait(20)
        assert revision(engine) == THIS
    go_on.set()
    migrating.result(20)

    assert revision(engine) == NEXT


def test_a_migration_that_never_gets_its_lock_names_who_is_in_the_way(
    engine: Engine, newer: Newer, monkeypatch: pytest.MonkeyPatch
) -> None:
    newer(NEXT, THIS, COLUMN)
    monkeypatch.setattr(migrate, "LOCK_TRIES", 1)
    report = make_engine(engine.url.render_as_string(hide_password=False), application_name="report")
    try:
        with report.connect() as reporter:
            reporter.execute(text("SELECT count(*) FROM tokenfleet.accounts"))
            pid = reporter.execute(text("SELECT pg_backend_pid()")).scalar_one()
            with pytest.raises(UserError, match=rf"\(pid {pid}, 'report', in one transaction for \d+ s\)"):
                migrate.upgrade(engine)
    finally:
        report.dispose()


def test_a_migrated_database_is_ready(empty: Engine) -> None:
    migrate.upgrade(empty)

    check_ready(empty, max_clock_skew=timedelta(minutes=5))
