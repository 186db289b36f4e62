"""The values behind the placeholders of a definition's templates, for one request.

Declared variables are checked against their rules each time; credentials are taken as they are; an assertion is signed
and computed values are computed only where a template needs them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Final

from providers.assertions import Assertions
from providers.computed import Computation
from providers.credentials import (
    ACCESS_TOKEN,
    ASSERTION,
    CLIENT_SECRET,
    CREDENTIALS,
    REFRESH_TOKEN,
    ClientCredentials,
    Grant,
    RequestBuildError,
)
from providers.spec import ProviderSpec
from providers.templates import CLIENT_ID, Template, VariableRule
from tokenfleet_client.secret import Secret


def template_rules(spec: ProviderSpec) -> dict[str, VariableRule]:
    """Return the rule of every name that templates may use: variables, credentials, computed values."""
    if not spec.variables and not spec.computed:
        return _USUAL
    computed = {name: VariableRule(name, "text") for name in spec.computed}
    return {**_OF_CREDENTIALS, **computed, **spec.variable_rules()}


_OF_CREDENTIALS: Final = {name: VariableRule(name, "text") for name in CREDENTIALS}
_USUAL: Final = {**_OF_CREDENTIALS, CLIENT_ID: VariableRule(CLIENT_ID, "text")}
"""The rules of most definitions, made once: all of them are loaded at every start."""


class Values:
    """What a set of templates needs. Immutable; safe in any thread."""

    __slots__ = ("_allow_http", "_assertions", "_computations", "_credentials", "_needs_now", "_variables")

    def __init__(
        self,
        spec: ProviderSpec,
        templates: Iterable[Template],
        *,
        allow_http: bool,
        with_assertion: bool = False,
    ) -> None:
        """Compile what ``templates`` of ``spec`` need, and the assertion if it is needed without a template."""
        rules = template_rules(spec)
        needed = {name for template in templates for name in template.names}
        computations: list[tuple[str, Computation]] = []
        for name, computed in reversed(spec.computed.items()):
            if name in needed:
                computation = Computation(computed, rules)
                needed |= computation.names
                computations.insert(0, (name, computation))
        self._assertions: Assertions | None = None
        if spec.assertion is not None and (with_assertion or ASSERTION in needed):
            self._assertions = Assertions(spec.assertion, rules)
            needed |= self._assertions.names
        self._computations = tuple(computations)
        self._credentials = tuple(sorted(needed & CREDENTIALS - {ASSERTION}))
        self._variables = tuple(
            (name, rules[name]) for name in sorted(needed - CREDENTIALS - spec.computed.keys())
        )
        self._needs_now = self._assertions is not None or any(each.needs_now for _, each in computations)
        self._allow_http = allow_http

    def __bool__(self) -> bool:
        """Answer whether anything is needed at all."""
        return bool(self._variables or self._credentials or self._computations or self._assertions)

    @property
    def required_variables(self) -> frozenset[str]:
        """Variables that are needed and that have no default."""
        return frozenset(name for name, rule in self._variables if name != CLIENT_ID and rule.default is None)

    def variables(self, client_id: str, variables: Mapping[str, str]) -> dict[str, str]:
        """Return the checked values of the declared variables. Raises :class:`RequestBuildError`."""
        values: dict[str, str] = {}
        for name, rule in self._variables:
            value = client_id if name == CLIENT_ID else variables.get(name, rule.default)
            if value is None:
                raise RequestBuildError(
                    "variable_missing", f"the account has no value for the variable {name!r}"
                )
            values[name] = self._checked(rule, value)
        return values

    def of(self, client: ClientCredentials, grant: Grant, now: datetime | None) -> dict[str, str]:
        """Return every value for one request at ``now``, the time of the wall clock.

        Raises :class:`RequestBuildError`, :class:`UnicodeEncodeError` when a value has no UTF-8, and
        :class:`TypeError` when there is no ``now`` and something is signed or stamped with it.
        """
        values = self.variables(client.client_id, grant.variables)
        for name in self._credentials:
            values[name] = credential(name, client, grant)
        if self._needs_now and now is None:
            raise TypeError("this request carries the time: give now")
        for name, computation in self._computations:
            values[name] = computation.value(values, now)
        if self._assertions is not None and now is not None:
            values[ASSERTION] = self._assertions.sign(values, credential(CLIENT_SECRET, client, grant), now)
        return values

    def _checked(self, rule: VariableRule, value: object) -> str:
        if not isinstance(value, str):
            raise RequestBuildError("variable_malformed", f"the variable {rule.name!r} must be text")
        try:
            return rule.check(value, allow_http=self._allow_http)
        except ValueError as error:
            raise RequestBuildError("variable_malformed", f"the variable {rule.name!r} {error}") from None


_MISSING: Final[Mapping[str, tuple[str, str]]] = {
    CLIENT_SECRET: ("client_secret_missing", "the app has no client secret: set one"),
    REFRESH_TOKEN: ("refresh_token_missing", "the account has no refresh token"),
    ACCESS_TOKEN: ("access_token_missing", "the account has no access token"),
}


def credential(name: str, client: ClientCredentials, grant: Grant) -> str:
    """Reveal the credential called ``name``, on its way into a request. Raises :class:`RequestBuildError`."""
    held: Secret | None = client.client_secret
    if name == REFRESH_TOKEN:
        held = grant.refresh_token
    elif name == ACCESS_TOKEN:
        held = grant.access_token
    if not held:
        raise RequestBuildError(*_MISSING[name])
    return held.reveal()
