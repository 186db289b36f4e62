"""The authorization server itself, without HTTP: its grants, its ledger, its faults and its gate.

Everything here runs on one thread, the event loop's; what needs to be safe from others says so. The reports
are values that may leave the process: they hold counts, names and fingerprints, never a token.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from sandbox.config import SandboxConfig
from sandbox.faults import FaultKind, FaultPlan
from sandbox.gate import Gate
from sandbox.grants import Family, Grants, Issued, Refused
from sandbox.ledger import Ledger, Presentation, Violation, ViolationKind
from sandbox.tokens import Mint, RefreshTokenRef, fingerprint
from sandbox.traffic import Traffic

VIOLATIONS_REPORTED: Final = 100


@dataclass(frozen=True, slots=True)
class Grant:
    """A freshly issued grant: what an operator would import."""

    subject: str
    tokens: Issued
    expires_at: datetime
    refresh_token_expires_at: datetime | None


@dataclass(frozen=True, slots=True)
class LedgerReport:
    """The ledger's totals (``sandbox.ledger`` says what each word means)."""

    refreshes: int
    presented_twice: int
    presented_at_once: int
    presented_after_success: int
    replays_after_loss: int
    rotations_lost: int
    """Answers with a successor that were never delivered, those recovered by a replay left out."""
    rotations_recovered: int
    families_revoked: int
    rejected: int
    rejected_by_error: dict[str, int]
    open_requests: int
    max_open_requests: int
    api_requests: int
    """Requests with an access token: probes."""
    subjects: int
    accounts_alive: int
    """Subjects whose live refresh token was delivered: the client can go on."""
    accounts_stranded: int
    """Subjects with a live refresh token that no client has: the answer that carried it was lost."""
    faults: dict[FaultKind, int]
    violations: tuple[Violation, ...]
    """The latest refresh tokens presented twice, at most 100."""


@dataclass(frozen=True, slots=True)
class SubjectReport:
    """One subject's current family."""

    subject: str
    presented: int
    refreshes: int
    rotations: int
    presented_twice: int
    replays_after_loss: int
    rotations_lost: int
    open_requests: int
    api_requests: int
    alive: bool
    stranded: bool


@dataclass(frozen=True, slots=True)
class LiveTokens:
    """What a client ought to hold, as SHA-256 fingerprints in hexadecimal."""

    subject: str
    refresh_token_sha256: str
    access_token_sha256: str
    access_token_expires_at: float
    """POSIX seconds."""
    rotations: int
    alive: bool
    stranded: bool


@dataclass(frozen=True, slots=True)
class LossReport:
    """A refresh token whose answer was lost, by its SHA-256 in hexadecimal."""

    subject: str
    refresh_token_sha256: str
    recovered: bool
    """Whether the client turned out to hold the successor after all."""


@dataclass(frozen=True, slots=True)
class ViolationReport:
    """A presentation that should not have been, the refresh token by its SHA-256 in hexadecimal."""

    kind: ViolationKind
    subject: str
    refresh_token_sha256: str


