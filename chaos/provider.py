"""The authorization server of a run, in a process of its own, and its ledger and record, over HTTP.

Strict: it rotates always, has no grace, and reuse revokes the family. Any second presentation is therefore
seen, and costs the account.
"""

from __future__ import annotations

import http.client
import json
import signal
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self
from urllib.parse import quote

from embedded.ports import LOOPBACK, free_port
from embedded.process import Launch, OwnedProcess, StopStep, wait_until
from sandbox.authority import LiveTokens, LossReport, ViolationReport
from sandbox.config import SandboxConfig
from sandbox.definition import PROVIDER_NAME
from sandbox.faults import FaultRule
from sandbox.ledger import ViolationKind
from sandbox.traffic import Arrival, Wait
from tokenfleet.errors import UserError

READY_SECONDS: Final = 30.0
CALL_SECONDS: Final = 60.0
LOSSES_PER_CALL: Final = 2_000
"""aiohttp takes bodies of up to 1 MiB."""


@dataclass(frozen=True, slots=True)
class Totals:
    """What the ledger has counted so far."""

    refreshes: int
    presented_twice: int
    rotations_lost: int


@dataclass(frozen=True, slots=True)
class Record:
    """When requests came for the subjects of one prefix, and what they were told to wait for."""

    arrivals: Sequence[Arrival]
    waits: Sequence[Wait]
    forgotten: int
    """How many of both are not remembered any more."""


class Provider:
    """The sandbox, from ``with`` to its end. May be used from any thread."""

    def __init__(self, directory: Path, environ: dict[str, str], config: SandboxConfig) -> None:
        """``config`` says how long tokens live, how long answers take, and the seed; the rest is the strict one."""
        self.config: Final = config
        self._directory = directory
        self._environ = environ
        self._port = free_port()
        self._lock = threading.Lock()
        self.url: Final = f"http://{LOOPBACK}:{self._port}"

    def __enter__(self) -> Self:
        config = self.config
        argv = (
            *(sys.executable, "-m", "cli", "sandbox", "--port", str(self._port), "--seed", str(config.seed)),
            *("--lifetime", str(config.access_lifetime_seconds)),
            *("--latency-ms", str(config.latency_seconds[0] * 1000)),
        )
        root = Path(__file__).resolve().parent.parent
        launch = Launch(argv, self._environ, self._directory / "sandbox.log", cwd=root)
        self._process = OwnedProcess(launch)
        if not wait_until(self._answers, deadline_seconds=READY_SECONDS):
            last_words = self._process.log_tail()
            self.__exit__(None, None, None)
            raise UserError(f"the sandbox did not come up; its last words:\n{last_words}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:

        self._process.stop((StopStep(signal.SIGTERM, 5.0),))

    def sign_in(
        self,
        subjects: Sequence[str],
        *,
        provider: str = PROVIDER_NAME,
        seconds_left: tuple[float, float] | None = None,
    ) -> list[str]:
        """Sign customers in, anew if need be; returns lines to import for the definition named.

        ``seconds_left`` spreads the lives of their access tokens evenly over that range.
        """
        order = {"subjects": list(subjects), "provider": provider, "seconds_left": seconds_left}
        return self._lines("POST", "grants", order)

    def revoke(self, subjects: Sequence[str]) -> frozenset[str]:
        """Let customers end their grants; returns those that had a living one."""
        answer = self._call("POST", "revoke", {"subjects": list(subjects)})
        return frozenset(subjects) - set(json.loads(answer)["not_living"])

    def totals(self) -> Totals:
        """Return the ledger's totals."""
        totals = json.loads(self._call("GET", "ledger"))
        return Totals(totals["refreshes"], totals["presented_twice"], totals["rotations_lost"])

    def struck(self) -> int:
        """Return how many requests have met a fault so far."""
        return sum(json.loads(self._call("GET", "faults"))["struck"].values())

    def live(self) -> list[LiveTokens]:
        """Return fingerprints of every subject's live tokens."""
        return [LiveTokens(**json.loads(line)) for line in self._lines("GET", "ledger/live")]

    def losses(self) -> list[LossReport]:
        """Return each answer that was ever lost."""
        return [LossReport(**json.loads(line)) for line in self._lines("GET", "losses")]

    def violations(self) -> list[ViolationReport]:
        """Return every presentation that should not have been."""
        found = [json.loads(line) for line in self._lines("GET", "violations")]
        return [ViolationReport(**each | {"kind": ViolationKind(each["kind"])}) for each in found]

    def declare_lost(self, losses: Sequence[tuple[str, str]]) -> int:
        """Tell the ledger of answers that died with a process: subject and fingerprint of what was presented.

        Returns how many of them had been given at all.
        """
        lost = 0
        for start in range(0, len(losses), LOSSES_PER_CALL):
            part = losses[start : start + LOSSES_PER_CALL]
            body = [{"subject": subject, "refresh_token_sha256": token} for subject, token in part]
            lost += json.loads(self._call("POST", "losses", {"losses": body}))["lost"]
        return lost

    def watch(self, prefixes: Sequence[str]) -> None:
        """Note from now on when requests come for subjects of these prefixes."""
        self._call("POST", "traffic", {"prefixes": list(prefixes)})

    def record(self, prefix: str) -> Record:
        """Return what is known of the requests for a watched prefix."""
        totals, *events = map(json.loads, self._lines("GET", f"traffic?prefix={quote(prefix)}"))
        return Record(
            [Arrival(**event) for event in events if "seconds_left" in event],
            [Wait(**event) for event in events if "until" in event],
            totals["forgotten"],
        )

    def open_door(self, port: int = 0) -> tuple[int, str]:
        """Listen on one more port, 0 for any; returns it, and the URL."""
        door = json.loads(self._call("POST", "doors", {"port": port}))
        return door["port"], door["url"]

    def close_door(self, port: int) -> None:
        """Refuse connections on that port."""
        self._call("DELETE", f"doors/{port}")

    def misbehave(self, *rules: FaultRule) -> None:
        """Put fault rules in force."""
        body = {"rules": [rule.model_dump(mode="json", exclude_defaults=True) for rule in rules]}
        self._call("POST", "faults", body)

    def behave(self) -> None:
        """End all fault rules."""
        self._call("DELETE", "faults")

    def _answers(self) -> bool:
        try:
            self._call("GET", "held")
        except OSError:
            return False
        return True

    def _lines(self, method: str, path: str, body: object = None) -> list[str]:
        return self._call(method, path, body).decode().splitlines()

    def _call(self, method: str, path: str, body: object = None) -> bytes:
        with self._lock:
            connection = http.client.HTTPConnection(LOOPBACK, self._port, timeout=CALL_SECONDS)
            try:
                payload = None if body is None else json.dumps(body)
                connection.request(method, f"/sandbox/{path}", payload)
                response = connection.getresponse()
                answer = response.read()
            finally:
                connection.close()
        if response.status != 200:
            raise UserError(f"the sandbox refuses {method} {path}: {answer[:300].decode(errors='replace')}")
        return answer
