"""The probe as data: what is sent, what an answer says, what contradicts itself, and what people are told of it."""

from __future__ import annotations

import tomllib
from datetime import timedelta

import pytest

from providers import Answer, Failure, FailureKind
from providers.contradictions import contradictions
from providers.describe import describe
from providers.probes import Verdict
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


def test_a_probe_is_the_definition_s_request_with_the_token_as_bearer() -> None:
    request = provider(PROBE).probe_request("our-app", TOKEN, "email profile", {"tenant": "Acme"})
    assert request is not None
    assert (request.method, request.url) == ("GET", "https://acme.example.com/me?app=our-app")
    assert request.headers["Authorization"] == "Bearer the-token"
    assert "the-token" not in repr(request)


@pytest.mark.parametrize(
    ("scope", "variables", "token"),
    [
        ("email", {"tenant": "acme"}, TOKEN),
        ("profile", {}, TOKEN),
        ("profile", {"tenant": "acme.evil.example/"}, TOKEN),
        ("profile", {"tenant": "acme"}, Secret("split\r\nHost: evil.example")),
        ("profile", {"tenant": "acme"}, Secret("\N{SNOWMAN}")),
    ],
    ids=["scope", "no variable", "bad variable", "header injection", "not ASCII"],
)
def test_who_cannot_be_probed_is_not(scope: str, variables: dict[str, str], token: Secret) -> None:
    assert provider(PROBE).probe_request("our-app", token, scope, variables) is None


def test_who_has_an_unknown_scope_is_probed_and_nobody_without_a_probe() -> None:
    assert provider(PROBE).probe_request("our-app", TOKEN, None, {"tenant": "acme"}) is not None
    assert provider().probe_request("our-app", TOKEN, None, {}) is None


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
