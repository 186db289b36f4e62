"""What goes to a token endpoint and what comes back, as values.

``providers.oauth2`` builds a :class:`TokenRequest`, ``providers.transport`` turns it into an :class:`Answer`
or a :class:`Failure`, ``providers.outcome`` says what that means. The transport never raises for anything the
network or a provider does, and ``FailureKind`` is decided by one fact: whether the request left the process.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from tokenfleet_client.secret import Secret


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """One request, complete: sent as it is, exactly once.

    ``url`` carries secrets when the definition asks by GET, ``headers`` when the client authenticates by
    Basic, ``body`` always, ``certificate`` a private key; so ``repr`` shows the method and where the request goes,
    nothing else.
    """

    method: str
    url: str
    headers: Mapping[str, str]
    body: bytes
    certificate: Secret | None = None
    """The client certificate, its chain and its key as PEM, that the connection has to present (RFC 8705)."""

    def __repr__(self) -> str:
        return f"TokenRequest({self.method} {self.url.partition('?')[0]})"


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer whose head arrived. Header names are lower-case.

    ``flaw`` is a machine word when the body could not be had whole (cut, too large, an encoding nobody asked
    for); ``body`` is then empty, so that a part can never be taken for the whole.
    """

    status: int
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    body: bytes = field(default=b"", repr=False)
    flaw: str | None = None


class FailureKind(StrEnum):
    """Why there is no answer."""

    NOT_SENT = "not_sent"
    """Not one byte of the request left: asking again is safe."""
    ANSWER_LOST = "answer_lost"
    """The request left, wholly or in part: the provider may have acted on it."""


@dataclass(frozen=True, slots=True)
class Failure:
    """No answer. ``code`` is a machine word for people to read; nothing is decided by it."""

    kind: FailureKind
    code: str


Exchange = Answer | Failure
