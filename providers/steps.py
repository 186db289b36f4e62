"""A request that follows a good answer: it trades the access token of that answer for the one that readers are to have.

Built and read without I/O. Its templates may place the access token of the answer before it; no secret is in its
endpoint. A certificate that the client presents goes with it: a token may be bound to it (RFC 8705 section 3). A step
says nothing of the grant (G4): what a server thinks of an access token that is on its way is a reason to look, and
never a reason to sign in again.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Final

from providers.calls import Call
from providers.credentials import ClientCredentials, Grant
from providers.exchange import Exchange, TokenRequest
from providers.outcome import AnswerReader
from providers.spec import ProviderSpec
from providers.spec_requests import Step
from tokenfleet.outcome import (
    ClientRejected,
    GrantRejected,
    Outcome,
    OutcomeUnknown,
    Refreshed,
    TokenAnswer,
    Unavailable,
    Undescribed,
)

NO_ACCESS_TOKEN: Final = "step_without_access_token"


def followed(answer: TokenAnswer, brought: TokenAnswer) -> TokenAnswer:
    """Return what is known after a step: the access token that it ``brought``, the rest of the ``answer`` before it."""
    return replace(
        brought,
        refresh_token=answer.refresh_token,
        refresh_token_expires_at=answer.refresh_token_expires_at,
        scope=brought.scope if brought.scope is not None else answer.scope,
        variables={**answer.variables, **brought.variables},
    )


class CompiledStep:
    """Builds and reads one step of one definition. Immutable; safe in any thread."""

    __slots__ = ("_answers", "_call")

    def __init__(self, spec: ProviderSpec, step: Step, *, allow_http: bool) -> None:
        """Compile ``step`` of ``spec``, which has passed ``providers.contradictions``."""
        self._call = Call(spec, step, allow_http=allow_http)
        self._answers = AnswerReader(spec, step.answer, allow_http=allow_http)

    def build(self, client: ClientCredentials, grant: Grant, *, now: datetime) -> TokenRequest:
        """Return the request for ``grant``, whose access token is that of the answer before.

        Raises :class:`RequestBuildError` when a value is missing, or cannot stand where the definition puts it.
        """
        return self._call.build(client, grant, now)

    def read(self, exchange: Exchange, *, now: datetime) -> Outcome:
        """Return what ``exchange``, received at ``now``, means. Total: never raises.

        No step was ever asked with a refresh token, so no answer to one can have been lost with it.
        """
        outcome = self._answers.read(exchange, now=now)
        match outcome:
            case GrantRejected(code):
                return Undescribed(code, f"step: {code}")
            case ClientRejected(code):
                return ClientRejected(code, whole_app=False)
            case OutcomeUnknown(code, outage):
                return Unavailable(code, outage)
            case Undescribed(code, shape):
                return Undescribed(code, shape)
            case Refreshed(answer) if answer.access_token is None:
                return Undescribed(NO_ACCESS_TOKEN, NO_ACCESS_TOKEN)
            case _:
                return outcome
