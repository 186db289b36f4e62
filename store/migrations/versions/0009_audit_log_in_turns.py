"""The audit log: nothing on a search path can forge a row, and an export knows when it has everything.

Revision ID: 0009
Revises: 0008
"""

from __future__ import annotations

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

compatible_from = "0003"
"""Functions and triggers of one table: whoever adds a row does it as before."""

STATEMENTS = (
    # The path is the table's, not the session's: there a function called clock_timestamp() could tell another time.
    """
    CREATE OR REPLACE FUNCTION tokenfleet.audit_log_stamp() RETURNS trigger LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp AS $$
    BEGIN
        NEW.at := pg_catalog.clock_timestamp();
        NEW.database_role := session_user;
        NEW.client_address := pg_catalog.inet_client_addr();
        RETURN NEW;
    END
    $$
    """,
    "ALTER FUNCTION tokenfleet.audit_log_refuse() SET search_path = pg_catalog, pg_temp",
    # Whoever adds a row holds this lock, shared, until the commit. Whoever gets it alone for a moment knows that every
    # row with a lower id is committed, and that later ones get a higher id: ids are taken in a turn, not commits.
    """
    CREATE FUNCTION tokenfleet.audit_log_turn() RETURNS trigger LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp AS $$
    BEGIN
        PERFORM pg_catalog.pg_advisory_xact_lock_shared(7305811037);
        RETURN NULL;
    END
    $$
    """,
    """
    CREATE TRIGGER audit_log_turn BEFORE INSERT ON tokenfleet.audit_log
        FOR EACH STATEMENT EXECUTE FUNCTION tokenfleet.audit_log_turn()
    """,
    "ALTER TABLE tokenfleet.audit_log ENABLE ALWAYS TRIGGER audit_log_stamp",
    "ALTER TABLE tokenfleet.audit_log ENABLE ALWAYS TRIGGER audit_log_turn",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    op.execute("ALTER TABLE tokenfleet.audit_log ENABLE TRIGGER audit_log_stamp")
    op.execute("DROP TRIGGER audit_log_turn ON tokenfleet.audit_log")
    op.execute("DROP FUNCTION tokenfleet.audit_log_turn()")
    op.execute("ALTER FUNCTION tokenfleet.audit_log_stamp() RESET search_path")
    op.execute("ALTER FUNCTION tokenfleet.audit_log_refuse() RESET search_path")
