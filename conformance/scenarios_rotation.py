"""Scenarios about refresh tokens: rotation, answers that are lost, reuse, and the ends of a grant."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

from conformance.stage import Delivery, Reaction
from conformance.trial import Trial
from tokenfleet.policy import ROTATION_LOST, Replay, RequireReauth, RetryLater, Save

FAILURES_BEFORE: Final = 8
"""After so many, the backoff is at its longest."""
LAST_CHANCE: Final = 0.99


async def rotation(trial: Trial) -> None:
    """Several refreshes in a row each present the refresh token that lives, and nothing is presented twice."""
    presenting = trial.truth.refresh.grant == "refresh_token"
    for _ in range(5):
        before = trial.stage.chain.refresh_token.reveal()
        trial.expect_saved(await trial.renew())
        if presenting:
            shown = trial.stage.presented[-1].refresh_token
            trial.expect(
                shown == before, "the refresh token that lives", "another one was presented", ("rotation",)
            )


async def lost_answer(trial: Trial) -> None:
    """A lost, cut or unreadable answer is followed by one replay: within a grace it brings the successor, without one
    the loss is told as what it is."""
    for delivery in (Delivery.LOST, Delivery.CUT, Delivery.GARBLED):
        rotates = _rotates_next(trial)
        trial.stage.script.append(Reaction(delivery=delivery, rotate=True if rotates else None))
        requests = trial.stage.requests
        attempted = await trial.renew()
        asked = trial.stage.requests - requests
        if rotates and trial.truth.rotation.max_live == 1:
            where = ("rotation", "max_live")
            trial.expect(
                asked == 1, "no replay, which would end the only live token", f"{asked} requests", where
            )
            return
        trial.expect(asked == 2, "one replay", f"{asked} requests", ("rotation",))
        if not rotates or _has_grace(trial):
            trial.expect_saved(attempted)
            continue
        _expect_lost(trial, attempted.decision, attempted.told)
        return


async def lost_twice(trial: Trial) -> None:
    """When the replay fails too, the next try comes within the grace; without one, nothing is gained by hurrying."""
    trial.applies(_rotates_next(trial), "refresh tokens are not rotated")
    trial.applies(trial.truth.rotation.max_live != 1, "a replay would end the only live refresh token")
    account, rotation = trial.account, trial.truth.rotation
    account.attempts, account.chance = FAILURES_BEFORE, LAST_CHANCE
    trial.stage.script.append(Reaction(delivery=Delivery.LOST, rotate=True))
    trial.detour.lead_to(trial.origin, trial.origin, trial.player.closed_origin)
    attempted = await trial.renew()
    decision = attempted.decision
    trial.expect(isinstance(decision, RetryLater), "another try later", attempted.told, ("rotation",))
    trial.expect(
        account.unanswered > 0, "the lost answer to be remembered", "it was forgotten", ("rotation",)
    )
    assert isinstance(decision, RetryLater)
    wait = decision.at - attempted.at
    if not _has_grace(trial):
        assert account.tokens.expires_at is None or account.tokens.expires_at > attempted.at
        patient = timedelta(seconds=250)
        if account.tokens.expires_at is not None:
            patient = min(patient, (account.tokens.expires_at - attempted.at) / 2 - timedelta(seconds=20))
        got = f"a try after {wait.total_seconds():.0f} s, as if there was one"
        trial.expect(wait >= patient, "no hurry without a grace window", got, ("rotation", "grace_seconds"))
        account.clock.go_to(decision.at)
        again = await trial.refresh()
        _expect_lost(trial, again.decision, again.told)
        return
    grace = timedelta(seconds=rotation.grace_seconds)
    if not rotation.grace_until_first_use:
        got = f"one after {wait.total_seconds():.0f} s"
        where = ("rotation", "grace_seconds")
        trial.expect(wait < grace, f"another try within the grace of {rotation.grace_seconds} s", got, where)
    account.clock.go_to(decision.at)
    trial.expect_saved(await trial.refresh())


async def replay_after_grace(trial: Trial) -> None:
    """A replaced refresh token that comes after its grace is reuse: the loss is told, and the family ends if the
    provider says so."""
    trial.applies(_rotates_next(trial), "refresh tokens are not rotated")
    rotation = trial.truth.rotation
    trial.applies(rotation.grace_seconds, "there is no grace window of a known length")
    trial.applies(not rotation.grace_until_first_use, "the grace lasts until the new access token is used")
    trial.applies(rotation.max_live != 1, "a replay would end the only live refresh token")
    trial.stage.script.append(Reaction(delivery=Delivery.LOST, rotate=True))
    trial.detour.lead_to(trial.origin, trial.origin, trial.player.closed_origin)
    await trial.renew()
    trial.account.clock.pass_by(timedelta(seconds=rotation.grace_seconds + 1))
    attempted = await trial.refresh()
    _expect_lost(trial, attempted.decision, attempted.told)


async def idle_expiry(trial: Trial) -> None:
    """A refresh token that dies of disuse is used before; one that died is told as the provider's word."""
    life = trial.truth.lifetimes
    trial.applies(trial.truth.refresh.grant == "refresh_token", "no refresh token is presented")
    trial.applies(life.refresh_idle_seconds, "refresh tokens do not die of disuse")
    assert life.refresh_idle_seconds is not None
    for chance in (0.0, LAST_CHANCE):
        trial.account.chance = chance
        trial.expect_saved(await trial.renew())
        attempted = await trial.visit_until_refreshed()
        where = ("lifetimes", "refresh_idle_seconds")
        trial.expect(isinstance(attempted.decision, Save), "a keepalive in time", attempted.told, where)
    trial.account.clock.pass_by(timedelta(seconds=life.refresh_idle_seconds + 1))
    await _expect_ended(trial)


