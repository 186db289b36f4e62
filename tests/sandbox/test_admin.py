"""The admin endpoints over HTTP: what `demo`, `sandbox` and the crash suite drive from other processes."""

from __future__ import annotations

import hashlib
import json
from datetime import datetime
from typing import Any

import pytest

from sandbox.config import SandboxConfig
from tests.sandbox.client import Client, Clock, Start


def order(client: Client, path: str, **body: object) -> dict[str, Any]:
    answer = client.http.post(f"{client.server.url}/sandbox/{path}", json=body)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def grants(client: Client, **body: object) -> list[dict[str, Any]]:
    answer = client.http.post(f"{client.server.url}/sandbox/grants", json=body)
    return [json.loads(line) for line in answer.text.splitlines()]


def read(client: Client, path: str) -> dict[str, Any]:
    return dict(client.http.get(f"{client.server.url}/sandbox/{path}").json())


def json_lines(client: Client, path: str) -> list[dict[str, Any]]:
    text = client.http.get(f"{client.server.url}/sandbox/{path}").text
    return [json.loads(line) for line in text.splitlines()]


def live(client: Client) -> dict[str, dict[str, Any]]:
    text = client.http.get(f"{client.server.url}/sandbox/ledger/live").text
    return {line["subject"]: line for line in map(json.loads, text.splitlines())}


