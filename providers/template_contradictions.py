"""What is wrong with templates of a definition: names nobody declares, values nobody uses, misplaced secrets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from providers import hosts
from providers.credentials import ACCESS_TOKEN, CLIENT_SECRET, CREDENTIALS, REFRESH_TOKEN
from providers.problems import Location, close_matches, suggestion
from providers.spec import ProviderSpec
from providers.templates import CLIENT_ID, UndeclaredVariableError, placeholders, text_template, url_template
from providers.values import template_rules

NOTHING: Final[frozenset[str]] = frozenset()
OF_CLIENT_AND_TOKENS: Final = frozenset({CLIENT_SECRET, REFRESH_TOKEN, ACCESS_TOKEN})


@dataclass(frozen=True, slots=True)
class Use:
    """A template, where it stands, and which names it may use besides declared variables."""

    location: Location
    text: str
    permits: frozenset[str] = NOTHING
    is_url: bool = False


def template_mistakes(spec: ProviderSpec, *, allow_http: bool) -> Iterator[tuple[Location, str]]:
    """Yield every mistake in templates, and every variable or computed value that none of them uses."""
    rules, variables = template_rules(spec), spec.variable_rules()
    secrets = (CREDENTIALS | spec.computed.keys()) - spec.variables.keys()
    used: set[str] = set()
    for use in _uses(spec):
        names = placeholders(use.text)
        # Also of a template that does not compile: reporting its variables as unused would be a false alarm.
        used.update(names - ({use.location[1]} if use.location[0] == "computed" else set()))
        if misplaced := sorted(names & secrets - use.permits):
            yield use.location, _why_not(spec, use, misplaced[0])
            continue
        try:
            if use.is_url:
                url_template(use.text, variables, allow_http=allow_http)
            else:
                text_template(use.text, rules)
        except UndeclaredVariableError as error:
            known = sorted({*variables, *use.permits})
            used.update(close_matches(error.name, known))
            yield use.location, f"{error}{suggestion(error.name, known)}"
        except ValueError as error:
            yield use.location, str(error)
    yield from _declarations(spec, used, allow_http=allow_http)


def _why_not(spec: ProviderSpec, use: Use, name: str) -> str:
    if use.is_url:
        return f"places {{{name}}} in a URL, which is logged: put it into a parameter or a header"
    if use.location[0] == "assertion":
        return f"places {{{name}}} in an assertion, which anybody can read: use variables"
    if use.location[0] == "computed" and name in spec.computed:
        if name == use.location[1]:
            return "is computed from itself"
        return f"uses {{{name}}}, which is computed after it: define that one before"
    return f"uses {{{name}}}, which it cannot have here"


def _declarations(spec: ProviderSpec, used: set[str], *, allow_http: bool) -> Iterator[tuple[Location, str]]:
    rules = spec.variable_rules()
    for name, variable in spec.variables.items():
        if name == CLIENT_ID:
            yield ("variables", name), "is the app's own client id and needs no declaration"
        elif name in CREDENTIALS:
            yield ("variables", name), "is a credential, which no variable can have the name of"
        elif name not in used and not variable.from_answer:
            yield ("variables", name), "is declared but no template uses it and no answer states it"
        if variable.kind == "url":
            for index, pattern in enumerate(variable.pattern):
                if (mistake := hosts.pattern_mistake(pattern)) is not None:
                    yield ("variables", name, "pattern", index), mistake
        if variable.default is not None:
            try:
                rules[name].check(variable.default, allow_http=allow_http)
            except ValueError as error:
                yield ("variables", name, "default"), str(error)
    for name in spec.computed:
        if name in CREDENTIALS or name in rules:
            kind = "a credential" if name in CREDENTIALS else "a variable"
            yield ("computed", name), f"has the name of {kind}: call it something else"
        elif name not in used:
            yield ("computed", name), "is computed but no template uses it"


def _uses(spec: ProviderSpec) -> Iterator[Use]:
    computed = frozenset(spec.computed)
    refresh = spec.refresh
    if refresh.endpoint is not None:
        yield Use(("refresh", "endpoint"), refresh.endpoint, is_url=True)
    yield from _table(("refresh", "parameters"), refresh.parameters, CREDENTIALS | computed)
    yield from _table(("refresh", "headers"), refresh.headers, CREDENTIALS | computed)
    before: frozenset[str] = OF_CLIENT_AND_TOKENS
    for name, value in spec.computed.items():
        for key, text in (("of", value.of), ("key", value.key)):
            if text is not None:
                yield Use(("computed", name, key), text, before)
        before |= {name}
    if spec.assertion is not None:
        for key, text in (
            ("issuer", spec.assertion.issuer),
            ("subject", spec.assertion.subject),
            ("audience", spec.assertion.audience),
            ("key_id", spec.assertion.key_id or ""),
        ):
            yield Use(("assertion", key), text)
        texts = {name: text for name, text in spec.assertion.claims.items() if isinstance(text, str)}
        yield from _table(("assertion", "claims"), texts, NOTHING)
        yield from _table(("assertion", "head"), spec.assertion.head, NOTHING)
    for index, step in enumerate(spec.steps):
        yield Use(("steps", index, "endpoint"), step.endpoint, is_url=True)
        permits = computed | {CLIENT_SECRET, ACCESS_TOKEN}
        yield from _table(("steps", index, "parameters"), step.parameters, permits)
        yield from _table(("steps", index, "headers"), step.headers, permits)
    if spec.probe:
        permits = CREDENTIALS | computed
        yield Use(("probe", "endpoint"), spec.probe.endpoint, is_url=True)
        yield Use(("probe", "authorization"), spec.probe.authorization, permits)
        yield from _table(("probe", "parameters"), spec.probe.parameters, permits)
        yield from _table(("probe", "headers"), spec.probe.headers, permits)
    if spec.revoke:
        permits = CREDENTIALS | computed
        yield Use(("revoke", "endpoint"), spec.revoke.endpoint, is_url=True)
        yield from _table(("revoke", "parameters"), spec.revoke.parameters, permits)
        yield from _table(("revoke", "headers"), spec.revoke.headers, permits)


def _table(location: Location, texts: Mapping[str, str], permits: frozenset[str]) -> Iterator[Use]:
    for name, text in texts.items():
        yield Use((*location, name), text, permits)
