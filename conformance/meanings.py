"""What a definition's error rules say of an answer, and answers that mean what is wanted: the rules, inverted.

Written apart from ``providers.rules`` and ``providers.outcome``: what an answer was meant to say must not depend on
the code that is to read it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from conformance.documents import Document, fits_pattern, instance_of, values_at, with_value, written
from providers.spec import ProviderSpec
from providers.spec_answers import ErrorRule

STANDARD: Final[Mapping[str, str]] = {
    "invalid_grant": "grant_rejected",
    "invalid_client": "client_rejected",
    "unauthorized_client": "client_rejected",
    "invalid_request": "request_rejected",
    "unsupported_grant_type": "request_rejected",
    "invalid_scope": "request_rejected",
}
"""The error codes of RFC 6749 section 5.2."""

ANYTHING: Final = "seven"
"""What stands where a rule asks for nothing in particular."""


@dataclass(frozen=True, slots=True)
class ErrorAnswer:
    """An error as this provider says it. ``rule`` is the position of the rule that it was made for, if one was."""

    outcome: str
    status: int
    document: Document | None
    rule: int | None = None
    whole_app: bool = True
    code: str | None = None
    """The machine word that the rule gives it; None where it follows from what matched."""

    @property
    def told(self) -> str:
        """The answer in a few words, for a report."""
        return f"{self.status} {'without a body' if self.document is None else self.document}"


def meaning(spec: ProviderSpec, status: int, document: Document | None) -> tuple[str, int | None]:
    """Return the outcome that ``spec`` gives an error answer and by which rule; ``unsure`` where nothing is said."""
    for position, rule in enumerate(spec.errors):
        if fits(rule, status, document):
            return rule.outcome, position
    if isinstance(document, dict) and status < 500 and status != 429:
        return STANDARD.get(str(document.get("error")), "unsure"), None
    return "throttled" if status == 429 else "unavailable" if status >= 500 else "unsure", None


def fits(rule: ErrorRule, status: int, document: Document | None) -> bool:
    """Answer whether ``rule`` is about an answer of ``status`` with ``document``."""
    if status not in statuses(rule):
        return False
    if not rule.path:
        return True
    for path in rule.path:
        for value in values_at(document, path):
            text = written(value)
            if not rule.value and not rule.pattern:
                return True
            if text is not None and text in {written(each) for each in rule.value}:
                return True
            if text is not None and any(fits_pattern(pattern, text) for pattern in rule.pattern):
                return True
    return False


def statuses(rule: ErrorRule) -> set[int]:
    """Return every status that ``rule`` is about: 2xx and 4xx where it names none; 429 only where it is named."""
    covered: set[int] = set()
    for status in rule.status or ("4xx", "2xx"):
        if isinstance(status, int):
            covered.add(status)
        else:
            covered |= set(range(int(status[0]) * 100, int(status[0]) * 100 + 100)) - {429}
    return covered | ({429} & set(rule.status))


def every_error(spec: ProviderSpec) -> Iterator[ErrorAnswer]:
    """Yield, for each rule, each value and pattern at each path, and each status: everything that the rule names.

    What an earlier rule takes is left out; :func:`silent_rules` says which rules are left with nothing.
    """
    for position, rule in enumerate(spec.errors):
        named = [each if isinstance(each, int) else int(each[0]) * 100 for each in rule.status] or [400]
        documents = list(_documents(rule))
        answers = [(named[0], document) for document in documents]
        answers += [(status, documents[0]) for status in named[1:] if documents]
        if not any(meaning(spec, *answer)[1] == position for answer in answers):
            # An earlier rule takes the plainest ones: look for any that is left.
            answers = [(status, document) for status in sorted(statuses(rule)) for document in documents]
            answers = [answer for answer in answers if meaning(spec, *answer)[1] == position][:1]
        for status, document in answers:
            if meaning(spec, status, document)[1] == position:
                code = rule.code or (None if rule.path else f"http_{status}")
                whole_app = rule.affects != "connection"
                yield ErrorAnswer(rule.outcome, status, document, position, whole_app, code)


def contested(spec: ProviderSpec) -> Iterator[ErrorAnswer]:
    """Yield answers in which two rules find what they look for: the first of them counts."""
    for earlier, later in pairwise(range(len(spec.errors))):
        first, second = spec.errors[earlier], spec.errors[later]
        shared = statuses(first) & statuses(second)
        if not shared or first.outcome == second.outcome or set(first.path) & set(second.path):
            continue
        document = next(_documents(first))
        for value in (*second.value, *map(instance_of, second.pattern), ANYTHING)[:1]:
            try:
                document = with_value(document, (*second.path, "nobody_described_this")[0], value)
            except ValueError:
                continue
            status = 400 if 400 in shared else min(shared)
            if meaning(spec, status, document)[1] == earlier:
                code = first.code or (None if first.path else f"http_{status}")
                whole_app = first.affects != "connection"
                yield ErrorAnswer(first.outcome, status, document, earlier, whole_app, code)


def by_truth(truth: ProviderSpec, believed: ProviderSpec) -> Iterator[ErrorAnswer]:
    """Yield what ``believed`` takes for the end of a grant, and what it is in ``truth``."""
    for answer in every_error(believed):
        if answer.outcome == "grant_rejected":
            outcome, rule = meaning(truth, answer.status, answer.document)
            whole_app = rule is None or truth.errors[rule].affects != "connection"
            yield ErrorAnswer(outcome, answer.status, answer.document, rule, whole_app)


def silent_rules(spec: ProviderSpec) -> list[int]:
    """Return the positions of rules that no answer comes to."""
    heard = {answer.rule for answer in every_error(spec)}
    return [position for position in range(len(spec.errors)) if position not in heard]


def saying(spec: ProviderSpec, outcome: str) -> ErrorAnswer | None:
    """Return an answer by which this provider says ``outcome``: by its own rule, else by the standard's code."""
    for answer in every_error(spec):
        if answer.outcome == outcome:
            return answer
    for error, standard in STANDARD.items():
        for status in (400, 401, 403):
            document: Document = {"error": error}
            if standard == outcome and meaning(spec, status, document) == (outcome, None):
                return ErrorAnswer(outcome, status, document, code=error)
    if outcome == "throttled" and meaning(spec, 429, {"error": ANYTHING})[0] == outcome:
        return ErrorAnswer(outcome, 429, {"error": ANYTHING})
    return None


def undescribed(spec: ProviderSpec) -> ErrorAnswer | None:
    """Return an error that nothing is said about."""
    for status in (400, 418, 422):
        document: Document = {"nobody_described_this": "conformance"}
        if meaning(spec, status, document) == ("unsure", None):
            return ErrorAnswer("unsure", status, document)
    return None


def _documents(rule: ErrorRule) -> Iterator[Document | None]:
    if not rule.path:
        yield {"nobody_described_this": "conformance"}
    for path in rule.path:
        if not rule.value and not rule.pattern:
            yield with_value(None, path, ANYTHING)
        for value in rule.value:
            yield with_value(None, path, value)
        for pattern in rule.pattern:
            yield with_value(None, path, instance_of(pattern))
