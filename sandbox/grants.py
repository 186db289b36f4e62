"""Grants of customers, and rotation of their refresh tokens (RFC 6749 section 6, RFC 9700 section 4.14.2).

Invariants, whatever is asked and in whichever order:

- a family has at most one live refresh token, and under rotation each is accepted once;
- within the grace, the token spent last is answered again with the very successor it got the first time;
- presenting any other spent token is reuse: refused, and with family revocation nothing of that family is
  ever accepted again;
- a subject has one family: signing in again ends the one before.

Pure: no I/O, and ``now`` is a parameter (POSIX seconds). Memory is one :class:`Family` per sign-in, never per
rotation (see ``sandbox.tokens``), and one reference per access token that a client revoked by name.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from sandbox.config import Rotation, SandboxConfig
from sandbox.tokens import AccessTokenRef, Mint, RefreshTokenRef
from tokenfleet_client.secret import Secret


class Refusal(StrEnum):
    """Why a refresh token is not accepted. On the wire each is ``invalid_grant``."""

    UNKNOWN = "the refresh token is unknown"
    REUSED = "the refresh token was used before"
    REVOKED = "the grant was revoked"
    EXPIRED = "the refresh token has expired"


@dataclass(frozen=True, slots=True)
class Refused:
    """The refresh token is not accepted. ``revoked_family`` says that this very request ended its family."""

    reason: Refusal
    revoked_family: bool = False


@dataclass(frozen=True, slots=True)
class Issued:
    """Tokens to hand out (RFC 6749 section 5.1).

    ``refresh_token`` is None when the one presented stays good. ``rotated`` says that the one presented is
    spent by this answer, ``replayed`` that it was spent before and the same answer is given again.
    """

    access_token: Secret
    expires_in: int
    refresh_token: Secret | None = None
    refresh_token_expires_in: int | None = None
    rotated: bool = False
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class TokenFacts:
    """What introspection may say of a good token (RFC 7662 section 2.2)."""

    subject: str
    token_type: str
    expires_at: float | None


@dataclass(slots=True)
class Family:
    """All tokens that descend from one consent. ``number`` is the live refresh token's."""

    id: int
    subject: str
    created_at: float
    used_at: float
    """When a token was last issued: the idle lifetime counts from here."""
    access: AccessTokenRef
    rotated_at: float = 0.0
    """When the live refresh token's predecessor was spent: the grace counts from here."""
    number: int = 0
    revoked: bool = False

    @property
    def live(self) -> RefreshTokenRef:
        """The one refresh token that would be accepted."""
        return RefreshTokenRef(self.id, self.number)


