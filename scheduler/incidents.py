"""What schedulers do about incidents: ask a few of the accounts that were set apart, and give back all when it is over.

Any number of schedulers may do this; an incident's turn is taken by one of them (``store.incidents.take_due``).
Invariant: an incident that nobody is set apart by any more does not stay open, and one that is resolved is not left
before everybody whom it had set apart is back.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import timedelta
from typing import Final

from sqlalchemy import Connection

from store import incidents, parking
from store.claiming import Claim
from store.incidents import Incident, Kind, Resolution
from tokenfleet import telemetry
from tokenfleet.guard import SAMPLE_EVERY, SAMPLES
from tokenfleet.jobs import AppId
from tokenfleet.telemetry import Event

ACTOR: Final = "scheduler"


def take_turns(connection: Connection) -> list[Incident]:
    """Return the incidents that this tick does something about."""
    return incidents.take_due(connection, spacing=SAMPLE_EVERY)


def give_back(connection: Connection, turns: Sequence[Incident]) -> None:
    """Go on with what is resolved; what is left has its turn at the next tick."""
    for each in turns:
        if each.resolved_at is not None:
            parking.settle(connection, each, actor=ACTOR)


def sampled(turns: Sequence[Incident], *, but: Collection[AppId] = ()) -> dict[AppId, Incident]:
    """Return the open incidents whose samples are due, by app; none of the apps ``but``, which are on hold."""
    return {
        each.app_id: each
        for each in turns
        if each.resolved_at is None and each.kind is Kind.MASS_REJECTION and each.app_id not in but
    }


def claim_samples(
    connection: Connection,
    due: Mapping[AppId, Incident],
    *,
    claim: timedelta,
    take_over: bool,
    count: int = SAMPLES,
) -> dict[AppId, list[Claim]]:
    """Claim up to ``count`` accounts of each incident."""
    claims: dict[AppId, list[Claim]] = {}
    for app_id, incident in due.items():
        chosen = parking.choose_samples(connection, incident.incident_id, count=count)
        if chosen:
            claims[app_id] = parking.claim_samples(
                connection, incident.incident_id, chosen, claim=claim, take_over=take_over
            )
        elif not parking.has_members(connection, incident.incident_id):
            # An operator has dealt with every one of them: there is nobody left of whom anything could be learned.
            resolved = incidents.resolve(
                connection,
                incident.incident_id,
                Resolution.RECOVERED,
                actor=ACTOR,
                reason="nobody is set apart any more",
            )
            if resolved is not None:
                telemetry.logger().warning(Event.INCIDENT_RESOLVED.value, **resolved.log_fields())
    return claims


def claim_probes(
    connection: Connection, app_ids: Collection[AppId], *, claim: timedelta, take_over: bool
) -> dict[AppId, list[Claim]]:
    """Claim one account for each of ``app_ids`` whose incident has set everybody apart.

    These are on hold, their probe is due, and nobody else was: without it they would stay so for ever, because the
    turns of an incident need not fall together with the probes.
    """
    opened = incidents.listing(connection) if app_ids else []
    due = {
        each.app_id: each for each in opened if each.app_id in app_ids and each.kind is Kind.MASS_REJECTION
    }
    return claim_samples(connection, due, claim=claim, take_over=take_over, count=1)
