"""Claims and the fence, raced on a real Postgres: nobody is claimed twice, and no epoch is started twice."""

from __future__ import annotations

import itertools
import random
import threading
from collections import Counter
from datetime import timedelta
from functools import partial
from typing import Final

import psycopg
import pytest
from sqlalchemy import Engine, text

from store import claiming, rejections, schedule, settlement, transitions
from store.claiming import Allowance, Claim
from store.engine import make_engine
from store.keys import Vault
from store.request_claims import claim_requested
from store.schedule import Attempt
from tests.support.builders import (
    ACTOR,
    CLAIM,
    HOUR,
    answer,
    begin_attempt,
    claim,
    column,
    deferral,
    job_of,
    let_claims_expire,
    make_account,
    make_accounts,
    make_app,
    make_due,
    make_many_accounts,
    now,
    rejection,
    start,
    state_of,
)
from tests.support.racing import in_background, race, wait_until_blocked
from tokenfleet.jobs import AccountId, AppId, Epoch, RefreshJob
from tokenfleet_client.contract import AccountStatus

SECOND: Final = timedelta(seconds=1)


@pytest.fixture
def app_id(engine: Engine, vault: Vault) -> AppId:
    return make_app(engine, vault)


def ids(claims: list[Claim]) -> list[AccountId]:
    return [each.account_id for each in claims]


def claim_until_nothing_is_due(engine: Engine, app_id: AppId, count: int) -> list[Claim]:
    found: list[Claim] = []
    while more := claim(engine, app_id, count=count):
        found += more
    return found


# Claims


def test_schedulers_that_race_divide_the_due_accounts_among_them(engine: Engine, vault: Vault) -> None:
    app_id = make_app(engine, vault)
    make_many_accounts(engine, app_id, 2000, due_from=-HOUR, due_to=-SECOND)

    shares = race([partial(claim_until_nothing_is_due, engine, app_id, 37)] * 4)

    claimed = Counter(itertools.chain.from_iterable(ids(share) for share in shares))
    assert len(claimed) == 2000
    assert set(claimed.values()) == {1}
    assert {each.epoch for share in shares for each in share} == {1}


def test_a_scheduler_does_not_wait_for_the_claims_that_another_is_making(
    engine: Engine, vault: Vault, app_id: AppId
) -> None:
    first, second = make_accounts(engine, vault, app_id, 2)
    with engine.begin() as uncommitted:
        theirs = claiming.claim_due(uncommitted, [Allowance(app_id, 1, 10)], claim=CLAIM)[app_id]
        with engine.begin() as connection:
            connection.execute(text("SET LOCAL lock_timeout = '10ms'"))
            ours = claiming.claim_due(connection, [Allowance(app_id, 10, 10)], claim=CLAIM)[app_id]

    assert (ids(theirs), ids(ours)) == ([first], [second])


def test_the_most_urgent_accounts_are_claimed_first(engine: Engine, vault: Vault, app_id: AppId) -> None:
    moments = [timedelta(minutes=-minutes) for minutes in range(9)]
    made = {
        moment: make_account(engine, vault, app_id, due_in=moment) for moment in random.sample(moments, 9)
    }

    claims = claim(engine, app_id, count=4)

    assert ids(claims) == [made[moment] for moment in sorted(moments)[:4]]
    assert [each.due_at for each in claims] == sorted(each.due_at for each in claims)


def test_accounts_that_are_not_due_or_not_scheduled_are_left_alone(
    engine: Engine, vault: Vault, app_id: AppId
) -> None:
    make_account(engine, vault, app_id, due_in=timedelta(seconds=20))
    make_account(engine, vault, app_id, due_in=None)
    make_account(engine, vault, app_id, status=AccountStatus.NEEDS_REAUTH)

    assert claim(engine, app_id) == []


def test_a_claim_moves_the_epoch_and_lasts_as_long_as_it_was_asked_for(
    engine: Engine, vault: Vault, app_id: AppId
) -> None:
    [account_id] = make_accounts(engine, vault, app_id, 1)
    before = now()

    [made] = claim(engine, app_id, lasting=timedelta(seconds=90))

    state = state_of(engine, vault, account_id)
    assert (made.epoch, state.claim_epoch, state.started_epoch) == (1, 1, 0)
    assert state.claimed_until is not None
    assert before + timedelta(seconds=89) < state.claimed_until < now() + timedelta(seconds=91)
    assert claim(engine, app_id) == []


