"""One account's attempt: ask, judge, keep the answer, settle. Hops 5 to 8 of ``docs/design.md``.

Invariants kept here:

* Between a good answer and the journal there is no await, no log and no metric: in that moment the new
  refresh token exists in this process only.
* Every attempt becomes exactly one settlement. Nobody here retries, but for the one replay that
  ``tokenfleet.policy`` asks for when an answer was lost.
* Moments come from the database's clock, carried forward by this machine's monotonic one; this machine's
  wall clock decides nothing.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, assert_never
from uuid import UUID

from providers import Provider
from providers.exchange import Failure, FailureKind, TokenRequest
from providers.oauth2 import ClientCredentials, Grant, RequestBuildError
from providers.transport import Transport, boottime
from store.apps import App
from store.journal import Journal, JournalUnwritable, Segment
from store.keys import Vault
from store.schedule import Attempt
from store.settlement import Deferral, Rejection, SavedTokens
from tokenfleet import telemetry
from tokenfleet.outcome import (
    ClientRejected,
    GrantRejected,
    Outcome,
    OutcomeUnknown,
    Refreshed,
    RequestRejected,
    Throttled,
    Unavailable,
    Undescribed,
)
from tokenfleet.policy import (
    QUARANTINE_DELAY,
    Decision,
    HoldApp,
    Known,
    PauseApp,
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
from workers.writer import AppHeld, AppPaused, AppRecovered, GroupWriter, Result

HELD_RETRY: Final = timedelta(seconds=30)
"""When an account is due again that met a rejected registration; the hold decides who is really asked."""

KINDS: Final[dict[type[Outcome], str]] = {
    Refreshed: "refresh.succeeded",
    GrantRejected: "refresh.grant_rejected",
    ClientRejected: "refresh.client_rejected",
    Throttled: "refresh.throttled",
    Unavailable: "refresh.unavailable",
    OutcomeUnknown: "refresh.unknown",
    RequestRejected: "refresh.our_fault",
    Undescribed: "refresh.undescribed",
}
"""How each outcome is called in history and metrics."""

CLAIM_EXPIRED: Final = "claim_expired"


@dataclass(frozen=True, slots=True)
class Asking:
    """What the attempts of one job share. ``read_at`` is our monotonic moment of ``database_now``."""

    job_id: UUID
    app: App
    provider: Provider
    client: ClientCredentials
    read_at: float
    send_before: float


@dataclass(frozen=True, slots=True)
class _Judged:
    """The last exchange of an attempt, and what it means."""

    outcome: Outcome
    decision: Decision
    replayed: bool
    duration_ms: int


class Asker:
    """Performs attempts. One per worker process."""

    def __init__(self, transport: Transport, vault: Vault, journal: Journal, writer: GroupWriter) -> None:
        self._transport = transport
        self._vault = vault
        self._journal = journal
        self._writer = writer
        self._chance = random.SystemRandom().random
        self.journal_writable = True
        """False after the journal refused an answer: no new attempt may start."""

    async def perform(self, asking: Asking, attempt: Attempt) -> bool:
        """Refresh one account and return when its settlement is in Postgres.

        Returns False when nothing was asked because the claim ran out first.
        """
        prepared = self._prepare(asking, attempt)
        if isinstance(prepared, _Judged):
            await self._settle(asking, attempt, prepared)
            return True
        request, refresh_token = prepared
        replayed = False
        while True:
            began = boottime()
            exchange = await self._transport.ask(request, send_before=asking.send_before)
            now = _now(asking, attempt)
            outcome = asking.provider.read(exchange, now=now)
            decision = self._decide(outcome, asking, attempt, replayed, now)
            if isinstance(decision, Save) and isinstance(outcome, Refreshed):
                duration_ms = _milliseconds(began)
                answer = self._seal(asking, attempt, outcome, decision, refresh_token, now, duration_ms)
                segment = self._keep(answer)
                await self._saved(asking, answer, segment)
                return True
            if not isinstance(decision, Replay):
                break
            replayed = True
        if _never_asked(exchange) and not replayed:
            return False
        await self._settle(asking, attempt, _Judged(outcome, decision, replayed, _milliseconds(began)))
        return True

    def _prepare(self, asking: Asking, attempt: Attempt) -> tuple[TokenRequest, Secret] | _Judged:
        """Open the refresh token and build the request, or say why that is impossible."""
        now = _now(asking, attempt)
        assert attempt.refresh_token is not None
        binding = refresh_token_binding(attempt.account_id, attempt.generation)
        try:
            refresh_token = Secret(self._vault.refresh.open(attempt.refresh_token, binding))
        except EnvelopeError:
            # Repetition cannot help: the ciphertext was altered, moved, or its key is not here.
            code = "envelope_unreadable"
            return _Judged(RequestRejected(code), Quarantine(now + QUARANTINE_DELAY, code), False, 0)
        telemetry.UNSEALED.labels("refresh").inc()
        variables = {**asking.app.variables, **attempt.variables}
        grant = Grant(refresh_token, attempt.scope, variables)
        try:
            return asking.provider.refresh_request(asking.client, grant), refresh_token
        except RequestBuildError as error:
            outcome = RequestRejected(error.code)
            return _Judged(outcome, self._decide(outcome, asking, attempt, False, now), False, 0)

    def _decide(
        self, outcome: Outcome, asking: Asking, attempt: Attempt, replayed: bool, now: datetime
    ) -> Decision:
        lifetime = None if attempt.expires_at is None else attempt.expires_at - attempt.obtained_at
        known = Known(
            attempts=attempt.attempts,
            unanswered=attempt.unanswered + replayed,
            replayed=replayed,
            margins=asking.provider.margins,
            last_lifetime=lifetime,
        )
        return decide(outcome, known, now=now, chance=self._chance())

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
            expires_at=tokens.expires_at,
            obtained_at=now,
            refresh_token_expires_at=tokens.refresh_token_expires_at,
            variables=tokens.variables,
            next_refresh_at=decision.next_refresh_at,
            job_id=asking.job_id,
            duration_ms=duration_ms,
            connecting=attempt.status is AccountStatus.CONNECTING,
        )

    def _keep(self, answer: SavedTokens) -> Segment | None:
        """Put the sealed answer on disk. A refusing disk stops new attempts, never this answer."""
        try:
            return self._journal.append(answer)
        except JournalUnwritable as error:
            if self.journal_writable:
                self.journal_writable = False
                telemetry.alarm(Event.JOURNAL_UNWRITABLE, reason=str(error))
            return None

    async def _saved(self, asking: Asking, answer: SavedTokens, segment: Segment | None) -> None:
        results: tuple[Result, ...] = (answer,)
        if asking.app.held_since is not None:
            results += (AppRecovered(asking.app.app_id),)
        await self._writer.add(*results, segment=segment)
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

    async def _settle(self, asking: Asking, attempt: Attempt, judged: _Judged) -> None:
        """Write an attempt that brought no token, then say so."""
        kind = KINDS[type(judged.outcome)]
        await self._writer.add(*self._results(asking, attempt, judged, kind))
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

    def _results(self, asking: Asking, attempt: Attempt, judged: _Judged, kind: str) -> tuple[Result, ...]:
        decision, app = judged.decision, asking.app
        match decision:
            case RequireReauth(reason, code):
                return (
                    Rejection(
                        account_id=attempt.account_id,
                        epoch=attempt.epoch,
                        generation=attempt.generation,
                        reason=reason,
                        code=code,
                        job_id=asking.job_id,
                        duration_ms=judged.duration_ms,
                    ),
                )
            case RetryLater(at, code, counts, _):
                return (_deferral(asking, attempt, judged, kind, at, code, counts=counts),)
            case Quarantine(at, code):
                return (_deferral(asking, attempt, judged, kind, at, code, quarantined=True),)
            case PauseApp(until, code):
                deferral = _deferral(asking, attempt, judged, kind, until, code, counts=False)
                return (deferral, AppPaused(app.app_id, until))
            case HoldApp(code):
                at = _now(asking, attempt) + HELD_RETRY
                deferral = _deferral(asking, attempt, judged, kind, at, code, counts=False)
                return (deferral, AppHeld(app.app_id, app.generation, code))
            case Save() | Replay():
                raise AssertionError(f"{type(decision).__name__} is acted on before settling")
            case _:
                assert_never(decision)


def _deferral(
    asking: Asking,
    attempt: Attempt,
    judged: _Judged,
    kind: str,
    at: datetime,
    code: str,
    *,
    counts: bool = True,
    quarantined: bool = False,
) -> Deferral:
    outcome = judged.outcome
    lost = judged.replayed or isinstance(outcome, OutcomeUnknown)
    detail = json.dumps({"shape": outcome.shape}) if isinstance(outcome, Undescribed) else None
    return Deferral(
        account_id=attempt.account_id,
        epoch=attempt.epoch,
        generation=attempt.generation,
        next_refresh_at=at,
        code=code,
        kind=kind,
        counts=counts,
        answer_lost=lost,
        quarantined=quarantined,
        job_id=asking.job_id,
        duration_ms=judged.duration_ms,
        detail=detail,
    )


def _now(asking: Asking, attempt: Attempt) -> datetime:
    return attempt.database_now + timedelta(seconds=boottime() - asking.read_at)


def _milliseconds(began: float) -> int:
    return round((boottime() - began) * 1000)


def _never_asked(exchange: object) -> bool:
    return (
        isinstance(exchange, Failure)
        and exchange.kind is FailureKind.NOT_SENT
        and exchange.code == CLAIM_EXPIRED
    )
