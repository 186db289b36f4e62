"""Every opening of a sealed value, counted by minute, purpose, caller and database role; and what was unusual.

Revision ID: 0007
Revises: 0006
"""

from __future__ import annotations

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

compatible_from = "0003"
"""Two tables and a function, which the releases before this one neither read nor write: what they open while they
still run is in their metric only."""

STATEMENTS = (
    """
    CREATE TABLE tokenfleet.unsealings (
        minute timestamptz NOT NULL,
        purpose text NOT NULL,
        caller text NOT NULL,
        database_role text NOT NULL DEFAULT session_user,
        opened bigint NOT NULL,
        CONSTRAINT pk_unsealings PRIMARY KEY (minute, purpose, caller, database_role),
        CONSTRAINT ck_unsealings_purpose CHECK (purpose IN ('refresh', 'probe', 'revoke', 'candidate', 'app_secret',
            'webhook', 'import', 'resealing', 'export', 'inspect', 'verify', 'read')),
        CONSTRAINT ck_unsealings_caller CHECK (length(caller) BETWEEN 1 AND 200),
        CONSTRAINT ck_unsealings_opened CHECK (opened > 0)
    )
    """,
    # What Postgres knows better than whoever counts, it fills in itself. No count is lowered, nothing is put far into
    # the past or added to what is there, where it would teach what is usual, and nothing of the last week is deleted.
    """
    CREATE FUNCTION tokenfleet.unsealings_guard() RETURNS trigger LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp AS $$
    BEGIN
        IF TG_OP = 'INSERT' THEN
            NEW.database_role := session_user;
            NEW.minute := date_trunc('minute', LEAST(
                clock_timestamp(), GREATEST(NEW.minute, clock_timestamp() - interval '1 hour')));
            RETURN NEW;
        ELSIF TG_OP = 'UPDATE' THEN
            IF NEW.opened >= OLD.opened AND OLD.minute > clock_timestamp() - interval '2 hours'
                AND (NEW.minute, NEW.purpose, NEW.caller, NEW.database_role)
                = (OLD.minute, OLD.purpose, OLD.caller, OLD.database_role) THEN
                RETURN NEW;
            END IF;
        ELSIF TG_OP = 'DELETE' THEN
            IF OLD.minute < clock_timestamp() - interval '7 days' THEN
                RETURN OLD;
            END IF;
        END IF;
        RAISE EXCEPTION 'tokenfleet.unsealings only grows, and keeps the last week: % is refused', TG_OP
            USING ERRCODE = 'insufficient_privilege';
    END
    $$
    """,
    """
    CREATE TRIGGER unsealings_guard BEFORE INSERT OR UPDATE OR DELETE ON tokenfleet.unsealings
        FOR EACH ROW EXECUTE FUNCTION tokenfleet.unsealings_guard()
    """,
    """
    CREATE TRIGGER unsealings_guard_all BEFORE TRUNCATE ON tokenfleet.unsealings
        FOR EACH STATEMENT EXECUTE FUNCTION tokenfleet.unsealings_guard()
    """,
    # ALWAYS: also for a session that replays a replica's changes, which skips ordinary triggers.
    "ALTER TABLE tokenfleet.unsealings ENABLE ALWAYS TRIGGER unsealings_guard",
    "ALTER TABLE tokenfleet.unsealings ENABLE ALWAYS TRIGGER unsealings_guard_all",
    """
    CREATE TABLE tokenfleet.unsealing_spikes (
        id bigint GENERATED ALWAYS AS IDENTITY CONSTRAINT pk_unsealing_spikes PRIMARY KEY,
        purpose text NOT NULL,
        database_role text NOT NULL,
        caller text NOT NULL,
        began_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        ended_at timestamptz,
        opened bigint NOT NULL,
        expected bigint NOT NULL
    )
    """,
    """
    CREATE UNIQUE INDEX ux_unsealing_spikes_open ON tokenfleet.unsealing_spikes (purpose, database_role)
        WHERE ended_at IS NULL
    """,
    # A reader may add to its own counts and see none. Names come from outside: one that is made up anew for every call
    # must not fill the table.
    """
    CREATE FUNCTION tokenfleet_v1.report_unsealings(caller text, purpose text, opened integer) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    #variable_conflict use_column
    DECLARE
        this_minute CONSTANT timestamptz := date_trunc('minute', clock_timestamp());
        named text := report_unsealings.caller;
    BEGIN
        IF named IS NULL OR named !~ '^[[:graph:]]([[:print:]]{0,98}[[:graph:]])?$' THEN
            RAISE EXCEPTION 'caller must be a name of 1 to 100 printable characters'
                USING ERRCODE = 'invalid_parameter_value';
        ELSIF report_unsealings.purpose IS DISTINCT FROM 'read' THEN
            RAISE EXCEPTION 'purpose must be read' USING ERRCODE = 'invalid_parameter_value';
        ELSIF report_unsealings.opened IS NULL OR report_unsealings.opened < 1 THEN
            RAISE EXCEPTION 'opened must be at least 1' USING ERRCODE = 'invalid_parameter_value';
        END IF;
        IF (SELECT count(*) >= 1000 FROM tokenfleet.unsealings u
            WHERE u.minute = this_minute AND u.purpose = 'read' AND u.database_role = session_user) THEN
            named := '(others)';
        END IF;
        INSERT INTO tokenfleet.unsealings AS u (minute, purpose, caller, opened)
        VALUES (this_minute, 'read', named, report_unsealings.opened)
        ON CONFLICT ON CONSTRAINT pk_unsealings DO UPDATE SET opened = u.opened + EXCLUDED.opened;
    END
    $$
    """,
    "REVOKE EXECUTE ON FUNCTION tokenfleet_v1.report_unsealings(text, text, integer) FROM PUBLIC",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    op.execute("DROP FUNCTION tokenfleet_v1.report_unsealings(text, text, integer)")
    op.execute("DROP TABLE tokenfleet.unsealing_spikes")
    op.execute("DROP TABLE tokenfleet.unsealings")
    op.execute("DROP FUNCTION tokenfleet.unsealings_guard()")
