"""Every grant, every way a client authenticates, every place for parameters: what is on the wire, and nothing more."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from providers import ClientCredentials, Grant, RequestBuildError, TokenRequest
from providers.credentials import APP_FAULTS
from tests.providers.definitions import provider
from tests.support.pem import certificate_pem, ec_key, private_pem
from tokenfleet_client.secret import Secret

NOW = datetime(2026, 3, 1, tzinfo=UTC)
CLIENT = ClientCredentials("client-1", Secret("hush"))
GRANT = Grant(Secret("rt-1"), "a b", {}, Secret("at-1"))
ASSERTION = '[assertion]\nalgorithm = "HS256"\naudience = "https://auth.example.com"\n'
SECRET_PAIR = base64.b64encode(b"client-1:hush").decode()
JWT = "[jwt]"


def request(
    refresh: str = "",
    extra: str = "",
    *,
    authentication: str = "none",
    client: ClientCredentials = CLIENT,
    grant: Grant = GRANT,
) -> TokenRequest:
    asking = provider(
        extra,
        refresh=f'endpoint = "https://auth.example.com/token"\n{refresh}',
        client=authentication if "=" in authentication else f'authentication = "{authentication}"',
    )
    return asking.refresh_request(client, grant, now=NOW)


def sent(asked: TokenRequest) -> list[tuple[str, str]]:
    """Return the parameters in their order; an assertion as a mark."""
    text = asked.body.decode() or urlsplit(asked.url).query
    return [
        (name, JWT if value.count(".") == 2 else value)
        for name, value in parse_qsl(text, keep_blank_values=True)
    ]


@pytest.mark.parametrize(
    ("refresh", "extra", "expected"),
    [
        ("", "", [("grant_type", "refresh_token"), ("refresh_token", "rt-1"), ("client_id", "client-1")]),
        (
            'grant = "client_credentials"\nsend_scope = true',
            '[refresh.parameters]\nkey = "{client_secret}"',
            [
                ("grant_type", "client_credentials"),
                ("key", "hush"),
                ("scope", "a b"),
                ("client_id", "client-1"),
            ],
        ),
        (
            'grant = "jwt_bearer"',
            ASSERTION,
            [("grant_type", "urn:ietf:params:oauth:grant-type:jwt-bearer"), ("assertion", JWT)],
        ),
        (
            'grant = "token_exchange"',
            '[refresh.parameters]\nsubject_token_type = "urn:ietf:params:oauth:token-type:jwt"',
            [
                ("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange"),
                ("subject_token_type", "urn:ietf:params:oauth:token-type:jwt"),
                ("subject_token", "rt-1"),
                ("client_id", "client-1"),
            ],
        ),
        ('grant = "access_token"', "", [("access_token", "at-1")]),
        (
            'grant = "access_token"\ngrant_type = "exchange"\nmethod = "GET"',
            '[refresh.names]\naccess_token = "old"',
            [("grant_type", "exchange"), ("old", "at-1")],
        ),
        (
            'grant_type = "renew"',
            "",
            [("grant_type", "renew"), ("refresh_token", "rt-1"), ("client_id", "client-1")],
        ),
        ('grant_type = ""', "", [("refresh_token", "rt-1"), ("client_id", "client-1")]),
    ],
)
def test_each_grant_presents_what_its_rfc_says(
    refresh: str, extra: str, expected: list[tuple[str, str]]
) -> None:
    assert sent(request(refresh, extra)) == expected


@pytest.mark.parametrize(
    ("authentication", "authorization", "parameters"),
    [
        ("client_secret_basic", f"Basic {SECRET_PAIR}", []),
        ("client_secret_post", None, [("client_id", "client-1"), ("client_secret", "hush")]),
        ("client_secret_as_user", f"Basic {base64.b64encode(b'hush:').decode()}", []),
        (
            "private_key_jwt",
            None,
            [
                ("client_id", "client-1"),
                ("client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"),
                ("client_assertion", JWT),
            ],
        ),
        ("signed_secret", None, [("client_id", "client-1"), ("client_secret", JWT)]),
        ("bearer_assertion", "Bearer ", []),
        ("none", None, [("client_id", "client-1")]),
        (
            'authentication = "client_secret_basic"\nsend_id = true',
            f"Basic {SECRET_PAIR}",
            [("client_id", "client-1")],
        ),
        ('authentication = "client_secret_post"\nsend_id = false', None, [("client_secret", "hush")]),
        ('authentication = "none"\nsend_id = false', None, []),
    ],
)
def test_each_authentication_sends_what_it_needs_and_nothing_else(
    authentication: str, authorization: str | None, parameters: list[tuple[str, str]]
) -> None:
    signs = any(word in authentication for word in ("jwt", "signed", "assertion"))
    asked = request("", ASSERTION if signs else "", authentication=authentication)
    assert sent(asked) == [("grant_type", "refresh_token"), ("refresh_token", "rt-1"), *parameters]
    header = asked.headers.get("Authorization")
    assert (header is None) == (authorization is None)
    if authorization is not None and header is not None:
        assert header == authorization or (authorization == "Bearer " and header.count(".") == 2)


def test_a_credential_that_a_template_places_is_not_sent_under_its_own_name() -> None:
    extra = (
        '[refresh.parameters]\nhash = "{covers}"\n[refresh.headers]\nAuthorization = "Refresh {refresh_token}"\n'
        '[computed.covers]\nkind = "sha256"\nof = "{client_secret}|{refresh_token}"\n'
    )
    for authentication in ("client_secret_post", "client_secret_basic"):
        asked = request("", extra, authentication=authentication)
        assert asked.headers["Authorization"] == "Refresh rt-1"
        assert {"refresh_token", "client_secret"}.isdisjoint(dict(sent(asked)))
        assert b"hush" not in asked.body


def test_a_token_that_a_digest_covers_is_presented_all_the_same() -> None:
    extra = (
        '[refresh.parameters]\nhash = "{covers}"\n'
        '[computed.covers]\nkind = "{}"\nof = "{client_secret}|{refresh_token}"\n'
    )
    digest = dict(sent(request("", extra.replace("{}", "sha256"), authentication="client_secret_post")))
    assert digest.keys() == {"grant_type", "hash", "refresh_token", "client_id"}
    encoded = dict(sent(request("", extra.replace("{}", "base64"), authentication="client_secret_post")))
    assert encoded.keys() == {"grant_type", "hash", "client_id"}


def test_an_assertion_that_a_template_places_authenticates_there_alone() -> None:
    extra = ASSERTION + '[refresh.headers]\nX-App = "JWT {assertion}"\n'
    asked = request("", extra, authentication="bearer_assertion")
    assert "Authorization" not in asked.headers
    assert asked.headers["X-App"].startswith("JWT ")
    assert asked.headers["X-App"].count(".") == 2


def test_json_names_with_dots_lead_into_objects() -> None:
    extra = (
        '[refresh.names]\nclient_id = "auth.client.id"\nclient_secret = "auth.client.secret"\nrefresh_token = "token"\n'
        '[refresh.parameters]\n"auth.kind" = "app"\n"site.url" = "{client_id}"\n'
    )
    asked = request('body = "json"\ngrant_type = ""', extra, authentication="client_secret_post")
    assert json.loads(asked.body) == {
        "token": "rt-1",
        "auth": {"kind": "app", "client": {"id": "client-1", "secret": "hush"}},
        "site": {"url": "client-1"},
    }


@pytest.mark.parametrize(
    ("method", "body", "kind"),
    [
        ("POST", "form", "application/x-www-form-urlencoded"),
        ("PUT", "json", "application/json"),
        ("PATCH", "form", "application/x-www-form-urlencoded"),
        ("POST", "query", None),
    ],
)
def test_parameters_go_where_the_definition_says(method: str, body: str, kind: str | None) -> None:
    asked = request(f'method = "{method}"\nbody = "{body}"')
    assert asked.method == method
    assert asked.headers.get("Content-Type") == kind
    found = json.loads(asked.body) if body == "json" else dict(sent(asked))
    assert found == {"grant_type": "refresh_token", "refresh_token": "rt-1", "client_id": "client-1"}
    assert ("?" in asked.url) == (body == "query")
    assert bool(asked.body) == (body != "query")


def test_a_header_of_the_definition_takes_the_place_of_ours() -> None:
    asked = request("", '[refresh.headers]\naccept = "application/vnd.example+json"')
    assert [value for name, value in asked.headers.items() if name.lower() == "accept"] == [
        "application/vnd.example+json"
    ]


@pytest.mark.parametrize(
    ("refresh", "extra", "authentication", "client", "grant", "code"),
    [
        ('grant = "access_token"', "", "none", CLIENT, Grant(Secret("rt-1")), "access_token_missing"),
        ("", "", "none", CLIENT, Grant(None, None, {}, Secret("at-1")), "refresh_token_missing"),
        (
            "",
            '[refresh.headers]\nX-Key = "{client_secret}"',
            "none",
            ClientCredentials("client-1", None),
            GRANT,
            "client_secret_missing",
        ),
        (
            'grant = "jwt_bearer"',
            ASSERTION,
            "none",
            ClientCredentials("c", None),
            GRANT,
            "client_secret_missing",
        ),
        ("", "", 'authentication = "none"\ncertificate = true', CLIENT, GRANT, "client_certificate_missing"),
        (
            "",
            "",
            'authentication = "none"\ncertificate = true',
            ClientCredentials("c", None, Secret("nothing")),
            GRANT,
            "client_certificate_unusable",
        ),
        (
            "",
            '[refresh.headers]\nX-Token = "{refresh_token}"',
            "none",
            CLIENT,
            Grant(Secret("rt-1\r\nX-Evil: 1")),
            "variable_malformed",
        ),
        ('body = "json"', "", "none", CLIENT, Grant(Secret("\ud800")), "not_encodable"),
        ("", "", "client_secret_as_user", ClientCredentials("c", Secret("\ud800")), GRANT, "not_encodable"),
    ],
)
def test_what_is_missing_is_said_by_a_code(
    refresh: str, extra: str, authentication: str, client: ClientCredentials, grant: Grant, code: str
) -> None:
    with pytest.raises(RequestBuildError) as caught:
        request(refresh, extra, authentication=authentication, client=client, grant=grant)
    assert caught.value.code == code
    assert (code in APP_FAULTS) == code.startswith("client_")
    assert not any(secret in str(caught.value) for secret in ("rt-1", "at-1", "hush"))


def test_a_request_carries_the_certificate_until_that_expires() -> None:
    asking = provider(client='authentication = "client_secret_basic"\ncertificate = true')
    pem = Secret(certificate_pem(ec_key(), days=2) + private_pem(ec_key()))
    client = ClientCredentials("client-1", Secret("hush"), pem)
    now = datetime.now(UTC)
    asked = asking.refresh_request(client, GRANT, now=now)
    assert asked.certificate == pem
    assert "PRIVATE" not in f"{asked!r} {client!r}"
    with pytest.raises(RequestBuildError) as caught:
        asking.refresh_request(client, GRANT, now=now + timedelta(days=3))
    assert caught.value.code == "client_certificate_expired"
    assert caught.value.code in APP_FAULTS
    assert request().certificate is None


def test_a_provider_that_is_never_asked_builds_nothing() -> None:
    probed = provider(refresh='grant = "none"', client='authentication = "none"')
    assert probed.required_variables() == frozenset()
    with pytest.raises(RequestBuildError, match="nothing is asked"):
        probed.refresh_request(CLIENT, GRANT)


def test_variables_are_checked_without_any_credential() -> None:
    asking = provider(
        '[variables.site]\ndescription = "s"\nkind = "label"\n[variables.user]\ndescription = "u"\n'
        '[assertion]\nalgorithm = "RS256"\nissuer = "{user}"\naudience = "a"\n'
        '[refresh.headers]\nX-Site = "{site} {refresh_token} {stamp}"\n[computed.stamp]\nkind = "timestamp"\n',
        refresh='endpoint = "https://{site}.example.com/token"',
        client='authentication = "private_key_jwt"',
    )
    assert asking.required_variables() == {"site", "user"}
    asking.check_variables({"site": "acme", "user": "anna"})
    for variables, code in (
        ({"site": "acme"}, "variable_missing"),
        ({"site": "a/b", "user": "anna"}, "variable_malformed"),
    ):
        with pytest.raises(RequestBuildError) as caught:
            asking.check_variables(variables)
        assert caught.value.code == code


EVERYTHING = """
[variables.site]
description = "which"
kind = "label"
[variables.realm]
description = "where"
[variables.base]
description = "host"
kind = "host"
pattern = "*.example.com"
[refresh.headers]
X-Digest = "{digest}"
[refresh.parameters]
realm = "{realm}{site}{base}"
token = "{access_token}"
[computed.digest]
kind = "hmac_sha256"
key = "{client_secret}"
of = "{realm}{access_token}"
"""
EVERYWHERE = {
    (endpoint, body): provider(
        EVERYTHING,
        refresh=f'endpoint = "{endpoint}"\nbody = "{body}"',
        client='authentication = "client_secret_post"',
    )
    for endpoint in ("https://{site}.example.com/{realm}/t?r={realm}", "https://{base}/{realm}")
    for body in ("form", "json", "query")
}
odd = st.text("aZ0-./@:#?%\\ é", max_size=6)
likely = st.text("abc019", min_size=1, max_size=8)


@given(
    place=st.sampled_from(sorted(EVERYWHERE)),
    site=st.one_of(likely, likely, odd),
    realm=st.one_of(likely, odd, st.text(max_size=12)),
    base=st.one_of(likely, likely, odd).map(lambda text: f"{text}.example.com"),
    secrets=st.lists(st.text(max_size=12), min_size=3, max_size=3),
)
def test_no_value_leads_elsewhere_and_no_secret_is_in_a_url(
    place: tuple[str, str], site: str, realm: str, base: str, secrets: list[str]
) -> None:
    one, two, three = (Secret(f"hidden-{number}-{text}") for number, text in enumerate(secrets))
    grant = Grant(two, None, {"site": site, "realm": realm, "base": base}, three)
    try:
        asked = EVERYWHERE[place].refresh_request(ClientCredentials("id", one), grant, now=NOW)
    except RequestBuildError as error:
        message = str(error)
    else:
        split = urlsplit(asked.url)
        message = repr(asked)
        assert split.scheme == "https"
        assert split.netloc.endswith(".example.com")
        assert set(split.netloc) <= set("abcdefghijklmnopqrstuvwxyz0123456789.-")
        assert ("hidden" in asked.url) == (place[1] == "query")
    assert "hidden" not in message


def test_the_fields_of_credentials_never_print() -> None:
    printed: list[Any] = [CLIENT, GRANT, ClientCredentials("c", Secret("x1"), Secret("x2"))]
    assert not any(
        secret in repr(each) for each in printed for secret in ("hush", "rt-1", "at-1", "x1", "x2")
    )
