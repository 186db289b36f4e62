"""The probe as data: what is sent, what an answer says, what contradicts itself, and what people are told of it."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from providers import Answer, Failure, FailureKind, load_registry
from providers.contradictions import contradictions
from providers.credentials import ClientCredentials, Grant
from providers.describe import describe
from providers.exchange import TokenRequest
from providers.probes import ProbeReading, Verdict
from providers.spec import ProviderSpec
from tests.providers.definitions import provider, toml
from tokenfleet.lifetimes import Lifetimes
from tokenfleet.tokens import Margins
from tokenfleet_client.secret import Secret

PROBE = """
[variables.tenant]
description = "the tenant"
kind = "label"

[probe]
endpoint = "https://{tenant}.example.com/me?app={client_id}"
alive_status = [200, 204]
dead_status = [401, 410]
needs_scope = "profile"
every_seconds = 7200
"""
TOKEN = Secret("the-token")
CLIENT = ClientCredentials("our-app", Secret("our-secret"))
NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
ME = 'endpoint = "https://api.example.com/me"\nalive_status = 200\n'


def request_of(
    definition: str,
    *,
    token: Secret | None = TOKEN,
    scope: str | None = None,
    variables: Mapping[str, str] | None = None,
    client: ClientCredentials = CLIENT,
) -> TokenRequest | None:
    """Return the probe of an account with these facts."""
    return provider(definition).probe_request(client, Grant(None, scope, variables or {}, token), now=NOW)


def sent(probe: str, **account: Any) -> TokenRequest:
    """Return the request of a probe with these lines, which there must be."""
    request = request_of(f"[probe]\n{ME}{probe}", **account)
    assert request is not None
    assert "the-token" not in repr(request)
    assert "our-secret" not in repr(request)
    return request


def reading_of(probe: str, status: int, body: bytes, **head: str) -> ProbeReading:
    """Return what an answer to a probe with these lines says."""
    return provider(f"[probe]\n{ME}{probe}").read_probe(Answer(status, head, body))


def test_a_probe_is_the_definition_s_request_with_the_token_as_bearer() -> None:
    request = request_of(PROBE, scope="email profile", variables={"tenant": "Acme"})
    assert request is not None
    assert (request.method, request.url) == ("GET", "https://acme.example.com/me?app=our-app")
    assert request.headers["Authorization"] == "Bearer the-token"
    assert request.body == b""
    assert "the-token" not in repr(request)


@pytest.mark.parametrize(
    ("probe", "url", "headers", "body"),
    [
        ('authorization = "OAuth {access_token}"', "", {"Authorization": "OAuth the-token"}, ""),
        (
            'authorization = ""\nheaders = { X-Token = "{access_token}", X-Key = "{client_id}:{client_secret}" }',
            "",
            {"X-Token": "the-token", "X-Key": "our-app:our-secret"},
            "",
        ),
        (
            'authorization = ""\nparameters = { access_token = "{access_token}", app = "{client_id}|{client_secret}" }',
            "?access_token=the-token&app=our-app%7Cour-secret",
            {},
            "",
        ),
        (
            'method = "POST"\nbody = "form"\nparameters = { action = "get device" }',
            "",
            {"Authorization": "Bearer the-token", "Content-Type": "application/x-www-form-urlencoded"},
            "action=get+device",
        ),
        (
            (
                'method = "POST"\nbody = "json"\nauthorization = ""\n'
                'parameters = { "auth.token" = "{access_token}", statement = "select 1" }'
            ),
            "",
            {"Content-Type": "application/json"},
            '{"auth": {"token": "the-token"}, "statement": "select 1"}',
        ),
        (
            'method = "POST"\nbody = "json"\nparameters = { query = "{{ viewer {{ id }} }}" }',
            "",
            {"Authorization": "Bearer the-token", "Content-Type": "application/json"},
            '{"query": "{ viewer { id } }"}',
        ),
        ('method = "POST"\nbody = "none"', "", {"Authorization": "Bearer the-token"}, ""),
        (
            'headers = { accept = "application/vnd.example+json" }',
            "",
            {"accept": "application/vnd.example+json"},
            "",
        ),
    ],
    ids=["scheme", "headers", "query", "form", "json", "query language", "no body", "accept"],
)
def test_a_probe_carries_the_token_where_the_definition_puts_it(
    probe: str, url: str, headers: dict[str, str], body: str
) -> None:
    request = sent(probe)
    assert request.url == f"https://api.example.com/me{url}"
    expected = {"Authorization": "Bearer the-token"} if "authorization" not in probe else {}
    if "accept" not in headers:
        expected["Accept"] = "application/json"
    assert request.headers == expected | headers
    assert request.body.decode() == body


def test_a_probe_can_carry_what_is_computed_from_its_token_and_the_moment() -> None:
    request = sent(
        'authorization = "Basic {pair}"\nheaders = { X-Time = "{moment}" }\n'
        '[computed.pair]\nkind = "base64"\nof = "{access_token}:"\n'
        '[computed.moment]\nkind = "timestamp"'
    )
    assert request.headers["Authorization"] == "Basic dGhlLXRva2VuOg=="
    assert request.headers["X-Time"] == str(int(NOW.timestamp()))


def test_an_app_without_the_secret_that_a_probe_needs_is_not_probed() -> None:
    probe = f'[probe]\n{ME}headers = {{ X-Key = "{{client_secret}}" }}'
    assert request_of(probe) is not None
    assert request_of(probe, client=ClientCredentials("our-app", None)) is None


DEAD_WHEN = 'dead_when = [{ path = "error", value = "token_revoked" }, { path = "code", pattern = "auth*" }]'
ALIVE_WHEN = 'alive_when = [{ path = "ok", value = true }, { path = "user.id" }]'


@pytest.mark.parametrize(
    ("status", "body", "verdict", "code"),
    [
        (200, b'{"ok": true, "user": {"id": 7}}', Verdict.ALIVE, "http_200"),
        (200, b'{"ok": true}', Verdict.UNCLEAR, "http_200"),
        (200, b'{"ok": false, "user": {"id": 7}}', Verdict.UNCLEAR, "http_200"),
        (200, b'{"ok": false, "error": "token_revoked"}', Verdict.DEAD, "token_revoked"),
        (200, b'{"ok": true, "user": {"id": 7}, "error": "token_revoked"}', Verdict.UNCLEAR, "http_200"),
        (400, b'{"code": "AUTH-7 of customer 12"}', Verdict.DEAD, "auth"),
        (401, b'{"error": "token_revoked"}', Verdict.DEAD, "token_revoked"),
        (401, b"<html>", Verdict.DEAD, "http_401"),
        (429, b'{"error": "token_revoked"}', Verdict.UNCLEAR, "http_429"),
        (503, b'{"error": "token_revoked"}', Verdict.UNCLEAR, "http_503"),
        (200, b'{"ok": false, "error": "token_revoked"} and more', Verdict.UNCLEAR, "http_200"),
        (200, b'{"error": "token_revoked", "error": "busy"}', Verdict.UNCLEAR, "http_200"),
        (200, b'[{"error": "token_revoked"}]', Verdict.UNCLEAR, "http_200"),
        (200, b"<html>Welcome to our hotel</html>", Verdict.UNCLEAR, "http_200"),
        (200, b"", Verdict.UNCLEAR, "http_200"),
        (200, b"[" * 200_000, Verdict.UNCLEAR, "http_200"),
        (200, b'{"ok": ' + b"9" * 200_000 + b"}", Verdict.UNCLEAR, "http_200"),
        (200, b"\xff\xfe\x00\xd8", Verdict.UNCLEAR, "http_200"),
    ],
)
def test_a_body_is_heard_as_far_as_the_definition_says_and_it_can_be_read(
    status: int, body: bytes, verdict: Verdict, code: str
) -> None:
    assert reading_of(f"{ALIVE_WHEN}\n{DEAD_WHEN}", status, body) == ProbeReading(verdict, code)


def test_a_body_that_cannot_be_read_is_not_one_without_an_error() -> None:
    probe = 'alive_when = { path = "error", absent = true }'
    assert reading_of(probe, 200, b'{"name": "Ada"}').verdict is Verdict.ALIVE
    assert reading_of(probe, 200, b'{"error": 7}').verdict is Verdict.UNCLEAR
    assert reading_of(probe, 200, b"<html>").verdict is Verdict.UNCLEAR


def test_a_status_that_a_rule_names_counts_for_that_rule_alone() -> None:
    probe = 'dead_when = { status = 403, path = "error.code", value = 190 }'
    assert reading_of(probe, 403, b'{"error": {"code": 190}}') == ProbeReading(Verdict.DEAD, "190")
    assert reading_of(probe, 400, b'{"error": {"code": 190}}') == ProbeReading(Verdict.UNCLEAR, "http_400")


def test_a_word_may_come_as_a_form() -> None:
    form = {"content-type": "application/x-www-form-urlencoded"}
    assert reading_of(DEAD_WHEN, 400, b"error=token_revoked", **form).verdict is Verdict.DEAD
    assert reading_of(DEAD_WHEN, 400, b"error=token_revoked").verdict is Verdict.UNCLEAR


@pytest.mark.parametrize(
    ("scope", "variables", "token"),
    [
        ("email", {"tenant": "acme"}, TOKEN),
        ("profile", {}, TOKEN),
        ("profile", {"tenant": "acme.evil.example/"}, TOKEN),
        ("profile", {"tenant": "acme"}, Secret("split\r\nHost: evil.example")),
        ("profile", {"tenant": "acme"}, Secret("\N{SNOWMAN}")),
        ("profile", {"tenant": "acme"}, None),
    ],
    ids=["scope", "no variable", "bad variable", "header injection", "not ASCII", "no token"],
)
def test_who_cannot_be_probed_is_not(scope: str, variables: dict[str, str], token: Secret | None) -> None:
    assert request_of(PROBE, token=token, scope=scope, variables=variables) is None


def test_who_has_an_unknown_scope_is_probed_and_nobody_without_a_probe() -> None:
    assert request_of(PROBE, variables={"tenant": "acme"}) is not None
    assert request_of("") is None


@pytest.mark.parametrize("status", [*range(100, 600, 7), 200, 204, 401, 410, 429, 999])
def test_only_named_statuses_say_anything(status: int) -> None:
    reading = provider(PROBE).read_probe(Answer(status))
    expected = {200: Verdict.ALIVE, 204: Verdict.ALIVE, 401: Verdict.DEAD, 410: Verdict.DEAD}
    assert reading.verdict is expected.get(status, Verdict.UNCLEAR)


@pytest.mark.parametrize("kind", FailureKind)
def test_no_answer_says_nothing(kind: FailureKind) -> None:
    reading = provider(PROBE).read_probe(Failure(kind, "timeout"))
    assert (reading.verdict, reading.code) == (Verdict.UNCLEAR, "timeout")


def test_lifetimes_are_compiled_and_the_margins_fit_into_the_window_of_refreshes() -> None:
    told = provider(
        f"{PROBE}\n[lifetimes]\naccess_seconds = 3600\nearliest_refresh_seconds = 90\nrefresh_idle_seconds = 86400\n"
        "refresh_absolute_seconds = 864000"
    )
    assert told.lifetimes == Lifetimes(
        earliest_refresh=timedelta(seconds=90),
        refresh_idle=timedelta(days=1),
        refresh_absolute=timedelta(days=10),
        probe_every=timedelta(hours=2),
    )
    assert told.margins == Margins(timedelta(seconds=90), timedelta(seconds=60))
    close = provider("[lifetimes]\nearliest_refresh_seconds = 45")
    assert close.margins == Margins(timedelta(seconds=45), timedelta(seconds=45))
    assert provider().lifetimes == Lifetimes()


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        (
            "[lifetimes]\nearliest_refresh_seconds = 29",
            "is shorter than 30: no refresh would be in time",
        ),
        (
            "[lifetimes]\naccess_seconds = 7200\nearliest_refresh_seconds = 60\nrefresh_idle_seconds = 3600",
            "allows no refresh before an unused refresh token dies (3600)",
        ),
        (
            "[lifetimes]\naccess_never_expires = true\nearliest_refresh_seconds = 60",
            "contradicts access_never_expires",
        ),
        (
            "[lifetimes]\naccess_never_expires = true\nmargin_latest_seconds = 60",
            "contradicts access_never_expires",
        ),
        (
            PROBE.replace("[401, 410]", "[401, 500]"),
            "has 500, which says nothing of a token",
        ),
        (
            PROBE.replace("[401, 410]", "[429]"),
            "has 429, which says nothing of a token",
        ),
    ],
)
def test_what_leaves_no_sense_is_a_contradiction(extra: str, expected: str) -> None:
    spec = ProviderSpec.model_validate(tomllib.loads(toml(extra)))
    assert expected in [reason for _, reason in contradictions(spec, allow_http=False)]


def test_a_probe_that_is_rarer_than_the_idle_limit_is_none() -> None:
    """The keepalive comes in between."""
    assert provider(f"{PROBE}\n[lifetimes]\nrefresh_idle_seconds = 60").lifetimes.probe_every is not None


def test_people_are_told_what_is_done_about_lifetimes() -> None:
    lines = describe(
        provider(
            f"{PROBE}\n[lifetimes]\nearliest_refresh_seconds = 90\nrefresh_idle_seconds = 86400\n"
            "refresh_absolute_seconds = 864000",
            rotation='policy = "always"\nmax_live = 3',
        )
    )
    text = "\n".join(lines)
    for part in (
        "else unknown, and then probed every 30 minutes at least until its end teaches how long it lives",
        "Early refresh: refused longer than 1 minute 30 seconds before the access token's end",
        "Refresh token: dies after 1 day without use, and is used before",
        "the customer is told 2 days before",
        "Probe: GET https://{tenant}.example.com/me?app={client_id} with the access token, every 2 hours",
        "200 or 204 while it works; 401 or 410 leads to a refresh, and only that decides",
        "Limit: 3 live refresh tokens, so one whose answers are lost is not replayed more often",
    ):
        assert part in text
    never = "\n".join(describe(provider("[lifetimes]\naccess_never_expires = true")))
    assert "Access token: lives until it is revoked, so it is not renewed" in never
    assert "else unknown, and then renewed every 30 minutes" in "\n".join(describe(provider()))


@pytest.mark.parametrize(
    "answer",
    [
        Answer(401, {"content-type": "text/html; charset=utf-8"}, b"Please log in"),
        Answer(401, {}, b"\n<!DOCTYPE html><title>401</title>"),
    ],
)
@pytest.mark.parametrize(
    ("refresh", "verdict"),
    [('grant = "none"', Verdict.UNCLEAR), ('endpoint = "https://auth.example.com/token"', Verdict.DEAD)],
)
def test_a_gateways_page_is_no_last_word(answer: Answer, refresh: str, verdict: Verdict) -> None:
    """Where a refresh follows, its outcome decides; where none can, a login wall must not cost a sign-in."""
    probed = provider('[probe]\nendpoint = "https://api.example.com/me"\nalive_status = 200', refresh=refresh)
    assert probed.read_probe(answer).verdict is verdict


def test_a_key_without_a_right_is_not_dead() -> None:
    """What these providers answer to a key that lives, but may not do what the probe asks."""
    registry = load_registry()
    may_only_write = (
        b'{"code":"woocommerce_rest_authentication_error","message":"The API key provided does not"}'
    )
    no_right = b'{"success": false, "errors": ["missing_permission"], "errorInfo": {"code": "other"}}'
    assert registry.get("woocommerce").read_probe(Answer(401, {}, may_only_write)).verdict is Verdict.UNCLEAR
    assert registry.get("ashby").read_probe(Answer(403, {}, no_right)).verdict is Verdict.UNCLEAR
    removed = b'{"code":"woocommerce_rest_cannot_view","message":"Sorry"}'
    assert registry.get("woocommerce").read_probe(Answer(401, {}, removed)).verdict is Verdict.DEAD
    wrong = b'{"success": false, "errors": ["invalid_api_key"]}'
    assert registry.get("ashby").read_probe(Answer(403, {}, wrong)).verdict is Verdict.DEAD
