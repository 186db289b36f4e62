"""The world of the model: a fleet of three workers on one machine, its servers, a provider, and time.

Time is a number. Postgres is told it through two functions of its own (:data:`CLOCK`), Redis by the removal of
leases that have run out, the processes through their event loops; so a claim expires when a rule says so, and
nothing depends on how fast this machine is. Everything else is real.
"""

from __future__ import annotations

import io
import itertools
import json
import shutil
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, cast

import pytest
import structlog
from redis import Redis
from sqlalchemy import Connection, Engine, event, text

from cli.accounts_import import compose_rules
from providers import load_registry
from sandbox.definition import definition_toml
from scheduler.loop import Scheduler
from scheduler.publisher import Publisher
from store import apps, schedule
from store.answers import SavedTokens
from store.circuits import CircuitView
from store.import_source import ImportFormat, read_chunks
from store.imports import Importer
from store.keys import Vault
from tests.model.process import WorkerProcess
from tests.model.provider import Call, Fate, Policy, Server
from tokenfleet.jobs import AccountId, RefreshJob
from tokenfleet.settings import Settings
from tokenfleet_client.envelope import refresh_token_binding
from tokenfleet_client.secret import Secret

WORKERS: Final = 3
SUBJECTS: Final = ("ada", "bob")

CLOCK: Final = """
    CREATE SCHEMA model_clock;
    CREATE FUNCTION model_clock.now() RETURNS timestamptz STABLE LANGUAGE sql
        AS $$ SELECT CAST(current_setting('model.now') AS timestamptz) $$;
    CREATE FUNCTION model_clock.clock_timestamp() RETURNS timestamptz STABLE LANGUAGE sql
        AS $$ SELECT CAST(current_setting('model.now') AS timestamptz) $$;
    -- Named before pg_catalog, so that it is the clock of every statement that says now().
    DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET search_path = model_clock, public, pg_catalog',
                               current_database()); END $$;
    -- Accounts in the order of their ids, whatever vacuum has done to the tables: examples must repeat.
    DO $$ DECLARE setting text; BEGIN
        FOREACH setting IN ARRAY ARRAY['enable_seqscan', 'enable_hashjoin', 'enable_bitmapscan'] LOOP
            EXECUTE format('ALTER DATABASE %I SET %I = off', current_database(), setting);
        END LOOP; END $$;
"""


class Desk:
    """The broker, as a scheduler sees it: what it publishes lies here until a rule delivers or forgets it."""

    def __init__(self) -> None:
        self.jobs: list[RefreshJob] = []

    def publish(self, jobs: Sequence[RefreshJob]) -> list[RefreshJob]:
        self.jobs.extend(jobs)
        return []

    def waiting(self) -> int:
        return 0

    def broker_answers(self) -> bool:
        return True


@dataclass
class Customer:
    """One account and the person behind it."""

    subject: str
    account_id: AccountId
    line: bytes
    """What was imported last."""
    pending: bytes | None = None
    """A new sign-in that was not imported yet."""


@dataclass
class Clock:
    """The time of everybody: seconds since the world began."""

    now: float = 0.0
    began: datetime = field(default_factory=lambda: datetime.now(UTC))

    def moment(self) -> datetime:
        """Return the time as Postgres knows it."""
        return self.began + timedelta(seconds=self.now)


