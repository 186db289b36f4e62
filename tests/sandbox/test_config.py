"""A policy that makes no sense is refused with a sentence for each mistake."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sandbox.config import SandboxConfig
from tokenfleet.errors import UserError
from tokenfleet_client.secret import Secret


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: SandboxConfig(grace_seconds=-1), "grace"),
        (lambda: SandboxConfig(grace_seconds=float("nan")), "grace"),
        (lambda: SandboxConfig(access_lifetime_seconds=0), "access token lifetime"),
        (lambda: SandboxConfig(refresh_idle_lifetime_seconds=0), "idle lifetime"),
        (lambda: SandboxConfig(refresh_absolute_lifetime_seconds=-5), "absolute lifetime"),
        (lambda: SandboxConfig(latency_seconds=(0.3, 0.1)), "latency"),
        (lambda: SandboxConfig(client_secret=Secret("")), "client id or secret"),
    ],
)
def test_a_senseless_policy_is_explained(build: Callable[[], SandboxConfig], words: str) -> None:
    with pytest.raises(UserError, match=words):
        build()


def test_all_mistakes_are_reported_at_once() -> None:
    with pytest.raises(UserError) as refusal:
        SandboxConfig(grace_seconds=-1, access_lifetime_seconds=0)
    assert len(str(refusal.value).splitlines()) == 2


def test_a_printed_policy_shows_no_client_secret() -> None:
    assert "sesame" not in repr(SandboxConfig(client_secret=Secret("sesame")))
