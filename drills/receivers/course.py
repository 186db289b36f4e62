"""One run: a fleet that refreshes and tells, first with one healthy receiver, then with all the others beside it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from sqlalchemy import text

from chaos.points import Role
from chaos.processes import ROOT, Child
from chaos.world import World
from drills.receivers.roster import DISABLED, HEALTHY, KINDS, Kind, Pace
from embedded.process import Launch, OwnedProcess, StopStep
from store import endpoints
from tokenfleet.errors import UserError
from tokenfleet.jobs import EndpointId

ACCESS_SECONDS: Final = 60
REFRESHED: Final = 400
"""Accounts that are refreshed all the while: each every 15 seconds or so."""
TALKED_OF: Final = 40
"""Accounts that events are about."""
EVENTS_AT_ONCE: Final = 5
TELL_EVERY_SECONDS: Final = 0.25
SAMPLE_EVERY_SECONDS: Final = 0.5
START_SECONDS: Final = 60.0
SETTLE_SECONDS: Final = 120.0
"""So long at most those that take everything may need for what waits for them in the end."""
STOP_SECONDS: Final = 60.0

_TELL: Final = text("""
    INSERT INTO tokenfleet.outbox (account_id, event_type, payload)
    SELECT account, 'integrated_account:reactivated',
           jsonb_build_object('id', account, 'number', number, 'external_id', 'talked-' || account,
                              'integration_name', 'sandbox', 'tenant', 'drill', 'environment', 'production',
                              'status', 'active')
    FROM unnest(CAST(:accounts AS bigint[]), CAST(:numbers AS int[])) AS told (account, number)
""")
_DUE: Final = text("""
    SELECT account_id, extract(epoch FROM next_refresh_at)::float8 AS due FROM tokenfleet.refresh_schedule
    WHERE next_refresh_at IS NOT NULL
""")
_OVERDUE: Final = """
    SELECT count(*) FROM tokenfleet.refresh_schedule
    WHERE next_refresh_at < clock_timestamp() - interval '1 second'
"""
_UP: Final = """
    SELECT count(DISTINCT application_name) FROM pg_stat_activity
    WHERE application_name SIMILAR TO 'tokenfleet (worker|webhooks|scheduler) %'
"""
_WAITING: Final = """
    SELECT count(*) FROM tokenfleet.webhook_deliveries
    WHERE state = 'pending' AND endpoint_id = ANY (CAST(:ids AS bigint[]))
"""
_SINCE_DAYS: Final = text("""
    UPDATE tokenfleet.webhook_endpoints SET failing_since = failing_since - interval '3 days'
    WHERE id = :id AND failing_since IS NOT NULL
