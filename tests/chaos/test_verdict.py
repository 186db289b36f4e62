"""The judgement, without any process: which evidence makes a run fail, and which row is blamed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from chaos import table
from chaos.verdict import (
    Evidence,
    Flip,
    Loss,
    Presentation,
    Window,
    ill_told,
    judge,
    longest_under,
    taken_by_physics,
)

WINDOWS = (
    Window("worker.a", "worker killed: a", 0.0, 10.0, 7, 1000),
    Window("worker.b", "worker killed: b", 0.0, 10.0, 5, 1000),
    Window("redis.flushed", "Redis flushed", 10.0, 20.0, 3, 2000),
    Window("settling", "nothing breaks any more", 20.0, 30.0, 0, 500),
)
QUIET = Evidence(
    windows=WINDOWS, refreshes=3500, violations=(), strays=(), losses=(), flips=(), revocations=(), samples=()
)


def asked(
    at: float, *, saved: float | None = None, gone: float | None = None, refused: float | None = None
) -> Presentation:
    return Presentation(account_id=1, process=0, at=at, saved=saved, gone=gone, refused=refused)


def test_an_answer_that_nobody_saved_before_its_process_died_was_taken_by_physics() -> None:
    assert taken_by_physics([asked(1.0, gone=1.1)], held_against_us=False)


def test_an_answer_that_was_saved_was_not() -> None:
    assert not taken_by_physics([asked(1.0, saved=1.1)], held_against_us=False)


def test_an_answer_in_the_hands_of_a_living_process_was_not() -> None:
    assert not taken_by_physics([asked(1.0)], held_against_us=False)


def test_a_second_request_is_explained_by_a_death_before_it() -> None:
    assert taken_by_physics([asked(1.0, gone=1.1), asked(4.0, gone=5.0)], held_against_us=True)


def test_a_second_request_is_not_explained_by_a_death_after_it() -> None:
    assert not taken_by_physics([asked(1.0, gone=6.0), asked(4.0, gone=5.0)], held_against_us=True)


def test_a_second_request_after_the_answer_was_journalled_is_not_explained_by_the_death_after_that() -> None:
    assert not taken_by_physics([asked(1.0, saved=1.1, gone=1.2), asked(4.0)], held_against_us=True)


def test_an_answer_that_a_frozen_process_saved_too_late_explains_the_request_before_that() -> None:
    frozen = asked(1.0, gone=1.1, saved=9.0)
    assert taken_by_physics([frozen, asked(5.0)], held_against_us=True)
    assert not taken_by_physics([frozen, asked(9.5)], held_against_us=True)


def test_a_request_that_never_arrived_is_no_loss_once_another_one_was_answered() -> None:
    assert not taken_by_physics([asked(1.0, gone=1.1), asked(4.0, saved=4.1)], held_against_us=False)


def test_a_request_that_was_refused_held_nothing() -> None:
    died, refused, again = asked(1.0, gone=1.1), asked(4.0, refused=4.1), asked(9.0, refused=9.1)
    assert taken_by_physics([died, refused, again], held_against_us=True)
    assert not taken_by_physics([refused, again], held_against_us=True)
    assert not taken_by_physics([refused], held_against_us=False)
    assert not taken_by_physics([asked(1.0, saved=1.1), refused, again], held_against_us=True)


def test_one_request_alone_explains_nothing_that_is_held_against_us() -> None:
    assert not taken_by_physics([asked(1.0, gone=1.1)], held_against_us=True)


def test_a_run_in_which_nothing_went_wrong_holds() -> None:
    verdict = judge(QUIET)
    assert verdict.held
    assert (verdict.total.injected, verdict.total.refreshes) == (15, 3500)


def test_a_loss_that_the_fleet_recorded_costs_nobody_anything() -> None:
    evidence = replace(
        QUIET, losses=[Loss("shop", 3.0, "worker.b")], flips=[Flip("shop", 8.0, "rotation_lost")]
    )
    verdict = judge(evidence)
    assert verdict.held
    assert {row.name: row.lost_by_physics for row in verdict.rows if row.lost_by_physics} == {"worker.b": 1}


@pytest.mark.parametrize(
    ("flaw", "words"),
    [
        ({"violations": [Loss("shop", 3.0)]}, "1 refresh token was presented twice"),
        ({"strays": [Loss("shop", 3.0)]}, "1 account does not hold what the provider would accept"),
        (
            {"flips": [Flip("shop", 3.0, "invalid_grant")]},
            "1 customer was asked to sign in again for nothing",
        ),
        ({"unsettled": 2}, "2 accounts were not settled"),
        ({"losses": [Loss("shop", 3.0)]}, "the ledger counts 1, the fleet recorded 0 as rotation_lost"),
        ({"ill_told": ["shop: 2 events for 1 transitions"]}, "shop: 2 events for 1 transitions"),
    ],
)
def test_each_broken_promise_makes_a_run_fail(flaw: dict[str, object], words: str) -> None:
    verdict = judge(replace(QUIET, **flaw))  # type: ignore[arg-type]
    assert not verdict.held
    assert any(words in problem for problem in verdict.problems), verdict.problems


def test_a_run_without_a_fault_proves_nothing() -> None:
    [problem] = judge(replace(QUIET, windows=[replace(each, injected=0) for each in WINDOWS])).problems
    assert problem.startswith("too little happened: no fault was done")


def test_a_run_without_a_refresh_proves_nothing() -> None:
    assert judge(replace(QUIET, refreshes=0)).problems == ("too little happened: no token was refreshed",)


def test_a_row_that_had_time_of_its_own_and_was_never_done_makes_a_run_fail() -> None:
    idle = replace(WINDOWS[2], injected=0)
    verdict = judge(replace(QUIET, windows=[*WINDOWS[:2], idle, WINDOWS[3]]))
    assert verdict.problems == ("too little happened: redis.flushed was not done once in 10 s",)


@pytest.mark.parametrize(
    "idle",
    [
        replace(WINDOWS[0], injected=0),
        replace(WINDOWS[2], injected=0, began=10.5),
        replace(WINDOWS[2], injected=0, refreshes=999),
    ],
    ids=["it shared its time", "its time was short", "little was going on"],
)
def test_a_row_that_was_never_done_by_chance_makes_no_run_fail(idle: Window) -> None:
    windows = [idle if each.name == idle.name else each for each in WINDOWS]
    assert judge(replace(QUIET, windows=windows)).held


def test_a_run_that_held_says_who_had_to_sign_in_again_all_the_same() -> None:
    losses = [Loss(f"shop-{number}", 3.0, "worker.b") for number in range(1, 810)]
    flips = [Flip(loss.subject, 8.0, "rotation_lost") for loss in losses]
    lines = list(table.lines(judge(replace(QUIET, losses=losses, flips=flips))))
    assert max(map(len, lines)) <= 100
    assert (
        "809 answers died with their process or on the wire before anybody could keep them, and their customers "
        "had to sign in again: no software can prevent that, and each was counted."
    ) in " ".join(lines)
    [one] = [" ".join(table.lines(judge(replace(QUIET, losses=losses[:1], flips=flips[:1]))))]
    assert "1 answer died with its process" in one
    assert "sign in again" not in " ".join(table.lines(judge(QUIET)))


def test_a_loss_that_is_recorded_under_another_name_is_told() -> None:
    evidence = replace(QUIET, losses=[Loss("shop", 3.0)], flips=[Flip("shop", 8.0, "invalid_grant")])
    [problem] = judge(evidence).problems
    assert "the ledger counts 1, the fleet recorded 0" in problem


def test_one_loss_explains_one_flip() -> None:
    flips = [Flip("shop", 8.0, "rotation_lost"), Flip("shop", 9.0, "invalid_grant")]
    verdict = judge(replace(QUIET, losses=[Loss("shop", 3.0)], flips=flips))
    assert verdict.total.false_reauths == 1


def test_a_loss_explains_no_flip_before_it() -> None:
    evidence = replace(QUIET, losses=[Loss("shop", 5.0)], flips=[Flip("shop", 3.0, "rotation_lost")])
    assert judge(evidence).total.false_reauths == 1


def test_a_customer_who_revoked_is_rightly_asked_to_sign_in_again() -> None:
    evidence = replace(QUIET, revocations=[("shop", 2.0)], flips=[Flip("shop", 3.0, "invalid_grant")])
    assert judge(evidence).held


def test_blame_goes_to_the_row_whose_victim_it_was_and_else_to_the_row_of_that_time() -> None:
    violations = [Loss("a", 3.0, "worker.a"), Loss("b", 12.0), Loss("c", 99.0)]
    rows = {row.name: row.presented_twice for row in judge(replace(QUIET, violations=violations)).rows}
    assert rows == {"worker.a": 1, "worker.b": 0, "redis.flushed": 1, "settling": 1}


def test_the_time_under_the_promise_is_the_longest_one_within_a_row() -> None:
    seen = [40.0, 29.0, 28.0, 31.0, 25.0, 24.0, 23.0, 22.0, 50.0]
    samples = [(float(at), lowest) for at, lowest in enumerate(seen)]
    assert longest_under(samples, 0.0, 9.0) == 3.0
    assert longest_under(samples, 0.0, 3.0) == 1.0
    assert longest_under(samples, 6.0, 9.0) == 1.0


def test_a_reader_that_could_not_look_saw_no_better() -> None:
    samples = [(0.0, 29.0), (1.0, None), (2.0, None), (3.0, 40.0), (4.0, None)]
    assert longest_under(samples, 0.0, 5.0) == 2.0


def test_every_transition_has_one_event() -> None:
    due = {("shop", "error"): 2, ("inn", "error"): 1}
    assert ill_told(due, dict(due)) == []
    assert ill_told(due, {("shop", "error"): 3, ("inn", "error"): 1}) == [
        "shop: 3 events error for 2 transitions"
    ]
    assert ill_told({}, {("inn", "error"): 1}) == ["inn: 1 event error for 0 transitions"]


def test_the_table_fits_a_terminal_and_marks_the_row_that_failed() -> None:
    lines = list(table.lines(judge(replace(QUIET, violations=[Loss("shop", 12.0)]))))
    assert max(map(len, lines[:-1])) <= 100
    assert [line.split()[0] for line in lines if line.endswith(" !")] == ["Redis", "all"]
    assert lines[-1] == "FAILED: 1 refresh token was presented twice."
