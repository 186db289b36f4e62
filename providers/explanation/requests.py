"""What is sent to renew a token: the request, how it is signed, what is computed for it, and the steps after it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from providers.credentials import CLIENT_SECRET
from providers.explanation.answer import condition_text, fields
from providers.explanation.facts import Fact, assignments, duration_text, exact_duration, fact
from providers.explanation.unconfirmed import Topic
from providers.placement import authentication, placed
from providers.spec import ProviderSpec
from providers.spec_requests import Assertion, Computed, Refresh

PRESENTS: Final[Mapping[str, str]] = {
    "refresh_token": "presents the refresh token",
    "client_credentials": "presents nothing but the client itself (client credentials)",
    "jwt_bearer": "presents an assertion that the app signs (JWT bearer, RFC 7523)",
    "token_exchange": "presents a token of another kind, which is kept (token exchange, RFC 8693)",
    "access_token": "presents the access token itself, while it lives",
    "none": "presents nothing, because nothing is ever renewed",
}
"""What the request of each grant presents."""

_CLIENT: Final[Mapping[str, str]] = {
    "client_secret_basic": "with client id and secret in the Authorization header (client_secret_basic)",
    "client_secret_post": "with client id and secret among the parameters (client_secret_post)",
    "client_secret_as_user": "with the secret as user name of the Authorization header and no password",
    "private_key_jwt": "with an assertion that the app's key has signed (private_key_jwt)",
    "signed_secret": "with an assertion that the app's key has signed in place of a client secret",
    "bearer_assertion": "with an assertion that the app's key has signed as bearer token",
    "none": "without a secret (a public client)",
}
_COVERED: Final = "with the client id and, in place of the secret, what is computed from it or placed below"
"""How a client that shows or proves its secret by a template is described, whatever ``client.authentication`` says."""

_ENCODINGS: Final[Mapping[str, str]] = {"upper_hex": "upper-case hex"}
"""Encodings that people call otherwise."""


def request_facts(spec: ProviderSpec) -> Iterator[Fact]:
    """Yield the request that brings the next access token."""
    refresh = spec.refresh
    if refresh.grant == "none":
        yield fact("Refresh", f"none; the fleet {PRESENTS['none']}. Probes tell whether it works.")
    else:
        how = _where(refresh.method, refresh.body)
        yield fact(
            "Refresh",
            f"{refresh.method} {refresh.endpoint} {how}, {_client(spec)}; it {PRESENTS[refresh.grant]}.",
            Topic.REQUEST,
            Topic.CLIENT,
        )
    if spec.client.certificate:
        yield fact("Connection", "carries the app's own certificate (mutual TLS, RFC 8705).", Topic.CLIENT)
    if spec.client.send_id is not None:
        yield fact(
            "Client id", f"is {'' if spec.client.send_id else 'not '}sent as a parameter.", Topic.CLIENT
        )
    yield from _parameters(refresh)
    if spec.assertion:
        yield _assertion(spec.assertion)
    for name, computed in spec.computed.items():
        yield fact(f"Computed {name}", f"{_computed(computed)}, anew for each request.", Topic.REQUEST)


def step_facts(spec: ProviderSpec) -> Iterator[Fact]:
    """Yield what follows a good answer before readers have their token."""
    for number, step in enumerate(spec.steps, start=1):
        text = f"{step.method} {step.endpoint} {_where(step.method, step.body)}"
        if step.parameters:
            text += f"; parameters {assignments(step.parameters)}"
        if step.headers:
            text += f"; headers {assignments(step.headers, ': ')}"
        tests = "".join(f" and {condition_text(condition)}" for condition in step.answer.success)
        keeps = (
            ", or no access token, and then the one before stays" if step.answer.keeps_access_token else ""
        )
        yield fact(
            f"Step {number}",
            f"after a good answer, whose refresh token is saved first: {text}. Success is 2xx with an access "
            f"token{tests}{keeps}; a failure begins anew later.",
            Topic.STEPS,
        )
        yield from fields(step.answer, f"Step {number}, answer")


def _client(spec: ProviderSpec) -> str:
    if authentication(spec) == "none" and CLIENT_SECRET in placed(spec):
        return _COVERED
    return _CLIENT[spec.client.authentication]


def _parameters(refresh: Refresh) -> Iterator[Fact]:
    names = {field: getattr(refresh.names, field) for field in type(refresh.names).model_fields}
    renamed = {field: name for field, name in names.items() if name != field}
    if renamed:
        told = ", ".join(f"{field} is {name}" for field, name in renamed.items())
        yield fact("Renamed parameters", f"{told}.", Topic.REQUEST)
    if refresh.grant_type is not None:
        sent = f"{names['grant_type']}={refresh.grant_type}" if refresh.grant_type else "none is sent"
        yield fact("Grant type", f"{sent}.", Topic.REQUEST)
    for name, value in refresh.parameters.items():
        yield fact("Further parameter", f"{name}={value}", Topic.REQUEST)
    for name, value in refresh.headers.items():
        yield fact("Further header", f"{name}: {value}", Topic.REQUEST)
    if refresh.send_scope:
        yield fact("Scope", "what was granted is asked for again.", Topic.REQUEST)


def _assertion(assertion: Assertion) -> Fact:
    subject = f"subject {assertion.subject}" if assertion.subject else "no subject"
    text = (
        f"a JSON Web Token, signed with {assertion.algorithm} for each request: issuer {assertion.issuer}, {subject}, "
        f"audience {assertion.audience}, good for {exact_duration(assertion.lifetime_seconds)}"
    )
    if assertion.backdate_seconds:
        text += f", issued {duration_text(assertion.backdate_seconds)} back"
    if assertion.key_id is not None:
        text += f", key id {assertion.key_id}"
    if assertion.claims:
        text += f", claims {assignments(assertion.claims)}"
    if assertion.head:
        text += f", in its head {assignments(assertion.head)}"
    return fact("Assertion", f"{text}.", Topic.ASSERTION)


def _computed(computed: Computed) -> str:
    of = f" of {computed.of}" if computed.of is not None else ""
    key = f" keyed with {computed.key}" if computed.key is not None else ""
    if computed.kind == "timestamp":
        return f"the present moment in {computed.unit} since 1970"
    if computed.kind == "random":
        return f"a random value in {_ENCODINGS.get(computed.encoding, computed.encoding)}"
    if computed.kind == "base64":
        return f"{computed.encoding if computed.encoding != 'hex' else 'base64'}{of}"
    return f"{computed.kind}{of}{key} in {_ENCODINGS.get(computed.encoding, computed.encoding)}"


def _where(method: str, body: str) -> str:
    if body == "none":
        return "without parameters"
    return "with parameters in the query" if method == "GET" or body == "query" else f"with a {body} body"
