"""What becomes of answers: compare-and-set, nothing overwritten, nothing thrown away, everything repeatable."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from functools import partial

import pytest
from sqlalchemy import Engine, text

from store import rejections, settlement, transitions
from store.answers import SavedTokens
from store.keys import Vault
from store.settlement import Deferral, SaveResult
from tests.support.builders import (
    ACTOR,
    HOUR,
    JOB_ID,
    answer,
    begin_attempt,
    claim,
    column,
    deferral,
    history_of,
    job_of,
    let_claims_expire,
    make_account,
    make_accounts,
    make_app,
    make_due,
    now,
    rejection,
    start,
    state_of,
    told_about,
)
from tests.support.racing import in_background, race, wait_until_blocked
from tokenfleet.jobs import AccountId, AppId, Epoch
from tokenfleet_client.contract import AccountStatus
from tokenfleet_client.envelope import access_token_binding, refresh_token_binding

ALARM = "integrated_account:authentication_error"
WELL = "integrated_account:reactivated"


@pytest.fixture
def app_id(engine: Engine, vault: Vault) -> AppId:
    return make_app(engine, vault)


@pytest.fixture
def account_id(engine: Engine, vault: Vault, app_id: AppId) -> AccountId:
    return make_account(engine, vault, app_id)


def save(engine: Engine, *answers: SavedTokens) -> SaveResult:
    with engine.begin() as connection:
        return settlement.save_refreshed(connection, answers, actor=ACTOR)


def defer(engine: Engine, *deferrals: Deferral) -> None:
    with engine.begin() as connection:
        settlement.defer(connection, deferrals, actor=ACTOR)


def reject(engine: Engine, account_id: AccountId, *, epoch: int, generation: int) -> frozenset[AccountId]:
    with engine.begin() as connection:
        told = rejection(account_id, epoch=epoch, generation=generation)
        return rejections.reject(connection, [told], actor=ACTOR).flipped


def pause(engine: Engine, account_id: AccountId) -> frozenset[AccountId]:
    with engine.begin() as connection:
        return transitions.pause(connection, [account_id], actor=ACTOR, reason=None)


def resume(engine: Engine, account_id: AccountId) -> frozenset[AccountId]:
    with engine.begin() as connection:
        return transitions.resume(connection, [account_id], actor=ACTOR)


# Saving


def test_a_good_answer_replaces_the_tokens_and_puts_the_account_back_on_the_schedule(
    engine: Engine, vault: Vault, app_id: AppId, account_id: AccountId
) -> None:
    attempt = begin_attempt(engine, app_id, account_id)
    due = now() + timedelta(minutes=57)

    result = save(
        engine,
        answer(
            vault,
            account_id,
            epoch=attempt.epoch,
            generation=1,
            scope="crm.read",
            next_refresh_at=due,
            variables={"api_base": "https://eu.example"},
        ),
    )

    assert result == SaveResult(frozenset({account_id}), frozenset(), frozenset())
    state = state_of(engine, vault, account_id)
    assert (state.generation, state.access_token, state.refresh_token) == (2, "access-2", "refresh-2")
    assert (state.scope, state.variables) == ("crm.read", {"api_base": "https://eu.example"})
    assert (state.next_refresh_at, state.claimed_until) == (due, None)
    assert state.status is AccountStatus.ACTIVE
    assert history_of(engine, account_id) == ["refresh.succeeded"]
    assert told_about(engine, account_id) == []


def test_a_success_ends_the_account_of_every_earlier_failure(
    engine: Engine, vault: Vault, app_id: AppId, account_id: AccountId
) -> None:
    attempt = begin_attempt(engine, app_id, account_id)
    defer(engine, deferral(attempt, answer_lost=True, quarantined=True))
    make_due(engine, account_id)
    attempt = begin_attempt(engine, app_id, account_id)

    save(engine, answer(vault, account_id, epoch=attempt.epoch, generation=1))

    state = state_of(engine, vault, account_id)
    assert (state.attempts, state.unanswered, state.failing_since, state.last_error) == (0, 0, None, None)
    assert state.quarantined is False


def test_the_history_of_a_save_says_which_attempt_it_was(
    engine: Engine, vault: Vault, app_id: AppId, account_id: AccountId
) -> None:
    attempt = begin_attempt(engine, app_id, account_id)
    save(engine, answer(vault, account_id, epoch=attempt.epoch, generation=1))

    with engine.connect() as connection:
        row = connection.execute(
            text("SELECT kind, generation, epoch, job_id, duration_ms, actor FROM tokenfleet.account_events")
        ).one()
    assert tuple(row) == ("refresh.succeeded", 2, 1, JOB_ID, 200, ACTOR)


def test_saving_the_same_answer_again_changes_nothing_and_says_so(
    engine: Engine, vault: Vault, app_id: AppId, account_id: AccountId
) -> None:
    attempt = begin_attempt(engine, app_id, account_id)
    tokens = answer(vault, account_id, epoch=attempt.epoch, generation=1)
    save(engine, tokens)
    before = state_of(engine, vault, account_id)

    results = [save(engine, tokens) for _ in range(2)]

    assert results == [SaveResult(frozenset(), frozenset({account_id}), frozenset())] * 2
    assert state_of(engine, vault, account_id) == before
    assert history_of(engine, account_id) == ["refresh.succeeded"]
    assert column(engine, "SELECT count(*) FROM tokenfleet.token_candidates") == [0]


def test_an_answer_that_was_saved_generations_ago_is_still_recognised_when_it_is_replayed(
    engine: Engine, vault: Vault, app_id: AppId, account_id: AccountId
) -> None:
    """A journal may be replayed after the account went on."""
    attempt = begin_attempt(engine, app_id, account_id)
    old = answer(vault, account_id, epoch=attempt.epoch, generation=1)
    save(engine, old)
    for generation in (2, 3):
        make_due(engine, account_id)
        attempt = begin_attempt(engine, app_id, account_id)
        save(engine, answer(vault, account_id, epoch=attempt.epoch, generation=generation))

    result = save(engine, old)

    assert result.repeated == {account_id}
    assert state_of(engine, vault, account_id).generation == 4


def test_the_same_answer_saved_by_many_at_once_is_saved_once(
    engine: Engine, vault: Vault, app_id: AppId, account_id: AccountId
) -> None:
    """Two processes adopt one journal, or a commit of unknown outcome is still under way."""
    attempt = begin_attempt(engine, app_id, account_id)
    tokens = answer(vault, account_id, epoch=attempt.epoch, generation=1)

    results = race([partial(save, engine, tokens)] * 8)

    assert sum(len(result.saved) for result in results) == 1
    assert sum(len(result.repeated) for result in results) == 7
    assert state_of(engine, vault, account_id).generation == 2
    assert history_of(engine, account_id) == ["refresh.succeeded"]
    assert column(engine, "SELECT count(*) FROM tokenfleet.token_candidates") == [0]


def test_of_different_answers_to_one_generation_exactly_one_is_current_and_the_rest_are_kept(
    engine: Engine, vault: Vault, account_id: AccountId
) -> None:
    answers = [
        answer(
            vault,
            account_id,
            epoch=epoch,
            generation=1,
            access_token=f"access-2-of-{epoch}",
            refresh_token=f"refresh-2-of-{epoch}",
        )
        for epoch in range(1, 9)
    ]

    results = race([partial(save, engine, each) for each in answers])

    [winner] = [each for each, result in zip(answers, results, strict=True) if result.saved]
    assert sum(len(result.candidates) for result in results) == 7
    state = state_of(engine, vault, account_id)
    assert (state.generation, state.refresh_token) == (2, f"refresh-2-of-{winner.epoch}")
    kept = kept_candidates(engine, vault)
    assert kept == {
        (each.epoch, f"access-2-of-{each.epoch}", f"refresh-2-of-{each.epoch}")
        for each in answers
        if each is not winner
    }
    assert Counter(history_of(engine, account_id)) == {"refresh.succeeded": 1, "refresh.lost_race": 7}


def kept_candidates(engine: Engine, vault: Vault) -> set[tuple[int, str, str]]:
    """The epochs and opened tokens of every candidate."""
    with engine.connect() as connection:
        rows = connection.execute(text("SELECT * FROM tokenfleet.token_candidates")).all()
    return {
        (
            row.epoch,
            vault.access.open(row.access_token, access_token_binding(row.account_id, row.generation)),
            vault.refresh.open(row.refresh_token, refresh_token_binding(row.account_id, row.generation)),
        )
        for row in rows
    }


def test_a_late_answer_is_kept_beside_and_overwrites_nothing(
    engine: Engine, vault: Vault, app_id: AppId, account_id: AccountId
) -> None:
    late = begin_attempt(engine, app_id, account_id)
    let_claims_expire(engine)
    timely = begin_attempt(engine, app_id, account_id)
    save(engine, answer(vault, account_id, epoch=timely.epoch, generation=1))
    before = state_of(engine, vault, account_id)

    tokens = answer(
        vault, account_id, epoch=late.epoch, generation=1, refresh_token="refresh-of-the-late-one"
    )
    first, again = save(engine, tokens), save(engine, tokens)

    assert first.candidates == {account_id}
    assert again.repeated == {account_id}
    assert state_of(engine, vault, account_id) == before
    assert kept_candidates(engine, vault) == {(late.epoch, "access-2", "refresh-of-the-late-one")}
    assert history_of(engine, account_id) == ["refresh.succeeded", "refresh.lost_race"]


def test_a_late_answer_to_an_unchanged_generation_is_saved_and_leaves_the_newer_claim_alone(
    engine: Engine, vault: Vault, app_id: AppId, account_id: AccountId
) -> None:
    late = begin_attempt(engine, app_id, account_id)
    let_claims_expire(engine)
    begin_attempt(engine, app_id, account_id)
    claimed_until = state_of(engine, vault, account_id).claimed_until

    result = save(engine, answer(vault, account_id, epoch=late.epoch, generation=1))

    state = state_of(engine, vault, account_id)
    assert result.saved == {account_id}
    assert (state.generation, state.claimed_until) == (2, claimed_until)


def test_a_batch_of_fresh_late_and_repeated_answers_puts_each_where_it_belongs(
    engine: Engine, vault: Vault, app_id: AppId
) -> None:
    fresh, late, repeated = make_accounts(engine, vault, app_id, 3)
    answers = {each: answer(vault, each, epoch=1, generation=1) for each in (fresh, late, repeated)}
    save(engine, answers[repeated], answer(vault, late, epoch=2, generation=1))

    result = save(engine, *answers.values())

    assert result == SaveResult(frozenset({fresh}), frozenset({repeated}), frozenset({late}))
    assert all(state_of(engine, vault, each).generation == 2 for each in answers)


def test_two_answers_for_one_account_in_one_batch_are_both_kept(
    engine: Engine, vault: Vault, account_id: AccountId
) -> None:
    rivals = [
        answer(vault, account_id, epoch=epoch, generation=1, refresh_token=f"refresh-of-{epoch}")
        for epoch in (2, 1)
    ]

    result = save(engine, *rivals)

    assert result == SaveResult(frozenset({account_id}), frozenset(), frozenset({account_id}))
    assert state_of(engine, vault, account_id).refresh_token == "refresh-of-1"
    assert kept_candidates(engine, vault) == {(2, "access-2", "refresh-of-2")}


def test_two_answers_that_follow_each_other_in_one_batch_are_both_saved_in_order(
    engine: Engine, vault: Vault, account_id: AccountId
) -> None:
    following = [answer(vault, account_id, epoch=epoch, generation=epoch) for epoch in (3, 1, 2)]

    assert save(engine, *following) == SaveResult(frozenset({account_id}), frozenset(), frozenset())
    assert state_of(engine, vault, account_id).generation == 4
    assert history_of(engine, account_id) == ["refresh.succeeded"] * 3


def test_a_late_answer_that_many_keep_at_once_is_kept_once(
    engine: Engine, vault: Vault, account_id: AccountId
) -> None:
    save(engine, answer(vault, account_id, epoch=2, generation=1))
    late = answer(vault, account_id, epoch=1, generation=1, refresh_token="refresh-of-the-late-one")

    race([partial(save, engine, late)] * 8)

    assert kept_candidates(engine, vault) == {(1, "access-2", "refresh-of-the-late-one")}
    assert Counter(history_of(engine, account_id)) == {"refresh.succeeded": 1, "refresh.lost_race": 1}


def test_group_commits_that_overlap_in_any_order_do_not_deadlock(
    engine: Engine, vault: Vault, app_id: AppId
) -> None:
    accounts = make_accounts(engine, vault, app_id, 60)
    answers = [answer(vault, each, epoch=1, generation=1) for each in accounts]

    results = race([partial(save, engine, *random.sample(answers, len(answers))) for _ in range(6)])

    assert sum(len(result.saved) for result in results) == 60
    assert sum(len(result.repeated) for result in results) == 300


def test_an_answer_for_an_account_that_was_deleted_troubles_nobody(
    engine: Engine, vault: Vault, app_id: AppId
) -> None:
    gone, here = make_accounts(engine, vault, app_id, 2)
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM tokenfleet.accounts WHERE id = :id"), {"id": gone})

    result = save(engine, *(answer(vault, each, epoch=1, generation=1) for each in (gone, here)))

    assert result.saved == {here}
    assert column(engine, "SELECT count(*) FROM tokenfleet.token_candidates") == [0]


def test_an_answer_with_a_zero_byte_in_its_text_is_saved_without_that_byte(
    engine: Engine, vault: Vault, account_id: AccountId
) -> None:
    """Postgres cannot hold U+0000, and JSON can: an odd scope must not cost the customer the successor."""
    tokens = answer(
        vault,
        account_id,
        epoch=1,
        generation=1,
        token_type="Bear\x00er",
        scope="read\x00 write",
        variables={"api_base": "eu\x00.example"},
    )

    assert save(engine, tokens).saved == {account_id}
    state = state_of(engine, vault, account_id)
    assert (state.scope, state.variables) == ("read write", {"api_base": "eu.example"})


def test_a_late_answer_with_a_zero_byte_is_kept_too(
    engine: Engine, vault: Vault, account_id: AccountId
) -> None:
    save(engine, answer(vault, account_id, epoch=2, generation=1))

    result = save(engine, answer(vault, account_id, epoch=1, generation=1, scope="read\x00"))

    assert result.candidates == {account_id}


def test_no_token_and_nothing_sealed_reaches_history_or_outbox(
    engine: Engine, vault: Vault, app_id: AppId
) -> None:
    account_id = make_account(engine, vault, app_id, status=AccountStatus.CONNECTING)
    tokens = answer(
        vault,
        account_id,
        epoch=1,
        generation=1,
        access_token="planted-access-token",
        refresh_token="planted-refresh-token",
        activates=True,
    )
    save(engine, tokens)
    reject(engine, account_id, epoch=2, generation=2)
    save(engine, replace(tokens, epoch=Epoch(3), generation=2))

    written = "".join(
        str(line)
        for table in ("account_events", "outbox", "accounts", "refresh_schedule")
        for line in column(engine, f"SELECT t::text FROM tokenfleet.{table} t")
    )
    assert "authentication_error" in written
    assert "planted" not in written
    for sealed in (tokens.access_token, tokens.refresh_token):
        assert sealed is not None
        assert sealed.hex()[:40] not in written


# Statuses


def test_the_first_answer_of_a_connecting_account_makes_it_active_and_tells_nobody(
    engine: Engine, vault: Vault, app_id: AppId
) -> None:
    account_id = make_account(engine, vault, app_id, status=AccountStatus.CONNECTING)
    attempt = begin_attempt(engine, app_id, account_id)
    tokens = answer(vault, account_id, epoch=attempt.epoch, generation=1, activates=True)
    save(engine, tokens)
    save(engine, tokens)

    assert state_of(engine, vault, account_id).status is AccountStatus.ACTIVE
    assert history_of(engine, account_id) == ["refresh.succeeded", "account.refreshed"]
    assert told_about(engine, account_id) == []


def test_an_account_that_is_paused_meanwhile_takes_the_late_answer_and_stays_paused_and_unscheduled(
    engine: Engine, vault: Vault, app_id: AppId, account_id: AccountId
) -> None:
    attempt = begin_attempt(engine, app_id, account_id)
    pause(engine, account_id)

    result = save(engine, answer(vault, account_id, epoch=attempt.epoch, generation=1))

    state = state_of(engine, vault, account_id)
    assert result.saved == {account_id}
    assert (state.status, state.generation, state.next_refresh_at) == (AccountStatus.PAUSED, 2, None)
    assert claim(engine, app_id) == []
    assert told_about(engine, account_id) == []


def test_a_good_answer_after_the_alarm_is_verified_before_anybody_is_told_that_all_is_well(
    engine: Engine, vault: Vault, app_id: AppId, account_id: AccountId
) -> None:
    first = begin_attempt(engine, app_id, account_id)
    let_claims_expire(engine)
    second = begin_attempt(engine, app_id, account_id)
    reject(engine, account_id, epoch=second.epoch, generation=1)
    assert state_of(engine, vault, account_id).status is AccountStatus.NEEDS_REAUTH
    tokens = answer(vault, account_id, epoch=first.epoch, generation=1)

    for _ in range(3):
        save(engine, tokens)
    state = state_of(engine, vault, account_id)
    assert (state.status, state.generation) == (AccountStatus.NEEDS_REAUTH, 2)
    assert told_about(engine, account_id) == [ALARM]

    third = begin_attempt(engine, app_id, account_id)
    verified = answer(vault, account_id, epoch=third.epoch, generation=2, activates=True)
    for _ in range(3):
        save(engine, verified)
    state = state_of(engine, vault, account_id)
    assert (state.status, state.status_reason) == (AccountStatus.ACTIVE, None)
    assert state.next_refresh_at == verified.next_refresh_at
    assert told_about(engine, account_id) == [ALARM, WELL]


def test_an_answer_after_the_alarm_that_proves_dead_bothers_nobody_again(
    engine: Engine, vault: Vault, app_id: AppId, account_id: AccountId
) -> None:
    """The provider ended the whole grant when it saw the repetition."""
    first = begin_attempt(engine, app_id, account_id)
    let_claims_expire(engine)
    second = begin_attempt(engine, app_id, account_id)
    reject(engine, account_id, epoch=second.epoch, generation=1)
    before = state_of(engine, vault, account_id)
    save(engine, answer(vault, account_id, epoch=first.epoch, generation=1))
    third = begin_attempt(engine, app_id, account_id)

    assert reject(engine, account_id, epoch=third.epoch, generation=2) == frozenset()

    after = state_of(engine, vault, account_id)
    assert (after.status, after.status_reason) == (AccountStatus.NEEDS_REAUTH, before.status_reason)
    assert (after.next_refresh_at, after.claimed_until) == (None, None)
    assert claim(engine, app_id) == []
    assert told_about(engine, account_id) == [ALARM]


# Deferring


def test_a_failure_is_counted_and_asked_again_at_its_moment(
    engine: Engine, vault: Vault, app_id: AppId, account_id: AccountId
) -> None:
    attempt = begin_attempt(engine, app_id, account_id)
    failed = deferral(attempt, answer_lost=True, detail='{"shape": "503 {error}"}')
    defer(engine, failed)

    state = state_of(engine, vault, account_id)
    assert (state.attempts, state.unanswered, state.last_error) == (1, 1, "http_503")
    assert (state.next_refresh_at, state.claimed_until) == (failed.next_refresh_at, None)
    assert state.failing_since is not None
    assert history_of(engine, account_id) == ["refresh.unavailable"]
    assert column(engine, "SELECT detail ->> 'shape' FROM tokenfleet.account_events") == ["503 {error}"]


def test_a_failure_that_is_not_the_accounts_costs_it_nothing(
    engine: Engine, vault: Vault, app_id: AppId, account_id: AccountId
) -> None:
    attempt = begin_attempt(engine, app_id, account_id)
    defer(engine, deferral(attempt, counts=False))

    state = state_of(engine, vault, account_id)
    assert (state.attempts, state.unanswered, state.failing_since) == (0, 0, None)


def test_failing_since_is_the_moment_of_the_first_failure(
    engine: Engine, vault: Vault, app_id: AppId, account_id: AccountId
) -> None:
    moments = []
    for _ in range(2):
        make_due(engine, account_id)
        defer(engine, deferral(begin_attempt(engine, app_id, account_id)))
        moments.append(state_of(engine, vault, account_id).failing_since)

    assert moments[0] is not None
    assert moments[1] == moments[0]
    assert state_of(engine, vault, account_id).attempts == 2


def test_the_same_failure_written_again_counts_once(
    engine: Engine, vault: Vault, app_id: AppId, account_id: AccountId
) -> None:
    failed = deferral(begin_attempt(engine, app_id, account_id), answer_lost=True)

    race([partial(defer, engine, failed)] * 6)

    state = state_of(engine, vault, account_id)
    assert (state.attempts, state.unanswered) == (1, 1)
    assert history_of(engine, account_id) == ["refresh.unavailable"]


def test_a_failure_of_an_older_claim_is_ignored(
    engine: Engine, vault: Vault, app_id: AppId, account_id: AccountId
) -> None:
    late = begin_attempt(engine, app_id, account_id)
    let_claims_expire(engine)
    begin_attempt(engine, app_id, account_id)
    before = state_of(engine, vault, account_id)

    defer(engine, deferral(late))

    assert state_of(engine, vault, account_id) == before
    assert history_of(engine, account_id) == []


def test_a_failure_of_an_account_that_was_paused_meanwhile_does_not_schedule_it(
    engine: Engine, vault: Vault, app_id: AppId, account_id: AccountId
) -> None:
    attempt = begin_attempt(engine, app_id, account_id)
    pause(engine, account_id)

    defer(engine, deferral(attempt))

    assert state_of(engine, vault, account_id).next_refresh_at is None


def test_an_account_whose_answer_could_not_be_saved_is_left_alone_for_hours(
    engine: Engine, vault: Vault, app_id: AppId, account_id: AccountId
) -> None:
    attempt = begin_attempt(engine, app_id, account_id)
    with engine.begin() as connection:
        settlement.quarantine(connection, account_id, attempt.epoch, code="answer_refused", actor=ACTOR)
    let_claims_expire(engine)

    state = state_of(engine, vault, account_id)
    assert (state.quarantined, state.last_error, state.status) == (
        True,
        "answer_refused",
        AccountStatus.ACTIVE,
    )
    assert claim(engine, app_id) == []
    assert history_of(engine, account_id) == ["refresh.our_fault"]

    # Nor does an operator who pauses and resumes it have its spent token presented.
    pause(engine, account_id)
    with engine.begin() as connection:
        assert transitions.resume(connection, [account_id], actor=ACTOR) == {account_id}
    assert claim(engine, app_id) == []
    assert state_of(engine, vault, account_id).quarantined


# Rejections


def test_a_definite_rejection_flips_the_account_once_and_takes_it_off_the_schedule(
    engine: Engine, vault: Vault, app_id: AppId, account_id: AccountId
) -> None:
    attempt = begin_attempt(engine, app_id, account_id)

    flipped = [reject(engine, account_id, epoch=attempt.epoch, generation=1) for _ in range(3)]

    assert flipped == [{account_id}, frozenset(), frozenset()]
    state = state_of(engine, vault, account_id)
    assert (state.status, state.status_reason) == (AccountStatus.NEEDS_REAUTH, "invalid_grant")
    assert (state.next_refresh_at, state.claimed_until) == (None, None)
    assert (state.access_token, state.refresh_token) == ("access-1", "refresh-1"), "nothing is blanked"
    assert told_about(engine, account_id) == [ALARM]
    assert history_of(engine, account_id) == ["account.grant_rejected"]


def test_a_rejection_of_a_generation_that_has_moved_adopts_the_siblings_tokens(
    engine: Engine, vault: Vault, app_id: AppId, account_id: AccountId
) -> None:
    loser = begin_attempt(engine, app_id, account_id)
    save(engine, answer(vault, account_id, epoch=loser.epoch - 1, generation=1))

    flipped = reject(engine, account_id, epoch=loser.epoch, generation=1)

    state = state_of(engine, vault, account_id)
    assert flipped == frozenset()
    assert (state.status, state.generation, state.claimed_until) == (AccountStatus.ACTIVE, 2, None)
    assert state.next_refresh_at is not None
    assert told_about(engine, account_id) == []
    assert history_of(engine, account_id) == ["refresh.succeeded"]


def test_a_rejection_that_lost_to_a_late_answer_is_remembered_until_the_next_success(
    engine: Engine, vault: Vault, app_id: AppId, account_id: AccountId
) -> None:
    """The answer's predecessor was presented again, by us: a strict provider ends the grant for that."""
    loser = begin_attempt(engine, app_id, account_id)
    save(engine, answer(vault, account_id, epoch=loser.epoch - 1, generation=1))
    reject(engine, account_id, epoch=loser.epoch, generation=1)

    assert state_of(engine, vault, account_id).unanswered == 1
    make_due(engine, account_id)
    following = begin_attempt(engine, app_id, account_id)
    assert following.unanswered == 1
    save(engine, answer(vault, account_id, epoch=following.epoch, generation=2))
    assert state_of(engine, vault, account_id).unanswered == 0


