"""Probes: a cheap request with the access token, and what its answer says of that token (RFC 6750 section 3.1).

Built and read without I/O from a definition and one account. Whatever comes back has a verdict. No answer to a probe
says anything about a grant: one that calls the token dead is a reason to refresh, and everything else is a reason to
look again later (G4). So a firewall, an outage and a rate limit of that endpoint change nothing, and a word against the
token counts only in a body that was read whole. Of a token that is never renewed, a probe's word is the last one
(``tokenfleet.dead_probes``), and so a bare status counts less.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final

from providers.calls import AUTHORIZATION, Call
from providers.credentials import ASSERTION, CLIENT_SECRET, ClientCredentials, Grant, RequestBuildError
from providers.documents import Document, parse
from providers.exchange import Answer, Exchange, Failure, TokenRequest
from providers.placement import used_names
from providers.rules import CompiledRule, condition_test
from providers.spec import ProviderSpec
from providers.spec_answers import ErrorRule
from providers.spec_requests import Probe, ProbeRule
from providers.templates import CLIENT_ID

PROBE_TIMEOUT_SECONDS: Final = 5.0
"""A cheap request that takes longer says nothing any more, and its account has other things to do."""


class Verdict(StrEnum):
    """What a probe says of an access token."""

    ALIVE = "alive"
    DEAD = "dead"
    UNCLEAR = "unclear"


@dataclass(frozen=True, slots=True)
class ProbeReading:
    """A verdict, and a machine word for the history: what the definition's rule matched, else the status, or why there
    is no answer."""

    verdict: Verdict
    code: str
    may_be_the_clients: bool = False
    """The request has shown the client's own credentials too, and no word says that these were not what was meant."""


class ProbeRequests:
    """Builds and reads the probes of one definition. Immutable; safe in any thread."""

    __slots__ = (
        "_alive",
        "_alive_when",
        "_call",
        "_dead",
        "_dead_when",
        "_is_last_word",
        "_needs_scope",
        "_reads_bodies",
        "_shows_client",
    )

    def __init__(self, spec: ProviderSpec, probe: Probe, *, allow_http: bool) -> None:
        """Compile ``probe`` of ``spec``, which has passed ``providers.contradictions``."""
        headers = {AUTHORIZATION: probe.authorization} if probe.authorization else {}
        self._call = Call(spec, probe, allow_http=allow_http, headers=headers)
        self._alive = frozenset(probe.alive_status)
        self._alive_when = tuple(map(condition_test, probe.alive_when))
        self._dead = frozenset(probe.dead_status)
        self._dead_when = tuple(map(_compiled, probe.dead_when))
        self._reads_bodies = bool(self._alive_when or self._dead_when)
        # Of a token that is renewed, a refresh has the last word.
        self._is_last_word = spec.refresh.grant == "none"
        self._needs_scope = frozenset((probe.needs_scope or "").split())
        texts = [probe.authorization, *probe.parameters.values(), *probe.headers.values()]
        self._shows_client = not used_names(spec, texts).isdisjoint((CLIENT_ID, CLIENT_SECRET, ASSERTION))

    @property
    def required_variables(self) -> frozenset[str]:
        """Variables that a probe needs and that have no default."""
        return self._call.required_variables

    def check_variables(self, variables: Mapping[str, str]) -> None:
        """Check what an account or its app says of the variables. Raises :class:`RequestBuildError`."""
        self._call.check_variables(variables)

    def build(self, client: ClientCredentials, grant: Grant, now: datetime) -> TokenRequest | None:
        """Return the request that tries out the access token of ``grant`` at ``now``.

        None when this account cannot be probed: something that the request needs is missing or malformed, or the scope
        that it was granted is known and does not suffice.
        """
        scope = grant.scope
        if scope is not None and not self._needs_scope <= frozenset(scope.replace(",", " ").split()):
            return None
        try:
            return self._call.build(client, grant, now)
        except RequestBuildError:
            return None

    def read(self, exchange: Exchange) -> ProbeReading:
        """Return what ``exchange`` says of the token that was tried out. Never raises.

        Where nothing renews the token, a status counts against it only if no web page comes with it: that is what
        gateways and login walls answer with, not an API. A word of ``dead_when`` counts whatever the status means,
        unless all of ``alive_when`` holds beside it: who says both has not been definite.
        """
        if isinstance(exchange, Failure):
            return ProbeReading(Verdict.UNCLEAR, exchange.code)
        status = exchange.status
        code = f"http_{status}" if 100 <= status <= 999 else "http_invalid"
        document, is_whole = parse(exchange) if self._reads_bodies else (None, False)
        # What cannot be read has no error in it either: that must not pass for a body without one.
        is_read = document is not None or not self._alive_when
        is_alive = status in self._alive and is_read and all(holds(document) for holds in self._alive_when)
        word = self._word_against(status, document) if is_whole else None
        if word is not None:
            contradicted = is_alive and self._alive_when
            return ProbeReading(Verdict.UNCLEAR, code) if contradicted else ProbeReading(Verdict.DEAD, word)
        if status in self._dead and not (self._is_last_word and _is_page(exchange)):
            return ProbeReading(Verdict.DEAD, code, self._shows_client)
        return ProbeReading(Verdict.ALIVE if is_alive else Verdict.UNCLEAR, code)

    def _word_against(self, status: int, document: Document | None) -> str | None:
        words = (rule.code_for(status, document) for rule in self._dead_when)
        return next((word for word in words if word is not None), None)


def _is_page(answer: Answer) -> bool:
    """Answer whether ``answer`` is for a browser, whatever it calls itself."""
    kind = answer.headers.get("content-type", "").lower()
    return kind.startswith(("text/html", "application/xhtml")) or answer.body.lstrip()[:1] == b"<"


def _compiled(rule: ProbeRule) -> CompiledRule:
    """Return ``rule`` as the kind of rule that it is: one that finds a word in a body."""
    said = {"status": rule.status, "path": rule.path, "value": rule.value, "pattern": rule.pattern}
    return CompiledRule(ErrorRule.model_validate({"outcome": "grant_rejected", **said}))
