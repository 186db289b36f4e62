"""What asks and reads for one definition, compiled when it is first needed.

A process loads every definition and asks the providers of some accounts. Compiling a definition that has passed
``providers.contradictions`` cannot fail, so nothing is learned by doing it for all of them at every start. Safe in any
thread: two that come together compile the same thing twice, and one of the two is kept.
"""

from __future__ import annotations

from functools import cached_property

from providers.oauth2 import RefreshRequests
from providers.outcome import AnswerReader
from providers.probes import ProbeRequests
from providers.revocation import RevocationRequests
from providers.spec import ProviderSpec


class Parts:
    """The builders and readers of one definition."""

    def __init__(self, spec: ProviderSpec, *, allow_http: bool) -> None:
        """Take ``spec``, which has passed ``providers.contradictions``."""
        self._spec = spec
        self._allow_http = allow_http

    @cached_property
    def requests(self) -> RefreshRequests:
        """Builds the requests that renew."""
        return RefreshRequests(self._spec, allow_http=self._allow_http)

    @cached_property
    def answers(self) -> AnswerReader:
        """Reads their answers."""
        return AnswerReader(self._spec, allow_http=self._allow_http)

    @cached_property
    def probes(self) -> ProbeRequests | None:
        """Builds and reads probes, if there are any."""
        probe = self._spec.probe
        return ProbeRequests(self._spec, probe, allow_http=self._allow_http) if probe else None

    @cached_property
    def revocations(self) -> RevocationRequests | None:
        """Builds and reads revocations, if there are any."""
        revoke = self._spec.revoke
        return RevocationRequests(self._spec, revoke, allow_http=self._allow_http) if revoke else None

    @property
    def visits(self) -> RefreshRequests | ProbeRequests:
        """What an account is visited with: a token that is never renewed is only probed."""
        renews = self._spec.refresh.grant != "none"
        return self.requests if renews or self.probes is None else self.probes