def test_a_rejection_that_waits_for_the_siblings_commit_adopts_its_tokens(
    engine: Engine, vault: Vault, account_id: AccountId
) -> None:
    with engine.begin() as sibling:
        tokens = answer(vault, account_id, epoch=1, generation=1)
        settlement.save_refreshed(sibling, [tokens], actor=ACTOR)
        rejecting = in_background(partial(reject, engine, account_id, epoch=2, generation=1))
        wait_until_blocked(engine)

    assert rejecting.result(10) == frozenset()
    assert state_of(engine, vault, account_id).status is AccountStatus.ACTIVE
    assert told_about(engine, account_id) == []


def test_an_answer_that_waits_for_a_rejection_is_saved_and_verified(
    engine: Engine, vault: Vault, account_id: AccountId
) -> None:
    tokens = answer(vault, account_id, epoch=1, generation=1)
    with engine.begin() as sibling:
        told = rejection(account_id, epoch=2, generation=1)
        rejections.reject(sibling, [told], actor=ACTOR)
        saving = in_background(partial(save, engine, tokens))
        wait_until_blocked(engine)

    assert saving.result(10).saved == {account_id}
    state = state_of(engine, vault, account_id)
    assert (state.status, state.generation) == (AccountStatus.NEEDS_REAUTH, 2)
    assert state.next_refresh_at is not None
    assert told_about(engine, account_id) == [ALARM]


