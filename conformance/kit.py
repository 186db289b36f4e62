"""Putting definitions through scenarios: one server, one transport and one event loop for all of them."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from types import TracebackType
from typing import Final, Self

from conformance.account import account
from conformance.answers import last_fields
from conformance.clock import Clock
from conformance.detour import Detour
from conformance.doors import StepDoor
from conformance.player import Player
from conformance.registration import SCOPE, Registration, register, variables
from conformance.report import Report, Result, Verdict
from conformance.requests import Client
from conformance.scenarios import SCENARIOS, Scenario
from conformance.stage import Stage
from conformance.trial import DoesNotApply, Mismatch, Trial
from providers.credentials import ClientCredentials
from providers.registry import Provider
from providers.spec import ProviderSpec
from tokenfleet.tokens import TokenSet

START: Final = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)


class Kit:
    """Trials of definitions: ``async with Kit() as kit: report = await kit.run(provider)``."""

    def __init__(self, scenarios: Sequence[Scenario] = SCENARIOS, *, timeout_seconds: float = 10.0) -> None:
        """Play ``scenarios``; the fleet waits ``timeout_seconds`` for each answer."""
        self._scenarios = scenarios
        self._player = Player()
        self._detour = Detour(timeout_seconds=timeout_seconds)
        self._numbers = itertools.count(1)

    async def __aenter__(self) -> Self:
        await self._player.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._detour.aclose()
        await self._player.__aexit__(kind, error, trace)

    async def run(
        self, provider: Provider, played: ProviderSpec | None = None, *, only: str | None = None
    ) -> Report:
        """Put ``provider`` through every scenario, against a provider that does what ``played`` says, or it itself.

        ``only`` names the one scenario to play.
        """
        truth = played or provider.spec
        try:
            registration = register(truth, f"{truth.name}{next(self._numbers)}")
            values = variables(truth)
            believed = variables(provider.spec)
        except ValueError as error:
            refused = Result("play", Verdict.FAILED, str(error), ("variables",))
            return Report(provider.name, (refused,))
        first, second = ({**mine, **theirs} for mine, theirs in zip(believed, values, strict=True))
        results = [
            await self._perform(scenario, provider, truth, registration, first, second)
            for scenario in self._scenarios
            if only in (None, scenario.name)
        ]
        return Report(provider.name, tuple(results))

    async def _perform(
        self,
        scenario: Scenario,
        provider: Provider,
        truth: ProviderSpec,
        registration: Registration,
        first: dict[str, str],
        second: dict[str, str],
    ) -> Result:
        if scenario.renews and truth.refresh.grant == "none":
            return Result(scenario.name, Verdict.NOT_APPLICABLE, "access tokens are never renewed")
        clock = Clock(START)
        scope = f"{SCOPE} {truth.probe.needs_scope or ''}".strip() if truth.probe else SCOPE
        stage = Stage(truth, Client(registration, dict(first), scope), clock)
        stage.doors += (StepDoor(stage, position) for position in range(len(truth.steps)))
        name = self._player.add(stage)
        try:
            trial = Trial(
                provider=provider,
                truth=truth,
                stage=stage,
                account=account(
                    provider,
                    ClientCredentials(
                        registration.client_id, registration.client_secret, registration.certificate
                    ),
                    self._detour,
                    clock,
                    tokens=_first_tokens(stage, scope if _must_know_scope(truth) else None),
                    variables=first,
                ),
                detour=self._detour,
                player=self._player,
                origin=f"{self._player.origin}/{name}",
                second_values=second,
            )
            self._detour.lead_to(trial.origin)
            await scenario.play(trial)
            if not trial.expectations:
                return Result(
                    scenario.name, Verdict.FAILED, "the scenario expected nothing, so it proved nothing"
                )
            return Result(scenario.name, Verdict.PASSED)
        except Mismatch as mismatch:
            return Result(scenario.name, Verdict.FAILED, str(mismatch), mismatch.location)
        except DoesNotApply as reason:
            return Result(scenario.name, Verdict.NOT_APPLICABLE, str(reason))
        finally:
            self._player.remove(name)


def run(provider: Provider, played: ProviderSpec | None = None) -> Report:
    """Put one provider through every scenario."""
    return run_all([(provider, played)])[0]


def run_all(pairs: Iterable[tuple[Provider, ProviderSpec | None]]) -> list[Report]:
    """Put each provider through every scenario, against what is played; None for what it says itself."""

    async def run_each() -> list[Report]:
        async with Kit() as kit:
            return [await kit.run(provider, played) for provider, played in pairs]

    return asyncio.run(run_each())


def _must_know_scope(truth: ProviderSpec) -> bool:
    """Answer whether an account must bring its scope: elsewhere it has to be read from the first answer."""
    return truth.refresh.send_scope or not last_fields(truth).scope


def _first_tokens(stage: Stage, scope: str | None) -> TokenSet:
    chain = stage.chain
    never = stage.spec.lifetimes.access_never_expires
    presents = stage.spec.refresh.grant in ("refresh_token", "token_exchange")
    return TokenSet(
        access_token=chain.access_token,
        refresh_token=chain.refresh_token if presents else None,
        token_type="Bearer",
        scope=scope,
        expires_at=None if never else datetime.fromtimestamp(chain.access_expires_at, UTC),
        refresh_token_expires_at=None,
    )
