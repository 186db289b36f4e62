"""The scheduler process: its composition root, its signals, its end."""

from __future__ import annotations

import signal
import time
from datetime import timedelta
from types import FrameType
from typing import Final

from redis import Redis

from providers import load_registry
from scheduler.coming_hour import ComingHour
from scheduler.loop import Scheduler
from scheduler.on_demand import OnDemand
from scheduler.publisher import Publisher
from scheduler.relay import Relay
from scheduler.unsealing_watch import UnsealingWatch
from scheduler.watch import STOP_SECONDS, Watch
from store.circuits import CircuitView
from store.engine import (
    IDLE_IN_TRANSACTION_MS,
    LOCK_TIMEOUT_MS,
    STATEMENT_TIMEOUT_MS,
    check_ready,
    make_engine,
)
from tokenfleet import telemetry
from tokenfleet.broker import BROKER_SOCKET_SECONDS, make_celery
from tokenfleet.errors import UserError
from tokenfleet.health import Health, HealthServer
from tokenfleet.settings import Settings, process_name
from tokenfleet.telemetry import Event

BROKER_EXCHANGES: Final = 3
"""What a tick says to the broker: how long is the queue, a job, the job again on a new connection."""
RELAY_STOP_SECONDS: Final = 2
"""How long the rounds of the relay and of requests are waited for after that. What they have claimed and not sent is
due again by itself."""
REDIS_TIMEOUT_SECONDS: Final = 1.0
LONGEST_STOP_SECONDS: Final = (
    BROKER_EXCHANGES * BROKER_SOCKET_SECONDS
    + STATEMENT_TIMEOUT_MS / 1000
    + 2 * LOCK_TIMEOUT_MS / 1000
    # A connection to Redis and what it says of the circuits; then the threads beside the ticks.
    + 2 * REDIS_TIMEOUT_SECONDS
    + STOP_SECONDS
    + RELAY_STOP_SECONDS
)
"""How long a scheduler may take to stop, everything around it being slow: the tick at hand is finished, so that what
it has claimed is sent or given back. Killed sooner, it loses nothing; those accounts wait for their claim to end."""


def serve(settings: Settings) -> None:
    """Run a scheduler until SIGTERM or SIGINT.

    Raises :class:`UserError` in one sentence when it cannot start.
    """
    tunables = settings.tunables
    registry = load_registry(settings.providers_dir, allow_http=tunables.allow_http_providers)
    name = process_name()
    engine = make_engine(
        settings.database_url,
        application_name=f"tokenfleet scheduler {name}",
        idle_in_transaction_ms=IDLE_IN_TRANSACTION_MS,
    )
    check_ready(engine, max_clock_skew=timedelta(seconds=tunables.max_clock_skew_seconds))
    publisher = Publisher(
        make_celery(settings),
        claim=timedelta(seconds=tunables.claim_seconds),
        max_clock_skew=timedelta(seconds=tunables.max_clock_skew_seconds),
    )
    if not publisher.broker_answers():
        raise UserError(
            "the broker does not answer: start it, or correct TOKENFLEET_BROKER_URL or TOKENFLEET_REDIS_URL"
        )
    redis = Redis.from_url(
        settings.redis_url,
        socket_timeout=REDIS_TIMEOUT_SECONDS,
        socket_connect_timeout=REDIS_TIMEOUT_SECONDS,
    )
    circuits = CircuitView(redis, prefix=tunables.redis_prefix)
    scheduler = Scheduler(engine, registry, circuits, publisher, tunables)
    on_demand = OnDemand(
        make_engine(
            settings.database_url,
            application_name=f"tokenfleet on-demand {name}",
            idle_in_transaction_ms=IDLE_IN_TRANSACTION_MS,
        ),
        Publisher(
            make_celery(settings),
            claim=timedelta(seconds=tunables.claim_seconds),
            max_clock_skew=timedelta(seconds=tunables.max_clock_skew_seconds),
        ),
        scheduler.open_apps,
        claim=timedelta(seconds=tunables.claim_seconds),
    )
    watch = Watch(
        engine,
        ComingHour(engine, registry),
        circuits.read,
        unsealings=UnsealingWatch(engine, retention_days=tunables.history_retention_days),
    )

    relay = Relay(
        make_engine(
            settings.database_url,
            application_name=f"tokenfleet relay {name}",
            pool_size=1,
            idle_in_transaction_ms=IDLE_IN_TRANSACTION_MS,
        ),
        Publisher(
            make_celery(settings),
            claim=tunables.webhook_claim,
            max_clock_skew=timedelta(seconds=tunables.max_clock_skew_seconds),
        ),
        tunables,
    )

    def health() -> Health:
        found = scheduler.health()
        problems = (watch.problem(), relay.trouble(), on_demand.trouble())
        beside = (problem for problem in problems if problem is not None)
        return Health(found.fatal, (*found.hampering, *beside))

    def stop(_number: int, _frame: FrameType | None) -> None:
        scheduler.stop()
        on_demand.stop()
        relay.stop()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    server = None
    if tunables.metrics_port:
        server = HealthServer(tunables.metrics_host, tunables.metrics_port, health)
    watch.start()
    telemetry.logger().info(Event.PROCESS_STARTED.value, role="scheduler", name=name)
    relay.start()
    on_demand.start()
    scheduler.run()
    on_demand.stop()
    relay.stop()
    ends = time.monotonic() + RELAY_STOP_SECONDS
    for part in (relay, on_demand):
        part.join(max(ends - time.monotonic(), 0.0))
    watch.stop()
    publisher.close()
    if server is not None:
        server.stop()
    engine.dispose()
    telemetry.logger().info(Event.PROCESS_STOPPED.value, role="scheduler", name=name)
