"""What a definition may ask for in all: definitions are untrusted, and each of them is read at every start.

Bounds, far above what any provider needs, on what takes time or memory for each request and each answer. A computed
value may use others computed before it, so a few short lines could otherwise make a text of any length.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from providers.problems import Location
from providers.spec import ProviderSpec
from providers.spec_answers import Condition, ErrorRule
from providers.spec_part import Part
from providers.spec_requests import Probe, ProbeRule
from providers.templates import occurrences

MAX_ENTRIES: Final = 64
"""Of one list or table."""
MAX_VALUES: Final = 64
"""Variables, credentials and computed values in all that one request, or one computed value, is made of."""
MAX_COMPARISONS: Final = 512
"""Patterns at paths that one answer is compared with; each path can lead to some thousand places of an answer."""

Finding = tuple[Location, str]


def size_mistakes(spec: ProviderSpec) -> Iterator[Finding]:
    """Yield everything that is too large: where it stands, and the reason in plain words."""
    yield from _entries(spec, (), [])
    yield from _comparisons(spec)
    yield from _values(spec)


def _entries(part: Part, location: Location, found: list[Finding]) -> list[Finding]:
    """Add what has too many entries, in ``part`` and what it is made of. All definitions come here at every start."""
    told = part.__dict__
    for name in part.model_fields_set:
        value = told[name]
        kind = type(value)
        if kind is tuple or kind is dict:
            if len(value) > MAX_ENTRIES:
                found.append(((*location, name), f"has {len(value)} entries: {MAX_ENTRIES} are the most"))
                continue
            for key, entry in value.items() if kind is dict else enumerate(value):
                if isinstance(entry, Part):
                    _entries(entry, (*location, name, key), found)
        elif isinstance(value, Part):
            _entries(value, (*location, name), found)
    return found


def _comparisons(spec: ProviderSpec) -> Iterator[Finding]:
    compared: dict[Location, Sequence[ErrorRule | ProbeRule | Condition]] = {
        ("errors",): spec.errors,
        ("answer", "success"): spec.answer.success,
    }
    if spec.probe is not None:
        compared["probe", "alive_when"] = spec.probe.alive_when
        compared["probe", "dead_when"] = spec.probe.dead_when
    for index, step in enumerate(spec.steps):
        compared["steps", index, "answer", "success"] = step.answer.success
    for location, rules in compared.items():
        total = sum(len(rule.path) * max(1, len(rule.pattern)) for rule in rules)
        if total > MAX_COMPARISONS:
            yield location, f"compares each answer {total} times: {MAX_COMPARISONS} are the most"


def _values(spec: ProviderSpec) -> Iterator[Finding]:
    made_of: dict[str, int] = {}

    def weight(*texts: str) -> int:
        return sum([made_of.get(name, 1) for text in texts if "{" in text for name in occurrences(text)])

    for name, computed in spec.computed.items():
        total = weight(computed.of or "", computed.key or "")
        if total > MAX_VALUES:
            yield ("computed", name), f"is made of {total} values: {MAX_VALUES} are the most"
        # A digest is as short as it is; only an encoding grows with what it encodes.
        made_of[name] = min(total, MAX_VALUES + 1) if computed.kind == "base64" else 1
    for location, part in (("refresh", spec.refresh), ("probe", spec.probe), ("revoke", spec.revoke)):
        if part is not None and (part.parameters or part.headers):
            own = (part.authorization,) if isinstance(part, Probe) else ()
            total = weight(*own, *part.parameters.values(), *part.headers.values())
            if total > MAX_VALUES:
                yield (location,), f"is made of {total} values: {MAX_VALUES} are the most"
    for index, step in enumerate(spec.steps):
        if (total := weight(*step.parameters.values(), *step.headers.values())) > MAX_VALUES:
            yield ("steps", index), f"is made of {total} values: {MAX_VALUES} are the most"
