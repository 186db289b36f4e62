"""The contract of readers: asking for a refresh, reporting a refused token, and each tenant's reader kept to itself.

Revision ID: 0010
Revises: 0009
"""

from __future__ import annotations

from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

compatible_from = "0003"
"""Columns, tables and functions are added; the views keep their columns and who may read them. A worker of the release
before does not clear ``requested_at``: a request counts only while its account is due, so what it leaves harms nobody.
"""

STATEMENTS = (
    """
    ALTER TABLE tokenfleet.refresh_schedule
        ADD COLUMN requested_at timestamptz,
        ADD COLUMN answered_request timestamptz,
        ADD COLUMN retry_from timestamptz,
        ADD COLUMN reported_at timestamptz,
        ADD COLUMN reports integer
    """,
    # Empty but for requests: a scheduled refresh neither sets nor changes requested_at, and adds nothing here. Not
    # CONCURRENTLY: no row is in it yet, and to read a million narrow ones takes a fraction of a second.
    """
    CREATE INDEX ix_refresh_schedule_requested ON tokenfleet.refresh_schedule (app_id, next_refresh_at)
        WHERE requested_at IS NOT NULL
    """,
    # What the definition of the app's provider says, as far as the functions below need it (store.traits).
    """
    ALTER TABLE tokenfleet.oauth_apps
        ADD COLUMN renews boolean,
        ADD COLUMN probes boolean,
        ADD COLUMN earliest_refresh interval,
        ADD COLUMN minimum_age interval
    """,
    """
    CREATE TABLE tokenfleet.readers (
        reader text NOT NULL,
        tenant text,
        CONSTRAINT uq_readers_reader UNIQUE NULLS NOT DISTINCT (reader, tenant)
    )
    """,
    # Who could read until now can still.
    """
    INSERT INTO tokenfleet.readers (reader)
    SELECT DISTINCT r.rolname
    FROM pg_catalog.pg_class c, pg_catalog.aclexplode(c.relacl) granted
    JOIN pg_catalog.pg_roles r ON r.oid = granted.grantee
    WHERE c.oid = 'tokenfleet_v1.access_tokens'::regclass AND granted.privilege_type = 'SELECT'
      AND r.oid <> c.relowner
    """,
    # One row for each tenant that who is logged in may read, NULL for all of them. By session_user, which neither SET
    # ROLE nor a SECURITY DEFINER function changes. Who may read the table itself needs no row.
    """
    CREATE VIEW tokenfleet.reader_scope AS
        SELECT r.tenant FROM tokenfleet.readers r JOIN pg_catalog.pg_roles p ON p.rolname = r.reader
        WHERE pg_catalog.pg_has_role(session_user, p.oid, 'MEMBER')
        UNION ALL
        SELECT NULL::text
        WHERE pg_catalog.has_table_privilege(session_user, 'tokenfleet.token_sets'::regclass, 'SELECT')
    """,
    # A security barrier: no function in a reader's WHERE sees a row before the scope has let it pass.
    """
    CREATE OR REPLACE VIEW tokenfleet_v1.access_tokens WITH (security_barrier) AS
        SELECT a.id AS account_id, a.provider, a.environment, a.external_id, a.tenant, a.status,
               t.access_token, t.token_type, t.scope, t.expires_at, t.generation,
               a.variables || t.variables AS variables,
               -- Bytes 1 to 4 of the envelope: which row of access_keys opens it.
               CASE WHEN octet_length(t.access_token) > 4 THEN
                   (get_byte(t.access_token, 1) << 24) | (get_byte(t.access_token, 2) << 16)
                   | (get_byte(t.access_token, 3) << 8) | get_byte(t.access_token, 4) END AS data_key_id,
               a.status_reason, s.failing_since, s.last_error
        FROM tokenfleet.accounts a
        JOIN tokenfleet.token_sets t ON t.account_id = a.id
        LEFT JOIN tokenfleet.refresh_schedule s ON s.account_id = a.id
        WHERE EXISTS (SELECT FROM tokenfleet.reader_scope o WHERE o.tenant IS NULL)
           OR a.tenant IN (SELECT o.tenant FROM tokenfleet.reader_scope o)
    """,
    """
    COMMENT ON VIEW tokenfleet_v1.access_tokens IS
        'Contract, version 1: one row per account with its sealed access token (docs/reading-tokens.md).'
    """,
    # All that the functions weigh, for the accounts that who is logged in may read.
    """
    CREATE VIEW tokenfleet.reader_standing AS
        SELECT a.id AS account_id, s.app_id, a.status, a.status_reason, t.generation, t.expires_at,
               t.access_token IS NOT NULL AS has_token, s.next_refresh_at, s.claimed_until, s.attempts, s.doubts,
               s.quarantined, s.probing, s.incident_id IS NOT NULL AS is_parked, s.last_error, s.requested_at,
               s.retry_from, s.reported_at, s.reports,
               COALESCE(p.renews, true) AS renews, COALESCE(p.probes, false) AS probes,
               -- Of an imported token only the rest of its life is known.
               CASE WHEN t.epoch > 0 AND t.expires_at IS NOT NULL THEN t.expires_at - t.obtained_at
                    WHEN t.learned_lifetime > interval '0' THEN t.learned_lifetime END AS lifetime,
               -- Sooner the provider refuses a refresh: tokenfleet.lifetimes.refresh_opens.
               CASE WHEN t.access_token IS NOT NULL AND s.attempts = 0 AND s.unanswered = 0 THEN GREATEST(
                   t.expires_at - p.earliest_refresh,
                   LEAST(t.obtained_at + p.minimum_age,
                         CASE WHEN p.minimum_age IS NOT NULL THEN t.expires_at - interval '60 seconds' END))
               END AS opens_at,
               p.held_since IS NOT NULL AS is_held, p.probe_at, p.paused_until,
               -- Only samples are asked: store.apps.App.is_sampled.
               p.rejections_in_row >= 20 AND EXISTS (
                   SELECT FROM tokenfleet.provider_incidents i
                   WHERE i.app_id = p.id AND i.kind = 'mass_rejection' AND i.resolved_at IS NULL) AS is_sampled
        FROM tokenfleet.accounts a
        JOIN tokenfleet.token_sets t ON t.account_id = a.id
        JOIN tokenfleet.refresh_schedule s ON s.account_id = a.id
        JOIN tokenfleet.oauth_apps p ON p.id = s.app_id
        WHERE EXISTS (SELECT FROM tokenfleet.reader_scope o WHERE o.tenant IS NULL)
           OR a.tenant IN (SELECT o.tenant FROM tokenfleet.reader_scope o)
    """,
    # Both functions of the contract: with a wanted validity, or with the generation that an API refused.
    #
    # Nobody waits for a lock in here. Whose row somebody else has locked is being claimed, settled, imported or asked
    # for this very moment, and a reader that sleeps in its transaction keeps up no other.
    """
    CREATE FUNCTION tokenfleet.reader_asks(asked_for bigint, wanted interval, refused_generation bigint)
    RETURNS TABLE (answer text, status text, status_reason text, generation bigint, expires_at timestamptz,
                   retry_at timestamptz, last_error text)
    LANGUAGE plpgsql VOLATILE ROWS 1 SET search_path = pg_catalog, pg_temp AS $$
    DECLARE
        it tokenfleet.reader_standing;
        before tokenfleet.reader_standing;
        is_report CONSTANT boolean := refused_generation IS NOT NULL;
        moment timestamptz;
        report_from timestamptz;
        allowed_from timestamptz;
        will_probe boolean;
        due timestamptz;
        changed integer;
    BEGIN
        LOOP
            SELECT v.* INTO it FROM tokenfleet.reader_standing v WHERE v.account_id = asked_for;
            IF NOT FOUND THEN
                RETURN;
            END IF;
            moment := clock_timestamp();
            due := moment;
            -- An API's word is tried out where that is possible: a caller with too small a scope is told 401 as well.
            will_probe := NOT it.renews
                OR (is_report AND it.probes AND it.has_token AND COALESCE(it.expires_at > moment, true));
            -- The second report within a day is heeded a minute after the first, the third two minutes later.
            report_from := it.reported_at
                + LEAST(interval '1 minute' * 2 ^ LEAST(it.reports - 1, 10), interval '6 hours');
            allowed_from := LEAST(it.next_refresh_at, CASE WHEN it.doubts = 0 THEN it.retry_from END);
            status := it.status;
            status_reason := it.status_reason;
            generation := it.generation;
            expires_at := it.expires_at;
            last_error := it.last_error;
            retry_at := NULL;
            IF it.status NOT IN ('connecting', 'active') THEN
                answer := 'refused';
            ELSIF is_report AND refused_generation <> it.generation THEN
                answer := 'fresh';
            ELSIF NOT is_report AND it.has_token AND COALESCE(it.expires_at - moment >= wanted, true) THEN
                answer := 'fresh';
            ELSIF it.is_parked OR it.next_refresh_at IS NULL THEN
                answer := 'refused';
                status_reason := COALESCE(it.status_reason,
                                          CASE WHEN it.is_parked THEN 'parked' ELSE 'not_scheduled' END);
            ELSIF NOT it.renews AND NOT (is_report AND it.probes) THEN
                answer := 'unreachable';
            -- With a little to spare: a token that is too old as soon as it is read would be asked for again at once.
            ELSIF NOT is_report AND it.lifetime - wanted < LEAST(it.lifetime / 10, interval '1 minute') THEN
                answer := 'unreachable';
            ELSIF it.is_held THEN
                answer := 'waiting';
                retry_at := GREATEST(it.probe_at, moment);
            ELSIF it.paused_until > moment THEN
                answer := 'waiting';
                retry_at := it.paused_until;
            ELSIF it.is_sampled THEN
                answer := 'waiting';
            ELSIF it.quarantined THEN
                answer := 'waiting';
                retry_at := GREATEST(it.next_refresh_at, moment);
            -- Only while it is due: a worker of the release before answers requests and leaves the mark.
            ELSIF it.requested_at IS NOT NULL AND it.next_refresh_at <= moment
                  AND (it.probing = will_probe OR is_report) THEN
                answer := 'requested';
            ELSIF it.opens_at > moment AND NOT will_probe THEN
                answer := 'waiting';
                retry_at := it.opens_at;
            ELSIF is_report AND report_from > moment THEN
                answer := 'waiting';
                retry_at := report_from;
            -- The last attempt has failed. It is brought forward to the moment that the failure allows, if to any.
            ELSIF it.attempts > 0 AND allowed_from > moment THEN
                answer := 'waiting';
                due := allowed_from;
                retry_at := due;
            ELSE
                answer := 'requested';
            END IF;
            IF NOT (answer = 'requested' AND (it.requested_at IS NULL OR it.next_refresh_at > moment
                                              OR (it.probing <> will_probe AND NOT is_report))
                    OR answer = 'waiting' AND due > moment AND (it.requested_at IS NULL OR it.next_refresh_at > due))
            THEN
                RETURN NEXT;
                RETURN;
            END IF;
            WITH free AS (
                SELECT s.account_id FROM tokenfleet.refresh_schedule s WHERE s.account_id = asked_for
                FOR NO KEY UPDATE SKIP LOCKED
            )
            UPDATE tokenfleet.refresh_schedule s
            SET requested_at = moment, next_refresh_at = LEAST(s.next_refresh_at, due),
                -- What is due already stays what it is: a refresh answers a report as well.
                probing = CASE WHEN is_report AND (answer = 'waiting' OR s.next_refresh_at <= moment) THEN s.probing
                               ELSE will_probe END,
                reported_at = CASE WHEN is_report AND answer = 'requested' THEN moment ELSE s.reported_at END,
                reports = CASE WHEN NOT (is_report AND answer = 'requested') THEN s.reports
                               WHEN s.reported_at > moment - interval '1 day' THEN s.reports + 1 ELSE 1 END
            FROM free
            WHERE s.account_id = free.account_id
              -- Nothing has happened to it since it was judged.
              AND s.next_refresh_at = it.next_refresh_at AND s.attempts = it.attempts AND NOT s.quarantined
              AND s.incident_id IS NULL AND s.requested_at IS NOT DISTINCT FROM it.requested_at;
            GET DIAGNOSTICS changed = ROW_COUNT;
            IF changed > 0 AND due <= moment AND COALESCE(it.claimed_until <= moment, true) THEN
                PERFORM pg_notify('tokenfleet_due', 'requested ' || it.app_id);
            END IF;
            -- Judged anew if it has changed meanwhile. If not, somebody has it locked, and no longer look helps.
            IF changed > 0 OR it.next_refresh_at IS NOT DISTINCT FROM before.next_refresh_at THEN
                RETURN NEXT;
                RETURN;
            END IF;
            before := it;
        END LOOP;
    END
    $$
    """,
    "REVOKE EXECUTE ON FUNCTION tokenfleet.reader_asks(bigint, interval, bigint) FROM PUBLIC",
    """
    CREATE FUNCTION tokenfleet_v1.request_refresh(
        account_id bigint, min_validity interval DEFAULT interval '30 seconds')
    RETURNS TABLE (answer text, status text, status_reason text, generation bigint, expires_at timestamptz,
                   retry_at timestamptz, last_error text)
    LANGUAGE sql VOLATILE SECURITY DEFINER ROWS 1 SET search_path = pg_catalog, pg_temp AS $$
        SELECT * FROM tokenfleet.reader_asks(
            $1, GREATEST(COALESCE($2, interval '30 seconds'), interval '0'), NULL)
    $$
    """,
    "REVOKE EXECUTE ON FUNCTION tokenfleet_v1.request_refresh(bigint, interval) FROM PUBLIC",
    """
    COMMENT ON FUNCTION tokenfleet_v1.request_refresh(bigint, interval) IS
        'Contract, version 1: ask for a token that lives at least so long (docs/reading-tokens.md).'
    """,
    """
    CREATE FUNCTION tokenfleet_v1.report_unauthorized(account_id bigint, generation bigint)
    RETURNS TABLE (answer text, status text, status_reason text, generation bigint, expires_at timestamptz,
                   retry_at timestamptz, last_error text)
    LANGUAGE sql VOLATILE SECURITY DEFINER ROWS 1 SET search_path = pg_catalog, pg_temp AS $$
        -- Nobody has a token of generation 0.
        SELECT * FROM tokenfleet.reader_asks($1, NULL, COALESCE($2, 0))
    $$
    """,
    "REVOKE EXECUTE ON FUNCTION tokenfleet_v1.report_unauthorized(bigint, bigint) FROM PUBLIC",
    """
    COMMENT ON FUNCTION tokenfleet_v1.report_unauthorized(bigint, bigint) IS
        'Contract, version 1: an API answered 401 to the token of this generation (docs/reading-tokens.md).'
    """,
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    op.execute("DROP FUNCTION tokenfleet_v1.report_unauthorized(bigint, bigint)")
    op.execute("DROP FUNCTION tokenfleet_v1.request_refresh(bigint, interval)")
    op.execute("DROP FUNCTION tokenfleet.reader_asks(bigint, interval, bigint)")
    op.execute("DROP VIEW tokenfleet.reader_standing")
    op.execute("DROP VIEW tokenfleet_v1.access_tokens")
    op.execute(
        """
        CREATE VIEW tokenfleet_v1.access_tokens AS
            SELECT a.id AS account_id, a.provider, a.environment, a.external_id, a.tenant, a.status,
                   t.access_token, t.token_type, t.scope, t.expires_at, t.generation,
                   a.variables || t.variables AS variables
            FROM tokenfleet.accounts a JOIN tokenfleet.token_sets t ON t.account_id = a.id
        """
    )
    op.execute("DROP VIEW tokenfleet.reader_scope")
    op.execute("DROP TABLE tokenfleet.readers")
    op.execute("DROP INDEX tokenfleet.ix_refresh_schedule_requested")
    for table, columns in {
        "refresh_schedule": "requested_at answered_request retry_from reported_at reports",
        "oauth_apps": "renews probes earliest_refresh minimum_age",
    }.items():
        drops = ", ".join(f"DROP COLUMN {column}" for column in columns.split())
        op.execute(f"ALTER TABLE tokenfleet.{table} {drops}")
