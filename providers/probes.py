"""Probes: a cheap request with the access token, and what its answer says of that token (RFC 6750 section 3.1).

Built without I/O from a definition and one account. No answer to a probe says anything about a grant: one that calls
the token dead is a reason to refresh, and everything else is a reason to look again later (G4). So a firewall, an
outage and a rate limit of that endpoint change nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from providers.exchange import Exchange, Failure, TokenRequest
from providers.spec import ProviderSpec
from providers.spec_requests import Probe
from providers.templates import CLIENT_ID, url_template
from tokenfleet_client.secret import Secret

PROBE_TIMEOUT_SECONDS: Final = 5.0
"""A cheap request that takes longer says nothing any more, and its account has other things to do."""


class Verdict(StrEnum):
    """What a probe says of an access token."""

    ALIVE = "alive"
    DEAD = "dead"
    UNCLEAR = "unclear"


@dataclass(frozen=True, slots=True)
class ProbeReading:
    """A verdict, and a machine word for the history: the status, or why there is no answer."""

    verdict: Verdict
    code: str


class ProbeRequests:
    """Builds and reads the probes of one definition. Immutable; safe in any thread."""

    __slots__ = ("_alive", "_allow_http", "_dead", "_endpoint", "_method", "_needs_scope", "_rules")

    def __init__(self, spec: ProviderSpec, probe: Probe, *, allow_http: bool) -> None:
        """Compile ``probe`` of ``spec``, which has passed ``providers.contradictions``."""
        self._rules = spec.variable_rules()
        self._allow_http = allow_http
        self._endpoint = url_template(probe.endpoint, self._rules, allow_http=allow_http)
        self._method = probe.method
        self._alive = frozenset(probe.alive_status)
        self._dead = frozenset(probe.dead_status)
        self._needs_scope = frozenset((probe.needs_scope or "").split())

    def build(
        self, client_id: str, access_token: Secret, scope: str | None, variables: Mapping[str, str]
    ) -> TokenRequest | None:
        """Return the request that tries out ``access_token`` as a bearer token (RFC 6750 section 2.1).

        None when this account cannot be probed: a variable is missing or malformed, or the scope that it was granted
        is known and does not suffice.
        """
        if scope is not None and not self._needs_scope <= frozenset(scope.replace(",", " ").split()):
            return None
        token = access_token.reveal()
        # What cannot stand in a header would be refused on the way, or split the header.
        if not (token.isascii() and token.isprintable()):
            return None
        values: dict[str, str] = {}
        try:
            for name in self._endpoint.names:
                rule = self._rules[name]
                value = client_id if name == CLIENT_ID else variables.get(name, rule.default)
                if not isinstance(value, str):
                    return None
                values[name] = rule.check(value, allow_http=self._allow_http)
            url = self._endpoint.expand(values)
        except ValueError:
            return None
        headers = {"Accept": "application/json", "Authorization": f"Bearer {token}"}
        return TokenRequest(self._method, url, headers, b"")

    def read(self, exchange: Exchange) -> ProbeReading:
        """Return what ``exchange`` says of the token that was tried out. Never raises."""
        if isinstance(exchange, Failure):
            return ProbeReading(Verdict.UNCLEAR, exchange.code)
        status = exchange.status
        code = f"http_{status}" if 100 <= status <= 999 else "http_invalid"
        if status in self._alive:
            return ProbeReading(Verdict.ALIVE, code)
        return ProbeReading(Verdict.DEAD if status in self._dead else Verdict.UNCLEAR, code)
