"""Short histories that the model found, or that show that it would: each one a way to lose or spend a token."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.model.judge import Judge
from tests.model.machine import A_MOMENT, Acts, Then, settle
from tests.model.process import BUSY_STEPS, Trouble, WorkerProcess
from tests.model.provider import BRANCHING, LENIENT, STRICT, Call, Fate, Policy
from tests.model.world import Customer, Stage, World
from tokenfleet_client.contract import AccountStatus

FIRST, SECOND, THIRD = 0, 1, 2
GRACE_AND_MORE = 61.0


class History:
    """A world, what happens to it, and who judges it after every act."""

    def __init__(self, stage: Stage, policy: Policy) -> None:
        self.world: World = stage.new_world(policy)
        self.acts = Acts(self.world)
        self.judge = Judge(self.world)
        self.judge.look()

    def ask(self, place: int) -> Call:
        """Let a worker ask about everybody; returns the call about the first customer."""
        self.acts.schedule(place, BUSY_STEPS, Then.ON)
        self.judge.look()
        name = self.world.processes[place].name
        return next(call for call in self.world.server.waiting() if call.asker == name)

    def answer(self, call: Call) -> None:
        """Deliver an answer; nobody reads it yet."""
        self.world.server.deliver(call)
        self.judge.look()

    def read_and_journal(self, place: int, call: Call) -> None:
        """Let a worker go on until the answer is in its journal, and not one callback further."""
        go_on_until(self.world.processes[place], lambda: call.fate is Fate.KEPT)
        self.judge.look()

    def freeze(self, place: int) -> None:
        self.world.processes[place].frozen = True

    def thaw(self, place: int) -> None:
        self.acts.thaw(place, BUSY_STEPS)
        self.judge.look()

    def kill(self, place: int) -> None:
        self.world.processes[place].kill()
        self.judge.look()

    def take_over(self, place: int) -> None:
        """Claims expire, and a worker does all that there is to do."""
        self.acts.take_over(place, False)
        self.judge.look()

    def status(self) -> AccountStatus:
        """Return the first customer's status."""
        return self.judge.sight(self.customer).status

    @property
    def customer(self) -> Customer:
        return self.world.customers[0]

    def presentations(self) -> int:
        """Return how often the first customer's first token was presented."""
        calls = self.world.server.calls
        return sum((call.subject, call.ref.number) == (self.customer.subject, 0) for call in calls)

    def end(self) -> None:
        """Give everybody all the time that there is; judge the end."""
        settle(self.world, self.judge)


@pytest.fixture
def begin(stage: Stage) -> Iterator[Callable[[Policy], History]]:
    """Begin a history; it ends with the test."""
    histories: list[History] = []

    def begin(policy: Policy) -> History:
        histories.append(History(stage, policy))
        return histories[-1]

    yield begin
    for history in histories:
        history.world.close()


def go_on_until(process: WorkerProcess, reached: Callable[[], bool]) -> None:
    while not reached():
        assert process.run(1), "it never comes to that"


Begin = Callable[[Policy], History]


def test_an_answer_in_a_dead_workers_journal_is_saved_before_its_account_is_asked_about_again(
    begin: Begin,
) -> None:
    history = begin(STRICT)
    call = history.ask(FIRST)
    history.answer(call)
    history.read_and_journal(FIRST, call)
    history.kill(FIRST)
    history.take_over(SECOND)
    assert history.presentations() == 1
    history.end()
    assert history.status() is AccountStatus.ACTIVE


def test_an_answer_that_died_unread_costs_one_replay_and_then_the_customer_is_told(begin: Begin) -> None:
    """Physics: nobody can know that the token is spent."""
    history = begin(STRICT)
    history.answer(history.ask(FIRST))
    history.kill(FIRST)
    history.take_over(SECOND)
    assert history.presentations() == 2
    assert history.world.server.authority.ledger.counters.presented_twice == 0
    assert history.status() is AccountStatus.NEEDS_REAUTH
    history.end()


def test_an_answer_in_a_frozen_siblings_journal_keeps_its_token_from_being_presented_again(
    begin: Begin,
) -> None:
    history = begin(STRICT)
    call = history.ask(FIRST)
    history.answer(call)
    history.read_and_journal(FIRST, call)
    history.freeze(FIRST)
    history.take_over(SECOND)
    assert history.presentations() == 1
    history.thaw(FIRST)
    history.end()
    assert history.status() is AccountStatus.ACTIVE


def test_an_answer_that_a_sibling_cannot_save_keeps_its_token_from_being_presented_again(
    begin: Begin,
) -> None:
    """Postgres is away for one worker only, its claims expire, and Redis is wiped: no lease is left either."""
    history = begin(STRICT)
    call = history.ask(FIRST)
    history.world.processes[FIRST].troubles.extend([Trouble.REFUSED] * 500)
    history.answer(call)
    history.acts.take_over(SECOND, True)
    history.judge.look()
    assert history.presentations() == 1
    history.end()


def test_a_candidate_is_tried_before_the_customer_is_told_to_sign_in_again(begin: Begin) -> None:
    """The provider read the first request last, and its answer ended the one that Postgres has."""
    history = begin(BRANCHING)
    first = history.ask(FIRST)
    history.freeze(FIRST)
    history.take_over(SECOND)
    history.answer(first)
    history.thaw(FIRST)
    assert history.judge.sight(history.customer).candidates == {first.successor}
    history.world.pass_time(GRACE_AND_MORE)
    history.acts.refresh(THIRD)
    history.judge.look()
    assert history.status() is AccountStatus.ACTIVE
    history.end()


