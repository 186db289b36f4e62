"""The tables as SQLAlchemy knows them: what migrations are compared with, and what cold queries are built from.

The invariants stand in the migrations as constraints; ``tests/test_migrations.py`` proves that the two agree.
"""

from __future__ import annotations

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Double,
    ForeignKey,
    Identity,
    Index,
    Integer,
    Interval,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import INET, JSONB

from tokenfleet_client.contract import APPLICATION_SCHEMA

METADATA = MetaData(
    schema=APPLICATION_SCHEMA,
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    },
)

_MOMENT = DateTime(timezone=True)
_NOW = text("now()")
_EMPTY = text("'{}'::jsonb")


def _identity() -> Column[int]:
    return Column("id", BigInteger, Identity(always=True), primary_key=True)


def _account_id(*, primary_key: bool = False) -> Column[int]:
    owner = ForeignKey("accounts.id", ondelete="CASCADE")
    return Column("account_id", BigInteger, owner, primary_key=primary_key, nullable=False)


def _app_id(*, primary_key: bool = False) -> Column[int]:
    owner = ForeignKey("oauth_apps.id", ondelete="CASCADE")
    return Column("app_id", BigInteger, owner, primary_key=primary_key, nullable=False)


data_keys = Table(
    "data_keys",
    METADATA,
    Column("id", Integer, Identity(always=True), primary_key=True),
    Column("ring", Text, nullable=False),
    Column("kek_id", Text, nullable=False),
    Column("wrapped", LargeBinary, nullable=False),
    Column("is_primary", Boolean, nullable=False),
    Column("created_at", _MOMENT, nullable=False, server_default=_NOW),
    # How many values it has sealed, nearly: store.data_keys.
    Column("sealings", BigInteger, nullable=False, server_default=text("0")),
    CheckConstraint("ring IN ('access', 'refresh')", name="ring"),
    Index("ux_data_keys_primary", "ring", unique=True, postgresql_where=text("is_primary")),
)

key_holders = Table(
    "key_holders",
    METADATA,
    Column("process", Text, primary_key=True),
    Column("keks", ARRAY(Text), nullable=False),
    Column("data_keys", ARRAY(Integer), nullable=False),
    Column("seals_with", ARRAY(Integer), nullable=False),
    Column("seen_at", _MOMENT, nullable=False),
)

