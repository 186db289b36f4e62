"""A visit before it comes to a refresh: the access token is tried out, the customer is told, or it is too early.

Promises:

* No answer to a probe changes a token or a status. One that calls the token dead leads to a refresh in the same
  attempt, under the same claim, through the fence once more (``store.visits.turn_to_refresh``); only the outcome of
  that refresh decides. Any other answer, and none, leads to a later visit (G4).
* Where access tokens are never renewed there is no refresh to ask: every visit is a probe, whoever wants it, and
  ``tokenfleet.dead_probes`` says when a token is dead. Without a probe nobody is called dead, and where a bare status
  may be about the app as well, nobody while nobody of the app is found alive.
* A probe presents no refresh token (G2), and takes :data:`~providers.probes.PROBE_TIMEOUT_SECONDS` at most; a visit
  that comes when a refresh is due anyway is one (G1).
* Where the provider refuses early refreshes nobody is asked before the window opens, whoever wants it. A token that is
  dead has ended early, and its window has opened with that.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Final

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from providers.credentials import Grant
from providers.exchange import TokenRequest
from providers.probes import PROBE_TIMEOUT_SECONDS, ProbeReading, Verdict
from providers.transport import boottime
from store import visits
from store.keys import Vault
from store.schedule import Attempt
from store.visits import Visited
from tokenfleet import telemetry
from tokenfleet.learning import NEVER_EXPIRES, learned_lifetime
from tokenfleet.lifetimes import (
    Holding,
    Purpose,
    Visit,
    announced_end,
    is_unknown,
    must_present,
    next_visit,
    refresh_opens,
    visit_after_unclear_probe,
)
from tokenfleet.outcome import GrantRejected
from tokenfleet.policy import doubt_delay
from tokenfleet_client import unsealings
from tokenfleet_client.envelope import access_token_binding
from tokenfleet_client.errors import EnvelopeError
from tokenfleet_client.secret import Secret
from workers.governor import Governor
from workers.judging import Judge
from workers.pacing import NotNow
from workers.reputation import Reputation
from workers.results import AppAnswered, Result
from workers.settling import Asking, Judged
from workers.writer import GroupWriter

TOO_EARLY: Final = "visit.too_early"
"""History event of a refresh that was asked for before the provider allows one."""
PROBED: Final = {Verdict.ALIVE: "probe.alive", Verdict.UNCLEAR: "probe.unclear", Verdict.DEAD: "probe.dead"}
"""How each verdict is called in the history."""


@dataclass(frozen=True, slots=True)
class Going:
    """The attempt goes on with a refresh, and with what the visit has found out."""

    asking: Asking
    attempt: Attempt


class Prober:
    """Makes the visits that are no plain refreshes. One per worker process."""

    def __init__(
        self,
        engine: AsyncEngine,
        governor: Governor,
        vault: Vault,
        writer: GroupWriter,
        judge: Judge,
        reputation: Reputation,
        *,
        owner: str,
        claim: timedelta,
        reserve_seconds: float,
    ) -> None:
        """``reserve_seconds`` of a ``claim`` must be left when a refresh leaves."""
        self._engine = engine
        self._owner = owner
        self._claim = claim
        self._reserve_seconds = reserve_seconds
        self._governor = governor
        self._vault = vault
        self._writer = writer
        self._judge = judge
        self._reputation = reputation
        self._chance = random.SystemRandom().random

    async def visit(self, asking: Asking, attempt: Attempt) -> Going | Judged | NotNow | None:
        """Return what to go on with, or to settle; None when the visit is settled; or when it is worth another try."""
        if not asking.provider.renews:
            return await self._probe(asking, attempt)
        if not attempt.probing:
            # What has failed is tried again when it is due, though its token was to live for longer: a probe said no.
            is_first = not attempt.attempts and not attempt.unanswered and attempt.access_token is not None
            if not (is_first and _is_early(asking, attempt)):
                return Going(asking, attempt)
            await self._settle(asking, attempt, self._plan(asking, attempt), TOO_EARLY)
            return None
        provider, now, holding = asking.provider, asking.now(attempt), _holding(attempt)
        # Only a refresh shows that a registration works again which the provider has rejected.
        is_wanted = asking.app.held_since is not None and not _is_early(asking, attempt)
        if is_wanted or must_present(holding, provider.lifetimes, provider.margins, now=now):
            return await self._go_on(asking, attempt, None)
        return await self._probe(asking, attempt)

    async def _probe(self, asking: Asking, attempt: Attempt) -> Going | Judged | NotNow | None:
        provider = asking.provider
        request = self._request(asking, attempt)
        if request is None:
            return await self._without_probe(asking, attempt)
        began = boottime()
        exchange = await self._governor.probe(request, asking, attempt, timeout_seconds=PROBE_TIMEOUT_SECONDS)
        if isinstance(exchange, NotNow):
            return exchange
        reading = self._weighed(provider.read_probe(exchange), asking, attempt)
        telemetry.PROBES.labels(provider.name, reading.verdict.value).inc()
        duration_ms = round((boottime() - began) * 1000)
        if reading.verdict is not Verdict.DEAD:
            await self._later(asking, attempt, reading, duration_ms)
            return None
        if provider.renews:
            return await self._go_on(asking, attempt, reading.code)
        decision = self._judge.weigh_dead_probe(reading.code, asking, attempt, now=asking.now(attempt))
        return Judged(GrantRejected(reading.code), decision, False, duration_ms, PROBED[Verdict.DEAD])

    def _weighed(self, reading: ProbeReading, asking: Asking, attempt: Attempt) -> ProbeReading:
        """Return ``reading``, unclear where it may be the app that is refused.

        After the first doubt somebody else of the app has to be found alive: a wrong secret lets nobody live (G4).
        """
        since = attempt.failing_since
        if asking.provider.renews or not reading.may_be_the_clients or not attempt.doubts or since is None:
            return reading
        if self._reputation.worked_within(asking.app, asking.now(attempt) - since):
            return reading
        return replace(reading, verdict=Verdict.UNCLEAR)

    async def _go_on(self, asking: Asking, attempt: Attempt, dead: str | None) -> Going | NotNow:
        """Turn the visit into a refresh; ``dead`` is what a probe met that found the token dead."""
        now = asking.now(attempt)
        send_before = await self._turn(asking, attempt, dead)
        if send_before is None:
            return NotNow(0.0)
        if dead is not None:
            lived = learned_lifetime(attempt.obtained_at, attempt.alive_at, now=now)
            attempt = replace(attempt, learned_lifetime=lived)
        return Going(replace(asking, send_before=send_before), attempt)

    async def _without_probe(self, asking: Asking, attempt: Attempt) -> Going | NotNow | None:
        """Visit an account that cannot be probed: its definition has no probe, or its scope does not allow it."""
        if is_unknown(_holding(attempt), asking.provider.lifetimes):
            # Nothing else would tell that the token has ended.
            return await self._go_on(asking, attempt, None)
        await self._settle(asking, attempt, self._plan(asking, attempt), None)
        return None

    async def _later(self, asking: Asking, attempt: Attempt, reading: ProbeReading, duration_ms: int) -> None:
        provider, now, holding = asking.provider, asking.now(attempt), _holding(attempt)
        kind = PROBED[reading.verdict]
        if reading.verdict is Verdict.ALIVE:
            visit = self._plan(asking, attempt)
        elif not provider.renews and attempt.doubts:
            # No word for it and none against it: the doubt stays as old as it is.
            visit = Visit(now + doubt_delay(attempt.doubts - 1, self._chance()), Purpose.PROBE)
        else:
            visit = visit_after_unclear_probe(
                holding, provider.lifetimes, provider.margins, now=now, chance=self._chance()
            )
        await self._settle(asking, attempt, visit, kind, reading=reading, duration_ms=duration_ms)

    async def _turn(self, asking: Asking, attempt: Attempt, dead: str | None) -> float | None:
        """Pass the fence to a refresh; returns before when it has to be sent, None when it must not be."""
        turned_at = boottime()
        try:
            async with self._engine.begin() as connection:
                turned = await connection.run_sync(
                    visits.turn_to_refresh,
                    attempt.account_id,
                    attempt.epoch,
                    attempt.generation,
                    claim=self._claim,
                    code=dead,
                    job_id=asking.job_id,
                    actor=self._owner,
                )
        except (SQLAlchemyError, OSError):
            # Nothing was presented; if the turn was written all the same, a later claim refreshes.
            return None
        return turned_at + self._claim.total_seconds() - self._reserve_seconds if turned else None

    def _plan(self, asking: Asking, attempt: Attempt) -> Visit:
        provider, now, holding = asking.provider, asking.now(attempt), _holding(attempt)
        if announced_end(holding, provider.lifetimes, now=now) is not None:
            # It is told with this visit.
            holding = replace(holding, told=True)
        return next_visit(holding, provider.lifetimes, provider.margins, now=now, chance=self._chance())

    async def _settle(
        self,
        asking: Asking,
        attempt: Attempt,
        visit: Visit,
        kind: str | None,
        *,
        reading: ProbeReading | None = None,
        duration_ms: int = 0,
    ) -> None:
        now = asking.now(attempt)
        is_alive = reading is not None and reading.verdict is Verdict.ALIVE
        beside: tuple[Result, ...] = ()
        if is_alive and not asking.provider.renews:
            # As good as a refresh: the grant lives.
            self._reputation.succeeded(asking.app)
            beside = (AppAnswered(asking.app.app_id),) if asking.app.is_sampled else ()
        await self._writer.add(
            Visited(
                account_id=attempt.account_id,
                epoch=attempt.epoch,
                generation=attempt.generation,
                next_refresh_at=visit.at,
                probing=not visit.presents,
                was_probing=attempt.probing,
                kind=kind,
                code=reading.code if reading else None,
                alive_at=now if is_alive else None,
                grant_ends_at=announced_end(_holding(attempt), asking.provider.lifetimes, now=now),
                job_id=asking.job_id,
                duration_ms=duration_ms,
                clears=is_alive and not asking.provider.renews,
            ),
            *beside,
        )

    def _request(self, asking: Asking, attempt: Attempt) -> TokenRequest | None:
        """Return the probe, or None when there is none to send."""
        if attempt.access_token is None or asking.provider.lifetimes.probe_every is None:
            return None
        try:
            binding = access_token_binding(attempt.account_id, attempt.generation)
            access_token = Secret(
                self._vault.access.open(attempt.access_token, binding, unsealings.Purpose.PROBE)
            )
        except EnvelopeError:
            return None
        if not access_token:
            return None
        variables = {**asking.app.variables, **attempt.variables}
        grant = Grant(None, attempt.scope, variables, access_token)
        return asking.provider.probe_request(asking.client, grant, now=asking.now(attempt))


def _is_early(asking: Asking, attempt: Attempt) -> bool:
    opens = refresh_opens(attempt.obtained_at, attempt.expires_at, asking.provider.lifetimes)
    return opens is not None and asking.now(attempt) < opens


def _holding(attempt: Attempt) -> Holding:
    return Holding(
        obtained_at=attempt.obtained_at,
        expires_at=attempt.expires_at,
        granted_at=attempt.granted_at,
        refresh_token_expires_at=attempt.refresh_token_expires_at,
        told=attempt.reauth_told,
        never_expires=attempt.learned_lifetime == NEVER_EXPIRES,
    )
