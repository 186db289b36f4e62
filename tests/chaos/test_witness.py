"""What a process wrote down before it was killed, and what is concluded from it."""

from __future__ import annotations

import hashlib
import os
import resource
import signal
import time
from pathlib import Path

from chaos import witness
from chaos.evidence import read_witnesses
from chaos.orders import Deed, Order
from chaos.points import Role
from chaos.processes import Child
from chaos.witness import Step, Witness
from providers.exchange import TokenRequest


def child_with(
    tmp_path: Path,
    *steps: tuple[Step, int],
    deed: Deed = Deed.DIE,
    exit_code: int = -signal.SIGKILL,
    ended: float,
) -> Child:
    """A dead worker that took these steps, each with its epoch, about account 7."""
    path = tmp_path / f"{len(list(tmp_path.iterdir()))}.witness"
    seen = Witness(path)
    for step, epoch in steps:
        seen.note(step, 7, epoch, "f" * 64 if step is Step.SENT else "-")
    order = Order(0, Role.WORKER, {}, "", str(path), deed=deed)
    return Child(order, 0.0, exit_code=exit_code, ended=ended)


def test_a_process_that_is_killed_has_written_all_that_it_did(tmp_path: Path) -> None:
    path = tmp_path / "one.witness"
    pid = os.fork()
    if pid == 0:
        # A full disk, as far as this process is concerned.
        seen = Witness(path)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        for epoch in range(1000):
            seen.note(Step.SENT, 7, epoch, "f" * 64)
        os.kill(os.getpid(), signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    lines = list(witness.read(path))
    assert [(line.step, line.account_id, line.epoch) for line in lines] == [
        (Step.SENT, 7, epoch) for epoch in range(1000)
    ]
    assert abs(lines[-1].at - time.time()) < 60


def test_a_line_that_death_cut_off_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "one.witness"
    path.write_bytes(b"1.5 sent 7 1 -\n1.6 receiv" + bytes(100))
    assert [line.at for line in witness.read(path)] == [1.5]


def test_a_process_that_died_before_it_had_a_witness_did_nothing(tmp_path: Path) -> None:
    assert list(witness.read(tmp_path / "none")) == []


def test_the_token_presented_is_known_by_its_fingerprint_only() -> None:
    request = TokenRequest("POST", "http://localhost", {}, b"grant_type=refresh_token&refresh_token=a%2Fb")
    assert witness.fingerprint(request) == hashlib.sha256(b"a/b").hexdigest()


def test_what_was_sent_and_not_kept_is_gone_with_its_process(tmp_path: Path) -> None:
    child = child_with(
        tmp_path, (Step.SENT, 1), (Step.JOURNALLED, 1), (Step.SENT, 2), (Step.RECEIVED, 2), ended=9e9
    )
    [[kept, unkept]] = read_witnesses([child]).tokens.values()
    assert (kept.saved is not None, kept.gone) == (True, None)
    assert (unkept.saved, unkept.gone) == (None, 9e9)


def test_a_process_that_ended_in_good_order_has_no_excuse_for_what_it_did_not_save(tmp_path: Path) -> None:
    child = child_with(tmp_path, (Step.SENT, 1), (Step.RECEIVED, 1), exit_code=0, ended=9e9)
    [[presentation]] = read_witnesses([child]).tokens.values()
    assert (presentation.saved, presentation.gone) == (None, None)


def test_a_process_that_lives_and_gave_up_before_the_time_was_over_has_no_excuse(tmp_path: Path) -> None:
    child = child_with(tmp_path, (Step.SENT, 1), (Step.UNANSWERED, 1), exit_code=0, ended=9e9)
    [[presentation]] = read_witnesses([child]).tokens.values()
    assert presentation.gone is None


def test_an_answer_that_the_provider_cut_off_was_in_nobodys_hands(tmp_path: Path) -> None:
    child = child_with(tmp_path, (Step.SENT, 1), (Step.UNANSWERED, 1), exit_code=0, ended=9e9)
    [[presentation]] = read_witnesses([child], [(0.0, 9e9)]).tokens.values()
    assert presentation.gone is not None


def test_a_frozen_process_held_what_it_saved_later_for_too_long(tmp_path: Path) -> None:
    steps = (Step.SENT, 1), (Step.STRUCK, 0), (Step.JOURNALLED, 1)
    child = child_with(tmp_path, *steps, deed=Deed.FREEZE, ended=9e9)
    [[presentation]] = read_witnesses([child]).tokens.values()
    assert presentation.gone is not None
    assert presentation.saved is not None
    assert presentation.gone <= presentation.saved < 9e9


def test_what_another_thread_did_while_its_process_froze_is_as_good_as_frozen(tmp_path: Path) -> None:
    steps = (Step.STRUCK, 0), (Step.SENT, 1), (Step.JOURNALLED, 1)
    child = child_with(tmp_path, *steps, deed=Deed.FREEZE, ended=9e9)
    [[presentation]] = read_witnesses([child]).tokens.values()
    assert presentation.gone is not None
