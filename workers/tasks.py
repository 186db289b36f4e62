"""Celery tasks: the payload in, one call, nothing else."""

from __future__ import annotations

from collections.abc import Sequence

from celery import Celery

from tokenfleet import telemetry
from tokenfleet.jobs import (
    DELIVER_TASK,
    REFRESH_TASK,
    REQUESTED_TASK,
    DeliveryJob,
    MalformedJob,
    RefreshJob,
)
from tokenfleet.telemetry import Event
from workers.bootstrap import Process


def register(app: Celery, process: Process) -> None:
    """Register every task under its stable name, bound to ``process``."""

    def run(arguments: Sequence[object], *, is_requested: bool) -> None:
        try:
            job = RefreshJob.parse(arguments, is_requested=is_requested)
        except MalformedJob as error:
            telemetry.logger().error(Event.JOB_DROPPED.value, reason=str(error))
            return
        process.engine.run(job)

    @app.task(name=REFRESH_TASK, acks_late=True, ignore_result=True)
    def refresh(*arguments: object) -> None:
        run(arguments, is_requested=False)

    @app.task(name=REQUESTED_TASK, acks_late=True, ignore_result=True)
    def refresh_requested(*arguments: object) -> None:
        run(arguments, is_requested=True)

    @app.task(name=DELIVER_TASK, acks_late=True, ignore_result=True)
    def deliver_webhooks(*arguments: object) -> None:
        try:
            job = DeliveryJob.parse(arguments)
        except MalformedJob as error:
            telemetry.logger().error(Event.JOB_DROPPED.value, reason=str(error))
            return
        process.webhooks.run(job)
