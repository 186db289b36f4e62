"""What the catalogue's probes and revocations send and hear where a bearer token and a status are not enough.

The answers are those that the providers' documentation shows, or that others have seen.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from providers import Answer, Grant, load_registry
from providers.credentials import RequestBuildError
from providers.exchange import TokenRequest
from providers.probes import Verdict
from providers.revocation import Answered
from tests.providers.clients import client_of
from tokenfleet_client.secret import Secret

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
REGISTRY = load_registry()
JSON = {"content-type": "application/json"}


def probed(name: str, **variables: str) -> TokenRequest:
    """Return the probe of an account of the built-in definition ``name``."""
    one = REGISTRY.get(name)
    grant = Grant(None, variables=variables, access_token=Secret("example-access"))
    request = one.probe_request(client_of(one), grant, now=NOW)
    assert request is not None
    return request


def revoked(name: str, **variables: str) -> TokenRequest:
    """Return the revocation of an account of the built-in definition ``name``."""
    one = REGISTRY.get(name)
    grant = Grant(Secret("example-refresh"), variables=variables, access_token=Secret("example-access"))
    return one.revocation_request(client_of(one), grant, now=NOW)


@pytest.mark.parametrize(
    ("name", "variables", "header", "value"),
    [
        ("amazon_sp_api", {"region": "eu"}, "x-amz-access-token", "example-access"),
        ("shopify_offline", {"shop": "acme"}, "X-Shopify-Access-Token", "example-access"),
        ("bigcommerce", {"store_hash": "h1"}, "X-Auth-Token", "example-access"),
        ("activecampaign", {"account": "acme"}, "Api-Token", "example-access"),
        ("zoho", {"accounts_host": "accounts.zoho.eu"}, "Authorization", "Zoho-oauthtoken example-access"),
        ("twitch", {}, "Authorization", "OAuth example-access"),
        (
            "trello",
            {},
            "Authorization",
            'OAuth oauth_consumer_key="client-1", oauth_token="example-access"',
        ),
        # example-access: and example-access:X and ck_1:example-access, in base64
        ("ashby", {}, "Authorization", "Basic ZXhhbXBsZS1hY2Nlc3M6"),
        ("freshdesk", {"subdomain": "acme"}, "Authorization", "Basic ZXhhbXBsZS1hY2Nlc3M6WA=="),
        (
            "woocommerce",
            {"store_url": "https://shop.example.com/de", "consumer_key": "ck_1"},
            "Authorization",
            "Basic Y2tfMTpleGFtcGxlLWFjY2Vzcw==",
        ),
    ],
)
def test_a_probe_carries_the_token_where_the_provider_wants_it(
    name: str, variables: dict[str, str], header: str, value: str
) -> None:
    headers = probed(name, **variables).headers
    assert headers[header] == value
    carrying = [each for each, text in headers.items() if "example-access" in text or text == value]
    assert carrying == [header]


@pytest.mark.parametrize(
    ("name", "variables", "method", "url", "body"),
    [
        (
            "linear",
            {},
            "POST",
            "https://api.linear.app/graphql",
            b'{"query": "{ viewer { id } }"}',
        ),
        ("slack", {}, "POST", "https://slack.com/api/auth.test", b""),
        ("ashby", {}, "POST", "https://api.ashbyhq.com/apiKey.info", b"{}"),
        (
            "plaid",
            {},
            "POST",
            "https://production.plaid.com/item/get",
            b'{"access_token": "example-access"}',
        ),
        ("withings", {}, "POST", "https://wbsapi.withings.net/v2/user", b"action=getdevice"),
        (
            "wechat",
            {"openid": "o1"},
            "GET",
            "https://api.weixin.qq.com/sns/auth?access_token=example-access&openid=o1",
            b"",
        ),
        (
            "woocommerce",
            {"store_url": "https://shop.example.com/de", "consumer_key": "ck_1"},
            "GET",
            "https://shop.example.com/de/wp-json/wc/v3/system_status?_fields=settings",
            b"",
        ),
    ],
)
def test_a_probe_asks_what_the_provider_answers(
    name: str, variables: dict[str, str], method: str, url: str, body: bytes
) -> None:
    request = probed(name, **variables)
    assert (request.method, request.url, request.body) == (method, url, body)


def test_a_key_is_brought_with_what_its_probe_needs_for_nothing_else_would_miss_it() -> None:
    assert REGISTRY.get("woocommerce").required_variables() == {"store_url", "consumer_key"}
    assert REGISTRY.get("slack").required_variables() == frozenset()
    REGISTRY.get("freshdesk").check_variables({"subdomain": "acme"})
    with pytest.raises(RequestBuildError, match="subdomain"):
        REGISTRY.get("freshdesk").check_variables({"subdomain": "acme.evil.example/"})


VERDICTS: list[tuple[str, int, Any, Verdict]] = [
    ("slack", 200, {"ok": True, "team_id": "T1"}, Verdict.ALIVE),
    ("slack", 200, {"ok": False, "error": "account_inactive"}, Verdict.DEAD),
    ("slack", 200, {"ok": False, "error": "invalid_auth"}, Verdict.UNCLEAR),
    ("slack_rotating", 200, {"ok": False, "error": "token_expired"}, Verdict.DEAD),
    ("attio", 200, {"active": True, "exp": None}, Verdict.ALIVE),
    ("attio", 200, {"active": False}, Verdict.DEAD),
    ("plaid", 200, {"item": {"item_id": "i", "error": None}}, Verdict.ALIVE),
    ("plaid", 200, {"item": {"error": {"error_code": "ITEM_LOGIN_REQUIRED"}}}, Verdict.DEAD),
    ("plaid", 200, {"item": {"error": {"error_code": "INSTITUTION_DOWN"}}}, Verdict.UNCLEAR),
    ("plaid", 400, {"error_code": "INVALID_ACCESS_TOKEN"}, Verdict.DEAD),
    ("plaid", 400, {"error_code": "INVALID_API_KEYS"}, Verdict.UNCLEAR),
    ("ashby", 200, {"success": True, "results": {}}, Verdict.ALIVE),
    ("ashby", 403, {"success": False, "errors": ["the key is disabled"]}, Verdict.DEAD),
    ("ashby", 403, {"success": False, "errors": ["missing_endpoint_permission"]}, Verdict.ALIVE),
    ("ashby", 403, b"<html>", Verdict.UNCLEAR),
    ("activecampaign", 403, {"message": "Forbidden"}, Verdict.UNCLEAR),
    ("woocommerce", 401, {"code": "woocommerce_rest_authentication_error"}, Verdict.UNCLEAR),
    ("woocommerce", 401, b"<html>Authorization Required</html>", Verdict.UNCLEAR),
    ("facebook", 400, {"error": {"code": 190, "error_subcode": 463}}, Verdict.DEAD),
    ("facebook", 400, {"error": {"code": 2}}, Verdict.UNCLEAR),
    ("withings", 200, {"status": 0, "body": {"devices": []}}, Verdict.ALIVE),
    ("withings", 200, {"status": 401, "body": {}, "error": "invalid_token"}, Verdict.DEAD),
    ("withings", 200, {"status": 601}, Verdict.UNCLEAR),
    ("zendesk", 200, {"user": {"id": 7, "name": "Ada"}}, Verdict.ALIVE),
    ("zendesk", 200, {"user": {"id": None, "name": "Anonymous user"}}, Verdict.DEAD),
    ("linear", 200, {"data": {"viewer": {"id": "v"}}}, Verdict.ALIVE),
    ("linear", 200, {"errors": [{"message": "later"}]}, Verdict.UNCLEAR),
    ("naver", 200, {"resultcode": "00"}, Verdict.ALIVE),
    ("shopify_offline", 402, {"errors": "Payment Required"}, Verdict.UNCLEAR),
]


@pytest.mark.parametrize(("name", "status", "body", "verdict"), VERDICTS)
def test_an_answer_to_a_probe_is_heard_as_it_is_meant(
    name: str, status: int, body: Any, verdict: Verdict
) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    assert REGISTRY.get(name).read_probe(Answer(status, JSON, content)).verdict is verdict


def test_who_is_never_renewed_is_ended_by_no_firewall_and_no_outage() -> None:
    """G4 without a refresh to ask: pages, limits and faults are nobody's word about a token."""
    for one in REGISTRY:
        if one.renews:
            continue
        for status in (200, 302, 400, 403, 404, 407, 418, 429, 500, 502, 503):
            page = Answer(status, {"content-type": "text/html"}, b"<html>blocked</html>")
            assert one.read_probe(page).verdict is not Verdict.DEAD, (one.name, status)


