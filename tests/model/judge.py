"""What must hold after every step, whatever happened: G2, G3, G4 and G5 of the design.

The authorization server's ledger says what was presented twice; it was told which answers died before they reached
a journal. The database, the journals and the candidates say what is held.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from sqlalchemy import text

from sandbox.ledger import ViolationKind
from sandbox.tokens import RefreshTokenRef
from store import records
from store.answers import SavedTokens
from store.records import Damage
from tests.model.provider import Fate
from tests.model.world import Customer, World
from tokenfleet.account import TRANSITIONS, EventType, Trigger
from tokenfleet_client.contract import AccountStatus
from tokenfleet_client.envelope import refresh_token_binding
from tokenfleet_client.secret import Secret

_EVERYTHING = text("""
    SELECT a.id, a.status, t.generation, t.refresh_token,
        ARRAY(SELECT CAST(c.generation AS text) || ' ' || encode(c.refresh_token, 'hex')
              FROM tokenfleet.token_candidates c WHERE c.account_id = a.id) AS candidates,
        (SELECT jsonb_agg(jsonb_build_array(e.kind, e.epoch, e.status_from, e.status_to) ORDER BY e.at)
         FROM tokenfleet.account_events e WHERE e.account_id = a.id) AS events,
        ARRAY(SELECT o.event_type FROM tokenfleet.outbox o WHERE o.account_id = a.id ORDER BY o.sequence)
            AS told
    FROM tokenfleet.accounts a JOIN tokenfleet.token_sets t ON t.account_id = a.id
""")

_WRITTEN: Final = frozenset({"refresh.succeeded", "refresh.lost_race"})


class Event(NamedTuple):
    """A row of an account's history."""

    kind: str
    epoch: int | None
    status_from: str | None
    status_to: str | None


@dataclass(frozen=True)
class Sight:
    """What is held of one account, as refresh tokens of the server's ledger."""

    status: AccountStatus
    held: RefreshTokenRef
    """By Postgres."""
    candidates: frozenset[RefreshTokenRef]
    on_disk: frozenset[RefreshTokenRef]
    written: frozenset[int]
    """The epochs of the answers that Postgres took, as tokens or as candidates."""
    on_disk_epochs: frozenset[int]

    @property
    def durable(self) -> frozenset[RefreshTokenRef]:
        """Every token that no death of a process can take."""
        return self.candidates | self.on_disk | {self.held}


