"""The record of what was presented and what was answered: the oracle of "presented once".

It watches requests, not decisions: whether the rotation core is right or wrong, the ledger sees each
presentation of each refresh token, whether another was open at that moment, and whether an answer that spent
the token had already gone out. Only three things are ever said of a repeated presentation:

- *presented twice*: in two requests at once, or again after the answer that spent it was delivered. A client
  that keeps promise G2 has none of these;
- *replayed after a loss*: again after it was spent by an answer that was never delivered, because a fault
  swallowed it, the client's connection was gone, or a tester says so (:meth:`Ledger.declare_lost`). Nobody
  can know better than to try this, and the server knows which answers they are;
- neither, when no answer had spent it (a 503 in between, say).

A rotation is *lost* from the moment its answer is known undelivered until a replay inside the grace, or the
successor's appearance, shows that the client holds it after all.

It never holds a token. Memory is one :class:`Entry` per sign-in, plus one number per lost answer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from sandbox.tokens import RefreshTokenRef

VIOLATIONS_REMEMBERED: Final = 100_000
"""The counters count all of them; so many of the latest are kept with names, for whoever has to find out."""


class ViolationKind(StrEnum):
    """The two ways of presenting a refresh token twice."""

    AT_ONCE = "at_once"
    AFTER_SUCCESS = "after_success"


@dataclass(frozen=True, slots=True)
class Violation:
    """One refresh token presented twice."""

    kind: ViolationKind
    subject: str
    family: int
    """Which sign-in, of all subjects, the first being 0."""
    rotation: int
    """Which refresh token of its family, the first being 0."""


@dataclass(frozen=True, slots=True)
class Loss:
    """The answer that spent one refresh token, and never reached the client or died with it."""

    subject: str
    ref: RefreshTokenRef
    recovered: bool
    """Whether the client turned out to hold the successor after all."""


@dataclass(slots=True)
class Entry:
    """What happened to one family."""

    subject: str
    presented: int = 0
    presented_twice: int = 0
    replays_after_loss: int = 0
    refreshes: int = 0
    api_requests: int = 0
    spent_through: int = -1
    """Highest number that an answer has spent; rotations come one after another."""
    delivered_through: int = -1
    """Highest number whose spending answer was delivered, so far as the server can know."""
    shown_through: int = -1
    """Highest number that was presented: whoever presents a successor holds it."""
    lost: set[int] = field(default_factory=set)
    recovered: set[int] = field(default_factory=set)
    """Numbers that were lost once, and are not any more."""
    presented_after_success: dict[int, int] = field(default_factory=dict)
    """How often a number was presented again before its successor was, where that is held against the client."""
    open: dict[int, list[Presentation]] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class Presentation:
    """One request that presents a refresh token of ours, from its arrival to the end of its answer."""

    entry: Entry
    ref: RefreshTokenRef
    ordinal: int
    """The how-manieth presentation of its family this is, from 1."""
    connected: Callable[[], bool]
    """Whether the client is still there to hear the answer."""
    succeeded: bool = False
    spends: bool = False
    closed: bool = False


@dataclass(slots=True)
class Counters:
    """Totals since the start. Each only grows, but for what a tester's word takes back: see
    :meth:`Ledger.declare_lost`."""

    refreshes: int = 0
    """Answered with success, and delivered so far as the server can know."""
    presented_at_once: int = 0
    presented_after_success: int = 0
    replays_after_loss: int = 0
    rotations_lost: int = 0
    rotations_recovered: int = 0
    families_revoked: int = 0
    """By reuse detection. A customer's own revocation is not among them."""
    max_open_requests: int = 0
    api_requests: int = 0
    """Requests of an API with an access token of ours, living or dead."""

    @property
    def presented_twice(self) -> int:
        """How many presentations should not have been."""
        return self.presented_at_once + self.presented_after_success


