"""A client that asks a sandbox as a fleet would, and a clock that moves when told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import httpx

from sandbox.config import SandboxConfig
from sandbox.server import SandboxServer
from tokenfleet_client.secret import Secret


@dataclass
class Clock:
    """Time that moves when told, in POSIX seconds."""

    now: float = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Client:
    """One registered client of one sandbox."""

    server: SandboxServer
    http: httpx.Client

    def refresh(self, token: Secret | str, **changes: str | None) -> httpx.Response:
        """Ask for a refresh; ``changes`` replace parameters of the form, None leaves one out."""
        form = {
            "grant_type": "refresh_token",
            "refresh_token": token.reveal() if isinstance(token, Secret) else token,
            "client_id": self.server.config.client_id,
            "client_secret": self.server.config.client_secret.reveal(),
            **changes,
        }
        sent = {name: value for name, value in form.items() if value is not None}
        return self.http.post(self.server.token_endpoint, data=sent)

    def sign_in(self, subject: str = "acct-1") -> Secret:
        """Return the first refresh token of ``subject``."""
        (grant,) = self.server.issue(subject)
        assert grant.tokens.refresh_token is not None
        return grant.tokens.refresh_token


Start = Callable[[SandboxConfig], Client]
