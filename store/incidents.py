"""Provider incidents: what is wrong between a provider and one app, opened once and resolved once.

Two kinds. ``client_rejected``: the app's registration is refused; the app is held (``store.holds``).
``mass_rejection``: more grants were rejected at once than is believed; the accounts are set apart
(``store.parking``) by the guard (``store.guard``). Invariants kept here:

* At most one incident of a kind is open for an app (``ux_provider_incidents_open``).
* An incident opens and is resolved together with its event in the outbox, each once (G5).
* Locks are taken in one order: token sets, then the app's row, then the rest.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final

from sqlalchemy import Connection, text

from store.schedule import WAKE_CHANNEL
from tokenfleet.account import EventType
from tokenfleet.jobs import AppId

RECENT: Final = 100
"""How many resolved incidents a list shows at most."""


class Kind(StrEnum):
    """What is wrong."""

    CLIENT_REJECTED = "client_rejected"
    MASS_REJECTION = "mass_rejection"


class Resolution(StrEnum):
    """How an incident ended."""

    RECOVERED = "recovered"
    """The provider took back what it said: an account that it had rejected succeeded."""
    DISMISSED = "dismissed"
    """An operator says that it was none: everybody is asked again."""
    CONFIRMED = "confirmed"
    """An operator says that the rejections are real: those accounts need their customers."""


@dataclass(frozen=True, slots=True)
class Incident:
    """One incident, with its app. ``sample_at`` is when the schedulers next do something about it, None for never:
    take samples while it is open, give its accounts back when it is resolved.
    """

    incident_id: int
    app_id: AppId
    provider: str
    environment: str
    app: str
    kind: Kind
    code: str
    opened_at: datetime
    sample_at: datetime | None
    resolved_at: datetime | None
    resolution: Resolution | None
    actor: str | None
    reason: str | None
    detail: Mapping[str, Any]

    def log_fields(self) -> dict[str, object]:
        """Return what logs say about it."""
        return {
            "incident": self.incident_id,
            "app_id": self.app_id,
            "kind": self.kind.value,
            "code": self.code,
            "resolution": None if self.resolution is None else self.resolution.value,
        }


@dataclass(frozen=True, slots=True)
class Members:
    """The accounts that an incident has set apart: rejected during it, and flipped just before it was noticed."""

    parked: int
    flipped: int


_COLUMNS = """
    i.id AS incident_id, i.app_id, p.provider, p.environment, p.name AS app, i.kind, i.code, i.opened_at, i.sample_at,
    i.resolved_at, i.resolution, i.actor, i.reason, i.detail
"""

_TOLD = """
    INSERT INTO tokenfleet.outbox (event_type, payload)
    SELECT CAST(:event AS text), jsonb_build_object(
        'id', i.id, 'integration_name', p.provider, 'environment', p.environment, 'app', p.name,
        'kind', i.kind, 'code', i.code,
        'status', CASE WHEN i.resolved_at IS NULL THEN 'open' ELSE 'resolved' END,
        'opened_at', i.opened_at, 'resolved_at', i.resolved_at, 'resolution', i.resolution)
    FROM changed i JOIN tokenfleet.oauth_apps p ON p.id = i.app_id
"""

_OPEN = text(f"""
    WITH changed AS (
        INSERT INTO tokenfleet.provider_incidents (app_id, kind, code, sample_at, detail)
        VALUES (:app_id, :kind, :code, now() + CAST(:sample_after AS interval), CAST(:detail AS jsonb))
        ON CONFLICT (app_id, kind) WHERE resolved_at IS NULL DO NOTHING
        RETURNING *
    ), told AS ({_TOLD})
    SELECT {_COLUMNS} FROM changed i JOIN tokenfleet.oauth_apps p ON p.id = i.app_id
""")

_LOCK_APP = text("""
    SELECT p.id FROM tokenfleet.oauth_apps p
    WHERE p.id = (SELECT app_id FROM tokenfleet.provider_incidents WHERE id = :incident_id)
    FOR NO KEY UPDATE
""")

_RESOLVE = text(f"""
    WITH changed AS (
        UPDATE tokenfleet.provider_incidents
        SET resolved_at = now(), resolution = :resolution, actor = :actor, reason = CAST(:reason AS text),
            sample_at = CASE WHEN kind = 'mass_rejection' THEN now() END
        WHERE id = :incident_id AND resolved_at IS NULL
        RETURNING *
    ), told AS ({_TOLD}), freed AS (
        -- What was counted until now is explained by the incident; counting starts anew, and what is usual stays.
        UPDATE tokenfleet.oauth_apps p
        SET rejections = CASE WHEN mass THEN 0 ELSE p.rejections END,
            rejections_since = CASE WHEN mass THEN NULL ELSE p.rejections_since END,
            rejection_limit = CASE WHEN mass THEN NULL ELSE p.rejection_limit END,
            rejections_in_row = CASE WHEN mass THEN 0 ELSE p.rejections_in_row END,
            held_since = CASE WHEN mass THEN p.held_since END,
            held_code = CASE WHEN mass THEN p.held_code END,
            probe_at = CASE WHEN mass THEN p.probe_at END
        FROM (SELECT app_id, kind = 'mass_rejection' AS mass FROM changed) c WHERE p.id = c.app_id
    ), woken AS (SELECT pg_notify(:channel, '') FROM changed)
    SELECT {_COLUMNS} FROM changed i JOIN tokenfleet.oauth_apps p ON p.id = i.app_id CROSS JOIN woken