@pytest.mark.parametrize(
    ("name", "variables", "method", "url", "authorization", "body"),
    [
        (
            "square",
            {},
            "POST",
            "https://connect.squareup.com/oauth2/revoke",
            "Client hush",
            b'{"client_id": "client-1", "access_token": "example-access"}',
        ),
        (
            "miro",
            {},
            "POST",
            "https://api.miro.com/v1/oauth/revoke?access_token=example-access",
            "Bearer example-access",
            b"",
        ),
        (
            "garmin",
            {},
            "DELETE",
            "https://apis.garmin.com/wellness-api/rest/user/registration",
            "Bearer example-access",
            b"",
        ),
        (
            "polar",
            {"x_user_id": "7"},
            "DELETE",
            "https://www.polaraccesslink.com/v3/users/7",
            "Bearer example-access",
            b"",
        ),
        (
            "naver",
            {},
            "GET",
            (
                "https://nid.naver.com/oauth2.0/token?grant_type=delete&service_provider=NAVER"
                "&access_token=example-access&client_id=client-1&client_secret=hush"
            ),
            None,
            b"",
        ),
    ],
)
def test_a_revocation_is_asked_for_as_the_provider_wants_it(
    name: str, variables: dict[str, str], method: str, url: str, authorization: str | None, body: bytes
) -> None:
    request = revoked(name, **variables)
    assert (request.method, request.url, request.body) == (method, url, body)
    assert request.headers.get("Authorization") == authorization


@pytest.mark.parametrize("name", ["slack", "slack_rotating"])
def test_a_refusal_in_a_200_does_not_pass_for_a_revocation(name: str) -> None:
    def said(body: dict[str, Any]) -> Answered:
        return REGISTRY.get(name).read_revocation(Answer(200, JSON, json.dumps(body).encode())).answered

    assert said({"ok": True, "revoked": True}) is Answered.REVOKED
    assert said({"ok": False, "error": "token_revoked"}) is Answered.REVOKED
    assert said({"ok": False, "error": "internal_error"}) is Answered.NOT_NOW
    assert said({"ok": False, "error": "invalid_auth"}) is Answered.REFUSED
