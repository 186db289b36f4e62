"""What to do about an outcome: DESIGN section 5 as one pure, total function.

:func:`decide` performs no I/O and takes time and chance as parameters. Invariants it keeps:

* only :class:`~tokenfleet.outcome.GrantRejected` can lead to ``needs_reauth`` (G4);
* a refresh token whose answer was lost is presented again once at once, never in a loop;
* every failure has a next moment, and it is never sooner than one second away.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final, assert_never

from tokenfleet.lifetimes import NOTHING_SAID, Holding, Lifetimes, announced_end, next_visit
from tokenfleet.outcome import (
    ClientRejected,
    GrantRejected,
    Outcome,
    OutcomeUnknown,
    Refreshed,
    RequestRejected,
    Throttled,
    TokenAnswer,
    Unavailable,
    Undescribed,
)
from tokenfleet.tokens import Margins

BACKOFF_BASE: Final = timedelta(seconds=4)
BACKOFF_CAP: Final = timedelta(minutes=5)
BACKOFF_FLOOR: Final = timedelta(seconds=1)

REPLAYS_IN_GRACE: Final = 3

THROTTLE_DEFAULT: Final = timedelta(seconds=30)
THROTTLE_CAP: Final = timedelta(hours=24)

UNDESCRIBED_DELAYS: Final = (timedelta(minutes=1), timedelta(minutes=10), timedelta(hours=1))
OUR_FAULT_DELAYS: Final = (timedelta(minutes=1), timedelta(minutes=10))
QUARANTINE_DELAY: Final = timedelta(hours=6)

LEARNED_LIFETIME_CAP: Final = timedelta(days=365)
"""A learned lifetime is a guess, and not believed further than this."""

UNSETTLED: Final = "attempt_unsettled"
"""``last_error`` of an account whose last attempt was started and never heard of again."""
ROTATION_LOST: Final = "rotation_lost"
"""Reason of a rejection that follows a lost answer: the provider rotated and we never saw the successor."""


@dataclass(frozen=True, slots=True)
class Known:
    """What we know of the account when its outcome arrives.

    ``attempts`` counts consecutive failures before this one. ``unanswered`` counts earlier presentations of
    this same refresh token whose answer was lost, in this attempt or an earlier one. ``replayed`` says that
    this attempt has presented it a second time. ``last_lifetime`` is how long the previous token lived.
    ``rotates`` is False when the provider never replaces refresh tokens, so that none can be lost;
    ``replay_grace`` is how long a replaced one still works, None when it is spent at once; ``max_live`` is how many
    can be alive at once.

    Of the grant: when the customer consented, whether its end was announced, when the refresh token that we hold
    after this answer expires, and whether that end is fixed. ``learned_lifetime`` is how long a token lived that did
    not say so and was found dead.
    """

    attempts: int
    unanswered: int
    replayed: bool
    margins: Margins
    last_lifetime: timedelta | None = None
    rotates: bool = True
    replay_grace: timedelta | None = None
    max_live: int | None = None
    lifetimes: Lifetimes = NOTHING_SAID
    granted_at: datetime | None = None
    reauth_told: bool = False
    refresh_token_expires_at: datetime | None = None
    end_is_fixed: bool = False
    learned_lifetime: timedelta | None = None


@dataclass(frozen=True, slots=True)
class Save:
    """Persist the answer; visit the account again at ``next_refresh_at``.

    ``expires_at`` is what the answer says, else what the previous token's life taught; None when unknown.
    ``probing`` says that the visit will not present the refresh token. ``grant_ends_at`` is the end that the customer
    has to be told of now, None when there is nothing to tell. ``learned_lifetime`` is what ``expires_at`` was taken
    from, when it was that.
    """

    next_refresh_at: datetime
    expires_at: datetime | None
    probing: bool = False
    grant_ends_at: datetime | None = None
    learned_lifetime: timedelta | None = None


@dataclass(frozen=True, slots=True)
class Replay:
    """Present the same refresh token once more, now: its answer was lost."""


@dataclass(frozen=True, slots=True)
class RetryLater:
    """Nothing is wrong with the grant as far as we know; ask again at ``at``.

    ``counts`` is False when the failure is not the account's (a throttled app).
    """

    at: datetime
    code: str
    counts: bool = True
    answer_lost: bool = False


@dataclass(frozen=True, slots=True)
class PauseApp:
    """Nobody of this app is asked before ``until``; this account neither."""

    until: datetime
    code: str


@dataclass(frozen=True, slots=True)
class HoldApp:
    """The client registration is misconfigured: stop this app, alarm operators, change no account."""

    code: str


@dataclass(frozen=True, slots=True)
class RequireReauth:
    """The customer has to sign in again. ``reason`` is the provider's code, or :data:`ROTATION_LOST`."""

    reason: str
    code: str


