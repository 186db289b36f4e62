"""The whole catalogue through the real engine of a worker: real Postgres, real Valkey, the real transport.

Each provider of the catalogue is played for some customers of its own, whose accounts were imported. What became of
them stands in the database; what was presented stands in the players' ledgers. Both are as DESIGN section 5 says.
"""

from __future__ import annotations

import asyncio
import io
import json
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pytest
from sqlalchemy import Engine, text

from cli.accounts_import import compose_rules
from conformance.chains import Chain
from conformance.clock import Clock
from conformance.detour import detoured
from conformance.doors import StepDoor
from conformance.meanings import saying
from conformance.player import Player
from conformance.registration import SCOPE, register, variables
from conformance.requests import Client
from conformance.stage import Delivery, Reaction, Reply, Stage, error_reply
from providers import Provider, Registry, TokenRequest, load_registry
from providers.credentials import ClientCredentials, Grant
from providers.exchange import Answer, Exchange, Failure
from providers.steps import CompiledStep
from providers.transport import Transport
from scheduler.publisher import make_jobs
from store import app_certificates, apps, claiming, schedule
from store.claiming import Allowance
from store.import_source import ImportFormat, read_chunks
from store.imports import Importer
from store.keys import Vault
from tokenfleet.jobs import AccountId, AppId, RefreshJob
from tokenfleet.outcome import Outcome
from tokenfleet.settings import Settings
from tokenfleet_client.envelope import access_token_binding, refresh_token_binding
from workers.engine import Engine as WorkerEngine

STAGE: Final = "conformance_stage"
"""The variable of an account that says on which stage its provider stands."""
CLAIM: Final = timedelta(seconds=60)
HEALTHY, ROTATED, REVOKED, OUTAGE, LOST, THROTTLED = (
    "healthy", "rotated", "revoked", "outage", "lost", "throttled",
)  # fmt: skip


class RealClock(Clock):
    """This machine's time, further on by ``ahead``."""

    def __init__(self, ahead: float) -> None:
        super().__init__(datetime.now(UTC))
        self.ahead = ahead

    def seconds(self) -> float:
        return time.time() + self.ahead


@dataclass(frozen=True, slots=True)
class Detoured(Provider):
    """A provider whose requests go to the player, the stage chosen by the account; all else is the provider's."""

    player: Player = field(repr=False, compare=False)

    @classmethod
    def of(cls, provider: Provider, player: Player) -> Detoured:
        """Return ``provider``, its requests led to ``player``."""
        values = {each.name: getattr(provider, each.name) for each in fields(provider)}
        values["steps"] = tuple(DetouredStep(step, player) for step in provider.steps)
        # The pace is tested elsewhere; here everybody of an app is asked at once.
        values["rate_per_second"] = None
        return cls(**values, player=player)

    def refresh_request(
        self, client: ClientCredentials, grant: Grant, *, now: datetime | None = None
    ) -> TokenRequest:
        request = Provider.refresh_request(self, client, grant, now=now)
        return detoured(request, f"{self.player.origin}/{grant.variables[STAGE]}")


@dataclass(frozen=True, slots=True)
class DetouredStep:
    """A step whose requests go to the player."""

    step: CompiledStep
    player: Player

    def build(self, client: ClientCredentials, grant: Grant, *, now: datetime) -> TokenRequest:
        request = self.step.build(client, grant, now=now)
        return detoured(request, f"{self.player.origin}/{grant.variables[STAGE]}")

    def read(self, exchange: Exchange, *, now: datetime) -> Outcome:
        return self.step.read(exchange, now=now)


class Guarded(Transport):
    """The transport, which lets nothing leave this machine."""

    async def ask(
        self, request: TokenRequest, *, send_before: float | None = None, timeout_seconds: float | None = None
    ) -> Answer | Failure:
        assert request.url.startswith("http://127.0.0.1:"), "a request would have left this machine"
        return await super().ask(request, send_before=send_before, timeout_seconds=timeout_seconds)


@dataclass(frozen=True, slots=True)
class Customer:
    """One account and the provider that is played for it."""

    provider: Provider
    case: str
    stage: Stage
    name: str
    """Of the stage; the account's external id too."""

    @property
    def app(self) -> str:
        """The name of its app: who is throttled stops nobody else."""
        return THROTTLED if self.case == THROTTLED else "default"


@contextmanager
def playing() -> Iterator[Player]:
    """A player in a thread of its own."""
    loop = asyncio.new_event_loop()
    player = Player()
    thread = threading.Thread(target=loop.run_forever, name="player")
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(player.__aenter__(), loop).result()
        yield player
        asyncio.run_coroutine_threadsafe(player.__aexit__(None, None, None), loop).result()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@dataclass(frozen=True, slots=True)
class Row:
    """What the database says of an account."""

    status: str
    status_reason: str | None
    generation: int
    access_token: str
    refresh_token: str | None
    attempts: int
    last_error: str | None
    quarantined: bool
    expires_at: datetime | None


