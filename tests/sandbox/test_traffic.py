"""What the sandbox knows of a client's pace: arrivals of watched subjects, and who was told to wait."""

from __future__ import annotations

import json
from email.utils import parsedate_to_datetime
from typing import Any

import pytest

from sandbox.config import SandboxConfig
from sandbox.faults import FaultKind, FaultRule
from sandbox.traffic import Traffic, Wait
from tests.sandbox.client import Client, Clock, Start


def watch(client: Client, *prefixes: str) -> None:
    client.http.post(f"{client.server.url}/sandbox/traffic", json={"prefixes": prefixes}).raise_for_status()


def traffic(client: Client, prefix: str) -> list[dict[str, Any]]:
    answer = client.http.get(f"{client.server.url}/sandbox/traffic", params={"prefix": prefix})
    answer.raise_for_status()
    return [json.loads(line) for line in answer.text.splitlines()]


def test_a_request_is_noted_with_its_arrival_and_the_life_that_was_left(start: Start, clock: Clock) -> None:
    client = start(SandboxConfig(access_lifetime_seconds=100))
    watch(client, "shop-")
    token = client.sign_in("shop-1")
    clock.now += 70
    client.refresh(token)
    assert traffic(client, "shop-") == [{"forgotten": 0}, {"at": clock.now, "seconds_left": 30.0}]


@pytest.mark.parametrize("fault", [FaultKind.STATUS_500, FaultKind.INVALID_CLIENT, FaultKind.HTML_403])
def test_a_request_counts_whatever_becomes_of_it(client: Client, fault: FaultKind) -> None:
    watch(client, "shop-")
    token = client.sign_in("shop-1")
    client.server.add_faults(FaultRule(kind=fault))
    client.refresh(token)
    client.refresh(token, client_secret="mistyped")
    assert len(traffic(client, "shop-")) == 3


def test_each_prefix_has_a_record_of_its_own(client: Client) -> None:
    watch(client, "shop-", "inn-")
    client.refresh(client.sign_in("shop-1"))
    client.refresh(client.sign_in("bar-1"))
    assert len(traffic(client, "shop-")) == 2
    assert len(traffic(client, "inn-")) == 1


def test_who_is_not_watched_is_not_found(client: Client) -> None:
    client.refresh(client.sign_in("shop-1"))
    assert client.http.get(f"{client.server.url}/sandbox/traffic?prefix=shop-").status_code == 404


@pytest.mark.parametrize("kind", [FaultKind.STATUS_429_RETRY_AFTER, FaultKind.STATUS_503_RETRY_AFTER])
def test_a_client_that_is_told_to_wait_is_noted_with_the_moment(
    client: Client, clock: Clock, kind: FaultKind
) -> None:
    watch(client, "shop-")
    token = client.sign_in("shop-1")
    client.server.add_faults(FaultRule(kind=kind, retry_after_seconds=30))
    assert client.refresh(token).headers["Retry-After"] == "30"
    assert traffic(client, "shop-")[1] == {"at": clock.now, "until": clock.now + 30}


def test_a_date_to_wait_for_is_the_one_that_was_sent(client: Client, clock: Clock) -> None:
    clock.now += 0.25
    watch(client, "shop-")
    token = client.sign_in("shop-1")
    fault = FaultRule(
        kind=FaultKind.STATUS_429_RETRY_AFTER, retry_after_seconds=30, retry_after_format="http-date"
    )
    client.server.add_faults(fault)
    sent = parsedate_to_datetime(client.refresh(token).headers["Retry-After"]).timestamp()
    assert traffic(client, "shop-")[1] == {"at": clock.now, "until": sent}
    assert sent >= clock.now + 30


def test_what_is_forgotten_is_counted() -> None:
    record = Traffic(remembered=10)
    record.watch("shop-")
    for number in range(35):
        record.arrived("shop-1", float(number), 1.0)
    assert [arrival.at for arrival in record.arrivals("shop-")] == [float(n) for n in range(20, 35)]
    assert record.forgotten("shop-") == 20


def test_waits_are_forgotten_as_well() -> None:
    record = Traffic(remembered=2)
    record.watch("")
    for number in range(5):
        record.told_to_wait("shop-1", Wait(number, number + 1))
    assert record.waits("") == (Wait(2, 3), Wait(3, 4), Wait(4, 5))
    assert record.forgotten("") == 2
