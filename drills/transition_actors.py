"""Workers, operators and a relay that compete for the same accounts, each through the code that does it in production.

They leave out only the provider, whose answer is drawn by chance, and the broker. Each has an engine, so connections,
of its own. Who meets a deadlock does what its original does: a worker writes its batch again in halves, a command once
more. What they saw themselves write is their :class:`Ledger`: taken from the rows of ``accounts`` just before each
commit, so that neither the history nor the outbox is their witness for itself.
"""

from __future__ import annotations

import io
import json
import random
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final, TypeVar
from uuid import UUID

from sqlalchemy import Connection, Engine, event
from sqlalchemy.exc import DBAPIError

from drills import transition_answers as answers
from drills.transition_answers import ANSWERS, WEIGHTS, Answer
from store import (
    announcements,
    candidates,
    claiming,
    deliveries,
    outbox,
    rejections,
    revocations,
    schedule,
    settlement,
    transitions,
)
from store.candidates import Promotion
from store.claiming import Allowance
from store.engine import is_contention
from store.import_rules import ProviderRules
from store.import_source import ImportFormat, read_chunks
from store.imports import Importer, Tally
from store.keys import Vault
from store.rejection import Rejection
from store.schedule import Attempt
from tokenfleet.delivery_policy import DeliveryState, Verdict
from tokenfleet.jobs import AccountId, AppId, DeliveryJob, RefreshJob
from tokenfleet.tokens import Margins
from tokenfleet_client.contract import AccountStatus

R = TypeVar("R")

PROVIDER: Final = "storm"
TRIES: Final = 20
"""How often a command that met a deadlock is given again."""
_DEADLOCK: Final = "40P01"
_OWN = """
    SELECT id, status FROM tokenfleet.accounts
    WHERE id = ANY (%s::bigint[]) AND status_changed_at = now() AND xmin = pg_current_xact_id_if_assigned()::xid
"""


def rules_of(_name: str) -> ProviderRules:
    """Return what an import needs to know of the provider."""
    return ProviderRules(Margins(timedelta(seconds=180), timedelta(seconds=60)), lambda _variables: None)


@dataclass(slots=True)
class Ledger:
    """What one process did, as it saw it. ``moves`` counts by account and the status that they led to."""

    moves: Counter[tuple[int, str]] = field(default_factory=Counter)
    attempted: int = 0
    """Moves that were asked for: one for each account and act, whether it was legal at that moment or not."""
    deadlocks: int = 0
    received: list[UUID] = field(default_factory=list)
    """Webhooks that were delivered, in that order."""

    def add(self, other: Ledger) -> None:
        """Add what another process did."""
        self.moves.update(other.moves)
        self.attempted += other.attempted
        self.deadlocks += other.deadlocks
        self.received += other.received


class Actor:
    """Somebody with connections of his own, and a ledger."""

    def __init__(self, engine: Engine, vault: Vault, name: str, seed: int) -> None:
        """``engine`` belongs to this actor alone."""
        self.engine = engine
        self.vault = vault
        self.name = name
        self.chance = random.Random(seed)
        self.ledger = Ledger()
        self._at_work: list[AccountId] = []
        event.listen(engine, "commit", self._note)

    def _note(self, connection: Connection) -> None:
        if self._at_work:
            for row in connection.exec_driver_sql(_OWN, (self._at_work,)):
                self.ledger.moves[row.id, row.status] += 1

    def _transact(self, account_ids: Sequence[AccountId], act: Callable[[Connection], R]) -> R:
        """Perform ``act`` in a transaction, whose moves of ``account_ids`` go into the ledger."""
        self._at_work = list(account_ids)
        try:
            with self.engine.begin() as connection:
                return act(connection)
        except DBAPIError as error:
            self.ledger.deadlocks += getattr(error.orig, "sqlstate", None) == _DEADLOCK
            raise
        finally:
            self._at_work = []


