"""Refresh requests (RFC 6749 sections 2.3 and 6), built without I/O from a definition, a client and a grant.

Everything that does not differ between accounts is computed once, when the definition is loaded. Secrets are
revealed here, on their way into the request, and nowhere else in this package.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final
from urllib.parse import quote_plus

from providers.exchange import TokenRequest
from providers.spec import ProviderSpec
from providers.templates import CLIENT_ID, Template, VariableRule, text_template, url_template
from tokenfleet_client.errors import TokenfleetError
from tokenfleet_client.secret import Secret

__all__ = ["ClientCredentials", "Grant", "RefreshRequests", "RequestBuildError", "TokenRequest"]

FORM_TYPE: Final = "application/x-www-form-urlencoded"
JSON_TYPE: Final = "application/json"


class RequestBuildError(TokenfleetError):
    """The request cannot be built: our mistake or the operator's, never the customer's.

    ``code`` is a machine word; the message names the variable or setting at fault and holds no value.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class ClientCredentials:
    """Our registration at the authorization server. A public client has no secret."""

    client_id: str
    client_secret: Secret | None


@dataclass(frozen=True, slots=True)
class Grant:
    """One account's refresh token, the scope it was granted, and its values for declared variables."""

    refresh_token: Secret
    scope: str | None = None
    variables: Mapping[str, str] = field(default_factory=dict)


class RefreshRequests:
    """Builds the refresh requests of one definition. Immutable; safe in any thread."""

    __slots__ = (
        "_allow_http",
        "_authentication",
        "_constants",
        "_endpoint",
        "_form_prefix",
        "_headers",
        "_is_get",
        "_is_json",
        "_names",
        "_needed",
        "_rules",
        "_send_scope",
        "_varying_headers",
        "_varying_parameters",
    )

    def __init__(self, spec: ProviderSpec, *, allow_http: bool) -> None:
        """Compile ``spec``, which has passed ``providers.contradictions``."""
        refresh = spec.refresh
        self._rules = spec.variable_rules()
        self._allow_http = allow_http
        self._authentication = spec.client.authentication
        self._names = refresh.names
        self._send_scope = refresh.send_scope
        self._is_get = refresh.method == "GET"
        self._is_json = refresh.body == "json" and not self._is_get
        self._endpoint = url_template(refresh.endpoint or "", self._rules, allow_http=allow_http)
        parameters = {name: text_template(text, self._rules) for name, text in refresh.parameters.items()}
        headers = {name: text_template(text, self._rules) for name, text in refresh.headers.items()}
        self._constants = {refresh.names.grant_type: refresh.grant_type or "refresh_token"} | _constant(
            parameters
        )
        self._form_prefix = _form(self._constants) + f"&{quote_plus(refresh.names.refresh_token)}="
        self._varying_parameters = _varying(parameters)
        self._varying_headers = _varying(headers)
        fixed = {"Accept": JSON_TYPE}
        if not self._is_get:
            fixed["Content-Type"] = JSON_TYPE if self._is_json else FORM_TYPE
        self._headers: Mapping[str, str] = MappingProxyType(fixed | _constant(headers))
        used = [self._endpoint, *self._varying_parameters.values(), *self._varying_headers.values()]
        self._needed = tuple(sorted({name for template in used for name in template.names}))

    @property
    def required_variables(self) -> frozenset[str]:
        """Variables that the request needs and that have no default."""
        return frozenset(
            name for name in self._needed if name != CLIENT_ID and self._rules[name].default is None
        )

    def build(self, client: ClientCredentials, grant: Grant) -> TokenRequest:
        """Return the request that presents ``grant`` once. Raises :class:`RequestBuildError`."""
        names = self._names
        rest: dict[str, str] = {}
        headers = self._headers
        if not grant.refresh_token:
            raise RequestBuildError("refresh_token_missing", "the account has no refresh token")
        try:
            values = self._values(client, grant) if self._needed else {}
            if self._varying_parameters:
                rest.update(_expanded(self._varying_parameters, values))
            if self._send_scope and grant.scope:
                rest[names.scope] = grant.scope
            if self._authentication != "client_secret_basic":
                rest[names.client_id] = client.client_id
            if self._authentication != "none":
                if client.client_secret is None:
                    raise RequestBuildError("client_secret_missing", "the app has no client secret: set one")
                secret = client.client_secret.reveal()
                if self._authentication == "client_secret_post":
                    rest[names.client_secret] = secret
                else:
                    headers = {**headers, "Authorization": _basic(client.client_id, secret)}
            if self._varying_headers:
                headers = {**headers, **_header_values(_expanded(self._varying_headers, values))}
            url = self._endpoint.expand(values)
            refresh_token = grant.refresh_token.reveal()
            if self._is_json:
                document = {**self._constants, names.refresh_token: refresh_token, **rest}
                return TokenRequest("POST", url, headers, json.dumps(document, ensure_ascii=False).encode())
            form = self._form_prefix + quote_plus(refresh_token)
            if rest:
                form = f"{form}&{_form(rest)}"
        except UnicodeEncodeError:
            raise RequestBuildError(
                "not_encodable", "the refresh token, scope, client or a variable is not valid Unicode text"
            ) from None
        except ValueError as error:
            raise RequestBuildError("variable_malformed", f"a variable of the endpoint {error}") from None
        if self._is_get:
            return TokenRequest("GET", f"{url}{'&' if '?' in url else '?'}{form}", headers, b"")
        return TokenRequest("POST", url, headers, form.encode("ascii"))

    def _values(self, client: ClientCredentials, grant: Grant) -> Mapping[str, str]:
        values: dict[str, str] = {}
        for name in self._needed:
            rule = self._rules[name]
            value = client.client_id if name == CLIENT_ID else grant.variables.get(name, rule.default)
            if value is None:
                raise RequestBuildError(
                    "variable_missing", f"the account has no value for the variable {name!r}"
                )
            values[name] = self._checked(rule, value)
        return values

    def _checked(self, rule: VariableRule, value: object) -> str:
        if not isinstance(value, str):
            raise RequestBuildError("variable_malformed", f"the variable {rule.name!r} must be text")
        try:
            return rule.check(value, allow_http=self._allow_http)
        except ValueError as error:
            raise RequestBuildError("variable_malformed", f"the variable {rule.name!r} {error}") from None


def _basic(client_id: str, client_secret: str) -> str:
    """Return the Authorization value; both parts are form-encoded first (RFC 6749 section 2.3.1)."""
    pair = f"{quote_plus(client_id)}:{quote_plus(client_secret)}"
    return "Basic " + b64encode(pair.encode("ascii")).decode("ascii")


def _form(parameters: Mapping[str, str]) -> str:
    return "&".join([f"{quote_plus(name)}={quote_plus(value)}" for name, value in parameters.items()])


def _constant(templates: Mapping[str, Template]) -> dict[str, str]:
    return {name: template.expand({}) for name, template in templates.items() if not template.names}


def _varying(templates: Mapping[str, Template]) -> dict[str, Template]:
    return {name: template for name, template in templates.items() if template.names}


def _expanded(templates: Mapping[str, Template], values: Mapping[str, str]) -> dict[str, str]:
    return {name: template.expand(values) for name, template in templates.items()}


def _header_values(headers: dict[str, str]) -> dict[str, str]:
    for name, value in headers.items():
        if not (value.isascii() and value.isprintable()):
            raise RequestBuildError("variable_malformed", f"the header {name} would not be printable ASCII")
    return headers
