"""Status moves: only legal ones, each with one history row and one event, whoever competes."""

from __future__ import annotations

from collections import Counter
from functools import partial

import pytest
from sqlalchemy import Engine, text

from store import transitions
from store.keys import Vault
from tests.support.builders import (
    ACTOR,
    JOB_ID,
    begin_attempt,
    claim,
    column,
    history_of,
    let_claims_expire,
    make_account,
    make_accounts,
    make_app,
    now,
    state_of,
    told_about,
)
from tests.support.racing import race
from tokenfleet.account import TRANSITIONS, Trigger, transition
from tokenfleet.jobs import AccountId, AppId, Epoch
from tokenfleet_client.contract import AccountStatus


@pytest.fixture
def app_id(engine: Engine, vault: Vault) -> AppId:
    return make_app(engine, vault)


def apply(
    engine: Engine, trigger: Trigger, *account_ids: AccountId, reason: str | None = None
) -> frozenset[AccountId]:
    with engine.begin() as connection:
        transitions.lock(connection, account_ids)
        return transitions.apply(connection, trigger, account_ids, actor=ACTOR, reason=reason)


@pytest.mark.parametrize("trigger", Trigger)
@pytest.mark.parametrize("status", AccountStatus)
def test_every_pair_of_status_and_trigger_does_what_the_table_says_and_nothing_else(
    engine: Engine, vault: Vault, app_id: AppId, status: AccountStatus, trigger: Trigger
) -> None:
    account_id = make_account(engine, vault, app_id, status=status)
    move = transition(status, trigger)

    moved = apply(engine, trigger, account_id, reason="because")

    state = state_of(engine, vault, account_id)
    if move is None:
        assert moved == frozenset()
        assert (state.status, state.status_reason) == (status, None)
        assert history_of(engine, account_id) == []
        assert told_about(engine, account_id) == []
    else:
        assert moved == {account_id}
        assert (state.status, state.status_reason) == (move.target, "because")
        assert history_of(engine, account_id) == [f"account.{trigger.value}"]
        assert told_about(engine, account_id) == ([] if move.event is None else [move.event.value])


def test_a_batch_moves_each_account_from_where_it_stands(engine: Engine, vault: Vault, app_id: AppId) -> None:
    members = {status: make_account(engine, vault, app_id, status=status) for status in AccountStatus}

    moved = apply(engine, Trigger.REVOKED, *members.values())

    movable = {status for status, trigger in TRANSITIONS if trigger is Trigger.REVOKED}
    assert moved == {members[status] for status in movable}
    assert {state_of(engine, vault, each).status for each in members.values()} == {AccountStatus.REVOKED}


def test_one_account_moves_one_step_at_a_time(engine: Engine, vault: Vault, app_id: AppId) -> None:
    """A chain of legal moves in one table must not carry an account from its first to its last status."""
    account_id = make_account(engine, vault, app_id, status=AccountStatus.CONNECTING)

    apply(engine, Trigger.GRANT_REJECTED, account_id, account_id)

    assert state_of(engine, vault, account_id).status is AccountStatus.NEEDS_REAUTH
    assert len(told_about(engine, account_id)) == 1


def test_the_event_carries_what_the_contract_names_and_no_token(
    engine: Engine, vault: Vault, app_id: AppId
) -> None:
    account_id = make_account(
        engine,
        vault,
        app_id,
        external_id="customer-42",
        tenant="tenant-7",
        metadata={"note": "internal"},
        access_token="planted-access",
        refresh_token="planted-refresh",
    )

    apply(engine, Trigger.GRANT_REJECTED, account_id, reason="invalid_grant")

    with engine.connect() as connection:
        event = connection.execute(text("SELECT * FROM tokenfleet.outbox")).one()
    assert event.event_type == "integrated_account:authentication_error"
    assert event.account_id == account_id
    assert event.payload == {
        "id": account_id,
        "integration_name": "acme",
        "external_id": "customer-42",
        "tenant": "tenant-7",
        "environment": "production",
        "status": "needs_reauth",
        "last_error": "invalid_grant",
    }
    assert "planted" not in str(column(engine, "SELECT o::text FROM tokenfleet.outbox o"))