class Operator(Actor):
    """Gives commands."""

    def pause(self, account_ids: Sequence[AccountId]) -> None:
        """Pause accounts, as ``accounts pause`` does."""
        self._command(
            account_ids, lambda c: transitions.pause(c, account_ids, actor=self.name, reason="storm")
        )

    def resume(self, account_ids: Sequence[AccountId]) -> None:
        """Resume accounts."""
        self._command(account_ids, lambda c: transitions.resume(c, account_ids, actor=self.name))

    def revoke(self, account_ids: Sequence[AccountId], *, told: bool = True) -> None:
        """Revoke accounts; without ``told`` their tokens are forgotten at once."""
        self._command(
            account_ids,
            lambda c: revocations.begin(
                c,
                account_ids,
                untold=() if told else account_ids,
                showing_access=(),
                code="local_only",
                actor=self.name,
                reason="storm",
            ),
        )

    def refresh(self, account_ids: Sequence[AccountId]) -> None:
        """Ask for a refresh."""
        self._command((), lambda c: schedule.request_refresh(c, sorted(account_ids)))

    def sign_in(
        self, customers: Sequence[str], account_ids: Sequence[AccountId], *, expires_in: int = 1
    ) -> Tally:
        """Import new tokens for customers, whose accounts are ``account_ids`` where they exist.

        One sign-in in five brings no access token.
        """
        lines = [
            {
                "provider": PROVIDER,
                "external_id": each,
                "refresh_token": f"imported-{uuid.uuid4()}",
                **(
                    {"access_token": "imported", "expires_in": expires_in}
                    if self.chance.random() < 0.8
                    else {}
                ),
            }
            for each in customers
        ]
        stream = io.BytesIO("\n".join(map(json.dumps, lines)).encode())
        importer, tally = Importer(self.engine, self.vault, rules_of, actor=self.name), Tally()
        self._at_work = list(account_ids)
        self.ledger.attempted += len(account_ids)
        try:
            for chunk in read_chunks(
                stream, ImportFormat.JSON_LINES, now=datetime.now(UTC), rules_of=rules_of
            ):
                tally.add(importer.write(chunk).tally)
        finally:
            self._at_work = []
        return tally

    def _command(self, account_ids: Sequence[AccountId], act: Callable[[Connection], object]) -> None:
        self.ledger.attempted += len(account_ids)
        for attempt in range(TRIES):
            try:
                self._transact(account_ids, act)
                return
            except DBAPIError as error:
                if attempt == TRIES - 1 or not is_contention(error):
                    raise


