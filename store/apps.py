"""OAuth client registrations ("apps"), and the two ways an app can stop being asked for.

``paused_until``: the provider said "not before then" (429, ``Retry-After``). ``held_since``: the provider
rejects the registration itself; one account probes from time to time, and its success ends the hold. Neither
changes any account's status (G4).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import Connection, text

from tokenfleet.jobs import AppId
from tokenfleet_client.envelope import Binding, DataKeys, Ring
from tokenfleet_client.secret import Secret

DEFAULT_NAME: Final = "default"
DEFAULT_ENVIRONMENT: Final = "production"

_COLUMNS: Final = """
    id, provider, environment, name, client_id, client_secret, generation, variables, paused_until,
    held_since, held_code, probe_at, created_at, updated_at,
    COALESCE(paused_until > clock_timestamp(), false) AS is_paused
"""


@dataclass(frozen=True, slots=True)
class App:
    """One client registration. ``client_secret`` is sealed; ``generation`` counts its changes."""

    app_id: AppId
    provider: str
    environment: str
    name: str
    client_id: str
    client_secret: bytes | None
    generation: int
    variables: Mapping[str, str]
    paused_until: datetime | None
    is_paused: bool
    """By the database's clock, when it was read."""
    held_since: datetime | None
    held_code: str | None
    probe_at: datetime | None
    created_at: datetime
    updated_at: datetime


def secret_binding(app_id: AppId, generation: int) -> Binding:
    """Return where the client secret of one app's generation stands."""
    return Binding(Ring.REFRESH, f"app:{app_id}", "client_secret", generation)


def load(connection: Connection, app_id: AppId) -> App | None:
    """Return the app, or None when it was removed."""
    rows = connection.execute(
        text(f"SELECT {_COLUMNS} FROM tokenfleet.oauth_apps WHERE id = :app_id"), {"app_id": app_id}
    )
    return next((_app(row) for row in rows), None)


def find(connection: Connection, provider: str, environment: str, name: str) -> App | None:
    """Return the app registered under this name, or None."""
    rows = connection.execute(
        text(
            f"SELECT {_COLUMNS} FROM tokenfleet.oauth_apps "
            "WHERE provider = :provider AND environment = :environment AND name = :name"
        ),
        {"provider": provider, "environment": environment, "name": name},
    )
    return next((_app(row) for row in rows), None)


def all_apps(connection: Connection) -> list[App]:
    """Return every app, by provider, environment and name."""
    rows = connection.execute(
        text(f"SELECT {_COLUMNS} FROM tokenfleet.oauth_apps ORDER BY provider, environment, name")
    )
    return [_app(row) for row in rows]


def register(
    connection: Connection,
    refresh_keys: DataKeys,
    *,
    provider: str,
    environment: str,
    name: str,
    client_id: str,
    client_secret: Secret | None,
    variables: Mapping[str, str],
) -> App:
    """Create the app, or replace its credentials and variables.

    Ends a hold, a pause and the quarantine of its accounts: an operator has looked at it and mended it.
    """
    row = connection.execute(
        text("""
            INSERT INTO tokenfleet.oauth_apps (provider, environment, name, client_id, variables)
            VALUES (:provider, :environment, :name, :client_id, CAST(:variables AS jsonb))
            ON CONFLICT (provider, environment, name) DO UPDATE
            SET client_id = excluded.client_id, variables = excluded.variables,
                generation = oauth_apps.generation + 1, updated_at = now(),
                held_since = NULL, held_code = NULL, probe_at = NULL, paused_until = NULL
            RETURNING id, generation
        """),
        {
            "provider": provider,
            "environment": environment,
            "name": name,
            "client_id": client_id,
            "variables": json.dumps(dict(variables)),
        },
    ).one()
    sealed = None
    if client_secret is not None:
        binding = secret_binding(AppId(row.id), row.generation)
        sealed = refresh_keys.seal(client_secret.reveal(), binding)
    connection.execute(
        text("UPDATE tokenfleet.oauth_apps SET client_secret = :sealed WHERE id = :id"),
        {"sealed": sealed, "id": row.id},
    )
    connection.execute(
        text("""
            UPDATE tokenfleet.refresh_schedule SET quarantined = false, attempts = 0, next_refresh_at = now(),
                probing = false
            WHERE app_id = :id AND quarantined AND next_refresh_at IS NOT NULL
              -- But not those whose successor lies in a journal: what Postgres holds for them is spent.
              AND COALESCE(last_error, '') NOT LIKE 'answer_refused%'
        """),
        {"id": row.id},
    )
    app = load(connection, AppId(row.id))
    assert app is not None
    return app


