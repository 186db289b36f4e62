"""What to do about an outcome: DESIGN section 5 as one pure, total function.

:func:`decide` performs no I/O and takes time and chance as parameters. Invariants it keeps:

* only :class:`~tokenfleet.outcome.GrantRejected` can lead to ``needs_reauth`` (G4);
* a refresh token whose answer was lost is presented again once at once, never in a loop;
* every failure has a next moment, never sooner than one second away and never later than a day;
* what repetition may not help with, an error that nobody has described or a fault of ours, is probed twice, far
  apart, before anybody is told, and after that seldom: it is never a word about the grant.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final, assert_never

from tokenfleet.learning import NEVER_EXPIRES, same_life
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
OVERDUE_FLOOR: Final = timedelta(seconds=16)
"""Whose token is owed may be left alone for so long, or for as long as it is owed already."""
READERS_MARGIN: Final = timedelta(seconds=30)
"""What a token in the database still has to live, as readers are promised (DESIGN section 1, G1)."""

REPLAYS_IN_GRACE: Final = 3
ENDLESS_GRACE: Final = timedelta.max
"""Of a replaced refresh token that works for as long as nobody has used what replaced it: a missing answer is used by
nobody."""

THROTTLE_FIRST: Final = timedelta(seconds=5)
THROTTLE_LONGEST: Final = timedelta(minutes=15)
"""The pause after an answer that says "too often" and not for how long: it doubles with each one in a row."""
THROTTLE_CAP: Final = timedelta(hours=24)

DOUBT_DELAYS: Final = (timedelta(minutes=1), timedelta(minutes=10))
"""The probes of an account in doubt: who is asked again after these, and answered like that again, is quarantined."""
QUARANTINE_BASE: Final = timedelta(minutes=30)
"""How long the first quarantine lasts; each further one twice as long. A provider that answers everybody oddly for
half an hour must not cost everybody half a day."""
QUARANTINE_DELAY: Final = timedelta(hours=6)
"""How long a quarantine lasts at most, and at once where it is certain that repetition cannot help."""

LEARNED_LIFETIME_CAP: Final = timedelta(days=365)
"""A learned lifetime is a guess, and not believed further than this."""

UNSETTLED: Final = "attempt_unsettled"
"""``last_error`` of an account whose last attempt was started and never heard of again."""
ROTATION_LOST: Final = "rotation_lost"
"""Reason of a rejection that follows a lost answer: the provider rotated and we never saw the successor."""


@dataclass(frozen=True, slots=True)
class Known:
    """What we know of the account when its outcome arrives.

    ``attempts`` counts consecutive failures before this one. ``doubts`` counts the answers since the last success
    that repetition may not help with: whatever failed in between does not make them better known. ``unanswered``
    counts earlier presentations of this same refresh token whose answer was lost, in this attempt or an earlier one.
    ``replayed`` says that this attempt has presented it a second time. ``last_lifetime`` is how long the previous
    token lived. ``rotates`` is False when the provider never replaces refresh tokens, so that none can be lost;
    ``replay_grace`` is how long a replaced one still works, :data:`ENDLESS_GRACE` for as long as the answer is missing,
    None when it is spent at once; ``max_live`` is how many can be alive at once. ``expires_at`` is when the access
    token that readers have expires. ``throttles`` counts the app's pauses in a row whose
    length the provider did not say.

    Of the grant: when the customer consented, whether its end was announced, when the refresh token that we hold
    after this answer expires, and whether that end is fixed. ``learned_lifetime`` is how long a token lived that did
    not say so and was found dead, :data:`~tokenfleet.learning.NEVER_EXPIRES` after one that was said to have no end.
    """

    attempts: int
    unanswered: int
    replayed: bool
    margins: Margins
    last_lifetime: timedelta | None = None
    rotates: bool = True
    replay_grace: timedelta | None = None
    doubts: int = 0
    expires_at: datetime | None = None
    throttles: int = 0
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
    from, when it was that, or that the answer states no end.
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

    ``counts`` is False when the failure is not the account's (a throttled app). ``in_doubt`` says that repetition
    may not help: it is counted in :attr:`Known.doubts`.
    """

    at: datetime
    code: str
    counts: bool = True
    answer_lost: bool = False
    in_doubt: bool = False


@dataclass(frozen=True, slots=True)
class PauseApp:
    """Nobody of this app is asked before ``until``; this account neither.

    ``throttles`` is what the app's count of pauses is now whose length the provider did not say; 0 when it said so.
    """

    until: datetime
    code: str
    throttles: int = 0


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
    """Repetition does not help, and no customer can: leave this account alone until ``at`` and alarm operators."""

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
        case ClientRejected(code, whole_app):
            # One connection that refuses our client says nothing about the others: they go on.
            return HoldApp(code) if whole_app else Quarantine(now + _quarantine(known.doubts), code)
        case Throttled(code, retry_after, whole_app):
            return _throttled(code, retry_after, whole_app, known, now)
        case Unavailable(code):
            return RetryLater(now + _retry_wait(known, now, chance), code)
        case OutcomeUnknown(code):
            if not known.replayed and _may_replay(known):
                return Replay()
            return RetryLater(now + _retry_wait(known, now, chance), code, answer_lost=True)
        case RequestRejected(code) | Undescribed(code):
            return _doubtful(code, known.doubts, now, chance)
        case _:
            assert_never(outcome)


