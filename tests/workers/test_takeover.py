"""Who takes over an account first looks whether its answer is already on this disk."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import text

from sandbox.faults import FaultKind, FaultRule
from store import schedule, settlement
from store.answers import SavedTokens
from store.journal import Journal
from store.orphans import find
from tests.support.builders import answer, let_claims_expire, start
from tests.support.fleet import Fleet
from tokenfleet.jobs import AccountId, RefreshJob

NO_BIGINT = 2**63


@pytest.fixture
def sibling(fleet: Fleet) -> Iterator[Journal]:
    """The journal of a worker that lives and does nothing: frozen, or cut off from Postgres."""
    journal = Journal(fleet.settings.journal_dir, "sibling")
    yield journal
    journal.close()


def begin(fleet: Fleet, *subjects: str) -> list[AccountId]:
    """Connect ``subjects``, and let the sibling start their claims and sleep through them."""
    ids = fleet.connect(*subjects)
    for job in fleet.claim():
        assert len(start(fleet.engine, job)) == len(job.accounts)
    let_claims_expire(fleet.engine)
    return ids


def requests(fleet: Fleet) -> int:
    ledger = fleet.server.ledger()
    return ledger.refreshes + ledger.rejected


def test_an_answer_in_a_living_siblings_journal_is_saved_instead_of_asking_again(
    fleet: Fleet, sibling: Journal
) -> None:
    answered, lost = begin(fleet, "answered", "lost")
    sibling.append(answer(fleet.vault, answered, epoch=1, generation=1, refresh_token="the-successor"))
    with fleet.worker() as worker:
        worker.run(fleet.claim())
    row = fleet.row(answered)
    assert (row.generation, row.refresh_token, row.claimed) == (2, "the-successor", False)
    assert fleet.row(lost).generation == 2
    assert requests(fleet) == 1, "only the account without an answer was asked about"
    assert fleet.events(answered) == ["refresh.succeeded"]


def test_a_sibling_that_wakes_up_finds_its_answer_saved_and_no_race_lost(
    fleet: Fleet, sibling: Journal
) -> None:
    [account_id] = begin(fleet, "customer")
    late = answer(fleet.vault, account_id, epoch=1, generation=1)
    sibling.append(late)
    with fleet.worker() as worker:
        worker.run(fleet.claim())
    with fleet.engine.begin() as connection:
        result = settlement.save_refreshed(connection, [late], actor="sibling")
    assert result.repeated == {account_id}
    assert fleet.column("SELECT count(*) FROM tokenfleet.token_candidates") == [0]


def test_an_answer_of_an_older_generation_is_no_reason_not_to_ask(fleet: Fleet, sibling: Journal) -> None:
    [account_id] = begin(fleet, "customer")
    sibling.append(answer(fleet.vault, account_id, epoch=0, generation=0))
    with fleet.worker() as worker:
        worker.run(fleet.claim())
    assert requests(fleet) == 1
    assert fleet.strays() == []


def test_an_answer_that_postgres_refuses_keeps_its_account_from_being_asked(
    fleet: Fleet, sibling: Journal
) -> None:
    [account_id] = begin(fleet, "customer")
    refused = answer(fleet.vault, account_id, epoch=1, generation=1)
    sibling.append(replace(refused, duration_ms=NO_BIGINT))
    with fleet.worker() as worker:
        worker.run(fleet.claim())
    row = fleet.row(account_id)
    assert (row.generation, row.quarantined, row.claimed) == (1, True, False)
    assert requests(fleet) == 0


def test_an_account_whose_generation_moves_at_the_last_moment_is_not_asked(
    fleet: Fleet, sibling: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sibling writes its answer and drops its journal just before we look into it."""
    begin(fleet, "customer")

    def write_now(connection: object, job: RefreshJob, *, claim: timedelta) -> list[schedule.Attempt]:
        attempts = started(connection, job, claim=claim)  # type: ignore[arg-type]
        with fleet.engine.begin() as other:
            other.execute(text("UPDATE tokenfleet.token_sets SET generation = generation + 1"))
        return attempts

    started = schedule.start
    monkeypatch.setattr(schedule, "start", write_now)
    with fleet.worker() as worker:
        worker.run(fleet.claim())
    assert requests(fleet) == 0
    assert fleet.column("SELECT claimed_until IS NULL FROM tokenfleet.refresh_schedule") == [True]


def test_a_search_that_fails_costs_the_doubtful_accounts_a_claim_and_the_others_nothing(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> list[SavedTokens]:
        raise PermissionError("the journals cannot be read")

    [doubtful] = begin(fleet, "doubtful")
    [other] = fleet.connect("other")
    monkeypatch.setattr("workers.replay.find", fail)
    with fleet.worker() as worker:
        worker.run(fleet.claim())
        assert (fleet.row(doubtful).generation, fleet.row(other).generation) == (1, 2)
        assert requests(fleet) == 1
        assert not fleet.row(doubtful).claimed
        monkeypatch.undo()
        let_claims_expire(fleet.engine)
        worker.run(fleet.claim())
    assert fleet.row(doubtful).generation == 2
    assert fleet.strays() == []


def test_an_answer_that_was_lost_and_settled_so_is_no_reason_to_search(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A provider that hangs makes everybody's answers lost; only an attempt that was never settled is in doubt."""
    searches: list[object] = []

    def search(_: Path, wanted: object) -> list[SavedTokens]:
        searches.append(wanted)
        return []

    monkeypatch.setattr("workers.replay.find", search)
    [account_id] = fleet.connect("customer")
    fleet.server.add_faults(FaultRule(kind=FaultKind.RESET_BEFORE, count=2))
    with fleet.worker() as worker:
        worker.run(fleet.claim())
        assert fleet.row(account_id).unanswered > 0
        fleet.make_due(account_id)
        worker.run(fleet.claim())
    assert fleet.row(account_id).generation == 2
    assert searches == []


def test_a_journal_that_goes_away_during_the_search_is_passed_over(
    fleet: Fleet, sibling: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = fleet.settings.journal_dir / "gone"
    gone.mkdir()
    sibling.append(answer(fleet.vault, AccountId(1), epoch=1, generation=4))
    listed = Path.iterdir

    def vanish(directory: Path) -> Iterator[Path]:
        if directory == gone:
            gone.rmdir()
        return listed(directory)

    monkeypatch.setattr(Path, "iterdir", vanish)
    assert len(find(fleet.settings.journal_dir, {AccountId(1): 4})) == 1


def test_journals_are_searched_by_account_and_generation_whoever_owns_them(
    fleet: Fleet, sibling: Journal
) -> None:
    first, second, third = (AccountId(number) for number in (1, 2, 3))
    wanted = [answer(fleet.vault, first, epoch=epoch, generation=4) for epoch in (7, 5)]
    for each in wanted:
        sibling.append(each)
    sibling.append(answer(fleet.vault, second, epoch=1, generation=3))
    sibling.append(answer(fleet.vault, third, epoch=1, generation=4))
    found = find(fleet.settings.journal_dir, {first: 4, second: 4})
    assert [(each.account_id, each.epoch) for each in found] == [(first, 5), (first, 7)]
    assert find(fleet.settings.journal_dir / "absent", {first: 4}) == []
