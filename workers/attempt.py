"""One account's attempt: ask, judge, keep the answer, settle. Hops 5 to 8 of ``docs/design.md``.

Invariants kept here:

* Between a good answer and the journal there is no await, no log and no metric: in that moment the new
  refresh token exists in this process only.
* Every attempt becomes exactly one settlement. Nobody here retries, but for the one replay that
  ``tokenfleet.policy`` asks for when an answer was lost.
* Every request, the replay too, leaves by a permit of the app's governor (``workers.governor``).
* Moments come from the database's clock, carried forward by this machine's monotonic one; this machine's
  wall clock decides nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from dataclasses import replace
from datetime import datetime

from providers.credentials import APP_FAULTS, Grant, RequestBuildError
from providers.exchange import TokenRequest
from providers.transport import boottime
from store.answers import SavedTokens
from store.journal import Journal, JournalUnwritable
from store.keys import Vault
from store.schedule import Attempt
from tokenfleet import telemetry
from tokenfleet.learning import refresh_token_end
from tokenfleet.outcome import (
    ClientRejected,
    Outcome,
    Refreshed,
    RequestRejected,
    TokenAnswer,
    Unavailable,
    Undescribed,
)
from tokenfleet.policy import (
    QUARANTINE_DELAY,
    Decision,
    Known,
    Quarantine,
    Replay,
    RequireReauth,
    RetryLater,
    Save,
    decide,
)
from tokenfleet.telemetry import Event
from tokenfleet.tokens import merge
from tokenfleet_client.contract import AccountStatus
from tokenfleet_client.envelope import access_token_binding, refresh_token_binding
from tokenfleet_client.errors import EnvelopeError
from tokenfleet_client.secret import Secret
from workers.candidates import Candidates
from workers.flushing import Flusher
from workers.governor import CLAIM_EXPIRED, Governor, Sent, was_too_late
from workers.pacing import NotNow
from workers.reputation import Reputation
from workers.results import AppAnswered, AppPaused, AppRecovered, AppUnthrottled, Result
from workers.settling import KINDS, Asking, Judged, results, unknown_answers
from workers.writer import GroupWriter


class Asker:
    """Performs attempts. One per worker process."""

    def __init__(
        self,
        vault: Vault,
        journal: Journal,
        writer: GroupWriter,
        candidates: Candidates,
        flusher: Flusher,
        governor: Governor,
    ) -> None:
        self._vault = vault
        self._journal = journal
        self._writer = writer
        self._candidates = candidates
        self._flusher = flusher
        self._governor = governor
        self._reputation = Reputation()
        self._chance = random.SystemRandom().random

    async def perform(self, asking: Asking, attempt: Attempt) -> NotNow | None:
        """Refresh one account and return when its settlement is in Postgres.

        Returns when it is worth another try if nothing was asked, because the app lets nobody pass or the claim ran out
        first: then there is nothing to settle.
        """
        prepared = self._prepare(asking, attempt)
        if isinstance(prepared, Judged):
            await self._settle(asking, attempt, prepared)
            return None
        request, refresh_token = prepared
        sent: Sent | None = None
        outcome: Outcome = Unavailable(CLAIM_EXPIRED)
        pause: tuple[AppPaused, ...] = ()
        replayed = spared = False
        while True:
            passed = await self._governor.send(request, asking, attempt, again=replayed)
            now = asking.now(attempt)
            if isinstance(passed, NotNow):
                if sent is None:
                    return passed
                # Its answer was lost, and it is not asked again now: as if the replay had come to nothing.
                decision = self._decide(outcome, asking, attempt, replayed, now)
                break
            sent = passed
            outcome = asking.provider.read(sent.exchange, now=now)
            decision = self._decide(outcome, asking, attempt, replayed, now, refresh_token)
            completed = self._completed(attempt, outcome, refresh_token)
            unknown = unknown_answers(asking, attempt, outcome)
            if completed is not None and isinstance(decision, RetryLater | Quarantine):
                outcome, decision = completed, Save(decision.at, attempt.expires_at)
                now = attempt.obtained_at
            if isinstance(decision, Save) and isinstance(outcome, Refreshed):
                duration_ms = _milliseconds(sent.began)
                answer = self._seal(asking, attempt, outcome, decision, refresh_token, now, duration_ms)
                saved = self._keep(asking, answer, *unknown)
                self._governor.heard(sent, outcome)
                if pause := self._governor.pauses(sent, decision, now=asking.now(attempt)):
                    self._writer.add(*pause)
                await self._report(asking, answer, saved)
                if completed is not None:
                    code = "access_token_missing"
                    telemetry.alarm(Event.ACCOUNT_TROUBLED, account_id=attempt.account_id, code=code)
                return None
            spared = self._governor.heard(sent, outcome)
            pause = self._governor.pauses(sent, decision, now=now)
            if not isinstance(decision, Replay):
                break
            replayed = True
        if was_too_late(sent.exchange) and not replayed:
            return NotNow(0.0)
        if spared and isinstance(decision, RetryLater):
            # It is the app's failure, whose circuit is not closed.
            decision = replace(decision, counts=False)
        judged = Judged(outcome, decision, replayed, _milliseconds(sent.began))
        if not await self._succeeded_by_candidate(asking, attempt, judged, refresh_token):
            await self._settle(asking, attempt, judged, pause)
        return None

    async def _succeeded_by_candidate(
        self, asking: Asking, attempt: Attempt, judged: Judged, rejected: Secret
    ) -> bool:
        """Answer whether a good answer that once lost a race takes the place of what was just rejected."""
        if not isinstance(judged.decision, RequireReauth):
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

    def _prepare(self, asking: Asking, attempt: Attempt) -> tuple[TokenRequest, Secret] | Judged:
        """Open the refresh token and build the request, or say why that is impossible."""
        now = asking.now(attempt)
        binding = refresh_token_binding(attempt.account_id, attempt.generation)
        code = "refresh_token_missing"
        try:
            refresh_token = Secret(self._vault.refresh.open(attempt.refresh_token or b"", binding))
        except EnvelopeError:
            # The ciphertext was altered or moved, or its key is not here.
            refresh_token = Secret("")
            code = "envelope_unreadable" if attempt.refresh_token is not None else code
        if not refresh_token:
            # Repetition cannot help.
            return Judged(RequestRejected(code), Quarantine(now + QUARANTINE_DELAY, code), False, 0)
        telemetry.UNSEALED.labels("refresh").inc()
        variables = {**asking.app.variables, **attempt.variables}
        grant = Grant(refresh_token, attempt.scope, variables)
        try:
            return asking.provider.refresh_request(asking.client, grant, now=now), refresh_token
        except RequestBuildError as error:
            outcome = ClientRejected(error.code) if error.code in APP_FAULTS else RequestRejected(error.code)
            return Judged(outcome, self._decide(outcome, asking, attempt, False, now), False, 0)

    def _decide(
        self,
        outcome: Outcome,
        asking: Asking,
        attempt: Attempt,
        replayed: bool,
        now: datetime,
        presented: Secret | None = None,
    ) -> Decision:
        lifetime = None if attempt.expires_at is None else attempt.expires_at - attempt.obtained_at
        end, is_fixed = refresh_token_end(
            outcome.answer if isinstance(outcome, Refreshed) else None,
            presented,
            attempt.refresh_token_expires_at,
            elapsed=now - attempt.obtained_at,
            lifetimes=asking.provider.lifetimes,
        )
        known = Known(
            attempts=attempt.attempts,
            doubts=attempt.doubts,
            unanswered=attempt.unanswered + replayed,
            replayed=replayed,
            margins=asking.provider.margins,
            last_lifetime=lifetime,
            rotates=asking.provider.rotates,
            replay_grace=asking.provider.replay_grace,
            expires_at=attempt.expires_at,
            throttles=asking.app.throttles,
            max_live=asking.provider.max_live,
            lifetimes=asking.provider.lifetimes,
            granted_at=attempt.granted_at,
            reauth_told=attempt.reauth_told,
            refresh_token_expires_at=end,
            end_is_fixed=is_fixed,
            learned_lifetime=attempt.learned_lifetime,
        )
        return decide(outcome, known, now=now, chance=self._chance())

    def _completed(self, attempt: Attempt, outcome: Outcome, presented: Secret) -> Refreshed | None:
        """Return an answer with a new refresh token and no access token, completed by the one that we have.

        The provider has rotated: without the successor the account would be lost. None for any other outcome.
        """
        successor = outcome.refresh_token if isinstance(outcome, Undescribed) else None
        if successor is None or successor == presented:
            return None
        kept = ""
        if attempt.access_token is not None:
            with contextlib.suppress(EnvelopeError):
                binding = access_token_binding(attempt.account_id, attempt.generation)
                kept = self._vault.access.open(attempt.access_token, binding)
        return Refreshed(TokenAnswer(Secret(kept), refresh_token=successor))

    def _seal(
        self,
        asking: Asking,
        attempt: Attempt,
        outcome: Refreshed,
        decision: Save,
        refresh_token: Secret,
        now: datetime,
        duration_ms: int,
    ) -> SavedTokens:
        tokens = merge(
            outcome.answer,
            refresh_token=refresh_token,
            refresh_token_expires_at=attempt.refresh_token_expires_at,
            scope=attempt.scope,
        )
        generation = attempt.generation + 1
        account_id = attempt.account_id
        assert tokens.refresh_token is not None
        assert tokens.access_token is not None
        return SavedTokens(
            account_id=account_id,
            epoch=attempt.epoch,
            generation=attempt.generation,
            access_token=self._vault.access.seal(
                tokens.access_token.reveal(), access_token_binding(account_id, generation)
            ),
            refresh_token=self._vault.refresh.seal(
                tokens.refresh_token.reveal(), refresh_token_binding(account_id, generation)
            ),
            token_type=tokens.token_type,
            scope=tokens.scope,
            expires_at=decision.expires_at,
            obtained_at=now,
            refresh_token_expires_at=tokens.refresh_token_expires_at,
            variables=tokens.variables,
            next_refresh_at=decision.next_refresh_at,
            job_id=asking.job_id,
            duration_ms=duration_ms,
            activates=attempt.status is not AccountStatus.ACTIVE and bool(tokens.access_token),
            probing=decision.probing,
            grant_ends_at=decision.grant_ends_at,
            learned_lifetime=decision.learned_lifetime,
        )

    def _keep(self, asking: Asking, answer: SavedTokens, *beside: Result) -> asyncio.Future[bool]:
        """Put the sealed answer on disk and hand it to the writer, before anything else can fail.

        A refusing disk stops new attempts (``Journal.trouble``), never this answer.
        """
        written: tuple[Result, ...] = (answer, *beside)
        if asking.app.held_since is not None:
            written += (AppRecovered(asking.app.app_id, asking.app.generation),)
        if asking.app.throttles:
            written += (AppUnthrottled(asking.app.app_id),)
        if asking.app.is_sampled:
            written += (AppAnswered(asking.app.app_id),)
        segment = None
        with contextlib.suppress(JournalUnwritable):
            segment = self._journal.append(answer)
            self._flusher.note()
        added = self._writer.add(*written, segment=segment)
        self._reputation.succeeded(asking.app)
        return added

    async def _report(self, asking: Asking, answer: SavedTokens, saved: asyncio.Future[bool]) -> None:
        if self._journal.trouble is not None:
            telemetry.alarm(Event.JOURNAL_UNWRITABLE, reason=self._journal.trouble)
        if not await saved:
            return
        name = asking.provider.name
        telemetry.REFRESHES.labels(name, KINDS[Refreshed]).inc()
        telemetry.PROVIDER_SECONDS.labels(name).observe(answer.duration_ms / 1000)
        telemetry.logger().debug(
            Event.ACCOUNT_SETTLED.value,
            attempt=f"{answer.account_id}-{answer.epoch}",
            job_id=str(answer.job_id),
            outcome=KINDS[Refreshed],
            duration_ms=answer.duration_ms,
        )

    async def fail(self, asking: Asking, attempt: Attempt) -> None:
        """Settle an attempt that ended in a fault of ours: it waits, and its answer may have been lost."""
        outcome = RequestRejected("internal_error")
        decision = self._decide(outcome, asking, attempt, False, asking.now(attempt))
        await self._writer.add(*results(asking, attempt, Judged(outcome, decision, True, 0)))

    async def _settle(
        self, asking: Asking, attempt: Attempt, judged: Judged, pause: tuple[AppPaused, ...] = ()
    ) -> None:
        """Write an attempt that brought no token, then say so."""
        kind = KINDS[type(judged.outcome)]
        weighed = self._reputation.weigh(asking.app, results(asking, attempt, judged))
        await self._writer.add(*weighed, *pause)
        telemetry.REFRESHES.labels(asking.provider.name, kind).inc()
        fields = {
            "attempt": f"{attempt.account_id}-{attempt.epoch}",
            "job_id": str(asking.job_id),
            "provider": asking.provider.name,
            "outcome": kind,
            "code": judged.outcome.code if not isinstance(judged.outcome, Refreshed) else None,
        }
        if isinstance(judged.decision, Quarantine):
            telemetry.alarm(Event.ACCOUNT_QUARANTINED, **fields)
        else:
            telemetry.logger().warning(Event.ACCOUNT_TROUBLED.value, **fields)


def _milliseconds(began: float) -> int:
    return round((boottime() - began) * 1000)