@dataclass
class World:
    """One example's world, in a database that it shares with the others, one after another."""

    engine: Engine
    vault: Vault
    settings: Settings
    redis: Redis
    policy: Policy
    journals: Path
    providers: Path
    clock: Clock
    redis_away: bool = False
    errors: list[str] = field(default_factory=list)
    """What ended up in an event loop's exception handler."""
    journalled: list[SavedTokens] = field(default_factory=list)
    """Every answer that reached a journal."""
    customers: list[Customer] = field(default_factory=list)
    processes: list[WorkerProcess] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.tunables = self.settings.tunables.model_copy(update={"group_commit_seconds": 0.0})
        self.server = Server(self.policy, lambda: self.now, self._has_given_up)
        self.providers.mkdir(exist_ok=True)
        (self.providers / "sandbox.toml").write_text(
            definition_toml("http://127.0.0.1:9", self.policy.config)
        )
        self.registry = load_registry(self.providers, allow_http=True)
        self.desk = Desk()
        self._leases: dict[str, float] = {}
        self._names: dict[int, Iterator[int]] = defaultdict(lambda: itertools.count(1))
        with self.engine.begin() as connection:
            # The app too: what it was rejected in another world counts there.
            for table in ("outbox", "account_events", "accounts", "oauth_apps"):
                connection.execute(text(f"DELETE FROM tokenfleet.{table}"))
            apps.register(
                connection,
                self.vault.refresh,
                provider="sandbox",
                environment="production",
                name="default",
                client_id=self.policy.config.client_id,
                client_secret=self.policy.config.client_secret,
                variables={},
            )
        self.redis.flushdb()
        self.scheduler = Scheduler(
            self.engine, self.registry, CircuitView(self.redis), cast(Publisher, self.desk), self.tunables
        )
        # Its patience after a start is of this machine's time, not of the world's.
        self.scheduler._take_over_from = 0.0
        for subject in SUBJECTS:
            self.sign_up(subject)
        for place in range(WORKERS):
            self.processes.append(self._new_process(place))
            self.processes[place].run()

    @property
    def now(self) -> float:
        """Seconds since the world began."""
        return self.clock.now

    # What people do

    def sign_up(self, subject: str) -> None:
        """A customer connects for the first time."""
        line = self._signed_in(subject)
        self._import(line)
        with self.engine.connect() as connection:
            found = connection.execute(
                text("SELECT id FROM tokenfleet.accounts WHERE external_id = :subject"), {"subject": subject}
            )
            self.customers.append(Customer(subject, AccountId(found.scalar_one()), line))

    def sign_in_again(self, customer: Customer) -> None:
        """A customer connects again at the provider; we hear of it with :meth:`import_pending`."""
        customer.pending = self._signed_in(customer.subject)

    def import_pending(self, customer: Customer) -> None:
        """Import the newest sign-in."""
        assert customer.pending is not None
        customer.line, customer.pending = customer.pending, None
        self._import(customer.line)

    def import_again(self, customer: Customer) -> None:
        """Import a line that was imported before."""
        self._import(customer.line)

    # What the fleet does

    def tick(self) -> None:
        """Somebody wants fresh tokens at once, and a scheduler looks."""
        with self.engine.begin() as connection:
            schedule.request_refresh(connection, [customer.account_id for customer in self.customers])
        self.scheduler.tick()

    def restart(self, place: int) -> None:
        """Put a new process in the place of a dead one."""
        assert not self.processes[place].alive
        self.processes[place] = self._new_process(place)

    def pass_time(self, seconds: float) -> None:
        """Let time pass, while whoever is not frozen does all that it can do."""
        self.run_all()
        end = self.now + seconds
        while self.now < end:
            running = [process for process in self.processes if process.alive and not process.frozen]
            timers = [timer for process in running if (timer := process.loop.next_timer()) is not None]
            # Not every hundredth of a second in which somebody polls: a busy process may be that slow.
            self.clock.now = min(max(min(timers, default=end), self.now + 0.25), end)
            for key in [key for key, until in self._leases.items() if until <= self.now]:
                self.lose_lease(key)
            self.run_all()

    def run_all(self) -> None:
        """Let every process that is not frozen go on until it has to wait."""
        while sum(process.run() for process in self.processes):
            pass

    def flush_redis(self) -> None:
        """Wipe Redis."""
        self.redis.flushdb()
        self._leases.clear()

    def leases(self) -> list[str]:
        """Return the keys of the leases there are."""
        return sorted(self._leases)

    def lose_lease(self, key: str) -> None:
        """Let one lease end."""
        self._leases.pop(key, None)
        self.redis.delete(key)

    def close(self) -> None:
        """End every process and remove the files."""
        for process in self.processes:
            if process.alive:
                process.kill()
        shutil.rmtree(self.journals, ignore_errors=True)

    # What the wires tell

    def note_leases(self, keys: Sequence[str], owner: str) -> None:
        """Note which of the leases of ``keys`` ``owner`` was given just now, and which are given back."""
        for key, holder in zip(keys, cast(list[bytes | None], self.redis.mget(keys)), strict=True):
            if holder is None:
                self._leases.pop(key, None)
            elif holder.decode() == owner:
                self._leases[key] = self.now + self.tunables.lease_seconds

    def note_journalled(self, process: str, answer: SavedTokens) -> None:
        """Note that an answer reached the journal of ``process``."""
        self.journalled.append(answer)
        assert answer.refresh_token is not None
        binding = refresh_token_binding(answer.account_id, answer.generation + 1)
        token = Secret(self.vault.refresh.open(answer.refresh_token, binding))
        ref = self.server.authority.mint.read_refresh_token(token)
        for call in self.server.calls:
            if call.asker == process and call.successor == ref and call.fate is Fate.UNREAD:
                call.fate = Fate.KEPT

    def _has_given_up(self, call: Call) -> bool:
        asker = next(process for process in self.processes if process.name == call.asker)
        return asker.frozen and self.now >= call.claim_ends

    def _new_process(self, place: int) -> WorkerProcess:
        return WorkerProcess(self, f"worker-{place + 1}-life-{next(self._names[place])}")

    def _signed_in(self, subject: str) -> bytes:
        tokens = self.server.authority.issue(subject).tokens
        assert tokens.refresh_token is not None
        line = {
            "provider": "sandbox",
            "external_id": subject,
            "access_token": tokens.access_token.reveal(),
            "refresh_token": tokens.refresh_token.reveal(),
            "expires_in": tokens.expires_in,
        }
        return json.dumps(line).encode()

    def _import(self, line: bytes) -> None:
        rules_of = compose_rules(self.registry)
        importer = Importer(self.engine, self.vault, rules_of, actor="person")
        chunks = read_chunks(
            io.BytesIO(line), ImportFormat.JSON_LINES, now=self.clock.moment(), rules_of=rules_of
        )
        for chunk in chunks:
            importer.write(chunk)