def test_every_app_gets_its_own_allowance_and_no_more(engine: Engine, vault: Vault) -> None:
    first, second, third = (make_app(engine, vault) for _ in range(3))
    members = {app_id: make_accounts(engine, vault, app_id, 6) for app_id in (first, second, third)}

    with engine.begin() as connection:
        claims = claiming.claim_due(
            connection, [Allowance(first, 2, 10), Allowance(second, 10, 5)], claim=CLAIM
        )

    assert {app_id: ids(found) for app_id, found in claims.items()} == {
        first: members[first][:2],
        second: members[second][:5],
    }


def test_the_window_caps_how_much_of_an_app_is_outstanding(
    engine: Engine, vault: Vault, app_id: AppId
) -> None:
    make_accounts(engine, vault, app_id, 8)
    rounds = [len(claim(engine, app_id, count=2, window=5)) for _ in range(4)]

    assert rounds == [2, 2, 1, 0]


def test_an_account_that_is_settled_makes_room_in_the_window_for_the_next_one(
    engine: Engine, vault: Vault, app_id: AppId
) -> None:
    accounts = make_accounts(engine, vault, app_id, 3)
    [first, _] = start(engine, job_of(app_id, claim(engine, app_id, window=2)))
    assert claim(engine, app_id, window=2) == []

    with engine.begin() as connection:
        settlement.defer(connection, [deferral(first)], actor=ACTOR)

    assert ids(claim(engine, app_id, window=2)) == [accounts[2]]


def test_schedulers_that_race_do_not_overfill_the_window(engine: Engine, vault: Vault, app_id: AppId) -> None:
    make_many_accounts(engine, app_id, 400, due_from=-HOUR, due_to=-SECOND)

    shares = race([partial(claim, engine, app_id, count=20, window=50)] * 6)

    assert sum(map(len, shares)) <= 50
    claim(engine, app_id, count=100, window=50)
    assert column(engine, "SELECT count(*) FROM tokenfleet.refresh_schedule WHERE claimed_until > now()") == [
        50
    ]


def test_an_expired_claim_is_due_again_under_a_new_epoch(engine: Engine, vault: Vault, app_id: AppId) -> None:
    [account_id] = make_accounts(engine, vault, app_id, 1)
    claim(engine, app_id)
    let_claims_expire(engine)

    [again] = claim(engine, app_id)

    assert (again.account_id, again.epoch) == (account_id, 2)


def test_an_expired_claim_counts_as_unanswered_only_if_it_was_started(
    engine: Engine, vault: Vault, app_id: AppId
) -> None:
    started, silent = make_accounts(engine, vault, app_id, 2)
    claims = claim(engine, app_id)
    start(engine, job_of(app_id, claims[:1]))
    let_claims_expire(engine)

    claim(engine, app_id)

    assert state_of(engine, vault, started).unanswered == 1
    assert state_of(engine, vault, silent).unanswered == 0


def test_claims_that_were_started_are_left_alone_unless_they_may_be_taken_over(
    engine: Engine, vault: Vault, app_id: AppId
) -> None:
    started, silent, untouched = make_accounts(engine, vault, app_id, 3)
    claims = claim(engine, app_id, count=2)
    assert ids(claims) == [started, silent]
    start(engine, job_of(app_id, claims[:1]))
    let_claims_expire(engine)
    allowances = [Allowance(app_id, 10, 10)]

    with engine.begin() as connection:
        careful = claiming.claim_due(connection, allowances, claim=CLAIM, take_over=False)
        later = claiming.claim_due(connection, allowances, claim=CLAIM)

    assert set(ids(careful[app_id])) == {silent, untouched}
    assert ids(later[app_id]) == [started]


