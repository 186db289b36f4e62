"""Every definition of the catalogue, played as it says, passes every scenario."""

from __future__ import annotations

from collections import Counter

import pytest

from conformance import Verdict
from conformance.scenarios import SCENARIOS
from providers import load_registry
from tests.conformance.conftest import Run

REGISTRY = load_registry()
passes: Counter[str] = Counter()
"""How many definitions each scenario was played with."""
played: set[str] = set()


@pytest.mark.parametrize("name", REGISTRY.names())
def test_the_fleet_does_right_by_the_provider_that_a_definition_describes(name: str, run: Run) -> None:
    report = run(REGISTRY.get(name))
    played.add(name)

    assert [str(failure) for failure in report.failures] == []
    assert report.count(Verdict.PASSED) >= 2, "next to nothing was played"
    passes.update(result.scenario for result in report.results if result.verdict is Verdict.PASSED)


def test_every_scenario_was_played_with_some_definition() -> None:
    if len(played) < len(REGISTRY):
        pytest.skip("not all of the catalogue was played in this process")
    unplayed = {scenario.name for scenario in SCENARIOS} - set(passes)
    assert unplayed <= NOWHERE_IN_THE_CATALOGUE


NOWHERE_IN_THE_CATALOGUE = {"rate_headers"}
"""Scenarios about keys that no definition of ours uses; test_wrong_definitions.py plays them."""