""")

_LIST = text(f"""
    (SELECT {_COLUMNS} FROM tokenfleet.provider_incidents i JOIN tokenfleet.oauth_apps p ON p.id = i.app_id
     WHERE i.resolved_at IS NULL)
    UNION ALL
    (SELECT {_COLUMNS} FROM tokenfleet.provider_incidents i JOIN tokenfleet.oauth_apps p ON p.id = i.app_id
     WHERE i.resolved_at IS NOT NULL ORDER BY i.resolved_at DESC LIMIT :resolved)
    ORDER BY incident_id DESC
""")

_LOAD = text(f"""
    SELECT {_COLUMNS} FROM tokenfleet.provider_incidents i JOIN tokenfleet.oauth_apps p ON p.id = i.app_id
    WHERE i.id = :incident_id
""")

_MEMBERS = text("""
    SELECT s.incident_id, count(*) FILTER (WHERE a.status <> 'needs_reauth') AS parked,
           count(*) FILTER (WHERE a.status = 'needs_reauth') AS flipped
    FROM tokenfleet.refresh_schedule s JOIN tokenfleet.accounts a ON a.id = s.account_id
    WHERE s.incident_id = ANY (CAST(:incident_ids AS bigint[]))
    GROUP BY s.incident_id
""")

_TAKE_DUE = text(f"""
    WITH due AS (
        SELECT id FROM tokenfleet.provider_incidents WHERE sample_at <= now()
        ORDER BY id FOR UPDATE SKIP LOCKED
    ), changed AS (
        UPDATE tokenfleet.provider_incidents i SET sample_at = now() + CAST(:spacing AS interval)
        FROM due WHERE i.id = due.id
        RETURNING i.*
    )
    SELECT {_COLUMNS} FROM changed i JOIN tokenfleet.oauth_apps p ON p.id = i.app_id
""")


def open_incident(
    connection: Connection,
    app_id: AppId,
    kind: Kind,
    *,
    code: str,
    detail: Mapping[str, Any],
    sample_after: timedelta | None,
) -> Incident | None:
    """Open an incident, with its event; None when one of this kind is open already.

    The caller has locked the app's row. ``sample_after`` is when the schedulers first look after it.
    """
    rows = connection.execute(
        _OPEN,
        {
            "app_id": app_id,
            "kind": kind.value,
            "code": code,
            "detail": json.dumps(dict(detail)),
            "sample_after": sample_after,
            "event": EventType.INCIDENT_OPENED.value,
        },
    )
    return next((_incident(row) for row in rows), None)


def resolve(
    connection: Connection,
    incident_id: int,
    resolution: Resolution,
    *,
    actor: str,
    reason: str | None = None,
) -> Incident | None:
    """Resolve an open incident, with its event; None when there is none or it was resolved before.

    A hold ends with its incident. Accounts that were set apart are given back by the schedulers
    (``store.parking``), which are woken on commit.
    """
    connection.execute(_LOCK_APP, {"incident_id": incident_id})
    rows = connection.execute(
        _RESOLVE,
        {
            "incident_id": incident_id,
            "resolution": resolution.value,
            "actor": actor,
            "reason": reason,
            "event": EventType.INCIDENT_RESOLVED.value,
            "channel": WAKE_CHANNEL,
        },
    )
    return next((_incident(row) for row in rows), None)


def load(connection: Connection, incident_id: int) -> Incident | None:
    """Return one incident, or None."""
    return next((_incident(row) for row in connection.execute(_LOAD, {"incident_id": incident_id})), None)


def listing(connection: Connection, *, resolved: int = 0) -> list[Incident]:
    """Return every open incident and the ``resolved`` last ones of the others, the newest first."""
    return [_incident(row) for row in connection.execute(_LIST, {"resolved": resolved})]


def members(connection: Connection, incident_ids: Sequence[int]) -> dict[int, Members]:
    """Return how many accounts each incident has set apart still. Relies on ``ix_refresh_schedule_incident``."""
    rows = connection.execute(_MEMBERS, {"incident_ids": list(incident_ids)})
    found = {row.incident_id: Members(row.parked, row.flipped) for row in rows}
    return {each: found.get(each, Members(0, 0)) for each in incident_ids}


def take_due(connection: Connection, *, spacing: timedelta) -> list[Incident]:
    """Return the incidents that something is to be done about, and put their next turn ``spacing`` away.

    Guarded by the rows, so two schedulers never do it at once.
    """
    return [_incident(row) for row in connection.execute(_TAKE_DUE, {"spacing": spacing})]


def open_of_app(connection: Connection, app_id: AppId, kind: Kind) -> int | None:
    """Return the id of the open incident of a kind, or None."""
    found: int | None = connection.execute(
        text("""
            SELECT id FROM tokenfleet.provider_incidents
            WHERE app_id = :app_id AND kind = :kind AND resolved_at IS NULL
        """),
        {"app_id": app_id, "kind": kind.value},
    ).scalar_one_or_none()
    return found


def _incident(row: Any) -> Incident:
    values = dict(row._mapping)
    values["app_id"] = AppId(row.app_id)
    values["kind"] = Kind(row.kind)
    values["resolution"] = None if row.resolution is None else Resolution(row.resolution)
    return Incident(**values)
