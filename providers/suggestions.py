"""From an answer that no rule describes to the rule that would describe it, for the author of the definition.

A suggestion that is pasted unread changes nothing for the worse: its outcome is what the engine does anyway, unless
the word can only mean that the provider is busy or away. Whether a grant is gone is for somebody to find out who reads
the provider's documentation (G4).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from providers.coverage import Coverage
from providers.paths import Path
from providers.shapes import CODE_PATHS
from providers.spec import ProviderSpec
from providers.spec_answers import ErrorRule, RefreshOutcome

NUMBER_PATHS: Final = (
    "errcode", "code", "error_code", "errorCode", "error_codes[]", "error.code", "errors[].code", "error", "status",
)  # fmt: skip
"""Where providers state the number of an error."""

TOKENS: Final = (
    "It brings tokens: say under [answer] where they are and what a success is; a rule would lose them."
)
NOTHING_TO_NAME: Final = (
    "It has no member that a rule could name: see what the provider's documentation says of it."
)
_CHOICES: Final = (
    "# What it means: grant_rejected (only if the customer has to sign in again), client_rejected, throttled,\n"
    "# unavailable or request_rejected."
)

_BUSY = re.compile(r"throttl|rate_?limit|too_many|slow_?down|quota")
_AWAY = re.compile(
    r"unavailable|time_?out|maintenance|internal|server_error|overload|try_again|temporar|retry"
)
_TOKEN_NAME = re.compile(r"(?:refresh|access)[_-]?token$", re.IGNORECASE)
_TOKEN = re.compile(r"[{}\[\],:]|[^{}\[\],:]+")


@dataclass(frozen=True, slots=True)
class Suggestion:
    """What to add to a definition. ``rule`` is TOML, None when no rule would do, for the reason in ``note``.

    ``described_by`` is a rule that the definition has by now and that takes such answers.
    """

    rule: str | None
    note: str | None = None
    described_by: str | None = None


def suggest(code: str, shape: str, spec: ProviderSpec | None = None) -> Suggestion:
    """Return the rule for answers of ``shape`` with ``code``, as ``tokenfleet.outcome.Undescribed`` has them.

    ``spec`` is the definition as it is now, None where there is none any more.
    """
    status_text, _, body = shape.partition(" ")
    status, members = int(status_text), dict(_members(body))
    if 200 <= status < 300 and any(_is_token(path, spec) for path in members):
        return Suggestion(None, TOKENS)
    path, value = _named(code, members)
    if path is None and 200 <= status < 300:
        return Suggestion(None, NOTHING_TO_NAME)
    outcome = _guess(code) if value is not None else "undescribed"
    rule = ErrorRule(
        outcome=outcome,
        status=(status,),
        path=() if path is None else (path,),
        value=() if value is None else (value,),
    )
    lines = [] if outcome != "undescribed" else [_CHOICES]
    lines += ["[[errors]]", f'outcome = "{outcome}"', f"status = {status}"]
    if path is not None:
        lines.append(f'path = "{path}"')
    if value is not None:
        lines.append(f'value = "{value}"')
    elif path is not None:
        lines.append(f"# value = ...  what stands at {path} when it means that; without one, anything does")
    return Suggestion("\n".join(lines) + "\n", described_by=_taker(rule, spec))


def _named(code: str, members: dict[str, str]) -> tuple[str | None, str | None]:
    """Return the path that a rule looks at, and the word there; without a word the most telling member."""
    for path in CODE_PATHS:
        if (kind := members.get(path)) in ("word", "WORD"):
            return path, code if kind == "word" else code.upper()
    for path in NUMBER_PATHS:
        if members.get(path.replace("[]", "[0]")) == "number":
            return path, None
    there = [path for path, kind in members.items() if kind not in ("null", "empty")]
    telling = [path for path in there if re.search(r"err|code|message|reason", path, re.IGNORECASE)]
    return next(iter(telling or there), None), None


def _guess(code: str) -> RefreshOutcome:
    if _BUSY.search(code):
        return "throttled"
    return "unavailable" if _AWAY.search(code) else "undescribed"


def _is_token(path: str, spec: ProviderSpec | None) -> bool:
    known = () if spec is None else (*spec.answer.access_token, *spec.answer.refresh_token)
    return path in known or bool(_TOKEN_NAME.search(path))


def _taker(rule: ErrorRule, spec: ProviderSpec | None) -> str | None:
    rules = () if spec is None else spec.errors
    takers = Coverage((*rules, rule)).whole(len(rules))
    return None if takers is None else str(takers)


def _members(body: str) -> Iterator[tuple[str, str]]:
    """Yield path and kind of every member that the body of a shape tells of and that a path can lead to."""
    steps: list[str] = []
    name = ""
    for token in _TOKEN.findall(body):
        match token:
            case "{" | "[":
                if steps and (path := _path([*steps, name])):
                    yield path, token
                steps.append(name)
                name = "[0]" if token == "[" else ""
            case "}" | "]":
                steps.pop()
                name = ""
            case "," | ":":
                pass
            case _ if not name:
                name = token
            case _:
                if path := _path([*steps, name]):
                    yield path, token
                name = ""


def _path(steps: list[str]) -> str | None:
    text = ".".join(step for step in steps if step).replace(".[", "[")
    if any("." in step or step in ("?", "...") for step in steps):
        return None
    try:
        return Path.compile(text).text
    except ValueError:
        return None
