"""Several client secrets of one app, in order: the one in use, and those that are tried when it is refused.

The secret in use stands with the app (``oauth_apps``), the spare ones in ``app_secrets`` by position, each sealed for
the app's generation at which it was set (``secret_generation`` for the one in use). Invariants kept here:

* A secret that takes another one's place is a new generation of the app: what the provider says about the old one, and
  arrives late, concerns it no more (``store.apps.hold``).
* No secret is thrown away because a provider refused it: it goes to the end, marked.

Callers have locked the app's row.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import Connection, text

from tokenfleet.jobs import AppId

MAX_SPARES: Final = 4
"""Spare secrets of one app; of more the last ones are forgotten."""

_SPARES = text("""
    SELECT position, generation, refused_at, created_at FROM tokenfleet.app_secrets
    WHERE app_id = :app_id ORDER BY position
""")

_TAKE = text("""
    DELETE FROM tokenfleet.app_secrets WHERE app_id = :app_id AND position = :position
    RETURNING generation, client_secret
""")

_PUT_LAST = text("""
    INSERT INTO tokenfleet.app_secrets (app_id, position, generation, client_secret, refused_at)
    SELECT id, 1 + COALESCE((SELECT max(position) FROM tokenfleet.app_secrets WHERE app_id = :app_id), 0),
           COALESCE(secret_generation, generation), client_secret, now()
    FROM tokenfleet.oauth_apps WHERE id = :app_id AND client_secret IS NOT NULL
""")

_PUT_FIRST = text("""
    INSERT INTO tokenfleet.app_secrets (app_id, position, generation, client_secret)
    SELECT id, COALESCE((SELECT min(position) FROM tokenfleet.app_secrets WHERE app_id = :app_id), 1) - 1,
           COALESCE(secret_generation, generation), client_secret
    FROM tokenfleet.oauth_apps WHERE id = :app_id AND client_secret IS NOT NULL
""")

_USE = text("""
    UPDATE tokenfleet.oauth_apps
    SET client_secret = :client_secret, secret_generation = :sealed_for, generation = generation + 1,
        updated_at = now()
    WHERE id = :app_id
""")


@dataclass(frozen=True, slots=True)
class Spare:
    """One secret that is not in use. ``refused_at`` is when the provider refused it."""

    position: int
    generation: int
    refused_at: datetime | None
    created_at: datetime


def spares(connection: Connection, app_id: AppId) -> list[Spare]:
    """Return the spare secrets of an app, in the order in which they are tried."""
    return [Spare(**row._mapping) for row in connection.execute(_SPARES, {"app_id": app_id})]


def use_next(connection: Connection, app_id: AppId, *, refused_too: bool) -> bool:
    """Put the secret in use to the end, refused, and the next one in its place; False when there is none.

    ``refused_too`` is whether one that was refused before will do: then they go round.
    """
    waiting = spares(connection, app_id)
    following = [each for each in waiting if each.refused_at is None] or (waiting if refused_too else [])
    if not following:
        return False
    taken = connection.execute(_TAKE, {"app_id": app_id, "position": following[0].position}).one()
    connection.execute(_PUT_LAST, {"app_id": app_id})
    connection.execute(
        _USE, {"app_id": app_id, "client_secret": taken.client_secret, "sealed_for": taken.generation}
    )
    return True


def keep_current(connection: Connection, app_id: AppId) -> None:
    """Make the secret in use the first spare one: it is about to be replaced, and may be the one that still works."""
    connection.execute(_PUT_FIRST, {"app_id": app_id})
    for forgotten in spares(connection, app_id)[MAX_SPARES:]:
        connection.execute(_TAKE, {"app_id": app_id, "position": forgotten.position})


def forget(connection: Connection, app_id: AppId) -> None:
    """Remove the spare secrets of an app: nobody presents them any more."""
    connection.execute(text("DELETE FROM tokenfleet.app_secrets WHERE app_id = :app_id"), {"app_id": app_id})