class Authority:
    """One authorization server with one client registration."""

    def __init__(self, config: SandboxConfig, clock: Callable[[], float] = time.time) -> None:
        self.config = config
        self.clock = clock
        self.mint = Mint()
        self.grants = Grants(config, self.mint)
        self.ledger = Ledger()
        self.faults = FaultPlan(config.seed)
        self.gate = Gate()
        self.traffic = Traffic()
        self._latencies = random.Random(config.seed)

    def issue(self, subject: str, *, seconds_left: float | None = None) -> Grant:
        """Sign ``subject`` in, anew if need be, and return the tokens.

        ``seconds_left`` is how long the access token still lives, as if the sign-in were some time ago.
        """
        now = self.clock()
        tokens = self.grants.issue(subject, now, seconds_left=seconds_left)
        family = self._family(subject)
        self.ledger.family_issued(family.id, subject)
        expiry = self.grants.refresh_expiry(family)
        return Grant(
            subject=subject,
            tokens=tokens,
            expires_at=datetime.fromtimestamp(family.access.expires_at_ms / 1000, UTC),
            refresh_token_expires_at=None if expiry is None else datetime.fromtimestamp(expiry, UTC),
        )

    def refresh(self, presentation: Presentation, *, rotate: bool) -> Issued | Refused:
        """Decide a refresh request and note the decision."""
        decision = self.grants.refresh(presentation.ref, self.clock(), rotate=rotate)
        if isinstance(decision, Issued):
            self.ledger.decided(presentation, spends=decision.rotated or decision.replayed)
        elif decision.revoked_family:
            self.ledger.family_revoked()
        return decision

    def is_too_early(self, presentation: Presentation) -> bool:
        """Answer whether the access token is too young for this refresh; a dead one never is."""
        window = self.config.earliest_refresh_seconds
        family = self.grants.family_of(presentation.entry.subject)
        if (
            window is None
            or family is None
            or self.grants.access_token_facts(family.access, self.clock()) is None
        ):
            return False
        return family.access.expires_at_ms / 1000 - self.clock() > window

    def note_arrival(self, presentation: Presentation, at: float) -> None:
        """Put a token request that came at ``at`` on the record, if its subject is watched."""
        subject = presentation.entry.subject
        expires_at = self._family(subject).access.expires_at_ms / 1000
        self.traffic.arrived(subject, at, expires_at - at)

    def latency(self) -> float:
        """Draw how many seconds the next answer is held back."""
        shortest, longest = self.config.latency_seconds
        return self._latencies.uniform(shortest, longest) if longest else 0.0

    def report(self) -> LedgerReport:
        """Return the totals as of now."""
        counters = self.ledger.counters
        live = self.grants.count_live(self.clock())
        stranded = sum(1 for family in self._stranded())
        return LedgerReport(
            refreshes=counters.refreshes,
            presented_twice=counters.presented_twice,
            presented_at_once=counters.presented_at_once,
            presented_after_success=counters.presented_after_success,
            replays_after_loss=counters.replays_after_loss,
            rotations_lost=counters.rotations_lost - counters.rotations_recovered,
            rotations_recovered=counters.rotations_recovered,
            families_revoked=counters.families_revoked,
            rejected=sum(self.ledger.rejected.values()),
            rejected_by_error=dict(self.ledger.rejected),
            open_requests=self.ledger.open_requests,
            max_open_requests=counters.max_open_requests,
            api_requests=counters.api_requests,
            subjects=len(self.grants),
            accounts_alive=live - stranded,
            accounts_stranded=stranded,
            faults=dict(self.faults.struck),
            violations=tuple(itertools.islice(reversed(self.ledger.violations), VIOLATIONS_REPORTED))[::-1],
        )

    def report_subject(self, subject: str) -> SubjectReport | None:
        """Return what happened to one subject, or None when there is no such subject."""
        family, entry = self.grants.family_of(subject), self.ledger.entry_of(subject)
        if family is None or entry is None:
            return None
        return SubjectReport(
            subject=subject,
            presented=entry.presented,
            refreshes=entry.refreshes,
            rotations=family.number,
            presented_twice=entry.presented_twice,
            replays_after_loss=entry.replays_after_loss,
            rotations_lost=len(entry.lost),
            open_requests=sum(len(presentations) for presentations in entry.open.values()),
            api_requests=entry.api_requests,
            alive=self.grants.is_live(family, self.clock()) and not self._is_stranded(family),
            stranded=self._is_stranded(family),
        )

    def losses(self) -> Iterator[LossReport]:
        """Yield each answer that was ever lost, of earlier sign-ins too."""
        for loss in self.ledger.losses():
            yield LossReport(loss.subject, self._sha256(loss.ref), loss.recovered)

    def violations(self) -> Iterator[ViolationReport]:
        """Yield every presentation that should not have been, as far as they are remembered."""
        for violation in tuple(self.ledger.violations):
            ref = RefreshTokenRef(violation.family, violation.rotation)
            yield ViolationReport(violation.kind, violation.subject, self._sha256(ref))

    def declare_lost(self, subject: str, refresh_token_sha256: str) -> bool:
        """Take a tester's word on the answer to one presented token: see ``Ledger.declare_lost``.

        Returns whether there was such a loss.
        """
        for ref in self.ledger.spent(subject):
            if self._sha256(ref) == refresh_token_sha256:
                return self.ledger.declare_lost(ref)
        return False

    def _sha256(self, ref: RefreshTokenRef) -> str:
        return fingerprint(self.mint.refresh_token(ref))

    def live(self) -> Iterator[LiveTokens]:
        """Yield each subject's live tokens as fingerprints. Subjects may change while it is read."""
        for subject in tuple(family.subject for family in self.grants.families()):
            family = self._family(subject)
            stranded = self._is_stranded(family)
            yield LiveTokens(
                subject=subject,
                refresh_token_sha256=fingerprint(self.mint.refresh_token(family.live)),
                access_token_sha256=fingerprint(self.mint.access_token(family.access)),
                access_token_expires_at=family.access.expires_at_ms / 1000,
                rotations=family.number,
                alive=self.grants.is_live(family, self.clock()) and not stranded,
                stranded=stranded,
            )

    def _family(self, subject: str) -> Family:
        family = self.grants.family_of(subject)
        if family is None:
            raise LookupError(f"{subject} has no grant here")
        return family

    def _stranded(self) -> Iterator[Family]:
        for entry in self.ledger.entries_with_losses():
            family = self._family(entry.subject)
            if entry is self.ledger.entry_of(entry.subject) and self._is_stranded(family):
                yield family

    def _is_stranded(self, family: Family) -> bool:
        entry = self.ledger.entry_of(family.subject)
        return (
            entry is not None
            and family.number - 1 in entry.lost
            and self.grants.is_live(family, self.clock())
        )
