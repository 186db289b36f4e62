"""The wire contract between scheduler and workers: names and payloads of ours, never import paths.

A message is a hint. It holds ids and claim epochs, nothing that can go stale and nothing secret; whoever
receives it reads the row again under a fence. So a message may be lost, delayed or delivered twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, NewType
from uuid import UUID

AccountId = NewType("AccountId", int)
AppId = NewType("AppId", int)
Epoch = NewType("Epoch", int)
EndpointId = NewType("EndpointId", int)
DeliveryId = NewType("DeliveryId", int)

REFRESH_TASK: Final = "tokenfleet.refresh"
REFRESH_QUEUE: Final = "refresh"
REQUESTED_TASK: Final = "tokenfleet.refresh_requested"
ON_DEMAND_QUEUE: Final = "on_demand"
"""Of the same refreshes, those that a reader waits for: workers that take from ``refresh`` take from this one first."""
DELIVER_TASK: Final = "tokenfleet.deliver_webhooks"
WEBHOOK_QUEUE: Final = "webhooks"
QUEUES: Final = (REFRESH_QUEUE, ON_DEMAND_QUEUE, WEBHOOK_QUEUE)

MAX_BATCH: Final = 100
"""Accounts or deliveries per job: enough to make the broker's cost vanish, few enough to spread over workers."""


class MalformedJob(Exception):
    """A message does not have the shape of a job; it is dropped, and the claim expires by itself."""


@dataclass(frozen=True, slots=True)
class RefreshJob:
    """Refresh these accounts of one provider app. ``accounts`` pairs each id with its claim epoch.

    ``is_requested`` says that readers wait for them: the task's name says so, the payload is the same.
    """

    job_id: str
    app_id: AppId
    accounts: tuple[tuple[AccountId, Epoch], ...]
    is_requested: bool = False

    @property
    def task(self) -> str:
        """The name under which workers know it."""
        return REQUESTED_TASK if self.is_requested else REFRESH_TASK

    @property
    def queue(self) -> str:
        """The queue it is sent to."""
        return ON_DEMAND_QUEUE if self.is_requested else REFRESH_QUEUE

    def payload(self) -> list[object]:
        """Return the JSON-ready arguments of the task."""
        return [
            self.job_id,
            self.app_id,
            [account_id for account_id, _ in self.accounts],
            [epoch for _, epoch in self.accounts],
        ]

    @classmethod
    def parse(cls, arguments: Sequence[object], *, is_requested: bool = False) -> RefreshJob:
        """Read the arguments of the task. Raises :class:`MalformedJob` on anything else than a job."""
        match arguments:
            case [str(job_id), int(app_id), list(ids), list(epochs)] if len(ids) == len(epochs) <= MAX_BATCH:
                # By type: bool is an int. The job id goes to a uuid column once the claims are started.
                if all(type(number) is int for number in (app_id, *ids, *epochs)) and _is_uuid(job_id):
                    pairs = zip(ids, epochs, strict=True)
                    accounts = tuple((AccountId(i), Epoch(e)) for i, e in pairs)
                    return cls(job_id, AppId(app_id), accounts, is_requested)
        raise MalformedJob(f"task {REFRESH_TASK} takes [job id, app id, [ids], [epochs]]")


@dataclass(frozen=True, slots=True)
class DeliveryJob:
    """Deliver these webhooks, whoever their receivers are. ``deliveries`` pairs each id with its claim epoch."""

    task: ClassVar[str] = DELIVER_TASK
    queue: ClassVar[str] = WEBHOOK_QUEUE

    job_id: str
    deliveries: tuple[tuple[DeliveryId, Epoch], ...]

    def payload(self) -> list[object]:
        """Return the JSON-ready arguments of the task."""
        return [
            self.job_id,
            [delivery_id for delivery_id, _ in self.deliveries],
            [epoch for _, epoch in self.deliveries],
        ]

    @classmethod
    def parse(cls, arguments: Sequence[object]) -> DeliveryJob:
        """Read the arguments of the task. Raises :class:`MalformedJob` on anything else than a job."""
        match arguments:
            case [str(job_id), list(ids), list(epochs)] if len(ids) == len(epochs) <= MAX_BATCH:
                if all(type(number) is int for number in (*ids, *epochs)) and _is_uuid(job_id):
                    pairs = zip(ids, epochs, strict=True)
                    return cls(job_id, tuple((DeliveryId(i), Epoch(e)) for i, e in pairs))
        raise MalformedJob(f"task {DELIVER_TASK} takes [job id, [ids], [epochs]]")


def _is_uuid(text: str) -> bool:
    try:
        UUID(text)
    except ValueError:
        return False
    return True