def test_accounts_whose_generation_has_moved_are_told_apart(
    engine: Engine, vault: Vault, app_id: AppId
) -> None:
    moved, still = make_accounts(engine, vault, app_id, 2)
    with engine.begin() as connection:
        settlement.save_refreshed(connection, [answer(vault, moved, epoch=1, generation=1)], actor=ACTOR)
        assert schedule.moved_since(connection, {moved: 1, still: 1}) == {moved}


def test_a_settled_attempt_never_counts_as_unanswered(engine: Engine, vault: Vault, app_id: AppId) -> None:
    [account_id] = make_accounts(engine, vault, app_id, 1)
    attempt = begin_attempt(engine, app_id, account_id)
    with engine.begin() as connection:
        settlement.defer(connection, [deferral(attempt)], actor=ACTOR)
    make_due(engine, account_id)

    claim(engine, app_id)

    assert state_of(engine, vault, account_id).unanswered == 0


# The fence


def test_an_epoch_is_started_by_one_of_many_that_hold_copies_of_its_message(
    engine: Engine, vault: Vault, app_id: AppId
) -> None:
    accounts = make_accounts(engine, vault, app_id, 20)
    job = job_of(app_id, claim(engine, app_id))

    attempts = race([partial(start, engine, job)] * 8)

    started = Counter(attempt.account_id for share in attempts for attempt in share)
    assert started == Counter(accounts)


def test_a_late_message_about_an_older_epoch_starts_nothing(
    engine: Engine, vault: Vault, app_id: AppId
) -> None:
    make_accounts(engine, vault, app_id, 1)
    old = job_of(app_id, claim(engine, app_id))
    let_claims_expire(engine)
    new = job_of(app_id, claim(engine, app_id))

    assert start(engine, old) == []
    assert len(start(engine, new)) == 1


def test_an_expired_claim_cannot_be_started_even_when_nobody_claimed_it_again(
    engine: Engine, vault: Vault, app_id: AppId
) -> None:
    make_accounts(engine, vault, app_id, 1)
    job = job_of(app_id, claim(engine, app_id))
    let_claims_expire(engine)

    assert start(engine, job) == []


def test_a_message_with_an_epoch_that_was_never_claimed_starts_nothing(
    engine: Engine, vault: Vault, app_id: AppId
) -> None:
    [account_id] = make_accounts(engine, vault, app_id, 1)
    for epoch in (0, 1, 7):
        assert start(engine, RefreshJob("forged", app_id, ((account_id, Epoch(epoch)),))) == []


def test_a_message_that_names_another_app_starts_nothing(engine: Engine, vault: Vault, app_id: AppId) -> None:
    """Else the refresh token of one provider would be sent to another provider's endpoint."""
    make_accounts(engine, vault, app_id, 1)
    other = make_app(engine, vault)
    claims = claim(engine, app_id)

    assert start(engine, job_of(other, claims)) == []
    assert len(start(engine, job_of(app_id, claims))) == 1


def test_a_start_renews_the_claim_from_its_own_moment(engine: Engine, vault: Vault, app_id: AppId) -> None:
    [account_id] = make_accounts(engine, vault, app_id, 1)
    job = job_of(app_id, claim(engine, app_id, lasting=5 * SECOND))

    start(engine, job, lasting=timedelta(minutes=10))

    state = state_of(engine, vault, account_id)
    assert state.started_epoch == 1
    assert state.claimed_until is not None
    assert state.claimed_until > now() + timedelta(minutes=9)


def test_an_attempt_holds_what_is_needed_to_ask(engine: Engine, vault: Vault, app_id: AppId) -> None:
    account_id = make_account(
        engine, vault, app_id, generation=4, scope="crm.read", variables={"subdomain": "acme"}
    )
    with engine.begin() as connection:
        connection.execute(
            text('UPDATE tokenfleet.token_sets SET variables = \'{"api_base": "https://eu.example"}\'')
        )

    attempt = begin_attempt(engine, app_id, account_id)

    assert attempt.refresh_token == column(engine, "SELECT refresh_token FROM tokenfleet.token_sets")[0]
    assert (attempt.epoch, attempt.generation, attempt.scope) == (1, 4, "crm.read")
    assert attempt.variables == {"subdomain": "acme", "api_base": "https://eu.example"}
    assert attempt.status is AccountStatus.ACTIVE
    assert abs(attempt.database_now - now()) < 5 * SECOND
    assert attempt.due_at is not None
    assert attempt.due_at < attempt.database_now


