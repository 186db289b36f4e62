"""One fleet for a module of deaths: a sandbox, a database, a living heir, and victims on queues of their own."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from redis import Redis
from sqlalchemy import text

from chaos import evidence, verdict, witness
from chaos.points import Role
from chaos.processes import Child, Processes
from chaos.witness import Step
from scheduler.publisher import Publisher
from tests.support.fleet import CLAIM, Fleet, eventually
from tokenfleet.broker import make_celery
from tokenfleet.jobs import AccountId, RefreshJob
from tokenfleet.settings import Settings

HEIR: Final = "heir:"
_victims: Final = itertools.count()


@dataclass
class Hops:
    """The module's fleet, and what its tests do with it."""

    fleet: Fleet
    processes: Processes
    environ: dict[str, str]
    heir: Child = field(init=False)

    def __post_init__(self) -> None:
        self.heir = self.start(Role.WORKER, HEIR)

    def start(self, role: Role, prefix: str, **order: str) -> Child:
        """Start a process that hears only what is published under ``prefix``."""
        return self.processes.start(role, self.environ | {"TOKENFLEET_REDIS_PREFIX": prefix}, **order)  # type: ignore[arg-type]

    def victim(self, point: str, jobs: Sequence[RefreshJob]) -> Child:
        """Start a worker that dies at ``point``, give it ``jobs``, and return when it is dead."""
        prefix = f"victim-{next(_victims)}:"
        child = self.start(Role.WORKER, prefix, point=point)
        self.publish(jobs, prefix)
        self.processes.wait(child)
        return child

    def publish(self, jobs: Sequence[RefreshJob], prefix: str = HEIR) -> None:
        """Send jobs, as a scheduler does."""
        settings = Settings.from_environ(self.environ | {"TOKENFLEET_REDIS_PREFIX": prefix})
        assert Publisher(make_celery(settings), claim=CLAIM).publish(jobs) == []

    def let_time_pass(self) -> None:
        """Let every claim expire: whoever held one is dead."""
        self._expire("claimed_until IS NOT NULL")

    def let_unstarted_claims_expire(self) -> None:
        """Let the claims expire that no worker has started."""
        self._expire("claimed_until IS NOT NULL AND started_epoch < claim_epoch")

    def _expire(self, which: str) -> None:
        with self.fleet.engine.begin() as connection:
            connection.execute(
                text(
                    "UPDATE tokenfleet.refresh_schedule "
                    f"SET claimed_until = now() - interval '1 millisecond' WHERE {which}"
                )
            )

    def wait_until_settled(self, *ids: AccountId) -> None:
        """Return when every account was refreshed or flipped, and nobody has it in hand."""

        def settled() -> bool:
            rows = [self.fleet.row(account_id) for account_id in ids]
            return all(
                not row.claimed and (row.generation > 1 or row.status == "needs_reauth") for row in rows
            )

        eventually(settled, what="all accounts are settled")

    def tell_the_ledger(self, subject: str, victim: Child) -> bool:
        """Declare what died with the victim, judged by its own witness; returns whether there was anything."""
        recorded = evidence.read_witnesses([victim])
        gone = [
            token
            for token, presentations in recorded.tokens.items()
            if verdict.taken_by_physics(presentations, held_against_us=False)
        ]
        return sum(self.fleet.server.declare_lost(subject, token) for token in gone) > 0


def has_struck(child: Child) -> bool:
    """Answer whether a process reached its point."""
    return any(line.step is Step.STRUCK for line in witness.read(child.witness))


def empty(redis_url: str) -> None:
    """Wipe Redis."""
    with Redis.from_url(redis_url) as redis:
        redis.flushall()