def test_the_history_row_tells_who_did_what_and_why(engine: Engine, vault: Vault, app_id: AppId) -> None:
    account_id = make_account(engine, vault, app_id)
    with engine.begin() as connection:
        transitions.apply(
            connection,
            Trigger.GRANT_REJECTED,
            [account_id],
            actor="worker-1",
            reason="rotation_lost",
            code="invalid_grant",
            epoch=Epoch(9),
            job_id=JOB_ID,
            duration_ms=321,
        )

    with engine.connect() as connection:
        row = connection.execute(text("SELECT * FROM tokenfleet.account_events")).one()
    assert (row.kind, row.code, row.epoch, row.job_id, row.duration_ms, row.actor) == (
        "account.grant_rejected",
        "invalid_grant",
        9,
        JOB_ID,
        321,
        "worker-1",
    )
    assert (row.status_from, row.status_to, row.detail) == (
        "active",
        "needs_reauth",
        {"reason": "rotation_lost"},
    )


def test_nothing_is_told_when_the_transaction_is_not_committed(
    engine: Engine, vault: Vault, app_id: AppId
) -> None:
    account_id = make_account(engine, vault, app_id)
    with engine.connect() as connection:
        transitions.apply(connection, Trigger.GRANT_REJECTED, [account_id], actor=ACTOR, reason="x")
        connection.rollback()

    assert told_about(engine, account_id) == []
    assert state_of(engine, vault, account_id).status is AccountStatus.ACTIVE


def test_a_transition_of_nobody_does_nothing(engine: Engine, vault: Vault) -> None:
    assert apply(engine, Trigger.REVOKED) == frozenset()
    assert apply(engine, Trigger.REVOKED, AccountId(12345)) == frozenset()


@pytest.mark.parametrize("trigger", [Trigger.GRANT_REJECTED, Trigger.REVOKED, Trigger.PAUSED])
def test_eight_that_compete_for_a_transition_perform_it_once(
    engine: Engine, vault: Vault, app_id: AppId, trigger: Trigger
) -> None:
    accounts = make_accounts(engine, vault, app_id, 5)

    moved = race([partial(apply, engine, trigger, *accounts)] * 8)

    assert Counter(each for share in moved for each in share) == Counter(accounts)
    event = TRANSITIONS[AccountStatus.ACTIVE, trigger].event
    for account_id in accounts:
        assert history_of(engine, account_id) == [f"account.{trigger.value}"]
        assert len(told_about(engine, account_id)) == (0 if event is None else 1)


def test_of_competing_transitions_each_that_happens_is_told_once_and_in_a_legal_order(
    engine: Engine, vault: Vault, app_id: AppId
) -> None:
    accounts = make_accounts(engine, vault, app_id, 4)
    triggers = [Trigger.GRANT_REJECTED, Trigger.PAUSED, Trigger.RECONNECTED, Trigger.REVOKED] * 2

    race([partial(apply, engine, trigger, *accounts) for trigger in triggers])

    for account_id in accounts:
        with engine.connect() as connection:
            steps = connection.execute(
                text("""
                    SELECT status_from, status_to, substr(kind, length('account.') + 1) AS trigger
                    FROM tokenfleet.account_events WHERE account_id = :id ORDER BY at
                """),
                {"id": account_id},
            ).all()
        status, events = AccountStatus.ACTIVE, []
        for step in steps:
            move = TRANSITIONS[AccountStatus(step.status_from), Trigger(step.trigger)]
            assert (status, move.target) == (step.status_from, step.status_to)
            status = move.target
            events += [] if move.event is None else [move.event.value]
        assert told_about(engine, account_id) == events
        assert state_of(engine, vault, account_id).status is status