@pytest.mark.parametrize("status", [AccountStatus.PAUSED, AccountStatus.REVOKED])
def test_a_start_leaves_out_accounts_that_are_not_refreshed_and_gives_their_claims_back(
    engine: Engine, vault: Vault, app_id: AppId, status: AccountStatus
) -> None:
    left_out, asked = make_accounts(engine, vault, app_id, 2)
    job = job_of(app_id, claim(engine, app_id))
    with engine.begin() as connection:
        connection.execute(
            text("UPDATE tokenfleet.accounts SET status = :status WHERE id = :id"),
            {"status": status.value, "id": left_out},
        )
        if status is AccountStatus.REVOKED:
            connection.execute(
                text(
                    "UPDATE tokenfleet.token_sets SET access_token = NULL, refresh_token = NULL WHERE account_id = :id"
                ),
                {"id": left_out},
            )

    attempts = start(engine, job)

    assert [attempt.account_id for attempt in attempts] == [asked]
    assert state_of(engine, vault, left_out).claimed_until is None
    assert state_of(engine, vault, asked).claimed_until is not None


def test_an_account_that_was_paused_after_its_claim_is_not_asked_about(
    engine: Engine, vault: Vault, app_id: AppId
) -> None:
    [account_id] = make_accounts(engine, vault, app_id, 1)
    job = job_of(app_id, claim(engine, app_id))
    with engine.begin() as connection:
        transitions.pause(connection, [account_id], actor=ACTOR, reason=None)

    assert start(engine, job) == []
    assert state_of(engine, vault, account_id).claimed_until is None


def test_a_start_that_had_to_wait_sees_the_generation_that_its_sibling_committed(
    engine: Engine, vault: Vault, app_id: AppId
) -> None:
    [account_id] = make_accounts(engine, vault, app_id, 1)
    late = begin_attempt(engine, app_id, account_id)
    let_claims_expire(engine)
    job = job_of(app_id, claim(engine, app_id))
    still_due = now() - SECOND

    with engine.begin() as sibling:
        tokens = answer(vault, account_id, epoch=late.epoch, generation=1, next_refresh_at=still_due)
        settlement.save_refreshed(sibling, [tokens], actor=ACTOR)
        starting = in_background(partial(start, engine, job))
        wait_until_blocked(engine)

    [attempt] = starting.result(10)
    assert attempt.generation == 2
    assert attempt.refresh_token == tokens.refresh_token
    assert attempt.unanswered == 0


def test_an_account_that_a_late_answer_has_made_fresh_is_not_asked_about_again(
    engine: Engine, vault: Vault, app_id: AppId
) -> None:
    [account_id] = make_accounts(engine, vault, app_id, 1)
    late = begin_attempt(engine, app_id, account_id)
    let_claims_expire(engine)
    job = job_of(app_id, claim(engine, app_id))
    with engine.begin() as connection:
        tokens = answer(vault, account_id, epoch=late.epoch, generation=1)
        settlement.save_refreshed(connection, [tokens], actor=ACTOR)

    assert start(engine, job) == []
    assert state_of(engine, vault, account_id).claimed_until is None


def test_the_fence_holds_where_the_database_defaults_to_another_isolation_level(
    database_url: str, engine: Engine, vault: Vault, app_id: AppId
) -> None:
    with engine.begin() as connection:
        name = connection.execute(text("SELECT current_database()")).scalar_one()
        connection.execute(
            text(f"ALTER DATABASE {name} SET default_transaction_isolation = 'repeatable read'")
        )
    accounts = make_accounts(engine, vault, app_id, 10)
    fresh = make_engine(database_url, application_name="test", pool_size=8)
    try:
        job = job_of(app_id, claim(fresh, app_id))
        attempts = race([partial(start, fresh, job)] * 8)
    finally:
        fresh.dispose()

    assert Counter(attempt.account_id for share in attempts for attempt in share) == Counter(accounts)


