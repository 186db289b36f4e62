"""OAuth client registrations ("apps"), and the two ways an app can stop being asked for.

``paused_until``: the provider said "not before then" (429, ``Retry-After``). ``held_since``: the provider
rejects the registration itself; one account probes from time to time, and its success ends the hold. Neither
changes any account's status (G4).

``in_incident``: its accounts are rejected in numbers that nobody believes (``store.guard``).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import Connection, text

from store import app_secrets
from store.schedule import WAKE_CHANNEL
from tokenfleet.app_levels import ACCOUNT_PREFIX
from tokenfleet.guard import SILENT_AFTER
from tokenfleet.jobs import AppId
from tokenfleet_client.envelope import Binding, DataKeys, Ring
from tokenfleet_client.secret import Secret

DEFAULT_NAME: Final = "default"
DEFAULT_ENVIRONMENT: Final = "production"

_COLUMNS: Final = """
    id, provider, environment, name, client_id, client_secret, generation, variables, paused_until,
    held_since, held_code, probe_at, created_at, updated_at, throttles,
    COALESCE(paused_until > clock_timestamp(), false) AS is_paused,
    COALESCE(secret_generation, generation) AS secret_generation, rejections_in_row,
    client_certificate, certificate_generation,
    EXISTS (SELECT FROM tokenfleet.provider_incidents i
            WHERE i.app_id = oauth_apps.id AND i.kind = 'mass_rejection' AND i.resolved_at IS NULL) AS in_incident
"""


@dataclass(frozen=True, slots=True)
class App:
    """One client registration. ``client_secret`` is sealed for ``secret_generation``; ``generation`` counts changes."""

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
    throttles: int
    """Pauses in a row whose length the provider did not say."""
    secret_generation: int
    rejections_in_row: int
    in_incident: bool
    """Its accounts are rejected in numbers that nobody believes (``store.guard``)."""
    client_certificate: bytes | None
    certificate_generation: int | None
    """For which generation the certificate is sealed (``store.app_certificates``)."""

    @property
    def is_sampled(self) -> bool:
        """Whether only samples are asked: there is an incident, and nobody has succeeded in it lately."""
        return self.in_incident and self.rejections_in_row >= SILENT_AFTER


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


def all_for(connection: Connection, external_ids: Sequence[str]) -> list[App]:
    """Return every app but those of single accounts, and of these the ones of ``external_ids``."""
    rows = connection.execute(
        text(
            f"SELECT {_COLUMNS} FROM tokenfleet.oauth_apps "
            "WHERE account_external_id IS NULL OR account_external_id = ANY (CAST(:external_ids AS text[]))"
        ),
        {"external_ids": list(external_ids)},
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
    keep_previous: bool = False,
) -> App:
    """Create the app, or replace its credentials and variables.

    An operator has looked at it and mended it: a pause ends, and the quarantine of its accounts. A hold ends when the
    provider agrees: one account probes at once, and the others follow when it succeeds.

    ``keep_previous`` keeps the secret that was in use, and the spare ones, to be tried when the new one is refused.
    Otherwise they are forgotten. A client certificate stays (``store.app_certificates``).
    """
    before = find(connection, provider, environment, name)
    if before is not None:
        # First, or a worker that replaces a refused secret now would leave it behind as a spare one.
        connection.execute(
            text("SELECT FROM tokenfleet.oauth_apps WHERE id = :id FOR NO KEY UPDATE"), {"id": before.app_id}
        )
        if keep_previous:
            app_secrets.keep_current(connection, before.app_id)
        else:
            app_secrets.forget(connection, before.app_id)
    row = connection.execute(
        text("""
            INSERT INTO tokenfleet.oauth_apps
                (provider, environment, name, client_id, variables, account_external_id)
            VALUES (:provider, :environment, :name, :client_id, CAST(:variables AS jsonb), :account_external_id)
            ON CONFLICT (provider, environment, name) DO UPDATE
            SET client_id = excluded.client_id, variables = excluded.variables,
                generation = oauth_apps.generation + 1, secret_generation = NULL, updated_at = now(),
                probe_at = CASE WHEN oauth_apps.held_since IS NOT NULL THEN now() END, paused_until = NULL,
                throttles = 0
            RETURNING id, generation, held_code
        """),
        {
            "provider": provider,
            "environment": environment,
            "name": name,
            "client_id": client_id,
            "variables": json.dumps(dict(variables)),
            "account_external_id": name.removeprefix(ACCOUNT_PREFIX)
            if name.startswith(ACCOUNT_PREFIX)
            else None,
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
            UPDATE tokenfleet.refresh_schedule
            SET quarantined = false, attempts = 0, doubts = 0, next_refresh_at = now(), probing = false
            WHERE app_id = :id AND (quarantined OR last_error = CAST(:held_code AS text))
              AND next_refresh_at IS NOT NULL
              -- But not those whose successor lies in a journal: what Postgres holds for them is spent.
              AND COALESCE(last_error, '') NOT LIKE 'answer_refused%'
        """),
        {"id": row.id, "held_code": row.held_code},
    )
    connection.execute(text("SELECT pg_notify(:channel, '')"), {"channel": WAKE_CHANNEL})
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


def pause_until(
    connection: Connection,
    app_ids: Sequence[AppId],
    moments: Sequence[datetime],
    throttles: Sequence[int] | None = None,
) -> None:
    """Ask nobody of these apps before the given moments; an earlier, longer pause stays.

    ``throttles`` is for each app what its count of pauses without a length is with this one, 0 for one with a length.
    Many answers to requests that left together say the same number, so they count as one.
    """
    connection.execute(
        text("""
            UPDATE tokenfleet.oauth_apps a
            SET paused_until = GREATEST(a.paused_until, i.moment), throttles = GREATEST(a.throttles, i.throttles)
            FROM (SELECT app_id, max(moment) AS moment, max(throttles) AS throttles
                  FROM unnest(CAST(:app_ids AS bigint[]), CAST(:moments AS timestamptz[]),
                              CAST(:throttles AS int[]))
                      AS pause (app_id, moment, throttles) GROUP BY app_id) i
            WHERE a.id = i.app_id
        """),
        {
            "app_ids": list(app_ids),
            "moments": list(moments),
            "throttles": [0] * len(app_ids) if throttles is None else list(throttles),
        },
    )


def forget_throttles(connection: Connection, app_ids: Iterable[AppId]) -> None:
    """Begin to count anew: these apps answer well again."""
    connection.execute(
        text(
            "UPDATE tokenfleet.oauth_apps SET throttles = 0 "
            "WHERE id = ANY (CAST(:app_ids AS bigint[])) AND throttles > 0"
        ),
        {"app_ids": sorted(app_ids)},
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
                -- Not FOR UPDATE: imports refer to this row, and need not wait.
                SELECT id, held_since FROM tokenfleet.oauth_apps WHERE id = :app_id FOR NO KEY UPDATE)
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
        throttles=row.throttles,
        secret_generation=row.secret_generation,
        rejections_in_row=row.rejections_in_row,
        in_incident=row.in_incident,
        client_certificate=bytes(row.client_certificate) if row.client_certificate is not None else None,
        certificate_generation=row.certificate_generation,
    )
