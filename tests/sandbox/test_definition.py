"""The fleet's own definition language accepts what the sandbox says of itself, and it is true."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from providers import Answer, ClientCredentials, Grant, Provider, load_registry
from sandbox.config import Rotation, SandboxConfig
from sandbox.definition import Pace, definition_toml
from sandbox.faults import FaultKind, FaultRule
from tests.sandbox.client import Client
from tokenfleet.outcome import GrantRejected, Outcome, Refreshed
from tokenfleet_client.secret import Secret

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def provider_of(config: SandboxConfig, directory: Path, url: str = "http://127.0.0.1:9321") -> Provider:
    (directory / "sandbox.toml").write_text(definition_toml(url, config))
    return load_registry(directory, allow_http=True).get("sandbox")


def ask(provider: Provider, client: Client, token: Secret) -> Outcome:
    credentials = ClientCredentials(client.server.config.client_id, client.server.config.client_secret)
    request = provider.refresh_request(credentials, Grant(token))
    answer = client.http.request(
        request.method, request.url, headers=dict(request.headers), content=request.body
    )
    headers = {name.lower(): value for name, value in answer.headers.items()}
    return provider.read(Answer(answer.status_code, headers, answer.content), now=NOW)


@pytest.mark.parametrize(
    "config",
    [
        SandboxConfig(),
        SandboxConfig(rotation=Rotation.NEVER, grace_seconds=5),
        SandboxConfig(grace_seconds=30.5, family_revocation=False),
        SandboxConfig(grace_seconds=90, refresh_idle_lifetime_seconds=60),
        SandboxConfig(refresh_idle_lifetime_seconds=0.5, refresh_absolute_lifetime_seconds=0.2),
        SandboxConfig(refresh_idle_lifetime_seconds=900, refresh_absolute_lifetime_seconds=600),
    ],
)
def test_every_policy_makes_a_definition_without_mistakes(config: SandboxConfig, tmp_path: Path) -> None:
    assert provider_of(config, tmp_path).spec.rotation.policy == config.rotation.value


def test_the_grace_is_told_in_whole_seconds_and_never_too_long(tmp_path: Path) -> None:
    provider = provider_of(SandboxConfig(grace_seconds=30.9), tmp_path)
    assert provider.replay_grace == timedelta(seconds=30)


def test_a_pace_and_margins_are_told_as_given(tmp_path: Path) -> None:
    pace = Pace(requests_per_second=12.5, burst=7, margin_seconds=(40, 50))
    definition = definition_toml("http://127.0.0.1:9321", SandboxConfig(), name="drill", pace=pace)
    (tmp_path / "drill.toml").write_text(definition)
    provider = load_registry(tmp_path, allow_http=True).get("drill")
    assert (provider.rate_per_second, provider.burst) == (12.5, 7)
    assert provider.margins.latest == timedelta(seconds=40)
    assert provider.margins.earliest == timedelta(seconds=50)


def test_a_request_made_by_the_definition_is_answered_with_a_successor(
    client: Client, tmp_path: Path
) -> None:
    provider = provider_of(client.server.config, tmp_path, client.server.url)
    token = client.sign_in()
    outcome = ask(provider, client, token)
    assert isinstance(outcome, Refreshed)
    assert outcome.answer.expires_at == NOW + timedelta(hours=1)
    assert outcome.answer.refresh_token is not None
    assert isinstance(ask(provider, client, token), GrantRejected)


def test_the_lifetime_is_told_where_an_answer_omits_it(client: Client, tmp_path: Path) -> None:
    provider = provider_of(client.server.config, tmp_path, client.server.url)
    client.server.add_faults(FaultRule(kind=FaultKind.MISSING_EXPIRES_IN))
    outcome = ask(provider, client, client.sign_in())
    assert isinstance(outcome, Refreshed)
    assert outcome.answer.expires_at == NOW + timedelta(hours=1)
