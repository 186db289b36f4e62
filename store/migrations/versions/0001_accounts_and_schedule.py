"""Accounts, sealed token sets, the refresh schedule, history, outbox, and the readers' view.

Revision ID: 0001
Revises: -
"""

from __future__ import annotations

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

STATEMENTS = """
CREATE SCHEMA tokenfleet_v1;

CREATE TABLE tokenfleet.data_keys (
    id integer GENERATED ALWAYS AS IDENTITY CONSTRAINT pk_data_keys PRIMARY KEY,
    ring text NOT NULL CONSTRAINT ck_data_keys_ring CHECK (ring IN ('access', 'refresh')),
    kek_id text NOT NULL,
    wrapped bytea NOT NULL,
    is_primary boolean NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE UNIQUE INDEX ux_data_keys_primary ON tokenfleet.data_keys (ring) WHERE is_primary;

CREATE TABLE tokenfleet.oauth_apps (
    id bigint GENERATED ALWAYS AS IDENTITY CONSTRAINT pk_oauth_apps PRIMARY KEY,
    provider text NOT NULL,
    environment text NOT NULL,
    name text NOT NULL,
    client_id text NOT NULL,
    client_secret bytea,
    generation bigint NOT NULL DEFAULT 1,
    variables jsonb NOT NULL DEFAULT '{}',
    paused_until timestamptz,
    held_since timestamptz,
    held_code text,
    probe_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT uq_oauth_apps_provider UNIQUE (provider, environment, name),
    CONSTRAINT ck_oauth_apps_hold CHECK ((held_since IS NULL) = (held_code IS NULL))
);

CREATE TABLE tokenfleet.accounts (
    id bigint GENERATED ALWAYS AS IDENTITY CONSTRAINT pk_accounts PRIMARY KEY,
    provider text NOT NULL,
    environment text NOT NULL,
    external_id text NOT NULL,
    tenant text,
    app_id bigint NOT NULL CONSTRAINT fk_accounts_app_id_oauth_apps REFERENCES tokenfleet.oauth_apps (id),
    status text NOT NULL CONSTRAINT ck_accounts_status
        CHECK (status IN ('connecting', 'active', 'needs_reauth', 'paused', 'revoked')),
    status_reason text,
    status_changed_at timestamptz NOT NULL DEFAULT now(),
    variables jsonb NOT NULL DEFAULT '{}',
    metadata jsonb NOT NULL DEFAULT '{}',
    imported_fingerprints bytea[] NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT uq_accounts_provider UNIQUE (provider, environment, external_id)
);
CREATE INDEX ix_accounts_tenant ON tokenfleet.accounts (tenant, id) WHERE tenant IS NOT NULL;
CREATE INDEX ix_accounts_troubled ON tokenfleet.accounts (status, id) WHERE status <> 'active';
CREATE INDEX ix_accounts_app_id ON tokenfleet.accounts (app_id, id);

CREATE TABLE tokenfleet.token_sets (
    account_id bigint CONSTRAINT pk_token_sets PRIMARY KEY
        CONSTRAINT fk_token_sets_account_id_accounts REFERENCES tokenfleet.accounts (id) ON DELETE CASCADE,
    generation bigint NOT NULL,
    epoch bigint NOT NULL,
    access_token bytea,
    refresh_token bytea,
    token_type text,
    scope text,
    expires_at timestamptz,
    obtained_at timestamptz NOT NULL,
    refresh_token_expires_at timestamptz,
    variables jsonb NOT NULL DEFAULT '{}'
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);
ALTER TABLE tokenfleet.token_sets ALTER access_token SET STORAGE EXTERNAL;
ALTER TABLE tokenfleet.token_sets ALTER refresh_token SET STORAGE EXTERNAL;

CREATE TABLE tokenfleet.refresh_schedule (
    account_id bigint CONSTRAINT pk_refresh_schedule PRIMARY KEY
        CONSTRAINT fk_refresh_schedule_account_id_accounts
        REFERENCES tokenfleet.accounts (id) ON DELETE CASCADE,
    app_id bigint NOT NULL,
    next_refresh_at timestamptz,
    claimed_until timestamptz,
    claim_epoch bigint NOT NULL DEFAULT 0,
    started_epoch bigint NOT NULL DEFAULT 0,
    attempts integer NOT NULL DEFAULT 0,
    unanswered integer NOT NULL DEFAULT 0,
    failing_since timestamptz,
    last_error text,
    quarantined boolean NOT NULL DEFAULT false,
    CONSTRAINT ck_refresh_schedule_epochs CHECK (started_epoch <= claim_epoch)
) WITH (fillfactor = 60, autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_cost_delay = 0);
CREATE INDEX ix_refresh_schedule_due ON tokenfleet.refresh_schedule (app_id, next_refresh_at)
    WHERE next_refresh_at IS NOT NULL;
CREATE INDEX ix_refresh_schedule_failing ON tokenfleet.refresh_schedule (account_id)
    WHERE failing_since IS NOT NULL;

CREATE TABLE tokenfleet.token_candidates (
    id bigint GENERATED ALWAYS AS IDENTITY CONSTRAINT pk_token_candidates PRIMARY KEY,
    account_id bigint NOT NULL
        CONSTRAINT fk_token_candidates_account_id_accounts
        REFERENCES tokenfleet.accounts (id) ON DELETE CASCADE,
    generation bigint NOT NULL,
    epoch bigint NOT NULL,
    access_token bytea NOT NULL,
    refresh_token bytea,
    token_type text,
    scope text,
    expires_at timestamptz,
    obtained_at timestamptz NOT NULL,
    refresh_token_expires_at timestamptz,
    variables jsonb NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT uq_token_candidates_account_id UNIQUE (account_id, generation, epoch)
);

CREATE TABLE tokenfleet.account_events (
    account_id bigint NOT NULL,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    kind text NOT NULL,
    code text,
    generation bigint,
    epoch bigint,
    job_id uuid,
    duration_ms integer,
    actor text NOT NULL,
    status_from text,
    status_to text,
    detail jsonb
) PARTITION BY RANGE (at);
CREATE INDEX ix_account_events_account_id ON tokenfleet.account_events (account_id, at);
CREATE INDEX ix_account_events_at ON tokenfleet.account_events
    USING brin (at) WITH (pages_per_range = 32, autosummarize = on);
CREATE TABLE tokenfleet.account_events_default PARTITION OF tokenfleet.account_events DEFAULT;

CREATE TABLE tokenfleet.outbox (
    id uuid CONSTRAINT pk_outbox PRIMARY KEY DEFAULT gen_random_uuid(),
    sequence bigint GENERATED ALWAYS AS IDENTITY,
    account_id bigint,
    event_type text NOT NULL,
    payload jsonb NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX ix_outbox_account_id ON tokenfleet.outbox (account_id, sequence);

CREATE VIEW tokenfleet_v1.access_tokens AS
    SELECT a.id AS account_id, a.provider, a.environment, a.external_id, a.tenant, a.status,
           t.access_token, t.token_type, t.scope, t.expires_at, t.generation,
           a.variables || t.variables AS variables
    FROM tokenfleet.accounts a JOIN tokenfleet.token_sets t ON t.account_id = a.id;
CREATE VIEW tokenfleet_v1.access_keys AS
    SELECT k.id AS data_key_id, k.kek_id, k.wrapped, k.is_primary
    FROM tokenfleet.data_keys k WHERE k.ring = 'access';
COMMENT ON VIEW tokenfleet_v1.access_tokens IS
    'Contract, version 1: one row per account with its sealed access token (README.md).';
COMMENT ON VIEW tokenfleet_v1.access_keys IS
    'Contract, version 1: data keys of the access ring, wrapped by the key-encryption key that readers hold.';
"""


def upgrade() -> None:
    for statement in STATEMENTS.split(";\n"):
        if statement.strip():
            op.execute(statement)


def downgrade() -> None:
    op.execute("DROP SCHEMA tokenfleet_v1 CASCADE")
    for table in (
        "outbox account_events token_candidates refresh_schedule token_sets accounts oauth_apps data_keys"
    ).split():
        op.execute(f"DROP TABLE tokenfleet.{table}")
