"""Whether this database role may do what the fleet does: asked of Postgres before the fleet finds out.

``deploy/postgres/roles.sql`` gives the application's role its rights, on what its owner makes later too. What another
role has made (a superuser who migrated, say) nobody may use, and no partition that it made can be dropped.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import Connection, text

TOLD: Final = 3
"""So many are named, the others counted."""

_UNUSABLE = text("""
    SELECT c.oid::regclass::text FROM pg_class c
    WHERE c.relnamespace IN ('tokenfleet'::regnamespace, to_regnamespace('tokenfleet_v1'))
      AND c.relkind IN ('r', 'p', 'v') AND NOT c.relispartition
      -- Not which right is missing: some tables are not for every statement. What another role made gives none.
      AND NOT has_table_privilege(c.oid, 'SELECT')
    UNION ALL
    SELECT c.oid::regclass::text FROM pg_class c
    WHERE (c.oid = 'tokenfleet.account_events'::regclass
           OR c.oid IN (SELECT inhrelid FROM pg_inherits WHERE inhparent = 'tokenfleet.account_events'::regclass))
      AND NOT pg_has_role(c.relowner, 'USAGE')
    ORDER BY 1
""")


def problem(connection: Connection) -> str | None:
    """Return what this role may not use, and what to do; None when all is well."""
    names = connection.execute(_UNUSABLE).scalars().all()
    if not names:
        return None
    role = connection.execute(text("SELECT current_user")).scalar_one()
    more = f" and {len(names) - TOLD} more" if len(names) > TOLD else ""
    return (
        f"the database role {role} may not use {', '.join(names[:TOLD])}{more}, which another role made: run "
        "deploy/postgres/roles.sql again, and 'tokenfleet db upgrade' as the owner from then on"
    )
