"""Whether what was told of accounts is what happened to them: their histories, held against the outbox.

Three witnesses are compared: what the processes that moved accounts saw themselves write (the ledger), the history, and
the events. Promises: a move that is in one of them and not in the others is found; so is an event that is missing,
double or out of order, an account that stands elsewhere than its history ends, one that is asked about and must not be,
and one that nobody will ever ask about again. :func:`judge` is pure; :func:`read` gets its evidence from Postgres.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar
from uuid import UUID

from sqlalchemy import Connection, text

from tokenfleet.account import REFRESHABLE, EventType, Transition, Trigger, transition
from tokenfleet_client.contract import AccountStatus

NAMED: Final = 10
"""Troubles that are told in words; all are counted."""
_CREATED: Final = "account.imported"
_ANNOUNCED: Final[Mapping[str, EventType]] = {
    "account.refresh_failing": EventType.REFRESH_FAILING,
    "account.reauth_upcoming": EventType.REAUTH_UPCOMING,
}

_HISTORY: Final = text("""
    SELECT account_id, kind, status_from, status_to, COALESCE(detail ->> 'reason', code) AS reason
    FROM tokenfleet.account_events
    WHERE status_to IS NOT NULL OR kind = ANY (:announced)
    ORDER BY account_id, at
""")
_EVENTS: Final = text("""
    SELECT id, account_id, event_type, payload ->> 'status' AS status, payload ->> 'last_error' AS reason,
           (payload ->> 'id')::bigint AS subject
    FROM tokenfleet.outbox WHERE account_id IS NOT NULL ORDER BY account_id, sequence
""")
_STANDINGS: Final = text("""
    SELECT a.id AS account_id, a.status, s.next_refresh_at IS NOT NULL AS is_due,
           s.claimed_until IS NOT NULL AS is_claimed, s.failing_since IS NOT NULL AS is_failing,
           s.incident_id IS NOT NULL AS is_parked,
           t.access_token IS NOT NULL OR t.refresh_token IS NOT NULL
               OR EXISTS (SELECT FROM tokenfleet.token_candidates c WHERE c.account_id = a.id) AS holds_tokens,
           EXISTS (SELECT FROM tokenfleet.account_events e
                   WHERE e.account_id = a.id AND e.kind IN ('refresh.succeeded', 'refresh.candidate_promoted')
                     AND e.at > a.status_changed_at) AS is_answered_since
    FROM tokenfleet.accounts a
    JOIN tokenfleet.token_sets t ON t.account_id = a.id
    JOIN tokenfleet.refresh_schedule s ON s.account_id = a.id
    ORDER BY a.id
