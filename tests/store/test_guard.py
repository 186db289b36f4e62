"""The blast-radius guard on real rows: how many are flipped, by however many writers at once, and how all come back."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import partial

import pytest
from sqlalchemy import Engine, text

from store import candidates, rejections, schedule, settlement, transitions
from store.incidents import Kind, Resolution
from store.keys import Vault
from tests.support.builders import (
    ACTOR,
    HOUR,
    answer,
    claim,
    column,
    deferral,
    history_of,
    job_of,
    let_claims_expire,
    make_account,
    make_app,
    make_many_accounts,
    rejection,
    start,
    state_of,
    told_about,
)
from tests.support.incidents import (
    ALARM,
    OPENED,
    RESOLVED,
    WELL,
    Place,
    place_of,
    provoke,
    reject,
    reject_at_once,
    resolve,
    set_apart,
    statuses,
    take_samples,
    told,
)
from tests.support.racing import in_background, race, wait_until_blocked
from tokenfleet.account import Trigger
from tokenfleet.guard import SAMPLES, SILENT_AFTER
from tokenfleet.jobs import AccountId, AppId
from tokenfleet_client.contract import AccountStatus

LIMIT = 20
PARKED = Place(is_due=False, is_scheduled=False, incident_id=1)


@pytest.fixture
def app_id(engine: Engine, vault: Vault) -> AppId:
    return make_app(engine, vault)


def people(engine: Engine, vault: Vault, app_id: AppId, count: int) -> list[AccountId]:
    return [make_account(engine, vault, app_id) for _ in range(count)]


def save(
    engine: Engine, vault: Vault, account_id: AccountId, *, epoch: int, activates: bool = False
) -> object:
    with engine.begin() as connection:
        tokens = answer(vault, account_id, epoch=epoch, generation=1, activates=activates)
        return settlement.save_refreshed(connection, [tokens], actor=ACTOR)


def pass_time(engine: Engine, minutes: int) -> None:
    with engine.begin() as connection:
        connection.execute(
            text(
                "UPDATE tokenfleet.oauth_apps SET rejections_since = rejections_since - make_interval(mins => :m)"
            ),
            {"m": minutes},
        )


# Tripping


def test_of_many_writers_together_only_the_limit_flips_and_one_incident_opens(
    engine: Engine, vault: Vault, app_id: AppId
) -> None:
    make_many_accounts(engine, app_id, 1000, due_from=-HOUR, due_to=HOUR)
    ids = [
        AccountId(each)
        for each in column(engine, "SELECT id FROM tokenfleet.accounts ORDER BY md5(id::text)")
    ]

    results = reject_at_once(engine, ids[:300], writers=6)

    flipped = [each for result in results for each in result.flipped]
    parked = [each for result in results for each in result.parked]
    assert 0 < len(flipped) <= LIMIT
    assert sorted(flipped + parked) == sorted(ids[:300])
    [opened] = [incident for result in results for incident in result.opened]
    assert statuses(engine, app_id) == {"needs_reauth": len(flipped), "active": 1000 - len(flipped)}
    assert told(engine) == {ALARM: len(flipped), OPENED: 1}
    assert set_apart(engine, opened.incident_id) == sorted(ids[:300])


def test_a_batch_that_would_exceed_the_limit_flips_nobody(
    engine: Engine, vault: Vault, app_id: AppId
) -> None:
    ids = people(engine, vault, app_id, LIMIT + 1)
    result = reject(engine, ids)
    assert (result.flipped, result.parked) == (frozenset(), frozenset(ids))
    [opened] = result.opened
    assert (opened.kind, opened.code) == (Kind.MASS_REJECTION, "invalid_grant")
    assert history_of(engine, ids[0]) == ["refresh.grant_rejected"]
    state = state_of(engine, vault, ids[0])
    assert (state.status, state.claimed_until, state.last_error) == (
        AccountStatus.ACTIVE,
        None,
        "invalid_grant",
    )
    [payload] = column(engine, "SELECT payload FROM tokenfleet.outbox WHERE account_id IS NULL")
    assert payload["kind"] == "mass_rejection"
    assert (payload["status"], payload["resolved_at"]) == ("open", None)
    assert payload["integration_name"] == "acme"


def test_a_window_lets_its_limit_pass_and_the_next_one_begins_anew(
    engine: Engine, vault: Vault, app_id: AppId
) -> None:
    ids = people(engine, vault, app_id, LIMIT * 2 + 1)
    assert len(reject(engine, ids[:LIMIT]).flipped) == LIMIT
    pass_time(engine, 11)
    assert len(reject(engine, ids[LIMIT : LIMIT * 2]).flipped) == LIMIT
    assert reject(engine, ids[LIMIT * 2 :]).parked == {ids[-1]}
    # Those of the window before are no part of it.
    with engine.connect() as connection:
        [usual] = connection.execute(text("SELECT usual_rejections FROM tokenfleet.oauth_apps")).scalars()
    assert usual == pytest.approx(1.0)


def test_the_same_rejection_written_twice_counts_once_and_tells_once(
    engine: Engine, vault: Vault, app_id: AppId
) -> None:
    ids = people(engine, vault, app_id, LIMIT)
    for _ in range(3):
        reject(engine, ids)
    assert told(engine) == {ALARM: LIMIT}
    [extra, *more] = people(engine, vault, app_id, 3)
    provoke(engine, [extra, *more])
    reject(engine, [extra])
    assert history_of(engine, extra) == ["refresh.grant_rejected"]
    assert told(engine) == {ALARM: LIMIT, OPENED: 1}


def test_one_apps_incident_does_not_touch_another_app(engine: Engine, vault: Vault, app_id: AppId) -> None:
    provoke(engine, people(engine, vault, app_id, LIMIT + 1))
    other = make_app(engine, vault)
    [theirs, healthy] = people(engine, vault, other, 2)
    assert reject(engine, [theirs]).flipped == {theirs}
    assert [each.account_id for each in claim(engine, other)] == [healthy]


def test_a_batch_of_two_apps_is_judged_for_each_of_them(engine: Engine, vault: Vault, app_id: AppId) -> None:
    other = make_app(engine, vault)
    many, few = people(engine, vault, app_id, LIMIT + 1), people(engine, vault, other, 2)
    result = reject(engine, [*many, *few])
    assert (result.flipped, result.parked) == (frozenset(few), frozenset(many))


def test_losses_that_a_death_of_ours_explains_flip_and_open_nothing(
    engine: Engine, vault: Vault, app_id: AppId
) -> None:
    ids = people(engine, vault, app_id, 60)
    result = reject(engine, ids[:50], reason="rotation_lost", explained=True)
    assert (len(result.flipped), result.opened) == (50, ())
    # What the provider lost itself is counted, whatever it is called.
    assert len(reject(engine, ids[50:55], reason="rotation_lost").flipped) == 5
    assert column(engine, "SELECT rejections FROM tokenfleet.oauth_apps") == [5]


def test_while_an_incident_is_open_explained_losses_are_set_apart_too(
    engine: Engine, vault: Vault, app_id: AppId
) -> None:
    ids = people(engine, vault, app_id, LIMIT + 2)
    incident_id = provoke(engine, ids[:-1])
    result = reject(engine, ids[-1:], reason="rotation_lost", explained=True)
    assert result.parked == {ids[-1]}
    resolve(engine, incident_id, Resolution.CONFIRMED)
    take_samples(engine)
    assert state_of(engine, vault, ids[-1]).status_reason == "rotation_lost"


def test_rejections_in_a_row_are_counted_until_somebody_succeeds(
    engine: Engine, vault: Vault, app_id: AppId
) -> None:
    ids = people(engine, vault, app_id, LIMIT * 2 + 2)
    counts: list[int] = []
    for share, after_success in ((ids[:5], False), (ids[5:10], False), (ids[10:12], True), (ids[12:], False)):
        reject(engine, share, after_success=after_success)
        counts += column(engine, "SELECT rejections_in_row FROM tokenfleet.oauth_apps")
    assert counts == [5, 10, 2, 2 + len(ids) - 12]
    assert counts[-1] >= SILENT_AFTER


# Samples, and taking back


def test_a_sample_that_is_rejected_again_changes_nothing(engine: Engine, vault: Vault, app_id: AppId) -> None:
    ids = people(engine, vault, app_id, LIMIT + 1)
    provoke(engine, ids)
    [(sampled_app, claims)] = take_samples(engine).items()
    assert sampled_app == app_id
    assert 1 <= len(claims) <= SAMPLES
    attempts = start(engine, job_of(app_id, claims))
    assert len(attempts) == len(claims)
    result = reject(engine, [each.account_id for each in claims], epoch=1)
    assert result.flipped == frozenset()
    assert all(place_of(engine, each) == PARKED for each in ids)
    assert history_of(engine, claims[0].account_id) == ["refresh.grant_rejected"] * 2
    assert told(engine) == {OPENED: 1}


def test_a_sample_that_succeeds_takes_everybody_back_and_tells_nobody_who_was_not_told(
    engine: Engine, vault: Vault, app_id: AppId
) -> None:
    ids = people(engine, vault, app_id, LIMIT + 30)
    assert len(reject(engine, ids[:LIMIT]).flipped) == LIMIT
    incident_id = provoke(engine, ids[LIMIT:])
    assert set_apart(engine, incident_id) == ids
    [claims] = take_samples(engine).values()
    sample = claims[0].account_id
    was_told = sample in ids[:LIMIT]
    save(engine, vault, sample, epoch=1, activates=was_told)
    assert told(engine) == {ALARM: LIMIT, OPENED: 1, RESOLVED: 1} | ({WELL: 1} if was_told else {})
    let_claims_expire(engine)
    take_samples(engine)
    assert set_apart(engine, incident_id) == []
    assert all(place_of(engine, each).is_due for each in ids if each != sample)
    assert not place_of(engine, sample).is_due
    assert column(engine, "SELECT resolution FROM tokenfleet.provider_incidents") == ["recovered"]
    assert column(engine, "SELECT rejections FROM tokenfleet.oauth_apps") == [0]
    assert column(engine, "SELECT sample_at FROM tokenfleet.provider_incidents") == [None]
    # Whose grant lives is well again; who is rejected again stays, and hears nothing more.
    alive, dead = (each for each in ids[:LIMIT] if each != sample), ids[LIMIT - 1]
    first = next(alive)
    save(engine, vault, first, epoch=2, activates=True)
    reject(engine, [dead], epoch=2)
    assert state_of(engine, vault, first).status is AccountStatus.ACTIVE
    assert state_of(engine, vault, dead).status is AccountStatus.NEEDS_REAUTH
    assert told_about(engine, first) == [ALARM, WELL]
    assert told_about(engine, dead) == [ALARM] if dead != sample else [ALARM, WELL]


def test_a_success_of_somebody_who_was_not_set_apart_proves_nothing(
    engine: Engine, vault: Vault, app_id: AppId
) -> None:
    [healthy, *ids] = people(engine, vault, app_id, LIMIT + 2)
    provoke(engine, ids)
    save(engine, vault, healthy, epoch=1)
    assert column(engine, "SELECT resolved_at FROM tokenfleet.provider_incidents") == [None]
    assert place_of(engine, ids[0]) == PARKED


def test_a_late_answer_for_a_parked_account_is_saved_and_lets_it_go_and_proves_nothing(
    engine: Engine, vault: Vault, app_id: AppId
) -> None:
    ids = people(engine, vault, app_id, LIMIT + 1)
    provoke(engine, ids)
    save(engine, vault, ids[0], epoch=1)
    assert state_of(engine, vault, ids[0]).generation == 2
    assert place_of(engine, ids[0]) == Place(is_due=True, is_scheduled=True, incident_id=None)
    assert place_of(engine, ids[1]) == PARKED
    assert column(engine, "SELECT resolved_at FROM tokenfleet.provider_incidents") == [None]


def test_a_late_answer_that_arrives_while_a_sample_is_out_proves_nothing(
    engine: Engine, vault: Vault, app_id: AppId
) -> None:
    ids = people(engine, vault, app_id, LIMIT + 1)
    claim(engine, app_id)
    provoke(engine, ids)
    [claims] = take_samples(engine).values()
    assert claims[0].epoch == 2
    save(engine, vault, claims[0].account_id, epoch=1)
    assert place_of(engine, claims[0].account_id).incident_id is None
    assert column(engine, "SELECT resolved_at FROM tokenfleet.provider_incidents") == [None]


def test_an_incident_that_has_nobody_left_is_closed(engine: Engine, vault: Vault, app_id: AppId) -> None:
    ids = people(engine, vault, app_id, LIMIT + 1)
    provoke(engine, ids)
    with engine.begin() as connection:
        transitions.pause(connection, ids, actor=ACTOR, reason=None)
    take_samples(engine)
    assert column(engine, "SELECT resolution FROM tokenfleet.provider_incidents") == ["recovered"]
    assert told(engine) == {OPENED: 1, RESOLVED: 1}


def test_a_kept_candidate_brings_a_parked_account_back(engine: Engine, vault: Vault, app_id: AppId) -> None:
    ids = people(engine, vault, app_id, LIMIT + 2)
    for epoch in (1, 2):
        # The second answer to the first generation's question lost against the first one.
        save(engine, vault, ids[0], epoch=epoch)
    provoke(engine, ids[1:])
    assert reject(engine, ids[:1], generation=2).parked == {ids[0]}
    with engine.connect() as connection:
        assert [each.account_id for each in candidates.deposed(connection)] == [ids[0]]


# The operator


@pytest.mark.parametrize("trigger", [Trigger.PAUSED, Trigger.REVOKED])
def test_what_an_operator_does_to_a_parked_account_takes_it_out_of_the_incident(
    engine: Engine, vault: Vault, app_id: AppId, trigger: Trigger
) -> None:
    ids = people(engine, vault, app_id, LIMIT + 1)
    incident_id = provoke(engine, ids)
    with engine.begin() as connection:
        transitions.lock(connection, ids[:1])
        transitions.apply(connection, trigger, ids[:1], actor=ACTOR, reason=None)
        transitions.unschedule(connection, ids[:1])
    assert ids[0] not in set_apart(engine, incident_id)
    resolve(engine, incident_id, Resolution.DISMISSED)
    take_samples(engine)
    assert not place_of(engine, ids[0]).is_scheduled
    assert all(place_of(engine, each).is_due for each in ids[1:])


def test_a_parked_account_that_is_paused_and_resumed_is_asked_once_more_and_parked_again(
    engine: Engine, vault: Vault, app_id: AppId
) -> None:
    ids = people(engine, vault, app_id, LIMIT + 1)
    provoke(engine, ids)
    with engine.begin() as connection:
        transitions.pause(connection, ids[:1], actor=ACTOR, reason=None)
        transitions.resume(connection, ids[:1], actor=ACTOR)
    assert place_of(engine, ids[0]) == Place(is_due=True, is_scheduled=True, incident_id=None)
    assert reject(engine, ids[:1], epoch=1).parked == {ids[0]}
    assert told(engine) == {OPENED: 1}


def test_confirming_flips_the_parked_ones_and_tells_each_once(
    engine: Engine, vault: Vault, app_id: AppId
) -> None:
    ids = people(engine, vault, app_id, LIMIT + 10)
    reject(engine, ids[:LIMIT])
    incident_id = provoke(engine, ids[LIMIT:])
    assert resolve(engine, incident_id, Resolution.CONFIRMED) is not None
    for _ in range(2):
        take_samples(engine)
    assert statuses(engine, app_id) == {"needs_reauth": len(ids)}
    assert told(engine) == {ALARM: len(ids), OPENED: 1, RESOLVED: 1}
    assert {place_of(engine, each) for each in ids} == {
        Place(is_due=False, is_scheduled=False, incident_id=None)
    }
    assert state_of(engine, vault, ids[-1]).status_reason == "invalid_grant"


def test_several_operators_resolve_an_incident_once(engine: Engine, vault: Vault, app_id: AppId) -> None:
    incident_id = provoke(engine, people(engine, vault, app_id, LIMIT + 1))
    words = [Resolution.CONFIRMED, Resolution.DISMISSED] * 3
    results = race([partial(resolve, engine, incident_id, word) for word in words])
    [first] = [each for each in results if each is not None]
    assert column(engine, "SELECT resolution FROM tokenfleet.provider_incidents") == [first.resolution]
    assert told(engine)[RESOLVED] == 1


def test_an_account_whose_answer_is_awaited_is_given_back_when_that_is_settled(
    engine: Engine, vault: Vault, app_id: AppId
) -> None:
    ids = people(engine, vault, app_id, LIMIT + 1)
    incident_id = provoke(engine, ids)
    [claims] = take_samples(engine).values()
    start(engine, job_of(app_id, claims))
    resolve(engine, incident_id, Resolution.DISMISSED)
    take_samples(engine)
    out = sorted(each.account_id for each in claims)
    assert set_apart(engine, incident_id) == out
    # Its rejection was on the way when the incident ended: nobody is flipped for that.
    assert reject(engine, out, epoch=1).parked == frozenset(out)
    take_samples(engine)
    assert set_apart(engine, incident_id) == []
    assert told(engine) == {OPENED: 1, RESOLVED: 1}


# Together


def test_rejections_answers_samples_and_verdicts_at_once_never_deadlock(
    engine: Engine, vault: Vault, app_id: AppId
) -> None:
    ids = people(engine, vault, app_id, 90)
    provoke(engine, ids[:30])
    epochs = itertools.count(100)

    def reject_all() -> None:
        for position in range(0, 90, 15):
            reject(engine, ids[position : position + 15][::-1])

    def save_all() -> None:
        for position in range(0, 90, 15):
            share = ids[position : position + 15]
            answers = [answer(vault, each, epoch=next(epochs), generation=1) for each in share]
            with engine.begin() as connection:
                settlement.save_refreshed(connection, answers, actor=ACTOR)

    def look_after() -> None:
        for _ in range(6):
            take_samples(engine)

    def operate() -> None:
        for position in range(0, 90, 10):
            with engine.begin() as connection:
                transitions.pause(connection, ids[position : position + 3], actor=ACTOR, reason=None)
                transitions.resume(connection, ids[position : position + 3], actor=ACTOR)
                schedule.request_refresh(connection, ids[position : position + 10])

    def rule() -> None:
        for incident_id in column(engine, "SELECT id FROM tokenfleet.provider_incidents"):
            resolve(engine, incident_id, Resolution.DISMISSED)

    race([reject_all, save_all, look_after, operate, rule, reject_all])
    assert column(engine, "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()") == [0]
    assert statuses(engine, app_id)["needs_reauth"] <= 3 * LIMIT


def test_an_import_is_not_kept_waiting_by_the_guards_lock(
    engine: Engine, vault: Vault, app_id: AppId
) -> None:
    [account_id] = people(engine, vault, app_id, 1)
    with engine.begin() as connection:
        rejections.reject(connection, [rejection(account_id, epoch=1, generation=1)], actor=ACTOR)
        # A new account refers to the app's row, which the guard has locked until the commit.
        with engine.begin() as importing:
            importing.execute(text("SET LOCAL lock_timeout = '2s'"))
            importing.execute(
                text(
                    "INSERT INTO tokenfleet.accounts (provider, environment, external_id, app_id, status) "
                    "SELECT provider, environment, 'new', id, 'active' FROM tokenfleet.oauth_apps WHERE id = :id"
                ),
                {"id": app_id},
            )
    assert state_of(engine, vault, account_id).status is AccountStatus.NEEDS_REAUTH


def test_a_late_rejection_that_meets_the_end_of_its_incident_leaves_nobody_behind(
    engine: Engine, vault: Vault, app_id: AppId
) -> None:
    """Its account was given back between the moment the rejection looked and the moment it was written."""
    ids = people(engine, vault, app_id, 25)
    incident_id = provoke(engine, ids)
    resolve(engine, incident_id, Resolution.RECOVERED)
    with engine.connect() as somebody:
        transaction = somebody.begin()
        somebody.execute(
            text("SELECT FROM tokenfleet.oauth_apps WHERE id = :id FOR NO KEY UPDATE"), {"id": app_id}
        )
        late = in_background(partial(reject, engine, ids[:1]))
        wait_until_blocked(engine)
        take_samples(engine)
        assert set_apart(engine, incident_id) == []
        transaction.commit()
    late.result(10)
    take_samples(engine)
    assert set_apart(engine, incident_id) == []
    assert place_of(engine, ids[0]).is_due


def test_rejections_of_one_batch_are_in_a_row_only_since_the_last_success_between_them(
    engine: Engine, vault: Vault, app_id: AppId
) -> None:
    """A part of a provider rejects: of a large batch many do, and the others go on succeeding."""
    ids = people(engine, vault, app_id, 60)
    provoke(engine, ids[:25])
    words = [
        replace(rejection(each, epoch=1, generation=1), after_success=position % 2 == 0)
        for position, each in enumerate(ids[25:])
    ]
    with engine.begin() as connection:
        rejections.reject(connection, words[::-1], actor=ACTOR)
    [in_row] = column(engine, "SELECT rejections_in_row FROM tokenfleet.oauth_apps")
    assert in_row < SILENT_AFTER


def test_who_is_flipped_by_an_operators_word_is_told_what_the_provider_said_of_the_grant(
    engine: Engine, vault: Vault, app_id: AppId
) -> None:
    """A sample that met an outage meanwhile says nothing of it."""
    ids = people(engine, vault, app_id, 25)
    incident_id = provoke(engine, ids)
    [claims] = take_samples(engine).values()
    outages = [deferral(attempt, code="http_503") for attempt in start(engine, job_of(app_id, claims))]
    with engine.begin() as connection:
        settlement.defer(connection, outages, actor=ACTOR)
    resolve(engine, incident_id, Resolution.CONFIRMED)
    take_samples(engine)
    reasons = set(column(engine, "SELECT status_reason FROM tokenfleet.accounts"))
    assert reasons == {"invalid_grant"}


def test_confirming_does_not_flip_who_was_refreshed_by_a_worker_of_the_release_before(
    engine: Engine, vault: Vault, app_id: AppId
) -> None:
    """That one saves a sample's answer and leaves the incident's mark, of which it does not know."""
    ids = people(engine, vault, app_id, 25)
    incident_id = provoke(engine, ids)
    with engine.begin() as connection:
        connection.execute(
            text(
                "UPDATE tokenfleet.refresh_schedule SET next_refresh_at = now() + interval '1 hour', "
                "failing_since = NULL, last_error = NULL, attempts = 0 WHERE account_id = :id"
            ),
            {"id": ids[0]},
        )
    resolve(engine, incident_id, Resolution.CONFIRMED)
    take_samples(engine)
    assert statuses(engine, app_id) == {"active": 1, "needs_reauth": 24}
    assert place_of(engine, ids[0]) == Place(is_due=False, is_scheduled=True, incident_id=None)
    assert told_about(engine, ids[0]) == []