async def absolute_expiry(trial: Trial) -> None:
    """The end of a grant is announced before it comes, and what the provider says after it is believed."""
    life = trial.truth.lifetimes
    trial.applies(life.refresh_absolute_seconds, "grants have no fixed end")
    assert life.refresh_absolute_seconds is not None
    ends = datetime.fromtimestamp(trial.stage.chain.consented_at + life.refresh_absolute_seconds, UTC)
    trial.account.clock.go_to(
        ends - min(timedelta(days=3), timedelta(seconds=life.refresh_absolute_seconds / 100))
    )
    trial.stage.chain.use_of_late()
    trial.stage.chain.renew_access_token()
    if life.earliest_refresh_seconds is None and life.minimum_age_seconds is None:
        attempted = await trial.refresh()
        decision = attempted.decision
        told = decision.grant_ends_at if isinstance(decision, Save) else None
        where = ("lifetimes", "refresh_absolute_seconds")
        got = "nothing" if told is None else f"{told:%Y-%m-%d %H:%M}"
        trial.expect(
            told is not None and told <= ends + timedelta(seconds=2),
            f"the end of the grant, {ends:%Y-%m-%d %H:%M}, to be announced",
            got,
            where,
        )
    trial.account.clock.go_to(ends + timedelta(seconds=1))
    await _expect_ended(trial)


async def _expect_ended(trial: Trial) -> None:
    denials = len(trial.stage.denials)
    attempted = await trial.refresh()
    refused = len(trial.stage.denials) > denials
    trial.expect(refused, "the provider to have ended the grant", "an answer", ("lifetimes",))
    decision = attempted.decision
    trial.expect(
        isinstance(decision, RequireReauth),
        "the customer to be asked to sign in",
        attempted.told,
        ("errors",),
    )
    reason = trial.account.needs_reauth
    trial.expect(reason != ROTATION_LOST, "the provider's word as the reason", f"{reason}", ("rotation",))


def _expect_lost(trial: Trial, decision: object, told: str) -> None:
    right = isinstance(decision, RequireReauth) and decision.reason == ROTATION_LOST
    trial.expect(
        right,
        f"the customer to be asked to sign in, because of {ROTATION_LOST}",
        told,
        ("rotation", "policy"),
    )
    ended, says = trial.stage.chain.family_ended, trial.truth.rotation.family_revocation
    where = ("rotation", "family_revocation")
    trial.expect(ended == says, f"family revocation: {says}", f"{ended}", where)
    ledger = trial.stage.chain.ledger.counters
    trial.expect(not ledger.presented_twice, "only replays of lost answers", "a reuse", ("rotation",))
    trial.expect(not isinstance(decision, Replay), "one replay at most", "another", ("rotation",))


def _rotates_next(trial: Trial) -> bool:
    return trial.truth.refresh.grant == "refresh_token" and trial.truth.rotation.policy != "never"


def _has_grace(trial: Trial) -> bool:
    rotation = trial.truth.rotation
    return rotation.grace_seconds > 0 or rotation.grace_until_first_use