oauth_apps = Table(
    "oauth_apps",
    METADATA,
    _identity(),
    Column("provider", Text, nullable=False),
    Column("environment", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("client_id", Text, nullable=False),
    Column("client_secret", LargeBinary),
    Column("generation", BigInteger, nullable=False, server_default=text("1")),
    Column("variables", JSONB, nullable=False, server_default=_EMPTY),
    Column("paused_until", _MOMENT),
    Column("held_since", _MOMENT),
    Column("held_code", Text),
    Column("probe_at", _MOMENT),
    Column("created_at", _MOMENT, nullable=False, server_default=_NOW),
    Column("updated_at", _MOMENT, nullable=False, server_default=_NOW),
    # Set where the registration is one account's own: its external id.
    Column("account_external_id", Text),
    # For which generation the secret in use is sealed, if not for the app's.
    Column("secret_generation", BigInteger),
    # Answers in a row that asked for a pause and did not say how long.
    Column("throttles", Integer, nullable=False, server_default=text("0")),
    # Definite rejections since a moment, how many of them in a row, how many are let pass, how many are usual.
    Column("rejections", Integer, nullable=False, server_default=text("0")),
    Column("rejections_since", _MOMENT),
    Column("rejections_in_row", Integer, nullable=False, server_default=text("0")),
    Column("rejection_limit", Integer),
    Column("usual_rejections", Double, nullable=False, server_default=text("0")),
    # The part of its rate that the coming hour leaves, below 0 when it asks for more; when that was reckoned.
    Column("budget_slack", Double),
    Column("budget_slack_at", _MOMENT),
    # For which generation the certificate is sealed: it stays when a new secret makes a new one.
    Column("client_certificate", LargeBinary),
    Column("certificate_generation", BigInteger),
    # What the provider's definition says, for the functions of readers: store.traits.
    Column("renews", Boolean),
    Column("probes", Boolean),
    Column("earliest_refresh", Interval),
    Column("minimum_age", Interval),
    UniqueConstraint("provider", "environment", "name"),
    CheckConstraint("(held_since IS NULL) = (held_code IS NULL)", name="hold"),
    CheckConstraint("(client_certificate IS NULL) = (certificate_generation IS NULL)", name="certificate"),
)

app_secrets = Table(
    "app_secrets",
    METADATA,
    _app_id(primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("generation", BigInteger, nullable=False),
    Column("client_secret", LargeBinary, nullable=False),
    Column("refused_at", _MOMENT),
    Column("created_at", _MOMENT, nullable=False, server_default=_NOW),
)

provider_incidents = Table(
    "provider_incidents",
    METADATA,
    _identity(),
    _app_id(),
    Column("kind", Text, nullable=False),
    Column("code", Text, nullable=False),
    Column("opened_at", _MOMENT, nullable=False, server_default=_NOW),
    Column("sample_at", _MOMENT),
    Column("resolved_at", _MOMENT),
    Column("resolution", Text),
    Column("actor", Text),
    Column("reason", Text),
    Column("detail", JSONB, nullable=False, server_default=_EMPTY),
    CheckConstraint("kind IN ('client_rejected', 'mass_rejection')", name="kind"),
    CheckConstraint("resolution IN ('recovered', 'dismissed', 'confirmed')", name="resolution"),
    CheckConstraint("(resolved_at IS NULL) = (resolution IS NULL)", name="resolved"),
    Index(
        "ux_provider_incidents_open",
        "app_id",
        "kind",
        unique=True,
        postgresql_where=text("resolved_at IS NULL"),
    ),
)

unknown_answers = Table(
    "unknown_answers",
    METADATA,
    Column("provider", Text, primary_key=True),
    Column("code", Text, primary_key=True),
    Column("shape", Text, primary_key=True),
    Column("times", BigInteger, nullable=False, server_default=text("1")),
    Column("account_id", BigInteger),
    Column("first_seen_at", _MOMENT, nullable=False, server_default=_NOW),
    Column("last_seen_at", _MOMENT, nullable=False, server_default=_NOW),
)

accounts = Table(
    "accounts",
    METADATA,
    _identity(),
    Column("provider", Text, nullable=False),
    Column("environment", Text, nullable=False),
    Column("external_id", Text, nullable=False),
    Column("tenant", Text),
    Column("app_id", BigInteger, ForeignKey("oauth_apps.id"), nullable=False),
    Column("status", Text, nullable=False),
    Column("status_reason", Text),
    Column("status_changed_at", _MOMENT, nullable=False, server_default=_NOW),
    Column("variables", JSONB, nullable=False, server_default=_EMPTY),
    Column("metadata", JSONB, nullable=False, server_default=_EMPTY),
    # By which a file that is imported again is recognised: store.import_judgement.
    Column("imported_fingerprints", ARRAY(LargeBinary), nullable=False, server_default=text("'{}'::bytea[]")),
    Column("created_at", _MOMENT, nullable=False, server_default=_NOW),
    # When the customer consented, from which an absolute lifetime counts, and when its end was announced.
    Column("granted_at", _MOMENT, nullable=False, server_default=_NOW),
    Column("reauth_told_at", _MOMENT),
    UniqueConstraint("provider", "environment", "external_id"),
    CheckConstraint("status IN ('connecting', 'active', 'needs_reauth', 'paused', 'revoked')", name="status"),
    Index("ix_accounts_tenant", "tenant", "id", postgresql_where=text("tenant IS NOT NULL")),
    Index("ix_accounts_troubled", "status", "id", postgresql_where=text("status <> 'active'")),
    Index("ix_accounts_app_id", "app_id", "id"),
)

token_sets = Table(
    "token_sets",
    METADATA,
    _account_id(primary_key=True),
    Column("generation", BigInteger, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("access_token", LargeBinary),
    Column("refresh_token", LargeBinary),
    Column("token_type", Text),
    Column("scope", Text),
    Column("expires_at", _MOMENT),
    Column("obtained_at", _MOMENT, nullable=False),
    Column("refresh_token_expires_at", _MOMENT),
    Column("variables", JSONB, nullable=False, server_default=_EMPTY),
    # How long a token of this account lived that did not say so.
    Column("learned_lifetime", Interval),
)

refresh_schedule = Table(
    "refresh_schedule",
    METADATA,
    _account_id(primary_key=True),
    Column("app_id", BigInteger, nullable=False),
    Column("next_refresh_at", _MOMENT),
    Column("claimed_until", _MOMENT),
    Column("claim_epoch", BigInteger, nullable=False, server_default=text("0")),
    Column("started_epoch", BigInteger, nullable=False, server_default=text("0")),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    Column("unanswered", Integer, nullable=False, server_default=text("0")),
    Column("failing_since", _MOMENT),
    Column("last_error", Text),
    Column("quarantined", Boolean, nullable=False, server_default=text("false")),
    # Set apart by an incident: rejected during it (then not scheduled), or flipped just before it was noticed.
    Column("incident_id", BigInteger),
    # What is due is a probe of the access token, not a refresh; when a probe last found it alive.
    Column("probing", Boolean, nullable=False, server_default=text("false")),
    Column("alive_at", _MOMENT),
    # Answers since the last success that repetition may not help with: tokenfleet.policy.Known.
    Column("doubts", Integer, nullable=False, server_default=text("0")),
    # Whether anybody was told that the token has expired while the provider does not answer.
    Column("expiry_told", Boolean, nullable=False, server_default=text("false")),
    # A reader waits for it, since when; and when what the last attempt answered, or put off, was asked: store.requests.
    Column("requested_at", _MOMENT),
    Column("answered_request", _MOMENT),
    # From when on a reader may have a failed attempt made again, though it would be due later.
    Column("retry_from", _MOMENT),
    # When a reader's word that an API refuses the token was last heeded, and how often within a day each.
    Column("reported_at", _MOMENT),
    Column("reports", Integer),
    CheckConstraint("started_epoch <= claim_epoch", name="epochs"),
    Index(
        "ix_refresh_schedule_due",
        "app_id",
        "next_refresh_at",
        postgresql_where=text("next_refresh_at IS NOT NULL"),
    ),
    Index(
        "ix_refresh_schedule_requested",
        "app_id",
        "next_refresh_at",
        postgresql_where=text("requested_at IS NOT NULL"),
    ),
    Index("ix_refresh_schedule_failing", "account_id", postgresql_where=text("failing_since IS NOT NULL")),
    Index(
        "ix_refresh_schedule_incident",
        "incident_id",
        "account_id",
        postgresql_where=text("incident_id IS NOT NULL"),
    ),
)

readers = Table(
    "readers",
    METADATA,
    # A role of the database that may read by the contract, and of which tenant; NULL is all of them.
    Column("reader", Text, nullable=False),
    Column("tenant", Text),
    UniqueConstraint("reader", "tenant", postgresql_nulls_not_distinct=True),
)

token_candidates = Table(
    "token_candidates",
    METADATA,
    _identity(),
    _account_id(),
    Column("generation", BigInteger, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("access_token", LargeBinary, nullable=False),
    Column("refresh_token", LargeBinary),
    Column("token_type", Text),
    Column("scope", Text),
    Column("expires_at", _MOMENT),
    Column("obtained_at", _MOMENT, nullable=False),
    Column("refresh_token_expires_at", _MOMENT),
    Column("variables", JSONB, nullable=False),
    Column("created_at", _MOMENT, nullable=False, server_default=_NOW),
    UniqueConstraint("account_id", "generation", "epoch"),
)

account_events = Table(
    "account_events",
    METADATA,
    Column("account_id", BigInteger, nullable=False),
    Column("at", _MOMENT, nullable=False, server_default=text("clock_timestamp()")),
    Column("kind", Text, nullable=False),
    Column("code", Text),
    Column("generation", BigInteger),
    Column("epoch", BigInteger),
    Column("job_id", Uuid),
    Column("duration_ms", Integer),
    Column("actor", Text, nullable=False),
    Column("status_from", Text),
    Column("status_to", Text),
    Column("detail", JSONB),
    Index("ix_account_events_account_id", "account_id", "at"),
    Index(
        "ix_account_events_at",
        "at",
        postgresql_using="brin",
        postgresql_with={"pages_per_range": 32, "autosummarize": "on"},
    ),
    postgresql_partition_by="RANGE (at)",
)

outbox = Table(
    "outbox",
    METADATA,
    Column("id", Uuid, primary_key=True, server_default=text("gen_random_uuid()")),
    Column("sequence", BigInteger, Identity(always=True), nullable=False),
    Column("account_id", BigInteger),
    Column("event_type", Text, nullable=False),
    Column("payload", JSONB, nullable=False),
    Column("created_at", _MOMENT, nullable=False, server_default=_NOW),
    # Whether its deliveries have been made (store.outbox). What was told before there were webhooks counts as relayed.
    Column("is_relayed", Boolean, nullable=False, server_default=text("false")),
    Index("ix_outbox_account_id", "account_id", "sequence"),
    Index("ix_outbox_waiting", "sequence", postgresql_where=text("NOT is_relayed")),
    Index(
        "ix_outbox_created_at",
        "created_at",
        postgresql_using="brin",
        postgresql_with={"pages_per_range": 32, "autosummarize": "on"},
    ),
)

audit_log = Table(
    "audit_log",
    METADATA,
    _identity(),
    Column("at", _MOMENT, nullable=False, server_default=text("clock_timestamp()")),
    Column("actor", Text, nullable=False),
    Column("host", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("target", Text, nullable=False),
    Column("reason", Text),
    Column("detail", JSONB),
    # Filled in by Postgres, whatever a row says of itself.
    Column("database_role", Text, nullable=False, server_default=text("session_user")),
    Column("client_address", INET, server_default=text("inet_client_addr()")),
    Index("ix_audit_log_at", "at"),
    Index("ix_audit_log_target", "target", "id"),
)
