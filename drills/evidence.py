"""Gathers what is judged: the authorization server's record and ledger, the outbox, and the tokens in the database."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

from sqlalchemy import Engine, text

from chaos.holdings import holdings
from chaos.world import World
from drills.found import Evidence, Incident, Told
from drills.plan import Plan
from drills.reader import Seen
from sandbox.authority import LiveTokens
from store.keys import Vault
from tokenfleet.settings import Tunables

if TYPE_CHECKING:
    from drills.course import Course

RECEIVED_WITHIN_SECONDS: Final = Tunables().http_timeout_seconds
"""``expires_in`` counts from the receipt of an answer, which is so long after it was given at most."""

_TOLD = text("""
    SELECT a.provider, a.external_id, o.event_type, EXTRACT(epoch FROM o.created_at)::float AS at
    FROM tokenfleet.outbox o JOIN tokenfleet.accounts a ON a.id = o.account_id ORDER BY o.sequence
""")
_INCIDENTS = text("""
    SELECT a.provider, i.kind, EXTRACT(epoch FROM i.opened_at)::float AS opened,
           EXTRACT(epoch FROM i.resolved_at)::float AS resolved
    FROM tokenfleet.provider_incidents i JOIN tokenfleet.oauth_apps a ON a.id = i.app_id ORDER BY i.id
""")
_INCIDENTS_TOLD = text("""
    SELECT payload->>'integration_name' AS provider, event_type, count(*) AS times
    FROM tokenfleet.outbox WHERE account_id IS NULL GROUP BY 1, 2
""")


@dataclass(frozen=True, slots=True)
class Books:
    """What the outbox and the incidents say, by provider."""

    told: Mapping[str, Sequence[Told]]
    incidents: Mapping[str, Sequence[Incident]]
    incidents_told: Mapping[str, Mapping[str, int]]

    @classmethod
    def read(cls, engine: Engine) -> Self:
        """Read them."""
        told: dict[str, list[Told]] = defaultdict(list)
        incidents: dict[str, list[Incident]] = defaultdict(list)
        incidents_told: dict[str, dict[str, int]] = defaultdict(dict)
        with engine.connect() as connection:
            for row in connection.execute(_TOLD):
                told[row.provider].append(Told(row.external_id, row.event_type, row.at))
            for row in connection.execute(_INCIDENTS):
                incidents[row.provider].append(Incident(row.kind, row.opened, row.resolved))
            for row in connection.execute(_INCIDENTS_TOLD):
                incidents_told[row.provider][row.event_type] = row.times
        return cls(told, incidents, incidents_told)


def ill_saved(engine: Engine, vault: Vault, live: Iterable[LiveTokens], prefix: str = "") -> frozenset[str]:
    """Return the active accounts whose tokens are not the ``live`` ones, or that believe in another end of theirs.

    Only of subjects that nobody refreshes at the moment: else an answer may be under way.
    """
    given = {each.subject: each for each in live}
    return frozenset(
        holding.subject
        for holding in holdings(engine, vault, prefix)
        if not holding.has_tokens_of(given[holding.subject])
        or holding.expires_at is None
        or abs(holding.expires_at - given[holding.subject].access_token_expires_at) > RECEIVED_WITHIN_SECONDS
    )


def gather(
    world: World,
    plan: Plan,
    courses: Sequence[Course],
    seen: Mapping[str, Seen],
    quiet_since: float,
) -> list[Evidence]:
    """Return the evidence of each drill. All processes of the fleet have ended."""
    books = Books.read(world.engine)
    in_the_end = ill_saved(world.engine, world.vault, world.provider.live())
    violations = world.provider.violations()
    found: list[Evidence] = []
    for course in courses:
        drill, name = course.drill, course.drill.name
        record = world.provider.record(drill.prefix)
        pace = plan.pace(len(course.subjects))
        found.append(
            Evidence(
                name=name,
                title=drill.title,
                accounts=len(course.subjects),
                expected=drill.expected,
                rate=pace.requests_per_second,
                burst=pace.burst,
                quiet_since=quiet_since,
                began=course.began,
                struck=course.struck,
                mending=course.mending,
                ended=course.ended,
                recovery_seconds=plan.recovery,
                arrivals=record.arrivals,
                waits=record.waits,
                forgotten=record.forgotten,
                stale=seen[name].stale,
                seen_flipped=seen[name].flipped,
                flipped_in_the_end=seen[name].flipped_now,
                told=books.told.get(name, ()),
                revoked=course.revoked,
                incidents=books.incidents.get(name, ()),
                incidents_told=books.incidents_told.get(name, {}),
                ill_saved=course.ill_saved | {each for each in in_the_end if each.startswith(drill.prefix)},
                presented_twice=sum(each.subject.startswith(drill.prefix) for each in violations),
            )
        )
    return found
