"""How many values a data key has sealed, so that it is replaced before random nonces may repeat.

Revision ID: 0005
Revises: 0004
"""

from __future__ import annotations

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

compatible_from = "0004"
"""One column with a default, which the release before this one neither reads nor writes: what it seals is not counted
while it still runs, and the limit (2**31) leaves twice the room."""


def upgrade() -> None:
    op.execute("ALTER TABLE tokenfleet.data_keys ADD COLUMN sealings bigint NOT NULL DEFAULT 0")


def downgrade() -> None:
    op.execute("ALTER TABLE tokenfleet.data_keys DROP COLUMN sealings")
