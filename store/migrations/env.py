"""How migrations run: one at a time in the fleet, one transaction each, never waiting long for a table's lock."""

from __future__ import annotations

from typing import Final

from alembic import context
from sqlalchemy import Connection, text

from store.tables import METADATA
from tokenfleet_client.contract import APPLICATION_SCHEMA

LOCK_TIMEOUT: Final = "5s"
"""A migration that cannot get its lock fails and is run again; it never queues readers behind itself."""
STATEMENT_TIMEOUT: Final = "10min"
ADVISORY_LOCK: Final = 7_305_811_034


def run(connection: Connection) -> None:
    """Migrate over ``connection``; a second migrator waits for the first and then finds nothing to do."""
    # Waiting for the first migrator is not waiting for a lock on a table: it may take as long as a migration.
    connection.execute(text("SET lock_timeout = 0"))
    connection.execute(text(f"SET statement_timeout = '{STATEMENT_TIMEOUT}'"))
    connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": ADVISORY_LOCK})
    connection.execute(text(f"SET lock_timeout = '{LOCK_TIMEOUT}'"))
    connection.execute(text(f"CREATE SCHEMA IF NOT EXISTS {APPLICATION_SCHEMA}"))
    connection.commit()
    try:
        context.configure(
            connection=connection,
            target_metadata=METADATA,
            transaction_per_migration=True,
            # Our own schema: the database is shared, and its other tenants may use Alembic too.
            version_table_schema=APPLICATION_SCHEMA,
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


run(context.config.attributes["connection"])
