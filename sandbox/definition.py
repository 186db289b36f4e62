"""The provider definition of a sandbox: what an operator puts into ``TOKENFLEET_PROVIDERS_DIR``.

Promise: the definition says what the sandbox does, no more, and the fleet's own checks accept it. The sandbox
speaks plain http, so a fleet has to be told that this is meant (``TOKENFLEET_ALLOW_HTTP_PROVIDERS``).
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Final

from sandbox.config import Rotation, SandboxConfig

PROVIDER_NAME: Final = "sandbox"

_DEFINITION: Final = """\
# An authorization server of Tokenfleet's own, to try things on. Written by the sandbox itself.
name = {name}
display_name = "Sandbox"
category = "testing"
documentation = "https://www.rfc-editor.org/rfc/rfc6749#section-6"
confidence = "high"
checked = 2026-11-21

[client]
authentication = "client_secret_post"

[refresh]
endpoint = {token_endpoint}

[rotation]
{rotation}

[lifetimes]
{lifetimes}

{rate}[probe]
endpoint = {userinfo}
alive_status = 200

[revoke]
endpoint = {revocation_endpoint}
"""


@dataclass(frozen=True, slots=True)
class Pace:
    """How one client is to be treated: its budget, and how long before their end its tokens are renewed."""

    requests_per_second: float
    burst: int
    margin_seconds: tuple[int, int]
    """The latest and the earliest moment before an access token's end."""


def definition_toml(
    base_url: str, config: SandboxConfig, *, name: str = PROVIDER_NAME, pace: Pace | None = None
) -> str:
    """Return the definition (TOML) of a sandbox that serves ``config`` at ``base_url``.

    The sandbox enforces no pace: ``pace`` is what a fleet is told, to see whether it keeps it.
    """
    base = base_url.rstrip("/")
    return _DEFINITION.format(
        name=_text(name),
        token_endpoint=_text(f"{base}/token"),
        userinfo=_text(f"{base}/userinfo"),
        revocation_endpoint=_text(f"{base}/revoke"),
        rotation="\n".join(_rotation(config)),
        lifetimes="\n".join([*_lifetimes(config), *_margins(pace)]),
        rate=_rate(pace),
    )


def _rotation(config: SandboxConfig) -> list[str]:
    lines = [f"policy = {_text(config.rotation)}"]
    if config.rotation is Rotation.ALWAYS:
        # A client relies on the grace, so a part of a second is not promised.
        lines.append(f"grace_seconds = {math.floor(_shortest(config, config.grace_seconds))}")
        lines.append(f"family_revocation = {str(config.family_revocation).lower()}")
    return lines


def _lifetimes(config: SandboxConfig) -> list[str]:
    lines = [f"access_seconds = {config.access_lifetime_seconds}"]
    idle, absolute = config.refresh_idle_lifetime_seconds, config.refresh_absolute_lifetime_seconds
    if idle is not None:
        lines.append(f"refresh_idle_seconds = {max(1, math.floor(_shortest(config, idle)))}")
    if absolute is not None:
        lines.append(f"refresh_absolute_seconds = {max(1, math.floor(absolute))}")
    if config.earliest_refresh_seconds is not None:
        lines.append(f"earliest_refresh_seconds = {max(1, math.floor(config.earliest_refresh_seconds))}")
    return lines


def _margins(pace: Pace | None) -> list[str]:
    if pace is None:
        return []
    latest, earliest = pace.margin_seconds
    return [f"margin_latest_seconds = {latest}", f"margin_earliest_seconds = {earliest}"]


def _rate(pace: Pace | None) -> str:
    if pace is None:
        return ""
    return f"[rate]\nrequests_per_second = {pace.requests_per_second:f}\nburst = {pace.burst}\n\n"


def _shortest(config: SandboxConfig, seconds: float) -> float:
    """Return ``seconds``, or a lifetime that ends a refresh token sooner."""
    ends = (config.refresh_idle_lifetime_seconds, config.refresh_absolute_lifetime_seconds)
    return min(seconds, *(end for end in ends if end is not None), math.inf)


def _text(value: str) -> str:
    # JSON text is a TOML basic string: the escapes are the same.
    return json.dumps(value)
