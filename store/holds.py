"""A provider refuses an app's registration: the next secret, or a hold and its incident. No account changes status.

Invariants kept here:

* What a provider says of credentials that have been replaced meanwhile changes nothing (``generation``).
* A secret is replaced at most once for each generation, however many accounts it was refused for at once.
* A hold and its incident begin together and end together, each told once.
"""

from __future__ import annotations

from datetime import timedelta
from enum import Enum, auto

from sqlalchemy import Connection, text

from store import app_secrets, apps, incidents
from store.incidents import Incident, Kind, Resolution
from tokenfleet.jobs import AppId

_LOCK = text("""
    SELECT generation, held_since IS NOT NULL AS is_held FROM tokenfleet.oauth_apps WHERE id = :app_id
    FOR NO KEY UPDATE
""")

_PUT_OFF_PROBE = text("""
    UPDATE tokenfleet.oauth_apps SET held_code = :code, probe_at = GREATEST(probe_at, now() + CAST(:after AS interval))
    WHERE id = :app_id AND held_since IS NOT NULL
""")


class Effect(Enum):
    """What a refused registration led to."""

    NOTHING = auto()
    """Other credentials are in use by now: whoever was refused may be asked again at once."""
    REPLACED = auto()
    """The next secret is in use: whoever was refused may be asked again at once."""
    HELD = auto()
    """A hold began, and its incident."""
    STILL_HELD = auto()
    """The probe of a held app was refused; if there are several secrets, the next one is tried."""


def client_rejected(
    connection: Connection, app_id: AppId, code: str, *, generation: int, probe_after: timedelta
) -> Effect:
    """Do what is to be done when the provider refuses the app's credentials of ``generation``.

    While there is a secret that was not refused yet, that one is used. Otherwise the app is held, and one account
    probes: at once when there is another secret to go round to, else after ``probe_after``.
    """
    row = connection.execute(_LOCK, {"app_id": app_id}).one_or_none()
    if row is None or row.generation != generation:
        return Effect.NOTHING
    if not row.is_held and app_secrets.use_next(connection, app_id, refused_too=False):
        return Effect.REPLACED
    if row.is_held:
        # The release before this one began holds without an incident.
        incidents.open_incident(
            connection, app_id, Kind.CLIENT_REJECTED, code=code, detail={}, sample_after=None
        )
        connection.execute(_PUT_OFF_PROBE, {"app_id": app_id, "code": code, "after": probe_after})
        app_secrets.use_next(connection, app_id, refused_too=True)
        return Effect.STILL_HELD
    goes_round = bool(app_secrets.spares(connection, app_id))
    first_probe = timedelta(0) if goes_round else probe_after
    apps.hold(connection, app_id, code, generation=generation, probe_after=first_probe)
    app_secrets.use_next(connection, app_id, refused_too=True)
    incidents.open_incident(connection, app_id, Kind.CLIENT_REJECTED, code=code, detail={}, sample_after=None)
    return Effect.HELD


def recovered(
    connection: Connection, app_id: AppId, *, generation: int, actor: str
) -> tuple[bool, Incident | None]:
    """End a hold because a probe succeeded; returns whether there was one, and its incident.

    A success with other credentials than those in use says nothing of these: they have a probe of their own.
    """
    row = connection.execute(_LOCK, {"app_id": app_id}).one_or_none()
    if row is None or row.generation != generation:
        return False, None
    ended = apps.end_hold(connection, app_id)
    incident_id = incidents.open_of_app(connection, app_id, Kind.CLIENT_REJECTED)
    if incident_id is None:
        return ended, None
    return ended, incidents.resolve(connection, incident_id, Resolution.RECOVERED, actor=actor)
