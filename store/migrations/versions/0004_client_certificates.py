"""The client certificate of an app (RFC 8705), sealed, and the generation that it is sealed for.

Revision ID: 0004
Revises: 0003
"""

from __future__ import annotations

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

compatible_from = "0003"
"""Two nullable columns, which the release before this one neither reads nor writes: what it changes of an app leaves
them as they are, and they say themselves for which generation they are sealed."""


def upgrade() -> None:
    op.execute("""
        ALTER TABLE tokenfleet.oauth_apps
            ADD COLUMN client_certificate bytea,
            ADD COLUMN certificate_generation bigint,
            ADD CONSTRAINT ck_oauth_apps_certificate
                CHECK ((client_certificate IS NULL) = (certificate_generation IS NULL))
    """)


def downgrade() -> None:
    op.execute("""
        ALTER TABLE tokenfleet.oauth_apps
            DROP CONSTRAINT ck_oauth_apps_certificate,
            DROP COLUMN certificate_generation,
            DROP COLUMN client_certificate
    """)
