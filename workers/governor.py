"""The one governor in front of every provider app: may this request leave, and when.

Every request of a worker passes here: first ones, replays and probes. It knows three things of an app: whether the
provider asked for a pause, how its circuit stands, and its pace. An app that has neither of the three costs nothing
here: no await, no Redis.

A pause that this process hears of holds back its own requests at once, those that already wait for a slot too; the
others learn of it with their next slots, schedulers from Postgres. Memory and Redis keep it only for as long as any
claim of before can last: what Postgres says is what counts, so an operator can end a pause.
"""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Final

from providers import Provider
from providers.exchange import Exchange, Failure, FailureKind, TokenRequest
from providers.transport import Transport, boottime
from store.limits import Limits, Rate
from store.schedule import Attempt
from tokenfleet import telemetry
from tokenfleet.circuit import CircuitState, Standing, Trial
from tokenfleet.jobs import AppId
from tokenfleet.outcome import Outcome, OutcomeUnknown, Unavailable
from tokenfleet.pace import SECOND_US
from tokenfleet.policy import THROTTLE_CAP, Decision, PauseApp
from workers.breaker import Breaker
from workers.pacing import POSTPONE_SECONDS, NotNow, Pacer
from workers.results import AppPaused
from workers.settling import Asking

REMEMBERED_PAUSE_SECONDS: Final = 60.0
STRICT_TRIES: Final = 2
"""How often a request that missed its slot waits for another one. Where connecting takes longer than that every time,
it is late by the same for everybody, and what arrives is as evenly spaced as the slots."""

_rate = lru_cache(maxsize=1024)(Rate.of)


LastLook = Callable[[], Awaitable[bool]]
"""Answers whether an account may still be asked about, at the very last moment."""

CLAIM_EXPIRED: Final = "claim_expired"
"""The transport's word for a request that was not sent because it was too late."""


@dataclass(frozen=True, slots=True)
class Sent:
    """A request that left, or was to leave, at ``began``, and what came of it."""

    app_id: AppId
    provider: Provider
    url: str = field(repr=False)
    exchange: Exchange
    began: float
    is_trial: bool


@dataclass(frozen=True, slots=True)
class _Permit:
    """A request may leave now, and not after ``leave_by`` (a moment of the governor's clock)."""

    leave_by: float = float("inf")
    is_trial: bool = False


_ANY_TIME: Final = _Permit()


