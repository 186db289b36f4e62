"""What ``tokenfleet doctor`` says of webhooks: who fails, who was disabled, and whether anybody delivers."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Final

from cli.check import Check, Verdict
from cli.output import counted, dated
from store.webhook_overview import TroubledEndpoint, WebhooksOverview
from tokenfleet.delivery_policy import DisabledReason

LATE: Final = timedelta(minutes=1)
"""A delivery that an endpoint would be sent now, and that waits for so long, waits for a worker."""
MOST_NAMED: Final = 10


def webhook_checks(found: WebhooksOverview, now: datetime) -> Iterator[Check]:
    """Yield what is wrong with webhooks; one line when nothing is, and none when there is no endpoint."""
    if not found.endpoints:
        return
    for endpoint in found.troubled[:MOST_NAMED]:
        yield Check("webhooks", Verdict.WARNING, _trouble(endpoint, now))
    if len(found.troubled) > MOST_NAMED:
        more = counted(len(found.troubled) - MOST_NAMED, "more endpoint")
        yield Check("webhooks", Verdict.WARNING, f"{more}: 'tokenfleet webhooks list' shows them")
    is_late = found.due_since is not None and now - found.due_since > LATE
    if is_late:
        yield Check(
            "webhooks",
            Verdict.WARNING,
            f"deliveries wait since {dated(found.due_since, now)} though their endpoints work: start a scheduler and "
            "'tokenfleet worker --queues webhooks', or more of them",
        )
    if not found.troubled and not is_late:
        yield Check("webhooks", Verdict.OK, f"{counted(found.endpoints, 'endpoint')}, none in trouble")


def _trouble(endpoint: TroubledEndpoint, now: datetime) -> str:
    number = endpoint.endpoint_id
    back = f"'tokenfleet webhooks enable {number} --with-missed' once it is mended, or 'webhooks remove {number}'"
    if endpoint.disabled_reason is DisabledReason.GONE:
        return f"endpoint {number} answered 410 {dated(endpoint.disabled_at, now)} and is disabled: {back}"
    if endpoint.disabled_at is not None:
        return (
            f"endpoint {number} failed for days ({endpoint.last_error}) and is disabled since "
            f"{dated(endpoint.disabled_at, now)}: {back}"
        )
    return (
        f"endpoint {number} fails since {dated(endpoint.failing_since, now)} ({endpoint.last_error}) and is disabled "
        f"{dated(endpoint.disabled_next, now)}: tell who runs it; 'tokenfleet webhooks test {number}' tries it"
    )