class Worker(Actor):
    """Claims, asks and writes what it was answered, sooner or later."""

    def __init__(
        self, engine: Engine, vault: Vault, name: str, seed: int, *, app_id: AppId, claim: timedelta
    ) -> None:
        """A claim is held for ``claim``; what is settled after that is a late answer."""
        super().__init__(engine, vault, name, seed)
        self._app_id = app_id
        self._claim = claim
        self.in_hand: list[Attempt] = []

    def begin(self, count: int) -> None:
        """Claim and start up to ``count`` due accounts. Claims that meet a deadlock expire."""
        allowance = [Allowance(self._app_id, count, 10_000)]
        claims = self._patiently(lambda c: claiming.claim_due(c, allowance, claim=self._claim)) or {}
        if found := claims.get(self._app_id):
            pairs = tuple((each.account_id, each.epoch) for each in found)
            job = RefreshJob(str(uuid.uuid4()), self._app_id, pairs)
            self.in_hand += self._patiently(lambda c: schedule.start(c, job, claim=self._claim)) or []

    def settle(self, count: int, given: Sequence[Answer] = ()) -> None:
        """Let up to ``count`` attempts in hand be answered, by those ``given`` in turn or by chance, and write that."""
        self.chance.shuffle(self.in_hand)
        some, self.in_hand = self.in_hand[:count], self.in_hand[count:]
        drawn = given or self.chance.choices(ANSWERS, WEIGHTS, k=len(some))
        self._write([(each, drawn[position % len(drawn)]) for position, each in enumerate(some)])

    def look_around(self) -> None:
        """Do what is done now and then: bring candidates back, go on with revocations, tell what nobody told."""

        def tidy(connection: Connection) -> None:
            found = [
                promotion
                for each in candidates.deposed(connection)
                if (
                    promotion := answers.promotion(
                        connection, self.vault, each.account_id, each.epoch, each.generation
                    )
                )
            ]
            if found:
                candidates.promote(connection, found, actor=self.name)

        self._patiently(tidy)
        self._patiently(lambda c: revocations.sweep(c, actor=self.name))
        self._patiently(lambda c: announcements.sweep_refresh_failing(c, [self._app_id], actor=self.name))

    def _patiently(self, act: Callable[[Connection], R]) -> R | None:
        """Do what comes again by itself when somebody was in the way: then None."""
        try:
            return self._transact((), act)
        except DBAPIError as error:
            if not is_contention(error):
                raise
            return None

    def _write(self, entries: Sequence[tuple[Attempt, Answer]]) -> None:
        """Write a batch as ``workers.writer`` does; in halves when somebody was in the way."""
        if not entries:
            return
        try:
            self._transact([attempt.account_id for attempt, _ in entries], lambda c: self._apply(c, entries))
        except DBAPIError as error:
            if not is_contention(error):
                raise
            middle = len(entries) // 2
            if not middle:
                time.sleep(0.005)
            for half in (entries[:middle], entries[middle:]):
                self._write(half)
            return
        self.ledger.attempted += sum(
            attempt.status is not AccountStatus.REVOKED
            and (answer in {Answer.REJECTED, Answer.LOST} or attempt.status is not AccountStatus.ACTIVE)
            for attempt, answer in entries
        )

    def _apply(self, connection: Connection, entries: Sequence[tuple[Attempt, Answer]]) -> None:
        revoking = [each for each in entries if each[0].status is AccountStatus.REVOKED]
        asked = [each for each in entries if each[0].status is not AccountStatus.REVOKED]
        good = [
            answers.saved(self.vault, attempt, self.chance)
            for attempt, answer in asked
            if answer is Answer.SUCCESS
        ]
        poor = [answers.failed(attempt) for attempt, answer in asked if answer is Answer.UNAVAILABLE]
        refused = [each for each in asked if each[1] in {Answer.REJECTED, Answer.LOST}]
        promotions: list[Promotion] = []
        words: list[Rejection] = []
        for attempt, answer in refused:
            place = (attempt.account_id, attempt.epoch, attempt.generation)
            # Who does not look gives an account up that can be helped: whoever looks around brings it back.
            looks = self.chance.random() < 0.3
            promotion = answers.promotion(connection, self.vault, *place) if looks else None
            if promotion is None:
                words.append(answers.rejected(attempt, answer))
            else:
                promotions.append(promotion)
        if (good and (words or promotions or revoking)) or (words and promotions):
            # As the writer does, so that a batch of several kinds locks its accounts in one run.
            transitions.lock(connection, sorted(attempt.account_id for attempt, _ in entries))
        if good:
            settlement.save_refreshed(connection, good, actor=self.name)
        if poor:
            settlement.defer(connection, poor, actor=self.name)
        if words:
            rejections.reject(connection, words, actor=self.name)
        if promotions:
            candidates.promote(connection, promotions, actor=self.name)
        if revoking:
            revocations.settle(connection, [answers.revoked(*each) for each in revoking], actor=self.name)


class Relay(Actor):
    """Makes deliveries of events and delivers them, to receivers that take everything."""

    def deliver(self) -> int:
        """Relay what waits and deliver what is due; returns how many deliveries that were."""
        with self.engine.begin() as connection:
            outbox.relay(connection)
        lasting = timedelta(seconds=30)
        with self.engine.begin() as connection:
            claims = deliveries.claim_due(connection, claim=lasting)
        if not claims:
            return 0
        with self.engine.begin() as connection:
            started = deliveries.start(connection, DeliveryJob("storm", tuple(claims)), claim=lasting)
        now, verdict = datetime.now(UTC), Verdict(DeliveryState.DELIVERED)
        results = [
            deliveries.Result(each.delivery_id, each.epoch, each.endpoint_id, verdict, 200, 1, now)
            for each in started
        ]
        with self.engine.begin() as connection:
            deliveries.settle(connection, results)
        self.ledger.received += [each.event_id for each in started]
        return len(started)
