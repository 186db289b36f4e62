"""The broker carries hints: ids and nothing else, and it may be wiped at any moment."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Final
from urllib.parse import urlsplit

import pytest
from celery import Celery
from redis import Redis

from scheduler.publisher import Publisher
from tokenfleet.broker import make_celery
from tokenfleet.jobs import (
    ON_DEMAND_QUEUE,
    REFRESH_QUEUE,
    REFRESH_TASK,
    WEBHOOK_QUEUE,
    AccountId,
    AppId,
    Epoch,
    RefreshJob,
)
from tokenfleet.settings import Settings

CLAIM: Final = timedelta(seconds=30)
PATIENCE_SECONDS: Final = 10


def job(number: int) -> RefreshJob:
    pairs = ((AccountId(4_242_000 + number), Epoch(number)), (AccountId(5_252_000 + number), Epoch(1)))
    return RefreshJob(f"00000000-0000-4000-8000-{number:012}", AppId(77), pairs)


@pytest.fixture
def app(settings: Settings) -> Iterator[Celery]:
    app = make_celery(settings)
    yield app
    app.close()


@pytest.fixture
def redis(redis_url: str) -> Iterator[Redis]:
    with Redis.from_url(redis_url) as client:
        yield client


def waiting(redis: Redis) -> list[str]:
    """The messages that wait in the queue, as the broker holds them."""
    return [raw.decode() if isinstance(raw, bytes) else raw for raw in redis.lrange(REFRESH_QUEUE, 0, -1)]


@contextmanager
def consuming(app: Celery) -> Iterator[Any]:
    """A consumer as a worker has one; yields a function that returns the next job."""
    received: list[RefreshJob] = []

    def take(body: list[Any], message: Any) -> None:
        received.append(RefreshJob.parse(body[0]))
        message.ack()

    connection: Any = app.connection_for_read()

    def next_job() -> RefreshJob:
        while not received:
            connection.drain_events(timeout=PATIENCE_SECONDS)
        return received.pop(0)

    with connection, app.amqp.TaskConsumer(connection.default_channel, callbacks=[take]):
        yield next_job


def test_a_published_job_arrives(app: Celery) -> None:
    with consuming(app) as next_job:
        assert Publisher(app, claim=CLAIM).publish([job(1)]) == []
        assert next_job() == job(1)


def test_a_message_holds_ids_and_nothing_else(app: Celery, redis: Redis, settings: Settings) -> None:
    Publisher(app, claim=CLAIM).publish([job(1)])
    (raw,) = waiting(redis)
    message = json.loads(raw)
    arguments, keywords, embedded = json.loads(base64.b64decode(message["body"]))
    assert arguments == job(1).payload()
    assert keywords == {}
    assert set(embedded.values()) == {None}
    headers = message["headers"]
    assert headers["task"] == REFRESH_TASK
    assert headers["id"] == job(1).job_id
    assert headers["argsrepr"] == repr(job(1).payload())
    assert headers["kwargsrepr"] == "{}"
    for url in (settings.redis_url, settings.database_url):
        password = urlsplit(url).password
        assert not password or password not in raw


def test_a_message_carries_no_time_to_wait_and_asks_for_no_result(app: Celery, redis: Redis) -> None:
    Publisher(app, claim=CLAIM).publish([job(1)])
    headers = json.loads(waiting(redis)[0])["headers"]
    assert headers["eta"] is None
    assert headers["ignore_result"] is True
    assert headers["retries"] == 0


def test_publishing_goes_on_after_the_broker_was_wiped(app: Celery, redis: Redis) -> None:
    publisher = Publisher(app, claim=CLAIM)
    with consuming(app) as next_job:
        publisher.publish([job(1)])
        assert next_job() == job(1)
        for number in (2, 3):
            redis.flushall()
            assert publisher.publish([job(number)]) == []
            assert next_job() == job(number)


def test_a_queue_that_nobody_declared_keeps_jobs_for_whoever_comes(app: Celery, redis: Redis) -> None:
    redis.flushall()
    Publisher(app, claim=CLAIM).publish([job(1), job(2)])
    with consuming(app) as next_job:
        assert [next_job(), next_job()] == [job(1), job(2)]


def test_a_wipe_takes_the_waiting_jobs_and_nothing_more(app: Celery, redis: Redis) -> None:
    publisher = Publisher(app, claim=CLAIM)
    publisher.publish([job(1)])
    redis.flushall()
    publisher.publish([job(2)])
    with consuming(app) as next_job:
        assert next_job() == job(2)
    assert redis.llen(REFRESH_QUEUE) == 0


def test_building_the_application_connects_to_nothing(environ: dict[str, str]) -> None:
    unreachable = environ | {"TOKENFLEET_BROKER_URL": "redis://127.0.0.1:1/0"}
    with make_celery(Settings.from_environ(unreachable)) as app:
        assert list(app.amqp.queues) == [REFRESH_QUEUE, ON_DEMAND_QUEUE, WEBHOOK_QUEUE]
