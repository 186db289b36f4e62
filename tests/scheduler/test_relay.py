"""The relay: what was told becomes jobs, once, in order, whatever else relays, and without weighing on refreshes."""

from __future__ import annotations

import base64
import json
import threading
from collections import defaultdict
from datetime import timedelta
from typing import Any

import pytest
from redis import Redis
from sqlalchemy import Engine, text

from scheduler.publisher import Publisher
from scheduler.relay import MAX_WAITING_JOBS, Relay
from store import deliveries, outbox
from tests.support.post_office import ERROR, WELL, Office
from tests.support.webhook_receiver import Receiver
from tokenfleet.broker import make_celery
from tokenfleet.jobs import DELIVER_TASK, WEBHOOK_QUEUE, DeliveryId, DeliveryJob

URL = "https://receiver.example/hook"


def make_relay(office: Office, **environ: str) -> Relay:
    tunables = office.settings.tunables
    publisher = Publisher(make_celery(office.settings), claim=tunables.webhook_claim)
    return Relay(office.engine, publisher, tunables)


def published(redis: Redis) -> list[DeliveryJob]:
    raw: Any = redis.lrange(WEBHOOK_QUEUE, 0, -1)
    messages = [json.loads(message) for message in reversed(raw)]
    assert {message["headers"]["task"] for message in messages} <= {DELIVER_TASK}
    return [DeliveryJob.parse(json.loads(base64.b64decode(message["body"]))[0]) for message in messages]


def test_events_become_jobs_of_ids_and_epochs_once(office: Office, redis: Redis) -> None:
    office.add(URL)
    office.tell(1, tenant="planted-tenant")
    office.tell(2)
    relay = make_relay(office)

    assert relay.tick()
    assert not relay.tick()

    [job] = published(redis)
    assert sorted(epoch for _, epoch in job.deliveries) == [1, 1]
    assert b"planted-tenant" not in b"".join(redis.lrange(WEBHOOK_QUEUE, 0, -1))  # type: ignore[arg-type]
    assert office.under_way() == 2


def test_what_cannot_be_sent_is_given_back(office: Office, redis: Redis) -> None:
    office.add(URL)
    office.tell(1)
    away = {"TOKENFLEET_BROKER_URL": "redis://127.0.0.1:1/0"}
    settings = office.settings.__class__.from_environ(
        {
            "TOKENFLEET_DATABASE_URL": office.settings.database_url,
            "TOKENFLEET_REDIS_URL": office.settings.redis_url,
            "TOKENFLEET_HOME": str(office.settings.home),
        }
        | away
    )
    relay = make_relay(Office(office.engine, office.vault, settings))
    relay.stop()

    assert not relay.tick()

    assert relay.trouble() is not None
    assert office.under_way() == 0
    assert make_relay(office).tick()
    assert len(published(redis)) == 1


def test_without_workers_nothing_more_is_claimed(office: Office, redis: Redis) -> None:
    office.add(URL)
    redis.rpush(WEBHOOK_QUEUE, *[b"a job that waits"] * (MAX_WAITING_JOBS + 1))
    office.tell(1)
    relay = make_relay(office)

    relay.tick()

    assert office.under_way() == 0
    assert "start workers" in str(relay.trouble())
    redis.delete(WEBHOOK_QUEUE)
    relay.tick()
    assert office.under_way() == 1
    assert relay.trouble() is None


def test_a_claim_that_ends_is_due_again(office: Office, redis: Redis) -> None:
    office.add(URL)
    office.tell(1)
    relay = make_relay(office)
    relay.tick()
    redis.flushall()
    office.execute("UPDATE tokenfleet.webhook_deliveries SET claimed_until = now() - interval '1 ms'")

    relay.tick()

    [job] = published(redis)
    assert [epoch for _, epoch in job.deliveries] == [2]


def test_relays_tellers_and_workers_at_once_deliver_each_event_once_and_in_its_order(
    office: Office, redis: Redis
) -> None:
    """The line of an account is appended to and moved up at the same time, from both ends, by several processes."""
    accounts, rounds = 6, 30
    with Receiver() as receiver, office.worker() as first, office.worker() as second:
        endpoint = office.add(receiver.url)
        barrier = threading.Barrier(5)
        told_all = threading.Event()
        failed: list[BaseException] = []

        def tell(mine: range) -> None:
            barrier.wait()
            for number in range(rounds):
                for account in mine:
                    office.tell(account, ERROR if number % 2 else WELL, tenant=str(number))

        def deliver(worker: Any) -> None:
            barrier.wait()
            try:
                while not told_all.is_set() or set(office.states(endpoint)) != {"delivered"}:
                    office.relay()
                    for job in office.claim():
                        worker.run(job)
            except BaseException as error:  # noqa: BLE001
                failed.append(error)

        tellers = [threading.Thread(target=tell, args=(range(a, a + 2),)) for a in range(0, accounts, 2)]
        carriers = [threading.Thread(target=deliver, args=(worker,)) for worker in (first, second)]
        for thread in (*tellers, *carriers):
            thread.start()
        for thread in tellers:
            thread.join(60)
        told_all.set()
        for thread in carriers:
            thread.join(60)
            assert not thread.is_alive(), office.states(endpoint)

    assert failed == []
    assert receiver.copies() == {}
    seen: dict[int, list[int]] = defaultdict(list)
    for each in receiver.received:
        seen[each.account].append(int(each.document["payload"]["tenant"]))
    assert seen == {account: list(range(rounds)) for account in range(accounts)}


