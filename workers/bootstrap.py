"""The worker's composition root: what is built, in which order, and when it is refused.

Everything is built by :meth:`Process.start` in the process that uses it, after Celery has started; before
that, :func:`preflight` says in one sentence what would make the worker useless.
"""

from __future__ import annotations

import resource
from datetime import timedelta

from redis import Redis
from redis.exceptions import RedisError

from providers import Registry, load_registry
from store.engine import check_ready, make_engine
from tokenfleet import telemetry
from tokenfleet.errors import UserError
from tokenfleet.health import Health, HealthServer
from tokenfleet.settings import Settings, redact_url
from tokenfleet.telemetry import Event
from workers.engine import Engine


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
    """This worker process: its engine and its health server."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._engine: Engine | None = None
        self._health: HealthServer | None = None

    @property
    def engine(self) -> Engine:
        """The running engine. Celery delivers no task before :meth:`start` has returned."""
        if self._engine is None:
            raise RuntimeError("the worker has not started")
        return self._engine

    def registry(self) -> Registry:
        """Load the provider definitions. Raises ``DefinitionError`` with every mistake."""
        return load_registry(
            self.settings.providers_dir, allow_http=self.settings.tunables.allow_http_providers
        )

    def start(self) -> None:
        """Check, build and replay; returns when jobs may run. Raises :class:`UserError`."""
        preflight(self.settings)
        _allow_many_files()
        engine = Engine(self.settings, self.registry())
        engine.start()
        self._engine = engine
        tunables = self.settings.tunables
        if tunables.metrics_port:
            self._health = HealthServer(tunables.metrics_host, tunables.metrics_port, self.health)
        telemetry.logger().info(Event.PROCESS_STARTED.value, role="worker", name=engine.name)

    def stop_asking(self) -> None:
        """Begin no request from now on. Safe in a signal handler, and repeatable."""
        engine = self._engine
        if engine is not None:
            engine.stop_asking()

    def stop(self) -> None:
        """Finish what is in flight and close."""
        if self._health is not None:
            self._health.stop()
        if self._engine is not None:
            name = self._engine.name
            self._engine.stop()
            self._engine = None
            telemetry.logger().info(Event.PROCESS_STOPPED.value, role="worker", name=name)

    def health(self) -> Health:
        """Return what is wrong now."""
        if self._engine is None:
            return Health(fatal=("the worker is starting or stopping",))
        fatal, hampering = self._engine.problems()
        return Health(tuple(fatal), tuple(hampering))
