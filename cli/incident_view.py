"""One provider incident as people and programs see it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from store.incidents import Incident, Members


@dataclass(frozen=True, slots=True)
class IncidentView:
    """One incident. ``parked`` accounts were rejected during it, ``flipped`` ones just before it was noticed; both
    only as long as they are not back.
    """

    id: int
    provider: str
    environment: str
    app: str
    kind: str
    code: str
    state: str
    opened_at: datetime
    sample_at: datetime | None
    resolved_at: datetime | None
    resolution: str | None
    actor: str | None
    reason: str | None
    parked: int
    flipped: int

    @property
    def app_name(self) -> str:
        """What people call the app."""
        return f"{self.provider}/{self.environment}/{self.app}"


def view_of(incident: Incident, members: Members) -> IncidentView:
    """Return ``incident`` with those whom it has set apart still."""
    return IncidentView(
        id=incident.incident_id,
        provider=incident.provider,
        environment=incident.environment,
        app=incident.app,
        kind=incident.kind.value,
        code=incident.code,
        state="open" if incident.resolved_at is None else "resolved",
        opened_at=incident.opened_at,
        sample_at=incident.sample_at,
        resolved_at=incident.resolved_at,
        resolution=None if incident.resolution is None else incident.resolution.value,
        actor=incident.actor,
        reason=incident.reason,
        parked=members.parked,
        flipped=members.flipped,
    )


def state_text(incident: IncidentView) -> str:
    """Return whether it is over, and who said so."""
    if incident.resolution is None:
        return "open"
    return f"{incident.resolution} by {incident.actor}"


def advice(incident: IncidentView) -> str:
    """Return what it means and what to do about it."""
    if incident.resolution is not None:
        if incident.parked + incident.flipped:
            return "It is over. The accounts that it has set apart still are given back by the schedulers."
        return "It is over, and nobody is set apart by it any more."
    if incident.kind == "client_rejected":
        return (
            "The provider rejects your client itself. Nobody's status has changed; one account probes every 30 s and "
            "ends this when it succeeds.\n"
            f"If the secret is wrong or has expired: tokenfleet apps set {incident.provider} …"
        )
    return (
        "The provider rejects more accounts at once than is believed. Nobody else is told to sign in again; a few of "
        "them are asked again every 15 s, and the first success gives all of them back.\n"
        "If you know that it was a fault of the provider's and is over: "
        f"tokenfleet incidents resolve {incident.id} --dismiss\n"
        f"If these customers have really lost their access: tokenfleet incidents resolve {incident.id} --confirm"
    )
