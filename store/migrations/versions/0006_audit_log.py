"""The audit log: what operators did, in a table that takes rows and never gives one up.

Revision ID: 0006
Revises: 0005
"""

from __future__ import annotations

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

compatible_from = "0003"
"""One table, which the releases before this one neither read nor write."""

STATEMENTS = (
    """
    CREATE TABLE tokenfleet.audit_log (
        id bigint GENERATED ALWAYS AS IDENTITY CONSTRAINT pk_audit_log PRIMARY KEY,
        at timestamptz NOT NULL DEFAULT clock_timestamp(),
        actor text NOT NULL,
        host text NOT NULL,
        action text NOT NULL,
        target text NOT NULL,
        reason text,
        detail jsonb,
        database_role text NOT NULL DEFAULT session_user,
        client_address inet DEFAULT inet_client_addr()
    )
    """,
    "CREATE INDEX ix_audit_log_at ON tokenfleet.audit_log (at)",
    "CREATE INDEX ix_audit_log_target ON tokenfleet.audit_log (target, id)",
    # What Postgres knows better than whoever writes a row, it fills in itself.
    """
    CREATE FUNCTION tokenfleet.audit_log_stamp() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        NEW.at := clock_timestamp();
        NEW.database_role := session_user;
        NEW.client_address := inet_client_addr();
        RETURN NEW;
    END
    $$
    """,
    """
    CREATE FUNCTION tokenfleet.audit_log_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        RAISE EXCEPTION 'tokenfleet.audit_log is append-only: % is refused', TG_OP
            USING ERRCODE = 'insufficient_privilege';
    END
    $$
    """,
    """
    CREATE TRIGGER audit_log_stamp BEFORE INSERT ON tokenfleet.audit_log
        FOR EACH ROW EXECUTE FUNCTION tokenfleet.audit_log_stamp()
    """,
    """
    CREATE TRIGGER audit_log_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON tokenfleet.audit_log
        FOR EACH STATEMENT EXECUTE FUNCTION tokenfleet.audit_log_refuse()
    """,
    # ALWAYS: also for a session that replays a replica's changes, which skips ordinary triggers.
    "ALTER TABLE tokenfleet.audit_log ENABLE ALWAYS TRIGGER audit_log_append_only",
    # The owner too may only read and add. It could grant that to itself again; another role cannot.
    "REVOKE UPDATE, DELETE, TRUNCATE ON tokenfleet.audit_log FROM PUBLIC, CURRENT_USER",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    op.execute("DROP TABLE tokenfleet.audit_log")
    op.execute("DROP FUNCTION tokenfleet.audit_log_stamp()")
    op.execute("DROP FUNCTION tokenfleet.audit_log_refuse()")