def test_an_event_is_relayed_by_one_relay_even_when_two_look_at_once(office: Office) -> None:
    office.add(URL)
    office.tell(1)
    with office.engine.begin() as mine, office.engine.begin() as theirs:
        outbox.relay(mine)
        assert outbox.relay(theirs) is False
    office.relay()
    assert office.column("SELECT count(*) FROM tokenfleet.webhook_deliveries") == [1]


def test_who_finishes_a_delivery_waits_for_who_appends_to_its_line(office: Office) -> None:
    office.add(URL)
    office.tell(1)
    office.relay()
    with office.engine.begin() as connection:
        outbox._append_alone(connection)
        with office.engine.begin() as other:
            other.execute(text("SET LOCAL lock_timeout = '50ms'"))
            with pytest.raises(Exception, match="lock timeout"):
                deliveries.settle(other, [])


def test_an_event_that_was_being_told_while_an_older_one_was_replayed_has_its_turn(office: Office) -> None:
    """Its place is taken when it is written, and seen when it is committed: the replay may have gone before it."""
    with Receiver() as receiver, office.worker() as worker:
        office.add(receiver.url)
        office.tell(1, ERROR)
        office.rounds(worker)
        with office.engine.begin() as telling:
            telling.execute(
                text(
                    "INSERT INTO tokenfleet.outbox (account_id, event_type, payload) "
                    "VALUES (1, :well, jsonb_build_object('id', 1))"
                ),
                {"well": WELL},
            )
            with office.engine.begin() as replaying:
                assert outbox.replay(replaying, [DeliveryId(1)]) == 1
        office.rounds(worker)

        assert receiver.of(1) == [ERROR, ERROR, WELL]


def test_what_was_given_up_while_an_endpoint_failed_is_among_what_it_missed(office: Office) -> None:
    endpoint = office.add(URL)
    for account in (1, 2, 3):
        office.tell(account)
    office.relay()
    for statement in (
        "UPDATE tokenfleet.outbox SET created_at = now() - account_id * interval '1 day'",
        "UPDATE tokenfleet.webhook_deliveries SET state = 'failed', next_attempt_at = NULL, finished_at = now()",
        "UPDATE tokenfleet.webhook_endpoints SET failing_since = now() - interval '60 hours'",
        "UPDATE tokenfleet.webhook_endpoints SET disabled_at = now(), disabled_reason = 'failing'",
    ):
        office.execute(statement)

    with office.engine.begin() as connection:
        assert outbox.catch_up(connection, endpoint) == (2, None), "not what was given up before"


def test_what_is_being_replayed_is_not_replayed_twice(office: Office) -> None:
    with Receiver() as receiver, office.worker() as worker:
        office.add(receiver.url)
        office.tell(1)
        office.rounds(worker)
        for expected in (1, 0):
            with office.engine.begin() as connection:
                assert outbox.replay(connection, [DeliveryId(1)]) == expected
        office.rounds(worker)
        with office.engine.begin() as connection:
            replayed = outbox.replay(connection, [DeliveryId(1), DeliveryId(2)])
            assert replayed == 1, "and again when that is done, once for all its deliveries"

        assert len(receiver.received) == 2


def test_old_deliveries_their_log_and_their_events_are_forgotten_in_parts_and_nothing_else(
    office: Office, redis: Redis
) -> None:
    with Receiver() as receiver:
        office.add(receiver.url)
        for account in range(6):
            office.tell(account)
        with office.worker() as worker:
            office.rounds(worker)
    old = "- interval '40 days'"
    finished = "SELECT id FROM tokenfleet.webhook_deliveries WHERE subject < 'account:4'"
    for statement in (
        f"UPDATE tokenfleet.outbox SET created_at = created_at {old} WHERE account_id < 4",
        f"UPDATE tokenfleet.webhook_deliveries SET finished_at = finished_at {old} WHERE id IN ({finished})",
        f"UPDATE tokenfleet.webhook_attempts SET at = at {old} WHERE delivery_id IN ({finished})",
    ):
        office.execute(statement)
    office.tell(0)

    def prune() -> int:
        with office.engine.begin() as connection:
            return outbox.prune(connection, age=timedelta(days=30), at_once=3)

    assert prune() == 3 + 3 + 3
    assert prune() == 1 + 1 + 1
    assert prune() == 0
    for table, left in {"outbox": 3, "webhook_deliveries": 2, "webhook_attempts": 2}.items():
        assert office.column(f"SELECT count(*) FROM tokenfleet.{table}") == [left]


@pytest.mark.parametrize("what", ["one line", "many lines"])
def test_a_claim_reads_little_however_much_waits(office: Office, engine: Engine, what: str) -> None:
    office.add(URL)
    account = "1" if what == "one line" else "n"
    office.execute(
        "INSERT INTO tokenfleet.outbox (account_id, event_type, payload) "
        f"SELECT {account}, 'x:y', '{{}}' FROM generate_series(1, 8000) n"
    )
    office.relay()
    office.execute("ANALYZE tokenfleet.webhook_deliveries")
    with engine.begin() as connection:
        shown = connection.execute(
            text(f"EXPLAIN (ANALYZE, BUFFERS) {deliveries._CLAIM.text}"),
            {"claim": timedelta(seconds=45), "at_once": 100},
        ).scalars()
        plan = "\n".join(shown)

    assert "ix_webhook_deliveries_due" in plan
    assert "Seq Scan on webhook_deliveries" not in plan
    touched = sum(int(part.partition(" ")[0]) for part in plan.split("shared hit=")[1:2])
    assert touched < 1500, plan
