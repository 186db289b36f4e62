"""The worker's composition root: what is built, in which order, and when it is refused.

Everything is built by :meth:`Process.start` in the process that uses it, after Celery has started; before
that, :func:`preflight` says in one sentence what would make the worker useless.
"""

from __future__ import annotations

import resource
import threading
from collections.abc import Sequence
from datetime import timedelta

from redis import Redis
from redis.exceptions import RedisError

from providers import Registry, load_registry
from store.engine import check_ready, make_engine
from tokenfleet import telemetry
from tokenfleet.errors import UserError
from tokenfleet.health import Health, HealthServer
from tokenfleet.jobs import ON_DEMAND_QUEUE, QUEUES, REFRESH_QUEUE
from tokenfleet.settings import Settings, redact_url
from tokenfleet.telemetry import Event
from workers.engine import Engine
from workers.webhook_engine import WebhookEngine


def preflight(settings: Settings) -> None:
    """Return when Postgres, its schema, the clocks and Redis are fit for work.

    Raises :class:`UserError` in one sentence otherwise.
    """
    engine = make_engine(settings.database_url, application_name="tokenfleet preflight")
    try:
        check_ready(engine, max_clock_skew=timedelta(seconds=settings.tunables.max_clock_skew_seconds))
    finally:
        engine.dispose()
    check_redis(settings.redis_url)


def check_redis(url: str) -> None:
    """Return when Redis answers. Raises :class:`UserError` otherwise."""
    try:
        with Redis.from_url(url, socket_connect_timeout=5, socket_timeout=5) as client:
            client.ping()
    except (RedisError, OSError) as error:
        raise UserError(
            f"Redis at {redact_url(url)} does not answer ({type(error).__name__}): start it, or correct "
            "TOKENFLEET_REDIS_URL"
        ) from error


def _allow_many_files() -> None:
    """Raise the soft limit of open files to the hard one: shells give 1,024, fewer than calls in flight."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class Process:
    """This worker process: what serves its queues, and its health server.

    Each queue has an engine of its own. That of webhooks is built at the first job in a worker that also refreshes,
    so that it costs nothing where no webhook is sent.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._engine: Engine | None = None
        self._webhooks: WebhookEngine | None = None
        self._building = threading.Lock()
        self._health: HealthServer | None = None
        self._stopping = False

    @property
    def engine(self) -> Engine:
        """The running engine. Celery delivers no task before :meth:`start` has returned."""
        if self._engine is None:
            raise RuntimeError(f"this worker does not serve the queue {REFRESH_QUEUE!r}, or has not started")
        return self._engine

    @property
    def webhooks(self) -> WebhookEngine:
        """The running engine of webhooks, started when it is first asked for."""
        with self._building:
            if self._webhooks is None:
                engine = WebhookEngine(self.settings)
                engine.start()
                if self._stopping:
                    engine.stop_sending()
                self._webhooks = engine
            return self._webhooks

    def registry(self) -> Registry:
        """Load the provider definitions. Raises ``DefinitionError`` with every mistake."""
        return load_registry(
            self.settings.providers_dir, allow_http=self.settings.tunables.allow_http_providers
        )

    def start(self, queues: Sequence[str] = QUEUES) -> None:
        """Check, build and replay what ``queues`` need; returns when jobs may run. Raises :class:`UserError`."""
        preflight(self.settings)
        _allow_many_files()
        if REFRESH_QUEUE in queues or ON_DEMAND_QUEUE in queues:
            engine = Engine(self.settings, self.registry())
            engine.start()
            self._engine = engine
            name = engine.name
        else:
            name = self.webhooks.name
        tunables = self.settings.tunables
        if tunables.metrics_port:
            self._health = HealthServer(tunables.metrics_host, tunables.metrics_port, self.health)
        telemetry.logger().info(Event.PROCESS_STARTED.value, role="worker", name=name)

    def stop_asking(self) -> None:
        """Begin no request from now on. Safe in a signal handler, and repeatable."""
        self._stopping = True
        if self._engine is not None:
            self._engine.stop_asking()
        if self._webhooks is not None:
            self._webhooks.stop_sending()

    def stop(self) -> None:
        """Finish what is in flight and close."""
        if self._health is not None:
            self._health.stop()
        name = None
        if self._engine is not None:
            name = self._engine.name
            self._engine.stop()
            self._engine = None
        if self._webhooks is not None:
            name = name or self._webhooks.name
            self._webhooks.stop()
            self._webhooks = None
        if name is not None:
            telemetry.logger().info(Event.PROCESS_STOPPED.value, role="worker", name=name)

    def health(self) -> Health:
        """Return what is wrong now."""
        engine, webhooks = self._engine, self._webhooks
        if engine is None and webhooks is None:
            return Health(fatal=("the worker is starting or stopping",))
        fatal, hampering = engine.problems() if engine is not None else ([], [])
        troubles = webhooks.problems() if webhooks is not None else []
        return Health(
            (*fatal, *(troubles if engine is None else ())), (*hampering, *(troubles if engine else ()))
        )