def test_a_frozen_adopter_does_not_hold_up_its_siblings(begin: Begin) -> None:
    """It has locked the journals' directory, and every other worker waits for it before every job."""
    history = begin(STRICT)
    call = history.ask(FIRST)
    history.answer(call)
    history.read_and_journal(FIRST, call)
    history.kill(FIRST)
    adopter = history.world.processes[SECOND]
    adopter.keep_house()
    go_on_until(adopter, lambda: adopter.adopting)
    history.freeze(SECOND)
    history.take_over(THIRD)
    history.world.pass_time(A_MOMENT)
    asked = {
        call.subject
        for call in history.world.server.calls
        if call.asker == history.world.processes[THIRD].name
    }
    assert asked, "the others' accounts are not refreshed either"


def test_a_late_answer_of_a_thawed_worker_is_verified_before_the_account_is_well_again(begin: Begin) -> None:
    history = begin(LENIENT)
    history.answer(history.ask(FIRST))
    history.freeze(FIRST)
    history.take_over(SECOND)
    assert history.status() is AccountStatus.NEEDS_REAUTH
    history.thaw(FIRST)
    assert history.status() is AccountStatus.NEEDS_REAUTH
    history.acts.refresh(THIRD)
    history.judge.look()
    assert history.status() is AccountStatus.ACTIVE
    history.end()


def test_a_late_answer_that_proves_dead_bothers_nobody_again(begin: Begin) -> None:
    """The provider has ended the whole grant for the repetition."""
    history = begin(STRICT)
    history.answer(history.ask(FIRST))
    history.freeze(FIRST)
    history.take_over(SECOND)
    history.thaw(FIRST)
    history.acts.refresh(THIRD)
    history.judge.look()
    assert history.status() is AccountStatus.NEEDS_REAUTH
    history.end()


def test_a_thawed_worker_does_not_ask_with_a_claim_that_has_expired(begin: Begin) -> None:
    history = begin(STRICT)
    history.acts.schedule(FIRST, 0, Then.ON)
    worker = history.world.processes[FIRST]
    go_on_until(worker, lambda: bool(history.world.leases()))
    history.freeze(FIRST)
    history.take_over(SECOND)
    history.thaw(FIRST)
    assert {call.asker for call in history.world.server.calls} == {history.world.processes[SECOND].name}
    history.end()


@pytest.mark.parametrize("trouble", Trouble)
def test_an_answer_whose_commit_nobody_can_vouch_for_is_written_once(begin: Begin, trouble: Trouble) -> None:
    history = begin(STRICT)
    call = history.ask(FIRST)
    history.answer(call)
    history.read_and_journal(FIRST, call)
    history.world.processes[FIRST].troubles.append(trouble)
    history.world.pass_time(A_MOMENT)
    history.judge.look()
    assert history.judge.sight(history.customer).held == call.successor
    history.end()
    assert history.presentations() == 1


def test_an_answer_to_the_grant_before_the_reconnect_overwrites_nothing(begin: Begin) -> None:
    history = begin(STRICT)
    call = history.ask(FIRST)
    history.world.server.decide(call)
    history.world.sign_in_again(history.customer)
    history.world.import_pending(history.customer)
    history.answer(call)
    history.world.run_all()
    history.judge.look()
    sight = history.judge.sight(history.customer)
    assert (sight.held.family, sight.held.number) == (len(history.world.customers), 0)
    assert sight.candidates == {call.successor}
    history.end()


def test_a_late_answer_to_the_grant_before_the_reconnect_never_comes_back(begin: Begin) -> None:
    """The new grant dies, too; the customer may have signed in as somebody else that time."""
    history = begin(LENIENT)
    call = history.ask(FIRST)
    history.world.server.decide(call)
    history.world.sign_in_again(history.customer)
    history.world.import_pending(history.customer)
    history.answer(call)
    history.world.run_all()
    renewed = history.judge.sight(history.customer).held
    history.world.sign_in_again(history.customer)
    history.take_over(SECOND)
    sight = history.judge.sight(history.customer)
    assert (sight.status, sight.held) == (AccountStatus.NEEDS_REAUTH, renewed)


def test_a_rejection_of_the_grant_before_the_reconnect_flips_nobody(begin: Begin) -> None:
    history = begin(STRICT)
    call = history.ask(FIRST)
    history.world.sign_in_again(history.customer)
    history.world.import_pending(history.customer)
    history.answer(call)
    history.world.run_all()
    history.judge.look()
    assert history.world.server.authority.ledger.counters.presented_twice == 0
    assert history.status() is AccountStatus.ACTIVE
    history.end()


def test_a_message_that_comes_twice_is_worked_on_once_though_redis_was_wiped_in_between(begin: Begin) -> None:
    history = begin(STRICT)
    call = history.ask(FIRST)
    history.acts.deliver_again(0, SECOND, True, BUSY_STEPS)
    history.judge.look()
    history.answer(call)
    history.end()
    assert history.presentations() == 1