def count_accounts(connection: Connection, app_id: AppId) -> int:
    """Return how many accounts are tied to the app."""
    count: int = connection.execute(
        text("SELECT count(*) FROM tokenfleet.accounts WHERE app_id = :app_id"), {"app_id": app_id}
    ).scalar_one()
    return count


def remove(connection: Connection, app_id: AppId) -> None:
    """Delete an app that no account is tied to; the foreign key refuses any other."""
    connection.execute(text("DELETE FROM tokenfleet.oauth_apps WHERE id = :app_id"), {"app_id": app_id})


def pause_until(connection: Connection, app_ids: Sequence[AppId], moments: Sequence[datetime]) -> None:
    """Ask nobody of these apps before the given moments; an earlier, longer pause stays."""
    connection.execute(
        text("""
            UPDATE tokenfleet.oauth_apps a SET paused_until = GREATEST(a.paused_until, i.moment)
            FROM (SELECT app_id, max(moment) AS moment
                  FROM unnest(CAST(:app_ids AS bigint[]), CAST(:moments AS timestamptz[]))
                      AS pair (app_id, moment) GROUP BY app_id) i
            WHERE a.id = i.app_id
        """),
        {"app_ids": list(app_ids), "moments": list(moments)},
    )


def hold(
    connection: Connection, app_id: AppId, code: str, *, generation: int, probe_after: timedelta
) -> bool:
    """Hold the app because its registration is rejected; True when this call began the hold.

    ``generation`` is that of the credentials that were rejected: a rejection of credentials that an operator
    has replaced meanwhile holds nothing.
    """
    row = connection.execute(
        text("""
            WITH before AS (
                SELECT id, held_since FROM tokenfleet.oauth_apps WHERE id = :app_id FOR UPDATE)
            UPDATE tokenfleet.oauth_apps a
            SET held_since = COALESCE(a.held_since, now()), held_code = :code,
                probe_at = GREATEST(a.probe_at, now() + CAST(:probe_after AS interval))
            FROM before WHERE a.id = before.id AND a.generation = :generation
            RETURNING before.held_since IS NULL AS began
        """),
        {"app_id": app_id, "code": code, "probe_after": probe_after, "generation": generation},
    ).one_or_none()
    return row is not None and bool(row.began)


def end_hold(connection: Connection, app_id: AppId) -> bool:
    """End a hold because a probe succeeded; True when there was one."""
    result: Any = connection.execute(
        text("""
            UPDATE tokenfleet.oauth_apps SET held_since = NULL, held_code = NULL, probe_at = NULL
            WHERE id = :app_id AND held_since IS NOT NULL
        """),
        {"app_id": app_id},
    )
    return bool(result.rowcount)


def take_probes(connection: Connection, *, spacing: timedelta) -> frozenset[AppId]:
    """Return held apps whose next probe is due, and put the one after that ``spacing`` away.

    Guarded by the row, so two schedulers never probe one app at once.
    """
    rows = connection.execute(
        text("""
            UPDATE tokenfleet.oauth_apps SET probe_at = now() + CAST(:spacing AS interval)
            WHERE held_since IS NOT NULL AND (probe_at IS NULL OR probe_at <= now())
            RETURNING id
        """),
        {"spacing": spacing},
    )
    return frozenset(AppId(row.id) for row in rows)


def _app(row: Any) -> App:
    return App(
        app_id=AppId(row.id),
        provider=row.provider,
        environment=row.environment,
        name=row.name,
        client_id=row.client_id,
        client_secret=bytes(row.client_secret) if row.client_secret is not None else None,
        generation=row.generation,
        variables=row.variables,
        paused_until=row.paused_until,
        is_paused=row.is_paused,
        held_since=row.held_since,
        held_code=row.held_code,
        probe_at=row.probe_at,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )
