"""Conditions and error rules of a definition, compiled: what an answer must look like for something to hold.

Total over every document. Codes come from the definition, never from an answer, so no part of an answer can
get into history or metrics through them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Final

from providers.paths import Path
from providers.patterns import Pattern
from providers.spec_answers import Condition, ErrorRule, RefreshOutcome

MAX_CODE_CHARACTERS: Final = 64

_NOT_CODE = re.compile(r"[^a-z0-9_.-]+")

DEFAULT_STATUSES: Final = frozenset({*range(200, 300), *range(400, 500)} - {429})
"""Statuses of a rule that names none. An answer that is throttled or an outage says nothing about a grant,
whatever its body says, unless the definition says that it does."""


def machine_word(text: str) -> str:
    """Return ``text``, which a definition wrote, as a code."""
    return _NOT_CODE.sub("_", text.lower()).strip("_")[:MAX_CODE_CHARACTERS] or "error"


def scalar_text(value: object) -> str | None:
    """Return how a definition would write ``value``, or None for a list, an object and null.

    Numbers and numeric text are the same: providers change between them.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value) if abs(value) < 10**18 else None
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 10**15 else str(value)
    return None


@lru_cache(maxsize=512)
def statuses_of(named: tuple[int | str, ...]) -> frozenset[int]:
    """Return the statuses that a rule covers. A class never includes 429, which a rule has to name."""
    if not named:
        return DEFAULT_STATUSES
    covered: set[int] = set()
    for status in named:
        if isinstance(status, int):
            covered.add(status)
        else:
            first = int(status[0]) * 100
            covered.update(set(range(first, first + 100)) - {429})
    return frozenset(covered | ({429} & set(named)))


def condition_test(condition: Condition) -> Callable[[object], bool]:
    """Return the compiled test of ``condition`` on a parsed answer."""
    paths = tuple(Path.compile(text) for text in condition.path)
    texts = frozenset(scalar_text(value) for value in condition.value)
    patterns = tuple(Pattern.compile(text) for text in condition.pattern)
    if condition.absent and not texts and not patterns:
        return lambda document: next(_there(paths, document), None) is None
    any_value = not texts and not patterns

    def holds(document: object) -> bool:
        values = list(_there(paths, document))
        if not values:
            return condition.absent
        if any_value:
            return True
        written = [text for value in values if (text := scalar_text(value)) is not None]
        return any(text in texts or any(pattern.matches(text) for pattern in patterns) for text in written)

    return holds


class CompiledRule:
    """One error rule, ready to be tried."""

    __slots__ = ("_codes", "_default_code", "_paths", "_patterns", "outcome", "statuses", "whole_app")

    def __init__(self, rule: ErrorRule) -> None:
        self.outcome: RefreshOutcome = rule.outcome
        self.whole_app = rule.affects != "connection"
        self.statuses = statuses_of(rule.status)
        self._paths = tuple(Path.compile(text) for text in rule.path)
        values = [text for value in rule.value if (text := scalar_text(value)) is not None]
        self._codes: Mapping[str, str] = {text: rule.code or machine_word(text) for text in values}
        self._patterns = tuple(
            (Pattern.compile(text), rule.code or machine_word(text.replace("*", " ")))
            for text in rule.pattern
        )
        self._default_code = rule.code or (machine_word(rule.path[0]) if rule.path else "")

    def code_for(self, status: int, document: object) -> str | None:
        """Return the code if this rule fits an answer of ``status`` with ``document``, else None.

        ``document`` is None when the body could not be read; a rule without a path fits it nevertheless.
        """
        if status not in self.statuses:
            return None
        if not self._paths:
            return self._default_code or f"http_{status}"
        for value in _there(self._paths, document):
            if not self._codes and not self._patterns:
                return self._default_code
            text = scalar_text(value)
            if text is None:
                continue
            if (code := self._codes.get(text)) is not None:
                return code
            for pattern, pattern_code in self._patterns:
                if pattern.matches(text):
                    return pattern_code
        return None


def _there(paths: tuple[Path, ...], document: object) -> Iterator[object]:
    for path in paths:
        for value in path.values(document):
            if value is not None and value != "":
                yield value