class Catalogue:
    """Every provider of the catalogue in one fleet."""

    def __init__(self, engine: Engine, vault: Vault, settings: Settings, player: Player) -> None:
        self.engine, self.vault, self.settings = engine, vault, settings
        renewing = [provider for provider in load_registry() if provider.renews]
        self.registry = Registry({each.name: Detoured.of(each, player) for each in renewing})
        self.customers = [
            self._customer(provider, case, player)
            for provider in renewing
            for case in (HEALTHY, ROTATED, REVOKED, OUTAGE, LOST, THROTTLED)
        ]
        self.ids = self._imported()

    def _customer(self, provider: Provider, case: str, player: Player) -> Customer:
        spec, life = provider.spec, provider.spec.lifetimes
        app = THROTTLED if case == THROTTLED else "default"
        stage = Stage(
            spec, Client(register(spec, f"{spec.name}-{app}"), variables(spec)[0], SCOPE), RealClock(0)
        )
        # Old enough to be refreshed, where a provider refuses that of a young one.
        age = 60.0 + (life.minimum_age_seconds or 0)
        if life.earliest_refresh_seconds is not None:
            age = max(age, stage.chain.life_seconds - life.earliest_refresh_seconds + 5)
        issued_at = time.time() - age
        chain = Chain(spec, lambda: issued_at)
        chain.now = time.time
        stage.chain = chain
        stage.doors += (StepDoor(stage, position) for position in range(len(spec.steps)))
        return Customer(provider, case, stage, player.add(stage))

    def _imported(self) -> dict[str, AccountId]:
        with self.engine.begin() as connection:
            for customer in {(each.provider.name, each.app): each for each in self.customers}.values():
                registration = customer.stage.client.registration
                app = apps.register(
                    connection,
                    self.vault.refresh,
                    provider=customer.provider.name,
                    environment="production",
                    name=customer.app,
                    client_id=registration.client_id,
                    client_secret=registration.client_secret,
                    variables={},
                )
                if registration.certificate is not None:
                    app_certificates.put(connection, self.vault.refresh, app.app_id, registration.certificate)
        lines = "\n".join(json.dumps(_line(customer)) for customer in self.customers)
        rules_of = compose_rules(self.registry)
        importer = Importer(self.engine, self.vault, rules_of, actor="test")
        chunks = read_chunks(
            io.BytesIO(lines.encode()), ImportFormat.JSON_LINES, now=datetime.now(UTC), rules_of=rules_of
        )
        with closing(importer.run(chunks)) as reports:
            assert [bad for report in reports for bad in report.bad] == []
        with self.engine.begin() as connection:
            # An import does not say how old a token is, and who has to wait for its age waits from then.
            connection.execute(
                text("UPDATE tokenfleet.token_sets SET obtained_at = now() - interval '30 days'")
            )
            rows = connection.execute(text("SELECT external_id, id FROM tokenfleet.accounts"))
            return {row.external_id: AccountId(row.id) for row in rows}

    def refresh(self, worker: WorkerEngine, customers: Sequence[Customer]) -> None:
        """Make ``customers`` due, claim them as a scheduler does, and let the worker do the jobs."""
        ids = [self.ids[each.name] for each in customers]
        with self.engine.begin() as connection:
            schedule.request_refresh(connection, ids)
            owners = connection.execute(
                text("SELECT DISTINCT app_id FROM tokenfleet.refresh_schedule WHERE account_id = ANY(:ids)"),
                {"ids": ids},
            )
            allowances = [Allowance(AppId(row.app_id), 100, 100) for row in owners]
            claims = claiming.claim_due(connection, allowances, claim=CLAIM)
        jobs: list[RefreshJob] = [job for app_id, each in claims.items() for job in make_jobs(app_id, each)]
        with ThreadPoolExecutor(16) as pool:
            for done in [pool.submit(worker.run, job) for job in jobs]:
                done.result(60)

    def rows(self) -> dict[str, Row]:
        """Return what the database says of everybody, by external id."""
        with self.engine.connect() as connection:
            rows = connection.execute(
                text(
                    "SELECT a.id, a.external_id, a.status, a.status_reason, t.generation, t.access_token, "
                    "t.refresh_token, t.expires_at, s.attempts, s.last_error, s.quarantined "
                    "FROM tokenfleet.accounts a JOIN tokenfleet.token_sets t ON t.account_id = a.id "
                    "JOIN tokenfleet.refresh_schedule s ON s.account_id = a.id"
                )
            ).all()
        return {row.external_id: self._row(row) for row in rows}

    def _row(self, row: Any) -> Row:
        access, refresh = self.vault.access, self.vault.refresh
        refresh_token = None
        if row.refresh_token is not None:
            refresh_token = refresh.open(row.refresh_token, refresh_token_binding(row.id, row.generation))
        return Row(
            status=row.status,
            status_reason=row.status_reason,
            generation=row.generation,
            access_token=access.open(row.access_token, access_token_binding(row.id, row.generation)),
            refresh_token=refresh_token,
            attempts=row.attempts,
            last_error=row.last_error,
            quarantined=row.quarantined,
            expires_at=row.expires_at,
        )


