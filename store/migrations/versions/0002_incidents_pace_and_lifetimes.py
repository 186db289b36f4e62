"""Provider incidents, spare client secrets, unknown answers, and what is known of lifetimes.

Revision ID: 0002
Revises: 0001
"""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

compatible_from = "0001"
"""Everything is added and has a default: the release before this one does not miss it. What that one writes meanwhile
is as if these columns had never been set."""

STATEMENTS = """
ALTER TABLE tokenfleet.oauth_apps
    ADD COLUMN account_external_id text,
    ADD COLUMN secret_generation bigint,
    ADD COLUMN throttles integer NOT NULL DEFAULT 0,
    ADD COLUMN rejections integer NOT NULL DEFAULT 0,
    ADD COLUMN rejections_since timestamptz,
    ADD COLUMN rejections_in_row integer NOT NULL DEFAULT 0,
    ADD COLUMN rejection_limit integer,
    ADD COLUMN usual_rejections double precision NOT NULL DEFAULT 0,
    ADD COLUMN budget_slack double precision,
    ADD COLUMN budget_slack_at timestamptz;

CREATE TABLE tokenfleet.app_secrets (
    app_id bigint NOT NULL
        CONSTRAINT fk_app_secrets_app_id_oauth_apps REFERENCES tokenfleet.oauth_apps (id) ON DELETE CASCADE,
    position integer NOT NULL,
    generation bigint NOT NULL,
    client_secret bytea NOT NULL,
    refused_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT pk_app_secrets PRIMARY KEY (app_id, position)
);

CREATE TABLE tokenfleet.provider_incidents (
    id bigint GENERATED ALWAYS AS IDENTITY CONSTRAINT pk_provider_incidents PRIMARY KEY,
    app_id bigint NOT NULL
        CONSTRAINT fk_provider_incidents_app_id_oauth_apps
        REFERENCES tokenfleet.oauth_apps (id) ON DELETE CASCADE,
    kind text NOT NULL CONSTRAINT ck_provider_incidents_kind
        CHECK (kind IN ('client_rejected', 'mass_rejection')),
    code text NOT NULL,
    opened_at timestamptz NOT NULL DEFAULT now(),
    sample_at timestamptz,
    resolved_at timestamptz,
    resolution text CONSTRAINT ck_provider_incidents_resolution
        CHECK (resolution IN ('recovered', 'dismissed', 'confirmed')),
    actor text,
    reason text,
    detail jsonb NOT NULL DEFAULT '{}',
    CONSTRAINT ck_provider_incidents_resolved CHECK ((resolved_at IS NULL) = (resolution IS NULL))
);
CREATE UNIQUE INDEX ux_provider_incidents_open ON tokenfleet.provider_incidents (app_id, kind)
    WHERE resolved_at IS NULL;

CREATE TABLE tokenfleet.unknown_answers (
    provider text NOT NULL,
    code text NOT NULL,
    shape text NOT NULL,
    times bigint NOT NULL DEFAULT 1,
    account_id bigint,
    first_seen_at timestamptz NOT NULL DEFAULT now(),
    last_seen_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT pk_unknown_answers PRIMARY KEY (provider, code, shape)
);

ALTER TABLE tokenfleet.accounts
    ADD COLUMN granted_at timestamptz NOT NULL DEFAULT now(),
    ADD COLUMN reauth_told_at timestamptz;
ALTER TABLE tokenfleet.token_sets
    ADD COLUMN learned_lifetime interval;
ALTER TABLE tokenfleet.refresh_schedule
    ADD COLUMN incident_id bigint,
    ADD COLUMN probing boolean NOT NULL DEFAULT false,
    ADD COLUMN alive_at timestamptz,
    ADD COLUMN doubts integer NOT NULL DEFAULT 0,
    ADD COLUMN expiry_told boolean NOT NULL DEFAULT false;
CREATE INDEX ix_refresh_schedule_incident ON tokenfleet.refresh_schedule (incident_id, account_id)
    WHERE incident_id IS NOT NULL;
"""


def upgrade() -> None:
    for statement in STATEMENTS.split(";\n"):
        if statement.strip():
            op.execute(statement)


def downgrade() -> None:
    op.execute("DROP INDEX tokenfleet.ix_refresh_schedule_incident")
    for table, columns in {
        "refresh_schedule": "incident_id probing alive_at doubts expiry_told",
        "token_sets": "learned_lifetime",
        "accounts": "granted_at reauth_told_at",
        "oauth_apps": "account_external_id secret_generation throttles rejections rejections_since "
        "rejections_in_row rejection_limit usual_rejections budget_slack budget_slack_at",
    }.items():
        drops = ", ".join(f"DROP COLUMN {column}" for column in columns.split())
        op.execute(f"ALTER TABLE tokenfleet.{table} {drops}")
    for table in ("unknown_answers", "provider_incidents", "app_secrets"):
        op.execute(f"DROP TABLE tokenfleet.{table}")