@dataclass(frozen=True, slots=True)
class Quarantine:
    """Our own fault, and repetition did not help: leave this account alone until ``at`` and alarm."""

    at: datetime
    code: str


Decision = Save | Replay | RetryLater | PauseApp | HoldApp | RequireReauth | Quarantine


def decide(outcome: Outcome, known: Known, *, now: datetime, chance: float) -> Decision:
    """Return what ``outcome`` means for an account of which ``known`` is known.

    ``chance`` in [0, 1) is the only randomness. The caller still guards the write: a
    :class:`RequireReauth` takes effect only while the generation has not moved (a sibling may have won).
    """
    match outcome:
        case Refreshed(answer):
            return _save(answer, known, now, chance)
        case GrantRejected(code):
            return RequireReauth(ROTATION_LOST if known.unanswered and known.rotates else code, code)
        case ClientRejected(code):
            return HoldApp(code)
        case Throttled(code, retry_after):
            return PauseApp(now + _pause(retry_after), code)
        case Unavailable(code):
            return RetryLater(now + _retry_wait(known, chance), code)
        case OutcomeUnknown(code):
            if not known.replayed and _may_replay(known):
                return Replay()
            return RetryLater(now + _retry_wait(known, chance), code, answer_lost=True)
        case RequestRejected(code):
            return _our_fault(code, known.attempts, now)
        case Undescribed(code):
            step = min(known.attempts, len(UNDESCRIBED_DELAYS) - 1)
            return RetryLater(now + UNDESCRIBED_DELAYS[step] * (0.75 + chance / 2), code)
        case _:
            assert_never(outcome)


def backoff(attempts: int, chance: float) -> timedelta:
    """Return the wait before try number ``attempts`` + 2: exponential, capped, full jitter, 1 s at least."""
    doublings: int = 1 << min(max(attempts, 0), 16)
    ceiling = min(BACKOFF_CAP, BACKOFF_BASE * doublings)
    return max(BACKOFF_FLOOR, ceiling * chance)


def _retry_wait(known: Known, chance: float) -> timedelta:
    """Return the wait before the next try.

    While an answer is missing it is short enough for some more tries within the provider's grace: after that the
    replaced token is reuse, and the family may be revoked for it (RFC 9700 section 4.14.2).
    """
    wait = backoff(known.attempts, chance)
    if known.replay_grace is None or not 0 < known.unanswered <= REPLAYS_IN_GRACE:
        return wait
    return max(BACKOFF_FLOOR, min(wait, known.replay_grace / (REPLAYS_IN_GRACE + 1)))


def _may_replay(known: Known) -> bool:
    """Each presentation whose answer was lost may have left a successor alive: never more than the provider allows."""
    return known.max_live is None or known.unanswered + 2 <= known.max_live


def _save(answer: TokenAnswer, known: Known, now: datetime, chance: float) -> Save:
    lifetimes = known.lifetimes
    guesses = answer.expires_at is None and not lifetimes.access_never_expires
    expires_at = _learned_expiry(known, now) if guesses else answer.expires_at
    holding = Holding(
        obtained_at=now,
        expires_at=expires_at,
        granted_at=known.granted_at,
        refresh_token_expires_at=known.refresh_token_expires_at,
        end_is_fixed=known.end_is_fixed,
        told=known.reauth_told,
    )
    grant_ends_at = announced_end(holding, lifetimes, now=now)
    if grant_ends_at is not None:
        holding = replace(holding, told=True)
    visit = next_visit(holding, lifetimes, known.margins, now=now, chance=chance)
    learned = known.learned_lifetime if guesses else None
    return Save(visit.at, expires_at, not visit.presents, grant_ends_at, learned)


def _learned_expiry(known: Known, now: datetime) -> datetime | None:
    learned = known.learned_lifetime or known.last_lifetime
    # A token that was imported already expired teaches nothing.
    if learned is None or learned <= timedelta(0):
        return None
    return now + min(learned, LEARNED_LIFETIME_CAP)


def _pause(retry_after: timedelta | None) -> timedelta:
    if retry_after is None:
        return THROTTLE_DEFAULT
    return min(max(retry_after, BACKOFF_FLOOR), THROTTLE_CAP)


def _our_fault(code: str, attempts: int, now: datetime) -> RetryLater | Quarantine:
    if attempts < len(OUR_FAULT_DELAYS):
        return RetryLater(now + OUR_FAULT_DELAYS[attempts], code)
    return Quarantine(now + QUARANTINE_DELAY, code)