def test_a_rejection_of_a_paused_account_flips_nothing_and_tells_nobody(
    engine: Engine, vault: Vault, app_id: AppId, account_id: AccountId
) -> None:
    attempt = begin_attempt(engine, app_id, account_id)
    pause(engine, account_id)

    assert reject(engine, account_id, epoch=attempt.epoch, generation=1) == frozenset()
    state = state_of(engine, vault, account_id)
    assert (state.status, state.claimed_until) == (AccountStatus.PAUSED, None)
    assert told_about(engine, account_id) == []


def test_a_late_rejection_counts_and_leaves_the_newer_claim_alone(
    engine: Engine, vault: Vault, app_id: AppId, account_id: AccountId
) -> None:
    late = begin_attempt(engine, app_id, account_id)
    let_claims_expire(engine)
    begin_attempt(engine, app_id, account_id)
    claimed_until = state_of(engine, vault, account_id).claimed_until

    assert reject(engine, account_id, epoch=late.epoch, generation=1) == {account_id}

    state = state_of(engine, vault, account_id)
    assert (state.status, state.claimed_until) == (AccountStatus.NEEDS_REAUTH, claimed_until)


def test_a_batch_of_rejections_flips_only_those_whose_generation_stands(
    engine: Engine, vault: Vault, app_id: AppId
) -> None:
    first, moved, third = make_accounts(engine, vault, app_id, 3)
    save(engine, answer(vault, moved, epoch=9, generation=1))
    with engine.begin() as connection:
        told = [rejection(each, epoch=1, generation=1) for each in (third, moved, first)]
        flipped = rejections.reject(connection, told, actor=ACTOR).flipped

    assert flipped == {first, third}
    assert [len(told_about(engine, each)) for each in (first, moved, third)] == [1, 0, 1]


