"""Each fault over a real connection: what the client sees, and what becomes of the token and the ledger."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime

import httpx
import pytest

from sandbox.config import SandboxConfig
from sandbox.faults import FaultKind, FaultRule
from sandbox.selection import Stage
from tests.sandbox.client import Client, Clock, Start


@pytest.mark.parametrize(
    ("kind", "status", "error"),
    [
        (FaultKind.STATUS_500, 500, "server_error"),
        (FaultKind.STATUS_503_RETRY_AFTER, 503, "temporarily_unavailable"),
        (FaultKind.STATUS_429_RETRY_AFTER, 429, "slow_down"),
        (FaultKind.INVALID_GRANT, 400, "invalid_grant"),
        (FaultKind.INVALID_CLIENT, 401, "invalid_client"),
        (FaultKind.ERROR_IN_200, 200, "server_error"),
    ],
)
def test_an_error_that_was_ordered_leaves_the_token_good(
    client: Client, kind: FaultKind, status: int, error: str
) -> None:
    token = client.sign_in()
    client.server.add_faults(FaultRule(kind=kind, count=1))
    refusal = client.refresh(token)
    assert (refusal.status_code, refusal.json()["error"]) == (status, error)
    assert client.refresh(token).status_code == 200
    report = client.server.ledger()
    assert report.presented_twice == report.rotations_lost == report.rejected == 0
    assert report.faults == {kind: 1}


def test_a_firewall_answers_with_a_page(client: Client) -> None:
    client.server.add_faults(FaultRule(kind=FaultKind.HTML_403))
    answer = client.refresh(client.sign_in())
    assert answer.status_code == 403
    assert answer.headers["Content-Type"].startswith("text/html")


def test_garbage_is_announced_as_json_and_is_none(client: Client) -> None:
    client.server.add_faults(FaultRule(kind=FaultKind.GARBAGE_JSON))
    answer = client.refresh(client.sign_in())
    assert answer.headers["Content-Type"].startswith("application/json")
    with pytest.raises(json.JSONDecodeError):
        answer.json()


def test_retry_after_is_given_in_seconds_or_as_a_date(client: Client, clock: Clock) -> None:
    token = client.sign_in()
    clock.now += 0.4
    rule = FaultRule(kind=FaultKind.STATUS_429_RETRY_AFTER, count=1, retry_after_seconds=7)
    client.server.add_faults(rule, rule.model_copy(update={"retry_after_format": "http-date"}))
    assert client.refresh(token).headers["Retry-After"] == "7"
    date = parsedate_to_datetime(client.refresh(token).headers["Retry-After"])
    assert 7 <= date.timestamp() - clock.now < 8


def test_a_reset_before_leaves_the_token_good(client: Client) -> None:
    token = client.sign_in()
    client.server.add_faults(FaultRule(kind=FaultKind.RESET_BEFORE, count=1))
    with pytest.raises(httpx.ReadError):
        client.refresh(token)
    assert client.refresh(token).status_code == 200
    report = client.server.ledger()
    assert report.presented_twice == report.replays_after_loss == report.rotations_lost == 0


@pytest.mark.parametrize(
    ("kind", "failure"),
    [(FaultKind.RESET_AFTER, httpx.ReadError), (FaultKind.HALF_ANSWER, httpx.RemoteProtocolError)],
)
def test_a_lost_answer_is_known_to_the_ledger_and_strands_the_account(
    client: Client, kind: FaultKind, failure: type[httpx.TransportError]
) -> None:
    token = client.sign_in("acct-7")
    client.server.add_faults(FaultRule(kind=kind, count=1))
    with pytest.raises(failure):
        client.refresh(token)
    lost = client.server.ledger()
    assert (lost.rotations_lost, lost.accounts_stranded, lost.accounts_alive) == (1, 1, 0)
    assert client.server.subject("acct-7").stranded
    assert client.refresh(token).json()["error"] == "invalid_grant"
    after = client.server.ledger()
    assert (after.replays_after_loss, after.presented_twice, after.rotations_lost) == (1, 0, 1)
    assert after.families_revoked == 1


def test_a_refusal_is_not_broken_off(client: Client) -> None:
    token = client.sign_in()
    client.refresh(token)
    client.server.add_faults(FaultRule(kind=FaultKind.HALF_ANSWER))
    refused = client.refresh(token)
    assert (refused.status_code, refused.json()["error"]) == (400, "invalid_grant")


def test_a_replay_inside_the_grace_recovers_a_lost_answer(start: Start) -> None:
    client = start(SandboxConfig(grace_seconds=30))
    token = client.sign_in()
    client.server.add_faults(FaultRule(kind=FaultKind.RESET_AFTER, count=1))
    with pytest.raises(httpx.ReadError):
        client.refresh(token)
    successor = client.refresh(token).json()["refresh_token"]
    assert client.server.ledger().accounts_stranded == 0
    assert client.refresh(successor).status_code == 200
    report = client.server.ledger()
    assert (report.rotations_lost, report.rotations_recovered, report.accounts_alive) == (0, 1, 1)
    assert report.presented_twice == 0


def test_an_error_may_be_ordered_after_the_rotation(client: Client) -> None:
    token = client.sign_in()
    client.server.add_faults(FaultRule(kind=FaultKind.STATUS_500, stage=Stage.AFTER_DECIDING))
    assert client.refresh(token).status_code == 500
    assert client.server.ledger().rotations_lost == 1


def test_an_omitted_refresh_token_means_that_the_old_one_stays_good(client: Client) -> None:
    token = client.sign_in()
    client.server.add_faults(FaultRule(kind=FaultKind.MISSING_REFRESH_TOKEN, count=1))
    assert "refresh_token" not in client.refresh(token).json()
    assert "refresh_token" in client.refresh(token).json()
    assert client.server.ledger().presented_twice == 0


def test_an_omitted_lifetime_is_omitted_and_the_rest_is_good(client: Client) -> None:
    client.server.add_faults(FaultRule(kind=FaultKind.MISSING_EXPIRES_IN))
    body = client.refresh(client.sign_in()).json()
    assert "expires_in" not in body
    assert client.refresh(body["refresh_token"]).status_code == 200


def test_a_slow_answer_is_a_good_one(client: Client) -> None:
    client.server.add_faults(FaultRule(kind=FaultKind.SLOW, seconds=0.05))
    answer = client.refresh(client.sign_in())
    assert answer.status_code == 200
    assert answer.elapsed.total_seconds() >= 0.05


def test_a_hang_ends_with_the_clients_patience_and_counts_as_a_loss(client: Client) -> None:
    token = client.sign_in()
    client.server.add_faults(FaultRule(kind=FaultKind.HANG, count=1))
    client.http.timeout = httpx.Timeout(0.1)
    with pytest.raises(httpx.ReadTimeout):
        client.refresh(token)
    client.http.timeout = httpx.Timeout(10)
    client.refresh(token)
    report = client.server.ledger()
    assert (report.rotations_lost, report.replays_after_loss, report.presented_twice) == (1, 1, 0)


def test_a_client_that_hangs_up_ends_its_request_and_loses_its_answer(client: Client) -> None:
    token = client.sign_in()
    client.http.timeout = httpx.Timeout(0.1)
    with client.server.hold():
        with pytest.raises(httpx.ReadTimeout):
            client.refresh(token)
        deadline = time.monotonic() + 10
        while client.server.ledger().open_requests and time.monotonic() < deadline:
            time.sleep(0.005)
        report = client.server.ledger()
    assert (report.open_requests, report.rotations_lost, report.refreshes) == (0, 1, 0)


def test_a_hang_with_an_end_resets_the_connection(client: Client) -> None:
    client.server.add_faults(FaultRule(kind=FaultKind.HANG, seconds=0.02))
    with pytest.raises(httpx.ReadError):
        client.refresh(client.sign_in())


def test_two_requests_at_once_are_seen_by_the_ledger(client: Client) -> None:
    token = client.sign_in("acct-7")
    with ThreadPoolExecutor(2) as pool:
        with client.server.hold(stage=Stage.BEFORE_DECIDING):
            pair = [pool.submit(client.refresh, token) for _ in range(2)]
            client.server.wait_for_held(2)
            assert client.server.ledger().open_requests == 2
        statuses = sorted(request.result().status_code for request in pair)
    assert statuses == [200, 400]
    report = client.server.ledger()
    assert (report.presented_at_once, report.max_open_requests, report.open_requests) == (1, 2, 0)
    assert [violation.subject for violation in report.violations] == ["acct-7"]


def test_a_held_answer_is_decided_already_unless_told_otherwise(client: Client) -> None:
    token = client.sign_in("acct-7")
    with ThreadPoolExecutor(1) as pool:
        with client.server.hold():
            answer = pool.submit(client.refresh, token)
            client.server.wait_for_held(1)
            assert client.server.subject("acct-7").rotations == 1
        assert answer.result().status_code == 200


def test_a_hold_may_choose_subjects(client: Client) -> None:
    with client.server.hold(prefix="other-"):
        assert client.refresh(client.sign_in()).status_code == 200


def test_waiting_for_requests_that_do_not_come_ends(client: Client) -> None:
    with client.server.hold(), pytest.raises(TimeoutError, match="0 of 1"):
        client.server.wait_for_held(1, timeout_seconds=0.01)


def test_latency_is_spent_after_the_decision(start: Start) -> None:
    client = start(SandboxConfig(latency_seconds=(0.05, 0.06)))
    assert client.refresh(client.sign_in()).elapsed.total_seconds() >= 0.05
