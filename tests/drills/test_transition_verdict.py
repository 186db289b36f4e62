"""The judge of the storms: a history that was told as it happened holds, and whatever is wrong is found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from uuid import UUID

import pytest

from drills.transition_verdict import Evidence, Standing, Step, Told, Verdict, judge
from tokenfleet.account import EventType

CREATED, ALARM, WELL, ENDED = (
    EventType.CREATED.value,
    EventType.AUTHENTICATION_ERROR.value,
    EventType.REACTIVATED.value,
    EventType.REVOKED.value,
)


def step(kind: str, status_from: str | None, status_to: str | None, reason: str | None = None) -> Step:
    return Step(1, f"account.{kind}", status_from, status_to, reason)


def told(number: int, event_type: str, status: str, reason: str | None = None) -> Told:
    return Told(UUID(int=number), 1, event_type, status, reason, 1)


STEPS = (
    step("imported", None, "active"),
    step("grant_rejected", "active", "needs_reauth", "invalid_grant"),
    step("reconnected", "needs_reauth", "active"),
    step("paused", "active", "paused", "ticket 17"),
    step("resumed", "paused", "active"),
    step("grant_rejected", "active", "needs_reauth", "rotation_lost"),
    step("revoked", "needs_reauth", "revoked"),
)
EVENTS = (
    told(1, CREATED, "active"),
    told(2, ALARM, "needs_reauth", "invalid_grant"),
    told(3, WELL, "active"),
    told(4, ALARM, "needs_reauth", "rotation_lost"),
    told(5, ENDED, "revoked"),
)
FORGOTTEN = Standing(
    1,
    "revoked",
    is_due=False,
    is_claimed=False,
    is_failing=False,
    is_parked=False,
    holds_tokens=False,
    is_answered_since=False,
)
LEDGER = Counter({(1, "needs_reauth"): 2, (1, "active"): 2, (1, "paused"): 1, (1, "revoked"): 1})
GOOD = Evidence(STEPS, EVENTS, (FORGOTTEN,), LEDGER, tuple(each.event_id for each in EVENTS))


def test_a_history_that_was_told_as_it_happened_holds() -> None:
    verdict = judge(GOOD)
    assert verdict.holds, verdict.troubles
    assert (verdict.moves, verdict.expected, verdict.found) == (6, 5, 5)


def swapped(rows: Sequence[Told], one: int, other: int) -> tuple[Told, ...]:
    changed = list(rows)
    changed[one], changed[other] = changed[other], changed[one]
    return tuple(changed)


def the_first_two_went_out_the_other_way_round() -> Evidence:
    assert GOOD.received is not None
    first, second, *others = GOOD.received
    return replace(GOOD, received=(second, first, *others))


WRONG: dict[str, tuple[Evidence, Callable[[Verdict], int]]] = {
    "an event is missing": (replace(GOOD, events=EVENTS[:3] + EVENTS[4:]), lambda v: v.missing),
    "an event is double": (
        replace(GOOD, events=(*EVENTS[:2], replace(EVENTS[1], event_id=UUID(int=9)), *EVENTS[2:])),
        lambda v: v.double,
    ),
    "two events are swapped": (replace(GOOD, events=swapped(EVENTS, 1, 3)), lambda v: v.out_of_order),
    "an event has another status": (
        replace(GOOD, events=(*EVENTS[:4], replace(EVENTS[4], status="active"))),
        lambda v: v.missing,
    ),
    "a move is missing": (replace(GOOD, steps=STEPS[:2] + STEPS[3:]), lambda v: v.broken),
    "a move is illegal": (
        replace(GOOD, steps=(*STEPS, step("grant_rejected", "revoked", "needs_reauth"))),
        lambda v: v.broken,
    ),
    "a move was seen and not written": (
        replace(GOOD, ledger=LEDGER + Counter({(1, "paused"): 1})),
        lambda v: v.unwitnessed,
    ),
    "a move was written and not seen": (
        replace(GOOD, ledger=LEDGER - Counter({(1, "paused"): 1})),
        lambda v: v.unwitnessed,
    ),
    "it stands elsewhere": (
        replace(GOOD, standings=(replace(FORGOTTEN, status="paused", holds_tokens=True),)),
        lambda v: v.misplaced,
    ),
    "a revoked account is due without tokens": (
        replace(GOOD, standings=(replace(FORGOTTEN, is_due=True),)),
        lambda v: v.misplaced,
    ),
    "a revoked account keeps its tokens": (
        replace(GOOD, standings=(replace(FORGOTTEN, holds_tokens=True),)),
        lambda v: v.misplaced,
    ),
    "a paused account is due": (
        Evidence(
            STEPS[:4], EVENTS[:3], (replace(FORGOTTEN, status="paused", is_due=True, holds_tokens=True),)
        ),
        lambda v: v.misplaced,
    ),
    "an active account is never asked about": (
        Evidence(STEPS[:1], EVENTS[:1], (replace(FORGOTTEN, status="active", holds_tokens=True),)),
        lambda v: v.misplaced,
    ),
    "a dead grant is asked about": (
        Evidence(
            STEPS[:2],
            EVENTS[:2],
            (replace(FORGOTTEN, status="needs_reauth", is_due=True, holds_tokens=True),),
        ),
        lambda v: v.misplaced,
    ),
    "it was delivered in another order": (
        the_first_two_went_out_the_other_way_round(),
        lambda v: v.out_of_order,
    ),
    "it was not delivered": (replace(GOOD, received=()), lambda v: v.missing),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_counted_and_said(name: str) -> None:
    evidence, count = WRONG[name]
    verdict = judge(evidence)
    assert count(verdict) > 0
    assert verdict.troubles
    assert not verdict.holds


def test_people_who_are_told_twice_of_one_loss_are_noticed() -> None:
    again = replace(EVENTS[1], event_id=UUID(int=9))
    steps = (*STEPS[:2], replace(STEPS[1], status_from="needs_reauth"))
    verdict = judge(replace(GOOD, steps=steps, events=(*EVENTS[:2], again), ledger=None, received=None))
    assert "account 1: people were told twice that it needs a sign-in" in verdict.troubles