""")


@dataclass(frozen=True, slots=True)
class Step:
    """A row of the history that names a status, or tells of something; in the order of the history."""

    account_id: int
    kind: str
    status_from: str | None
    status_to: str | None
    reason: str | None


@dataclass(frozen=True, slots=True)
class Told:
    """A row of the outbox; in the order of ``sequence``."""

    event_id: UUID
    account_id: int
    event_type: str
    status: str | None
    reason: str | None
    subject: int


@dataclass(frozen=True, slots=True)
class Standing:
    """Where an account stands when all is over."""

    account_id: int
    status: str
    is_due: bool
    is_claimed: bool
    is_failing: bool
    is_parked: bool
    holds_tokens: bool
    is_answered_since: bool
    """An answer came in after its last move."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that is known. ``ledger`` counts moves by account and the status that they led to, as their authors saw them.

    ``received`` is what a receiver of webhooks got, in the order in which it got it.
    """

    steps: Sequence[Step]
    events: Sequence[Told]
    standings: Sequence[Standing]
    ledger: Counter[tuple[int, str]] | None = None
    received: Sequence[UUID] | None = None


@dataclass(slots=True)
class Verdict:
    """The numbers of the table; ``troubles`` are the first :data:`NAMED` things that are wrong, in sentences."""

    moves: int = 0
    rows: int = 0
    expected: int = 0
    found: int = 0
    missing: int = 0
    double: int = 0
    out_of_order: int = 0
    broken: int = 0
    """Rows that do not begin where the one before ended, or are no legal move."""
    misplaced: int = 0
    """Accounts that stand elsewhere than their history ends, or are asked about, or hold tokens, and must not."""
    unwitnessed: int = 0
    """Moves that their authors saw and the history does not have, or the other way round."""
    troubles: list[str] = field(default_factory=list)

    def say(self, sentence: str) -> None:
        """Note a trouble."""
        if len(self.troubles) < NAMED:
            self.troubles.append(sentence)

    @property
    def holds(self) -> bool:
        """Whether everything is as promised."""
        wrong = (self.missing, self.double, self.out_of_order, self.broken, self.misplaced, self.unwitnessed)
        return not any(wrong) and not self.troubles


_Row = TypeVar("_Row", Step, Told)
_Event = tuple[str, str | None, str | None]
"""What tells two events of one account apart: type, status and reason."""


def read(
    connection: Connection,
    *,
    ledger: Counter[tuple[int, str]] | None = None,
    received: Sequence[UUID] | None = None,
) -> Evidence:
    """Return what Postgres holds, beside what others saw."""
    steps = [Step(*row) for row in connection.execute(_HISTORY, {"announced": list(_ANNOUNCED)})]
    events = [Told(*row) for row in connection.execute(_EVENTS)]
    return Evidence(
        steps, events, [Standing(*row) for row in connection.execute(_STANDINGS)], ledger, received
    )


def judge(evidence: Evidence) -> Verdict:
    """Return what the evidence proves."""
    verdict = Verdict(found=len(evidence.events))
    steps, events = _by_account(evidence.steps), _by_account(evidence.events)
    ends: dict[int, str | None] = {}
    for account_id in sorted(steps.keys() | events.keys()):
        expected, ends[account_id] = _follow(verdict, account_id, steps.get(account_id, []))
        _compare(verdict, account_id, expected, events.get(account_id, []))
    for standing in evidence.standings:
        _place(verdict, standing, ends.get(standing.account_id))
    if evidence.ledger is not None:
        _witness(verdict, evidence.steps, evidence.ledger)
    if evidence.received is not None:
        _receive(verdict, events, evidence.received)
    return verdict


def _follow(verdict: Verdict, account_id: int, steps: Iterable[Step]) -> tuple[list[_Event], str | None]:
    """Return the events that a history demands, and the status in which it ends."""
    expected: list[_Event] = []
    status: str | None = None
    for step in steps:
        verdict.rows += 1
        if step.kind in _ANNOUNCED:
            reason = step.reason if step.kind == "account.refresh_failing" else None
            expected.append((_ANNOUNCED[step.kind].value, status, reason))
            continue
        if step.kind == _CREATED:
            if status is not None or step.status_from is not None:
                verdict.broken += 1
                verdict.say(f"account {account_id} was created twice")
            expected.append((EventType.CREATED.value, step.status_to, None))
            status = step.status_to
            continue
        verdict.moves += 1
        move = _move(step)
        if step.status_from != status or move is None or move.target != step.status_to:
            verdict.broken += 1
            verdict.say(
                f"account {account_id} was {status}, and its history says {step.kind} "
                f"from {step.status_from} to {step.status_to}",
            )
        elif move.event is not None:
            expected.append((move.event.value, step.status_to, step.reason))
        status = step.status_to
    verdict.expected += len(expected)
    return expected, status


def _compare(verdict: Verdict, account_id: int, expected: Sequence[_Event], events: Sequence[Told]) -> None:
    found = [(each.event_type, each.status, each.reason) for each in events]
    missing, double = Counter(expected) - Counter(found), Counter(found) - Counter(expected)
    verdict.missing += missing.total()
    verdict.double += double.total()
    for event in missing:
        verdict.say(f"account {account_id}: no event {event[0]}")
    for event in double:
        verdict.say(f"account {account_id}: an event {event[0]} that nothing in its history demands")
    if not missing and not double and list(expected) != found:
        verdict.out_of_order += sum(one != other for one, other in zip(expected, found, strict=True))
        verdict.say(f"account {account_id}: its events are in another order than its history")
    for earlier, later in itertools.pairwise(found):
        if earlier[0] == later[0] == EventType.AUTHENTICATION_ERROR:
            verdict.say(f"account {account_id}: people were told twice that it needs a sign-in")
    if any(each.subject != account_id for each in events):
        verdict.say(f"account {account_id}: an event about another account")


def _place(verdict: Verdict, standing: Standing, end: str | None) -> None:
    """Compare where an account stands with its history, and with what its status allows."""
    status = AccountStatus(standing.status)
    wrong: list[str] = []
    if standing.status != end:
        wrong.append(f"is {standing.status}, and its history ends in {end}")
    if status is AccountStatus.PAUSED and standing.is_due:
        wrong.append("is paused and due")
    if status is AccountStatus.NEEDS_REAUTH and standing.is_due and not standing.is_answered_since:
        wrong.append("needs a sign-in and is due, although no answer has come in since")
    if status is AccountStatus.REVOKED:
        if standing.is_due and not standing.holds_tokens:
            wrong.append("is revoked and due, although it has no tokens left")
        # Failing is what the sweep looks for: store.revocations.
        if standing.holds_tokens and not standing.is_failing:
            wrong.append("is revoked, holds tokens, and nobody will revoke them")
    elif not standing.holds_tokens:
        wrong.append("has lost its tokens")
    if status in REFRESHABLE and not (standing.is_due or standing.is_parked):
        wrong.append("is never asked about again")
    verdict.misplaced += bool(wrong)
    for each in wrong:
        verdict.say(f"account {standing.account_id} {each}")


def _witness(verdict: Verdict, steps: Iterable[Step], ledger: Counter[tuple[int, str]]) -> None:
    written = Counter(
        (step.account_id, step.status_to) for step in steps if step.status_from is not None and step.status_to
    )
    unwritten, unseen = ledger - written, written - ledger
    verdict.unwitnessed += unwritten.total() + unseen.total()
    for account_id, status in unwritten:
        verdict.say(f"account {account_id} was moved to {status}, and its history does not say so")
    for account_id, status in unseen:
        verdict.say(f"account {account_id}: its history says {status}, and nobody did that")


def _receive(verdict: Verdict, events: Mapping[int, Sequence[Told]], received: Sequence[UUID]) -> None:
    """Compare what came out at the other end with the outbox, account by account."""
    account_of = {each.event_id: account_id for account_id, told in events.items() for each in told}
    got: defaultdict[int, list[UUID]] = defaultdict(list)
    for event_id in received:
        got[account_of.get(event_id, 0)].append(event_id)
    for account_id in sorted(events.keys() | got.keys()):
        told = [each.event_id for each in events.get(account_id, [])]
        missing, double = Counter(told) - Counter(got[account_id]), Counter(got[account_id]) - Counter(told)
        verdict.missing += missing.total()
        verdict.double += double.total()
        if missing or double:
            verdict.say(
                f"account {account_id}: {missing.total()} events were not delivered, {double.total()} twice",
            )
        elif told != got[account_id]:
            verdict.out_of_order += 1
            verdict.say(f"account {account_id}: its events were delivered in another order")


def _move(step: Step) -> Transition | None:
    """Return the legal move that a row of the history names, None when there is none such."""
    prefix, _, word = step.kind.partition(".")
    if prefix != "account" or word not in set(Trigger) or step.status_from not in set(AccountStatus):
        return None
    return transition(AccountStatus(step.status_from), Trigger(word))


def _by_account(rows: Iterable[_Row]) -> dict[int, list[_Row]]:
    """Return ``rows`` by account, in their order."""
    groups: defaultdict[int, list[_Row]] = defaultdict(list)
    for row in rows:
        groups[row.account_id].append(row)
    return dict(groups)
