"""Events reach their receivers: once each as a rule, in order, signed, and whatever a receiver does harms no other."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import pytest

from tests.support.fleet import eventually
from tests.support.post_office import ERROR, WELL, Office
from tests.support.webhook_receiver import Answer, Received, Receiver
from tokenfleet.delivery_policy import JITTER, RETRY_DELAYS, DisabledReason
from tokenfleet_client.webhooks import verify


def test_an_event_is_delivered_signed_under_the_id_of_its_outbox_row(
    office: Office, receiver: Receiver
) -> None:
    endpoint = office.add(receiver.url)
    event_id = office.tell(7, tenant='bl\u00fc "e"\n')

    with office.worker() as worker:
        office.rounds(worker)

    [received] = receiver.received
    secret = office.secrets[endpoint].reveal()
    assert received.is_signed_with(secret), "as the library of the Standard Webhooks project sees it"
    message = verify(secret, received.headers, received.body)
    assert (message.webhook_id, message.event_type) == (event_id, ERROR)
    assert message.payload == {
        "id": 7, "tenant": 'bl\u00fc "e"\n', "environment": "production", "external_id": "customer",
        "integration_name": "acme", "status": "needs_reauth", "last_error": "invalid_grant",
    }  # fmt: skip
    assert abs(datetime.fromisoformat(message.timestamp) - datetime.now(UTC)).total_seconds() < 60
    assert received.headers["content-type"] == "application/json"
    assert office.states(endpoint) == ["delivered"]


def test_a_later_event_of_an_account_waits_for_the_earlier_one_and_no_other_account_does(
    office: Office, receiver: Receiver
) -> None:
    endpoint = office.add(receiver.url)
    receiver.answer = lambda request: Answer(500 if request.account == 1 else 204)
    for account in (1, 1, 2, 2):
        office.tell(account, ERROR)
        office.tell(account, WELL)

    with office.worker() as worker:
        office.rounds(worker)
        assert receiver.of(1) == [ERROR], "nothing overtakes what failed"
        assert receiver.of(2) == [ERROR, WELL, ERROR, WELL]
        receiver.answer = lambda _: Answer(200)
        office.pass_time()
        office.rounds(worker)

    assert receiver.of(1) == [ERROR, ERROR, WELL, ERROR, WELL]
    assert len(set(receiver.ids())) == 8
    assert office.states(endpoint) == ["delivered"] * 8


def test_an_event_told_while_the_one_before_is_on_its_way_waits_and_is_not_forgotten(
    office: Office, receiver: Receiver
) -> None:
    office.add(receiver.url)
    office.tell(1, ERROR)
    receiver.gate.clear()

    with office.worker() as worker:
        office.relay()
        for job in office.claim():
            worker.run(job)
        eventually(lambda: len(receiver.received) == 1, what="the first is on its way")
        office.tell(1, WELL)
        office.relay()
        assert office.claim() == []
        receiver.gate.set()
        eventually(lambda: not office.under_way(), what="the first is settled")
        office.rounds(worker)

    assert receiver.of(1) == [ERROR, WELL]


def test_every_endpoint_gets_what_passes_its_filters_and_nothing_else(
    office: Office, receiver: Receiver
) -> None:
    with Receiver() as blue, Receiver() as staging, Receiver() as incidents:
        office.add(receiver.url)
        office.add(blue.url, tenants=["blue"], event_types=[ERROR, WELL])
        office.add(staging.url, environments=["staging"])
        office.add(incidents.url, event_types=["provider:*"])
        everything = {
            office.tell(1, ERROR, tenant="blue"),
            office.tell(2, ERROR, tenant="red"),
            office.tell(3, "integrated_account:created", tenant="blue"),
            office.tell(4, WELL, environment="staging"),
            office.tell(None, "provider:incident_opened", payload_id=5),
            office.tell(None, "provider:incident_resolved", payload_id=5, environment="*"),
        }

        with office.worker() as worker:
            office.rounds(worker)

        assert set(receiver.ids()) == everything
        assert [each.account for each in blue.received] == [1]
        assert sorted(each.account for each in staging.received) == [4, 5], "'*' concerns every environment"
        assert [each.document["event_type"] for each in incidents.received] == [
            "provider:incident_opened",
            "provider:incident_resolved",
        ]


def test_an_endpoint_hears_only_of_what_happens_after_it_was_added(
    office: Office, receiver: Receiver
) -> None:
    office.tell(1)
    office.add(receiver.url)
    later = office.tell(2)

    with office.worker() as worker:
        office.rounds(worker)

    assert receiver.ids() == [later]


def test_ten_attempts_over_three_days_and_then_the_next_event_has_its_turn(
    office: Office, receiver: Receiver
) -> None:
    endpoint = office.add(receiver.url)
    receiver.answer = lambda request: Answer(500 if request.document["event_type"] == ERROR else 200)
    office.tell(1, ERROR)
    office.tell(1, WELL)
    waits: list[float] = []

    with office.worker() as worker:
        office.round(worker)
        while waits_now := office.column(
            "SELECT extract(epoch FROM next_attempt_at - clock_timestamp())::float "
            "FROM tokenfleet.webhook_deliveries WHERE next_attempt_at > clock_timestamp() + interval '1 s'"
        ):
            waits += waits_now
            office.pass_time()
            office.round(worker)
        # The endpoint, which has done nothing but fail, is being spared by now.
        office.pass_time()
        office.rounds(worker)

    assert office.states(endpoint) == ["failed", "delivered"]
    assert receiver.of(1) == [ERROR] * 10 + [WELL]
    assert len({each.webhook_id for each in receiver.received}) == 2, "one id, however often it is sent"
    assert len({each.body for each in receiver.received}) == 2, "and the same bytes"
    timestamps = {each.headers["webhook-timestamp"] for each in receiver.received}
    assert timestamps, "each attempt is signed for its own moment"
    # Each is jittered, so that neighbours may change places: a wait is held against its own delay.
    for waited, planned in zip(waits, RETRY_DELAYS, strict=True):
        seconds = planned.total_seconds()
        assert seconds * (1 - JITTER) - 2 < waited <= seconds * (1 + JITTER) + 0.1
    assert office.column(
        "SELECT count(*) FROM tokenfleet.webhook_attempts WHERE status = 500 AND error = 'http_500'"
    ) == [10]


def test_a_receiver_that_says_gone_is_disabled_at_once_and_keeps_nobody(
    office: Office, receiver: Receiver
) -> None:
    with Receiver() as other:
        gone, well = office.add(receiver.url), office.add(other.url)
        receiver.answer = lambda _: Answer(410)
        office.tell(1)

        with office.worker() as worker:
            office.rounds(worker)
            office.tell(1)
            office.rounds(worker)

        assert (len(receiver.received), len(other.received)) == (1, 2)
        assert office.endpoint(gone).disabled_reason is DisabledReason.GONE
        assert office.endpoint(well).disabled_reason is None
        assert office.states(gone) == ["failed"], "and nothing more is put in line for it"


def test_a_dead_receiver_costs_a_request_now_and_then_however_much_waits_for_it(
    office: Office, receiver: Receiver
) -> None:
    with Receiver() as other:
        dead = office.add(receiver.url, concurrency=4)
        well = office.add(other.url, event_types=[WELL])
        receiver.answer = lambda _: Answer(500)
        office.execute(
            "INSERT INTO tokenfleet.outbox (account_id, event_type, payload) "
            "SELECT n, CASE n % 50 WHEN 0 THEN :well ELSE :error END, jsonb_build_object('id', n) "
            "FROM generate_series(1, 5000) n",
            error=ERROR,
            well=WELL,
        )

        with office.worker() as worker:
            office.relay()
            office.rounds(worker)
            assert office.states(well) == ["delivered"] * 100
            before = len(receiver.received)
            assert before <= 8, "a window or two, before it is known to fail"
            assert office.endpoint(dead).retry_at is not None
            for probe in range(3):
                office.pass_time()
                assert office.round(worker) == 1
                assert office.round(worker) == 0, "left alone again"
                assert len(receiver.received) == before + probe + 1

            receiver.answer = lambda _: Answer(204)
            office.pass_time()
            office.round(worker)
            assert office.endpoint(dead).failures == 0
            put_off = office.column(
                "SELECT count(*) FROM tokenfleet.webhook_deliveries WHERE next_attempt_at > now() + interval '1 s'"
            )
            assert put_off == [0], "what was put off because of it is due again"
            assert office.round(worker) > 1


def test_a_receiver_that_fails_on_one_event_only_is_not_spared(office: Office, receiver: Receiver) -> None:
    endpoint = office.add(receiver.url, concurrency=1)
    receiver.answer = lambda request: Answer(500 if request.account == 1 else 204)
    office.tell(1)

    with office.worker() as worker:
        for account in range(2, 10):
            office.pass_time()
            office.tell(account)
            office.rounds(worker)

    assert office.endpoint(endpoint).retry_at is None
    assert len(receiver.of(1)) == 8
    assert office.states(endpoint) == ["pending"] + ["delivered"] * 8


def test_lasting_failure_disables_with_notice_and_enabling_resumes(
    office: Office, receiver: Receiver, capsys: pytest.CaptureFixture[str]
) -> None:
    from store import endpoints

    endpoint = office.add(receiver.url, concurrency=5)
    receiver.answer = lambda _: Answer(500)
    for account in range(5):
        office.tell(account)

    with office.worker() as worker:
        office.rounds(worker)
        assert office.endpoint(endpoint).disabled_at is None
        office.execute(
            "UPDATE tokenfleet.webhook_endpoints SET failing_since = now() - interval '3 days 1 minute'"
        )
        office.pass_time()
        office.rounds(worker)
        assert office.endpoint(endpoint).disabled_reason is DisabledReason.FAILING
        assert "webhook.endpoint_disabled" in capsys.readouterr().out
        office.pass_time()
        assert office.round(worker) == 0

        receiver.answer = lambda _: Answer(200)
        with office.engine.begin() as connection:
            assert endpoints.enable(connection, endpoint)
        office.rounds(worker)

    assert office.states(endpoint) == ["delivered"] * 5


def test_an_endpoint_that_is_enabled_gets_at_once_what_was_put_off_for_hours(
    office: Office, receiver: Receiver
) -> None:
    from store import endpoints

    endpoint = office.add(receiver.url)
    receiver.answer = lambda _: Answer(500)
    office.tell(1)
    with office.worker() as worker:
        office.round(worker)
        office.execute(
            "UPDATE tokenfleet.webhook_deliveries SET next_attempt_at = now() + interval '20 hours'"
        )
        with office.engine.begin() as connection:
            assert endpoints.disable(connection, endpoint, DisabledReason.OPERATOR)
        receiver.answer = lambda _: Answer(204)
        with office.engine.begin() as connection:
            assert endpoints.enable(connection, endpoint)
        office.rounds(worker)

    assert office.states(endpoint) == ["delivered"]


def test_what_an_endpoint_missed_while_it_was_disabled_comes_before_what_happens_then(
    office: Office, receiver: Receiver
) -> None:
    from store import endpoints, outbox

    endpoint = office.add(receiver.url)
    office.tell(1, tenant="0")
    with office.worker() as worker:
        office.rounds(worker)
        receiver.gate.clear()
        office.tell(1, tenant="1")
        office.relay()
        with office.engine.begin() as connection:
            endpoints.disable(connection, endpoint, DisabledReason.OPERATOR)
        receiver.gate.set()
        for number in range(2, 6):
            office.tell(1, tenant=str(number))
        office.relay()
        office.tell(1, tenant="6")
        with office.engine.begin() as connection:
            assert outbox.catch_up(connection, endpoint) == (4, None)
            assert endpoints.enable(connection, endpoint)
        office.tell(1, tenant="7")
        office.rounds(worker)

    came = [each.document["payload"]["tenant"] for each in receiver.received]
    assert came == [str(number) for number in range(8)]


def test_what_was_given_up_comes_before_what_waited_behind_it(office: Office, receiver: Receiver) -> None:
    """Or the last that a receiver hears of an account is what was true before."""
    from store import endpoints, outbox

    endpoint = office.add(receiver.url)
    for number in range(3):
        office.tell(1, tenant=str(number))
    office.relay()
    first = "(SELECT min(id) + {} FROM tokenfleet.webhook_deliveries)"
    given_up = "SET state = 'failed', next_attempt_at = NULL, finished_at = now()"
    later = "SET next_attempt_at = now() + interval '1 hour'"
    for number, change in enumerate((given_up, later)):
        office.execute(f"UPDATE tokenfleet.webhook_deliveries {change} WHERE id = {first.format(number)}")
    office.execute("UPDATE tokenfleet.webhook_endpoints SET failing_since = now() - interval '60 hours'")
    with office.engine.begin() as connection:
        endpoints.disable(connection, endpoint, DisabledReason.FAILING)
    office.tell(1, tenant="3")
    office.relay()
    with office.engine.begin() as connection:
        assert outbox.catch_up(connection, endpoint) == (2, None)
        assert endpoints.enable(connection, endpoint)
    with office.worker() as worker:
        office.rounds(worker)

    came = [each.document["payload"]["tenant"] for each in receiver.received]
    assert came == ["0", "1", "2", "3"]
    assert sorted(office.states(endpoint)) == ["delivered"] * 4 + ["failed"]


def test_an_endpoint_that_comes_and_goes_uses_up_no_attempts(office: Office, receiver: Receiver) -> None:
    """Each time it came back, what was put off was tried early; that says nothing about the three days."""
    endpoint = office.add(receiver.url)
    receiver.answer = lambda _: Answer(500)
    office.tell(1)
    office.relay()
    office.execute("UPDATE tokenfleet.webhook_deliveries SET attempts = 40")

    with office.worker() as worker:
        office.round(worker)

    assert office.states(endpoint) == ["pending"]
    [wait] = office.column(
        "SELECT extract(epoch FROM next_attempt_at - now()) FROM tokenfleet.webhook_deliveries"
    )
    assert float(wait) < 10, "as after the first attempt"


def test_a_receiver_that_asks_us_to_wait_is_left_alone_for_so_long(
    office: Office, receiver: Receiver
) -> None:
    endpoint = office.add(receiver.url)
    receiver.answer = lambda _: Answer(429, (("Retry-After", "120"),))
    office.tell(1)

    with office.worker() as worker:
        office.round(worker)
        office.tell(2)
        assert office.round(worker) == 0, "nor with anything else"

    [rest] = office.column(
        "SELECT extract(epoch FROM retry_at - now())::float FROM tokenfleet.webhook_endpoints WHERE id = :id",
        id=endpoint,
    )
    assert 100 < rest <= 120


def test_a_slow_receiver_delays_no_other_and_gets_no_more_at_once_than_it_allows(
    office: Office, receiver: Receiver
) -> None:
    with Receiver() as quick:
        office.add(receiver.url, concurrency=6)
        office.add(quick.url)
        receiver.gate.clear()
        for account in range(30):
            office.tell(account)

        with office.worker() as worker:
            office.relay()
            while len(quick.received) < 30:
                for job in office.claim():
                    worker.run(job)
                time.sleep(0.01)
            assert len(receiver.received) == receiver.most_at_once <= 6
            receiver.gate.set()
            eventually(lambda: not office.under_way())
            office.rounds(worker)

    assert receiver.most_at_once <= 6
    assert len(set(receiver.ids())) == 30


def test_a_message_that_comes_twice_and_one_that_comes_too_late_deliver_nothing(
    office: Office, receiver: Receiver
) -> None:
    office.add(receiver.url)
    office.tell(1)
    office.relay()
    [late] = office.claim()
    office.execute("UPDATE tokenfleet.webhook_deliveries SET claimed_until = now() - interval '1 ms'")
    [job] = office.claim()

    with office.worker() as worker:
        worker.run(late)
        assert receiver.received == []
        office.run(worker, [job, job])
        office.run(worker, [job, late])

    assert len(receiver.received) == 1


def test_what_a_dead_worker_had_begun_is_delivered_by_another_under_the_same_id(
    office: Office, receiver: Receiver
) -> None:
    from store import deliveries

    office.add(receiver.url)
    event_id = office.tell(1)
    office.relay()
    [job] = office.claim()
    with office.engine.begin() as connection:
        assert deliveries.start(connection, job, claim=office.settings.tunables.webhook_claim)
    office.execute("UPDATE tokenfleet.webhook_deliveries SET claimed_until = now() - interval '1 ms'")

    with office.worker() as worker:
        office.rounds(worker)

    assert receiver.ids() == [event_id]


@pytest.mark.parametrize(
    ("answer", "status", "error"),
    [
        (Answer(302, (("Location", "http://127.0.0.1:1/"),)), 302, "redirect"),
        (Answer(404), 404, "http_404"),
        (Answer(hang_up=True), None, "connection_lost"),
    ],
)
def test_whatever_is_not_a_success_is_logged_and_tried_again(
    office: Office, receiver: Receiver, answer: Answer, status: int | None, error: str
) -> None:
    endpoint = office.add(receiver.url)
    receiver.answer = lambda _: answer
    office.tell(1)

    with office.worker() as worker:
        office.round(worker)

    assert len(receiver.received) == 1
    assert office.column("SELECT error FROM tokenfleet.webhook_attempts") == [error]
    assert office.column("SELECT status FROM tokenfleet.webhook_attempts") == [status]
    assert office.states(endpoint) == ["pending"]


def test_a_worker_that_stops_settles_what_is_on_its_way_and_gives_the_rest_back(
    office: Office, receiver: Receiver
) -> None:
    endpoint = office.add(receiver.url)
    office.tell(1)
    receiver.gate.clear()
    with office.worker() as worker:
        office.relay()
        [job] = office.claim()
        worker.run(job)
        eventually(lambda: len(receiver.received) == 1)
        worker.stop_sending()
        office.tell(2)
        office.relay()
        [rest] = office.claim()
        worker.run(rest)
        receiver.gate.set()

    assert office.states(endpoint) == ["delivered", "pending"]
    assert office.under_way() == 0
    assert len(office.claim()) == 1, "given back at once, not when the claim ends"


def test_both_secrets_sign_while_one_replaces_the_other(office: Office, receiver: Receiver) -> None:
    from store import endpoints

    endpoint = office.add(receiver.url)
    old = office.secrets[endpoint].reveal()
    with office.engine.begin() as connection:
        new = endpoints.rotate_secret(connection, office.vault.refresh, endpoint).reveal()

    def deliver() -> Received:
        office.tell(1)
        office.rounds(worker)
        return receiver.received[-1]

    with office.worker() as worker:
        during = deliver()
        office.execute(
            "UPDATE tokenfleet.webhook_secrets SET expires_at = expires_at - interval '24 hours' "
            "WHERE expires_at IS NOT NULL"
        )
        after = deliver()

    assert (during.is_signed_with(old), during.is_signed_with(new)) == (True, True)
    assert (after.is_signed_with(old), after.is_signed_with(new)) == (False, True)
    [sealed] = office.column("SELECT secret FROM tokenfleet.webhook_secrets WHERE expires_at IS NULL")
    assert new.encode() not in bytes(sealed)
