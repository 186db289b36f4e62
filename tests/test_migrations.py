"""The migrations and ``store.tables`` describe one schema, proven by Postgres itself, in both directions."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, text

from store import migrate, unsealing_tables, webhook_tables
from store.keys import Vault
from store.tables import METADATA
from tests.support.builders import column, empty_database, make_account, make_app

ROOT: Final = Path(__file__).resolve().parent.parent
VERSIONS: Final = sorted((ROOT / "store" / "migrations" / "versions").glob("*.py"))
OURS: Final = {
    "cli", "embedded", "providers", "sandbox", "scheduler", "store", "tests", "tokenfleet", "tokenfleet_client",
    "workers",
}  # fmt: skip

CATALOG: Final = {
    "columns": """
        SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity,
               pg_get_expr(d.adbin, d.adrelid)
        FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
        LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
        WHERE c.relnamespace = 'tokenfleet'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
          AND a.attnum > 0 AND NOT a.attisdropped AND c.relname <> 'alembic_version'
    """,
    "constraints": """
        SELECT c.relname, n.conname, n.contype, pg_get_constraintdef(n.oid)
        FROM pg_constraint n JOIN pg_class c ON c.oid = n.conrelid
        WHERE c.relnamespace = 'tokenfleet'::regnamespace AND NOT c.relispartition
          AND c.relname <> 'alembic_version'
    """,
    "indexes": """
        SELECT c.relname, pg_get_indexdef(i.indexrelid)
        FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid
        WHERE c.relnamespace = 'tokenfleet'::regnamespace AND NOT c.relispartition
          AND c.relname <> 'alembic_version'
    """,
    "partitioning": """
        SELECT c.relname, pg_get_partkeydef(c.oid) FROM pg_class c
        WHERE c.relnamespace = 'tokenfleet'::regnamespace AND c.relkind = 'p'
    """,
}


@pytest.fixture
def empty(servers: dict[str, str]) -> Iterator[Engine]:
    """An engine on an empty database of its own."""
    with empty_database(servers) as engine:
        yield engine


def catalog(engine: Engine, what: str) -> set[tuple[object, ...]]:
    with engine.connect() as connection:
        # Definitions name their schema in one way only when it is not on the path.
        connection.execute(text("SET LOCAL search_path = pg_catalog"))
        return {tuple(row) for row in connection.execute(text(CATALOG[what]))}


def downgrade(engine: Engine, revision: str) -> None:
    config = migrate._config()
    with engine.connect() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, revision)


@pytest.mark.parametrize("what", CATALOG)
def test_the_migrated_schema_is_the_one_that_the_tables_describe(
    empty: Engine, engine: Engine, what: str
) -> None:
    with empty.begin() as connection:
        connection.execute(text("CREATE SCHEMA tokenfleet"))
        METADATA.create_all(connection)

    migrated, described = catalog(engine, what), catalog(empty, what)

    assert described
    assert webhook_tables.webhook_endpoints.metadata is METADATA
    assert unsealing_tables.unsealings.metadata is METADATA
    assert sorted(map(str, migrated - described)) == [], "only in the migrations"
    assert sorted(map(str, described - migrated)) == [], "only in store.tables"


def test_every_constraint_and_index_is_named_by_us(engine: Engine) -> None:
    """A name that Postgres made up cannot be dropped by a later migration without looking it up."""
    prefixes = {"p": "pk_", "u": "uq_", "c": "ck_", "f": "fk_", "n": ""}
    odd = [
        (table, name)
        for table, name, kind, _ in catalog(engine, "constraints")
        if not str(name).startswith(prefixes[str(kind)])
    ]
    assert odd == []


def test_the_hot_tables_keep_the_settings_that_make_their_updates_cheap(engine: Engine) -> None:
    options = dict(
        zip(
            column(
                engine,
                "SELECT relname FROM pg_class WHERE relname IN ('token_sets', 'refresh_schedule') ORDER BY 1",
            ),
            column(
                engine,
                "SELECT reloptions FROM pg_class WHERE relname IN ('token_sets', 'refresh_schedule') ORDER BY relname",
            ),
            strict=True,
        )
    )
    for table in ("token_sets", "refresh_schedule"):
        names = {option.partition("=")[0] for option in options[table]}
        assert {"fillfactor", "autovacuum_vacuum_scale_factor", "autovacuum_vacuum_cost_delay"} <= names


def test_what_goes_up_comes_down_and_goes_up_again(empty: Engine) -> None:
    migrate.upgrade(empty)
    first = {what: catalog(empty, what) for what in CATALOG}

    downgrade(empty, "base")

    assert column(
        empty,
        "SELECT relname FROM pg_class WHERE relnamespace::regnamespace::text LIKE 'tokenfleet%' "
        "AND relkind IN ('r', 'p', 'v', 'S') ORDER BY relname",
    ) == ["alembic_version"]
    assert column(empty, "SELECT nspname FROM pg_namespace WHERE nspname LIKE 'tokenfleet%'") == [
        "tokenfleet"
    ]

    migrate.upgrade(empty)
    assert {what: catalog(empty, what) for what in CATALOG} == first


def test_a_database_with_accounts_comes_down_and_goes_up_empty(engine: Engine, vault: Vault) -> None:
    make_account(engine, vault, make_app(engine, vault))
    downgrade(engine, "base")
    migrate.upgrade(engine)

    assert column(engine, "SELECT count(*) FROM tokenfleet.accounts") == [0]


@pytest.mark.parametrize("path", VERSIONS, ids=lambda path: path.stem)
def test_a_migration_imports_nothing_of_ours(path: Path) -> None:
    """It must do in five years what it does today, whatever has become of the modules."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imported = {
        name.partition(".")[0]
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }

    assert imported
    assert imported & OURS == set()


def test_the_revisions_form_one_line() -> None:
    script = ScriptDirectory.from_config(migrate._config())
    revisions = list(script.walk_revisions())

    assert len(script.get_heads()) == 1
    assert len(revisions) == len(VERSIONS)
    assert [path.stem.partition("_")[0] for path in VERSIONS] == sorted(each.revision for each in revisions)


def test_the_database_refuses_what_the_state_machine_does_not_know(engine: Engine, vault: Vault) -> None:
    make_account(engine, vault, make_app(engine, vault))
    for statement, constraint in {
        "UPDATE tokenfleet.accounts SET status = 'unknown'": "ck_accounts_status",
        "UPDATE tokenfleet.refresh_schedule SET started_epoch = 1": "ck_refresh_schedule_epochs",
        "UPDATE tokenfleet.oauth_apps SET held_since = now()": "ck_oauth_apps_hold",
    }.items():
        with engine.connect() as connection, pytest.raises(Exception, match=constraint):
            connection.execute(text(statement))