def doubt_delay(doubts: int, chance: float) -> timedelta:
    """Return how long an account is left alone after its doubt number ``doubts`` + 1.

    Jittered, so that a crowd that was answered oddly at once does not come back at once.
    """
    return DOUBT_DELAYS[min(doubts, len(DOUBT_DELAYS) - 1)] * (0.75 + chance / 2)


def backoff(attempts: int, chance: float) -> timedelta:
    """Return the wait before try number ``attempts`` + 2: exponential, capped, full jitter, 1 s at least."""
    ceiling = min(BACKOFF_CAP, BACKOFF_BASE * _doublings(attempts))
    return max(BACKOFF_FLOOR, ceiling * chance)


def learned_pause(throttles: int) -> timedelta:
    """Return how long to leave an app alone that was throttled ``throttles`` times before in a row."""
    return min(THROTTLE_LONGEST, THROTTLE_FIRST * _doublings(throttles))


def _retry_wait(known: Known, now: datetime, chance: float) -> timedelta:
    """Return the wait before the next try.

    While the access token lives, it is at most half of the time until readers are owed a new one, so that there is
    always another try before that. The many tries that this makes are not held against it afterwards: nobody is then
    left alone for longer than a new token has been owed, so an outage of seconds costs no minutes. While an answer is
    missing it is short enough for some more tries within the provider's grace: after that the replaced token is
    reuse, and the family may be revoked for it (RFC 9700 section 4.14.2).
    """
    wait = backoff(known.attempts, chance)
    if known.expires_at is not None:
        left = known.expires_at - now - READERS_MARGIN
        wait = max(BACKOFF_FLOOR, min(wait, left / 2 if left > timedelta(0) else max(OVERDUE_FLOOR, -left)))
    if known.replay_grace is None or not 0 < known.unanswered <= REPLAYS_IN_GRACE:
        return wait
    return max(BACKOFF_FLOOR, min(wait, known.replay_grace / (REPLAYS_IN_GRACE + 1)))


def _may_replay(known: Known) -> bool:
    """Each presentation whose answer was lost may have left a successor alive: never more than the provider allows."""
    return known.max_live is None or known.unanswered + 2 <= known.max_live


def _save(answer: TokenAnswer, known: Known, now: datetime, chance: float) -> Save:
    lifetimes = known.lifetimes
    # The last word on the life of such tokens was that they have no end.
    said_never = known.learned_lifetime == NEVER_EXPIRES and known.last_lifetime is None
    never = answer.expires_at is None and (answer.never_expires or said_never)
    guesses = answer.expires_at is None and not never and not lifetimes.access_never_expires
    expires_at = _learned_expiry(known, now) if guesses else answer.expires_at
    holding = Holding(
        obtained_at=now,
        expires_at=expires_at,
        granted_at=known.granted_at,
        refresh_token_expires_at=known.refresh_token_expires_at,
        end_is_fixed=known.end_is_fixed,
        told=known.reauth_told,
        never_expires=never,
    )
    grant_ends_at = announced_end(holding, lifetimes, now=now)
    if grant_ends_at is not None:
        holding = replace(holding, told=True)
    visit = next_visit(holding, lifetimes, known.margins, now=now, chance=chance)
    at = visit.at
    if (
        visit.presents
        and expires_at is not None
        and expires_at - now <= known.margins.earliest
        and (same_life(known.expires_at, known.last_lifetime, expires_at, now=now))
    ):
        # Asked in time, the provider gives what we had until that has ended: sooner, it would only give it again.
        at = max(at, expires_at)
    learned = NEVER_EXPIRES if never else known.learned_lifetime if guesses else None
    return Save(at, expires_at, not visit.presents, grant_ends_at, learned)


def _learned_expiry(known: Known, now: datetime) -> datetime | None:
    learned = known.learned_lifetime or known.last_lifetime
    # A token that was imported already expired teaches nothing.
    if learned is None or learned <= timedelta(0):
        return None
    return now + min(learned, LEARNED_LIFETIME_CAP)


def _throttled(
    code: str, retry_after: timedelta | None, whole_app: bool, known: Known, now: datetime
) -> PauseApp | RetryLater:
    if retry_after is not None and retry_after <= timedelta(0):
        # "Too often, and again at once" names no length: a date of a clock that is behind ours reads like that, and
        # the same answer would follow every second, for ever.
        retry_after = None
    if not whole_app:
        wait = learned_pause(known.attempts) if retry_after is None else _credible(retry_after)
        return RetryLater(now + wait, code)
    if retry_after is None:
        return PauseApp(now + learned_pause(known.throttles), code, known.throttles + 1)
    return PauseApp(now + _credible(retry_after), code)


def _credible(retry_after: timedelta) -> timedelta:
    return min(max(retry_after, BACKOFF_FLOOR), THROTTLE_CAP)


def _doubtful(code: str, doubts: int, now: datetime, chance: float) -> RetryLater | Quarantine:
    if doubts < len(DOUBT_DELAYS):
        return RetryLater(now + doubt_delay(doubts, chance), code, in_doubt=True)
    return Quarantine(now + _quarantine(doubts - len(DOUBT_DELAYS)), code)


def _quarantine(before: int) -> timedelta:
    """Return how long a quarantine lasts after as many ``before`` it."""
    return min(QUARANTINE_BASE * _doublings(before), QUARANTINE_DELAY)


def _doublings(times: int) -> int:
    return 1 << min(max(times, 0), 16)