# Races: one event for each transition, whatever the interleaving


@pytest.mark.parametrize("attempt", range(4))
def test_eight_that_reject_at_once_tell_once(
    engine: Engine, vault: Vault, account_id: AccountId, attempt: int
) -> None:
    flipped = race([partial(reject, engine, account_id, epoch=1, generation=1)] * 8)

    assert sum(map(len, flipped)) == 1
    assert told_about(engine, account_id) == [ALARM]


@pytest.mark.parametrize("attempt", range(8))
def test_whatever_wins_between_rejection_answer_pause_and_resume_each_transition_is_told_once(
    engine: Engine, vault: Vault, app_id: AppId, account_id: AccountId, attempt: int
) -> None:
    tokens = answer(vault, account_id, epoch=1, generation=1)
    told = partial(reject, engine, account_id, epoch=2, generation=1)
    saved = partial(save, engine, tokens)
    runners: list[Callable[[], object]] = [
        told,
        saved,
        partial(pause, engine, account_id),
        partial(resume, engine, account_id),
    ] * 2
    random.Random(attempt).shuffle(runners)

    race(runners)

    state = state_of(engine, vault, account_id)
    events = told_about(engine, account_id)
    assert state.generation == 2
    assert state.refresh_token == "refresh-2"
    assert events in ([], [ALARM])
    steps = status_steps(engine, account_id)
    assert all(before == after for (_, before), (after, _) in itertools.pairwise(steps)), steps
    assert (steps[-1][1] if steps else AccountStatus.ACTIVE) == state.status
    # Given up, and due to be asked with the answer that came after that.
    assert (state.status is AccountStatus.NEEDS_REAUTH) == (events == [ALARM])
    assert (state.next_refresh_at is None) == (state.status is AccountStatus.PAUSED)