def _line(customer: Customer) -> Mapping[str, object]:
    chain, stage = customer.stage.chain, customer.stage
    line: dict[str, object] = {
        "provider": customer.provider.name,
        "external_id": customer.name,
        "app": customer.app,
        "access_token": chain.access_token.reveal(),
        "scope": SCOPE,
        "expires_in": max(1.0, chain.access_expires_at - time.time()),
        "variables": {**stage.client.variables, STAGE: customer.name},
    }
    if stage.spec.refresh.grant in ("refresh_token", "token_exchange"):
        line["refresh_token"] = chain.refresh_token.reveal()
    return line


@pytest.mark.timeout(240)
def test_the_engine_does_right_by_every_provider_of_the_catalogue(
    engine: Engine, vault: Vault, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.engine.Transport", Guarded)
    with playing() as player:
        catalogue = Catalogue(engine, vault, settings, player)
        of: dict[str, list[Customer]] = {}
        for customer in catalogue.customers:
            of.setdefault(customer.case, []).append(customer)
        for customer in of[REVOKED]:
            customer.stage.chain.revoked = True
        for customer in of[OUTAGE]:
            customer.stage.script.append(Reaction(reply=Reply(503, b"<html>", content_type="text/html")))
        for customer in of[LOST]:
            customer.stage.script.append(Reaction(delivery=Delivery.LOST))
        for customer in of[THROTTLED]:
            answer = saying(customer.provider.spec, "throttled")
            assert answer is not None
            customer.stage.script.append(Reaction(reply=error_reply(answer, {"Retry-After": "600"})))
        worker = WorkerEngine(settings, catalogue.registry)
        worker.start()
        try:
            catalogue.refresh(worker, catalogue.customers)
            first = catalogue.rows()
            again = [*of[OUTAGE], *(each for each in of[ROTATED] if _may_go_on(each))]
            catalogue.refresh(worker, again)
        finally:
            worker.stop()
        second = catalogue.rows()

    wrong = [
        f"{customer.provider.name}, {customer.case}: {complaint}"
        for customer in catalogue.customers
        for complaint in _complaints(customer, first[customer.name], second[customer.name], again)
    ]
    assert not wrong, "\n".join(wrong)
    assert len(first) == len(catalogue.customers) > 100


def _may_go_on(customer: Customer) -> bool:
    life = customer.provider.spec.lifetimes
    return life.earliest_refresh_seconds is None and life.minimum_age_seconds is None


def _has_grace(customer: Customer) -> bool:
    """Answer whether a replay is answered: the token presented is not spent, or lives on for a while."""
    spec = customer.provider.spec
    rotation = spec.rotation
    rotates = spec.refresh.grant == "refresh_token" and rotation.policy != "never"
    return not rotates or rotation.grace_seconds > 0 or rotation.grace_until_first_use


def _complaints(customer: Customer, first: Row, second: Row, again: Sequence[Customer]) -> Iterator[str]:
    """Say what is not as section 5 demands."""
    stage, case = customer.stage, customer.case
    if stage.refusals:
        yield f"the provider did not accept a request: {stage.refusals[0].reason}"
    if stage.chain.ledger.counters.presented_twice:
        yield "a refresh token was presented twice"
    lost = case == LOST
    requests = 2 if customer in again or (lost and stage.spec.rotation.max_live != 1) else 1
    if stage.requests != requests:
        yield f"{stage.requests} requests instead of {requests}"
    if case == REVOKED:
        if (first.status, first.generation) != ("needs_reauth", 1):
            yield f"revoked, but {first}"
        return
    if lost and (not _has_grace(customer) or stage.spec.rotation.max_live == 1):
        if stage.spec.rotation.max_live != 1 and second.status_reason != "rotation_lost":
            yield f"its answer was lost, but {second.status} ({second.status_reason})"
        return
    if second.status != "active" or second.quarantined:
        yield f"{second.status}, {second.last_error}"
    refreshes = {
        HEALTHY: (1, 1),
        ROTATED: (1, 1 + (customer in again)),
        OUTAGE: (0, 1),
        LOST: (1, 1),
        THROTTLED: (0, 0),
    }[case]
    # Where steps follow, the new refresh token is saved before them.
    saves = 2 if stage.spec.steps and stage.spec.rotation.policy != "never" else 1
    generations = (1 + refreshes[0] * saves, 1 + refreshes[1] * saves)
    if (first.generation, second.generation) != generations:
        yield f"generations {first.generation}, {second.generation} instead of {generations} ({second.last_error})"
    if case == OUTAGE and not (first.attempts == 1 and second.attempts == 0):
        yield f"{first.attempts}, then {second.attempts} failures were counted"
    if second.access_token != stage.chain.access_token.reveal():
        yield "the database holds another access token than was issued"
    if (
        stage.spec.refresh.grant == "refresh_token"
        and second.refresh_token != stage.chain.refresh_token.reveal()
    ):
        yield "the database holds another refresh token than lives"
