"""A good answer that lost a race is the last hope of its account, and is tried before a rejection is believed."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from sqlalchemy import text

from store import candidates, settlement
from tests.support.builders import answer
from tests.support.fleet import Fleet, eventually
from tokenfleet.jobs import AccountId, Epoch
from tokenfleet_client.envelope import access_token_binding, refresh_token_binding

DEAD = "a-token-that-the-server-never-issued"


@pytest.fixture
def account_id(fleet: Fleet) -> AccountId:
    [account_id] = fleet.connect("customer")
    return account_id


def lose_races(fleet: Fleet, account_id: AccountId, *refresh_tokens: str) -> None:
    """Let another answer win, and keep these: what Postgres holds then is nothing the server would accept."""
    late = [
        answer(fleet.vault, account_id, epoch=epoch, generation=1, refresh_token=token)
        for epoch, token in enumerate(refresh_tokens, start=11)
    ]
    access = fleet.vault.access.seal("an-access-token", access_token_binding(account_id, 2))
    sealed = fleet.vault.refresh.seal(DEAD, refresh_token_binding(account_id, 2))
    with fleet.engine.begin() as connection:
        connection.execute(
            text(
                "UPDATE tokenfleet.token_sets "
                "SET generation = 2, epoch = 10, refresh_token = :sealed, access_token = :access"
            ),
            {"sealed": sealed, "access": access},
        )
        result = settlement.save_refreshed(connection, late, actor="late worker")
    assert not result.saved
    assert result.candidates == ({account_id} if late else set())


def waiting(fleet: Fleet) -> Sequence[int]:
    return fleet.column("SELECT epoch FROM tokenfleet.token_candidates ORDER BY epoch")


def test_a_candidate_that_proves_to_be_the_live_one_spares_the_customer_a_sign_in(
    fleet: Fleet, account_id: AccountId
) -> None:
    lose_races(fleet, account_id, fleet.row(account_id).refresh_token)
    with fleet.worker() as worker:
        worker.run(fleet.claim())
        promoted = fleet.row(account_id)
        assert (promoted.status, promoted.generation, promoted.claimed) == ("active", 3, False)
        worker.run(fleet.claim())
    assert fleet.row(account_id).generation == 4
    assert fleet.strays() == []
    assert waiting(fleet) == []
    assert fleet.told(account_id) == []
    assert fleet.events(account_id) == [
        "refresh.lost_race",
        "refresh.candidate_promoted",
        "refresh.succeeded",
    ]
    assert fleet.server.ledger().presented_twice == 0


def test_the_newest_candidate_is_tried_and_then_the_customer_is_told_once(
    fleet: Fleet, account_id: AccountId
) -> None:
    lose_races(fleet, account_id, "one-that-is-dead", "another-that-is-dead")
    with fleet.worker() as worker:
        for _ in range(2):
            worker.run(fleet.claim())
    row = fleet.row(account_id)
    assert (row.status, row.status_reason, row.next_refresh_in) == ("needs_reauth", "invalid_grant", None)
    assert fleet.told(account_id) == ["integrated_account:authentication_error"]
    assert waiting(fleet) == [11]
    assert fleet.server.ledger().rejected == 2


def test_a_candidate_that_holds_the_rejected_token_itself_is_not_presented_again(
    fleet: Fleet, account_id: AccountId
) -> None:
    lose_races(fleet, account_id, DEAD)
    with fleet.worker() as worker:
        worker.run(fleet.claim())
    assert fleet.row(account_id).status == "needs_reauth"
    assert fleet.server.ledger().rejected == 1
    assert waiting(fleet) == []


def test_a_candidate_that_cannot_be_opened_is_passed_over_and_kept(
    fleet: Fleet, account_id: AccountId
) -> None:
    lose_races(fleet, account_id, "sealed-for-another-place")
    with fleet.engine.begin() as connection:
        connection.execute(text("UPDATE tokenfleet.token_candidates SET generation = generation + 1"))
    with fleet.worker() as worker:
        worker.run(fleet.claim())
    assert fleet.row(account_id).status == "needs_reauth"
    assert waiting(fleet) == [11]


def test_a_candidate_that_comes_after_the_customer_was_told_brings_the_account_back(
    fleet: Fleet, account_id: AccountId
) -> None:
    live = fleet.row(account_id).refresh_token
    lose_races(fleet, account_id, DEAD)
    with fleet.worker() as worker:
        worker.run(fleet.claim())
        assert fleet.row(account_id).status == "needs_reauth"
        late = answer(fleet.vault, account_id, epoch=12, generation=1, refresh_token=live)
        with fleet.engine.begin() as connection:
            settlement.save_refreshed(connection, [late], actor="later worker")
        eventually(lambda: fleet.row(account_id).next_refresh_in is not None, what="housekeeping has seen it")
        assert fleet.row(account_id).status == "needs_reauth", "it is verified first"
        worker.run(fleet.claim())
    assert fleet.row(account_id).status == "active"
    assert fleet.strays() == []
    assert fleet.told(account_id) == [
        "integrated_account:authentication_error",
        "integrated_account:reactivated",
    ]


def test_a_candidate_that_comes_after_the_winner_was_renewed_is_never_presented(
    fleet: Fleet, account_id: AccountId
) -> None:
    """It may be what the winner's chain has spent meanwhile."""
    lose_races(fleet, account_id)
    with fleet.engine.begin() as connection:
        renewed = answer(fleet.vault, account_id, epoch=12, generation=2, refresh_token=DEAD)
        settlement.save_refreshed(connection, [renewed], actor="worker")
        late = answer(fleet.vault, account_id, epoch=11, generation=1, refresh_token="spent-by-the-winner")
        assert settlement.save_refreshed(connection, [late], actor="late worker").candidates
    fleet.make_due(account_id)
    with fleet.worker() as worker:
        worker.run(fleet.claim())
    assert fleet.row(account_id).status == "needs_reauth"
    assert fleet.server.ledger().rejected == 1


