"""Which keys each running worker has, so that no key seals before all of them can open it.

Revision ID: 0008
Revises: 0007
"""

from __future__ import annotations

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

compatible_from = "0003"
"""One table, which the releases before this one neither read nor write: their workers are waited for by the clock, as
before."""


def upgrade() -> None:
    op.execute("""
        CREATE TABLE tokenfleet.key_holders (
            process text CONSTRAINT pk_key_holders PRIMARY KEY,
            keks text[] NOT NULL,
            data_keys integer[] NOT NULL,
            seals_with integer[] NOT NULL,
            seen_at timestamptz NOT NULL
        ) WITH (fillfactor = 50)
    """)


def downgrade() -> None:
    op.execute("DROP TABLE tokenfleet.key_holders")
