"""How migrations run: one at a time in the fleet, one transaction each, never waiting long for a table's lock.

Each migration names in ``compatible_from`` the oldest schema whose release still runs on the new one; that is
written beside the revision, where a release can read it that has never heard of this migration (ADR 9).
"""

from __future__ import annotations

import time
from typing import Final

from alembic import context
from alembic.runtime.migration import MigrationContext, MigrationInfo
from alembic.script import Script
from sqlalchemy import Connection, text

from store.tables import METADATA
from tokenfleet_client.contract import APPLICATION_SCHEMA

LOCK_TIMEOUT: Final = "2s"
"""Everybody queues behind a migration that waits for its lock. So it gives up soon, and ``store.migrate`` runs it
again later."""
STATEMENT_TIMEOUT: Final = "10min"
ADVISORY_LOCK: Final = 7_305_811_034
TURN_SECONDS: Final = 0.25
"""How often a second migrator looks whether the first one is done."""
VERSIONS: Final = f"{APPLICATION_SCHEMA}.alembic_version"


def run(connection: Connection) -> None:
    """Migrate over ``connection``; a second migrator waits for the first and then finds nothing to do."""
    connection.execute(text(f"SET statement_timeout = '{STATEMENT_TIMEOUT}'"))
    connection.execute(text(f"SET lock_timeout = '{LOCK_TIMEOUT}'"))
    connection.commit()
    while not _is_our_turn(connection):
        time.sleep(TURN_SECONDS)
    _prepare(connection)
    try:
        context.configure(
            connection=connection,
            target_metadata=METADATA,
            transaction_per_migration=True,
            # Our own schema: the database is shared, and its other tenants may use Alembic too.
            version_table_schema=APPLICATION_SCHEMA,
            on_version_apply=_note_compatibility,
        )
        with context.begin_transaction():
            context.run_migrations()
    finally:
        connection.rollback()
        connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": ADVISORY_LOCK})
        # The connection goes back to its pool.
        connection.execute(text("RESET lock_timeout"))
        connection.execute(text("RESET statement_timeout"))
        connection.commit()


def _is_our_turn(connection: Connection) -> bool:
    """Take the lock if it is free.

    Waiting inside Postgres would be a transaction open all the time, which CREATE INDEX CONCURRENTLY of the
    first migrator would wait for in turn.
    """
    taken: bool = connection.execute(
        text("SELECT pg_try_advisory_lock(:key)"), {"key": ADVISORY_LOCK}
    ).scalar_one()
    connection.commit()
    return taken


def _prepare(connection: Connection) -> None:
    """Create Alembic's table with the column of ours, or add that."""
    schema = connection.execute(text("SELECT to_regnamespace(:name)"), {"name": APPLICATION_SCHEMA})
    if schema.scalar_one() is None:
        # Not "if not exists", for which the schema's owner too would need rights on the whole database.
        connection.execute(text(f"CREATE SCHEMA {APPLICATION_SCHEMA}"))
    connection.execute(
        text(
            f"CREATE TABLE IF NOT EXISTS {VERSIONS} "
            "(version_num varchar(32) CONSTRAINT alembic_version_pkc PRIMARY KEY, compatible_from text)"
        )
    )
    columns = connection.execute(text(f"SELECT * FROM {VERSIONS} LIMIT 0")).keys()
    if "compatible_from" not in columns:
        # Not every time: starting processes read this table, and would wait for the lock.
        connection.execute(text(f"ALTER TABLE {VERSIONS} ADD COLUMN compatible_from text"))
    connection.commit()


def _note_compatibility(ctx: MigrationContext, step: MigrationInfo, heads: object, run_args: object) -> None:
    """Write down, in the migration's own transaction, who may still run. What was once refused stays refused.

    Then the caller's ``noted``, if there is one, may write in it too.
    """
    if not step.is_upgrade or ctx.connection is None:
        return
    assert isinstance(step.up_revision, Script)
    oldest = getattr(step.up_revision.module, "compatible_from", step.up_revision_id)
    ctx.connection.execute(
        text(f"UPDATE {VERSIONS} SET compatible_from = greatest(compatible_from, :oldest)"),
        {"oldest": oldest},
    )
    if (noted := context.config.attributes.get("noted")) is not None:
        noted(ctx.connection, step.up_revision_id)


run(context.config.attributes["connection"])