def test_after_a_new_sign_in_nothing_of_the_grant_before_comes_back(
    fleet: Fleet, account_id: AccountId
) -> None:
    """The customer may have signed in as somebody else, and the provider may still honour the old grant."""
    lose_races(fleet, account_id, fleet.row(account_id).refresh_token)
    with fleet.engine.begin() as connection:
        connection.execute(text("UPDATE tokenfleet.token_sets SET epoch = 0"))
    with fleet.worker() as worker:
        worker.run(fleet.claim())
    with fleet.engine.begin() as connection:
        assert candidates.deposed(connection) == []
        assert candidates.prune(connection) == 1
    assert fleet.row(account_id).status == "needs_reauth"
    assert fleet.server.ledger().rejected == 1


def test_a_paused_account_is_not_brought_back_by_a_candidate(fleet: Fleet, account_id: AccountId) -> None:
    lose_races(fleet, account_id, fleet.row(account_id).refresh_token)
    with fleet.engine.begin() as connection:
        connection.execute(text("UPDATE tokenfleet.accounts SET status = 'paused'"))
        connection.execute(text("UPDATE tokenfleet.refresh_schedule SET next_refresh_at = NULL"))
        assert candidates.deposed(connection) == []


def test_a_candidate_goes_once_the_winner_has_been_renewed(fleet: Fleet, account_id: AccountId) -> None:
    lose_races(fleet, account_id, "the-spare-one")
    with fleet.engine.begin() as connection:
        assert candidates.prune(connection) == 0
        newer = answer(fleet.vault, account_id, epoch=13, generation=2)
        assert settlement.save_refreshed(connection, [newer], actor="worker").saved == {account_id}
        assert candidates.of_account(connection, account_id) == []
        assert candidates.prune(connection) == 1
    assert waiting(fleet) == []


def test_a_promotion_whose_generation_has_moved_changes_nothing(fleet: Fleet, account_id: AccountId) -> None:
    lose_races(fleet, account_id, fleet.row(account_id).refresh_token)
    with fleet.engine.begin() as connection:
        [candidate] = candidates.of_account(connection, account_id)
        promotion = candidates.Promotion(
            account_id=account_id,
            epoch=Epoch(12),
            generation=1,
            candidate_id=candidate.candidate_id,
            access_token=b"sealed",
            refresh_token=b"sealed",
            code="invalid_grant",
            job_id=None,
            duration_ms=None,
        )
        assert candidates.promote(connection, [promotion], actor="worker") == frozenset()
    assert fleet.row(account_id).generation == 2
    assert waiting(fleet) == [11]
