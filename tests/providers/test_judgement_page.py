"""``docs/judgement.md`` keeps its word: its rules validate, its mistakes and its suggestion are the real ones."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import get_args

from providers.rule_mistakes import rule_mistakes
from providers.spec_answers import ErrorRule, RefreshOutcome
from providers.suggestions import suggest
from tests.providers.test_rule_mistakes import MISTAKES

PAGE = (Path(__file__).parents[2] / "docs" / "judgement.md").read_text()


def test_its_rules_validate() -> None:
    blocks = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        rules = tomllib.loads(block.replace("\n   ", "\n"))["errors"]
        assert list(rule_mistakes([ErrorRule.model_validate(rule) for rule in rules])) == []


def test_its_mistakes_are_told_like_that() -> None:
    quoted = re.findall(r"`(errors\[\d\].*?)`", PAGE.partition("refuses, with file")[2].partition("## ")[0])
    assert len(quoted) == 7
    assert set(quoted) <= {told for _, told in MISTAKES.values()}


def test_its_suggestion_is_the_one_that_is_made() -> None:
    rule = suggest("consent_withdrawn", "403 {error:{code:word,message:text}}").rule
    assert rule is not None
    assert "".join(f"    {line}\n" for line in rule.splitlines()) in PAGE


def test_its_table_has_every_outcome() -> None:
    for outcome in get_args(RefreshOutcome):
        assert f"| `{outcome}` |" in PAGE
