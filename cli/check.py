"""One check of ``tokenfleet doctor``, and how it ended."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """How a check ended."""

    OK = "ok"
    WARNING = "warning"
    FATAL = "fatal"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Check:
    """One check: its name, how it ended, and what was found or is to be done."""

    name: str
    verdict: Verdict
    message: str
