"""What the fleet says about itself: log events and metrics, as closed sets.

Rules: one event per outcome, dotted constants, no sentences; no token, no response body; labels are bounded
(never an account id on a metric). Logs go to standard error, one line each.
"""

from __future__ import annotations

import contextlib
import io
import logging
import sys
from enum import StrEnum
from typing import Final, TextIO, cast

import structlog
from prometheus_client import Counter, Gauge, Histogram

from tokenfleet.settings import Tunables


class Event(StrEnum):
    """Every event that a process logs."""

    PROCESS_STARTED = "process.started"
    PROCESS_STOPPED = "process.stopped"
    PROCESS_FAILED = "process.failed"
    JOB_STARTED = "job.started"
    JOB_DROPPED = "job.dropped"
    JOB_NOT_PUBLISHED = "job.not_published"
    ATTEMPT_FAILED = "attempt.failed"
    ACCOUNT_SETTLED = "account.settled"
    ACCOUNT_TROUBLED = "account.troubled"
    ACCOUNT_QUARANTINED = "account.quarantined"
    ACCOUNT_NEEDS_REAUTH = "account.needs_reauth"
    SECRET_UNREADABLE = "app.secret_unreadable"
    DEFINITION_MISSING = "app.definition_missing"
    APP_HELD = "app.held"
    APP_RESUMED = "app.resumed"
    APP_PAUSED = "app.paused"
    APP_OVERBOOKED = "app.overbooked"
    APP_SECRET_REPLACED = "app.secret_replaced"
    INCIDENT_OPENED = "incident.opened"
    INCIDENT_RESOLVED = "incident.resolved"
    STORE_UNAVAILABLE = "store.unavailable"
    STORE_RECOVERED = "store.recovered"
    WRITER_FAILED = "writer.failed"
    CANDIDATE_KEPT = "candidate.kept"
    CANDIDATE_PROMOTED = "candidate.promoted"
    CANDIDATE_UNREADABLE = "candidate.unreadable"
    JOURNAL_CONSULTED = "journal.consulted"
    JOURNAL_UNREADABLE = "journal.unreadable"
    JOURNAL_LEFT = "journal.left"
    RECORD_REFUSED = "record.refused"
    JOURNAL_UNWRITABLE = "journal.unwritable"
    JOURNAL_REPLAYED = "journal.replayed"
    JOURNAL_DAMAGED = "journal.damaged"
    REDIS_UNAVAILABLE = "redis.unavailable"
    TICK_FAILED = "tick.failed"
    RELAY_FAILED = "relay.failed"
    WEBHOOK_DELIVERED = "webhook.delivered"
    WEBHOOK_REFUSED = "webhook.refused"
    WEBHOOK_ENDPOINT_DISABLED = "webhook.endpoint_disabled"
    WEBHOOK_SECRET_UNREADABLE = "webhook.secret_unreadable"
    WEBHOOK_UNSETTLED = "webhook.unsettled"
    HOUSEKEEPING_FAILED = "housekeeping.failed"
    UNSEALING_SPIKE = "unsealing.spike"
    UNSEALING_SPIKE_OVER = "unsealing.spike_over"
    KEYS_RENEWED = "keys.renewed"
    KEYS_UNUSABLE = "keys.unusable"
    KEY_ANNOUNCED = "keys.announced"
    KEY_PROMOTED = "keys.promoted"


# Worker
REFRESHES: Final = Counter(
    "tokenfleet_refreshes_total", "Refresh attempts by how they ended.", ["provider", "outcome"]
)
PROVIDER_SECONDS: Final = Histogram(
    "tokenfleet_provider_seconds",
    "From sending a token request to its last byte.",
    ["provider"],
    buckets=(0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 15, 30),
)
DUE_DELAY_SECONDS: Final = Histogram(
    "tokenfleet_due_delay_seconds",
    "From the moment an account was due to the moment its request started.",
    buckets=(0.1, 0.25, 0.5, 1, 2, 4, 8, 16, 32, 64, 300, 3600),
)
COMMIT_SECONDS: Final = Histogram(
    "tokenfleet_commit_seconds",
    "One group commit, from the first statement to the commit.",
    buckets=(0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.5, 2, 10),
)
COMMIT_SIZE: Final = Histogram(
    "tokenfleet_commit_size", "Results in one group commit.", buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
)
ROTATIONS_LOST: Final = Counter(
    "tokenfleet_rotations_lost_total",
    "Accounts that must sign in again because the answer with their new refresh token never reached us.",
)
IN_FLIGHT: Final = Gauge("tokenfleet_in_flight", "Accounts being asked about now.")
JOURNAL_UNSETTLED: Final = Gauge("tokenfleet_journal_unsettled", "Answers on disk, not yet in Postgres.")
PROBES: Final = Counter(
    "tokenfleet_probes_total", "Probes by what they said of the access token.", ["provider", "verdict"]
)
REVOCATIONS: Final = Counter(
    "tokenfleet_revocations_total",
    "Requests to end a grant by what the provider answered.",
    ["provider", "outcome"],
)
LEASES_SKIPPED: Final = Counter(
    "tokenfleet_leases_skipped_total", "Jobs that went on without a lease because Redis did not answer."
)
ALARMS: Final = Counter(
    "tokenfleet_alarms_total", "Things an operator should look at: quarantine, held app, damage.", ["event"]
)
for _event in Event:
    # One that appeared with its first alarm would not have increased, for whoever watches it.
    ALARMS.labels(_event.value)
