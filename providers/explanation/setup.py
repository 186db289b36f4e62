"""What has to be there first: what an account brings, what is registered of the app, and which variables there are."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from providers.explanation.facts import Fact, either, fact, one_line, together
from providers.explanation.unconfirmed import Topic
from providers.registry import PRESENTED
from providers.spec import ProviderSpec
from tokenfleet.presented import Presented

_BRINGS: Final[Mapping[Presented, tuple[str, str]]] = {
    Presented.REFRESH_TOKEN: (
        "refresh_token",
        "An access token with its expiry is taken too, and spares the first refresh.",
    ),
    Presented.SUBJECT_TOKEN: (
        "refresh_token",
        "In that place stands the token that is exchanged: it is kept, and never replaced.",
    ),
    Presented.ACCESS_TOKEN: (
        "access_token",
        "It must be alive: it is what a renewal presents. Say when it ends (expires_at or expires_in).",
    ),
    Presented.NOTHING: ("", "No token is needed: the app alone is enough to bring one."),
}
_SIGNING: Final = frozenset({"private_key_jwt", "signed_secret", "bearer_assertion"})
_KEYS: Final[Mapping[str, str]] = {
    "RS256": "an RSA private key in PEM",
    "PS256": "an RSA private key in PEM",
    "ES256": "a private key on the curve P-256 in PEM",
    "HS256": "the secret that both sides share",
}
_PLACEHOLDER = re.compile(r"\{([A-Za-z][A-Za-z0-9_]*)\}")


def setup_facts(spec: ProviderSpec) -> Iterator[Fact]:
    """Yield what an operator has to bring before anything can be renewed."""
    yield _accounts(spec)
    if spec.connect:
        sets = [_token_set(name, spec) for name in spec.connect]
        yield fact(
            "Connecting",
            f"one installation brings {together(sets)}; each is an account of its own, with a chain of its own. An "
            "import line may carry the answer that connected it as it came (answer).",
            Topic.CONNECT,
        )
    yield fact("Registration", _registration(spec), Topic.CLIENT)
    needed = needed_variables(spec)
    for name, variable in spec.variables.items():
        text = one_line(variable.description).rstrip(".")
        if variable.from_answer:
            text += f"; taken from each answer at {either(variable.from_answer)}"
        if variable.pattern:
            text += f"; has the form {either(variable.pattern)}"
        if variable.default is not None:
            text += f"; {variable.default} unless told otherwise"
        elif name in needed:
            text += "; every account or its app has to say it"
        yield fact(f"Variable {name} ({variable.kind})", f"{text}.", Topic.VARIABLES)


def needed_variables(spec: ProviderSpec) -> tuple[str, ...]:
    """Return the variables that a renewal needs and that have no default."""
    parts = (spec.refresh, spec.assertion, *spec.computed.values(), *spec.steps)
    texts = [text for part in parts if part is not None for text in _texts(part.model_dump())]
    if spec.refresh.grant == "none" and spec.probe is not None:
        texts += _texts(spec.probe.model_dump())
    used = _names(texts)
    return tuple(
        name for name, variable in spec.variables.items() if name in used and variable.default is None
    )


def _accounts(spec: ProviderSpec) -> Fact:
    token, remark = _BRINGS[PRESENTED[spec.refresh.grant]]
    if spec.refresh.grant == "none":
        token, remark = (
            "access_token",
            "It is the key itself: readers get it as it is, and it is never renewed.",
        )
    needed = ["provider", "external_id", *([token] if token else [])]
    needed += (f"variables.{name}" for name in needed_variables(spec))
    return fact("Import line", f"{together(needed)}. {remark}")


def _token_set(name: str, spec: ProviderSpec) -> str:
    one = spec.connect[name]
    place = f"at {one.at}" if one.at is not None else "at the top of its answer"
    whose = f", whose it is at {one.external_id}" if one.external_id is not None else ""
    return f"{name} ({place}{whose})"


def _registration(spec: ProviderSpec) -> str:
    authentication, assertion = spec.client.authentication, spec.assertion
    parts = [f"tokenfleet apps set {spec.name} --client-id …"]
    signs = authentication in _SIGNING or spec.refresh.grant == "jwt_bearer"
    if signs and assertion is not None:
        parts.append(f"the signing key in place of a client secret ({_KEYS[assertion.algorithm]})")
    elif authentication != "none" or "client_secret" in _placed(spec):
        parts.append("the client secret")
    if spec.client.certificate:
        parts.append("a client certificate with its key (--client-certificate FILE)")
    text = " with ".join([parts[0], together(parts[1:])] if parts[1:] else parts)
    return f"{text}; no secret." if len(parts) == 1 else f"{text}."


def _placed(spec: ProviderSpec) -> set[str]:
    parts = (spec.refresh, *spec.computed.values(), *spec.steps)
    texts = [text for part in parts for text in _texts(part.model_dump())]
    return _names(texts)


def _names(texts: Iterable[str]) -> set[str]:
    """Return what templates place; a brace that is meant is written twice."""
    plain = (text.replace("{{", "").replace("}}", "") for text in texts)
    return {name for text in plain for name in _PLACEHOLDER.findall(text)}


def _texts(value: Any) -> list[str]:
    """Return all text in what a part of a definition was dumped to."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for inner in value.values() for text in _texts(inner)]
    if isinstance(value, (list, tuple)):
        return [text for inner in value for text in _texts(inner)]
    return []
