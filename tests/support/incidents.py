"""Incidents in a test: rejections by the hundred, and what the database says of everybody afterwards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial

from sqlalchemy import Engine, text

from scheduler import incidents as turns
from store import incidents, rejections
from store.claiming import Claim
from store.incidents import Incident
from store.rejections import Rejected
from tests.support.builders import ACTOR, rejection
from tests.support.racing import race
from tokenfleet.jobs import AccountId, AppId

OPENED = "provider:incident_opened"
RESOLVED = "provider:incident_resolved"
ALARM = "integrated_account:authentication_error"
WELL = "integrated_account:reactivated"


def reject(
    engine: Engine,
    account_ids: Sequence[AccountId],
    *,
    epoch: int = 1,
    generation: int = 1,
    reason: str = "invalid_grant",
    explained: bool = False,
    after_success: bool = False,
) -> Rejected:
    """Write the rejections of these accounts in one transaction, as a worker does with a batch.

    ``after_success`` says that the worker had a success before the first of them.
    """
    words = [
        replace(
            rejection(each, epoch=epoch, generation=generation, reason=reason),
            explained=explained,
            after_success=after_success and not position,
        )
        for position, each in enumerate(account_ids)
    ]
    with engine.begin() as connection:
        return rejections.reject(connection, words, actor=ACTOR)


def reject_at_once(engine: Engine, account_ids: Sequence[AccountId], *, writers: int) -> list[Rejected]:
    """Divide the accounts among writers that leave together; each writes batches of ten."""

    def write(share: Sequence[AccountId]) -> list[Rejected]:
        return [reject(engine, share[start : start + 10]) for start in range(0, len(share), 10)]

    results = race([partial(write, account_ids[position::writers]) for position in range(writers)])
    return [each for result in results for each in result]


def provoke(engine: Engine, account_ids: Sequence[AccountId]) -> int:
    """Open an incident by rejecting all of these together; returns its id."""
    [opened] = reject(engine, account_ids).opened
    return opened.incident_id


def statuses(engine: Engine, app_id: AppId) -> Counter[str]:
    """Return how many accounts of an app have which status."""
    with engine.connect() as connection:
        rows = connection.execute(
            text("SELECT status, count(*) AS n FROM tokenfleet.accounts WHERE app_id = :id GROUP BY status"),
            {"id": app_id},
        )
        return Counter({row.status: row.n for row in rows})


def told(engine: Engine) -> Counter[str]:
    """Return how many events of which type were told."""
    with engine.connect() as connection:
        rows = connection.execute(text("SELECT event_type FROM tokenfleet.outbox"))
        return Counter(row.event_type for row in rows)


@dataclass(frozen=True, slots=True)
class Place:
    """Where an account stands beside its status."""

    is_due: bool
    is_scheduled: bool
    incident_id: int | None


def place_of(engine: Engine, account_id: AccountId) -> Place:
    """Return where an account stands."""
    with engine.connect() as connection:
        row = connection.execute(
            text(
                "SELECT COALESCE(next_refresh_at <= now(), false) AS is_due, "
                "next_refresh_at IS NOT NULL AS is_scheduled, incident_id "
                "FROM tokenfleet.refresh_schedule WHERE account_id = :id"
            ),
            {"id": account_id},
        ).one()
    return Place(**row._mapping)


def set_apart(engine: Engine, incident_id: int) -> list[AccountId]:
    """Return the accounts that an incident has."""
    with engine.connect() as connection:
        found = connection.execute(
            text("SELECT account_id FROM tokenfleet.refresh_schedule WHERE incident_id = :id ORDER BY 1"),
            {"id": incident_id},
        )
        return [AccountId(row.account_id) for row in found]


def take_samples(engine: Engine) -> dict[AppId, list[Claim]]:
    """Let time pass until every incident's turn, and do what a scheduler does then."""
    with engine.begin() as connection:
        connection.execute(
            text("UPDATE tokenfleet.provider_incidents SET sample_at = now() WHERE sample_at IS NOT NULL")
        )
        due = turns.take_turns(connection)
    with engine.begin() as connection:
        turns.give_back(connection, due)
    with engine.begin() as connection:
        return turns.claim_samples(
            connection, turns.sampled(due), claim=timedelta(seconds=30), take_over=True
        )


def resolve(engine: Engine, incident_id: int, resolution: incidents.Resolution) -> Incident | None:
    """Resolve an incident as an operator does."""
    with engine.begin() as connection:
        return incidents.resolve(connection, incident_id, resolution, actor="operator:ada")
