"""The answer to "why did it stop?": from rows, without a database; and one from a database, whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any, Final
from uuid import UUID

import pytest
from sqlalchemy import Engine, text

from cli.meanings import meaning_of
from cli.story import answer
from providers import load_registry
from store import rejections
from store.audit import AuditRow
from store.details import AccountDetail
from store.history import HistoryRow
from store.incidents import Incident, Kind
from store.keys import Vault
from store.story import Story, Told
from tests.cli.conftest import Shell
from tests.cli.test_explain import ACCOUNT, MINUTE, NOW, SCHEDULE
from tests.support.builders import ACTOR, begin_attempt, make_account, make_app, make_due, rejection
from tokenfleet.jobs import AppId
from tokenfleet_client.contract import AccountStatus

GONE: Final = replace(
    ACCOUNT,
    status=AccountStatus.NEEDS_REAUTH,
    status_reason="invalid_grant",
    status_changed_at=NOW - 5 * MINUTE,
)
OPERATOR: Final = "operator:ada"
NOTHING: Final = Story([], True, None, [], [], [], [], None)


def _row(minutes_ago: float, kind: str, code: str | None = None, **more: Any) -> HistoryRow:
    values: dict[str, Any] = {
        "generation": None,
        "epoch": 3,
        "job_id": None,
        "duration_ms": 9,
        "actor": "worker-1",
        "status_from": None,
        "status_to": None,
        "detail": None,
    }
    return HistoryRow(NOW - minutes_ago * MINUTE, kind, code, **values | more)


REJECTED: Final = _row(
    5, "account.grant_rejected", "invalid_grant", status_from="active", status_to="needs_reauth"
)
SUCCESSES: Final = [_row(ago, "refresh.succeeded") for ago in (65, 125, 185)]


def _told(account: AccountDetail, story: Story) -> str:
    found = answer(account, story, lambda code: f"meaning of {code}")
    return f"{found.what}\n{found.means}\n{found.before}\n{found.others}\n{found.told}\n{found.to_do}"


def _action(minutes_ago: float, action: str, reason: str | None) -> AuditRow:
    at = NOW - minutes_ago * MINUTE
    return AuditRow(1, at, OPERATOR, "host", action, "t", reason, None, "role", None)


def test_a_lost_grant_is_told_with_its_code_what_was_before_and_who_had_a_hand_in_it() -> None:
    failed = [_row(30, "refresh.unavailable", "http_503"), _row(40, "refresh.unavailable", "http_503")]
    story = replace(
        NOTHING,
        history=[REJECTED, *failed, *SUCCESSES],
        app_actions=[_action(35, "apps.set", "ticket 17"), _action(300, "apps.set", "long ago")],
        beside=0,
    )
    told = _told(GONE, story)
    assert "It stopped at 2029-12-31 23:55:00Z (5 min ago): acme rejected the grant: invalid_grant." in told
    assert "Meaning of invalid_grant." in told
    assert "3 successes in a row, the last one 1 h before; then 2 attempts ended in http_503" in told
    assert 'operator ada replaced its app\'s registration 30 min before ("ticket 17")' in told
    assert "long ago" not in told
    assert "this is about this customer" in told
    assert "accounts import" in told


def test_a_success_count_that_was_cut_off_is_a_lower_bound() -> None:
    story = replace(NOTHING, history=[REJECTED, *SUCCESSES], is_whole=False)
    assert "At least 3 successes" in _told(GONE, story)


def test_company_is_told() -> None:
    incident = Incident(
        7, AppId(1), "acme", "production", "default", Kind.MASS_REJECTION, "invalid_grant", NOW - 9 * MINUTE, None,
        NOW - MINUTE, None, None, None, {},
    )  # fmt: skip
    before = replace(incident, incident_id=6, opened_at=NOW - 90 * MINUTE, resolved_at=NOW - 80 * MINUTE)
    told = _told(GONE, replace(NOTHING, history=[REJECTED], incidents=[incident, before], beside=41))
    assert "41 other accounts of its app lost the grant" in told
    assert "ncident 7 (mass_rejection, invalid_grant) of its app was open then" in told
    assert "ncident 6" not in told


@pytest.mark.parametrize(
    ("delivery", "words"),
    [
        ({"state": "delivered", "finished_at": NOW - 5 * MINUTE + timedelta(seconds=2)}, "had it after 2.0 s"),
        ({"state": "pending", "attempts": 3, "last_status": 500}, "not have it yet after 3 attempts, answered 500"),
        ({"state": "failed", "attempts": 9, "last_error": "timeout"}, "never took it: 9 attempts, the last timeout"),
        ({"endpoint_id": None}, "no endpoint asks for it"),
        ({"endpoint_id": None, "is_relayed": False}, "not sent yet"),
    ],
)  # fmt: skip
def test_who_was_told_is_told(delivery: Mapping[str, Any], words: str) -> None:
    values: dict[str, Any] = {
        "is_relayed": True,
        "delivery_id": 1,
        "endpoint_id": 3,
        "state": None,
        "attempts": 1,
        "last_status": None,
        "last_error": None,
        "finished_at": None,
        "next_attempt_at": None,
    }
    event = "integrated_account:authentication_error"
    told = Told(UUID(int=1), event, NOW - 5 * MINUTE, **values | dict(delivery))
    long_ago = replace(told, event_type="integrated_account:created", at=NOW - 900 * MINUTE)
    found = _told(GONE, replace(NOTHING, history=[REJECTED], told=[told, long_ago]))
    assert "authentication_error: " in found
    assert words in found
    assert "created" not in found


def test_an_account_that_fails_says_since_when_and_what_the_first_failure_followed() -> None:
    schedule = replace(SCHEDULE, attempts=2, failing_since=NOW - 9 * MINUTE, last_error="http_503")
    failures = [_row(3, "refresh.unavailable", "http_503"), _row(9, "refresh.unknown", "timeout")]
    found = answer(
        replace(ACCOUNT, schedule=schedule),
        replace(NOTHING, history=[*failures, *SUCCESSES]),
        lambda code: None,
    )
    assert "It fails since 2029-12-31 23:51:00Z (9 min ago): 2 attempts in a row" in found.what
    assert "the last success was at 2029-12-31 22:55:00Z (1 h 5 min ago)" in found.what
    assert (found.code, found.means) == ("http_503", "Nobody has described this code.")
    assert found.before == "3 successes in a row, the last one 56 min before."


def test_an_account_that_works_says_what_was_wrong_the_last_time_and_who_mended_it() -> None:
    back = _row(
        2, "account.reconnected", status_from="needs_reauth", status_to="active", actor=OPERATOR, epoch=None
    )
    story = replace(NOTHING, history=[_row(1, "refresh.succeeded"), back, REJECTED, *SUCCESSES])
    told = _told(ACCOUNT, story)
    assert "It works; the last success was at 2029-12-31 23:59:00Z" in told
    assert "It was needs_reauth (invalid_grant) from 2029-12-31 23:55:00Z" in told
    assert "when operator ada imported new tokens for it" in told


def test_a_pause_names_who_and_why() -> None:
    paused = replace(ACCOUNT, status=AccountStatus.PAUSED, status_reason="ticket 17")
    row = _row(5, "account.paused", status_from="active", status_to="paused", actor=OPERATOR)
    told = _told(paused, replace(NOTHING, history=[row, *SUCCESSES]))
    assert 'Operator ada paused it at 2029-12-31 23:55:00Z (5 min ago): "ticket 17".' in told
    assert "accounts resume 7" in told


def test_who_paused_it_is_known_when_history_is_no_longer_kept() -> None:
    paused = replace(ACCOUNT, status=AccountStatus.PAUSED, status_reason="x" * 500)
    told = _told(paused, replace(NOTHING, actions=[_action(500_000, "accounts.pause", "x")]))
    assert told.startswith("Operator ada paused it")
    assert "x" * 200 not in told
    assert _told(paused, NOTHING).startswith("An operator paused it")


def test_a_refresh_of_several_requests_counts_once_and_a_late_answer_is_no_failure() -> None:
    rows = [_row(n, "refresh.succeeded" if n % 2 else "steps.begun") for n in range(61, 67)]
    told = _told(GONE, replace(NOTHING, history=[REJECTED, _row(60, "refresh.lost_race"), *rows]))
    assert "3 successes in a row, the last one" in told
    assert "ended in refresh.lost_race" not in told


def test_those_who_were_not_told_come_first_and_many_endpoints_are_counted() -> None:
    event = "integrated_account:authentication_error"
    at = NOW - 5 * MINUTE
    had = [Told(UUID(int=1), event, at, True, n, n, "delivered", 1, 200, None, at, None) for n in range(9)]
    never = Told(UUID(int=1), event, at, True, 99, 99, "failed", 9, 410, None, at, None)
    found = answer(GONE, replace(NOTHING, history=[REJECTED], told=[*had, never]), lambda code: None)
    assert found.told.startswith("authentication_error: endpoint 99 never took it")
    assert found.told.endswith("; 6 more, below")


def test_there_is_an_answer_with_no_history_at_all() -> None:
    for status in AccountStatus:
        assert _told(replace(ACCOUNT, status=status), NOTHING).strip()


def test_a_code_means_what_the_definition_says_before_what_it_means_everywhere() -> None:
    registry = load_registry(None)
    described = [
        (name, rule, code)
        for name in ("salesforce", "slack")
        for rule in registry.get(name).spec.errors
        if rule.meaning
        for code in map(str, rule.value)
    ]
    assert described
    for name, rule, code in described:
        meaning = meaning_of(code, name, registry)
        assert meaning is not None
        assert meaning.startswith(str(rule.meaning).strip().rstrip(".")) or "definition of" in meaning
    assert meaning_of("http_502", "acme", registry) == "the provider had an error of its own (HTTP 502)"
    assert meaning_of("http_403", "acme", None) is not None
    assert meaning_of("never_heard_of", "acme", None) is None


def test_history_reads_what_stands_beside_the_account(
    tokenfleet: Shell, engine: Engine, vault: Vault
) -> None:
    app = make_app(engine, vault, name="default")
    ids = [make_account(engine, vault, app, due_in=timedelta(hours=1)) for _ in range(2)]
    tokenfleet("webhooks", "add", "https://example.com/hook")
    tokenfleet("accounts", "refresh", str(ids[0]), "--reason", "customer called")
    for each in ids:
        make_due(engine, each)
        attempt = begin_attempt(engine, app, each)
        with engine.begin() as connection:
            rejections.reject(connection, [rejection(each, epoch=attempt.epoch, generation=1)], actor=ACTOR)
    with engine.begin() as connection:
        connection.execute(
            text("""
                INSERT INTO tokenfleet.webhook_deliveries
                    (endpoint_id, event_id, subject, sequence, state, finished_at, attempts, last_status)
                SELECT 1, id, 's', sequence, 'delivered', clock_timestamp(), 1, 200 FROM tokenfleet.outbox
            """)
        )
    plain = tokenfleet("accounts", "history", str(ids[0])).stdout
    assert "no longer kept" not in plain
    assert "1 other account of its app lost the grant" in plain
    assert "authentication_error: endpoint 1 had it after" in plain
    assert "accounts.refresh, by operator" in plain
    assert "customer called" in plain
    document = tokenfleet("accounts", "history", str(ids[0]), "--json").document
    assert document["answer"]["code"] == "invalid_grant"
    assert document["told"][0]["last_status"] == 200
    assert document["actions"][0]["reason"] == "customer called"
    assert document["history"][0]["job_id"]
    # Its first days are past retention: the oldest partition is today's.
    assert tokenfleet("db", "upgrade").exit_code == 0
    with engine.begin() as connection:
        connection.execute(text("UPDATE tokenfleet.accounts SET created_at = now() - interval '200 days'"))
    aged = tokenfleet("accounts", "history", str(ids[0]))
    assert "what was before" in aged.stdout
    assert "00:00:00Z is no longer kept" in aged.stdout
