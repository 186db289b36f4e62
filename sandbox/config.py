"""How the sandbox behaves, in one frozen value.

Promise: a :class:`SandboxConfig` that exists is usable; every mistake is reported at once, each in a
sentence that says what to do. All durations are seconds, because the wire speaks seconds (``expires_in``,
``Retry-After``) and nothing here is written to a database.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum

from tokenfleet.errors import UserError
from tokenfleet_client.secret import Secret


class Rotation(StrEnum):
    """What a refresh does to the refresh token (RFC 6749 section 6, RFC 9700 section 4.14.2)."""

    ALWAYS = "always"
    """Each refresh token is accepted once and replaced by its successor."""
    NEVER = "never"
    """The refresh token is returned by no answer and stays good."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxConfig:
    """The policy of one sandbox. The default is the strict one: single use, no grace, family revocation."""

    rotation: Rotation = Rotation.ALWAYS
    grace_seconds: float = 0.0
    """For so long after a rotation the spent token is answered again, with the same successor."""
    family_revocation: bool = True
    """Whether presenting a spent token ends every token of its family (RFC 9700 section 4.14.2)."""
    access_lifetime_seconds: int = 3600
    refresh_idle_lifetime_seconds: float | None = None
    """A refresh token dies when it is not used for so long. None: never."""
    refresh_absolute_lifetime_seconds: float | None = None
    """A family dies so long after the customer's consent, however busy it was. None: never."""
    earliest_refresh_seconds: float | None = None
    """A refresh is refused while the access token has longer to live than this. None: never."""
    latency_seconds: tuple[float, float] = (0.0, 0.0)
    """Answers are held back for a time drawn evenly from this range, after the decision is made: a client
    that gives up early meets the harder case, a token that was rotated behind its back."""
    client_id: str = "sandbox-client"
    client_secret: Secret = field(default_factory=lambda: Secret("sandbox-client-secret"))
    scope: str = "accounts offline_access"
    seed: int = 0
    """Decides which requests a fault of some probability hits, and the latencies. Never the tokens."""

    def __post_init__(self) -> None:
        problems = _problems(self)
        if problems:
            raise UserError("\n".join(problems))


def _problems(config: SandboxConfig) -> list[str]:
    problems: list[str] = []
    if not _is_duration(config.grace_seconds):
        problems.append(f"The grace is {config.grace_seconds} s: give 0 (none) or more seconds.")
    if config.access_lifetime_seconds < 1:
        problems.append(
            f"The access token lifetime is {config.access_lifetime_seconds} s: give at least 1 second."
        )
    lifetimes = (
        ("idle", config.refresh_idle_lifetime_seconds),
        ("absolute", config.refresh_absolute_lifetime_seconds),
    )
    window = config.earliest_refresh_seconds
    if window is not None and not (_is_duration(window) and window > 0):
        problems.append(f"The window of refreshes is {window} s: give more than 0, or leave it out.")
    for name, lifetime in lifetimes:
        if lifetime is not None and not (_is_duration(lifetime) and lifetime > 0):
            problems.append(
                f"The {name} lifetime of refresh tokens is {lifetime} s: give more than 0, or leave it out."
            )
    shortest, longest = config.latency_seconds
    if not (_is_duration(shortest) and _is_duration(longest) and shortest <= longest):
        problems.append(
            f"The latency is {shortest} to {longest} s: give two numbers from 0, the smaller one first."
        )
    if not config.client_id or not config.client_secret:
        problems.append("The client id or secret is empty: give both, clients authenticate with them.")
    return problems


def _is_duration(seconds: float) -> bool:
    return math.isfinite(seconds) and seconds >= 0
