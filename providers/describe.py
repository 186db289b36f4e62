"""A definition in plain language, for ``tokenfleet providers show`` and for ``docs/providers.md``.

Everything that the engine will do with an answer is said here in words; nothing is said that it does not do. What
nobody has confirmed is marked where it stands, and told in full at the end.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from providers.explanation.answer import answer_facts, error_facts, rule_codes
from providers.explanation.facts import Fact, Section, duration_text, fact, one_line
from providers.explanation.lifetimes import lifetime_facts, pace_facts, rotation_facts
from providers.explanation.probing import probe_facts, revoke_facts
from providers.explanation.requests import request_facts, step_facts
from providers.explanation.setup import setup_facts
from providers.explanation.unconfirmed import Unconfirmed
from providers.loading import validate_paths
from providers.registry import Provider
from providers.spec import ProviderSpec
from providers.spec_answers import AnswerFields

__all__ = [
    "CONFIDENCE",
    "describe",
    "doubts_of",
    "duration_text",
    "explain",
    "head",
    "lines",
    "validate_paths",
]

CONFIDENCE: Final[Mapping[str, str]] = {
    "high": "endpoints, rotation and expiry stand in the provider's own documentation, or in two independent sources",
    "medium": "the endpoints are in use elsewhere; some of the rest is inferred",
    "low": "the endpoints have one source and the rest is inferred: check it before you rely on it",
}
"""What a definition's confidence says of its facts."""


def describe(provider: Provider) -> list[str]:
    """Return the explanation of ``provider``, one statement a line."""
    return lines(provider.spec, provider.origin)


def lines(spec: ProviderSpec, origin: str) -> list[str]:
    """Return the explanation of ``spec``, which was read from ``origin``, one statement a line."""
    doubts = doubts_of(spec)
    told = [each.line(doubts) for section in explain(spec) for each in section.facts]
    return [*head(spec, origin), *told]


def doubts_of(spec: ProviderSpec) -> Unconfirmed:
    """Return what of ``spec`` nobody has confirmed."""
    return Unconfirmed(spec.unverified, (code for rule in spec.errors for code in rule_codes(rule)))


def head(spec: ProviderSpec, origin: str) -> list[str]:
    """Return whose definition it is, where it was read, and how sure it is."""
    return [
        f"{spec.display_name} ({spec.name}), {spec.category.replace('_', ' ')}",
        f"Documentation: {spec.documentation}",
        f"Confidence: {spec.confidence}, checked {spec.checked.isoformat()}: {CONFIDENCE[spec.confidence]}.",
        f"Defined in {origin}",
    ]


def explain(spec: ProviderSpec) -> list[Section]:
    """Return everything that ``spec`` says beside its head, by section; sections without a fact are left out."""
    renews = spec.refresh.grant != "none"
    sections = (
        Section("What it needs", tuple(setup_facts(spec))),
        Section("What is sent", (*request_facts(spec), *step_facts(spec))),
        Section(*_answer(spec)),
        Section("What errors mean", tuple(error_facts(spec)) if renews or spec.errors else ()),
        Section("How long things live", (*lifetime_facts(spec), *rotation_facts(spec), *pace_facts(spec))),
        Section("Trying out and ending", (*probe_facts(spec), *revoke_facts(spec))),
        Section("How sure this is", tuple(_doubts(spec))),
    )
    return [section for section in sections if section.facts]


def _answer(spec: ProviderSpec) -> tuple[str, tuple[Fact, ...]]:
    """Return the facts of answers under their title; what is never renewed has one at most, when it is connected."""
    if spec.refresh.grant != "none":
        return "What comes back", tuple(answer_facts(spec))
    return "What comes back at connect", tuple(answer_facts(spec)) if spec.answer != AnswerFields() else ()


def _doubts(spec: ProviderSpec) -> Iterator[Fact]:
    for statement in spec.unverified:
        yield fact("Not confirmed", one_line(statement))
    if spec.notes:
        yield fact("Notes", one_line(spec.notes))