class Stage:
    """Where worlds come and go: one database, one Redis, one place for journals."""

    def __init__(self, engine: Engine, vault: Vault, settings: Settings, redis: Redis, home: Path) -> None:
        self._engine = engine
        self._vault = vault
        self._settings = settings
        self._redis = redis
        self._home = home
        self._clock = Clock()
        with engine.begin() as connection:
            connection.connection.cursor().execute(CLOCK)
        engine.dispose()
        event.listen(engine, "begin", self._tell_the_time)

    def new_world(self, policy: Policy) -> World:
        """Return a world in which nothing has happened yet but that two customers have signed up."""
        self._clock.now, self._clock.began = 0.0, datetime.now(UTC)
        return World(
            self._engine,
            self._vault,
            self._settings,
            self._redis,
            policy,
            self._home / "journals",
            self._home / "providers",
            self._clock,
        )

    def boottime(self) -> float:
        """Return the clock that the workers compare claims with."""
        return self._clock.now

    def _tell_the_time(self, connection: Connection) -> None:
        connection.exec_driver_sql(f"SET LOCAL model.now = '{self._clock.moment().isoformat()}'")


@contextmanager
def stage_of(engine: Engine, vault: Vault, settings: Settings, redis: Redis, home: Path) -> Iterator[Stage]:
    """Yield a stage on a test's own database; the workers' clock is the world's while it lasts."""
    stage = Stage(engine, vault, settings, redis, home)
    with pytest.MonkeyPatch.context() as patch:
        for module in ("refresh", "keeping", "settling"):
            patch.setattr(f"workers.{module}.boottime", stage.boottime)
        with structlog.testing.capture_logs():
            yield stage
