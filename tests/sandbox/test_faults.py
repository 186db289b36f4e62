"""Which request meets which fault: by filter, count, time and seeded chance."""

from __future__ import annotations

import json

import pytest

from sandbox.faults import FaultKind, FaultPlan, FaultRule, parse_rules
from sandbox.selection import Stage
from tokenfleet.errors import UserError

NOW = 1_700_000_000.0


def plan(*rules: FaultRule, seed: int = 7) -> FaultPlan:
    plan = FaultPlan(seed)
    plan.add(rules, NOW)
    return plan


def hits(plan: FaultPlan, requests: int = 400, subject: str = "acct-1") -> list[int]:
    return [n for n in range(1, requests + 1) if plan.choose(subject, n, NOW) is not None]


def test_a_rule_alone_hits_every_request() -> None:
    assert len(hits(plan(FaultRule(kind=FaultKind.STATUS_500)), 10)) == 10


def test_a_count_is_used_up() -> None:
    assert hits(plan(FaultRule(kind=FaultKind.STATUS_500, count=2)), 10) == [1, 2]


def test_a_probability_hits_about_its_share() -> None:
    share = len(hits(plan(FaultRule(kind=FaultKind.STATUS_500, probability=0.25)))) / 400
    assert 0.15 < share < 0.35


def test_the_same_seed_hits_the_same_requests_however_subjects_interleave() -> None:
    rule = FaultRule(kind=FaultKind.STATUS_500, probability=0.3)
    alone = hits(plan(rule))
    crowded = plan(rule)
    hits(crowded, subject="acct-2")
    assert hits(crowded) == alone


def test_another_seed_hits_others() -> None:
    rule = FaultRule(kind=FaultKind.STATUS_500, probability=0.3)
    assert hits(plan(rule, seed=1)) != hits(plan(rule, seed=2))


def test_two_rules_of_the_same_probability_strike_independently() -> None:
    rule = FaultRule(kind=FaultKind.STATUS_500, probability=0.5)
    assert len(hits(plan(rule, rule))) > len(hits(plan(rule))) + 50


def test_subjects_and_prefixes_limit_a_rule() -> None:
    named = plan(FaultRule(kind=FaultKind.STATUS_500, subjects=frozenset({"acct-1"})))
    prefixed = plan(FaultRule(kind=FaultKind.STATUS_500, prefix="bad-"))
    assert hits(named, 1)
    assert not hits(named, 1, "acct-2")
    assert hits(prefixed, 1, "bad-9")
    assert not hits(prefixed, 1)


def test_a_rule_ends_with_its_duration() -> None:
    faults = plan(FaultRule(kind=FaultKind.STATUS_500, duration_seconds=5))
    assert faults.choose("acct-1", 1, NOW + 4.9) is not None
    assert faults.choose("acct-1", 2, NOW + 5) is None
    assert faults.in_force(NOW + 5) == ()


def test_the_first_rule_that_applies_strikes() -> None:
    faults = plan(
        FaultRule(kind=FaultKind.STATUS_500, count=1), FaultRule(kind=FaultKind.RESET_BEFORE, count=1)
    )
    struck = [faults.choose("acct-1", n, NOW) for n in (1, 2, 3)]
    assert [rule.kind if rule else None for rule in struck] == [
        FaultKind.STATUS_500,
        FaultKind.RESET_BEFORE,
        None,
    ]
    assert faults.struck == {FaultKind.STATUS_500: 1, FaultKind.RESET_BEFORE: 1}


def test_cleared_rules_stay_counted() -> None:
    faults = plan(FaultRule(kind=FaultKind.STATUS_500))
    hits(faults, 3)
    faults.clear()
    assert not hits(faults, 3)
    assert faults.struck == {FaultKind.STATUS_500: 3}


def test_rules_in_force_tell_what_is_left_of_their_count() -> None:
    faults = plan(FaultRule(kind=FaultKind.STATUS_500, count=5))
    hits(faults, 2)
    assert [rule.count for rule in faults.in_force(NOW)] == [3]


@pytest.mark.parametrize("kind", list(FaultKind))
def test_every_kind_has_its_moment(kind: FaultKind) -> None:
    assert FaultRule(kind=kind, seconds=1).strikes in Stage


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ({"kind": "explode"}, "rules.0.kind"),
        ({"kind": "status_500", "probabilty": 0.5}, "rules.0.probabilty"),
        ({"kind": "status_500", "probability": 2}, "rules.0.probability"),
        ({"kind": "status_500", "count": 0}, "rules.0.count"),
        ({"kind": "slow"}, "slow needs 'seconds'"),
        ({"kind": "reset_after", "stage": "before_deciding"}, "leave 'stage' out"),
    ],
)
def test_a_senseless_rule_is_explained(rule: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        parse_rules(json.dumps({"rules": [rule]}).encode())


def test_a_body_that_is_no_json_is_explained() -> None:
    with pytest.raises(UserError, match="JSON"):
        parse_rules(b"{")
