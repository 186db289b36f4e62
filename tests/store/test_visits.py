"""Probing visits in the schedule: who is claimed first, and what an import plans."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, text

from store import parking, schedule, settlement, visits
from store.import_rules import ProviderRules
from store.keys import Vault
from tests.store.test_imports import RULES, Desk
from tests.support.builders import (
    ACTOR,
    CLAIM,
    JOB_ID,
    answer,
    begin_attempt,
    claim,
    column,
    job_of,
    let_claims_expire,
    make_account,
    make_app,
    now,
    park,
    start,
    state_of,
)
from tests.support.racing import in_background, wait_until_blocked
from tokenfleet.jobs import AccountId
from tokenfleet.lifetimes import Lifetimes
from tokenfleet.tokens import Margins

DAY = timedelta(days=1)


def make_probing(engine: Engine, *account_ids: AccountId) -> None:
    with engine.begin() as connection:
        connection.execute(
            text("UPDATE tokenfleet.refresh_schedule SET probing = true WHERE account_id = ANY (:ids)"),
            {"ids": list(account_ids)},
        )


def probing(engine: Engine, account_id: AccountId) -> bool:
    [value] = column(
        engine, "SELECT probing FROM tokenfleet.refresh_schedule WHERE account_id = :id", id=account_id
    )
    return bool(value)


@pytest.mark.parametrize(("count", "window"), [(2, 100), (100, 2)])
def test_refreshes_go_before_probes_however_long_those_have_waited(
    engine: Engine, vault: Vault, count: int, window: int
) -> None:
    """After downtime there may be more overdue probes than an app's window holds."""
    app_id = make_app(engine, vault)
    waiting = [make_account(engine, vault, app_id, due_in=timedelta(hours=-2)) for _ in range(3)]
    make_probing(engine, *waiting)
    urgent = [make_account(engine, vault, app_id, due_in=timedelta(seconds=-each)) for each in (1, 2)]
    claims = claim(engine, app_id, count=count, window=window)
    assert [each.account_id for each in claims] == urgent[::-1]
    rest = [each.account_id for each in claim(engine, app_id)]
    assert sorted(rest) == sorted(waiting)


def test_a_probe_is_turned_into_a_refresh_only_under_a_claim_that_is_ours_still(
    engine: Engine, vault: Vault
) -> None:
    app_id = make_app(engine, vault)
    account_id = make_account(engine, vault, app_id)
    make_probing(engine, account_id)
    first = begin_attempt(engine, app_id, account_id)

    def turn(**changes: Any) -> bool:
        arguments = {"account_id": account_id, "epoch": first.epoch, "generation": first.generation} | changes
        with engine.begin() as connection:
            return visits.turn_to_refresh(
                connection, **arguments, claim=CLAIM, code="http_401", job_id=JOB_ID, actor="test"
            )

    assert not turn(generation=first.generation + 1)
    assert not turn(epoch=first.epoch + 1)
    let_claims_expire(engine)
    assert not turn()
    second = begin_attempt(engine, app_id, account_id)
    assert not turn()
    assert probing(engine, account_id)
    assert turn(epoch=second.epoch)
    assert not probing(engine, account_id)


def test_a_paused_account_is_not_turned_to_a_refresh(engine: Engine, vault: Vault) -> None:
    """It left the schedule while its probe was under way."""
    app_id = make_app(engine, vault)
    account_id = make_account(engine, vault, app_id)
    make_probing(engine, account_id)
    attempt = begin_attempt(engine, app_id, account_id)
    with engine.begin() as connection:
        connection.execute(text("UPDATE tokenfleet.refresh_schedule SET next_refresh_at = NULL"))
        assert not visits.turn_to_refresh(
            connection,
            account_id,
            attempt.epoch,
            attempt.generation,
            claim=CLAIM,
            code="http_401",
            job_id=JOB_ID,
            actor="test",
        )
        visits.settle(connection, [_visited(attempt)], actor="test")
    state = state_of(engine, vault, account_id)
    assert (state.next_refresh_at, state.claimed_until) == (None, None)


def _visited(attempt: schedule.Attempt) -> visits.Visited:
    return visits.Visited(
        account_id=attempt.account_id,
        epoch=attempt.epoch,
        generation=attempt.generation,
        next_refresh_at=now() + DAY,
        probing=True,
        was_probing=True,
        kind="probe.alive",
        code="http_200",
        alive_at=now(),
        grant_ends_at=None,
        job_id=JOB_ID,
        duration_ms=20,
    )


