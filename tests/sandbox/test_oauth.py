"""The OAuth endpoints over real HTTP: RFC 6749, 7009, 7662 and 6750."""

from __future__ import annotations

import base64

import httpx
import pytest

from sandbox.config import Rotation, SandboxConfig
from tests.sandbox.client import Client, Clock, Start


def basic(client_id: str, secret: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{client_id}:{secret}".encode()).decode()}


def test_a_refresh_is_answered_as_the_rfc_says(client: Client) -> None:
    answer = client.refresh(client.sign_in())
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["Cache-Control"] == "no-store"
    body = answer.json()
    assert body["token_type"] == "Bearer"
    assert body["expires_in"] == client.server.config.access_lifetime_seconds
    assert {"access_token", "refresh_token", "scope"} <= body.keys()


def test_a_spent_token_is_an_invalid_grant_and_takes_its_family_along(client: Client) -> None:
    token = client.sign_in()
    successor = client.refresh(token).json()["refresh_token"]
    reuse = client.refresh(token)
    assert (reuse.status_code, reuse.json()["error"]) == (400, "invalid_grant")
    assert client.refresh(successor).json()["error"] == "invalid_grant"
    report = client.server.ledger()
    assert report.families_revoked == 1
    assert report.presented_twice == 1
    assert report.accounts_alive == 0
    assert report.rejected_by_error == {"invalid_grant": 2}


def test_a_replay_inside_the_grace_gets_the_same_successor(start: Start, clock: Clock) -> None:
    client = start(SandboxConfig(grace_seconds=30))
    token = client.sign_in()
    first = client.refresh(token).json()
    clock.now += 29
    again = client.refresh(token).json()
    assert again["refresh_token"] == first["refresh_token"]
    assert again["access_token"] == first["access_token"]


def test_a_provider_without_rotation_returns_no_refresh_token(start: Start) -> None:
    client = start(SandboxConfig(rotation=Rotation.NEVER))
    token = client.sign_in()
    assert "refresh_token" not in client.refresh(token).json()
    assert client.refresh(token).status_code == 200
    assert client.server.ledger().presented_twice == 0


def test_a_lifetime_of_refresh_tokens_is_told(start: Start) -> None:
    client = start(SandboxConfig(refresh_idle_lifetime_seconds=500))
    assert client.refresh(client.sign_in()).json()["refresh_token_expires_in"] == 500


def test_the_client_may_authenticate_with_a_header(client: Client) -> None:
    config = client.server.config
    form = {"grant_type": "refresh_token", "refresh_token": client.sign_in().reveal()}
    headers = basic(config.client_id, config.client_secret.reveal())
    assert client.http.post(client.server.token_endpoint, data=form, headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("changes", "status", "error"),
    [
        ({"client_secret": "wrong"}, 401, "invalid_client"),
        ({"client_id": "wrong"}, 401, "invalid_client"),
        ({"client_id": None, "client_secret": None}, 401, "invalid_client"),
        ({"grant_type": "password"}, 400, "unsupported_grant_type"),
        ({"grant_type": None}, 400, "invalid_request"),
        ({"refresh_token": None}, 400, "invalid_request"),
        ({"refresh_token": ""}, 400, "invalid_request"),
        ({"refresh_token": "never-issued"}, 400, "invalid_grant"),
        ({"scope": "everything"}, 400, "invalid_scope"),
    ],
)
def test_a_wrong_request_is_refused_with_its_code_and_spends_nothing(
    client: Client, changes: dict[str, str | None], status: int, error: str
) -> None:
    token = client.sign_in()
    refusal = client.refresh(token, **changes)
    assert (refusal.status_code, refusal.json()["error"]) == (status, error)
    assert refusal.headers["Cache-Control"] == "no-store"
    assert client.refresh(token).status_code == 200


def test_a_wrong_secret_in_a_header_is_challenged(client: Client) -> None:
    form = {"grant_type": "refresh_token", "refresh_token": client.sign_in().reveal()}
    headers = basic("sandbox-client", "wrong")
    refusal = client.http.post(client.server.token_endpoint, data=form, headers=headers)
    assert refusal.status_code == 401
    assert refusal.headers["WWW-Authenticate"].startswith("Basic")


@pytest.mark.parametrize("header", ["Basic", "Basic !!!", "Basic /w==", "Bearer x"])
def test_an_unreadable_authorization_header_is_an_invalid_client(client: Client, header: str) -> None:
    form = {"grant_type": "refresh_token", "refresh_token": "never-issued"}
    refusal = client.http.post(client.server.token_endpoint, data=form, headers={"Authorization": header})
    assert (refusal.status_code, refusal.json()["error"]) == (401, "invalid_client")


@pytest.mark.parametrize(
    ("content", "content_type"),
    [
        (b'{"grant_type": "refresh_token"}', "application/json"),
        (b"grant_type=refresh_token&grant_type=refresh_token", "application/x-www-form-urlencoded"),
        (b"\xff\xfe=1", "application/x-www-form-urlencoded"),
        (b"&".join(b"a%d=1" % n for n in range(200)), "application/x-www-form-urlencoded"),
    ],
)
def test_an_unreadable_body_is_an_invalid_request(client: Client, content: bytes, content_type: str) -> None:
    headers = {"Content-Type": content_type}
    refusal = client.http.post(client.server.token_endpoint, content=content, headers=headers)
    assert (refusal.status_code, refusal.json()["error"]) == (400, "invalid_request")


def test_two_ways_of_authenticating_at_once_are_an_invalid_request(client: Client) -> None:
    form = {"grant_type": "refresh_token", "client_id": "sandbox-client", "client_secret": "x"}
    refusal = client.http.post(client.server.token_endpoint, data=form, headers=basic("sandbox-client", "x"))
    assert refusal.json()["error"] == "invalid_request"


def userinfo(client: Client, access_token: str) -> httpx.Response:
    headers = {"Authorization": f"Bearer {access_token}"}
    return client.http.get(f"{client.server.url}/userinfo", headers=headers)


def test_userinfo_knows_the_subject_of_a_good_access_token_until_it_expires(
    client: Client, clock: Clock
) -> None:
    body = client.refresh(client.sign_in("acct-7")).json()
    assert userinfo(client, body["access_token"]).json() == {"sub": "acct-7"}
    clock.now += body["expires_in"]
    expired = userinfo(client, body["access_token"])
    assert expired.status_code == 401
    assert 'error="invalid_token"' in expired.headers["WWW-Authenticate"]


def test_userinfo_challenges_who_has_no_token(client: Client) -> None:
    answer = client.http.get(f"{client.server.url}/userinfo")
    assert answer.status_code == 401
    assert "error" not in answer.headers["WWW-Authenticate"]


def about(client: Client, endpoint: str, token: str) -> httpx.Response:
    config = client.server.config
    form = {
        "token": token,
        "client_id": config.client_id,
        "client_secret": config.client_secret.reveal(),
    }
    return client.http.post(f"{client.server.url}/{endpoint}", data=form)


def test_introspection_tells_good_tokens_from_spent_ones(client: Client) -> None:
    first = client.sign_in("acct-7").reveal()
    body = client.refresh(first).json()
    assert about(client, "introspect", first).json() == {"active": False}
    assert about(client, "introspect", "never-issued").json() == {"active": False}
    for token in (body["refresh_token"], body["access_token"]):
        facts = about(client, "introspect", token).json()
        assert (facts["active"], facts["sub"]) == (True, "acct-7")


def test_revoking_a_refresh_token_ends_the_grant(client: Client) -> None:
    body = client.refresh(client.sign_in()).json()
    assert about(client, "revoke", body["refresh_token"]).status_code == 200
    assert userinfo(client, body["access_token"]).status_code == 401
    assert client.refresh(body["refresh_token"]).json()["error"] == "invalid_grant"


def test_revoking_an_access_token_ends_that_one_only(client: Client) -> None:
    body = client.refresh(client.sign_in()).json()
    about(client, "revoke", body["access_token"])
    assert userinfo(client, body["access_token"]).status_code == 401
    assert client.refresh(body["refresh_token"]).status_code == 200


def test_revoking_an_unknown_token_is_answered_like_a_known_one(client: Client) -> None:
    assert about(client, "revoke", "never-issued").status_code == 200


@pytest.mark.parametrize("endpoint", ["revoke", "introspect"])
def test_revocation_and_introspection_are_for_the_client_alone(client: Client, endpoint: str) -> None:
    refusal = client.http.post(f"{client.server.url}/{endpoint}", data={"token": "x"})
    assert refusal.status_code == 401
    assert refusal.json()["error"] == "invalid_client"


def test_a_client_that_asks_without_a_token_is_told_so(client: Client) -> None:
    assert about(client, "introspect", "").json()["error"] == "invalid_request"