class Ledger:
    """Counts, judges nobody's intentions, and forgets nothing that counts."""

    def __init__(self) -> None:
        self.counters = Counters()
        self.rejected: dict[str, int] = {}
        """Refused requests by RFC 6749 error code, faults' own refusals left out."""
        self.violations: deque[Violation] = deque(maxlen=VIOLATIONS_REMEMBERED)
        self.open_requests = 0
        self._entries: list[Entry] = []
        self._current: dict[str, Entry] = {}
        self._families: dict[str, list[int]] = {}

    def family_issued(self, family: int, subject: str) -> None:
        """Note a new family. Ids come one after another from 0."""
        if family != len(self._entries):
            raise ValueError(f"family {family} is out of turn, {len(self._entries)} was expected")
        entry = Entry(subject)
        self._entries.append(entry)
        self._current[subject] = entry
        self._families.setdefault(subject, []).append(family)

    def entry_of(self, subject: str) -> Entry | None:
        """Return the record of the subject's current family."""
        return self._current.get(subject)

    def entries_with_losses(self) -> Iterator[Entry]:
        """Yield the current family of each subject that has lost a rotation and not recovered it."""
        return (entry for entry in self._current.values() if entry.lost)

    def spent(self, subject: str) -> Iterator[RefreshTokenRef]:
        """Yield each refresh token of ``subject`` that an answer has spent, the latest first."""
        for family in reversed(self._families.get(subject, [])):
            for number in range(self._entries[family].spent_through, -1, -1):
                yield RefreshTokenRef(family, number)

    def losses(self) -> Iterator[Loss]:
        """Yield each answer that was ever lost, of earlier sign-ins too."""
        for family, entry in enumerate(self._entries):
            for number in sorted(entry.lost | entry.recovered):
                yield Loss(entry.subject, RefreshTokenRef(family, number), number in entry.recovered)

    def api_requested(self, family: int) -> int:
        """Note a request with an access token of ``family``; returns the how-manieth it is."""
        self.counters.api_requests += 1
        self._entries[family].api_requests += 1
        return self._entries[family].api_requests

    def request_opened(self) -> None:
        """Note that a token request is being worked on."""
        self.open_requests += 1
        self.counters.max_open_requests = max(self.counters.max_open_requests, self.open_requests)

    def request_closed(self) -> None:
        """Note that a token request is over."""
        self.open_requests -= 1

    def request_rejected(self, error: str) -> None:
        """Note a refusal by its error code."""
        self.rejected[error] = self.rejected.get(error, 0) + 1

    def family_revoked(self) -> None:
        """Note that reuse detection ended a family."""
        self.counters.families_revoked += 1

    def present(self, ref: RefreshTokenRef, connected: Callable[[], bool]) -> Presentation:
        """Note that a request presents ``ref``, and judge it. Close what is returned with :meth:`close`."""
        entry = self._entries[ref.family]
        entry.presented += 1
        rivals = entry.open.setdefault(ref.number, [])
        for rival in [rival for rival in rivals if not rival.connected()]:
            # Its client hung up and asks anew; the loop just has not told the old request's handler yet.
            self.close(rival, delivered=False)
        if rivals:
            self._violation(ViolationKind.AT_ONCE, entry, ref)
        elif ref.number <= entry.spent_through:
            if ref.number in entry.lost:
                entry.replays_after_loss += 1
                self.counters.replays_after_loss += 1
            else:
                self._violation(ViolationKind.AFTER_SUCCESS, entry, ref)
        entry.shown_through = max(entry.shown_through, ref.number)
        if ref.number > 0:
            # Whoever presents a successor has it, whatever became of the connection that carried it.
            self._delivered(entry, ref.number - 1)
        presentation = Presentation(entry, ref, entry.presented, connected)
        entry.open.setdefault(ref.number, rivals).append(presentation)
        return presentation

    def decided(self, presentation: Presentation, *, spends: bool) -> None:
        """Note that the answer is a success; ``spends`` if it carries the successor of what was presented."""
        presentation.succeeded = True
        presentation.spends = spends
        if spends:
            entry = presentation.entry
            entry.spent_through = max(entry.spent_through, presentation.ref.number)

    def close(self, presentation: Presentation, *, delivered: bool) -> None:
        """Note how a request ended. Closing it a second time changes nothing."""
        if presentation.closed:
            return
        presentation.closed = True
        entry, number = presentation.entry, presentation.ref.number
        peers = entry.open[number]
        peers.remove(presentation)
        if not peers:
            del entry.open[number]
        if delivered and presentation.succeeded:
            entry.refreshes += 1
            self.counters.refreshes += 1
        if presentation.spends:
            if delivered:
                self._delivered(entry, number)
            else:
                self._lost(entry, number)

    def declare_lost(self, ref: RefreshTokenRef) -> bool:
        """Take a tester's word that nobody held the answer that spent ``ref`` when ``ref`` was presented again.

        The server saw that answer go out, so it cannot know by itself that the client died with it in its
        hands. The word may come late: presentations that were held against the client are replays after a loss
        then. Returns whether there was such a loss: False when no answer spent ``ref``, and when its successor
        was presented before ``ref`` was presented again, for then somebody did hold it.
        """
        entry, number = self._entries[ref.family], ref.number
        is_known = number in entry.lost or number in entry.recovered
        is_shown = entry.shown_through > number
        repeated = entry.presented_after_success.pop(number, 0)
        if number > entry.spent_through or (is_shown and not repeated and not is_known):
            return False
        if repeated:
            entry.presented_twice -= repeated
            entry.replays_after_loss += repeated
            self.counters.presented_after_success -= repeated
            self.counters.replays_after_loss += repeated
            kept = [each for each in self.violations if not _is_about(each, ref)]
            self.violations = deque(kept, maxlen=VIOLATIONS_REMEMBERED)
        if not is_known:
            entry.lost.add(number)
            self.counters.rotations_lost += 1
            if is_shown:
                self._delivered(entry, number)
        return True

    def _delivered(self, entry: Entry, number: int) -> None:
        if number in entry.lost:
            entry.lost.remove(number)
            entry.recovered.add(number)
            self.counters.rotations_recovered += 1
        entry.delivered_through = max(entry.delivered_through, number)

    def _lost(self, entry: Entry, number: int) -> None:
        if number > entry.delivered_through and number not in entry.lost:
            entry.lost.add(number)
            self.counters.rotations_lost += 1

    def _violation(self, kind: ViolationKind, entry: Entry, ref: RefreshTokenRef) -> None:
        entry.presented_twice += 1
        if kind is ViolationKind.AT_ONCE:
            self.counters.presented_at_once += 1
        else:
            # Once its successor was presented, somebody held that, and no word can excuse the repetition.
            if entry.shown_through <= ref.number:
                repeated = entry.presented_after_success.get(ref.number, 0)
                entry.presented_after_success[ref.number] = repeated + 1
            self.counters.presented_after_success += 1
        self.violations.append(Violation(kind, entry.subject, ref.family, ref.number))


def _is_about(violation: Violation, ref: RefreshTokenRef) -> bool:
    place = RefreshTokenRef(violation.family, violation.rotation)
    return violation.kind is ViolationKind.AFTER_SUCCESS and place == ref