def status_steps(engine: Engine, account_id: AccountId) -> list[tuple[str, str]]:
    with engine.connect() as connection:
        rows = connection.execute(
            text(
                "SELECT status_from, status_to FROM tokenfleet.account_events "
                "WHERE account_id = :id AND status_to IS NOT NULL ORDER BY at"
            ),
            {"id": account_id},
        )
        return [(row.status_from, row.status_to) for row in rows]


@pytest.mark.parametrize("attempt", range(4))
def test_a_first_answer_and_a_pause_of_the_same_accounts_do_not_deadlock(
    engine: Engine, vault: Vault, app_id: AppId, attempt: int
) -> None:
    accounts = [
        make_account(engine, vault, app_id, status=AccountStatus.CONNECTING, due_in=-HOUR) for _ in range(30)
    ]
    claims = claim(engine, app_id)
    attempts = start(engine, job_of(app_id, claims))
    answers = [
        answer(vault, each.account_id, epoch=each.epoch, generation=1, activates=True) for each in attempts
    ]

    def pause_all() -> None:
        with engine.begin() as connection:
            transitions.pause(connection, list(reversed(accounts)), actor=ACTOR, reason=None)

    def save_all() -> None:
        save(engine, *answers)

    race([pause_all, save_all])

    for account_id in accounts:
        state = state_of(engine, vault, account_id)
        assert (state.status, state.generation, state.next_refresh_at) == (AccountStatus.PAUSED, 2, None)