@dataclass
class Judge:
    """Judges one world. Raises ``AssertionError`` with the promise that was broken."""

    world: World
    _before: dict[str, Sight] = field(default_factory=dict)
    _violations: int = 0

    def look(self) -> None:
        """Judge what the last step has done."""
        world = self.world
        assert not world.errors, world.errors
        self._presented_once()
        for customer, sight in self._sights():
            before = self._before.get(customer.subject)
            self._before[customer.subject] = sight
            self._nothing_is_lost(customer, sight)
            self._never_backwards(customer, before, sight)
            self._no_false_alarm(customer, before, sight)

    def unsettled(self, refreshed: Mapping[str, int]) -> list[str]:
        """Say who is not well yet: neither refreshed since ``refreshed`` was counted, nor rightly past help."""
        grants, ledger = self.world.server.authority.grants, self.world.server.authority.ledger
        trouble: list[str] = []
        for customer, sight in self._sights():
            subject = customer.subject
            family, entry = grants.family_of(subject), ledger.entry_of(subject)
            assert family is not None
            assert entry is not None
            if sight.status is AccountStatus.NEEDS_REAUTH:
                if not family.revoked and family.live in sight.durable:
                    trouble.append(
                        f"{subject} is in needs_reauth, and the fleet holds {family.live}: {sight}"
                    )
            elif sight.status is not AccountStatus.ACTIVE or sight.held != family.live:
                trouble.append(f"{subject} is {sight.status} and holds {sight.held}, alive is {family.live}")
            elif entry.refreshes <= refreshed[subject]:
                trouble.append(f"{subject} is refreshed no more")
        return trouble

    def sight(self, customer: Customer) -> Sight:
        """Return what is held of one account now."""
        return next(sight for each, sight in self._sights() if each is customer)

    def refreshes(self) -> dict[str, int]:
        """Return how often each customer was refreshed."""
        entries = {
            each.subject: self.world.server.authority.ledger.entry_of(each.subject)
            for each in self.world.customers
        }
        return {subject: entry.refreshes for subject, entry in entries.items() if entry is not None}

    def _presented_once(self) -> None:
        ledger = self.world.server.authority.ledger
        while self._violations < len(ledger.violations):
            violation = ledger.violations[self._violations]
            self._violations += 1
            how = "at once" if violation.kind is ViolationKind.AT_ONCE else "after its answer"
            message = (
                f"G2: refresh token {violation.rotation} of {violation.subject} was presented twice, {how}"
            )
            raise Breach(message)

    def _nothing_is_lost(self, customer: Customer, sight: Sight) -> None:
        for answer in self.world.journalled:
            if answer.account_id == customer.account_id and answer.epoch not in (
                sight.written | sight.on_disk_epochs
            ):
                raise Breach(f"G3: the answer to epoch {answer.epoch} of {customer.subject} is gone")
        if customer.pending is not None:
            return
        family = self.world.server.authority.grants.family_of(customer.subject)
        assert family is not None
        if family.live in sight.durable or family.revoked:
            return
        # Somebody may still have it in memory, or nobody any more; but no journal had it.
        fates = {call.fate for call in self.world.server.calls if call.successor == family.live}
        if Fate.KEPT in fates or not fates:
            raise Breach(f"G3: the live token {family.live} of {customer.subject} is gone: {sight}")

    def _never_backwards(self, customer: Customer, before: Sight | None, sight: Sight) -> None:
        if before is not None and _order(sight.held) < _order(before.held):
            raise Breach(f"{customer.subject} went back from {before.held} to {sight.held}")

    def _no_false_alarm(self, customer: Customer, before: Sight | None, sight: Sight) -> None:
        if sight.status is not AccountStatus.NEEDS_REAUTH or before is None or before.status is sight.status:
            return
        family = self.world.server.authority.grants.family_of(customer.subject)
        assert family is not None
        if not family.revoked and family.live in before.durable:
            raise Breach(f"G4: {customer.subject} needs_reauth, but {family.live} was held")

    def _sights(self) -> Iterable[tuple[Customer, Sight]]:
        world = self.world
        with world.engine.begin() as connection:
            rows = {row.id: row for row in connection.execute(_EVERYTHING)}
        on_disk = _on_disk(world)
        for customer in world.customers:
            row = rows[customer.account_id]
            events = [Event(*event) for event in row.events]
            _told_once(customer.subject, row.status, events, row.told)
            written = [event.epoch for event in events if event.kind in _WRITTEN]
            assert len(written) == len(set(written)), f"{customer.subject}: an answer was written twice"
            answers = [answer for answer in on_disk if answer.account_id == row.id]
            candidates = [candidate.split() for candidate in row.candidates]
            sight = Sight(
                status=AccountStatus(row.status),
                held=self._ref(row.id, row.generation, row.refresh_token),
                candidates=frozenset(
                    self._ref(row.id, int(generation), bytes.fromhex(sealed))
                    for generation, sealed in candidates
                ),
                on_disk=frozenset(
                    self._ref(row.id, answer.generation + 1, answer.refresh_token) for answer in answers
                ),
                written=frozenset(epoch for epoch in written if epoch is not None),
                on_disk_epochs=frozenset(int(answer.epoch) for answer in answers),
            )
            yield customer, sight

    def _ref(self, account_id: int, generation: int, sealed: bytes | None) -> RefreshTokenRef:
        assert sealed is not None
        token = self.world.vault.refresh.open(sealed, refresh_token_binding(account_id, generation))
        ref = self.world.server.authority.mint.read_refresh_token(Secret(token))
        assert ref is not None
        return ref


class Breach(AssertionError):
    """A promise was broken."""


def _told_once(subject: str, status: str, events: Sequence[Event], told: list[str]) -> None:
    """G5: statuses move along the table, from one to the next, and each move is told as the table says."""
    known: str | None = None
    expected: list[str] = []
    for event in events:
        if event.status_to is None:
            continue
        if known is None:
            expected.append(EventType.CREATED.value)
        else:
            assert event.status_from == known, (
                f"G5: {subject} was {known}, and moved from {event.status_from}"
            )
            trigger = Trigger(event.kind.removeprefix("account."))
            move = TRANSITIONS.get((AccountStatus(known), trigger))
            assert move is not None, f"G5: {subject}: {trigger} leads nowhere from {known}"
            assert event.status_to == move.target.value
            if move.event is not None:
                expected.append(move.event.value)
        known = event.status_to
    assert known == status, f"G5: {subject} is {status}, its history says {known}"
    assert told == expected, f"G5: {subject}: told {told}, not {expected}"


def _on_disk(world: World) -> list[SavedTokens]:
    """Return every answer in any journal, whoever owns it."""
    damage: list[Damage] = []
    answers: list[SavedTokens] = []
    for path in sorted(world.journals.glob("**/*.segment")):
        answers.extend(records.read(path, damage))
    assert not damage, damage
    return answers


def _order(ref: RefreshTokenRef) -> tuple[int, int]:
    return ref.family, ref.number
