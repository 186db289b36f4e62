"""Events told and delivered in a test: real Postgres, a worker's engine of webhooks, the relay's own statements."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Engine, text

from scheduler.relay import make_jobs
from store import deliveries, endpoints, outbox
from store.endpoints import Endpoint
from store.keys import Vault
from tests.support.fleet import eventually
from tokenfleet.jobs import DeliveryJob, EndpointId
from tokenfleet.settings import Settings
from tokenfleet_client.secret import Secret
from workers.receivers import Lookup, look_up
from workers.webhook_engine import WebhookEngine

ERROR = "integrated_account:authentication_error"
WELL = "integrated_account:reactivated"


@dataclass(slots=True)
class Office:
    """One test's endpoints, events and deliveries."""

    engine: Engine
    vault: Vault
    settings: Settings
    secrets: dict[EndpointId, Secret] = field(default_factory=dict)

    def add(self, url: str, **choices: Any) -> EndpointId:
        """Create an endpoint; its secret is kept here."""
        with self.engine.begin() as connection:
            endpoint, secret = endpoints.add(connection, self.vault.refresh, url=url, **choices)
        self.secrets[endpoint.endpoint_id] = secret
        return endpoint.endpoint_id

    def tell(
        self,
        account: int | None,
        event_type: str = ERROR,
        *,
        tenant: str | None = None,
        environment: str = "production",
        payload_id: int | None = None,
    ) -> str:
        """Write an event as a transition does; returns its id."""
        with self.engine.begin() as connection:
            event_id = connection.execute(
                text("""
                    INSERT INTO tokenfleet.outbox (account_id, event_type, payload)
                    VALUES (:account, :event_type, jsonb_build_object(
                        'id', CAST(:payload_id AS bigint), 'tenant', CAST(:tenant AS text),
                        'environment', CAST(:environment AS text), 'external_id', 'customer',
                        'integration_name', 'acme', 'status', 'needs_reauth', 'last_error', 'invalid_grant'))
                    RETURNING id
                """),
                {
                    "account": account,
                    "payload_id": account if payload_id is None else payload_id,
                    "event_type": event_type,
                    "tenant": tenant,
                    "environment": environment,
                },
            ).scalar_one()
        return str(event_id)

    def relay(self) -> None:
        """Make deliveries of everything that was told."""
        more = True
        while more:
            with self.engine.begin() as connection:
                more = outbox.relay(connection)

    def claim(self) -> list[DeliveryJob]:
        """Claim what is due, as the relay does."""
        with self.engine.begin() as connection:
            claims = deliveries.claim_due(connection, claim=self.settings.tunables.webhook_claim)
        return list(make_jobs(claims))

    def round(self, worker: WebhookEngine) -> int:
        """Relay, claim, deliver what is due now, and wait until it is settled; returns how many were claimed."""
        self.relay()
        jobs = self.claim()
        self.run(worker, jobs)
        return sum(len(job.deliveries) for job in jobs)

    def run(self, worker: WebhookEngine, jobs: Sequence[DeliveryJob]) -> None:
        """Run jobs and wait until nothing is under way."""
        for job in jobs:
            worker.run(job)
        eventually(lambda: not self.under_way(), what="every attempt is settled")

    def rounds(self, worker: WebhookEngine, *, most: int = 50) -> None:
        """Do rounds until nothing is due."""
        for _ in range(most):
            if not self.round(worker):
                return
        raise AssertionError(f"still something due after {most} rounds")

    def under_way(self) -> int:
        """Return how many deliveries are claimed now."""
        [count] = self.column(
            "SELECT count(*) FROM tokenfleet.webhook_deliveries WHERE claimed_until > clock_timestamp()"
        )
        return int(count)

    def pass_time(self) -> None:
        """Let every retry be due and every rest be over."""
        self.execute(
            "UPDATE tokenfleet.webhook_deliveries SET next_attempt_at = now() - interval '1 s', "
            "created_at = created_at - (next_attempt_at - now()) WHERE next_attempt_at > now()"
        )
        self.execute(
            "UPDATE tokenfleet.webhook_endpoints SET retry_at = now() - interval '1 s' WHERE retry_at > now()"
        )

    def endpoint(self, endpoint_id: EndpointId) -> Endpoint:
        with self.engine.connect() as connection:
            found = endpoints.load(connection, endpoint_id)
        assert found is not None
        return found

    def states(self, endpoint_id: EndpointId) -> list[str]:
        """Return the states of an endpoint's deliveries, the oldest first."""
        return self.column(
            "SELECT state FROM tokenfleet.webhook_deliveries WHERE endpoint_id = :id ORDER BY sequence",
            id=endpoint_id,
        )

    def column(self, statement: str, **parameters: object) -> list[Any]:
        with self.engine.connect() as connection:
            return list(connection.execute(text(statement), parameters).scalars())

    def execute(self, statement: str, **parameters: object) -> None:
        with self.engine.begin() as connection:
            connection.execute(text(statement), parameters)

    @contextmanager
    def worker(self, *, lookup: Lookup = look_up, **tunables: Any) -> Iterator[WebhookEngine]:
        """Run a worker's engine in this process; it may reach loopback unless told otherwise."""
        chosen = self.settings.tunables.model_copy(update={"allow_private_webhooks": True} | tunables)
        worker = WebhookEngine(_with(self.settings, chosen), lookup=lookup)
        worker.start()
        try:
            yield worker
        finally:
            worker.stop()


def _with(settings: Settings, tunables: Any) -> Settings:
    return dataclasses.replace(settings, tunables=tunables)