class Grants:
    """Every grant of this authorization server."""

    def __init__(self, config: SandboxConfig, mint: Mint) -> None:
        self._config = config
        self._mint = mint
        self._can_expire = (
            config.refresh_idle_lifetime_seconds is not None
            or config.refresh_absolute_lifetime_seconds is not None
        )
        self._families: list[Family] = []
        self._current: dict[str, Family] = {}
        self._revoked_access: set[AccessTokenRef] = set()

    def __len__(self) -> int:
        return len(self._current)

    def issue(self, subject: str, now: float, *, seconds_left: float | None = None) -> Issued:
        """Return the first tokens of a new family: the customer signs in. An older family of theirs ends.

        The access token lives for ``seconds_left``, or for as long as every one does.
        """
        earlier = self._current.get(subject)
        if earlier is not None:
            earlier.revoked = True
        family_id = len(self._families)
        access = AccessTokenRef(family_id, 0, self._access_expiry(now, seconds_left))
        family = Family(family_id, subject, created_at=now, used_at=now, access=access)
        self._families.append(family)
        self._current[subject] = family
        return self._tokens(family, now, refresh_token=True)

    def refresh(self, ref: RefreshTokenRef, now: float, *, rotate: bool = True) -> Issued | Refused:
        """Answer a refresh request for a token of ours.

        ``rotate=False`` spares the token presented, as a provider does that omits ``refresh_token``.
        """
        family = self._families[ref.family]
        if family.revoked:
            return Refused(Refusal.REVOKED)
        if self._has_expired(family, now):
            return Refused(Refusal.EXPIRED)
        if ref.number == family.number:
            return self._renew(family, now, rotate=rotate and self._config.rotation is Rotation.ALWAYS)
        if ref.number == family.number - 1 and now - family.rotated_at < self._config.grace_seconds:
            return self._tokens(family, now, refresh_token=True, replayed=True)
        family.revoked = self._config.family_revocation
        return Refused(Refusal.REUSED, revoked_family=family.revoked)

    def revoke_subject(self, subject: str) -> bool:
        """End the subject's grant. Return whether there was a living one."""
        family = self._current.get(subject)
        if family is None or family.revoked:
            return False
        family.revoked = True
        return True

    def revoke_family(self, ref: RefreshTokenRef) -> None:
        """End the family of a refresh token (RFC 7009 section 2.1)."""
        self._families[ref.family].revoked = True

    def revoke_access_token(self, ref: AccessTokenRef) -> None:
        """End one access token; its refresh token stays good (RFC 7009 section 2.1 allows either)."""
        self._revoked_access.add(ref)

    def subject_of(self, ref: RefreshTokenRef | AccessTokenRef) -> str:
        """Return whose token this is."""
        return self._families[ref.family].subject

    def refresh_token_facts(self, ref: RefreshTokenRef, now: float) -> TokenFacts | None:
        """Return what is known of a refresh token, or None when it would not be accepted as the live one."""
        family = self._families[ref.family]
        if ref.number != family.number or not self.is_live(family, now):
            return None
        return TokenFacts(family.subject, "refresh_token", self.refresh_expiry(family))

    def access_token_facts(self, ref: AccessTokenRef, now: float) -> TokenFacts | None:
        """Return what is known of an access token, or None when it is expired or revoked.

        A rotation leaves earlier access tokens good until they expire, as providers do.
        """
        if ref.expires_at_ms <= now * 1000 or ref in self._revoked_access:
            return None
        family = self._families[ref.family]
        if family.revoked:
            return None
        return TokenFacts(family.subject, "Bearer", ref.expires_at_ms / 1000)

    def families(self) -> Iterator[Family]:
        """Yield the current family of each subject, in order of first sign-in."""
        return iter(self._current.values())

    def family_of(self, subject: str) -> Family | None:
        """Return the current family of ``subject``, if there is such a subject."""
        return self._current.get(subject)

    def refresh_expiry(self, family: Family) -> float | None:
        """Return when the live refresh token dies by itself (POSIX seconds), or None when it does not."""
        idle = self._config.refresh_idle_lifetime_seconds
        absolute = self._config.refresh_absolute_lifetime_seconds
        ends = []
        if idle is not None:
            ends.append(family.used_at + idle)
        if absolute is not None:
            ends.append(family.created_at + absolute)
        return min(ends, default=None)

    def is_live(self, family: Family, now: float) -> bool:
        """Answer whether the family still has a refresh token that would be accepted."""
        return not family.revoked and not self._has_expired(family, now)

    def count_live(self, now: float) -> int:
        """Return how many subjects have a refresh token that would be accepted."""
        # A demo asks every second; without lifetimes 100,000 families are counted in 6 ms instead of 36.
        living = [family for family in self._current.values() if not family.revoked]
        return sum(self.is_live(family, now) for family in living) if self._can_expire else len(living)

    def _renew(self, family: Family, now: float, *, rotate: bool) -> Issued:
        family.access = AccessTokenRef(family.id, family.access.number + 1, self._access_expiry(now))
        family.used_at = now
        if rotate:
            family.number += 1
            family.rotated_at = now
        return self._tokens(family, now, refresh_token=rotate, rotated=rotate)

    def _tokens(
        self,
        family: Family,
        now: float,
        *,
        refresh_token: bool,
        rotated: bool = False,
        replayed: bool = False,
    ) -> Issued:
        expiry = self.refresh_expiry(family)
        return Issued(
            access_token=self._mint.access_token(family.access),
            expires_in=_whole_seconds(family.access.expires_at_ms / 1000 - now),
            refresh_token=self._mint.refresh_token(family.live) if refresh_token else None,
            refresh_token_expires_in=None if expiry is None else _whole_seconds(expiry - now),
            rotated=rotated,
            replayed=replayed,
        )

    def _access_expiry(self, now: float, seconds_left: float | None = None) -> int:
        lifetime = self._config.access_lifetime_seconds if seconds_left is None else seconds_left
        return round((now + lifetime) * 1000)

    def _has_expired(self, family: Family, now: float) -> bool:
        expiry = self.refresh_expiry(family)
        return expiry is not None and expiry <= now


def _whole_seconds(remaining: float) -> int:
    # Expiries are kept to the millisecond, so a fresh 60 s token can be left with 59.9996 s of it.
    return max(0, int(remaining + 0.001))