# Giving claims back


def test_a_released_claim_is_due_at_once_and_was_no_attempt(
    engine: Engine, vault: Vault, app_id: AppId
) -> None:
    [account_id] = make_accounts(engine, vault, app_id, 1)
    job = job_of(app_id, claim(engine, app_id))
    with engine.begin() as connection:
        schedule.release(connection, job)

    assert start(engine, job) == []
    assert ids(claim(engine, app_id)) == [account_id]
    assert state_of(engine, vault, account_id).unanswered == 0


def test_a_claim_that_was_started_is_not_released_by_a_copy_of_its_message(
    engine: Engine, vault: Vault, app_id: AppId
) -> None:
    """Else the account would be claimed again while its refresh token is on its way to the provider."""
    [account_id] = make_accounts(engine, vault, app_id, 1)
    job = job_of(app_id, claim(engine, app_id))
    start(engine, job)

    with engine.begin() as connection:
        schedule.release(connection, job)

    assert claim(engine, app_id) == []
    assert state_of(engine, vault, account_id).claimed_until is not None


def test_a_claim_under_which_nothing_was_sent_is_abandoned_and_was_no_attempt(
    engine: Engine, vault: Vault, app_id: AppId
) -> None:
    [account_id] = make_accounts(engine, vault, app_id, 1)
    attempt = begin_attempt(engine, app_id, account_id)
    with engine.begin() as connection:
        schedule.abandon(connection, account_id, attempt.epoch)

    [again] = claim(engine, app_id)
    assert state_of(engine, vault, account_id).unanswered == 0
    with engine.begin() as connection:
        schedule.abandon(connection, account_id, attempt.epoch)
    assert len(start(engine, job_of(app_id, [again]))) == 1, "a late one leaves the next claim alone"


def test_a_postponed_claim_comes_back_after_its_wait(engine: Engine, vault: Vault, app_id: AppId) -> None:
    [account_id] = make_accounts(engine, vault, app_id, 1)
    job = job_of(app_id, claim(engine, app_id))
    with engine.begin() as connection:
        schedule.postpone(connection, job, wait=timedelta(minutes=2))
    assert claim(engine, app_id) == []

    let_claims_expire(engine)

    assert ids(claim(engine, app_id)) == [account_id]
    assert state_of(engine, vault, account_id).unanswered == 0


def test_a_claim_that_was_started_is_not_postponed_by_a_copy_of_its_message(
    engine: Engine, vault: Vault, app_id: AppId
) -> None:
    make_accounts(engine, vault, app_id, 1)
    job = job_of(app_id, claim(engine, app_id))
    start(engine, job, lasting=timedelta(minutes=10))

    with engine.begin() as connection:
        schedule.postpone(connection, job, wait=timedelta(0))

    assert claim(engine, app_id) == []


@pytest.mark.parametrize("give_back", [schedule.release, partial(schedule.postpone, wait=timedelta(0))])
def test_a_late_message_gives_back_nobody_elses_claim(
    engine: Engine, vault: Vault, app_id: AppId, give_back: partial[None]
) -> None:
    make_accounts(engine, vault, app_id, 1)
    old = job_of(app_id, claim(engine, app_id))
    let_claims_expire(engine)
    claim(engine, app_id)

    with engine.begin() as connection:
        give_back(connection, old)

    assert claim(engine, app_id) == []


def test_a_claim_that_was_given_back_is_not_taken_away_again_by_a_postponement(
    engine: Engine, vault: Vault, app_id: AppId
) -> None:
    make_accounts(engine, vault, app_id, 1)
    job = job_of(app_id, claim(engine, app_id))
    with engine.begin() as connection:
        schedule.release(connection, job)
        schedule.postpone(connection, job, wait=timedelta(minutes=10))

    assert len(claim(engine, app_id)) == 1


# Requests