""")


class Far:
    """The process of the receivers, from ``with`` to its end."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "drills.receivers.server", str(self._pace.hour)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        self.ports: dict[str, int] = self._answer()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def ask(self, order: str) -> Any:
        """Give an order and return the answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(order + "\n")
        self._process.stdin.flush()
        return self._answer()

    def url(self, kind: Kind) -> str:
        """Return where a receiver is reached."""
        return f"http://{kind.host}:{self.ports[kind.name]}/{kind.name}"

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise UserError("the receivers ended; they need 127.0.0.1 and 127.0.0.2 to listen on")
        return json.loads(line)


class Course:
    """Performs the drill in a world; what it leaves behind is there to be gathered."""

    def __init__(self, world: World, far: Far, pace: Pace, say: Callable[[str], None]) -> None:
        self._world = world
        self._far = far
        self._pace = pace
        self._say = say
        self.endpoints: dict[str, EndpointId] = {}
        self.due: dict[int, list[float]] = {}
        """Every moment at which each account was seen to be due."""
        self.connections: Path = world.home / "connections"
        self.log: Path = world.home / "webhooks.log"
        self.troubles: list[str] = []
        self.phases: list[float] = []
        """When the quiet began, the trouble, and when it ended."""
        self._numbers = 0
        self._sampled = self._told = 0.0

    def run(self) -> None:
        """Do everything; returns when the fleet has stopped."""
        world, hour = self._world, self._pace.hour
        subjects = [f"refreshed-{number:04d}" for number in range(REFRESHED)]
        world.take_in(world.provider.sign_in(subjects, seconds_left=(45.0, float(ACCESS_SECONDS))))
        fleet = [world.start(Role.SCHEDULER), world.start(Role.WORKER)]
        webhooks = self._start_webhooks()
        try:
            self._until(lambda: world.column(_UP) == [3], START_SECONDS, "the fleet did not come up")
            self._until(lambda: world.column(_OVERDUE) == [0], START_SECONDS, "the fleet does not keep up")
            self._add(HEALTHY)
            self._phase(f"the quiet before: one healthy receiver, for {hour:g} s", hour)
            self._add(*(kind.name for kind in KINDS if kind.name != HEALTHY))
            self._phase(f"all of them: {hour:g} s, in which an hour's waits pass", hour / 2)
            with world.engine.begin() as connection:
                connection.execute(_SINCE_DAYS, {"id": self.endpoints[DISABLED]})
            self._wait(hour / 2)
            self.phases.append(time.time())
            self._far.ask("over")
            self._say("the hour is over: until those that live have everything")
            self._settle()
        finally:
            self._stop(fleet, webhooks)

    def _start_webhooks(self) -> OwnedProcess:
        self.connections.touch()
        argv = (sys.executable, "-m", "drills.receivers.worker", str(self._pace.hour), str(self.connections))
        return OwnedProcess(Launch(argv, self._world.environ, self.log, cwd=ROOT))

    def _add(self, *names: str) -> None:
        world = self._world
        with world.engine.begin() as connection:
            for kind in KINDS:
                if kind.name in names:
                    added, _ = endpoints.add(connection, world.vault.refresh, url=self._far.url(kind))
                    self.endpoints[kind.name] = added.endpoint_id

    def _phase(self, sentence: str, seconds: float) -> None:
        self._say(sentence)
        self.phases.append(time.time())
        self._wait(seconds)

    def _wait(self, seconds: float) -> None:
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            self._step(tell=True)

    def _settle(self) -> None:
        ids = [self.endpoints[kind.name] for kind in KINDS if kind.end.value == "takes all"]
        ends = time.monotonic() + SETTLE_SECONDS
        while self._world.column(_WAITING, ids=ids) != [0] and time.monotonic() < ends:
            self._step(tell=False)

    def _until(self, condition: Callable[[], bool], seconds: float, trouble: str) -> None:
        ends = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > ends:
                raise UserError(trouble)
            self._step(tell=False)

    def _step(self, *, tell: bool) -> None:
        now = time.monotonic()
        if now - self._sampled >= SAMPLE_EVERY_SECONDS:
            self._sampled = now
            self._sample()
        if tell and now - self._told >= TELL_EVERY_SECONDS:
            self._told = now
            self._tell()
        time.sleep(0.02)

    def _tell(self) -> None:
        numbers = range(self._numbers, self._numbers + EVENTS_AT_ONCE)
        self._numbers += EVENTS_AT_ONCE
        with self._world.engine.begin() as connection:
            connection.execute(
                _TELL,
                {"accounts": [number % TALKED_OF + 1 for number in numbers], "numbers": list(numbers)},
            )

    def _sample(self) -> None:
        with self._world.engine.connect() as connection:
            for row in connection.execute(_DUE):
                moments = self.due.setdefault(row.account_id, [])
                if row.due not in moments[-1:]:
                    moments.append(row.due)

    def _stop(self, fleet: list[Child], webhooks: OwnedProcess) -> None:
        died = webhooks.exit_code is not None or any(not child.is_alive for child in fleet)
        self._world.processes.stop(*fleet)
        webhooks.stop((StopStep(signal.SIGTERM, STOP_SECONDS),))
        if died or webhooks.exit_code or any(child.exit_code for child in fleet):
            self.troubles.append("a process of the fleet ended by itself, or with an error")
