"""``tokenfleet webhooks``: what people and programs see, and what is refused in a sentence."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, text

from store.keys import Vault
from tests.cli.conftest import Shell
from tests.support.post_office import Office
from tests.support.webhook_receiver import Answer, Receiver
from tokenfleet.settings import Settings

HERE = {"TOKENFLEET_ALLOW_PRIVATE_WEBHOOKS": "true"}
URL = "https://receiver.example/hook"


@pytest.fixture
def office(engine: Engine, vault: Vault, settings: Settings) -> Office:
    return Office(engine, vault, settings)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


def test_the_secret_is_shown_once_and_a_list_shows_everything_else(tokenfleet: Shell, vault: Vault) -> None:
    added = tokenfleet("webhooks", "add", URL, "--tenant", "blue", "--event", "provider:*", "--json").document
    secret = added["secret"]
    assert secret.startswith("whsec_")

    listed = tokenfleet("webhooks", "list", "--json")
    [endpoint] = listed.document
    assert endpoint["url"] == URL
    assert (endpoint["tenants"], endpoint["event_types"], endpoint["environments"]) == (
        ["blue"], ["provider:*"], None,
    )  # fmt: skip
    assert (endpoint["state"], endpoint["waiting"]) == ("ready", 0)
    shown = tokenfleet("webhooks", "list")
    assert "provider:*; tenant blue" in shown.stdout
    assert secret not in listed.stdout + shown.stdout

    rotated = tokenfleet("webhooks", "rotate-secret", "1")
    assert "The old one signs beside it for 1 d" in rotated.stdout
    assert secret not in rotated.stdout
    assert "signs nothing any more" in tokenfleet("webhooks", "rotate-secret", "1", "--at-once").stdout


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://receiver.example/", "https only"),
        ("https://127.0.0.1/", "not an address of the public internet"),
        ("https://[::ffff:10.0.0.1]/", "not an address of the public internet"),
        ("https://169.254.169.254/latest", "not an address of the public internet"),
        ("https://me:planted-password@receiver.example/", "no user, password or fragment"),
        ("https:///hook", "names no host"),
        ("https://receiver.example:99999/", "not a URL"),
        ("nonsense", "https only"),
    ],
)
def test_a_url_that_webhooks_may_not_go_to_is_refused_in_a_sentence(
    tokenfleet: Shell, vault: Vault, url: str, words: str
) -> None:
    ran = tokenfleet("webhooks", "add", url)
    assert ran.exit_code == 2
    assert words in " ".join(ran.stderr.replace("│", " ").split())
    assert "planted-password" not in ran.stderr


def test_a_url_that_is_added_twice_is_told(tokenfleet: Shell, vault: Vault) -> None:
    assert tokenfleet("webhooks", "add", URL).stderr == ""
    again = tokenfleet("webhooks", "add", URL, "--json")
    assert (again.exit_code, again.document["endpoint_id"]) == (0, 2)
    assert "Endpoint 1 has the same URL" in again.stderr


def test_mistakes_are_usage_errors(tokenfleet: Shell, vault: Vault) -> None:
    mistakes = (
        f"add {URL} --event integrated_account:creatd",
        f"add {URL} --concurrency 0",
        "replay",
        "replay 1 --endpoint 1",
        "replay --endpoint 1",
        "replay --endpoint 1 --since yesterday",
        "replay --endpoint 1 --since 2026-11-21T07:00:00",
        "deliveries --event-id none",
    )
    for words in mistakes:
        assert tokenfleet("webhooks", *words.split()).exit_code == 2, words
    assert "'x' is not a valid id." in tokenfleet("webhooks", "test", "x").stderr
    for command in ("test", "remove", "rotate-secret", "enable", "disable", "deliveries --endpoint"):
        ran = tokenfleet("webhooks", *command.split(), "9")
        assert (ran.exit_code, "there is no webhook endpoint 9" in ran.stderr) == (1, True), command


def test_a_test_event_says_at_once_whether_the_endpoint_works(
    tokenfleet: Shell, office: Office, receiver: Receiver
) -> None:
    endpoint = office.add(receiver.url)
    secret = office.secrets[endpoint].reveal()

    ran = tokenfleet("webhooks", "test", "1", **HERE)
    assert ran.exit_code == 0
    assert "answered 204" in ran.stdout
    [received] = receiver.received
    assert received.is_signed_with(secret)
    assert received.document["event_type"] == "webhook:test"

    receiver.answer = lambda _: Answer(500)
    failed = tokenfleet("webhooks", "test", "1", "--json", **HERE)
    assert (failed.exit_code, failed.document["status"], failed.document["error"]) == (1, 500, "http_500")
    assert office.states(endpoint) == ["delivered", "failed"]

    refused = tokenfleet("webhooks", "test", "1")
    assert refused.exit_code == 1
    assert "did not answer (not_public)" in refused.stderr
    assert len(receiver.received) == 2, "refused before a packet left"


def test_the_log_shows_each_attempt_with_its_status_and_how_long_it_took(
    tokenfleet: Shell, office: Office, receiver: Receiver
) -> None:
    office.add(receiver.url)
    receiver.answer = lambda _: Answer(500)
    event_id = office.tell(1)
    office.tell(1)
    with office.worker() as worker:
        office.round(worker)
        receiver.answer = lambda _: Answer(200)
        office.pass_time()
        office.round(worker)

    documents = tokenfleet("webhooks", "deliveries", "--attempts", "--json").document
    waiting, delivered = (each["delivery"] for each in documents)
    assert (delivered["state"], delivered["attempts"], delivered["event_id"]) == ("delivered", 2, event_id)
    assert [(each["status"], each["error"]) for each in documents[1]["attempts"]] == [
        (500, "http_500"),
        (200, None),
    ]
    assert all(each["duration_ms"] >= 0 for each in documents[1]["attempts"])
    assert waiting["state"] == "pending"
    shown = tokenfleet("webhooks", "deliveries", "--event-id", event_id, "--attempts").stdout
    assert len(shown.splitlines()) == 4
    assert "account:1" in shown
    assert tokenfleet("webhooks", "deliveries", "--state", "failed").stdout == "No delivery matches.\n"


def test_replays_keep_their_ids_and_their_order(
    tokenfleet: Shell, office: Office, receiver: Receiver
) -> None:
    office.tell(1)
    endpoint = office.add(receiver.url)
    told = [office.tell(1), office.tell(1), office.tell(2)]
    with office.worker() as worker:
        office.rounds(worker)
        first = list(receiver.ids())
        assert sorted(first) == sorted(told)

        ran = tokenfleet("webhooks", "replay", "1", "2")
        assert ran.stdout == "2 events will be sent again.\n"
        assert "2 of those named" in tokenfleet("webhooks", "replay", "1", "2").stderr, "they are under way"
        office.rounds(worker)
        ran = tokenfleet("webhooks", "replay", "77", "1")
        assert ran.exit_code == 1
        assert "1 of those named does not exist or is pending" in ran.stderr
        office.rounds(worker)
        assert receiver.ids()[3:] == told[:2] + told[:1]

        since = "2020-01-01T00:00:00Z"
        missed = tokenfleet("webhooks", "replay", "--endpoint", "1", "--since", since)
        assert missed.stdout == "1 event will be sent.\n", "the one from before it was added"
        everything = tokenfleet(
            "webhooks", "replay", "--endpoint", "1", "--since", since, "--delivered-too", "--json"
        )
        assert everything.document == {"replayed": 3}, "what is pending already is left out"
        office.rounds(worker)

    assert len(receiver.received) == 3 + 3 + 1 + 3
    assert set(office.states(endpoint)) == {"delivered"}


def test_disabled_is_told_in_the_list_and_undone_by_enable(
    tokenfleet: Shell, office: Office, receiver: Receiver
) -> None:
    office.add(receiver.url)
    receiver.answer = lambda _: Answer(410)
    office.tell(1)
    with office.worker() as worker:
        office.rounds(worker)
    assert "it answered 410 (gone)" in tokenfleet("webhooks", "list").stdout
    for what in (("--endpoint", "1", "--since", "2020-01-01T00:00:00Z"), ("1",)):
        refused = tokenfleet("webhooks", "replay", *what)
        assert (refused.exit_code, "is disabled and is sent nothing" in refused.stderr) == (1, True)

    enabled = tokenfleet("webhooks", "enable", "1")
    assert "replay --endpoint 1 --since" in enabled.stdout
    assert tokenfleet("webhooks", "enable", "1").exit_code == 1
    assert tokenfleet("webhooks", "disable", "1").exit_code == 0
    assert json.loads(tokenfleet("webhooks", "list", "--json").stdout)[0]["disabled_reason"] == "operator"


def test_enabling_with_what_was_missed_says_how_much_and_remembers_it(
    tokenfleet: Shell, office: Office, receiver: Receiver
) -> None:
    office.add(receiver.url)
    assert tokenfleet("webhooks", "disable", "1").exit_code == 0
    told = [office.tell(account) for account in (1, 2, 1)]
    office.relay()

    enabled = tokenfleet("webhooks", "enable", "1", "--with-missed")
    assert "3 events waited for it" in enabled.stdout
    assert "Among them are 3 events that it had missed." in enabled.stdout
    assert tokenfleet("webhooks", "enable", "1", "--with-missed").exit_code == 1
    with office.worker() as worker:
        office.rounds(worker)
    assert sorted(receiver.ids()) == sorted(told)
    assert office.column(
        "SELECT detail ->> 'missed' FROM tokenfleet.audit_log WHERE action = 'webhooks.enable'"
    ) == ["3"]


def test_status_and_doctor_say_who_fails_who_was_disabled_and_what_waits(
    tokenfleet: Shell, office: Office, receiver: Receiver
) -> None:
    assert "Webhooks" not in tokenfleet("status").stdout, "nobody wants any"
    failing, gone, well = (office.add(URL) for _ in range(3))
    calm = tokenfleet("status").stdout
    assert "Webhooks: 3 endpoints; nothing waits" in calm
    assert "webhooks: 3 endpoints, none in trouble" in tokenfleet("doctor").stdout
    for account in range(4):
        office.tell(account)
    office.relay()
    office.execute(
        "UPDATE tokenfleet.webhook_endpoints SET failures = 5, last_error = 'timeout', failing_since = now(), "
        "retry_at = now() + interval '5 s' WHERE id = :id",
        id=failing,
    )
    office.execute(
        "UPDATE tokenfleet.webhook_endpoints SET disabled_at = now(), disabled_reason = 'gone' WHERE id = :id",
        id=gone,
    )

    shown = tokenfleet("status").stdout
    assert "Webhooks: 3 endpoints, 1 failing since " in shown
    assert "1 disabled; 12 events waiting" in shown
    said = tokenfleet("doctor").stdout
    assert f"webhooks: endpoint {failing} fails since " in said
    assert "(timeout) and is disabled 2" in said
    assert f"'tokenfleet webhooks enable {gone} --with-missed' once it is mended" in said
    assert "--queues webhooks" not in said
    office.execute(
        "UPDATE tokenfleet.webhook_deliveries SET next_attempt_at = now() - interval '5 min' WHERE endpoint_id = :id",
        id=well,
    )
    assert "--queues webhooks" in tokenfleet("doctor").stdout
    found = tokenfleet("status", "--json").document["fleet"]["webhooks"]
    assert (found["endpoints"], found["disabled"], found["waiting"], found["is_more"]) == (3, 1, 12, False)
    assert "if that lasts" in tokenfleet("webhooks", "list").stdout


def test_what_is_removed_is_gone_with_all_that_waited(tokenfleet: Shell, office: Office) -> None:
    office.add(URL)
    kept = office.add(URL)
    for account in range(3):
        office.tell(account)
    office.relay()

    assert tokenfleet("webhooks", "remove", "1").exit_code == 0

    assert [each["endpoint_id"] for each in tokenfleet("webhooks", "list", "--json").document] == [kept]
    with office.engine.connect() as connection:
        left = connection.execute(text("SELECT DISTINCT endpoint_id FROM tokenfleet.webhook_deliveries"))
        assert list(left.scalars()) == [kept]
        assert isinstance(
            connection.execute(text("SELECT id FROM tokenfleet.outbox")).scalars().first(), uuid.UUID
        )