UNSEALED: Final = Counter("tokenfleet_unsealed_total", "Sealed values opened, by purpose.", ["purpose"])

# Worker, webhooks
WEBHOOKS: Final = Counter(
    "tokenfleet_webhooks_total", "Attempts to deliver a webhook by how they ended.", ["outcome"]
)
WEBHOOK_SECONDS: Final = Histogram(
    "tokenfleet_webhook_seconds",
    "From resolving a receiver's name to the last byte of its answer.",
    buckets=(0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 15, 30),
)
WEBHOOK_DELAY_SECONDS: Final = Histogram(
    "tokenfleet_webhook_delay_seconds",
    "From an event to the beginning of its first attempt.",
    buckets=(0.25, 0.5, 1, 2, 4, 8, 16, 64, 300, 3600, 86_400),
)
WEBHOOKS_IN_FLIGHT: Final = Gauge("tokenfleet_webhooks_in_flight", "Webhooks being delivered now.")

# Scheduler
CLAIMED: Final = Counter("tokenfleet_claimed_total", "Accounts claimed.", ["provider"])
PUBLISHED: Final = Counter("tokenfleet_jobs_published_total", "Jobs sent to the broker.")
TICK_SECONDS: Final = Histogram(
    "tokenfleet_tick_seconds", "One scheduler tick.", buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 2)
)
_APP: Final = ("provider", "environment", "app")
BUDGET_SLACK: Final = Gauge(
    "tokenfleet_budget_slack",
    "Least part of its rate that the coming hour leaves of an app; below 0 the rate is too little.",
    _APP,
)
APPS_HELD: Final = Gauge(
    "tokenfleet_apps_held", "Apps that are on hold because the provider rejects the registration.", _APP
)
APPS_PAUSED: Final = Gauge("tokenfleet_apps_paused", "Apps that the provider asked to wait.", _APP)
CIRCUITS_OPEN: Final = Gauge(
    "tokenfleet_circuits_open", "Apps whose provider does not answer, so that nobody or one is asked.", _APP
)
UNSEALING_SPIKES: Final = Gauge(
    "tokenfleet_unsealing_spikes",
    "Purposes for which far more is opened now than is explained or usual.",
    ["purpose", "database_role"],
)
INCIDENTS_OPEN: Final = Gauge(
    "tokenfleet_incidents_open", "Incidents that nobody and nothing has resolved yet.", (*_APP, "kind")
)


class _Unbreakable(io.TextIOBase):
    """A stream that never raises: a full disk behind the log must not cost an answer that is in hand (G3)."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()


def configure_logging(tunables: Tunables) -> None:
    """Send structured logs to standard error, as JSON lines or for a person's console.

    Tracebacks are plain ones in both: structlog's default for a console prints the variables of each frame,
    and the frame that sends a token holds it in the clear (G6).
    """
    stream = cast("TextIO", _Unbreakable(sys.stderr))
    shared: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    renderer: structlog.types.Processor = (
        structlog.processors.JSONRenderer(default=str)
        if tunables.log_format == "json"
        else structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
    )
    level = getattr(logging, tunables.log_level.upper())
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(stream),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(level, logging.WARNING))


def logger() -> structlog.stdlib.BoundLogger:
    """Return the process's structured logger."""
    bound: structlog.stdlib.BoundLogger = structlog.get_logger()
    return bound


def alarm(event: Event, **fields: object) -> None:
    """Log ``event`` as an error and count it where alerts are built from."""
    ALARMS.labels(event.value).inc()
    logger().error(event.value, **fields)
