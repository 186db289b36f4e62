"""Requests beside the token request, compiled from what a definition says of each: probes, revocations and steps.

Built without I/O. A parameter goes where the definition puts parameters, so a secret stands in a URL only within a
query that the definition asks for. The client certificate is presented here too, if the definition has one: a server
that binds tokens to it takes them from nobody else (RFC 8705 section 3).
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from types import MappingProxyType
from typing import Final

from providers.client_authentication import Way
from providers.credentials import ClientCredentials, Grant, RequestBuildError
from providers.exchange import TokenRequest
from providers.oauth2 import certificate_of
from providers.parameters import FORM_TYPE, JSON_TYPE, form, json_body, with_query
from providers.spec import ProviderSpec
from providers.spec_requests import Probe, Revoke, Step
from providers.templates import text_template, url_template
from providers.values import Values, template_rules

AUTHORIZATION: Final = "Authorization"
_NOTHING: Final[Mapping[str, str]] = MappingProxyType({})


class Call:
    """Builds one kind of request of one definition. Immutable; safe in any thread."""

    __slots__ = (
        "_authenticate",
        "_endpoint",
        "_headers",
        "_method",
        "_needs_certificate",
        "_parameters",
        "_place",
        "_values",
    )

    def __init__(
        self,
        spec: ProviderSpec,
        said: Probe | Revoke | Step,
        *,
        allow_http: bool,
        headers: Mapping[str, str] = _NOTHING,
        authenticate: Way | None = None,
        with_assertion: bool = False,
    ) -> None:
        """Compile what is ``said`` in ``spec``, which has passed ``providers.contradictions``.

        ``headers`` are templates of headers that are sent where the definition says nothing of them. ``authenticate``
        is the client's way, and ``with_assertion`` whether that needs an assertion.
        """
        rules = template_rules(spec)
        self._endpoint = url_template(said.endpoint, spec.variable_rules(), allow_http=allow_http)
        self._authenticate = authenticate
        self._needs_certificate = spec.client.certificate
        self._method = said.method
        self._place = "query" if said.method == "GET" and said.body != "none" else said.body
        own = {name.lower() for name in said.headers}
        texts = {
            name: text for name, text in {"Accept": JSON_TYPE, **headers}.items() if name.lower() not in own
        }
        self._headers = {name: text_template(text, rules) for name, text in {**texts, **said.headers}.items()}
        self._parameters = {name: text_template(text, rules) for name, text in said.parameters.items()}
        templates = [self._endpoint, *self._headers.values(), *self._parameters.values()]
        self._values = Values(spec, templates, allow_http=allow_http, with_assertion=with_assertion)

    @property
    def required_variables(self) -> frozenset[str]:
        """Variables that the request needs and that have no default."""
        return self._values.required_variables

    def check_variables(self, variables: Mapping[str, str]) -> None:
        """Check what an account or its app says of the variables. Raises :class:`RequestBuildError`."""
        try:
            self._endpoint.expand(self._values.variables("client", variables))
        except ValueError as error:
            raise RequestBuildError("variable_malformed", f"a variable of the endpoint {error}") from None

    def build(
        self,
        client: ClientCredentials,
        grant: Grant,
        now: datetime,
        *,
        parameters: Mapping[str, str] = _NOTHING,
    ) -> TokenRequest:
        """Return the request of one account at ``now``, with further ``parameters``.

        Raises :class:`RequestBuildError` when a variable, a token or the client secret is missing or cannot stand where
        the definition puts it.
        """
        try:
            values = self._values.of(client, grant, now)
            heads = {name: template.expand(values) for name, template in self._headers.items()}
            sent = {name: template.expand(values) for name, template in self._parameters.items()}
            sent |= parameters
            if self._authenticate and (authorization := self._authenticate(client, values, sent)) is not None:
                heads[AUTHORIZATION] = authorization
            url, body = self._endpoint.expand(values), b""
            if self._place == "json":
                body, heads["Content-Type"] = json_body(sent), JSON_TYPE
            elif self._place == "form":
                body, heads["Content-Type"] = form(sent).encode("ascii"), FORM_TYPE
            else:
                url = with_query(url, form(sent))
        except UnicodeEncodeError:
            raise RequestBuildError(
                "not_encodable", "a token, the client or a variable is not valid Unicode text"
            ) from None
        except ValueError as error:
            raise RequestBuildError("variable_malformed", f"a variable of the endpoint {error}") from None
        for name, value in heads.items():
            # What cannot stand in a header would be refused on the way, or split the header.
            if not (value.isascii() and value.isprintable()):
                raise RequestBuildError(
                    "variable_malformed", f"the header {name} would not be printable ASCII"
                )
        certificate = certificate_of(client, now) if self._needs_certificate else None
        return TokenRequest(self._method, url, heads, body, certificate)
