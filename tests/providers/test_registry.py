"""The built-in catalogue, the operator's own definitions, and what the published schema says of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from providers import Answer, Grant, load_registry
from providers.credentials import RequestBuildError
from providers.describe import describe, duration_text, validate_paths
from providers.registry import CATALOG, DEFAULT_MAX_OUTSTANDING, Provider
from providers.schema import SCHEMA_FILE, schema_text
from providers.spec_answers import AnswerFields
from providers.templates import VariableKind
from tests.providers.clients import client_of
from tests.providers.definitions import provider, toml
from tokenfleet.errors import UserError
from tokenfleet.outcome import (
    ClientRejected,
    GrantRejected,
    Outcome,
    Refreshed,
    RequestRejected,
    Throttled,
    Unavailable,
    Undescribed,
)
from tokenfleet.presented import Presented
from tokenfleet.tokens import Margins
from tokenfleet_client.secret import Secret

NOW = datetime(2026, 3, 1, tzinfo=UTC)
FILES = sorted(CATALOG.glob("*.toml"))
REGISTRY = load_registry()
RENEWED = [one for one in REGISTRY if one.renews]
SAMPLES: Mapping[VariableKind, str] = {
    "text": "acme",
    "digits": "123",
    "label": "acme",
    "host": "auth.example.com",
    "url": "https://auth.example.com/base",
}


def variables(one: Provider) -> dict[str, str]:
    """Return a value for every variable of a definition, as an account would bring it."""
    return {
        name: variable.pattern[0].replace("*", "acme") if variable.pattern else SAMPLES[variable.kind]
        for name, variable in one.spec.variables.items()
    }


def put(document: dict[str, Any], path: str, value: object) -> None:
    """Put ``value`` at a path of names into ``document``."""
    *names, last = path.split(".")
    for name in names:
        document = document.setdefault(name, {})
    document[last] = value


AN_HOUR: Mapping[str, object] = {
    "seconds": 3600,
    "milliseconds": 3_600_000,
    "minutes": 60,
    "hours": 1,
    "days_hours_minutes": "0:01:00",
    "hours_minutes_seconds": "1:00:00",
}


def plain_answer(fields: AnswerFields) -> bytes:
    """Return a token response with everything where ``fields`` say that it stands, and an hour to live."""
    document: dict[str, Any] = {}
    for condition in fields.success:
        if not condition.absent:
            put(document, condition.path[0], condition.value[0] if condition.value else "there")
    put(document, fields.access_token[0], "at-1")
    put(document, fields.refresh_token[0], "rt-2")
    life = fields.expires_in
    if life.path:
        put(document, life.path[0], AN_HOUR[life.unit if life.format == "number" else life.format])
    return json.dumps(document).encode()


def jsonable(value: Any) -> Any:
    """Return a TOML document as the schema sees it: a date is text."""
    if isinstance(value, dict):
        return {key: jsonable(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [jsonable(inner) for inner in value]
    return value.isoformat() if isinstance(value, date) else value


def test_the_catalogue_has_no_mistakes() -> None:
    assert validate_paths([CATALOG]) == []
    assert len(REGISTRY) == len(FILES) > 100


def test_the_published_schema_is_what_the_models_say() -> None:
    assert SCHEMA_FILE.read_text("utf-8") == schema_text(), "run: python -m providers.schema"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_definition_fits_the_published_schema(file: Path) -> None:
    document = tomllib.loads(file.read_text("utf-8"))
    validator = jsonschema.Draft202012Validator(json.loads(SCHEMA_FILE.read_text("utf-8")))
    assert [error.message for error in validator.iter_errors(jsonable(document))] == []
    assert document["name"] == file.stem


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("rotation", "policy"), "perhaps"),
        (("name",), "Not A Name"),
        (("refresh", "metod"), "POST"),
        (("rate", "requests_per_second"), 0),
    ],
)
def test_the_published_schema_refuses_mistakes(path: tuple[str, ...], value: object) -> None:
    document: Any = jsonable(tomllib.loads(toml("[rate]\n")))
    place = document
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    validator = jsonschema.Draft202012Validator(json.loads(SCHEMA_FILE.read_text("utf-8")))
    assert not validator.is_valid(document)


@pytest.mark.parametrize("one", RENEWED, ids=lambda one: one.name)
def test_every_definition_shows_what_it_presents_and_nothing_else(one: Provider) -> None:
    grant = Grant(Secret("rt-1"), "a b", variables(one), Secret("at-0"))
    request = one.refresh_request(client_of(one), grant, now=NOW)
    assert request.url.startswith("https://")
    shown = request.url.encode() + request.body + "".join(request.headers.values()).encode()
    kept = one.presents in (Presented.REFRESH_TOKEN, Presented.SUBJECT_TOKEN)
    assert (b"rt-1" in shown, b"at-0" in shown) == (kept, one.presents is Presented.ACCESS_TOKEN)


@pytest.mark.parametrize("one", RENEWED, ids=lambda one: one.name)
def test_every_definition_understands_a_plain_answer(one: Provider) -> None:
    outcome = one.read(Answer(200, {}, plain_answer(one.spec.answer)), now=NOW)
    assert isinstance(outcome, Refreshed)
    assert outcome.answer.access_token == Secret("at-1")
    rotates = one.presents is Presented.REFRESH_TOKEN
    assert outcome.answer.refresh_token == (Secret("rt-2") if rotates else None)
    told = timedelta(hours=1) if one.spec.answer.expires_in.path else None
    life = told or timedelta(seconds=one.spec.lifetimes.access_seconds or 0)
    assert outcome.answer.expires_at == NOW + life


def test_who_is_never_renewed_is_never_asked_for_tokens() -> None:
    for one in REGISTRY:
        if one.renews:
            continue
        with pytest.raises(RequestBuildError) as caught:
            one.refresh_request(client_of(one), Grant(Secret("rt-1"), None, variables(one)), now=NOW)
        assert caught.value.code == "never_renewed"


@pytest.mark.parametrize("one", REGISTRY, ids=lambda one: one.name)
def test_every_definition_is_explained_in_plain_language(one: Provider) -> None:
    lines = describe(one)
    assert one.display_name in lines[0]
    assert not any("\n" in line or "None" in line or "(,)" in line for line in lines)
    assert sum(line.startswith("Error ") for line in lines) == len(one.spec.errors)


ERRORS: list[tuple[str, int, dict[str, Any], Outcome]] = [
    (
        "google",
        400,
        {"error": "invalid_grant", "error_subtype": "invalid_rapt"},
        GrantRejected("invalid_rapt"),
    ),
    ("google", 400, {"error": "invalid_grant"}, GrantRejected("invalid_grant")),
    ("google", 400, {"error": "admin_policy_enforced"}, GrantRejected("admin_policy_enforced")),
    ("google", 401, {"error": "deleted_client"}, ClientRejected("deleted_client")),
    ("google", 400, {"error": "internal_failure"}, Unavailable("internal_failure")),
    (
        "microsoft",
        400,
        {"error": "invalid_grant", "error_codes": [70008, 700082]},
        GrantRejected("aadsts700082"),
    ),
    (
        "microsoft",
        401,
        {"error": "invalid_client", "error_codes": [7000222]},
        ClientRejected("aadsts7000222"),
    ),
    (
        "microsoft",
        400,
        {"error": "invalid_grant", "error_codes": [90033]},
        Unavailable("aadsts90033"),
    ),
    ("microsoft", 400, {"error": "interaction_required"}, GrantRejected("interaction_required")),
    ("salesforce", 400, {"error": "invalid_client_id"}, ClientRejected("invalid_client_id")),
    ("salesforce", 400, {"error": "invalid_grant"}, GrantRejected("invalid_grant")),
    ("github_app_user", 200, {"error": "bad_refresh_token"}, GrantRejected("bad_refresh_token")),
    (
        "github_app_user",
        200,
        {"error": "incorrect_client_credentials"},
        ClientRejected("incorrect_client_credentials"),
    ),
    ("github_app_user", 200, {"error": "something_new"}, Undescribed("something_new", "200 {error:word}")),
    ("hubspot", 400, {"status": "BAD_REFRESH_TOKEN"}, GrantRejected("bad_refresh_token")),
    ("hubspot", 400, {"status": "BAD_CLIENT_SECRET"}, ClientRejected("bad_client_secret")),
    ("quickbooks", 401, {"error": "invalid_client"}, ClientRejected("invalid_client")),
    ("oidc", 400, {"error": "invalid_scope"}, RequestRejected("invalid_scope")),
    ("slack_rotating", 200, {"ok": False, "error": "token_revoked"}, GrantRejected("token_revoked")),
    ("slack_rotating", 200, {"ok": False, "error": "fatal_error"}, Unavailable("fatal_error")),
    ("zoho", 200, {"error": "invalid_code"}, GrantRejected("invalid_code")),
    ("zoho", 400, {"error": "Access Denied"}, Throttled("access_denied", whole_app=False)),
    ("zoom", 401, {"reason": "Invalid Token!", "error": "invalid_request"}, GrantRejected("invalid_token")),
    (
        "jira",
        403,
        {"error": "unauthorized_client", "error_description": "refresh_token is invalid"},
        GrantRejected("refresh_token_invalid"),
    ),
    ("jira", 403, {"error": "unauthorized_client"}, ClientRejected("unauthorized_client")),
    (
        "exact_online",
        401,
        {"error": "unauthorized_client"},
        ClientRejected("unauthorized_client", whole_app=False),
    ),
    (
        "exact_online",
        400,
        {"error": "invalid_request", "error_description": "Rate limit exceeded: access_token not expired"},
        Throttled("access_token_not_expired", whole_app=False),
    ),
    (
        "x_twitter",
        400,
        {"error": "invalid_request", "error_description": "Value passed for the token was invalid."},
        GrantRejected("token_invalid"),
    ),
    ("x_twitter", 400, {"error": "invalid_request"}, RequestRejected("invalid_request")),
    ("airtable", 409, {"error": "invalid_request"}, Unavailable("refresh_under_way")),
    ("fitbit", 400, {"errors": [{"errorType": "invalid_grant"}]}, GrantRejected("invalid_grant")),
    (
        "strava",
        400,
        {"errors": [{"resource": "RefreshToken", "field": "refresh_token", "code": "invalid"}]},
        GrantRejected("refresh_token"),
    ),
    (
        "twitch",
        400,
        {"status": 400, "message": "Invalid refresh token"},
        GrantRejected("invalid_refresh_token"),
    ),
    ("wechat", 200, {"errcode": 42002, "access_token": ""}, GrantRejected("errcode_42002")),
    ("feishu", 400, {"code": 20073}, GrantRejected("code_20073")),
    ("reddit", 401, {"message": "Unauthorized", "error": 401}, ClientRejected("error_401")),
]


@pytest.mark.parametrize(("name", "status", "body", "expected"), ERRORS)
def test_errors_of_the_built_in_providers(
    name: str, status: int, body: dict[str, Any], expected: Outcome
) -> None:
    answer = Answer(status, {"content-type": "application/json"}, json.dumps(body).encode())
    assert REGISTRY.get(name).read(answer, now=NOW) == expected


def test_an_error_that_can_mean_more_than_a_dead_grant_flips_nobody() -> None:
    word = b'{"error": "server_error", "error_description": "access_denied"}'
    assert isinstance(REGISTRY.get("servicenow").read(Answer(401, {}, word), now=NOW), Undescribed)
    number = b'{"status": 503, "body": {}, "error": "Invalid Params"}'
    assert isinstance(REGISTRY.get("withings").read(Answer(200, {}, number), now=NOW), Undescribed)


def test_an_api_base_that_moves_is_captured() -> None:
    body = b'{"access_token": "at-1", "instance_url": "https://na2.salesforce.com", "issued_at": "1"}'
    outcome = REGISTRY.get("salesforce").read(Answer(200, {}, body), now=NOW)
    assert isinstance(outcome, Refreshed)
    assert outcome.answer.variables == {"instance_url": "https://na2.salesforce.com"}
    assert outcome.answer.expires_at == NOW + timedelta(hours=2)


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ("gogle", "did you mean google"),
        ("github-app-user", "did you mean github_app_user"),
        ("quickbooks_online", "did you mean quickbooks?"),
        ("microsoft_entra", "did you mean microsoft or "),
        ("nothing_like_it", "'tokenfleet providers list'"),
        ("", "'tokenfleet providers list'"),
    ],
)
def test_an_unknown_name_is_answered_with_close_ones(asked: str, told: str) -> None:
    with pytest.raises(UserError) as caught:
        REGISTRY.get(asked)
    assert told in str(caught.value)


def test_names_are_sorted_and_providers_iterate() -> None:
    assert list(REGISTRY.names()) == sorted(file.stem for file in FILES)
    assert [one.name for one in REGISTRY] == list(REGISTRY.names())
    assert "google" in REGISTRY


def test_an_operators_definition_stands_beside_or_in_place_of_ours(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(toml())
    theirs = toml().replace('name = "example"', 'name = "google"', 1)
    (tmp_path / "their_google.toml").write_text(theirs)
    (tmp_path / "readme.txt").write_text("not a definition")
    registry = load_registry(tmp_path)
    assert len(registry) == len(REGISTRY) + 1
    assert registry.get("google").display_name == "Example"
    assert registry.get("google").origin == str(tmp_path / "their_google.toml")


def test_pace_margins_and_grace_come_from_the_definition_or_have_defaults() -> None:
    plain = provider()
    assert (plain.rate_per_second, plain.burst) == (None, 1)
    assert plain.max_outstanding == DEFAULT_MAX_OUTSTANDING
    assert (plain.margins, plain.replay_grace) == (Margins(), None)
    told = provider(
        "[rate]\nrequests_per_second = 2.5\nmax_outstanding = 7\n"
        "[lifetimes]\nmargin_earliest_seconds = 600\nmargin_latest_seconds = 300\n",
        rotation='policy = "always"\ngrace_seconds = 120',
    )
    assert (told.rate_per_second, told.burst, told.max_outstanding) == (2.5, 3, 7)
    assert told.margins == Margins(timedelta(minutes=10), timedelta(minutes=5))
    assert told.replay_grace == timedelta(minutes=2)
    short = provider("[lifetimes]\nmargin_earliest_seconds = 45\n")
    assert short.margins == Margins(timedelta(seconds=45), timedelta(seconds=45))


def test_a_provider_prints_short() -> None:
    assert len(repr(REGISTRY.get("google"))) < 400


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 seconds"),
        (1, "1 second"),
        (3599, "59 minutes 59 seconds"),
        (90_061, "1 day 1 hour"),
        (120, "2 minutes"),
    ],
)
def test_durations_are_told_in_two_units(seconds: int, text: str) -> None:
    assert duration_text(seconds) == text


def test_definitions_load_without_an_http_client() -> None:
    program = "import sys, providers; providers.load_registry(); print('aiohttp' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        cwd=CATALOG.parents[1],
        env={"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.stdout.strip() == "False"