def test_a_requested_refresh_is_due_now_and_wakes_the_schedulers_on_commit(
    engine: Engine, vault: Vault, app_id: AppId, database_url: str
) -> None:
    account_id = make_account(engine, vault, app_id, due_in=HOUR)
    unscheduled = make_account(engine, vault, app_id, due_in=None)
    with psycopg.connect(database_url.replace("+psycopg", ""), autocommit=True) as listener:
        listener.execute(f"LISTEN {schedule.WAKE_CHANNEL}")
        with engine.begin() as connection:
            requested = schedule.request_refresh(connection, [account_id, unscheduled])
            assert list(listener.notifies(timeout=0.05)) == []
        [woken] = listener.notifies(timeout=10, stop_after=1)

    assert woken.channel == schedule.WAKE_CHANNEL
    assert requested == [account_id]
    assert ids(claim(engine, app_id)) == [account_id]


def test_a_request_never_delays_an_account_that_was_due_already(
    engine: Engine, vault: Vault, app_id: AppId
) -> None:
    account_id = make_account(engine, vault, app_id, due_in=-HOUR)
    before = state_of(engine, vault, account_id).next_refresh_at
    with engine.begin() as connection:
        schedule.request_refresh(connection, [account_id])

    assert state_of(engine, vault, account_id).next_refresh_at == before


def test_a_request_does_not_take_an_account_from_the_worker_that_asks_about_it(
    engine: Engine, vault: Vault, app_id: AppId
) -> None:
    [account_id] = make_accounts(engine, vault, app_id, 1)
    begin_attempt(engine, app_id, account_id)
    with engine.begin() as connection:
        schedule.request_refresh(connection, [account_id])

    assert claim(engine, app_id) == []


# All of it, in any order


