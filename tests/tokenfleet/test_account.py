"""The state machine as one table, and the page that draws it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tokenfleet.account import (
    REFRESHABLE,
    TRANSITIONS,
    EventType,
    Transition,
    Trigger,
    sources,
    transition,
)
from tokenfleet_client.contract import AccountStatus

DESIGN = (Path(__file__).parent.parent.parent / "docs" / "design.md").read_text(encoding="utf-8")
BORN_AS = frozenset({AccountStatus.CONNECTING, AccountStatus.ACTIVE})
"""An import creates an account in one of these: without or with a usable access token."""


def reachable(starts: frozenset[AccountStatus]) -> frozenset[AccountStatus]:
    found = set(starts)
    while True:
        further = {move.target for (source, _), move in TRANSITIONS.items() if source in found} - found
        if not further:
            return frozenset(found)
        found |= further


def test_every_status_can_be_reached_by_a_new_account() -> None:
    assert reachable(BORN_AS) == set(AccountStatus)


@pytest.mark.parametrize("status", AccountStatus)
def test_every_status_has_a_way_back_to_active(status: AccountStatus) -> None:
    assert AccountStatus.ACTIVE in reachable(frozenset({status}))


@pytest.mark.parametrize("status", AccountStatus)
def test_every_status_but_revoked_can_be_ended(status: AccountStatus) -> None:
    move = transition(status, Trigger.REVOKED)
    expected = Transition(AccountStatus.REVOKED, EventType.REVOKED)
    assert move == (None if status is AccountStatus.REVOKED else expected)


def test_no_move_leads_to_where_it_came_from() -> None:
    assert [pair for pair, move in TRANSITIONS.items() if pair[0] is move.target] == []


def test_a_move_leads_from_a_status_by_a_trigger_to_a_status_and_an_event() -> None:
    for (status, trigger), move in TRANSITIONS.items():
        assert isinstance(status, AccountStatus)
        assert isinstance(trigger, Trigger)
        assert isinstance(move.target, AccountStatus)
        assert move.event is None or isinstance(move.event, EventType)


def test_every_trigger_moves_something() -> None:
    assert [trigger for trigger in Trigger if not sources(trigger)] == []


def test_every_pair_has_one_answer_and_an_absent_one_changes_nothing() -> None:
    for status, trigger in itertools.product(AccountStatus, Trigger):
        assert transition(status, trigger) == TRANSITIONS.get((status, trigger))
        assert (status in sources(trigger)) == ((status, trigger) in TRANSITIONS)


def test_only_a_rejected_grant_leads_to_needs_reauth() -> None:
    leading = {
        trigger for (_, trigger), move in TRANSITIONS.items() if move.target is AccountStatus.NEEDS_REAUTH
    }
    assert leading == {Trigger.GRANT_REJECTED}


def test_only_accounts_that_are_asked_about_can_be_rejected() -> None:
    assert sources(Trigger.GRANT_REJECTED) == REFRESHABLE


def test_an_account_in_trouble_is_announced_once_and_its_recovery_too() -> None:
    rejected = transition(AccountStatus.ACTIVE, Trigger.GRANT_REJECTED)
    assert rejected == Transition(AccountStatus.NEEDS_REAUTH, EventType.AUTHENTICATION_ERROR)
    assert transition(AccountStatus.NEEDS_REAUTH, Trigger.GRANT_REJECTED) is None
    mended = Transition(AccountStatus.ACTIVE, EventType.REACTIVATED)
    assert transition(AccountStatus.NEEDS_REAUTH, Trigger.RECONNECTED) == mended
    assert transition(AccountStatus.NEEDS_REAUTH, Trigger.REFRESHED) == mended


@pytest.mark.parametrize("trigger", [Trigger.REFRESHED, Trigger.RECONNECTED, Trigger.GRANT_REJECTED])
def test_only_an_operator_moves_a_paused_account(trigger: Trigger) -> None:
    assert transition(AccountStatus.PAUSED, trigger) is None


def test_a_late_answer_does_not_revive_a_revoked_account() -> None:
    assert transition(AccountStatus.REVOKED, Trigger.REFRESHED) is None


def documented_moves() -> Iterator[tuple[str, str, str, str]]:
    """Rows of the transition table in docs/design.md: from, trigger, to, event."""
    section = DESIGN.partition("<!-- transitions -->")[2].partition("<!-- /transitions -->")[0]
    for line in section.splitlines():
        cells = [cell.strip().strip("`") for cell in line.strip().strip("|").split("|")]
        if len(cells) == 4 and cells[0] in set(AccountStatus):
            yield cells[0], cells[1], cells[2], cells[3]


def test_the_design_page_lists_exactly_these_moves() -> None:
    real = {
        (source.value, trigger.value, move.target.value, move.event.value if move.event else "none")
        for (source, trigger), move in TRANSITIONS.items()
    }
    documented = list(documented_moves())
    assert len(documented) == len(set(documented))
    assert set(documented) == real


def test_the_design_page_draws_exactly_these_moves() -> None:
    diagram = DESIGN.partition("stateDiagram-v2")[2].partition("```")[0]
    drawn = {
        (source, trigger, target)
        for source, target, triggers in re.findall(r"^\s*(\w+) --> (\w+): (.+)$", diagram, re.MULTILINE)
        for trigger in re.split(r",\s*", triggers)
    }
    assert drawn == {
        (source.value, trigger.value, move.target.value) for (source, trigger), move in TRANSITIONS.items()
    }
