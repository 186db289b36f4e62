"""What definitions of the catalogue send that differs from RFC 6749: one slip, and they ask for nothing that works."""

from __future__ import annotations

import base64
import hmac
import json
from datetime import UTC, datetime
from hashlib import sha256
from urllib.parse import parse_qs, urlsplit

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from providers.oauth2 import ClientCredentials, Grant, TokenRequest
from providers.registry import load_registry
from tokenfleet_client.secret import Secret

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
REGISTRY = load_registry()
_PEM = (Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
RSA_KEY = rsa.generate_private_key(65537, 2048).private_bytes(*_PEM).decode()
EC_KEY = ec.generate_private_key(ec.SECP256R1()).private_bytes(*_PEM).decode()


def asked(name: str, secret: str = "example-secret", **variables: str) -> TokenRequest:
    """Return the refresh request of the built-in definition ``name``."""
    client = ClientCredentials("example-client", Secret(secret))
    grant = Grant(Secret("example-refresh"), variables=variables)
    return REGISTRY.get(name).refresh_request(client, grant, now=NOW)


def sent(request: TokenRequest) -> dict[str, str]:
    """Return the form of a body, or the query where there is none."""
    text = request.body.decode() or urlsplit(request.url).query
    return {name: values[0] for name, values in parse_qs(text, strict_parsing=True).items()}


def claims(assertion: str) -> tuple[dict[str, object], dict[str, object]]:
    """Return head and claims of a signed assertion."""
    head, payload, _ = (base64.urlsafe_b64decode(part + "==") for part in assertion.split("."))
    return json.loads(head), json.loads(payload)


def test_a_hash_takes_the_place_of_the_secret_and_not_of_the_refresh_token() -> None:
    form = sent(asked("smartsheet"))
    assert form == {
        "grant_type": "refresh_token",
        "refresh_token": "example-refresh",
        "client_id": "example-client",
        "hash": sha256(b"example-secret|example-refresh").hexdigest(),
    }


def test_a_signature_over_path_and_sorted_parameters_is_all_that_authenticates() -> None:
    query = sent(asked("lazada"))
    moment = str(int(NOW.timestamp() * 1000))
    text = f"/auth/token/refreshapp_keyexample-clientrefresh_tokenexample-refreshsign_methodsha256timestamp{moment}"
    assert query == {
        "app_key": "example-client",
        "refresh_token": "example-refresh",
        "sign_method": "sha256",
        "timestamp": moment,
        "sign": hmac.digest(b"example-secret", text.encode(), "sha256").hex().upper(),
    }


def test_a_signed_secret_stands_where_a_secret_would() -> None:
    form = sent(asked("apple", EC_KEY, team_id="TEAM", key_id="KEY"))
    head, said = claims(form.pop("client_secret"))
    assert form == {
        "grant_type": "refresh_token",
        "refresh_token": "example-refresh",
        "client_id": "example-client",
    }
    assert (head["alg"], head["kid"]) == ("ES256", "KEY")
    assert (said["iss"], said["sub"], said["aud"]) == ("TEAM", "example-client", "https://appleid.apple.com")


def test_a_service_account_that_acts_for_nobody_claims_no_subject() -> None:
    form = sent(asked("google_service_account", RSA_KEY))
    _, said = claims(form.pop("assertion"))
    assert form == {"grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer"}
    assert "sub" not in said
    assert said["scope"] == "https://www.googleapis.com/auth/cloud-platform"


def test_a_service_account_that_acts_for_a_person_claims_that_person() -> None:
    form = sent(asked("google_workspace_delegation", RSA_KEY, user="ann@example.com", scope="one two"))
    _, said = claims(form["assertion"])
    assert (said["sub"], said["scope"]) == ("ann@example.com", "one two")


def test_an_installation_token_is_asked_for_by_a_signed_head_alone() -> None:
    request = asked("github_app_installation", RSA_KEY, installation_id="7")
    assert (request.url, request.body) == ("https://api.github.com/app/installations/7/access_tokens", b"")
    _, said = claims(request.headers["Authorization"].removeprefix("Bearer "))
    assert said["iss"] == "example-client"
    assert int(str(said["iat"])) == int(NOW.timestamp()) - 60


def test_a_certificate_mapping_is_named_in_the_assertions_head() -> None:
    form = sent(asked("netsuite_m2m", RSA_KEY, accountId="1-sb1", certificate_id="C"))
    head, said = claims(form.pop("client_assertion"))
    assert set(form) == {"grant_type", "client_assertion_type"}
    assert (head["alg"], head["kid"]) == ("PS256", "C")
    assert said["aud"] == "https://1-sb1.suitetalk.api.netsuite.com/services/rest/auth/oauth2/v1/token"


def test_a_personal_access_token_is_exchanged_within_nested_objects() -> None:
    request = asked("tableau", host="pod.online.tableau.com", site="s", token_name="n")
    assert json.loads(request.body) == {
        "credentials": {
            "personalAccessTokenName": "n",
            "personalAccessTokenSecret": "example-refresh",
            "site": {"contentUrl": "s"},
        }
    }


@pytest.mark.parametrize(
    ("name", "variables", "parameters"),
    [
        ("wechat_work", {}, {"corpid": "example-client", "corpsecret": "example-secret"}),
        ("gong", {}, {"grant_type": "refresh_token", "refresh_token": "example-refresh"}),
        ("stripe_apps", {}, {"grant_type": "refresh_token", "refresh_token": "example-refresh"}),
        ("zoom_s2s", {"account_id": "a"}, {"grant_type": "account_credentials", "account_id": "a"}),
        (
            "microsoft_client_credentials",
            {"tenant": "t"},
            {
                "grant_type": "client_credentials",
                "scope": "https://graph.microsoft.com/.default",
                "client_id": "example-client",
                "client_secret": "example-secret",
            },
        ),
    ],
)
def test_no_parameter_is_missing_and_none_too_many(
    name: str, variables: dict[str, str], parameters: dict[str, str]
) -> None:
    assert sent(asked(name, **variables)) == parameters
