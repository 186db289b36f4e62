"""The authorization server of the model: the sandbox's own authority and ledger, without HTTP, and patient.

A request waits until a rule lets the server decide it, and the answer waits until a rule delivers it. So late
answers, lost ones and any order among them are choices, not luck. Nothing is judged here: each presentation
goes into the sandbox's ledger, which is told of the answers that died with a process.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import Final
from urllib.parse import parse_qs

from providers.exchange import Answer, Exchange, Failure, FailureKind, TokenRequest
from sandbox.authority import Authority
from sandbox.config import SandboxConfig
from sandbox.grants import Grants, Issued, Refused
from sandbox.ledger import Presentation
from sandbox.tokens import RefreshTokenRef
from tokenfleet_client.secret import Secret

JSON: Final = {"content-type": "application/json"}


@dataclass(frozen=True)
class Policy:
    """How a provider treats a refresh token that it has replaced."""

    config: SandboxConfig
    branching: bool = False
    """Whether a replay within the grace is given a successor of its own, which ends the first one."""


STRICT: Final = Policy(SandboxConfig())
"""Single use, no grace, and reuse ends the family."""
GRACE: Final = Policy(SandboxConfig(grace_seconds=60.0))
LENIENT: Final = Policy(SandboxConfig(family_revocation=False))
"""Single use, no grace, but reuse ends nothing."""
BRANCHING: Final = Policy(SandboxConfig(grace_seconds=60.0, family_revocation=False), branching=True)


class BranchingGrants(Grants):
    """Grants whose replays within the grace end the successor that was given first."""

    def refresh(self, ref: RefreshTokenRef, now: float, *, rotate: bool = True) -> Issued | Refused:
        decision = super().refresh(ref, now, rotate=rotate)
        if isinstance(decision, Issued) and decision.replayed:
            family = self._families[ref.family]
            family.number += 1
            return self._tokens(family, now, refresh_token=True, replayed=True)
        return decision


class Fate(Enum):
    """What became of an answer."""

    PENDING = "it has not left the server"
    UNREAD = "it reached the machine of the process that asked, which has not written it to its journal"
    KEPT = "it is in a journal"
    LOST = "nobody will ever read it"


@dataclass(eq=False)
class Call:
    """One token request: who asked, with which token, and what became of the answer."""

    asker: str
    presentation: Presentation
    exchange: asyncio.Future[Exchange]
    claim_ends: float
    """When the claim under which it was sent is over, and somebody else may ask."""
    answered: bool = False
    """Something was delivered to the asker: an answer or a failure."""
    hung_up: bool = False
    """The asker is gone: dead, or it waited as long as it may."""
    decision: Issued | Refused | None = None
    successor: RefreshTokenRef | None = None
    """The refresh token in the answer."""
    fate: Fate = Fate.PENDING

    @property
    def ref(self) -> RefreshTokenRef:
        """The refresh token that is presented."""
        return self.presentation.ref

    @property
    def subject(self) -> str:
        """Whose token it is."""
        return self.presentation.entry.subject


@dataclass
class Server:
    """One authorization server. ``calls`` holds every request there ever was, oldest first."""

    policy: Policy
    clock: Callable[[], float]
    given_up: Callable[[Call], bool]
    """Whether the fleet may take an unread answer for lost: its asker has been frozen for longer than its claim."""
    calls: list[Call] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.authority = Authority(self.policy.config, self.clock)
        if self.policy.branching:
            self.authority.grants = BranchingGrants(self.policy.config, self.authority.mint)

    def receive(
        self, request: TokenRequest, asker: str, exchange: asyncio.Future[Exchange], claim_ends: float
    ) -> Call:
        """Read a request that has just arrived."""
        form = parse_qs(request.body.decode())
        ref = self.authority.mint.read_refresh_token(Secret(form["refresh_token"][0]))
        assert ref is not None, "a token was presented that this server never issued"
        for earlier in self.calls:
            if earlier.ref == ref and earlier.fate is Fate.UNREAD and self.given_up(earlier):
                # Its reader froze with the answer in its hands, and the claim is over: nobody can know of it.
                self._declare_lost(earlier)

        def connected() -> bool:
            return not (call.hung_up or call.answered or self.given_up(call))

        presentation = self.authority.ledger.present(ref, connected)
        call = Call(asker, presentation, exchange, claim_ends)
        self.calls.append(call)
        return call

    def waiting(self) -> list[Call]:
        """Return the requests whose sender waits, in an order that does not depend on who came first."""
        return _ordered(call for call in self.calls if not call.answered and not call.hung_up)

    def unread(self) -> list[Call]:
        """Return the requests whose sender is gone, and which the server has not looked at: it still may."""
        return _ordered(call for call in self.calls if call.hung_up and call.decision is None)

    def decide(self, call: Call) -> None:
        """Let the server decide: from here on the token presented is spent, or refused."""
        if call.decision is not None:
            return
        call.decision = self.authority.refresh(call.presentation, rotate=True)
        if isinstance(call.decision, Issued):
            assert call.decision.refresh_token is not None
            call.successor = self.authority.mint.read_refresh_token(call.decision.refresh_token)
            if call.hung_up:
                # It was read late, and nobody listens any more.
                call.fate = Fate.LOST
                self._declare_lost(call)

    def deliver(self, call: Call) -> None:
        """Let the answer reach the machine of who asked; decide first if that is still to be done."""
        self.decide(call)
        if call.hung_up or call.decision is None:
            return
        if isinstance(call.decision, Issued):
            call.fate = Fate.UNREAD
            answer = Answer(200, JSON, _body(call.decision))
        else:
            answer = Answer(400, JSON, b'{"error": "invalid_grant"}')
        self._end(call, answer, delivered=True)

    def fail(self, call: Call) -> None:
        """Answer 503 before anything was decided."""
        self._end(call, Answer(503, JSON, b"{}"), delivered=False)

    def reset(self, call: Call) -> None:
        """Reset the connection: the answer is lost, whether the server has decided or not."""
        self.hang_up(call)
        self._end(call, Failure(FailureKind.ANSWER_LOST, "connection_reset"), delivered=False)

    def hang_up(self, call: Call) -> None:
        """Note that who asked waits no more. What was not decided by now may still be."""
        if call.answered or call.hung_up:
            return
        call.hung_up = True
        if call.successor is not None:
            call.fate = Fate.LOST
        self.authority.ledger.close(call.presentation, delivered=False)

    def bury(self, asker: str) -> None:
        """Note that a process died, with every answer that it had not written to its journal."""
        for call in self.calls:
            if call.asker != asker:
                continue
            self.hang_up(call)
            if call.fate is Fate.UNREAD:
                call.fate = Fate.LOST
                self._declare_lost(call)

    def _declare_lost(self, call: Call) -> None:
        """Tell the ledger that nobody will know of this answer: what it spent may be presented again."""
        self.authority.ledger.declare_lost(call.ref)

    def _end(self, call: Call, exchange: Exchange, *, delivered: bool) -> None:
        call.answered = True
        self.authority.ledger.close(call.presentation, delivered=delivered)
        if not call.exchange.done():
            call.exchange.set_result(exchange)


def _ordered(calls: Iterable[Call]) -> list[Call]:
    return sorted(calls, key=lambda call: (call.subject, call.ref.family, call.ref.number, call.asker))


def _body(issued: Issued) -> bytes:
    assert issued.refresh_token is not None
    members = {
        "access_token": issued.access_token.reveal(),
        "refresh_token": issued.refresh_token.reveal(),
        "token_type": "Bearer",
        "expires_in": issued.expires_in,
    }
    return json.dumps(members).encode()
