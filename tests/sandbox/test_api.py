"""The sandbox's API, which a probe calls, and the window outside of which it refuses a refresh."""

from __future__ import annotations

import json

import httpx
import pytest

from sandbox.config import SandboxConfig
from sandbox.faults import FaultKind, FaultRule, parse_rules
from tests.sandbox.client import Client, Clock, Start
from tokenfleet.errors import UserError


def userinfo(client: Client, access_token: str) -> httpx.Response:
    headers = {"Authorization": f"Bearer {access_token}"}
    return client.http.get(f"{client.server.url}/userinfo", headers=headers)


def test_a_fault_of_the_api_strikes_no_token_request_and_the_other_way_round(client: Client) -> None:
    access_token = client.refresh(client.sign_in()).json()["access_token"]
    client.server.add_faults(FaultRule(kind=FaultKind.HTML_403, endpoint="userinfo", count=1))
    client.server.add_faults(FaultRule(kind=FaultKind.STATUS_500, count=1))
    assert [userinfo(client, access_token).status_code for _ in range(2)] == [403, 200]
    [grant] = client.server.issue("acct-2")
    assert grant.tokens.refresh_token is not None
    assert client.refresh(grant.tokens.refresh_token).status_code == 500
    assert client.server.subject("acct-1").api_requests == 2
    assert client.server.ledger().api_requests == 2


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        ({"kind": "invalid_grant", "endpoint": "userinfo"}, "is about token requests"),
        ({"kind": "status_500", "endpoint": "userinfo", "stage": "before_deciding"}, "leave 'stage' out"),
        ({"kind": "status_500", "stage": "api_request"}, "say endpoint 'userinfo'"),
    ],
)
def test_a_fault_that_the_api_cannot_have_is_refused(rule: dict[str, str], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        parse_rules(json.dumps({"rules": [rule]}).encode())


def test_a_refresh_is_refused_while_the_access_token_is_young_and_spends_nothing(
    start: Start, clock: Clock
) -> None:
    client = start(SandboxConfig(access_lifetime_seconds=3600, earliest_refresh_seconds=100))
    token = client.sign_in()
    early = client.refresh(token)
    assert (early.status_code, early.json()["error"]) == (400, "invalid_request")
    clock.now += 3500
    assert client.refresh(token).status_code == 200
    assert client.server.ledger().presented_twice == 0


def test_a_dead_access_token_opens_the_window(start: Start, clock: Clock) -> None:
    client = start(SandboxConfig(access_lifetime_seconds=3600, earliest_refresh_seconds=100))
    token = client.sign_in()
    clock.now += 3601
    assert client.refresh(token).status_code == 200


def test_a_window_of_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="window of refreshes is 0"):
        SandboxConfig(earliest_refresh_seconds=0)