def test_a_revocation_is_not_missed_because_the_account_moves_meanwhile(
    engine: Engine, vault: Vault, app_id: AppId
) -> None:
    accounts = [
        make_account(
            engine, vault, app_id, status=AccountStatus.NEEDS_REAUTH if odd else AccountStatus.ACTIVE
        )
        for odd in [True, False] * 10
    ]
    movers = [Trigger.RECONNECTED, Trigger.GRANT_REJECTED, Trigger.RECONNECTED, Trigger.GRANT_REJECTED]

    race([partial(apply, engine, trigger, *accounts) for trigger in [*movers, Trigger.REVOKED]])

    for account_id in accounts:
        assert "account.revoked" in history_of(engine, account_id)


# Pause and resume


def test_a_paused_account_is_off_the_schedule_until_it_is_resumed_and_then_due_at_once(
    engine: Engine, vault: Vault, app_id: AppId
) -> None:
    account_id = make_account(engine, vault, app_id)
    with engine.begin() as connection:
        assert transitions.pause(connection, [account_id], actor=ACTOR, reason="audit") == {account_id}
        assert transitions.pause(connection, [account_id], actor=ACTOR, reason="audit") == frozenset()

    paused = state_of(engine, vault, account_id)
    assert (paused.status, paused.status_reason, paused.next_refresh_at) == (
        AccountStatus.PAUSED,
        "audit",
        None,
    )
    assert claim(engine, app_id) == []

    with engine.begin() as connection:
        assert transitions.resume(connection, [account_id], actor=ACTOR) == {account_id}
        assert transitions.resume(connection, [account_id], actor=ACTOR) == frozenset()

    resumed = state_of(engine, vault, account_id)
    assert resumed.status is AccountStatus.ACTIVE
    assert resumed.next_refresh_at is not None
    assert resumed.next_refresh_at <= now()
    assert [each.account_id for each in claim(engine, app_id)] == [account_id]


def test_a_pause_touches_only_accounts_that_were_running(engine: Engine, vault: Vault, app_id: AppId) -> None:
    running = make_account(engine, vault, app_id)
    ended = make_account(engine, vault, app_id, status=AccountStatus.REVOKED)
    with engine.begin() as connection:
        moved = transitions.pause(connection, [running, ended], actor=ACTOR, reason=None)

    assert moved == {running}
    assert state_of(engine, vault, ended).status is AccountStatus.REVOKED


def test_an_account_that_is_resumed_while_it_is_being_asked_about_is_not_asked_twice(
    engine: Engine, vault: Vault, app_id: AppId
) -> None:
    account_id = make_account(engine, vault, app_id)
    begin_attempt(engine, app_id, account_id)
    with engine.begin() as connection:
        transitions.pause(connection, [account_id], actor=ACTOR, reason=None)
        transitions.resume(connection, [account_id], actor=ACTOR)

    assert claim(engine, app_id) == [], "the claim of the attempt under way still stands"
    let_claims_expire(engine)
    assert len(claim(engine, app_id)) == 1


def test_pauses_and_resumes_of_many_accounts_in_any_order_do_not_deadlock(
    engine: Engine, vault: Vault, app_id: AppId
) -> None:
    accounts = make_accounts(engine, vault, app_id, 40)

    def pause(order: list[AccountId]) -> None:
        with engine.begin() as connection:
            transitions.pause(connection, order, actor=ACTOR, reason=None)

    def resume(order: list[AccountId]) -> None:
        with engine.begin() as connection:
            transitions.resume(connection, order, actor=ACTOR)

    orders = [accounts, accounts[::-1], accounts[20:] + accounts[:20]]
    race([partial(act, order) for act in (pause, resume) for order in orders])

    for account_id in accounts:
        state = state_of(engine, vault, account_id)
        assert (state.next_refresh_at is None) == (state.status is AccountStatus.PAUSED)
