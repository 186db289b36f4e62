"""Refresh requests: exactly the parameters that the definition and RFC 6749 say, and no secret in sight."""

from __future__ import annotations

import base64
import json
from urllib.parse import parse_qs, parse_qsl, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from providers import ClientCredentials, Grant, RequestBuildError
from tests.providers.definitions import provider
from tokenfleet_client.secret import Secret

CLIENT = ClientCredentials("client-1", Secret("hush&hush"))
GRANT = Grant(Secret("rt 1+2"))
ENDPOINT = 'endpoint = "https://auth.example.com/token"\n'


def test_a_plain_refresh_is_that_of_the_rfc() -> None:
    request = provider().refresh_request(CLIENT, GRANT)
    assert (request.method, request.url) == ("POST", "https://auth.example.com/token")
    assert request.headers == {
        "Accept": "application/json",
        "Content-Type": "application/x-www-form-urlencoded",
    }
    assert parse_qsl(request.body.decode()) == [
        ("grant_type", "refresh_token"),
        ("refresh_token", "rt 1+2"),
        ("client_id", "client-1"),
        ("client_secret", "hush&hush"),
    ]


def test_basic_authentication_encodes_both_parts_first() -> None:
    request = provider(client='authentication = "client_secret_basic"').refresh_request(CLIENT, GRANT)
    scheme, _, value = request.headers["Authorization"].partition(" ")
    assert (scheme, base64.b64decode(value)) == ("Basic", b"client-1:hush%26hush")
    assert "client" not in request.body.decode()


def test_a_public_client_sends_its_id_alone() -> None:
    public = provider(client='authentication = "none"')
    request = public.refresh_request(ClientCredentials("client-1", None), GRANT)
    assert parse_qs(request.body.decode())["client_id"] == ["client-1"]
    assert "client_secret" not in request.body.decode()


def test_json_bodies_and_renamed_and_further_parameters() -> None:
    renamed = provider(
        '[refresh.names]\nclient_id = "client_key"\ngrant_type = "type"\n'
        '[refresh.parameters]\naction = "renew"\nfor = "{client_id}"\n'
        '[refresh.headers]\nX-Version = "2"\n',
        refresh=ENDPOINT + 'body = "json"\ngrant_type = "refresh"\nsend_scope = true',
    )
    request = renamed.refresh_request(CLIENT, Grant(Secret("rt-é"), "a b"))
    assert json.loads(request.body) == {
        "type": "refresh",
        "action": "renew",
        "for": "client-1",
        "refresh_token": "rt-é",
        "scope": "a b",
        "client_key": "client-1",
        "client_secret": "hush&hush",
    }
    assert request.headers["Content-Type"] == "application/json"
    assert request.headers["X-Version"] == "2"


def test_a_get_request_has_everything_in_its_query() -> None:
    asked = provider(refresh='endpoint = "https://auth.example.com/token?v=2"\nmethod = "GET"')
    request = asked.refresh_request(CLIENT, GRANT)
    assert (request.method, request.body) == ("GET", b"")
    assert parse_qs(urlsplit(request.url).query)["refresh_token"] == ["rt 1+2"]
    assert urlsplit(request.url).query.startswith("v=2&grant_type=")
    assert "Content-Type" not in request.headers


TENANT = '[variables.tenant]\ndescription = "the directory"\n'


def test_variables_come_from_the_account_or_their_default() -> None:
    endpoint = 'endpoint = "https://auth.example.com/{tenant}/token"'
    needing = provider(TENANT, refresh=endpoint)
    defaulting = provider(TENANT + 'default = "common"\n', refresh=endpoint)
    own = Grant(Secret("rt-1"), None, {"tenant": "acme", "unknown": "x"})
    assert needing.required_variables() == {"tenant"}
    assert defaulting.required_variables() == frozenset()
    assert needing.refresh_request(CLIENT, own).url == "https://auth.example.com/acme/token"
    assert defaulting.refresh_request(CLIENT, GRANT).url == "https://auth.example.com/common/token"


@pytest.mark.parametrize(
    ("client", "grant", "code"),
    [
        (CLIENT, GRANT, "variable_missing"),
        (CLIENT, Grant(Secret("rt-1"), None, {"tenant": ".."}), "variable_malformed"),
        (CLIENT, Grant(Secret("rt-1"), None, {"tenant": "a\r\nb"}), "variable_malformed"),
        (CLIENT, Grant(Secret(""), None, {"tenant": "acme"}), "refresh_token_missing"),
        (CLIENT, Grant(Secret("\ud800"), None, {"tenant": "acme"}), "not_encodable"),
        (ClientCredentials("c", None), Grant(Secret("rt-1"), None, {"tenant": "a"}), "client_secret_missing"),
    ],
)
def test_what_cannot_be_built_is_refused_with_a_code(
    client: ClientCredentials, grant: Grant, code: str
) -> None:
    needing = provider(
        TENANT + '[refresh.headers]\nX-Tenant = "{tenant}"\n',
        refresh='endpoint = "https://auth.example.com/{tenant}/token"',
    )
    with pytest.raises(RequestBuildError) as caught:
        needing.refresh_request(client, grant)
    assert caught.value.code == code
    assert "rt-1" not in str(caught.value)


def test_a_header_takes_no_value_that_is_not_ascii() -> None:
    headed = provider(TENANT + '[refresh.headers]\nX-Tenant = "{tenant}"\n')
    with pytest.raises(RequestBuildError) as caught:
        headed.refresh_request(CLIENT, Grant(Secret("rt-1"), None, {"tenant": "é"}))
    assert caught.value.code == "variable_malformed"


def test_an_http_endpoint_in_a_variable_is_refused_unless_allowed() -> None:
    text = '[variables.token_endpoint]\ndescription = "it"\nkind = "url"\n'
    plain = Grant(Secret("rt-1"), None, {"token_endpoint": "http://127.0.0.1:9/t"})
    endpoint = 'endpoint = "{token_endpoint}"'
    assert provider(text, refresh=endpoint, allow_http=True).refresh_request(CLIENT, plain).url
    with pytest.raises(RequestBuildError):
        provider(text, refresh=endpoint).refresh_request(CLIENT, plain)


@pytest.mark.parametrize("authentication", ["client_secret_basic", "client_secret_post"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_request_prints_without_its_secrets(authentication: str, method: str) -> None:
    asked = provider(refresh=f'{ENDPOINT}method = "{method}"', client=f'authentication = "{authentication}"')
    request = asked.refresh_request(CLIENT, Grant(Secret("sentinel")))
    for secret in ("sentinel", "hush", "Basic", base64.b64encode(b"hush").decode()):
        assert secret not in repr(request)
        assert secret not in f"{request}"
    assert "auth.example.com" in repr(request)


@given(st.text(min_size=1, max_size=40), st.text(max_size=20), st.text(max_size=20))
def test_any_token_arrives_as_it_is(token: str, client_id: str, scope: str) -> None:
    asked = provider(refresh=f"{ENDPOINT}send_scope = true")
    try:
        (token + client_id + scope).encode()
    except UnicodeEncodeError:
        return
    grant = Grant(Secret(token), scope)
    request = asked.refresh_request(ClientCredentials(client_id, Secret("s")), grant)
    sent = dict(parse_qsl(request.body.decode(), keep_blank_values=True))
    assert (sent["refresh_token"], sent["client_id"]) == (token, client_id)
    assert sent.get("scope", "") == scope