class Walk:
    """A fleet in which anything happens in any order; after every step the promises are checked."""

    def __init__(self, engine: Engine, vault: Vault) -> None:
        self.engine = engine
        self.vault = vault
        self.app_id = make_app(engine, vault)
        self.accounts = make_accounts(engine, vault, self.app_id, 3)
        self.messages: list[RefreshJob] = []
        self.in_flight: list[Attempt] = []
        self.excused: set[tuple[AccountId, Epoch]] = set()
        self.generations = dict.fromkeys(self.accounts, 1)

    def step(self, name: str, choice: int) -> None:
        getattr(self, name)(choice)
        for account_id in self.accounts:
            state = state_of(self.engine, self.vault, account_id)
            assert state.generation >= self.generations[account_id]
            assert state.started_epoch <= state.claim_epoch
            assert state.refresh_token == f"refresh-{state.generation}"
            self.generations[account_id] = state.generation

    def claim(self, choice: int) -> None:
        claims = claim(self.engine, self.app_id, count=1 + choice % 3)
        if claims:
            self.messages.append(job_of(self.app_id, claims))

    def deliver(self, choice: int) -> None:
        """Any message at any time, as often as the broker likes."""
        if self.messages:
            asked = {each.account_id for each in self.in_flight if not self.is_excused(each)}
            for attempt in start(self.engine, self.message(choice)):
                assert attempt.account_id not in asked, "two requests at once"
                self.in_flight.append(attempt)

    def release(self, choice: int) -> None:
        if self.messages:
            with self.engine.begin() as connection:
                schedule.release(connection, self.message(choice))

    def postpone(self, choice: int) -> None:
        if self.messages:
            with self.engine.begin() as connection:
                job = self.message(choice)
                schedule.postpone(connection, job, wait=timedelta(seconds=choice % 2))

    def save(self, choice: int) -> None:
        if self.in_flight:
            attempt = self.in_flight[choice % len(self.in_flight)]
            tokens = answer(
                self.vault, attempt.account_id, epoch=attempt.epoch, generation=attempt.generation
            )
            with self.engine.begin() as connection:
                result = settlement.save_refreshed(connection, [tokens], actor=ACTOR)
            assert len(result.saved | result.repeated | result.candidates) == 1
            self.settled(attempt, choice)

    def defer(self, choice: int) -> None:
        if self.in_flight:
            attempt = self.in_flight[choice % len(self.in_flight)]
            with self.engine.begin() as connection:
                settlement.defer(connection, [deferral(attempt)], actor=ACTOR)
            self.settled(attempt, choice)

    def reject(self, choice: int) -> None:
        if self.in_flight:
            attempt = self.in_flight[choice % len(self.in_flight)]
            told = rejection(attempt.account_id, epoch=attempt.epoch, generation=attempt.generation)
            with self.engine.begin() as connection:
                flipped = rejections.reject(connection, [told], actor=ACTOR).flipped
            if flipped:
                state = state_of(self.engine, self.vault, attempt.account_id)
                assert state.status is AccountStatus.NEEDS_REAUTH
                assert state.next_refresh_at is None
            self.settled(attempt, choice)

    def expire(self, _: int) -> None:
        """Only what is settled or lost may be asked again; the ladder of timeouts sees to that."""
        let_claims_expire(self.engine)
        self.excused |= {(each.account_id, each.epoch) for each in self.in_flight}

    def pause(self, choice: int) -> None:
        with self.engine.begin() as connection:
            transitions.pause(connection, [self.account(choice)], actor=ACTOR, reason=None)

    def resume(self, choice: int) -> None:
        with self.engine.begin() as connection:
            transitions.resume(connection, [self.account(choice)], actor=ACTOR)

    def request(self, choice: int) -> None:
        with self.engine.begin() as connection:
            schedule.request_refresh(connection, [self.account(choice)])

    def message(self, choice: int) -> RefreshJob:
        """Any message, mostly a recent one."""
        return self.messages[-1 - (choice % len(self.messages)) // (1 + choice % 4)]

    def account(self, choice: int) -> AccountId:
        return self.accounts[choice % len(self.accounts)]

    def settled(self, attempt: Attempt, choice: int) -> None:
        """An unknown commit outcome has the same settlement written again, however late."""
        if choice % 5:
            self.in_flight.remove(attempt)
        else:
            self.excused.add((attempt.account_id, attempt.epoch))

    def is_excused(self, attempt: Attempt) -> bool:
        return (attempt.account_id, attempt.epoch) in self.excused


_FLICKER: Final = text("""
    DO $$ BEGIN
        FOR i IN 1..1000 LOOP
            UPDATE tokenfleet.refresh_schedule SET next_refresh_at = CASE WHEN i % 2 = 0 THEN now() END
            WHERE account_id = (SELECT min(account_id) + (i / 2) % 40 FROM tokenfleet.refresh_schedule);
            COMMIT;
        END LOOP;
    END $$
""")
"""Takes accounts off the schedule and puts them back, one after the other, a thousand times."""

STEPS: Final = (
    "claim claim claim claim deliver deliver deliver deliver deliver save save defer reject expire release "
    "release postpone pause resume resume request request request"
).split()


@pytest.mark.parametrize("seed", range(6))
def test_no_order_of_events_puts_two_requests_for_an_account_on_the_way(
    engine: Engine, vault: Vault, seed: int
) -> None:
    chance = random.Random(seed)
    walk = Walk(engine, vault)
    for _ in range(150):
        walk.step(chance.choice(STEPS), chance.randrange(30))


@pytest.mark.parametrize("is_requested", [False, True])
def test_an_account_that_is_paused_while_a_scheduler_looks_is_not_claimed(
    engine: Engine, vault: Vault, is_requested: bool
) -> None:
    """The list of who is due is older than the lock on the row: whoever left the schedule in between has no moment."""
    app_id = make_app(engine, vault)
    make_accounts(engine, vault, app_id, 40)
    if is_requested:
        with engine.begin() as connection:
            connection.execute(text("UPDATE tokenfleet.refresh_schedule SET requested_at = now()"))
    over = threading.Event()

    def pause_and_resume() -> None:
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            while not over.is_set():
                connection.execute(_FLICKER)

    flickering = in_background(pause_and_resume)
    claims: list[Claim] = []
    try:
        for _ in range(80):
            if not is_requested:
                claims += claim(engine, app_id, lasting=timedelta(0))
                continue
            with engine.begin() as connection:
                made = claim_requested(connection, [Allowance(app_id, 1000, 1000)], claim=timedelta(0))
            claims += made.get(app_id, [])
    finally:
        over.set()
    flickering.result()
    assert claims
    assert None not in {each.due_at for each in claims}
