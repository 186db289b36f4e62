"""The oracle's judgement: presented twice, replayed after a loss, or neither."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from sandbox.ledger import Ledger, Presentation, ViolationKind
from sandbox.tokens import RefreshTokenRef

FIRST, SECOND = RefreshTokenRef(0, 0), RefreshTokenRef(0, 1)


@dataclass
class Wire:
    """A connection that can be cut."""

    connected: bool = True

    def __call__(self) -> bool:
        return self.connected


@pytest.fixture
def ledger() -> Ledger:
    ledger = Ledger()
    ledger.family_issued(0, "acct-1")
    return ledger


def present(ledger: Ledger, ref: RefreshTokenRef, wire: Wire | None = None) -> Presentation:
    return ledger.present(ref, wire or Wire())


def rotate(ledger: Ledger, ref: RefreshTokenRef, *, delivered: bool) -> None:
    presentation = present(ledger, ref)
    ledger.decided(presentation, spends=True)
    ledger.close(presentation, delivered=delivered)


def test_one_presentation_of_each_token_is_no_violation(ledger: Ledger) -> None:
    rotate(ledger, FIRST, delivered=True)
    rotate(ledger, SECOND, delivered=True)
    assert ledger.counters.presented_twice == 0
    assert ledger.counters.refreshes == 2


def test_two_requests_at_once_are_a_violation(ledger: Ledger) -> None:
    present(ledger, FIRST)
    present(ledger, FIRST)
    assert ledger.counters.presented_at_once == 1
    (violation,) = ledger.violations
    assert (violation.kind, violation.subject, violation.rotation) == (ViolationKind.AT_ONCE, "acct-1", 0)


def test_a_presentation_after_the_delivered_answer_is_a_violation(ledger: Ledger) -> None:
    rotate(ledger, FIRST, delivered=True)
    present(ledger, FIRST)
    assert ledger.counters.presented_after_success == 1


def test_an_old_token_is_recognized_after_any_number_of_rotations(ledger: Ledger) -> None:
    for number in range(50):
        rotate(ledger, RefreshTokenRef(0, number), delivered=True)
    present(ledger, FIRST)
    assert ledger.counters.presented_after_success == 1


def test_a_presentation_after_a_refusal_is_no_violation(ledger: Ledger) -> None:
    ledger.close(present(ledger, FIRST), delivered=False)
    present(ledger, FIRST)
    assert ledger.counters.presented_twice == ledger.counters.replays_after_loss == 0


def test_a_token_that_its_answer_did_not_spend_may_be_presented_again(ledger: Ledger) -> None:
    presentation = present(ledger, FIRST)
    ledger.decided(presentation, spends=False)
    ledger.close(presentation, delivered=True)
    present(ledger, FIRST)
    assert ledger.counters.presented_twice == 0
    assert ledger.counters.refreshes == 1


def test_a_presentation_after_a_lost_answer_is_a_replay(ledger: Ledger) -> None:
    rotate(ledger, FIRST, delivered=False)
    present(ledger, FIRST)
    assert ledger.counters.rotations_lost == 1
    assert ledger.counters.replays_after_loss == 1
    assert ledger.counters.presented_twice == 0


def test_a_replay_that_delivers_recovers_the_loss_and_the_next_is_a_violation(ledger: Ledger) -> None:
    rotate(ledger, FIRST, delivered=False)
    rotate(ledger, FIRST, delivered=True)
    assert ledger.counters.rotations_recovered == 1
    present(ledger, FIRST)
    assert ledger.counters.presented_after_success == 1


def test_whoever_presents_the_successor_had_not_lost_it(ledger: Ledger) -> None:
    rotate(ledger, FIRST, delivered=False)
    present(ledger, SECOND)
    assert ledger.counters.rotations_lost == ledger.counters.rotations_recovered == 1


def test_a_request_whose_client_hung_up_is_no_rival(ledger: Ledger) -> None:
    wire = Wire()
    abandoned = present(ledger, FIRST, wire)
    ledger.decided(abandoned, spends=True)
    wire.connected = False
    present(ledger, FIRST)
    assert ledger.counters.presented_at_once == 0
    assert ledger.counters.replays_after_loss == 1


def test_a_second_close_changes_nothing(ledger: Ledger) -> None:
    presentation = present(ledger, FIRST)
    ledger.decided(presentation, spends=True)
    ledger.close(presentation, delivered=False)
    ledger.close(presentation, delivered=True)
    assert ledger.counters.rotations_lost == 1
    assert ledger.counters.refreshes == 0


def test_a_late_loss_is_none_when_a_replay_was_delivered_first(ledger: Ledger) -> None:
    slow = present(ledger, FIRST)
    ledger.decided(slow, spends=True)
    rotate(ledger, FIRST, delivered=True)
    ledger.close(slow, delivered=False)
    assert ledger.counters.rotations_lost == 0


def test_a_tester_may_declare_an_answer_lost(ledger: Ledger) -> None:
    rotate(ledger, FIRST, delivered=True)
    assert ledger.declare_lost(FIRST)
    assert ledger.declare_lost(FIRST)
    assert ledger.counters.rotations_lost == 1
    present(ledger, FIRST)
    assert ledger.counters.replays_after_loss == 1
    assert ledger.counters.presented_twice == 0


def test_the_word_of_a_loss_may_come_after_the_replay_it_explains(ledger: Ledger) -> None:
    rotate(ledger, FIRST, delivered=True)
    present(ledger, FIRST)
    assert ledger.counters.presented_twice == 1
    assert ledger.declare_lost(FIRST)
    assert ledger.counters.presented_twice == 0
    assert (ledger.counters.replays_after_loss, ledger.counters.rotations_lost) == (1, 1)
    assert not ledger.violations


def test_a_loss_explains_the_replay_of_no_other_token(ledger: Ledger) -> None:
    rotate(ledger, FIRST, delivered=True)
    rotate(ledger, SECOND, delivered=True)
    present(ledger, FIRST)
    assert ledger.declare_lost(SECOND)
    assert ledger.counters.presented_after_success == 1
    assert [violation.rotation for violation in ledger.violations] == [0]


def test_an_answer_whose_successor_was_presented_cannot_be_declared_lost(ledger: Ledger) -> None:
    rotate(ledger, FIRST, delivered=True)
    rotate(ledger, SECOND, delivered=True)
    assert not ledger.declare_lost(FIRST)
    assert ledger.counters.rotations_lost == 0


def test_no_word_excuses_a_repetition_after_the_successor_was_presented(ledger: Ledger) -> None:
    rotate(ledger, FIRST, delivered=True)
    rotate(ledger, SECOND, delivered=True)
    present(ledger, FIRST)
    assert not ledger.declare_lost(FIRST)
    assert ledger.counters.presented_twice == 1
    assert [violation.rotation for violation in ledger.violations] == [0]


def test_an_answer_that_came_to_light_after_a_replay_is_a_loss_recovered(ledger: Ledger) -> None:
    """A process that was frozen with the answer unread, for longer than anybody waits, saved it after all."""
    rotate(ledger, FIRST, delivered=True)
    present(ledger, FIRST)
    rotate(ledger, SECOND, delivered=True)
    assert ledger.declare_lost(FIRST)
    assert ledger.counters.presented_twice == 0
    assert ledger.counters.rotations_lost == ledger.counters.rotations_recovered == 1
    assert [(loss.ref, loss.recovered) for loss in ledger.losses()] == [(FIRST, True)]


def test_nothing_can_be_declared_lost_before_an_answer(ledger: Ledger) -> None:
    assert not ledger.declare_lost(FIRST)
    present(ledger, FIRST)
    assert not ledger.declare_lost(FIRST)


def test_losses_of_an_earlier_sign_in_are_remembered(ledger: Ledger) -> None:
    rotate(ledger, FIRST, delivered=False)
    ledger.family_issued(1, "acct-1")
    assert [(loss.subject, loss.ref, loss.recovered) for loss in ledger.losses()] == [
        ("acct-1", FIRST, False)
    ]


def test_a_token_of_an_earlier_sign_in_is_still_judged(ledger: Ledger) -> None:
    rotate(ledger, FIRST, delivered=True)
    ledger.family_issued(1, "acct-1")
    present(ledger, FIRST)
    assert ledger.counters.presented_after_success == 1


def test_the_memory_of_one_subject_does_not_grow_with_its_rotations(ledger: Ledger) -> None:
    for number in range(1000):
        rotate(ledger, RefreshTokenRef(0, number), delivered=True)
    entry = ledger.entry_of("acct-1")
    assert entry is not None
    assert not entry.open
    assert not entry.lost