class Governor:
    """Lets requests of one worker process pass. Runs on one event loop."""

    def __init__(
        self, transport: Transport, limits: Limits, breaker: Breaker, *, clock: Callable[[], float] = boottime
    ) -> None:
        """``clock`` is that of the claims."""
        self._transport = transport
        self._breaker = breaker
        self._clock = clock
        self._pauses: dict[AppId, float] = {}
        self._closed = False
        self._pacer = Pacer(
            limits, clock=clock, paused_seconds=self._paused_seconds, on_pause=self._note_pause
        )

    async def foresee(
        self, app_id: AppId, provider: Provider, count: int, *, is_requested: bool = False
    ) -> tuple[int, NotNow]:
        """Return how many of a job's ``count`` accounts can be asked about soon, and when the others can.

        ``is_requested`` says that readers wait for them.
        """
        standing = await self._breaker.look(app_id)
        barred = self._barred(app_id, standing, again=False, urgent=False)
        if barred is not None:
            return 0, barred
        if standing.state is CircuitState.HALF_OPEN:
            return min(count, 1), NotNow(POSTPONE_SECONDS)
        if provider.rate_per_second is None:
            return count, NotNow(POSTPONE_SECONDS)
        rate = _rate(provider.rate_per_second, provider.burst)
        return self._pacer.expect(app_id, rate, count, is_requested=is_requested)

    async def send(
        self,
        request: TokenRequest,
        asking: Asking,
        attempt: Attempt,
        *,
        again: bool = False,
        timeout_seconds: float | None = None,
        last_look: LastLook | None = None,
    ) -> Sent | NotNow:
        """Send one request as soon as it may leave; or return how long it is not worth waiting, nothing being sent.

        The account that has been due for longest goes first. ``again`` says that its token was presented in this
        attempt and the answer lost. What was sent must be followed by :meth:`heard`. ``last_look`` is asked when all
        waiting is over; where it says no, nothing is sent.
        """
        for tries in itertools.count():
            permit = await self._admit(asking, attempt, again=again, strict=tries < STRICT_TRIES)
            if isinstance(permit, NotNow):
                return permit
            if last_look is not None and not await last_look():
                if permit.is_trial:
                    self._breaker.tried(asking.app.app_id, Trial.UNUSED)
                return NotNow(0.0)
            if attempt.due_at is not None and not tries and not again and not attempt.probing:
                delay = (asking.now(attempt) - attempt.due_at).total_seconds()
                telemetry.DUE_DELAY_SECONDS.observe(max(delay, 0.0))
            began = self._clock()
            send_before = min(asking.send_before, permit.leave_by)
            exchange = await self._transport.ask(
                request, send_before=send_before, timeout_seconds=timeout_seconds
            )
            # A connection that took longer than the slot lasts is kept, and the next slot finds it.
            if (
                not was_too_late(exchange)
                or began >= asking.send_before
                or self._clock() >= asking.send_before
            ):
                return Sent(asking.app.app_id, asking.provider, request.url, exchange, began, permit.is_trial)
            if permit.is_trial:
                self._breaker.tried(asking.app.app_id, Trial.UNUSED)
        raise AssertionError("the last try is not strict")

    async def probe(
        self, request: TokenRequest, asking: Asking, attempt: Attempt, *, timeout_seconds: float
    ) -> Exchange | NotNow:
        """Send a request with the access token, as soon as it may leave; or return how long it is not worth waiting.

        It keeps the app's pace and pause. Its circuit is about another endpoint: what comes of a probe says nothing of
        that one, so it is not counted, and no probe is the trial.
        """
        app_id = asking.app.app_id
        if self._breaker.standing(app_id).state is not CircuitState.CLOSED:
            return NotNow(POSTPONE_SECONDS)
        passed = await self.send(request, asking, attempt, timeout_seconds=timeout_seconds)
        if isinstance(passed, NotNow):
            return passed
        if passed.is_trial:
            self._breaker.tried(app_id, Trial.UNUSED)
        return NotNow(0.0) if was_too_late(passed.exchange) else passed.exchange

    async def _admit(
        self, asking: Asking, attempt: Attempt, *, again: bool, strict: bool
    ) -> _Permit | NotNow:
        app_id, provider = asking.app.app_id, asking.provider
        # A replay within the provider's grace passes an open circuit: after the grace it would be reuse.
        urgent = again and provider.replay_grace is not None
        standing = self._breaker.standing(app_id)
        barred = self._barred(app_id, standing, again=again, urgent=urgent)
        if barred is not None:
            return barred
        permit = _ANY_TIME
        if provider.rate_per_second is not None:
            rate = _rate(provider.rate_per_second, provider.burst)
            due_at = attempt.due_at
            moment = await self._pacer.slot(
                app_id,
                rate,
                urgency=due_at.timestamp() if due_at is not None else 0.0,
                by=asking.send_before,
                is_requested=attempt.is_requested,
                was_due=attempt.was_due,
                overdue_seconds=(asking.now(attempt) - due_at).total_seconds() if due_at is not None else 0.0,
            )
            if isinstance(moment, NotNow):
                return moment
            if strict:
                permit = _Permit(moment + rate.pace.lateness_us / SECOND_US)
            # Much may have happened while we waited.
            standing = self._breaker.standing(app_id)
            barred = self._barred(app_id, standing, again=again, urgent=urgent)
            if barred is not None:
                return barred
        if standing.state is CircuitState.HALF_OPEN and not urgent:
            if await self._breaker.take_trial(app_id):
                return replace(permit, is_trial=True)
            if self._breaker.standing(app_id).state is not CircuitState.CLOSED:
                return NotNow(POSTPONE_SECONDS)
        return permit

    def close(self) -> None:
        """Let nobody pass any more but replays of what was asked before; who waits is sent away."""
        self._closed = True
        self._pacer.refuse_all()

    def heard(self, sent: Sent, outcome: Outcome) -> bool:
        """Note what came of a request; returns whether its failure is the app's, whose circuit is not closed."""
        outage = isinstance(outcome, Unavailable | OutcomeUnknown) and outcome.outage
        exchange = sent.exchange
        says_something = outage or not (
            isinstance(exchange, Failure) and exchange.kind is FailureKind.NOT_SENT
        )
        if sent.is_trial:
            trial = Trial.OUTAGE if outage else Trial.ANSWERED if says_something else Trial.UNUSED
            self._breaker.tried(sent.app_id, trial)
            return outage
        if says_something:
            endpoint = sent.url.partition("?")[0] if sent.provider.endpoint_varies else None
            self._breaker.heard(sent.app_id, outage=outage, endpoint=endpoint, began=sent.began)
        if not outage:
            return False
        standing = self._breaker.standing(sent.app_id)
        if standing.state is CircuitState.CLOSED:
            return False
        self._pacer.refuse(sent.app_id, max(standing.remaining_ms / 1000, POSTPONE_SECONDS))
        return True

    def pauses(self, sent: Sent, decision: Decision, *, now: datetime) -> tuple[AppPaused, ...]:
        """Hold an app back at once whose provider asked for it; returns what its rate headers add to ``decision``."""
        if isinstance(decision, PauseApp):
            self._pause(sent, decision.until - now)
        used_up = sent.provider.used_up_for(sent.exchange, now=now)
        if not used_up:
            return ()
        used_up = min(used_up, THROTTLE_CAP)
        self._pause(sent, used_up)
        return (AppPaused(sent.app_id, now + used_up),)

    def _pause(self, sent: Sent, wait: timedelta) -> None:
        is_news = wait.total_seconds() > self._paused_seconds(sent.app_id)
        self._note_pause(sent.app_id, wait.total_seconds())
        self._pacer.refuse(sent.app_id, POSTPONE_SECONDS)
        if is_news and sent.provider.rate_per_second is not None:
            self._pacer.announce(sent.app_id, _rate(sent.provider.rate_per_second, sent.provider.burst))

    def _note_pause(self, app_id: AppId, seconds: float) -> None:
        until = self._clock() + min(seconds, REMEMBERED_PAUSE_SECONDS)
        self._pauses[app_id] = max(until, self._pauses.get(app_id, until))

    def _paused_seconds(self, app_id: AppId) -> float:
        until = self._pauses.get(app_id)
        if until is None:
            return 0.0
        left = until - self._clock()
        if left <= 0:
            del self._pauses[app_id]
        return max(left, 0.0)

    def _barred(self, app_id: AppId, standing: Standing, *, again: bool, urgent: bool) -> NotNow | None:
        """Return for how long nobody of this app may pass."""
        if self._closed and not again:
            return NotNow(0.0)
        if self._pauses and (left := self._paused_seconds(app_id)) > 0:
            # Not longer: it is Postgres that keeps a pause, and an operator may end it.
            return NotNow(min(left, POSTPONE_SECONDS))
        if standing.state is CircuitState.OPEN and not urgent:
            return NotNow(standing.remaining_ms / 1000)
        return None


def was_too_late(exchange: Exchange) -> bool:
    """Answer whether nothing was sent because its moment had passed."""
    return (
        isinstance(exchange, Failure)
        and exchange.kind is FailureKind.NOT_SENT
        and exchange.code == CLAIM_EXPIRED
    )
