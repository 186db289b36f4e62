"""A request that follows a good answer: it trades the access token of that answer for the one that readers are to have.

Built and read without I/O. Its templates may place the access token of the answer before it; no secret is in its
endpoint. A certificate that the client presents goes with it: a token may be bound to it (RFC 8705 section 3). A step
says nothing of the grant (G4): what a server thinks of an access token that is on its way is a reason to look, and
never a reason to sign in again.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final

from providers.credentials import ClientCredentials, Grant, RequestBuildError
from providers.exchange import Exchange, TokenRequest
from providers.oauth2 import certificate_of
from providers.outcome import AnswerReader
from providers.parameters import FORM_TYPE, JSON_TYPE, form, json_body, with_query
from providers.spec import ProviderSpec
from providers.spec_requests import Step
from providers.templates import text_template, url_template
from providers.values import Values, template_rules
from tokenfleet.outcome import (
    ClientRejected,
    GrantRejected,
    Outcome,
    OutcomeUnknown,
    Refreshed,
    Unavailable,
    Undescribed,
)

NO_ACCESS_TOKEN: Final = "step_without_access_token"


class CompiledStep:
    """Builds and reads one step of one definition. Immutable; safe in any thread."""

    __slots__ = (
        "_answers",
        "_endpoint",
        "_headers",
        "_method",
        "_needs_certificate",
        "_parameters",
        "_place",
        "_values",
    )

    def __init__(self, spec: ProviderSpec, step: Step, *, allow_http: bool) -> None:
        """Compile ``step`` of ``spec``, which has passed ``providers.contradictions``."""
        rules = template_rules(spec)
        self._endpoint = url_template(step.endpoint, spec.variable_rules(), allow_http=allow_http)
        self._method = step.method
        self._needs_certificate = spec.client.certificate
        self._place = "query" if step.method == "GET" and step.body == "form" else step.body
        fixed = {"Accept": JSON_TYPE}
        if self._place in ("form", "json"):
            fixed["Content-Type"] = JSON_TYPE if self._place == "json" else FORM_TYPE
        own = {name.lower() for name in step.headers}
        headers = {name: text for name, text in fixed.items() if name.lower() not in own} | step.headers
        self._headers = {name: text_template(text, rules) for name, text in headers.items()}
        self._parameters = {name: text_template(text, rules) for name, text in step.parameters.items()}
        templates = [self._endpoint, *self._headers.values(), *self._parameters.values()]
        self._values = Values(spec, templates, allow_http=allow_http)
        self._answers = AnswerReader(spec, step.answer, allow_http=allow_http)

    def build(self, client: ClientCredentials, grant: Grant, *, now: datetime) -> TokenRequest:
        """Return the request for ``grant``, whose access token is that of the answer before.

        Raises :class:`RequestBuildError` when a value is missing, or cannot stand where the definition puts it.
        """
        try:
            values = self._values.of(client, grant, now)
            url = self._endpoint.expand(values)
            headers = {name: template.expand(values) for name, template in self._headers.items()}
            sent = {name: template.expand(values) for name, template in self._parameters.items()}
            body = b""
            if self._place == "json":
                body = json_body(sent)
            elif self._place == "form":
                body = form(sent).encode("ascii")
            elif self._place == "query":
                url = with_query(url, form(sent))
        except UnicodeEncodeError:
            raise RequestBuildError(
                "not_encodable", "a token, the client or a variable is not valid Unicode text"
            ) from None
        except ValueError as error:
            raise RequestBuildError("variable_malformed", f"a variable of the endpoint {error}") from None
        if not all(value.isascii() and value.isprintable() for value in headers.values()):
            raise RequestBuildError("variable_malformed", "a header of a step would not be printable ASCII")
        certificate = certificate_of(client, now) if self._needs_certificate else None
        return TokenRequest(self._method, url, headers, body, certificate)

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
