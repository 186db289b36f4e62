"""Refresh requests of every grant (RFC 6749 sections 4.4 and 6, RFC 7523, RFC 8693), built without I/O.

From a definition, a client and a grant comes one complete request. Everything that does not differ between accounts is
computed once, when the definition is loaded. Secrets are revealed on their way into the request, and nowhere else; none
is in the URL, unless the definition has its parameters in the query.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from types import MappingProxyType
from typing import Final
from urllib.parse import quote_plus

from providers import certificates, client_authentication, placement
from providers.credentials import (
    ASSERTION,
    REFRESH_TOKEN,
    ClientCredentials,
    Grant,
    RequestBuildError,
)
from providers.exchange import TokenRequest
from providers.parameters import FORM_TYPE, JSON_TYPE, form, json_body, with_query
from providers.spec import ProviderSpec
from providers.templates import Template, text_template, url_template
from providers.values import Values, credential, template_rules
from tokenfleet_client.secret import Secret

__all__ = ["ClientCredentials", "Grant", "RefreshRequests", "RequestBuildError", "TokenRequest"]

_NOTHING: Final[Mapping[str, str]] = MappingProxyType({})


class RefreshRequests:
    """Builds the refresh requests of one definition. Immutable; safe in any thread."""

    __slots__ = (
        "_authenticate",
        "_body",
        "_constants",
        "_endpoint",
        "_form_prefix",
        "_headers",
        "_id_name",
        "_method",
        "_needs_certificate",
        "_presented",
        "_presented_name",
        "_scope_name",
        "_values",
        "_varying_headers",
        "_varying_parameters",
    )

    def __init__(self, spec: ProviderSpec, *, allow_http: bool) -> None:
        """Compile ``spec``, which has passed ``providers.contradictions``."""
        refresh, names = spec.refresh, spec.refresh.names
        rules = template_rules(spec)
        self._method = refresh.method
        self._body = "query" if refresh.method == "GET" else refresh.body
        self._needs_certificate = spec.client.certificate
        self._endpoint: Template | None = None
        if refresh.endpoint is not None:
            self._endpoint = url_template(refresh.endpoint, spec.variable_rules(), allow_http=allow_http)
        parameters = {name: text_template(text, rules) for name, text in refresh.parameters.items()}
        headers = {name: text_template(text, rules) for name, text in refresh.headers.items()}
        presented = placement.presented(spec)
        self._presented = presented[0] if presented is not None else None
        self._presented_name = getattr(names, presented[1]) if presented is not None else ""
        self._scope_name = names.scope if refresh.send_scope else None
        self._id_name = names.client_id if placement.sends_id(spec) else None
        self._authenticate = client_authentication.way(placement.authentication(spec), names)
        kind = placement.grant_type(spec)
        self._constants = ({names.grant_type: kind} if kind else {}) | _constant(parameters)
        self._form_prefix = form(self._constants)
        if self._presented is not None:
            self._form_prefix += "&" * bool(self._form_prefix) + f"{quote_plus(self._presented_name)}="
        self._varying_parameters = _varying(parameters)
        self._varying_headers = _varying(headers)
        fixed = {"Accept": JSON_TYPE}
        if self._body in ("form", "json"):
            fixed["Content-Type"] = JSON_TYPE if self._body == "json" else FORM_TYPE
        self._headers: Mapping[str, str] = MappingProxyType(_merged(fixed, _constant(headers)))
        used = [*self._varying_parameters.values(), *self._varying_headers.values()]
        if self._endpoint is not None:
            used.append(self._endpoint)
        with_assertion = spec.refresh.grant != "none" and placement.signs(spec)
        values = Values(spec, used, allow_http=allow_http, with_assertion=with_assertion)
        self._values = values or None

    @property
    def required_variables(self) -> frozenset[str]:
        """Variables that the request needs and that have no default."""
        return self._values.required_variables if self._values is not None else frozenset()

    def check_variables(self, variables: Mapping[str, str]) -> None:
        """Check what an account or its app says of the variables. Raises :class:`RequestBuildError`."""
        values = self._values.variables("client", variables) if self._values is not None else _NOTHING
        secrets = dict.fromkeys(template_names(self._varying_headers) - values.keys(), "secret")
        _header_values(_expanded(self._varying_headers, {**secrets, **values}))
        try:
            if self._endpoint is not None:
                self._endpoint.expand(values)
        except ValueError as error:
            raise RequestBuildError("variable_malformed", f"a variable of the endpoint {error}") from None

    def build(self, client: ClientCredentials, grant: Grant, *, now: datetime | None = None) -> TokenRequest:
        """Return the request that presents ``grant`` once. Raises :class:`RequestBuildError`.

        ``now`` is the time of the wall clock, for what is signed or stamped with it; :class:`TypeError` without.
        """
        if self._endpoint is None:
            raise RequestBuildError("never_renewed", "the definition's grant is 'none': nothing is asked")
        rest: dict[str, str] = {}
        headers = self._headers
        try:
            values = self._values.of(client, grant, now) if self._values is not None else _NOTHING
            presented = None
            if self._presented == REFRESH_TOKEN and grant.refresh_token:
                # By far the most frequent case, so without a call.
                presented = grant.refresh_token.reveal()
            elif self._presented == ASSERTION:
                presented = values[ASSERTION]
            elif self._presented is not None:
                presented = credential(self._presented, client, grant)
            if self._varying_parameters:
                rest.update(_expanded(self._varying_parameters, values))
            if self._scope_name is not None and grant.scope:
                rest[self._scope_name] = grant.scope
            if self._id_name is not None:
                rest[self._id_name] = client.client_id
            if self._authenticate is not None:
                authorization = self._authenticate(client, values, rest)
                if authorization is not None:
                    headers = {**headers, "Authorization": authorization}
            if self._varying_headers:
                headers = _merged(headers, _header_values(_expanded(self._varying_headers, values)))
            url = self._endpoint.expand(values)
            certificate = certificate_of(client, now) if self._needs_certificate else None
            return self._request(url, headers, presented, rest, certificate)
        except UnicodeEncodeError:
            raise RequestBuildError(
                "not_encodable", "a token, the scope, the client or a variable is not valid Unicode text"
            ) from None
        except ValueError as error:
            raise RequestBuildError("variable_malformed", f"a variable of the endpoint {error}") from None

    def _request(
        self,
        url: str,
        headers: Mapping[str, str],
        presented: str | None,
        rest: Mapping[str, str],
        certificate: Secret | None,
    ) -> TokenRequest:
        if self._body == "none":
            return TokenRequest(self._method, url, headers, b"", certificate)
        if self._body == "json":
            own = {} if presented is None else {self._presented_name: presented}
            body = json_body({**self._constants, **own, **rest})
            return TokenRequest(self._method, url, headers, body, certificate)
        text = self._form_prefix if presented is None else self._form_prefix + quote_plus(presented)
        if rest:
            text = f"{text}&{form(rest)}" if text else form(rest)
        if self._body == "form":
            return TokenRequest(self._method, url, headers, text.encode("ascii"), certificate)
        return TokenRequest(self._method, with_query(url, text), headers, b"", certificate)


def certificate_of(client: ClientCredentials, now: datetime | None) -> Secret:
    """Return the client certificate to present at ``now``. Raises :class:`RequestBuildError` when none works."""
    if client.certificate is None:
        raise RequestBuildError("client_certificate_missing", "the app has no client certificate: set one")
    try:
        facts = certificates.inspect(client.certificate)
    except certificates.CertificateError as error:
        raise RequestBuildError("client_certificate_unusable", f"the app's certificate {error}") from None
    if now is not None and facts.expires_at <= now:
        raise RequestBuildError("client_certificate_expired", "the app's certificate has expired")
    return client.certificate


def template_names(templates: Mapping[str, Template]) -> frozenset[str]:
    """Return every name that ``templates`` use."""
    return frozenset(name for template in templates.values() for name in template.names)


def _constant(templates: Mapping[str, Template]) -> dict[str, str]:
    return {name: template.expand({}) for name, template in templates.items() if not template.names}


def _varying(templates: Mapping[str, Template]) -> dict[str, Template]:
    return {name: template for name, template in templates.items() if template.names}


def _expanded(templates: Mapping[str, Template], values: Mapping[str, str]) -> dict[str, str]:
    return {name: template.expand(values) for name, template in templates.items()}


def _merged(headers: Mapping[str, str], further: Mapping[str, str]) -> dict[str, str]:
    """Return both, where ``further`` replaces a header however it is spelled."""
    own = {name.lower() for name in further}
    return {**{name: value for name, value in headers.items() if name.lower() not in own}, **further}


def _header_values(headers: dict[str, str]) -> dict[str, str]:
    for name, value in headers.items():
        if not (value.isascii() and value.isprintable()):
            raise RequestBuildError("variable_malformed", f"the header {name} would not be printable ASCII")
    return headers
