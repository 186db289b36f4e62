"""One provider on its stage: what it answers to each request, and what it thought of it.

A :class:`Stage` is the provider that one definition describes, with one client and one customer. It does no I/O;
``conformance.player`` carries its replies over HTTP. Invariant: a request that is not what the definition says is
answered as this provider answers a bad client or a bad request, and is remembered in :attr:`Stage.refusals`.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final

from conformance.answers import PLAIN, Shape, success
from conformance.chains import Chain, Denial, Issue
from conformance.clock import Clock
from conformance.documents import Document
from conformance.meanings import ErrorAnswer, saying
from conformance.received import Received, path_parts
from conformance.requests import Client, Credentials, Refused, check
from conformance.templates import endpoint
from conformance.wanted import wanted_refresh
from providers.problems import Location
from providers.spec import ProviderSpec
from sandbox.ledger import Presentation

FIREWALL_PAGE: Final = (
    b"<!DOCTYPE html><html><head><title>403 Forbidden</title></head><body>Blocked.</body></html>"
)


STATED_LIFE_SECONDS: Final = 90 * 86_400
"""What an answer says of a refresh token that would not end by itself, where the definition says that it says so."""


class Delivery(StrEnum):
    """How an answer arrives."""

    WHOLE = "whole"
    LOST = "lost"
    """Not at all: the connection is reset after the provider has acted."""
    HUNG = "hung"
    """Not at all: the provider has acted, and says nothing until the client gives up."""
    CUT = "cut"
    """Half of it, then the connection ends."""
    GARBLED = "garbled"
    """Whole and unreadable."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What goes over the wire."""

    status: int
    body: bytes = field(repr=False)
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str = "application/json"
    delivery: Delivery = Delivery.WHOLE
    presentation: Presentation | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Reaction:
    """What to do with the next token request, instead of what the provider would do by itself."""

    reply: Reply | None = None
    """An answer without acting on the request."""
    shape: Shape = PLAIN
    delivery: Delivery = Delivery.WHOLE
    rotate: bool | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


BY_ITSELF: Final = Reaction()


@dataclass(frozen=True, slots=True)
class Refusal:
    """A request that was not accepted: why, and which key of the definition is about it."""

    reason: str
    key: Location


class Stage:
    """The provider that ``spec`` describes."""

    def __init__(self, spec: ProviderSpec, client: Client, clock: Clock) -> None:
        self.spec = spec
        self.client = client
        self.clock = clock
        self.chain = Chain(spec, clock.seconds)
        self.script: deque[Reaction] = deque()
        """What to do with the coming token requests; by itself once it is empty."""
        self.refusals: list[Refusal] = []
        self.denials: list[Denial] = []
        self.presented: list[Credentials] = []
        """What each accepted token request presented."""
        self.requests = 0
        """Token requests that arrived."""
        self.issued: Issue | None = None
        """What the last good answer brought, whether it arrived or not."""
        self.shape = PLAIN
        """What is odd about the steps that follow the last good answer."""
        self.stated_end: float | None = None
        """When the refresh token of the last good answer ends, if it said so."""
        self.last_document: Document | None = None
        """What the last good answer said."""
        self.doors: list[Callable[[Received], Reply | None]] = []
        """Who else answers here, asked in order before the token endpoint: probes, revocation, steps."""

    def answer(self, request: Received, connected: Callable[[], bool]) -> Reply:
        """Return the answer to ``request``."""
        for door in self.doors:
            if (reply := door(request)) is not None:
                return reply
        return self._token_request(request, connected)

    def closed(self, reply: Reply, *, delivered: bool) -> None:
        """Note how an answer ended."""
        if reply.presentation is not None:
            self.chain.ledger.close(reply.presentation, delivered=delivered)

    def is_at(self, text: str, request: Received) -> bool:
        """Answer whether ``request`` goes to the endpoint written as ``text``."""
        try:
            authority, path, _ = endpoint(text, self.client.values())
        except KeyError:
            return False
        return (request.authority, request.path) == (authority, path_parts(path))

    def refuse(self, refused: Refused) -> Reply:
        """Remember why a request was not accepted and return what this provider says to it."""
        self.refusals.append(Refusal(str(refused), refused.key))
        answer = saying(self.spec, refused.outcome) or ErrorAnswer(
            refused.outcome,
            401 if refused.outcome == "client_rejected" else 400,
            {"error": "invalid_client" if refused.outcome == "client_rejected" else "invalid_request"},
        )
        return error_reply(answer)

    def _token_request(self, request: Received, connected: Callable[[], bool]) -> Reply:
        self.requests += 1
        reaction = self.script.popleft() if self.script else BY_ITSELF
        now = self.clock.seconds()
        try:
            wanted = wanted_refresh(self.spec, self.client.registration, self.client.scope)
            credentials = check(self.spec, self.client, request, wanted, now=now)
        except Refused as refused:
            return self.refuse(refused)
        self.presented.append(credentials)
        if reaction.reply is not None:
            return reaction.reply
        issue = self._decide(credentials, connected, reaction)
        if isinstance(issue, Denial):
            self.denials.append(issue)
            return self._denied(issue)
        self.issued = issue
        self.shape = replace(reaction.shape, access_token=True, refresh_token=True, breaks_success=None)
        fields = self.spec.answer
        # Who rotates says when the refresh token ends; who does not, says it all the same.
        ends_at = self.chain.refresh_expires_at or now + STATED_LIFE_SECONDS
        says_end = "refresh_token_expires_in" in fields.model_fields_set or fields.refresh_token_expires_at
        self.stated_end = (
            ends_at if says_end and issue.refresh_token and reaction.shape.refresh_token else None
        )
        document = success(
            self.spec,
            fields,
            issue,
            reaction.shape,
            now=now,
            refresh_expires_at=ends_at,
            scope=self.client.scope,
        )
        self.shape = PLAIN
        """What is odd about the steps that follow the last good answer."""
        self.last_document = document
        body = json.dumps(document).encode()
        if reaction.delivery is Delivery.GARBLED:
            body = b"\x00garbled\x00"
        self.client.variables.update(reaction.shape.variables)
        return Reply(200, body, reaction.headers, delivery=reaction.delivery, presentation=issue.presentation)

    def _decide(
        self, credentials: Credentials, connected: Callable[[], bool], reaction: Reaction
    ) -> Issue | Denial:
        match self.spec.refresh.grant:
            case "refresh_token":
                return self.chain.refresh(credentials.refresh_token or "", connected, rotate=reaction.rotate)
            case "token_exchange":
                is_ours = credentials.refresh_token == self.chain.refresh_token.reveal()
                return self.chain.renew() if is_ours else Denial.UNKNOWN
            case "access_token":
                return self.chain.exchange(credentials.access_token or "")
            case _:
                return self.chain.renew()

    def _denied(self, denial: Denial) -> Reply:
        if denial is Denial.TOO_EARLY:
            answer = saying(self.spec, "request_rejected")
        else:
            answer = saying(self.spec, "grant_rejected")
        return error_reply(answer or ErrorAnswer("grant_rejected", 400, {"error": "invalid_grant"}))


def error_reply(answer: ErrorAnswer, headers: Mapping[str, str] | None = None) -> Reply:
    """Return the reply that carries an error."""
    return json_reply(answer.status, answer.document, headers)


def json_reply(status: int, document: Document | None, headers: Mapping[str, str] | None = None) -> Reply:
    """Return a reply with ``document``, None for an empty one."""
    body = b"" if document is None else json.dumps(document).encode()
    return Reply(status, body, headers or {})
