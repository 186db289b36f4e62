"""The counts of openings and their spikes as SQLAlchemy knows them (``store.tables`` has the others)."""

from __future__ import annotations

from sqlalchemy import BigInteger, CheckConstraint, Column, DateTime, Identity, Index, Table, Text, text

from store.tables import METADATA

_MOMENT = DateTime(timezone=True)

unsealings = Table(
    "unsealings",
    METADATA,
    Column("minute", _MOMENT, primary_key=True),
    Column("purpose", Text, primary_key=True),
    Column("caller", Text, primary_key=True),
    # Filled in by Postgres, whatever a row says of itself.
    Column("database_role", Text, primary_key=True, server_default=text("session_user")),
    Column("opened", BigInteger, nullable=False),
    CheckConstraint(
        "purpose IN ('refresh', 'probe', 'revoke', 'candidate', 'app_secret', 'webhook', 'import', 'resealing', "
        "'export', 'inspect', 'verify', 'read')",
        name="purpose",
    ),
    CheckConstraint("length(caller) BETWEEN 1 AND 200", name="caller"),
    CheckConstraint("opened > 0", name="opened"),
)

unsealing_spikes = Table(
    "unsealing_spikes",
    METADATA,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("purpose", Text, nullable=False),
    Column("database_role", Text, nullable=False),
    # Who opened most of it.
    Column("caller", Text, nullable=False),
    Column("began_at", _MOMENT, nullable=False, server_default=text("clock_timestamp()")),
    Column("ended_at", _MOMENT),
    # The most that one window had, and what it would have had at most.
    Column("opened", BigInteger, nullable=False),
    Column("expected", BigInteger, nullable=False),
    Index(
        "ux_unsealing_spikes_open",
        "purpose",
        "database_role",
        unique=True,
        postgresql_where=text("ended_at IS NULL"),
    ),
)
