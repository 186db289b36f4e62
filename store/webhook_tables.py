"""The tables of webhooks, beside those of :mod:`store.tables` and in the same metadata."""

from __future__ import annotations

from sqlalchemy import (
    ARRAY,
    BigInteger,
    CheckConstraint,
    Column,
    DateTime,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    Table,
    Text,
    Uuid,
    text,
)

from store.tables import METADATA

_MOMENT = DateTime(timezone=True)
_NOW = text("now()")


def _identity() -> Column[int]:
    return Column("id", BigInteger, Identity(always=True), primary_key=True)


webhook_endpoints = Table(
    "webhook_endpoints",
    METADATA,
    _identity(),
    Column("url", Text, nullable=False),
    Column("description", Text),
    # None is all of them.
    Column("event_types", ARRAY(Text)),
    Column("tenants", ARRAY(Text)),
    Column("environments", ARRAY(Text)),
    Column("concurrency", Integer, nullable=False),
    # How long answers take lately: who is slow is asked less at once.
    Column("mean_ms", Integer, nullable=False, server_default=text("1000")),
    # Failures since the last success, whatever was sent; from some on, nothing is sent before retry_at.
    Column("failures", Integer, nullable=False, server_default=text("0")),
    Column("failing_since", _MOMENT),
    Column("last_error", Text),
    Column("last_success_at", _MOMENT),
    Column("retry_at", _MOMENT),
    Column("disabled_at", _MOMENT),
    Column("disabled_reason", Text),
    Column("created_at", _MOMENT, nullable=False, server_default=_NOW),
    CheckConstraint("concurrency BETWEEN 1 AND 1000", name="concurrency"),
    CheckConstraint("(disabled_at IS NULL) = (disabled_reason IS NULL)", name="disabled"),
    CheckConstraint("disabled_reason IN ('gone', 'failing', 'operator', 'removed')", name="reason"),
)

webhook_secrets = Table(
    "webhook_secrets",
    METADATA,
    Column(
        "endpoint_id",
        BigInteger,
        ForeignKey("webhook_endpoints.id", ondelete="CASCADE"),
        primary_key=True,
    ),
    Column("generation", BigInteger, primary_key=True),
    Column("secret", LargeBinary, nullable=False),
    # None is the current one. Those before it still sign until then.
    Column("expires_at", _MOMENT),
    Column("created_at", _MOMENT, nullable=False, server_default=_NOW),
    Index(
        "ux_webhook_secrets_current", "endpoint_id", unique=True, postgresql_where=text("expires_at IS NULL")
    ),
)

webhook_deliveries = Table(
    "webhook_deliveries",
    METADATA,
    _identity(),
    Column("endpoint_id", BigInteger, ForeignKey("webhook_endpoints.id", ondelete="CASCADE"), nullable=False),
    Column("event_id", Uuid, ForeignKey("outbox.id"), nullable=False),
    # Whose events come one after the other, in the order of sequence: an account, or an incident.
    Column("subject", Text, nullable=False),
    Column("sequence", BigInteger, nullable=False),
    Column("state", Text, nullable=False, server_default=text("'pending'")),
    # None while an earlier one of the subject is pending, and when it is finished.
    Column("next_attempt_at", _MOMENT),
    Column("claimed_until", _MOMENT),
    Column("claim_epoch", BigInteger, nullable=False, server_default=text("0")),
    Column("started_epoch", BigInteger, nullable=False, server_default=text("0")),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    Column("last_status", Integer),
    Column("last_error", Text),
    Column("last_duration_ms", Integer),
    Column("created_at", _MOMENT, nullable=False, server_default=_NOW),
    Column("finished_at", _MOMENT),
    CheckConstraint("state IN ('pending', 'delivered', 'failed')", name="state"),
    CheckConstraint("started_epoch <= claim_epoch", name="epochs"),
    CheckConstraint("(state = 'pending') = (finished_at IS NULL)", name="finished"),
    CheckConstraint("next_attempt_at IS NULL OR state = 'pending'", name="due"),
    Index(
        "ix_webhook_deliveries_due",
        "endpoint_id",
        "next_attempt_at",
        postgresql_where=text("next_attempt_at IS NOT NULL"),
    ),
    Index(
        "ix_webhook_deliveries_pending",
        "endpoint_id",
        "subject",
        "sequence",
        postgresql_where=text("state = 'pending'"),
    ),
    Index("ix_webhook_deliveries_endpoint_id", "endpoint_id", "id"),
    Index("ix_webhook_deliveries_event_id", "event_id"),
    Index(
        "ix_webhook_deliveries_finished_at", "finished_at", postgresql_where=text("finished_at IS NOT NULL")
    ),
)

webhook_attempts = Table(
    "webhook_attempts",
    METADATA,
    Column("delivery_id", BigInteger, nullable=False),
    Column("at", _MOMENT, nullable=False),
    Column("status", Integer),
    Column("error", Text),
    Column("duration_ms", Integer, nullable=False),
    Index("ix_webhook_attempts_delivery_id", "delivery_id", "at"),
    Index(
        "ix_webhook_attempts_at",
        "at",
        postgresql_using="brin",
        postgresql_with={"pages_per_range": 32, "autosummarize": "on"},
    ),
)
