"""One account as the fleet keeps it, driven by the fleet's own code: the definition's requests, the transport, the
reading of answers, ``tokenfleet.policy``.

What is done here beside that is what ``workers.attempt`` does: one replay when the policy asks for it, a successor that
came without an access token is kept, and what is known of the account is carried from one attempt to the next.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from conformance.clock import Clock
from providers.credentials import APP_FAULTS, ClientCredentials, Grant, RequestBuildError
from providers.exchange import Exchange
from providers.registry import Provider
from providers.steps import followed
from providers.transport import Transport
from tokenfleet.dead_probes import weigh_dead_probe
from tokenfleet.learning import refresh_token_end
from tokenfleet.outcome import (
    ClientRejected,
    GrantRejected,
    Outcome,
    Refreshed,
    RequestRejected,
    TokenAnswer,
    Undescribed,
)
from tokenfleet.policy import (
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
from tokenfleet.tokens import TokenSet, merge


@dataclass(frozen=True, slots=True)
class Attempted:
    """One attempt: what came back, what it meant, what was decided."""

    exchange: Exchange | None
    outcome: Outcome
    decision: Decision
    replayed: bool
    at: datetime

    @property
    def told(self) -> str:
        """The decision in a few words, for a report."""
        return describe(self.decision, self.outcome)


@dataclass(slots=True)
class Account:
    """What the fleet holds of one account."""

    provider: Provider
    client: ClientCredentials
    transport: Transport
    clock: Clock
    tokens: TokenSet
    variables: dict[str, str]
    granted_at: datetime
    obtained_at: datetime
    chance: float = 0.0
    """Where between its bounds each moment is drawn."""
    needs_reauth: str | None = None
    """Why the customer has to sign in again."""
    next_refresh_at: datetime | None = None
    probing: bool = False
    attempts: int = 0
    doubts: int = 0
    unanswered: int = 0
    throttles: int = 0
    told: bool = False
    learned_lifetime: timedelta | None = None
    trail: list[Attempted] = field(default_factory=list)

    @property
    def grant(self) -> Grant:
        """What a request can present of this account."""
        return Grant(self.tokens.refresh_token, self.tokens.scope, self.variables, self.tokens.access_token)

    async def refresh(self) -> Attempted:
        """Perform one attempt, and keep what comes of it."""
        replayed = False
        while True:
            try:
                # Anew for a replay: an assertion is for one request.
                request = self.provider.refresh_request(self.client, self.grant, now=self.clock.now)
            except RequestBuildError as error:
                outcome: Outcome = (
                    ClientRejected(error.code) if error.code in APP_FAULTS else RequestRejected(error.code)
                )
                decision = self._decide(outcome, replayed)
                return self._settled(Attempted(None, outcome, decision, replayed, self.clock.now))
            exchange = await self.transport.ask(request)
            now = self.clock.now
            outcome = self.provider.read(exchange, now=now)
            decision = self._decide(outcome, replayed)
            completed = self._completed(outcome)
            if completed is not None and isinstance(decision, RetryLater | Quarantine):
                outcome, decision = completed, Save(decision.at, self.tokens.expires_at)
            if not isinstance(decision, Replay):
                break
            replayed = True
        attempted = Attempted(exchange, outcome, decision, replayed, now)
        if self.provider.steps and completed is None and isinstance(outcome, Refreshed):
            return await self._follow(outcome.answer, attempted)
        return self._settled(attempted)

    async def _follow(self, answer: TokenAnswer, first: Attempted) -> Attempted:
        """Keep the refresh token of a good answer, and follow the steps to the token that readers are to have."""
        self.tokens = replace(self.tokens, refresh_token=answer.refresh_token or self.tokens.refresh_token)
        self.variables.update(answer.variables)
        self.unanswered = 0
        for step in self.provider.steps:
            grant = replace(self.grant, access_token=answer.access_token)
            exchange = await self.transport.ask(step.build(self.client, grant, now=self.clock.now))
            outcome = step.read(exchange, now=self.clock.now)
            if not isinstance(outcome, Refreshed):
                decision = self._decide(outcome, replayed=False)
                return self._settled(Attempted(exchange, outcome, decision, False, self.clock.now))
            answer = followed(answer, outcome.answer)
        ended = Refreshed(answer)
        return self._settled(replace(first, outcome=ended, decision=self._decide(ended, replayed=False)))

    def weigh_dead_probe(self, code: str) -> Decision:
        """Settle that a probe found the access token dead, of a provider that never renews one."""
        outcome = GrantRejected(code)
        known = self._known(outcome, replayed=False)
        decision = weigh_dead_probe(code, known, now=self.clock.now, chance=self.chance)
        return self._settled(Attempted(None, outcome, decision, False, self.clock.now)).decision

    def _decide(self, outcome: Outcome, replayed: bool) -> Decision:
        return decide(outcome, self._known(outcome, replayed), now=self.clock.now, chance=self.chance)

    def _known(self, outcome: Outcome, replayed: bool) -> Known:
        now, tokens = self.clock.now, self.tokens
        end, is_fixed = refresh_token_end(
            outcome.answer if isinstance(outcome, Refreshed) else None,
            tokens.refresh_token,
            tokens.refresh_token_expires_at,
            elapsed=now - self.obtained_at,
            lifetimes=self.provider.lifetimes,
        )
        return Known(
            attempts=self.attempts,
            doubts=self.doubts,
            unanswered=self.unanswered + replayed,
            replayed=replayed,
            margins=self.provider.margins,
            last_lifetime=None if tokens.expires_at is None else tokens.expires_at - self.obtained_at,
            rotates=self.provider.rotates,
            replay_grace=self.provider.replay_grace,
            expires_at=tokens.expires_at,
            throttles=self.throttles,
            max_live=self.provider.max_live,
            lifetimes=self.provider.lifetimes,
            granted_at=self.granted_at,
            reauth_told=self.told,
            refresh_token_expires_at=end,
            end_is_fixed=is_fixed,
            learned_lifetime=self.learned_lifetime,
        )

    def _completed(self, outcome: Outcome) -> Refreshed | None:
        successor = outcome.refresh_token if isinstance(outcome, Undescribed) else None
        if successor is None or successor == self.tokens.refresh_token:
            return None
        return Refreshed(TokenAnswer(self.tokens.access_token, refresh_token=successor))

    def _settled(self, attempted: Attempted) -> Attempted:
        self.trail.append(attempted)
        match attempted.decision:
            case Save(next_refresh_at, expires_at, probing, grant_ends_at, learned):
                assert isinstance(attempted.outcome, Refreshed)
                answer = attempted.outcome.answer
                merged = merge(
                    answer,
                    refresh_token=self.tokens.refresh_token,
                    refresh_token_expires_at=self.tokens.refresh_token_expires_at,
                    scope=self.tokens.scope,
                    access_token=self.tokens.access_token,
                )
                self.tokens = replace(merged, expires_at=expires_at)
                self.variables.update(answer.variables)
                self.obtained_at = attempted.at
                self.next_refresh_at, self.probing = next_refresh_at, probing
                self.learned_lifetime = learned
                self.told = self.told or grant_ends_at is not None
                self.attempts = self.doubts = self.unanswered = self.throttles = 0
            case HoldApp():
                self.next_refresh_at = None
            case RequireReauth(reason):
                self.needs_reauth = reason
            case RetryLater(at, _, counts, answer_lost, in_doubt):
                self.next_refresh_at = at
                self.attempts += counts
                self.doubts += in_doubt
                self.unanswered += answer_lost or attempted.replayed
            case Quarantine(at):
                self.next_refresh_at = at
                self.doubts += 1
            case PauseApp(until, _, throttles):
                self.next_refresh_at = until
                self.throttles = throttles
            case Replay():
                raise AssertionError("a replay is acted on before settling")
        return attempted


def account(
    provider: Provider,
    client: ClientCredentials,
    transport: Transport,
    clock: Clock,
    *,
    tokens: TokenSet,
    variables: Mapping[str, str],
) -> Account:
    """Return an account that was just connected."""
    return Account(
        provider,
        client,
        transport,
        clock,
        tokens,
        dict(variables),
        granted_at=clock.now,
        obtained_at=clock.now,
    )


def describe(decision: Decision, outcome: Outcome) -> str:
    """Return a decision in plain words."""
    match decision:
        case Save():
            return "the answer was taken for a success and saved"
        case RequireReauth(reason):
            return f"the customer is asked to sign in again ({reason})"
        case HoldApp(code):
            return f"the whole app is held ({code})"
        case PauseApp(_, code):
            return f"the whole app pauses ({code})"
        case Quarantine(_, code):
            return f"the account is quarantined ({code})"
        case RetryLater(_, code, _, answer_lost, in_doubt):
            why = (
                "the answer was lost"
                if answer_lost
                else "in doubt"
                if in_doubt
                else "unavailable or throttled"
            )
            return f"it is tried again later ({code}: {why})"
        case Replay():
            return f"it is presented again at once ({type(outcome).__name__})"
