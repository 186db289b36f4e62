"""A reader with a database, a fleet and a clock that are made up: its exchanges are performed without any I/O."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TypeVar

import psycopg

from tokenfleet_client import queries
from tokenfleet_client.contract import Answer
from tokenfleet_client.envelope import DataKeys, KeyEncryptionKey, Ring, access_token_binding
from tokenfleet_client.exchange import FAILURES, Call, Exchange, Query, Result, Step, Wait
from tokenfleet_client.queries import Reply, TokenRow
from tokenfleet_client.reading import MIN_VALIDITY, Need, Reader

T = TypeVar("T")
NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
NAMES = {
    queries.READ_BY_ID: "read",
    queries.READ_BY_NAMES: "read",
    queries.READ_PAGE: "page",
    queries.READ_KEYS: "keys",
    queries.ASK_FOR_REFRESH: "ask",
    queries.SAY_UNAUTHORIZED: "report",
    queries.SAY_OPENED: "told",
}


@dataclass
class Stage:
    """Account 7 and what happens to it. ``now`` is the monotonic clock; waiting lets it pass."""

    cache_size: int = 100
    now: float = 1000.0
    steps: list[str] = field(default_factory=list)
    waited: list[float] = field(default_factory=list)
    away_until: float = 0.0
    """The database answers nothing before that moment."""
    refused: psycopg.Error | None = None
    """What every statement but a reading one meets."""
    answer: Answer = Answer.REQUESTED
    retry_in: float | None = None
    key_id: int = 1

    def __post_init__(self) -> None:
        self.kek = KeyEncryptionKey.generate("reader")
        self.data_keys = {1: bytes(32)}
        self.reader = Reader([self.kek], caller="billing", cache_size=self.cache_size, clock=lambda: self.now)
        self.row: TokenRow | None = None
        self.told: list[tuple[object, ...]] = []
        self._events: list[tuple[float, Callable[[], None], bool]] = []
        self.hold(1)

    def hold(self, generation: int, *, lives: float | None = 3600.0, status: str = "active") -> None:
        """Have a token of this generation in the database that lives for so many seconds from now."""
        sealed = DataKeys(Ring.ACCESS, self.data_keys, self.key_id).seal(
            f"access-{generation}", access_token_binding(7, generation)
        )
        self._ends = None if lives is None else self.now + lives
        self.row = TokenRow(
            account_id=7, provider="acme", environment="production", external_id="c-7", tenant=None, status=status,
            status_reason=None, access_token=sealed, token_type="bearer", scope=None,
            expires_at=None if lives is None else NOW + timedelta(seconds=lives), generation=generation,
            variables={"instance_url": "https://c-7.example"}, failing_since=None, last_error=None, expires_in=lives,
        )  # fmt: skip

    def alter(self, **columns: object) -> None:
        """Change columns of the row."""
        assert self.row is not None
        self.row = TokenRow(**self.row._asdict() | columns)

    def after(self, seconds: float, event: Callable[[], None], *, heard: bool = False) -> None:
        """Let something happen so many seconds from now; ``heard``, the fleet says so."""
        self._events.append((self.now + seconds, event, heard))

    def need(self, **differing: object) -> Need:
        """Return what a caller wants by default."""
        values = {"account": 7, "min_validity": MIN_VALIDITY, "timeout": timedelta(seconds=10)} | differing
        return Need(**values)  # type: ignore[arg-type]

    def obtain(self, **differing: object) -> str:
        """Perform one whole exchange; returns the token's value."""
        return self.perform(self.reader.obtain(self.need(**differing))).value.reveal()

    def perform(self, exchange: Exchange[T]) -> T:
        """Perform an exchange to its end."""
        try:
            step = next(exchange)
            while True:
                try:
                    result = self._result(step)
                except FAILURES as error:
                    step = exchange.throw(error)
                else:
                    step = exchange.send(result)
        except StopIteration as end:
            value: T = end.value
            return value

    def _result(self, step: Step) -> Result:
        if isinstance(step, Wait):
            return self._wait(step)
        if isinstance(step, Call):
            step.function()
            return None
        self.steps.append(NAMES[step.statement])
        return self._rows(step)

    def _wait(self, step: Wait) -> bool:
        self.waited.append(step.seconds)
        until = self.now + step.seconds
        for event in sorted(self._events, key=lambda each: each[0]):
            moment, act, heard = event
            if moment > until:
                break
            self._events.remove(event)
            self.now = max(self.now, moment)
            act()
            if heard and step.account_id == 7:
                return True
        self.now = until
        return False

    def _rows(self, step: Query) -> list[tuple[object, ...]]:
        name = NAMES[step.statement]
        if self.now < self.away_until:
            raise psycopg.OperationalError("connection refused")
        if self.refused is not None and name not in {"read", "page", "keys"}:
            raise self.refused
        if name == "keys":
            return [
                (key_id, "reader", self.kek.wrap(key, Ring.ACCESS, key_id), key_id == self.key_id)
                for key_id, key in self.data_keys.items()
            ]
        if name == "told":
            self.told.append(tuple(step.parameters))
            return [("",)]
        if self.row is None:
            return []
        row = self.row._replace(expires_in=None if self._ends is None else self._ends - self.now)
        if name in {"read", "page"}:
            after = step.parameters[0]
            return [tuple(row)] if name == "read" or after == 0 else []
        retry_at = None if self.retry_in is None else NOW + timedelta(seconds=self.retry_in)
        return [
            tuple(
                Reply(
                    self.answer.value, row.status, row.status_reason, row.generation, row.expires_at, retry_at,
                    row.last_error, self.retry_in,
                )
            )
        ]  # fmt: skip