def sha256(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def test_grants_come_as_lines_to_import(client: Client, clock: Clock) -> None:
    lines = grants(client, count=3, prefix="shop-", tenant="north")
    assert [line["external_id"] for line in lines] == ["shop-1", "shop-2", "shop-3"]
    assert {line["provider"] for line in lines} == {"sandbox"}
    assert {line["tenant"] for line in lines} == {"north"}
    expires_at = datetime.fromisoformat(lines[0]["expires_at"])
    assert expires_at.timestamp() == clock.now + client.server.config.access_lifetime_seconds
    assert client.refresh(lines[2]["refresh_token"]).status_code == 200


def test_many_grants_are_streamed_whole(client: Client) -> None:
    assert len({line["refresh_token"] for line in grants(client, count=1001)}) == 1001


def test_customers_of_a_fleet_that_has_run_for_long_hold_tokens_of_every_age(
    client: Client, clock: Clock
) -> None:
    lines = grants(client, count=3, seconds_left=[60, 300])
    ends = [datetime.fromisoformat(line["expires_at"]).timestamp() - clock.now for line in lines]
    assert ends == [60, 180, 300]
    assert live(client)["acct-2"]["access_token_expires_at"] == clock.now + 180
    assert client.refresh(lines[0]["refresh_token"]).json()["expires_in"] == 3600


def test_a_refresh_token_with_an_end_is_imported_with_it(start: Start, clock: Clock) -> None:
    client = start(SandboxConfig(refresh_absolute_lifetime_seconds=900))
    (line,) = grants(client)
    assert datetime.fromisoformat(line["refresh_token_expires_at"]).timestamp() == clock.now + 900


def test_the_live_list_compares_with_a_database_by_fingerprints(client: Client) -> None:
    (line,) = grants(client)
    body = client.refresh(line["refresh_token"]).json()
    facts = live(client)["acct-1"]
    assert facts["refresh_token_sha256"] == sha256(body["refresh_token"])
    assert facts["access_token_sha256"] == sha256(body["access_token"])
    assert (facts["rotations"], facts["alive"], facts["stranded"]) == (1, True, False)


def test_the_ledger_tells_totals_and_one_subject(client: Client) -> None:
    lines = grants(client, count=2)
    client.refresh(lines[0]["refresh_token"])
    client.refresh(lines[0]["refresh_token"])
    totals = read(client, "ledger")
    assert (totals["refreshes"], totals["presented_twice"], totals["accounts_alive"]) == (1, 1, 1)
    assert totals["violations"] == [
        {"kind": "after_success", "subject": "acct-1", "family": 0, "rotation": 0}
    ]
    one = read(client, "ledger?subject=acct-1")
    assert (one["presented"], one["presented_twice"], one["alive"]) == (2, 1, False)


def test_an_unknown_subject_is_not_found(client: Client) -> None:
    assert client.http.get(f"{client.server.url}/sandbox/ledger?subject=nobody").status_code == 404


def test_no_report_contains_a_token(client: Client) -> None:
    (line,) = grants(client)
    body = client.refresh(line["refresh_token"]).json()
    client.refresh(line["refresh_token"])
    client.http.post(f"{client.server.url}/sandbox/faults", json={"rules": [{"kind": "status_500"}]})
    paths = ("ledger", "ledger/live", "ledger?subject=acct-1", "faults", "held")
    text = "".join(client.http.get(f"{client.server.url}/sandbox/{path}").text for path in paths)
    for token in (line["refresh_token"], line["access_token"], body["refresh_token"], body["access_token"]):
        assert token not in text
    assert "sandbox-rt-" not in text
    assert "sandbox-at-" not in text


def test_faults_are_ordered_listed_and_ended(client: Client) -> None:
    (line,) = grants(client)
    listed = order(client, "faults", rules=[{"kind": "status_500", "count": 5}])
    assert listed["rules"][0]["count"] == 5
    assert client.refresh(line["refresh_token"]).status_code == 500
    assert read(client, "faults")["struck"] == {"status_500": 1}
    client.http.delete(f"{client.server.url}/sandbox/faults")
    assert client.refresh(line["refresh_token"]).status_code == 200


def test_a_customer_revokes_for_real(client: Client) -> None:
    (line,) = grants(client)
    assert order(client, "revoke", subjects=["acct-1", "nobody"]) == {"revoked": 1, "not_living": ["nobody"]}
    assert client.refresh(line["refresh_token"]).json()["error"] == "invalid_grant"
    assert read(client, "ledger")["families_revoked"] == 0


def test_a_tester_declares_losses_by_the_token_that_was_presented(client: Client) -> None:
    (line,) = grants(client)
    presented = sha256(line["refresh_token"])
    client.refresh(line["refresh_token"])
    claims = [{"subject": name, "refresh_token_sha256": presented} for name in ("acct-1", "nobody")]
    assert order(client, "losses", losses=claims) == {"lost": 1, "nothing_to_lose": ["nobody"]}
    assert live(client)["acct-1"]["stranded"]
    (loss,) = json_lines(client, "losses")
    assert loss == {"subject": "acct-1", "refresh_token_sha256": presented, "recovered": False}


def test_what_was_presented_twice_is_listed_by_its_fingerprint(client: Client) -> None:
    (line,) = grants(client)
    for _ in range(2):
        client.refresh(line["refresh_token"])
    (violation,) = json_lines(client, "violations")
    presented = sha256(line["refresh_token"])
    assert violation == {"kind": "after_success", "subject": "acct-1", "refresh_token_sha256": presented}


def test_customers_sign_in_by_name(client: Client) -> None:
    lines = grants(client, subjects=["acct-9", "acct-4"])
    assert [line["external_id"] for line in lines] == ["acct-9", "acct-4"]


def test_a_hold_is_set_and_released_over_http(client: Client) -> None:
    order(client, "hold", prefix="other-")
    assert read(client, "held") == {"held": 0}
    assert order(client, "release") == {"released": 0}


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("grants", {"count": 0}, "count"),
        ("grants", {"cuont": 1}, "cuont"),
        ("faults", {"rules": [{"kind": "explode"}]}, "rules.0.kind"),
        ("revoke", {}, "subjects"),
        ("hold", {"stage": "whenever"}, "stage"),
        ("grants", {"seconds_left": [0, 60]}, "seconds_left"),
        ("doors", {"port": 70000}, "port"),
        ("traffic", {"prefixes": []}, "prefixes"),
    ],
)
def test_a_wrong_order_is_refused_with_its_place(
    client: Client, path: str, body: dict[str, Any], words: str
) -> None:
    answer = client.http.post(f"{client.server.url}/sandbox/{path}", json=body)
    assert answer.status_code == 400
    assert words in answer.json()["error"]
