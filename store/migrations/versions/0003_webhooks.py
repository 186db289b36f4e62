"""Webhook endpoints, their secrets, deliveries and the log of attempts.

Revision ID: 0003
Revises: 0002
"""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

compatible_from = "0002"
"""Everything is added and has a default: what the release before this one tells waits in the outbox, and is relayed
by the first scheduler of this one."""

STATEMENTS = """
ALTER TABLE tokenfleet.outbox ADD COLUMN is_relayed boolean NOT NULL DEFAULT true;
ALTER TABLE tokenfleet.outbox ALTER COLUMN is_relayed SET DEFAULT false;
CREATE INDEX ix_outbox_waiting ON tokenfleet.outbox (sequence) WHERE NOT is_relayed;
CREATE INDEX ix_outbox_created_at ON tokenfleet.outbox
    USING brin (created_at) WITH (pages_per_range = 32, autosummarize = on);

CREATE TABLE tokenfleet.webhook_endpoints (
    id bigint GENERATED ALWAYS AS IDENTITY CONSTRAINT pk_webhook_endpoints PRIMARY KEY,
    url text NOT NULL,
    description text,
    event_types text[],
    tenants text[],
    environments text[],
    concurrency integer NOT NULL,
    mean_ms integer NOT NULL DEFAULT 1000,
    failures integer NOT NULL DEFAULT 0,
    failing_since timestamptz,
    last_error text,
    last_success_at timestamptz,
    retry_at timestamptz,
    disabled_at timestamptz,
    disabled_reason text,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT ck_webhook_endpoints_concurrency CHECK (concurrency BETWEEN 1 AND 1000),
    CONSTRAINT ck_webhook_endpoints_disabled CHECK ((disabled_at IS NULL) = (disabled_reason IS NULL)),
    CONSTRAINT ck_webhook_endpoints_reason CHECK (disabled_reason IN ('gone', 'failing', 'operator', 'removed'))
) WITH (fillfactor = 50, autovacuum_vacuum_threshold = 500, autovacuum_vacuum_cost_delay = 0);

CREATE TABLE tokenfleet.webhook_secrets (
    endpoint_id bigint NOT NULL
        CONSTRAINT fk_webhook_secrets_endpoint_id_webhook_endpoints
        REFERENCES tokenfleet.webhook_endpoints (id) ON DELETE CASCADE,
    generation bigint NOT NULL,
    secret bytea NOT NULL,
    expires_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT pk_webhook_secrets PRIMARY KEY (endpoint_id, generation)
);
CREATE UNIQUE INDEX ux_webhook_secrets_current ON tokenfleet.webhook_secrets (endpoint_id)
    WHERE expires_at IS NULL;

CREATE TABLE tokenfleet.webhook_deliveries (
    id bigint GENERATED ALWAYS AS IDENTITY CONSTRAINT pk_webhook_deliveries PRIMARY KEY,
    endpoint_id bigint NOT NULL
        CONSTRAINT fk_webhook_deliveries_endpoint_id_webhook_endpoints
        REFERENCES tokenfleet.webhook_endpoints (id) ON DELETE CASCADE,
    event_id uuid NOT NULL
        CONSTRAINT fk_webhook_deliveries_event_id_outbox REFERENCES tokenfleet.outbox (id),
    subject text NOT NULL,
    sequence bigint NOT NULL,
    state text NOT NULL DEFAULT 'pending' CONSTRAINT ck_webhook_deliveries_state
        CHECK (state IN ('pending', 'delivered', 'failed')),
    next_attempt_at timestamptz,
    claimed_until timestamptz,
    claim_epoch bigint NOT NULL DEFAULT 0,
    started_epoch bigint NOT NULL DEFAULT 0,
    attempts integer NOT NULL DEFAULT 0,
    last_status integer,
    last_error text,
    last_duration_ms integer,
    created_at timestamptz NOT NULL DEFAULT now(),
    finished_at timestamptz,
    CONSTRAINT ck_webhook_deliveries_epochs CHECK (started_epoch <= claim_epoch),
    CONSTRAINT ck_webhook_deliveries_finished CHECK ((state = 'pending') = (finished_at IS NULL)),
    CONSTRAINT ck_webhook_deliveries_due CHECK (next_attempt_at IS NULL OR state = 'pending')
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);
CREATE INDEX ix_webhook_deliveries_due ON tokenfleet.webhook_deliveries (endpoint_id, next_attempt_at)
    WHERE next_attempt_at IS NOT NULL;
CREATE INDEX ix_webhook_deliveries_pending ON tokenfleet.webhook_deliveries (endpoint_id, subject, sequence)
    WHERE state = 'pending';
CREATE INDEX ix_webhook_deliveries_endpoint_id ON tokenfleet.webhook_deliveries (endpoint_id, id);
CREATE INDEX ix_webhook_deliveries_event_id ON tokenfleet.webhook_deliveries (event_id);
CREATE INDEX ix_webhook_deliveries_finished_at ON tokenfleet.webhook_deliveries (finished_at)
    WHERE finished_at IS NOT NULL;

CREATE TABLE tokenfleet.webhook_attempts (
    delivery_id bigint NOT NULL,
    at timestamptz NOT NULL,
    status integer,
    error text,
    duration_ms integer NOT NULL
);
CREATE INDEX ix_webhook_attempts_delivery_id ON tokenfleet.webhook_attempts (delivery_id, at);
CREATE INDEX ix_webhook_attempts_at ON tokenfleet.webhook_attempts
    USING brin (at) WITH (pages_per_range = 32, autosummarize = on);
"""


def upgrade() -> None:
    for statement in STATEMENTS.split(";\n"):
        if statement.strip():
            op.execute(statement)


def downgrade() -> None:
    for table in "webhook_attempts webhook_deliveries webhook_secrets webhook_endpoints".split():
        op.execute(f"DROP TABLE tokenfleet.{table}")
    op.execute("DROP INDEX tokenfleet.ix_outbox_waiting")
    op.execute("DROP INDEX tokenfleet.ix_outbox_created_at")
    op.execute("ALTER TABLE tokenfleet.outbox DROP COLUMN is_relayed")
