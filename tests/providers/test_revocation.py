"""Revocation as data (RFC 7009 and its variants): what is sent, and what an answer means."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from providers import Answer, Failure, FailureKind
from providers.credentials import ClientCredentials, Grant, RequestBuildError
from providers.exchange import TokenRequest
from providers.revocation import Answered, RevocationReading
from tests.providers.definitions import provider
from tokenfleet_client.secret import Secret

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
CLIENT = ClientCredentials("our-app", Secret("our-secret"))
GRANT = Grant(Secret("the-refresh"), None, {"user": "7"}, Secret("the-access"))
REVOKE = '[revoke]\nendpoint = "https://auth.example.com/revoke"\n'
BASIC = "Basic b3VyLWFwcDpvdXItc2VjcmV0"


def request_of(
    revoke: str,
    authentication: str = "client_secret_post",
    *,
    client: ClientCredentials = CLIENT,
    grant: Grant = GRANT,
) -> TokenRequest:
    """Return the revocation of an account by a definition with these lines."""
    definition = provider(f"{REVOKE}{revoke}", client=f'authentication = "{authentication}"')
    request = definition.revocation_request(client, grant, now=NOW)
    for secret in ("our-secret", "the-refresh", "the-access"):
        assert secret not in repr(request)
    return request


@pytest.mark.parametrize(
    ("revoke", "authentication", "sent"),
    [
        ("", "client_secret_post", "token=the-refresh&client_id=our-app&client_secret=our-secret"),
        ("", "client_secret_basic", f"{BASIC} token=the-refresh"),
        ("", "none", "token=the-refresh&client_id=our-app"),
        ('authentication = "client_secret_basic"', "client_secret_post", f"{BASIC} token=the-refresh"),
        ('authentication = "none"', "client_secret_post", "token=the-refresh"),
        (
            'authentication = "bearer"\ntoken = "access_token"',
            "client_secret_post",
            "Bearer the-access token=the-access",
        ),
        (
            'parameters = { token_type_hint = "refresh_token" }\nauthentication = "none"',
            "client_secret_post",
            "token_type_hint=refresh_token&token=the-refresh",
        ),
        (
            'parameter = "t"\nparameters = { secret = "{client_secret}", id = "{client_id}" }\nauthentication = "none"',
            "client_secret_post",
            "secret=our-secret&id=our-app&t=the-refresh",
        ),
    ],
)
def test_the_token_travels_as_the_definition_says(revoke: str, authentication: str, sent: str) -> None:
    request = request_of(revoke, authentication)
    assert (request.method, request.url) == ("POST", "https://auth.example.com/revoke")
    assert request.headers["Content-Type"] == "application/x-www-form-urlencoded"
    told = [request.headers.get("Authorization", ""), request.body.decode()]
    assert " ".join(filter(None, told)) == sent


@pytest.mark.parametrize(
    ("revoke", "method", "url", "headers", "body"),
    [
        (
            'method = "DELETE"\nbody = "none"\nparameter = ""\ntoken = "access_token"\nauthentication = "bearer"',
            "DELETE",
            "",
            {"Authorization": "Bearer the-access"},
            "",
        ),
        ('method = "GET"\nauthentication = "none"', "GET", "?token=the-refresh", {}, ""),
        (
            'body = "query"\nauthentication = "none"\nparameter = "access_token"\ntoken = "access_token"',
            "POST",
            "?access_token=the-access",
            {},
            "",
        ),
        (
            'body = "json"\nauthentication = "none"\nparameter = "grant.token"\nheaders = { X-App = "{client_id}" }',
            "POST",
            "",
            {"X-App": "our-app", "Content-Type": "application/json"},
            '{"grant": {"token": "the-refresh"}}',
        ),
        (
            (
                'body = "none"\nauthentication = "none"\nparameter = ""\ntoken = "access_token"\n'
                'headers = { Authorization = "OAuth {access_token}" }'
            ),
            "POST",
            "",
            {"Authorization": "OAuth the-access"},
            "",
        ),
    ],
    ids=["bearer alone", "GET", "query", "json", "scheme of its own"],
)
def test_real_servers_want_it_otherwise(
    revoke: str, method: str, url: str, headers: dict[str, str], body: str
) -> None:
    request = request_of(revoke)
    assert (request.method, request.url) == (method, f"https://auth.example.com/revoke{url}")
    assert request.headers == {"Accept": "application/json"} | headers
    assert request.body.decode() == body


@pytest.mark.parametrize(
    ("revoke", "client", "grant", "code"),
    [
        ("", CLIENT, Grant(None, None, {}, Secret("the-access")), "refresh_token_missing"),
        ('token = "access_token"', CLIENT, Grant(Secret("the-refresh")), "access_token_missing"),
        ('authentication = "bearer"', CLIENT, Grant(Secret("the-refresh")), "access_token_missing"),
        ("", ClientCredentials("our-app", None), GRANT, "client_secret_missing"),
    ],
)
def test_what_is_missing_is_said_before_anything_is_sent(
    revoke: str, client: ClientCredentials, grant: Grant, code: str
) -> None:
    with pytest.raises(RequestBuildError) as caught:
        request_of(revoke, client=client, grant=grant)
    assert caught.value.code == code


RULES = (
    '[[errors]]\noutcome = "grant_rejected"\npath = "error"\nvalue = "token_revoked"\n'
    '[[errors]]\noutcome = "throttled"\npath = "error"\nvalue = "ratelimited"\n'
    '[[errors]]\noutcome = "client_rejected"\npath = "error"\nvalue = "bad_secret"\n'
)


@pytest.mark.parametrize(
    ("status", "body", "answered", "code"),
    [
        (200, b"", Answered.REVOKED, "http_200"),
        (204, b"", Answered.REVOKED, "http_204"),
        (200, b"<html>bye</html>", Answered.REVOKED, "http_200"),
        (404, b"", Answered.REVOKED, "http_404"),
        (200, b'{"error": "token_revoked"}', Answered.REVOKED, "token_revoked"),
        (400, b'{"error": "token_revoked"}', Answered.REVOKED, "token_revoked"),
        (200, b'{"error": "ratelimited"}', Answered.NOT_NOW, "ratelimited"),
        (200, b'{"error": "bad_secret"}', Answered.REFUSED, "bad_secret"),
        (400, b'{"error": "unsupported_token_type"}', Answered.REFUSED, "unsupported_token_type"),
        (401, b'{"error": "invalid_client"}', Answered.REFUSED, "invalid_client"),
        (400, b'{"error": "what a customer said"}', Answered.REFUSED, "http_400"),
        (302, b"", Answered.REFUSED, "http_302"),
        (403, b"<html>", Answered.REFUSED, "http_403"),
        (429, b"", Answered.NOT_NOW, "http_429"),
        (503, b'{"error": "token_revoked"}', Answered.NOT_NOW, "http_503"),
        (500, b"[" * 200_000, Answered.NOT_NOW, "http_500"),
    ],
)
def test_an_answer_says_revoked_later_or_no(status: int, body: bytes, answered: Answered, code: str) -> None:
    definition = provider(f"{REVOKE}gone_status = 404\n{RULES}")
    assert definition.read_revocation(Answer(status, {}, body)) == RevocationReading(answered, code)


@pytest.mark.parametrize("kind", FailureKind)
def test_no_answer_is_no_word(kind: FailureKind) -> None:
    reading = provider(REVOKE).read_revocation(Failure(kind, "connect_refused"))
    assert reading == RevocationReading(Answered.NOT_NOW, "connect_refused")


def test_who_has_no_revocation_says_so() -> None:
    assert provider(REVOKE).revokes
    assert not provider().revokes


@pytest.mark.parametrize(
    ("revoke", "shows"),
    [
        ("", False),
        ('token = "access_token"', True),
        ('authentication = "bearer"', True),
        ('parameters = { user = "{access_token}" }', True),
        ('parameters = { d = "{digest}" }\n[computed.digest]\nkind = "sha256"\nof = "{access_token}"', True),
    ],
)
def test_who_needs_the_access_token_for_it_says_so(revoke: str, shows: bool) -> None:
    assert provider(f"{REVOKE}{revoke}").revocation_shows_access_token is shows
