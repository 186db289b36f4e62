"""Started claims under which nothing was sent: given back, they were no attempt."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine

from store import returns
from store.keys import Vault
from tests.support.builders import (
    begin_attempt,
    claim,
    job_of,
    let_claims_expire,
    make_accounts,
    make_app,
    start,
    state_of,
)
from tokenfleet.jobs import AppId


@pytest.fixture
def app_id(engine: Engine, vault: Vault) -> AppId:
    return make_app(engine, vault)


@pytest.mark.parametrize("wait", [0.0, 60.0], ids=["at once", "after a wait"])
def test_who_was_given_back_is_claimed_again_as_if_nothing_had_been(
    engine: Engine, vault: Vault, app_id: AppId, wait: float
) -> None:
    [account_id] = make_accounts(engine, vault, app_id, 1)
    before = begin_attempt(engine, app_id, account_id)
    for _ in range(2):
        with engine.begin() as connection:
            returns.give_back(connection, [(account_id, before.epoch, wait)])
    if wait:
        assert claim(engine, app_id) == []
        let_claims_expire(engine)
    [again] = claim(engine, app_id)
    state = state_of(engine, vault, account_id)
    assert (state.unanswered, state.attempts, state.last_error) == (0, 0, None)
    [attempt] = start(engine, job_of(app_id, [again]))
    assert attempt.due_at == before.due_at
    assert not attempt.is_unsettled


def test_a_late_return_leaves_the_next_claim_alone(engine: Engine, vault: Vault, app_id: AppId) -> None:
    [account_id] = make_accounts(engine, vault, app_id, 1)
    stale = begin_attempt(engine, app_id, account_id)
    let_claims_expire(engine)
    claims = claim(engine, app_id)
    with engine.begin() as connection:
        returns.give_back(connection, [(account_id, stale.epoch, 60.0)])
    assert len(start(engine, job_of(app_id, claims))) == 1


def test_who_waits_keeps_the_place_in_the_window(engine: Engine, vault: Vault, app_id: AppId) -> None:
    """Nobody less urgent passes."""
    first, second, third = make_accounts(engine, vault, app_id, 3)
    attempt = begin_attempt(engine, app_id, first)
    let_claims_expire(engine)
    with engine.begin() as connection:
        returns.give_back(connection, [(first, attempt.epoch, 60.0)])
    assert [each.account_id for each in claim(engine, app_id, window=2)] == [second]
    assert [each.account_id for each in claim(engine, app_id, window=3)] == [third]
