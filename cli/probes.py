"""Short looks at what a fleet needs, for ``status`` and ``doctor``: each says what is wrong, or nothing.

A probe changes nothing, waits a few seconds at most and never raises for what it looks at.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cli.gates import CircuitStatus
from tokenfleet.jobs import AppId
from tokenfleet.key_rings import KeyRing
from tokenfleet.settings import Settings, redact_url

if TYPE_CHECKING:
    from collections.abc import Sequence

    from redis import Redis

    from store.overview import Overview
    from store.unsealing_spikes import Spike
    from tokenfleet_client.envelope import WrappedKey

REDIS_SECONDS: Final = 3
DAMAGED: Final = "damaged"
"""Directory below the journals where unreadable segments are kept for a person."""


@dataclass(frozen=True, slots=True)
class JournalStatus:
    """One journal on this machine. ``abandoned``: its process is gone, and its answers wait to be adopted."""

    name: str
    bytes: int
    abandoned: bool
    damaged: bool


@dataclass(frozen=True, slots=True)
class FleetStatus:
    """Everything ``status`` knows. ``fleet`` is None when Postgres does not answer; ``problems`` says why.

    ``circuits`` are those that are not closed; None when Redis, which keeps them, does not answer. ``journals`` are
    those on this machine; None when this user may not read them. ``unsealing_spikes`` are those that last.
    """

    fleet: Overview | None
    circuits: Sequence[CircuitStatus] | None
    journals: Sequence[JournalStatus] | None
    problems: Sequence[str]
    unsealing_spikes: Sequence[Spike] = ()


def redis_problem(settings: Settings) -> str | None:
    """Return what to do about a Redis that does not answer, None when it does."""
    from redis.exceptions import RedisError

    try:
        with _redis(settings) as client:
            client.ping()
    except (RedisError, OSError) as error:
        others = "and those that run go on more slowly" if _has_broker(settings) else "and no job reaches one"
        return (
            f"Redis at {redact_url(settings.redis_url)} does not answer ({type(error).__name__}): start it, or "
            f"correct TOKENFLEET_REDIS_URL; until then no worker starts, {others}"
        )
    return None


def circuits(settings: Settings, app_ids: Sequence[AppId], now: datetime) -> list[CircuitStatus] | None:
    """Return the circuits of these apps that are not closed; None when Redis does not answer.

    ``now`` is the database's clock, from which the moment of the next try is told.
    """
    from store.circuits import CircuitView
    from tokenfleet.circuit import CircuitState

    with _redis(settings) as client:
        standings = CircuitView(client, prefix=settings.tunables.redis_prefix).read(app_ids)
    if standings is None:
        return None
    return [
        CircuitStatus(
            app_id=app_id,
            state=standing.state.value,
            until=now + timedelta(milliseconds=standing.remaining_ms)
            if standing.state is CircuitState.OPEN
            else None,
        )
        for app_id, standing in standings.items()
        if standing.state is not CircuitState.CLOSED
    ]


def _redis(settings: Settings) -> Redis:
    from redis import Redis

    return Redis.from_url(
        settings.redis_url, socket_connect_timeout=REDIS_SECONDS, socket_timeout=REDIS_SECONDS
    )


def _has_broker(settings: Settings) -> bool:
    """Answer whether jobs travel by something else than Redis as it is set for everything."""
    return settings.broker_url != settings.redis_url


def broker_problem(settings: Settings) -> str | None:
    """Return what to do about a broker that does not answer, None when it does."""
    from scheduler.publisher import Publisher
    from tokenfleet.broker import make_celery

    claim = timedelta(seconds=settings.tunables.claim_seconds)
    if Publisher(make_celery(settings), claim=claim).broker_answers():
        return None
    return (
        f"the broker at {redact_url(settings.broker_url)} does not answer: start it, or correct "
        "TOKENFLEET_BROKER_URL; until then no job reaches a worker"
    )


def server_problems(settings: Settings) -> Iterator[str]:
    """Yield what to do about Redis, and about the broker if that is another one."""
    if (problem := redis_problem(settings)) is not None:
        yield problem
    if _has_broker(settings) and (problem := broker_problem(settings)) is not None:
        yield problem


def ring_problem(ring: KeyRing, wrapped: Sequence[WrappedKey]) -> str | None:
    """Return what to do when this process cannot use ``ring``, None when it can or the ring is empty."""
    from tokenfleet_client.envelope import unwrap_ring
    from tokenfleet_client.errors import EnvelopeError, KeyServiceUnavailable

    if not ring.keys:
        return (
            f"no key-encryption key for the {ring.ring.value} ring is configured: set TOKENFLEET_KEYS_FILE "
            "to your key file, or make one with 'tokenfleet keys generate'"
        )
    if not any(key.ring is ring.ring for key in wrapped):
        return None
    try:
        unwrap_ring(ring.ring, wrapped, ring.keys)
    except EnvelopeError as error:
        return f"{error}: point TOKENFLEET_KEYS_FILE at the key file this database was set up with"
    except KeyServiceUnavailable as error:
        return str(error)
    return None


def journals(root: Path) -> tuple[JournalStatus, ...] | None:
    """Return the journals below ``root`` that hold answers; None when they may not be read from here."""
    from store.journal import summary
    from store.orphans import orphans

    try:
        abandoned: set[str] = set()
        for orphan in orphans(root):
            abandoned.add(orphan.directory.name)
            orphan.release()
        return tuple(
            JournalStatus(name, size, name in abandoned, name == DAMAGED)
            for name, size in summary(root).items()
            if size
        )
    except OSError:
        return None
