"""The look right before the request: a frozen worker may wake up while its successor waits for a slot."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence

import pytest

from store import settlement
from store.journal import Journal
from store.schedule import Attempt
from tests.support.builders import answer, let_claims_expire, start
from tests.support.fleet import Fleet
from tokenfleet.jobs import AccountId
from workers.governor import Governor
from workers.takeover import Lookout


@pytest.fixture
def journal(fleet: Fleet) -> Iterator[Journal]:
    """That of a worker which is frozen."""
    journal = Journal(fleet.settings.journal_dir, "frozen")
    yield journal
    journal.close()


class Gate:
    """Holds every request of a worker at the governor, where a busy machine holds them too."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.waiting, self.open = threading.Event(), threading.Event()
        admit = Governor._admit

        async def held(governor: Governor, *args: object, **kwargs: object) -> object:
            self.waiting.set()
            await asyncio.to_thread(self.open.wait, 20)
            return await admit(governor, *args, **kwargs)  # type: ignore[arg-type]

        monkeypatch.setattr(Governor, "_admit", held)


def taken_over(fleet: Fleet) -> AccountId:
    """Connect an account whose first worker has started its claim and sleeps through it."""
    [account_id] = fleet.connect("customer")
    [job] = fleet.claim()
    assert start(fleet.engine, job)
    let_claims_expire(fleet.engine)
    return account_id


@pytest.mark.parametrize("where", ["its journal", "Postgres"])
def test_an_answer_that_is_saved_while_we_wait_for_a_slot_is_not_asked_for_again(
    fleet: Fleet, journal: Journal, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    account_id = taken_over(fleet)
    gate = Gate(monkeypatch)
    with fleet.worker() as worker:
        done = worker.submit(fleet.claim()[0])
        assert gate.waiting.wait(20)
        woken = answer(fleet.vault, account_id, epoch=1, generation=1, refresh_token="the successor")
        if where == "Postgres":
            with fleet.engine.begin() as connection:
                settlement.save_refreshed(connection, [woken], actor="frozen")
        else:
            journal.append(woken)
        gate.open.set()
        done.result(20)
    row = fleet.row(account_id)
    assert (row.generation, row.refresh_token, row.claimed) == (2, "the successor", False)
    ledger = fleet.server.ledger()
    assert (ledger.refreshes, ledger.rejected) == (0, 0)


def test_a_crowd_of_doubtful_accounts_shares_its_looks(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as a dead worker had in flight: each look reads every journal on this disk."""
    looks: list[int] = []
    answered = Lookout.answered

    async def counted(self: Lookout, attempts: Sequence[Attempt]) -> frozenset[AccountId]:
        looks.append(len(attempts))
        return await answered(self, attempts)

    monkeypatch.setattr(Lookout, "answered", counted)
    fleet.connect(*(f"customer-{number}" for number in range(40)))
    for job in fleet.claim():
        start(fleet.engine, job)
    let_claims_expire(fleet.engine)
    with fleet.worker() as worker:
        worker.run(fleet.claim())
    before_waiting, *right_before_asking = looks
    assert before_waiting == sum(right_before_asking) == 40
    assert len(right_before_asking) <= 4
    ledger = fleet.server.ledger()
    assert (ledger.refreshes, ledger.presented_twice) == (40, 0)


def test_who_has_no_doubtful_attempt_behind_it_pays_for_no_look(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []
    answered = Lookout.answered

    async def counted(self: Lookout, attempts: object) -> frozenset[AccountId]:
        found = await answered(self, attempts)  # type: ignore[arg-type]
        looks.append(len(found))
        return found

    monkeypatch.setattr(Lookout, "answered", counted)
    fleet.connect("one", "two")
    with fleet.worker() as worker:
        worker.run(fleet.claim())
        assert len(looks) == 1, "of the whole job, and without a statement"
        taken_over(fleet)
        worker.run(fleet.claim())
    assert len(looks) == 3
    assert fleet.server.ledger().presented_twice == 0