def test_whoever_asks_for_a_refresh_gets_one_and_no_probe(engine: Engine, vault: Vault) -> None:
    app_id = make_app(engine, vault)
    account_id = make_account(engine, vault, app_id, due_in=DAY)
    make_probing(engine, account_id)
    with engine.begin() as connection:
        assert schedule.request_refresh(connection, [account_id]) == [account_id]
    assert not probing(engine, account_id)


def test_an_import_plans_the_first_visit_by_the_definition_and_begins_a_grant(
    engine: Engine, vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    never = Lifetimes(access_never_expires=True, probe_every=DAY)
    monkeypatch.setitem(RULES, "acme", ProviderRules(Margins(), lambda _variables: None, never))
    desk = Desk(engine, vault)
    line = {"provider": "acme", "external_id": "customer-1", "access_token": "a"}
    desk.bring(line | {"refresh_token": "first"})
    account_id = desk.account()
    assert probing(engine, account_id)
    due = desk.state().next_refresh_at
    assert due is not None
    assert DAY * 0.74 < due - now() <= DAY
    with engine.begin() as connection:
        connection.execute(
            text(
                "UPDATE tokenfleet.accounts SET granted_at = now() - interval '1 year', reauth_told_at = now()"
            )
        )
    desk.bring(line | {"refresh_token": "first", "tenant": "described"})
    still = (
        "SELECT reauth_told_at IS NOT NULL AND granted_at < now() - interval '1 day' FROM tokenfleet.accounts"
    )
    assert desk.one(still)
    desk.bring(line | {"refresh_token": "second"})
    renewed = (
        "SELECT reauth_told_at IS NULL AND granted_at > now() - interval '1 day' FROM tokenfleet.accounts"
    )
    assert desk.one(renewed)
    desk.bring({"provider": "acme", "external_id": "customer-2", "refresh_token": "alone"})
    assert not probing(engine, desk.account("customer-2"))


def test_a_visit_does_not_become_a_refresh_when_an_answer_lands_meanwhile(
    engine: Engine, vault: Vault
) -> None:
    """A worker that was frozen past its claim saves its answer while the next one finds the token dead."""
    app_id = make_app(engine, vault)
    account_id = make_account(engine, vault, app_id)
    begin_attempt(engine, app_id, account_id)
    let_claims_expire(engine)
    make_probing(engine, account_id)
    probed = begin_attempt(engine, app_id, account_id)

    def turn() -> bool:
        with engine.begin() as connection:
            return visits.turn_to_refresh(
                connection,
                account_id,
                probed.epoch,
                probed.generation,
                claim=CLAIM,
                code="http_401",
                job_id=JOB_ID,
                actor="test",
            )

    with engine.connect() as connection:
        transaction = connection.begin()
        late = answer(vault, account_id, epoch=1, generation=1)
        assert settlement.save_refreshed(connection, [late], actor=ACTOR).saved
        turned = in_background(turn)
        wait_until_blocked(engine)
        transaction.commit()
    assert turned.result(10) is False


@pytest.mark.parametrize("alive", [True, False], ids=["alive", "unclear"])
def test_a_sample_that_is_never_renewed_ends_its_incident_when_a_probe_finds_it_alive(
    engine: Engine, vault: Vault, alive: bool
) -> None:
    """Without a clear word another sample is taken in its turn."""
    app_id = make_app(engine, vault)
    sample, other = make_account(engine, vault, app_id), make_account(engine, vault, app_id)
    with engine.begin() as connection:
        incident = park(connection, app_id, sample, other)
        [claimed] = parking.claim_samples(connection, incident, [sample], claim=CLAIM)
    [attempt] = start(engine, job_of(app_id, [claimed]))
    assert (attempt.account_id, attempt.probing) == (sample, False)
    visit = replace(_visited(attempt), was_probing=False, clears=alive)
    for repeated in (False, True):
        with engine.begin() as connection:
            ended = visits.settle(connection, [visit], actor=ACTOR)
        assert [each.incident_id for each in ended] == ([incident] if alive and not repeated else [])
    state = state_of(engine, vault, sample)
    assert (state.next_refresh_at is not None) == alive
    assert (state.last_error is None) == alive
    members = column(
        engine, "SELECT account_id FROM tokenfleet.refresh_schedule WHERE incident_id IS NOT NULL ORDER BY 1"
    )
    assert members == ([other] if alive else [sample, other])
