"""The Celery application: the transport of hints between scheduler and workers, and nothing more.

Choices that surprise:

* The anonymous exchange. Kombu's Redis transport keeps exchange bindings in a Redis set; after FLUSHALL a
  message to a named exchange vanishes without an error until somebody declares the queue again (kombu 5.7).
  Publishing straight to the queue name has no such state, so the broker may be wiped at any moment (G7).
  RabbitMQ treats it alike.
* Jobs that a reader waits for have a queue of their own, which is looked into first (:class:`OnDemandFirst`). A message
  priority would do in Redis, but not in RabbitMQ, whose queues have to be declared for it once and for all.
* No results, no retries, no ``eta``, no time limits by Celery: waiting is a column in Postgres, a second try
  is a new claim, and every provider call is bounded by its own deadline.
* ``threads``: one process holds one event loop, and the pool's threads only wait for it.
"""

from __future__ import annotations

from typing import Final

from celery import Celery
from kombu.entity import Exchange, Queue
from kombu.utils.scheduling import round_robin_cycle

from tokenfleet.jobs import ON_DEMAND_QUEUE, QUEUES, REFRESH_QUEUE
from tokenfleet.settings import Settings

APP_NAME: Final = "tokenfleet"
ANONYMOUS_EXCHANGE: Final = ""
BROKER_SOCKET_SECONDS: Final = 10


def make_celery(settings: Settings) -> Celery:
    """Return a configured Celery application. Connects on first use, never here."""
    app = Celery(APP_NAME, broker=settings.broker_url, set_as_current=False)
    anonymous = Exchange(ANONYMOUS_EXCHANGE, type="direct")  # type: ignore[no-untyped-call]
    app.conf.update(
        task_queues=[
            Queue(name, anonymous, routing_key=name)  # type: ignore[no-untyped-call]
            for name in QUEUES
        ],
        task_default_queue=REFRESH_QUEUE,
        task_default_exchange=ANONYMOUS_EXCHANGE,
        task_default_routing_key=REFRESH_QUEUE,
        task_serializer="json",
        accept_content=["json"],
        task_ignore_result=True,
        task_store_errors_even_if_ignored=False,
        task_acks_late=True,
        task_acks_on_failure_or_timeout=True,
        task_track_started=False,
        worker_pool="threads",
        worker_concurrency=settings.tunables.worker_threads,
        worker_prefetch_multiplier=1,
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        broker_connection_retry_on_startup=True,
        broker_connection_timeout=BROKER_SOCKET_SECONDS,
        broker_transport_options=_transport_options(settings),
    )
    return app


class OnDemandFirst(round_robin_cycle):
    """The order in which a worker looks into its queues in Redis: on demand first, the others in turns."""

    def consume(self, n: int) -> list[str]:
        """Return ``n`` queues, that of requests first."""
        names: list[str] = super().consume(n)  # type: ignore[no-untyped-call]
        return sorted(names, key=lambda name: name != ON_DEMAND_QUEUE)


_AT_ONCE: Final = {"max_retries": 1, "interval_start": 0, "interval_step": 0, "interval_max": 0}
"""Whoever publishes and finds no broker is told now. By default kombu tries for 12 s, in which a scheduler
holds claims that nobody hears of, and no SIGTERM."""


def _transport_options(settings: Settings) -> dict[str, object]:
    if not settings.broker_url.startswith(("redis://", "rediss://")):
        return dict(_AT_ONCE)
    return _AT_ONCE | {
        "visibility_timeout": settings.tunables.visibility_timeout_seconds,
        "queue_order_strategy": f"{__name__}:{OnDemandFirst.__name__}",
        "socket_timeout": BROKER_SOCKET_SECONDS,
        "socket_connect_timeout": BROKER_SOCKET_SECONDS,
        "socket_keepalive": True,
        "health_check_interval": 25,
        "global_keyprefix": settings.tunables.redis_prefix,
    }
