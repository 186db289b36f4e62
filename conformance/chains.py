"""One customer's grant at the provider that is played: rotation, grace, reuse and lifetimes as a definition says.

Tokens are those of the sandbox, and its ledger watches each presentation: whatever the rules here say, it knows whether
a refresh token was presented twice. ``now`` is the clock's, in POSIX seconds. Invariants: a refresh token is spent by
the answer that brings its successor; a spent one brings that same successor again while the grace lasts (another one
where several can be alive), and is reuse afterwards.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from providers.spec import ProviderSpec
from sandbox.ledger import Ledger, Presentation
from sandbox.tokens import AccessTokenRef, Mint, RefreshTokenRef
from tokenfleet_client.secret import Secret

DEFAULT_LIFE_SECONDS: Final = 3600
LONG_LIFE_SECONDS: Final = 86_400 * 365
"""How long an access token lives here of which its definition says that it never expires."""

FAMILY: Final = 0
REMEMBERED: Final = 64
"""How many refresh tokens of a chain can be alive, or in their grace, where a definition names no number."""


class Denial(StrEnum):
    """Why a token is not accepted."""

    UNKNOWN = "the token that was presented is none of this provider's"
    REUSED = "the refresh token was used before"
    REVOKED = "the grant is revoked"
    IDLE = "the refresh token was not used for too long"
    ENDED = "the grant has reached its end"
    TOO_EARLY = "the access token is too young to be refreshed, or has too long to live"
    DEAD = "the access token that was presented does not live any more"


@dataclass(frozen=True, slots=True)
class Issue:
    """What an answer brings. ``refresh_token`` is None where it brings none."""

    access_token: Secret
    life_seconds: int
    refresh_token: Secret | None
    rotated: bool
    presentation: Presentation | None = None


@dataclass(slots=True)
class Spent:
    """A refresh token that was replaced."""

    at: float
    access: int
    """The number of the access token that came with its successor."""


@dataclass(slots=True)
class Chain:
    """The tokens that descend from one consent."""

    spec: ProviderSpec
    now: Callable[[], float]
    mint: Mint = field(default_factory=Mint)
    ledger: Ledger = field(default_factory=Ledger)
    revoked: bool = False
    consented_at: float = 0.0
    used_at: float = 0.0
    number: int = 0
    refreshes: int = 0
    family_ended: bool = False
    """Whether reuse has ended the grant."""
    _access: list[AccessTokenRef] = field(default_factory=list)
    _issued_at: list[float] = field(default_factory=list)
    _used: set[int] = field(default_factory=set)
    _dead: set[int] = field(default_factory=set)
    _spent: dict[int, Spent] = field(default_factory=dict)
    _live: list[int] = field(default_factory=lambda: [0])

    def __post_init__(self) -> None:
        self.ledger.family_issued(FAMILY, "customer")
        self.consented_at = self.used_at = self.now()
        self._new_access_token(self.life_seconds)

    @property
    def life_seconds(self) -> int:
        """How long an access token lives."""
        lifetimes = self.spec.lifetimes
        if lifetimes.access_never_expires:
            return LONG_LIFE_SECONDS
        return lifetimes.access_seconds or DEFAULT_LIFE_SECONDS

    @property
    def refresh_token(self) -> Secret:
        """The refresh token that is the right one to hold."""
        return self.mint.refresh_token(RefreshTokenRef(FAMILY, self.number))

    @property
    def access_token(self) -> Secret:
        """The access token that was issued last."""
        return self.mint.access_token(self._access[-1])

    @property
    def access_issued_at(self) -> float:
        """When the last access token was issued."""
        return self._issued_at[-1]

    @property
    def access_expires_at(self) -> float:
        """When the last access token ends."""
        return self._access[-1].expires_at_ms / 1000

    @property
    def refresh_expires_at(self) -> float | None:
        """When the refresh token dies by itself; None when it does not."""
        life = self.spec.lifetimes
        ends = [
            start + seconds
            for start, seconds in (
                (self.used_at, life.refresh_idle_seconds),
                (self.consented_at, life.refresh_absolute_seconds),
            )
            if seconds is not None
        ]
        return min(ends, default=None)

    def refresh(
        self, token: str, connected: Callable[[], bool], *, rotate: bool | None = None
    ) -> Issue | Denial:
        """Answer a request that presents ``token``. ``rotate`` overrides what the policy would do now."""
        ref = self.mint.read_refresh_token(Secret(token))
        if ref is None:
            return Denial.UNKNOWN
        presentation = self.ledger.present(ref, connected)
        decision = self._refresh(ref.number, rotate)
        if isinstance(decision, Denial):
            self.ledger.close(presentation, delivered=True)
            if decision is Denial.REUSED and self.spec.rotation.family_revocation:
                self.revoked = self.family_ended = True
            return decision
        issue, spends = decision
        self.ledger.decided(presentation, spends=spends)
        return Issue(issue.access_token, issue.life_seconds, issue.refresh_token, issue.rotated, presentation)

    def renew(self, presented: AccessTokenRef | None = None) -> Issue | Denial:
        """Answer a request that presents no refresh token, or the access token ``presented``."""
        if (denial := self._denial()) is not None:
            return denial
        if self._is_too_early(presented):
            return Denial.TOO_EARLY
        self.used_at = self.now()
        self.refreshes += 1
        return Issue(self._new_access_token(self.life_seconds), self.life_seconds, None, False)

    def exchange(self, access_token: str) -> Issue | Denial:
        """Answer a request that presents the access token itself."""
        ref = self.mint.read_access_token(Secret(access_token))
        if ref is None:
            return Denial.UNKNOWN
        return self.renew(ref) if self.lives(access_token) else Denial.DEAD

    def use(self, access_token: str) -> bool:
        """Answer whether the API accepts ``access_token``; a first use ends the grace of what it replaced."""
        ref = self.mint.read_access_token(Secret(access_token))
        if ref is None or not self.lives(access_token):
            return False
        self._used.add(ref.number)
        return True

    def lives(self, access_token: str) -> bool:
        """Answer whether ``access_token`` would be accepted."""
        ref = self.mint.read_access_token(Secret(access_token))
        if ref is None or self.revoked or ref.number in self._dead:
            return False
        return ref.expires_at_ms / 1000 > self.now()

    def kill_access_token(self) -> None:
        """End the last access token alone, as an administrator can."""
        self._dead.add(self._access[-1].number)

    def expiry_of(self, access_token: str) -> float:
        """Return when ``access_token``, which is one of these, ends."""
        ref = self.mint.read_access_token(Secret(access_token))
        assert ref is not None
        return ref.expires_at_ms / 1000

    def renew_access_token(self) -> None:
        """Pretend that an access token was issued just now, and the one before has ended."""
        self._new_access_token(self.life_seconds)

    def use_of_late(self) -> None:
        """Pretend that the refresh token was used just now."""
        self.used_at = self.now()

    def _refresh(self, number: int, rotate: bool | None) -> tuple[Issue, bool] | Denial:
        if (denial := self._denial()) is not None:
            return denial
        if number == self.number:
            if self._is_too_early():
                return Denial.TOO_EARLY
            return self._renew(number, rotate)
        spent = self._spent.get(number)
        if spent is None or number not in self._live or not self._in_grace(spent):
            return Denial.REUSED
        if self.spec.rotation.max_live is not None:
            return self._renew(number, True)
        access_token = self._new_access_token(self.life_seconds)
        return Issue(access_token, self.life_seconds, self.refresh_token, True), True

    def _denial(self) -> Denial | None:
        life, now = self.spec.lifetimes, self.now()
        if self.revoked:
            return Denial.REVOKED
        if life.refresh_idle_seconds is not None and now - self.used_at >= life.refresh_idle_seconds:
            return Denial.IDLE
        if (
            life.refresh_absolute_seconds is not None
            and now - self.consented_at >= life.refresh_absolute_seconds
        ):
            return Denial.ENDED
        return None

    def _is_too_early(self, access: AccessTokenRef | None = None) -> bool:
        """Answer whether it is too early to replace ``access``, by default the last access token."""
        access = access or self._access[-1]
        life, now, expires_at = self.spec.lifetimes, self.now(), access.expires_at_ms / 1000
        if access.number in self._dead or expires_at <= now:
            return False
        window, age = life.earliest_refresh_seconds, life.minimum_age_seconds
        if window is not None and expires_at - now > window + 1:
            return True
        return age is not None and now - self._issued_at[access.number] < age - 1

    def _renew(self, number: int, rotate: bool | None) -> tuple[Issue, bool]:
        self.used_at = self.now()
        policy = self.spec.rotation.policy
        rotates = {"never": False, "always": True, "sometimes": self.refreshes % 2 == 0}[policy]
        if rotate is not None and policy != "never":
            rotates = rotate
        # A provider that keeps the refresh token says nothing of it, or says the same one again.
        repeats = self.refreshes % 4 == 3
        self.refreshes += 1
        access_token = self._new_access_token(self.life_seconds)
        if rotates:
            self._spent[number] = Spent(self.now(), self._access[-1].number)
            self.number += 1
            self._live = [*self._live, self.number][-(self.spec.rotation.max_live or REMEMBERED) :]
        token = self.refresh_token if rotates or (repeats and rotate is None) else None
        return Issue(access_token, self.life_seconds, token, rotates), rotates

    def _in_grace(self, spent: Spent) -> bool:
        rotation = self.spec.rotation
        if rotation.grace_until_first_use and spent.access not in self._used:
            return True
        return self.now() - spent.at < rotation.grace_seconds

    def _new_access_token(self, life_seconds: int) -> Secret:
        expires_at_ms = round((self.now() + life_seconds) * 1000)
        self._access.append(AccessTokenRef(FAMILY, len(self._access), expires_at_ms))
        self._issued_at.append(self.now())
        return self.access_token
