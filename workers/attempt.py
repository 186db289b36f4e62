"""One account's attempt: ask, judge, keep the answer, settle. Hops 5 to 8 of ``docs/design.md``.

Invariants kept here:

* Between a good answer and the journal there is no await, no log and no metric (``workers.keeping``): in that moment
  the new refresh token exists in this process only.
* Every attempt becomes exactly one settlement. Nobody here retries, but for the one replay that
  ``tokenfleet.policy`` asks for when an answer was lost.
* Every request, the replay too, leaves by a permit of the app's governor (``workers.governor``).
* Moments come from the database's clock, carried forward by this machine's monotonic one; this machine's
  wall clock decides nothing.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from providers.credentials import APP_FAULTS, Grant, RequestBuildError
from providers.exchange import TokenRequest
from store.schedule import Attempt
from tokenfleet import telemetry
from tokenfleet.outcome import (
    ClientRejected,
    Outcome,
    Refreshed,
    RequestRejected,
    TokenAnswer,
    Unavailable,
    Undescribed,
)
from tokenfleet.policy import QUARANTINE_DELAY, Quarantine, Replay, RequireReauth, RetryLater, Save
from tokenfleet.telemetry import Event
from tokenfleet_client.secret import Secret
from workers.candidates import Candidates
from workers.governor import CLAIM_EXPIRED, Governor, LastLook, Sent, was_too_late
from workers.judging import Judge
from workers.keeping import Keeper, milliseconds_since
from workers.pacing import NotNow
from workers.results import AppPaused
from workers.sealing import Held, Sealer
from workers.settling import KINDS, Asking, Judged, unknown_answers
from workers.steps import Stepper

NO_ACCESS_TOKEN = "access_token_missing"
"""What is said of an answer that brought no access token, where there is none that could live on."""


class Asker:
    """Performs attempts. One per worker process."""

    def __init__(
        self,
        sealer: Sealer,
        keeper: Keeper,
        judge: Judge,
        candidates: Candidates,
        governor: Governor,
        stepper: Stepper,
    ) -> None:
        self._sealer = sealer
        self._keeper = keeper
        self._judge = judge
        self._candidates = candidates
        self._governor = governor
        self._stepper = stepper

    async def perform(
        self, asking: Asking, attempt: Attempt, last_look: LastLook | None = None
    ) -> NotNow | None:
        """Refresh one account and return when its settlement is in Postgres.

        Returns when it is worth another try if nothing was asked, because the app lets nobody pass, the claim ran out
        first, or ``last_look`` forbids it: then there is nothing to settle.
        """
        prepared = self._prepare(asking, attempt)
        if isinstance(prepared, Judged):
            await self.settle(asking, attempt, prepared)
            return None
        request, held = prepared
        sent: Sent | None = None
        outcome: Outcome = Unavailable(CLAIM_EXPIRED)
        pause: tuple[AppPaused, ...] = ()
        replayed = spared = False
        while True:
            passed = await self._governor.send(request, asking, attempt, again=replayed, last_look=last_look)
            now = asking.now(attempt)
            if isinstance(passed, NotNow):
                if sent is None:
                    return passed
                # Its answer was lost, and it is not asked again now: as if the replay had come to nothing.
                decision = self._judge.decide(outcome, asking, attempt, now=now, replayed=replayed)
                break
            sent = passed
            outcome = self._read(asking, attempt, sent, now)
            decision = self._judge.decide(
                outcome, asking, attempt, now=now, replayed=replayed, presented=held.refresh_token
            )
            completed = _completed(outcome, held)
            unknown = unknown_answers(asking, attempt, outcome)
            if completed is not None and isinstance(decision, RetryLater | Quarantine):
                outcome, decision = completed, Save(decision.at, attempt.expires_at)
                now = attempt.obtained_at
            if isinstance(decision, Save) and isinstance(outcome, Refreshed):
                if asking.provider.steps and completed is None:
                    await self._stepper.follow(asking, attempt, sent, outcome, held)
                    return None
                answer = self._sealer.seal(
                    asking,
                    attempt,
                    outcome.answer,
                    decision,
                    held.refresh_token,
                    now=now,
                    duration_ms=milliseconds_since(sent.began),
                )
                saved = self._keeper.keep(asking, answer, *unknown)
                self._governor.heard(sent, outcome)
                self._keeper.pause(*self._governor.pauses(sent, decision, now=asking.now(attempt)))
                await self._keeper.report(asking, answer, saved)
                if completed is not None:
                    code = NO_ACCESS_TOKEN
                    telemetry.alarm(Event.ACCOUNT_TROUBLED, account_id=attempt.account_id, code=code)
                return None
            spared = self._governor.heard(sent, outcome)
            pause = self._governor.pauses(sent, decision, now=now)
            if not isinstance(decision, Replay):
                break
            replayed = True
            again = self._prepare(asking, attempt)
            if not isinstance(again, Judged):
                # An assertion and a nonce are for one request: shown twice, the client would be refused for it.
                request, _ = again
        if was_too_late(sent.exchange) and not replayed:
            return NotNow(0.0)
        if spared and isinstance(decision, RetryLater):
            # It is the app's failure, whose circuit is not closed.
            decision = replace(decision, counts=False)
        judged = Judged(outcome, decision, replayed, milliseconds_since(sent.began))
        if not await self._succeeded_by_candidate(asking, attempt, judged, held.presented):
            await self._keeper.settle(asking, attempt, judged, *pause)
        return None

    async def settle(self, asking: Asking, attempt: Attempt, judged: Judged) -> None:
        """Write what was found out without asking for tokens."""
        await self._keeper.settle(asking, attempt, judged)

    async def fail(self, asking: Asking, attempt: Attempt) -> None:
        """Settle an attempt that ended in a fault of ours: it waits, and its answer may have been lost."""
        outcome = RequestRejected("internal_error")
        decision = self._judge.decide(outcome, asking, attempt, now=asking.now(attempt))
        await self._keeper.write(asking, attempt, Judged(outcome, decision, True, 0))

    async def _succeeded_by_candidate(
        self, asking: Asking, attempt: Attempt, judged: Judged, rejected: Secret | None
    ) -> bool:
        """Answer whether a good answer that once lost a race takes the place of what was just rejected."""
        if not isinstance(judged.decision, RequireReauth) or rejected is None:
            return False
        succeeded = await self._candidates.succeed(
            attempt.account_id,
            attempt.epoch,
            attempt.generation,
            rejected=rejected,
            code=judged.decision.code,
            job_id=asking.job_id,
            duration_ms=judged.duration_ms,
        )
        if succeeded:
            telemetry.REFRESHES.labels(asking.provider.name, KINDS[type(judged.outcome)]).inc()
        return succeeded

    def _prepare(self, asking: Asking, attempt: Attempt) -> tuple[TokenRequest, Held] | Judged:
        """Open what is presented and build the request, or say why that is impossible."""
        now = asking.now(attempt)
        held = self._sealer.open(asking.provider, attempt)
        if isinstance(held, str):
            # Repetition cannot help.
            return Judged(RequestRejected(held), Quarantine(now + QUARANTINE_DELAY, held), False, 0)
        variables = {**asking.app.variables, **attempt.variables}
        grant = Grant(held.refresh_token, attempt.scope, variables, held.access_token)
        try:
            return asking.provider.refresh_request(asking.client, grant, now=now), held
        except RequestBuildError as error:
            outcome = ClientRejected(error.code) if error.code in APP_FAULTS else RequestRejected(error.code)
            return Judged(outcome, self._judge.decide(outcome, asking, attempt, now=now), False, 0)

    def _read(self, asking: Asking, attempt: Attempt, sent: Sent, now: datetime) -> Outcome:
        """Return what came of a request. An answer that lets our access token live on is none where we have none."""
        outcome = asking.provider.read(sent.exchange, now=now)
        if not isinstance(outcome, Refreshed) or outcome.answer.access_token is not None:
            return outcome
        if self._sealer.kept_access_token(attempt) is not None:
            return outcome
        return Undescribed(NO_ACCESS_TOKEN, NO_ACCESS_TOKEN, outcome.answer.refresh_token)


def _completed(outcome: Outcome, held: Held) -> Refreshed | None:
    """Return an answer with a new refresh token and no access token, to be completed by the one that we have.

    The provider has rotated: without the successor the account would be lost. None for any other outcome.
    """
    successor = outcome.refresh_token if isinstance(outcome, Undescribed) else None
    if successor is None or successor == held.refresh_token:
        return None
    return Refreshed(TokenAnswer(None, refresh_token=successor))
