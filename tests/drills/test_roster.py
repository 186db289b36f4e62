"""The drills themselves: none meets another's fault, and the fleet understands every definition."""

from __future__ import annotations

from pathlib import Path

import pytest

from drills.plan import FULL, SHORT, Plan
from drills.rehearsal import course_of
from drills.roster import Drill, all_drills
from providers import load_registry
from sandbox.config import SandboxConfig
from sandbox.definition import definition_toml

PLANS = pytest.mark.parametrize("plan", [FULL, SHORT], ids=["full", "short"])


@PLANS
def test_no_drill_is_struck_by_the_faults_of_another(plan: Plan) -> None:
    prefixes = [drill.prefix for drill in all_drills(plan, 100)]
    assert not [
        (one, other) for one in prefixes for other in prefixes if one is not other and other.startswith(one)
    ]


@PLANS
def test_the_fleet_accepts_every_definition_with_its_budget(plan: Plan, tmp_path: Path) -> None:
    drills = all_drills(plan, 1000)
    config = SandboxConfig(access_lifetime_seconds=plan.access)
    for drill in drills:
        definition = drill.definition(plan, 1000)
        document = definition_toml("http://127.0.0.1:9321", config, name=drill.name, pace=definition.pace)
        (tmp_path / f"{drill.name}.toml").write_text(document)
    registry = load_registry(tmp_path, allow_http=True)
    for drill in drills:
        assert registry.get(drill.name).rate_per_second == pytest.approx(1000 / plan.spread)


def test_the_full_drills_last_as_long_as_they_are_meant_to() -> None:
    lasting = {drill.name: drill.seconds for drill in all_drills(FULL, 1000)}
    assert lasting["down"] == 600
    assert lasting["throttled_seconds"] == lasting["throttled_date"] == 300
    assert lasting["rejected"] == 120


@pytest.mark.parametrize(("accounts", "flips"), [(100, 20), (2000, 20), (10_000, 100)])
def test_the_guard_may_let_twenty_flip_or_one_in_a_hundred(accounts: int, flips: int) -> None:
    [rejected] = [drill for drill in all_drills(FULL, accounts) if drill.name == "rejected"]
    assert rejected.expected.wrong_flips == flips


@PLANS
def test_every_token_outlives_its_margin_and_the_promise_at_the_sign_in(plan: Plan) -> None:
    shortest, longest = plan.ages
    assert shortest > plan.margin[0] >= 40
    assert longest - shortest == plan.access - plan.margin[0]


def test_who_leaves_and_when_follows_from_the_seed() -> None:
    drill = Drill("down", "a provider that is down", 60.0)
    course = course_of(drill, 1000, 7)
    assert course.leaving == course_of(drill, 1000, 7).leaving
    assert course.leaving != course_of(drill, 1000, 8).leaving
    assert course.leaving == sorted(course.leaving)
    assert len(course.leaving) == 10
    assert {subject for _, subject in course.leaving} < set(course.subjects)
    assert all(0 <= share <= 0.8 for share, _ in course.leaving)


def test_somebody_leaves_however_few_there_are() -> None:
    assert len(course_of(Drill("down", "a provider that is down", 60.0), 20, 7).leaving) == 2
