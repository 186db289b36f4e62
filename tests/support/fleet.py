"""A fleet in a test: accounts signed in at a sandbox, jobs run by a worker's engine or by real processes."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, text

from providers import load_registry
from sandbox.definition import definition_toml
from sandbox.server import SandboxServer
from scheduler.publisher import Publisher, make_jobs
from store import apps, claiming, schedule
from store.apps import App
from store.claiming import Allowance
from store.keys import Vault
from tokenfleet.broker import make_celery
from tokenfleet.jobs import AccountId, RefreshJob
from tokenfleet.settings import Settings
from tokenfleet_client.envelope import access_token_binding, refresh_token_binding
from tokenfleet_client.secret import Secret
from workers.engine import Engine as WorkerEngine

CLAIM = timedelta(seconds=30)


@dataclass(frozen=True, slots=True)
class Row:
    """What the database says of one account."""

    status: str
    status_reason: str | None
    generation: int
    access_token: str = field(repr=False)
    refresh_token: str = field(repr=False)
    expires_in: float | None
    next_refresh_in: float | None
    claimed: bool
    attempts: int
    unanswered: int
    last_error: str | None
    quarantined: bool


class Fleet:
    """One test's accounts at one sandbox, in one database."""

    def __init__(
        self, engine: Engine, vault: Vault, settings: Settings, server: SandboxServer, providers: Path
    ) -> None:
        self.engine = engine
        self.vault = vault
        self.settings = settings
        self.server = server
        providers.mkdir(exist_ok=True)
        (providers / "sandbox.toml").write_text(definition_toml(server.url, server.config))
        self.registry = load_registry(providers, allow_http=True)
        self.app = self.register(server.config.client_secret)

    def register(self, secret: Secret) -> App:
        """Register the sandbox's client, or replace its secret."""
        with self.engine.begin() as connection:
            return apps.register(
                connection,
                self.vault.refresh,
                provider="sandbox",
                environment="production",
                name="default",
                client_id=self.server.config.client_id,
                client_secret=secret,
                variables={},
            )

    def connect(self, *subjects: str) -> list[AccountId]:
        """Sign ``subjects`` in at the sandbox and put them into the database, active and due now."""
        ids: list[AccountId] = []
        with self.engine.begin() as connection:
            for grant in self.server.issue(*subjects):
                account_id = AccountId(
                    connection.execute(
                        text(
                            "INSERT INTO tokenfleet.accounts "
                            "(provider, environment, external_id, app_id, status) "
                            "VALUES ('sandbox', 'production', :subject, :app_id, 'active') RETURNING id"
                        ),
                        {"subject": grant.subject, "app_id": self.app.app_id},
                    ).scalar_one()
                )
                assert grant.tokens.refresh_token is not None
                access = self.vault.access.seal(
                    grant.tokens.access_token.reveal(), access_token_binding(account_id, 1)
                )
                refresh = self.vault.refresh.seal(
                    grant.tokens.refresh_token.reveal(), refresh_token_binding(account_id, 1)
                )
                connection.execute(
                    text(
                        "INSERT INTO tokenfleet.token_sets (account_id, generation, epoch, access_token, "
                        "refresh_token, expires_at, obtained_at) "
                        "VALUES (:id, 1, 0, :access, :refresh, :expires_at, now())"
                    ),
                    {
                        "id": account_id,
                        "access": access,
                        "refresh": refresh,
                        "expires_at": grant.expires_at,
                    },
                )
                connection.execute(
                    text(
                        "INSERT INTO tokenfleet.refresh_schedule (account_id, app_id, next_refresh_at) "
                        "VALUES (:id, :app_id, now())"
                    ),
                    {"id": account_id, "app_id": self.app.app_id},
                )
                ids.append(account_id)
        return ids

    def claim(self, *, count: int = 1000, claim: timedelta = CLAIM) -> list[RefreshJob]:
        """Claim what is due, as a scheduler does, and return the jobs."""
        with self.engine.begin() as connection:
            allowance = Allowance(self.app.app_id, count, count)
            claims = claiming.claim_due(connection, [allowance], claim=claim)
        return [job for app_id, claimed in claims.items() for job in make_jobs(app_id, claimed)]

    def publish(self, jobs: Sequence[RefreshJob]) -> None:
        """Send jobs to the workers, as a scheduler does."""
        unsent = Publisher(make_celery(self.settings), claim=CLAIM).publish(jobs)
        assert not unsent

    def make_due(self, *ids: AccountId) -> None:
        """Make accounts due now."""
        with self.engine.begin() as connection:
            schedule.request_refresh(connection, ids)

    def row(self, account_id: AccountId) -> Row:
        """Return what the database says of an account, its tokens opened."""
        with self.engine.connect() as connection:
            row = connection.execute(
                text("""
                    SELECT a.status, a.status_reason, t.generation, t.access_token, t.refresh_token,
                           EXTRACT(epoch FROM t.expires_at - now()) AS expires_in,
                           EXTRACT(epoch FROM s.next_refresh_at - now()) AS next_refresh_in,
                           s.claimed_until IS NOT NULL AS claimed, s.attempts, s.unanswered, s.last_error,
                           s.quarantined
                    FROM tokenfleet.accounts a
                    JOIN tokenfleet.token_sets t ON t.account_id = a.id
                    JOIN tokenfleet.refresh_schedule s ON s.account_id = a.id
                    WHERE a.id = :id
                """),
                {"id": account_id},
            ).one()
        generation = row.generation
        return Row(
            status=row.status,
            status_reason=row.status_reason,
            generation=generation,
            access_token=self.vault.access.open(
                row.access_token, access_token_binding(account_id, generation)
            ),
            refresh_token=self.vault.refresh.open(
                row.refresh_token, refresh_token_binding(account_id, generation)
            ),
            expires_in=None if row.expires_in is None else float(row.expires_in),
            next_refresh_in=None if row.next_refresh_in is None else float(row.next_refresh_in),
            claimed=row.claimed,
            attempts=row.attempts,
            unanswered=row.unanswered,
            last_error=row.last_error,
            quarantined=row.quarantined,
        )

    def generations(self) -> dict[str, int]:
        """Return how often each subject's tokens were replaced, counting from 1."""
        with self.engine.connect() as connection:
            rows = connection.execute(text("SELECT external_id, generation FROM tokenfleet_v1.access_tokens"))
            return {row.external_id: row.generation for row in rows}

    def shortest_life(self) -> float:
        """Return how many seconds the access token that a reader finds has to live, the shortest of all."""
        [seconds] = self.column(
            "SELECT min(EXTRACT(epoch FROM expires_at - clock_timestamp()))::float "
            "FROM tokenfleet_v1.access_tokens"
        )
        return float(seconds)

    def strays(self) -> list[str]:
        """Return the subjects whose tokens in the database are not the live ones at the server."""
        with self.engine.connect() as connection:
            held = {
                row.external_id: (
                    _sha256(
                        self.vault.refresh.open(
                            row.refresh_token, refresh_token_binding(row.account_id, row.generation)
                        )
                    ),
                    _sha256(
                        self.vault.access.open(
                            row.access_token, access_token_binding(row.account_id, row.generation)
                        )
                    ),
                )
                for row in connection.execute(
                    text(
                        "SELECT a.external_id, t.* FROM tokenfleet.accounts a "
                        "JOIN tokenfleet.token_sets t ON t.account_id = a.id"
                    )
                )
            }
        return [
            tokens.subject
            for tokens in self.server.live()
            if held.get(tokens.subject) != (tokens.refresh_token_sha256, tokens.access_token_sha256)
        ]

    def declare_lost(self, subjects: Mapping[str, AccountId]) -> None:
        """Tell the ledger that nobody holds the answers to the refresh tokens which the database still has."""
        for subject, account_id in subjects.items():
            assert self.server.declare_lost(subject, _sha256(self.row(account_id).refresh_token))

    def events(self, account_id: AccountId) -> list[str]:
        """Return the kinds of an account's history, oldest first."""
        return self.column(
            "SELECT kind FROM tokenfleet.account_events WHERE account_id = :id ORDER BY at", id=account_id
        )

    def told(self, account_id: AccountId) -> list[str]:
        """Return the event types in the outbox for an account, in order."""
        return self.column(
            "SELECT event_type FROM tokenfleet.outbox WHERE account_id = :id ORDER BY sequence", id=account_id
        )

    def column(self, statement: str, **parameters: Any) -> list[Any]:
        """Return the first column of a query."""
        with self.engine.connect() as connection:
            return list(connection.execute(text(statement), parameters).scalars())

    def current_app(self) -> App:
        """Return the app as it is now."""
        with self.engine.connect() as connection:
            app = apps.load(connection, self.app.app_id)
        assert app is not None
        return app

    @contextmanager
    def worker(self) -> Iterator[Worker]:
        """Run a worker's engine in this process, without a broker."""
        worker = Worker(WorkerEngine(self.settings, self.registry))
        worker.engine.start()
        try:
            yield worker
        finally:
            worker.stop()


class Worker:
    """A worker's engine, with threads in place of Celery's pool."""

    def __init__(self, engine: WorkerEngine) -> None:
        self.engine = engine
        self._pool = ThreadPoolExecutor(8)
        self._stopped = False

    def run(self, jobs: Sequence[RefreshJob]) -> None:
        """Run jobs at once and return when all have ended."""
        for future in [self.submit(job) for job in jobs]:
            future.result(30)

    def submit(self, job: RefreshJob) -> Future[None]:
        """Begin a job."""
        return self._pool.submit(self.engine.run, job)

    def stop(self) -> None:
        """Warm shutdown."""
        if not self._stopped:
            self._stopped = True
            self.engine.stop()
            self._pool.shutdown()


def _sha256(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def eventually(condition: Callable[[], bool], *, within: float = 20.0, what: str = "") -> None:
    """Return once ``condition`` holds; fail when it does not hold in time."""
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, f"not within {within:g} s: {what or condition}"
        time.sleep(0.02)
