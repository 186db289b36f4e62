"""What a trial comes to: for each scenario passed, failed or not applicable, with one sentence in plain words."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from providers.problems import Location, key_text


class Verdict(StrEnum):
    """How a scenario ended."""

    PASSED = "passed"
    FAILED = "failed"
    NOT_APPLICABLE = "not_applicable"


@dataclass(frozen=True, slots=True)
class Result:
    """One scenario with one definition.

    ``reason`` says what was expected and what came, or why the scenario does not apply; ``location`` is the key of the
    definition that is at fault, as far as that can be told.
    """

    scenario: str
    verdict: Verdict
    reason: str = ""
    location: Location = ()

    @property
    def key(self) -> str:
        """The key as people write it."""
        return key_text(self.location)

    def __str__(self) -> str:
        place = f" [{self.key}]" if self.location else ""
        return f"{self.scenario}: {self.reason}{place}"


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that one definition was put through."""

    name: str
    results: tuple[Result, ...]

    @property
    def passed(self) -> bool:
        """Answer whether nothing failed."""
        return not self.failures

    @property
    def failures(self) -> tuple[Result, ...]:
        """What failed."""
        return tuple(result for result in self.results if result.verdict is Verdict.FAILED)

    def count(self, verdict: Verdict) -> int:
        """Return how many scenarios ended so."""
        return sum(result.verdict is verdict for result in self.results)
