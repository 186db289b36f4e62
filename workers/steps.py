"""What follows a good answer before readers have their token: requests in order, each with the token of the one before.

Promises:

* The refresh token that the answer brought is on disk and in Postgres before the first step is asked. Whatever dies
  after that, it is there, readers have the token that they had, and the account is due: the next attempt begins anew.
* What the steps bring is saved over that first part alone, so it replaces nobody else's tokens.
* A step that fails is a failure like others: it is counted, backed off from and, when nobody knows what it means,
  quarantined. It is no word about the grant (G4), and nothing was lost with its answer.
* Steps pass the governor as every request does, and are asked while enough of the claim is left.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Final

from providers.credentials import Grant, RequestBuildError
from providers.steps import followed
from store.answers import Part, SavedTokens
from store.schedule import Attempt
from tokenfleet.outcome import Outcome, Refreshed, RequestRejected, TokenAnswer, Unavailable
from tokenfleet.policy import BACKOFF_FLOOR, Decision, RetryLater, Save
from tokenfleet_client.secret import Secret
from workers.governor import CLAIM_EXPIRED, Governor, Sent, was_too_late
from workers.judging import Judge
from workers.keeping import Keeper, milliseconds_since
from workers.pacing import NotNow
from workers.results import AppPaused
from workers.sealing import Held, Sealer
from workers.settling import Asking, Judged

STEP_FAILED: Final = "step.failed"
"""How the history calls a step that brought nothing; its code says why."""


@dataclass(frozen=True, slots=True)
class _Failed:
    outcome: Outcome
    decision: Decision
    pause: tuple[AppPaused, ...] = ()


class Stepper:
    """Follows good answers to the token that readers are to have. One per worker process."""

    def __init__(self, sealer: Sealer, keeper: Keeper, judge: Judge, governor: Governor) -> None:
        self._sealer = sealer
        self._keeper = keeper
        self._judge = judge
        self._governor = governor

    async def follow(
        self, asking: Asking, attempt: Attempt, sent: Sent, first: Refreshed, held: Held
    ) -> None:
        """Settle an attempt whose first request was answered well, and return when that is in Postgres."""
        answer, saving = first.answer, attempt
        refresh_token = answer.refresh_token or held.refresh_token
        part, begun, saved = Part.WHOLE, None, None
        if refresh_token is not None and refresh_token != held.refresh_token:
            part = Part.SECOND
            begun = self._begin(asking, attempt, sent, answer, held)
            saved = self._keeper.keep(asking, begun)
        self._governor.heard(sent, first)
        now = asking.now(attempt)
        self._keeper.pause(*self._governor.pauses(sent, Save(now, attempt.expires_at), now=now))
        if begun is not None and saved is not None:
            if not await self._keeper.saved(begun, saved):
                return
            saving = replace(
                attempt,
                generation=begun.generation + 1,
                access_token=begun.access_token,
                refresh_token=begun.refresh_token,
                refresh_token_expires_at=begun.refresh_token_expires_at,
            )
        # Nobody has presented the refresh token that we have now.
        attempt = replace(attempt, unanswered=0)
        ended = await self._trade(asking, attempt, answer, refresh_token)
        if isinstance(ended, _Failed):
            judged = Judged(ended.outcome, ended.decision, False, milliseconds_since(sent.began), STEP_FAILED)
            await self._keeper.settle(asking, attempt, judged, *ended.pause)
            return
        now = asking.now(attempt)
        decision = self._judge.decide(
            Refreshed(ended), asking, attempt, now=now, presented=held.refresh_token
        )
        assert isinstance(decision, Save)
        duration_ms = milliseconds_since(sent.began)
        final = self._sealer.seal(
            asking, saving, ended, decision, refresh_token, now=now, duration_ms=duration_ms, part=part
        )
        await self._keeper.report(asking, final, self._keeper.keep(asking, final))

    def _begin(
        self, asking: Asking, attempt: Attempt, sent: Sent, answer: TokenAnswer, held: Held
    ) -> SavedTokens:
        """Return the first part: the new refresh token, beside the token that readers have, whose life goes on.

        The account is due at once: so it is if this process gets no further.
        """
        kept = TokenAnswer(
            None,
            refresh_token=answer.refresh_token,
            refresh_token_expires_at=answer.refresh_token_expires_at,
            variables=answer.variables,
        )
        return self._sealer.seal(
            asking,
            attempt,
            kept,
            Save(asking.now(attempt), attempt.expires_at),
            held.refresh_token,
            now=attempt.obtained_at,
            duration_ms=milliseconds_since(sent.began),
            part=Part.FIRST,
        )

    async def _trade(
        self, asking: Asking, attempt: Attempt, answer: TokenAnswer, refresh_token: Secret | None
    ) -> TokenAnswer | _Failed:
        """Return what the last step has brought, with what ``answer`` says of the grant; or how a step has failed."""
        for step in asking.provider.steps:
            now = asking.now(attempt)
            variables = {**asking.app.variables, **attempt.variables, **answer.variables}
            grant = Grant(refresh_token, answer.scope or attempt.scope, variables, answer.access_token)
            try:
                request = step.build(asking.client, grant, now=now)
            except RequestBuildError as error:
                return self._failed(asking, attempt, RequestRejected(error.code), None)
            # What was begun goes on, also when the worker is told to stop.
            passed = await self._governor.send(request, asking, attempt, again=True)
            if isinstance(passed, NotNow):
                wait = timedelta(seconds=max(passed.seconds, BACKOFF_FLOOR.total_seconds()))
                later = RetryLater(asking.now(attempt) + wait, CLAIM_EXPIRED, counts=False)
                return _Failed(Unavailable(CLAIM_EXPIRED), later)
            outcome = step.read(passed.exchange, now=asking.now(attempt))
            if not isinstance(outcome, Refreshed):
                return self._failed(asking, attempt, outcome, passed)
            self._governor.heard(passed, outcome)
            answer = followed(answer, outcome.answer)
        return answer

    def _failed(self, asking: Asking, attempt: Attempt, outcome: Outcome, sent: Sent | None) -> _Failed:
        now = asking.now(attempt)
        decision = self._judge.decide(outcome, asking, attempt, now=now)
        if sent is None:
            return _Failed(outcome, decision)
        spared = self._governor.heard(sent, outcome) or was_too_late(sent.exchange)
        if spared and isinstance(decision, RetryLater):
            decision = replace(decision, counts=False)
        return _Failed(outcome, decision, self._governor.pauses(sent, decision, now=now))
