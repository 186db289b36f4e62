"""``decide`` as a whole: total, calm, and never wrong about who has to sign in again."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Final, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenfleet.learning import NEVER_EXPIRES
from tokenfleet.lifetimes import UNKNOWN_LIFETIME_INTERVAL
from tokenfleet.outcome import (
    ClientRejected,
    GrantRejected,
    Outcome,
    OutcomeUnknown,
    Refreshed,
    RequestRejected,
    Throttled,
    TokenAnswer,
    Unavailable,
    Undescribed,
)
from tokenfleet.policy import (
    BACKOFF_BASE,
    BACKOFF_CAP,
    BACKOFF_FLOOR,
    DOUBT_DELAYS,
    ENDLESS_GRACE,
    LEARNED_LIFETIME_CAP,
    OVERDUE_FLOOR,
    QUARANTINE_BASE,
    QUARANTINE_DELAY,
    READERS_MARGIN,
    REPLAYS_IN_GRACE,
    ROTATION_LOST,
    THROTTLE_CAP,
    THROTTLE_LONGEST,
    Decision,
    HoldApp,
    Known,
    PauseApp,
    Quarantine,
    Replay,
    RequireReauth,
    RetryLater,
    Save,
    backoff,
    decide,
)
from tokenfleet.tokens import Margins
from tokenfleet_client.secret import Secret

NOW: Final = datetime(2026, 1, 15, 12, tzinfo=UTC)
ONE_SECOND: Final = timedelta(seconds=1)

chances = st.floats(min_value=0, max_value=1, exclude_max=True)
codes = st.text(min_size=1, max_size=20)
moments = st.integers(0, 7 * 10**9).map(lambda seconds: datetime.fromtimestamp(seconds, UTC))
expiries = st.datetimes(timezones=st.just(UTC))
margins = st.builds(
    Margins,
    earliest=st.timedeltas(timedelta(0), timedelta(days=30)),
    latest=st.timedeltas(timedelta(0), timedelta(days=30)),
)
knowns = st.builds(
    Known,
    attempts=st.integers(0, 10**9),
    unanswered=st.integers(0, 10**9),
    replayed=st.booleans(),
    margins=margins,
    last_lifetime=st.none() | st.timedeltas(),
    doubts=st.integers(0, 10**9),
    expires_at=st.none() | expiries,
    throttles=st.integers(0, 10**9),
)
answers = st.builds(TokenAnswer, access_token=st.just(Secret("example")), expires_at=st.none() | expiries)
refreshed = st.builds(Refreshed, answers)
failures: st.SearchStrategy[Outcome] = st.one_of(
    st.builds(GrantRejected, codes),
    st.builds(ClientRejected, codes, st.booleans()),
    st.builds(Throttled, codes, st.none() | st.timedeltas(), st.booleans()),
    st.builds(Unavailable, codes),
    st.builds(OutcomeUnknown, codes),
    st.builds(RequestRejected, codes),
    st.builds(Undescribed, codes, codes),
)
outcomes: st.SearchStrategy[Outcome] = st.one_of(refreshed, failures)


def known(
    *,
    attempts: int = 0,
    unanswered: int = 0,
    replayed: bool = False,
    last_lifetime: timedelta | None = None,
    doubts: int = 0,
) -> Known:
    return Known(attempts, unanswered, replayed, Margins(), last_lifetime, doubts=doubts)


def moment_of(decision: Decision) -> datetime | None:
    """When the account is asked about again; None where the decision names no moment."""
    match decision:
        case Save(moment) | RetryLater(moment) | Quarantine(moment) | PauseApp(moment):
            return moment
        case _:
            return None


# Totality


@given(outcome=outcomes, what_we_know=knowns, now=moments, chance=chances)
def test_every_outcome_has_a_decision(
    outcome: Outcome, what_we_know: Known, now: datetime, chance: float
) -> None:
    assert isinstance(decide(outcome, what_we_know, now=now, chance=chance), get_args(Decision))


@given(outcome=outcomes, what_we_know=knowns, now=moments, chance=chances)
def test_a_decision_depends_on_nothing_but_its_arguments(
    outcome: Outcome, what_we_know: Known, now: datetime, chance: float
) -> None:
    first = decide(outcome, what_we_know, now=now, chance=chance)
    assert decide(outcome, what_we_know, now=now, chance=chance) == first


@given(outcome=outcomes, what_we_know=knowns, now=moments, chance=chances)
def test_no_moment_is_sooner_than_one_second_from_now(
    outcome: Outcome, what_we_know: Known, now: datetime, chance: float
) -> None:
    moment = moment_of(decide(outcome, what_we_know, now=now, chance=chance))
    assert moment is None or moment >= now + ONE_SECOND


@given(outcome=failures, what_we_know=knowns, now=moments, chance=chances)
def test_no_failure_puts_an_account_off_for_more_than_a_day(
    outcome: Outcome, what_we_know: Known, now: datetime, chance: float
) -> None:
    moment = moment_of(decide(outcome, what_we_know, now=now, chance=chance))
    assert moment is None or moment <= now + timedelta(days=1)


# Who is asked to sign in again (G4)


@given(outcome=outcomes, what_we_know=knowns, now=moments, chance=chances)
def test_only_a_rejected_grant_requires_a_new_sign_in(
    outcome: Outcome, what_we_know: Known, now: datetime, chance: float
) -> None:
    decision = decide(outcome, what_we_know, now=now, chance=chance)
    assert isinstance(decision, RequireReauth) == isinstance(outcome, GrantRejected)


@given(outcome=outcomes, what_we_know=knowns, now=moments, chance=chances)
def test_only_a_good_answer_is_saved(
    outcome: Outcome, what_we_know: Known, now: datetime, chance: float
) -> None:
    decision = decide(outcome, what_we_know, now=now, chance=chance)
    assert isinstance(decision, Save) == isinstance(outcome, Refreshed)


@given(outcome=outcomes, what_we_know=knowns, now=moments, chance=chances)
def test_only_a_client_that_is_rejected_for_everybody_holds_its_app(
    outcome: Outcome, what_we_know: Known, now: datetime, chance: float
) -> None:
    decision = decide(outcome, what_we_know, now=now, chance=chance)
    assert isinstance(decision, HoldApp) == (isinstance(outcome, ClientRejected) and outcome.whole_app)


@given(outcome=outcomes, what_we_know=knowns, now=moments, chance=chances)
def test_only_throttling_that_is_everybodys_pauses_the_app(
    outcome: Outcome, what_we_know: Known, now: datetime, chance: float
) -> None:
    decision = decide(outcome, what_we_know, now=now, chance=chance)
    assert isinstance(decision, PauseApp) == (isinstance(outcome, Throttled) and outcome.whole_app)


def test_a_rejection_gives_the_providers_word_as_reason() -> None:
    decision = decide(GrantRejected("invalid_grant"), known(attempts=5), now=NOW, chance=0.5)
    assert decision == RequireReauth("invalid_grant", "invalid_grant")


@given(unanswered=st.integers(1, 1000), replayed=st.booleans())
def test_a_rejection_after_a_lost_answer_is_a_lost_rotation(unanswered: int, replayed: bool) -> None:
    what_we_know = known(unanswered=unanswered, replayed=replayed)
    decision = decide(GrantRejected("invalid_grant"), what_we_know, now=NOW, chance=0.5)
    assert decision == RequireReauth(ROTATION_LOST, "invalid_grant")


def test_where_refresh_tokens_are_never_replaced_no_rotation_can_be_lost() -> None:
    what_we_know = replace(known(unanswered=3, replayed=True), rotates=False)
    decision = decide(GrantRejected("invalid_grant"), what_we_know, now=NOW, chance=0.5)
    assert decision == RequireReauth("invalid_grant", "invalid_grant")


# Lost answers


@given(chance=chances, grace=st.integers(8, 600), attempts=st.integers(0, 100))
def test_within_a_grace_window_a_lost_answer_is_asked_for_several_times(
    chance: float, grace: int, attempts: int
) -> None:
    window, waited = timedelta(seconds=grace), timedelta(0)
    for unanswered in range(1, REPLAYS_IN_GRACE + 1):
        outcome = OutcomeUnknown("cut") if unanswered % 2 else Unavailable("http_503")
        what_we_know = replace(
            known(attempts=attempts + unanswered, unanswered=unanswered, replayed=True), replay_grace=window
        )
        decision = decide(outcome, what_we_know, now=NOW, chance=chance)
        assert isinstance(decision, RetryLater)
        waited += decision.at - NOW
    assert waited < window


@given(attempts=st.integers(0, 100), chance=chances, unanswered=st.sampled_from([0, REPLAYS_IN_GRACE + 1]))
def test_without_a_lost_answer_and_after_the_grace_a_failure_waits_as_ever(
    attempts: int, chance: float, unanswered: int
) -> None:
    what_we_know = replace(
        known(attempts=attempts, unanswered=unanswered, replayed=True), replay_grace=timedelta(seconds=30)
    )
    decision = decide(Unavailable("http_503"), what_we_know, now=NOW, chance=chance)
    assert decision == RetryLater(NOW + backoff(attempts, chance), "http_503")


@given(attempts=st.integers(0, 10**6), unanswered=st.integers(0, 100), chance=chances)
def test_a_grace_without_end_makes_no_wait_without_end(attempts: int, unanswered: int, chance: float) -> None:
    endless = replace(
        known(attempts=attempts, unanswered=unanswered, replayed=True), replay_grace=ENDLESS_GRACE
    )
    decision = decide(OutcomeUnknown("cut"), endless, now=NOW, chance=chance)
    assert isinstance(decision, RetryLater)
    assert decision.at - NOW == backoff(attempts, chance) <= BACKOFF_CAP


@given(what_we_know=knowns, now=moments, chance=chances)
def test_a_lost_answer_is_replayed_unless_it_was_already(
    what_we_know: Known, now: datetime, chance: float
) -> None:
    decision = decide(OutcomeUnknown("cut"), what_we_know, now=now, chance=chance)
    assert isinstance(decision, Replay) == (not what_we_know.replayed)


@given(
    story=st.lists(outcomes, min_size=1, max_size=20),
    attempts=st.integers(0, 100),
    unanswered=st.integers(0, 100),
    chance=chances,
)
def test_an_attempt_presents_its_refresh_token_at_most_twice(
    story: list[Outcome], attempts: int, unanswered: int, chance: float
) -> None:
    presented = 0
    replayed = False
    for outcome in story:
        presented += 1
        what_we_know = known(attempts=attempts, unanswered=unanswered + replayed, replayed=replayed)
        if not isinstance(decide(outcome, what_we_know, now=NOW, chance=chance), Replay):
            break
        replayed = True
    assert presented <= 2


@given(outcome=outcomes, what_we_know=knowns, now=moments, chance=chances)
def test_only_a_lost_answer_is_ever_replayed(
    outcome: Outcome, what_we_know: Known, now: datetime, chance: float
) -> None:
    if isinstance(decide(outcome, what_we_know, now=now, chance=chance), Replay):
        assert isinstance(outcome, OutcomeUnknown)


def test_a_second_lost_answer_waits_and_says_that_the_answer_was_lost() -> None:
    decision = decide(OutcomeUnknown("cut"), known(replayed=True, unanswered=1), now=NOW, chance=0.5)
    assert isinstance(decision, RetryLater)
    assert decision.answer_lost
    assert decision.counts


# Backoff


@given(attempts=st.integers(0, 10**9), chance=chances)
def test_backoff_stays_between_its_floor_and_its_ceiling(attempts: int, chance: float) -> None:
    wait = backoff(attempts, chance)
    assert BACKOFF_FLOOR <= wait <= BACKOFF_CAP
    assert wait <= max(BACKOFF_FLOOR, BACKOFF_BASE * 2 ** min(attempts, 16))


@given(attempts=st.integers(0, 40), chance=chances)
def test_backoff_never_shrinks_with_more_failures(attempts: int, chance: float) -> None:
    assert backoff(attempts + 1, chance) >= backoff(attempts, chance)


@given(attempts=st.integers(0, 40))
def test_backoff_uses_the_full_range_so_that_a_crowd_disperses(attempts: int) -> None:
    waits = [backoff(attempts, step / 1000) for step in range(1000)]
    ceiling = min(BACKOFF_CAP, BACKOFF_BASE * 2**attempts)
    assert waits[0] == BACKOFF_FLOOR
    assert waits[-1] >= ceiling * 0.99
    assert len(set(waits)) > 700


def test_an_unavailable_provider_counts_against_the_account() -> None:
    decision = decide(Unavailable("http_503"), known(), now=NOW, chance=0.5)
    assert decision == RetryLater(NOW + timedelta(seconds=2), "http_503")


# Throttling


def test_a_throttled_app_pauses_for_as_long_as_the_provider_says() -> None:
    outcome = Throttled("http_429", timedelta(seconds=77))
    assert decide(outcome, known(), now=NOW, chance=0) == PauseApp(NOW + timedelta(seconds=77), "http_429")


@pytest.mark.parametrize(
    ("retry_after", "pause"),
    [
        pytest.param(timedelta(milliseconds=1), ONE_SECOND, id="hardly any"),
        pytest.param(timedelta(days=400), THROTTLE_CAP, id="absurd"),
        pytest.param(timedelta.max, THROTTLE_CAP, id="the largest there is"),
    ],
)
def test_an_unreasonable_pause_is_made_reasonable(retry_after: timedelta | None, pause: timedelta) -> None:
    assert decide(Throttled("http_429", retry_after), known(), now=NOW, chance=0) == PauseApp(
        NOW + pause, "http_429"
    )


@pytest.mark.parametrize("retry_after", [timedelta(0), timedelta(days=-1)], ids=["zero", "in the past"])
def test_a_moment_that_is_over_names_no_length_and_the_pauses_grow(retry_after: timedelta) -> None:
    for throttles, seconds in ((0, 5), (3, 40)):
        decision = decide(
            Throttled("http_429", retry_after), replace(known(), throttles=throttles), now=NOW, chance=0
        )
        assert decision == PauseApp(NOW + timedelta(seconds=seconds), "http_429", throttles + 1)


def test_a_connection_that_is_throttled_for_itself_waits_alone() -> None:
    told = Throttled("http_429", timedelta(seconds=77), whole_app=False)
    assert decide(told, known(attempts=4), now=NOW, chance=0) == RetryLater(
        NOW + timedelta(seconds=77), "http_429"
    )


def test_a_connection_that_is_not_told_how_long_waits_longer_each_time_up_to_a_limit() -> None:
    decisions = [
        decide(Throttled("busy", whole_app=False), known(attempts=attempts), now=NOW, chance=0)
        for attempts in (0, 1, 2, 5, 10**9)
    ]
    waits = [*(timedelta(seconds=seconds) for seconds in (5, 10, 20, 160)), THROTTLE_LONGEST]
    assert decisions == [RetryLater(NOW + wait, "busy") for wait in waits]


def test_a_pause_of_unsaid_length_doubles_with_each_in_a_row_up_to_a_quarter_of_an_hour() -> None:
    pauses = []
    for throttles in range(12):
        decision = decide(Throttled("http_429"), replace(known(), throttles=throttles), now=NOW, chance=0)
        assert isinstance(decision, PauseApp)
        assert decision.throttles == throttles + 1
        pauses.append((decision.until - NOW).total_seconds())
    assert pauses[:8] == [5, 10, 20, 40, 80, 160, 320, 640]
    assert set(pauses[8:]) == {THROTTLE_LONGEST.total_seconds()}


# Backoff of an account whose token still lives


@given(
    attempts=st.integers(0, 30),
    left=st.timedeltas(timedelta(seconds=-100), timedelta(minutes=20)),
    chance=chances,
    lost=st.booleans(),
)
def test_no_backoff_steps_past_the_moment_at_which_readers_are_owed_a_new_token(
    attempts: int, left: timedelta, chance: float, lost: bool
) -> None:
    what_we_know = replace(known(attempts=attempts, replayed=lost), expires_at=NOW + READERS_MARGIN + left)
    outcome = OutcomeUnknown("timeout") if lost else Unavailable("http_503")
    decision = decide(outcome, what_we_know, now=NOW, chance=chance)
    assert isinstance(decision, RetryLater)
    wait = decision.at - NOW
    if left > timedelta(0):
        assert wait <= max(left / 2, ONE_SECOND)
    else:
        assert wait == min(backoff(attempts, chance), max(OVERDUE_FLOOR, -left))


def test_an_outage_that_has_just_outlasted_a_token_is_not_answered_by_minutes_of_silence() -> None:
    just_owed = replace(known(attempts=9), expires_at=NOW + READERS_MARGIN)
    decision = decide(Unavailable("http_403"), just_owed, now=NOW, chance=0.999)
    assert isinstance(decision, RetryLater)
    assert decision.at - NOW <= OVERDUE_FLOOR


# Our own faults, and what nobody has described

doubtful = st.one_of(st.builds(RequestRejected, codes), st.builds(Undescribed, codes, codes))


@given(outcome=doubtful, chance=chances, attempts=st.integers(0, 1000))
def test_what_may_be_permanent_is_probed_twice_and_far_apart_before_anybody_is_told(
    outcome: RequestRejected | Undescribed, chance: float, attempts: int
) -> None:
    for doubts, delay in enumerate(DOUBT_DELAYS):
        decision = decide(outcome, known(attempts=attempts, doubts=doubts), now=NOW, chance=chance)
        assert isinstance(decision, RetryLater)
        assert decision.in_doubt
        assert delay * 0.75 <= decision.at - NOW <= delay * 1.25
    after = known(attempts=attempts, doubts=len(DOUBT_DELAYS))
    assert decide(outcome, after, now=NOW, chance=chance) == Quarantine(NOW + QUARANTINE_BASE, outcome.code)


@given(outcome=doubtful, chance=chances)
def test_a_long_outage_before_an_odd_answer_makes_it_no_better_known(
    outcome: RequestRejected | Undescribed, chance: float
) -> None:
    decision = decide(outcome, known(attempts=500, unanswered=3), now=NOW, chance=chance)
    assert isinstance(decision, RetryLater)


@given(outcome=failures, what_we_know=knowns, chance=chances)
def test_only_what_repetition_may_not_help_with_leaves_a_doubt(
    outcome: Outcome, what_we_know: Known, chance: float
) -> None:
    decision = decide(outcome, what_we_know, now=NOW, chance=chance)
    in_doubt = isinstance(decision, Quarantine) or (isinstance(decision, RetryLater) and decision.in_doubt)
    expected = isinstance(outcome, RequestRejected | Undescribed)
    assert in_doubt == (expected or (isinstance(outcome, ClientRejected) and not outcome.whole_app))


def test_a_quarantine_lasts_twice_as_long_each_time_up_to_a_limit() -> None:
    decisions = [
        decide(Undescribed("odd", "400 {}"), known(doubts=doubts), now=NOW, chance=0)
        for doubts in (2, 3, 4, 5, 6, 10**9)
    ]
    waits = [QUARANTINE_BASE * 2**times for times in range(4)] + [QUARANTINE_DELAY] * 2
    assert decisions == [Quarantine(NOW + wait, "odd") for wait in waits]


def test_a_client_that_one_connection_rejects_costs_that_connection_alone() -> None:
    outcome = ClientRejected("app_disabled", whole_app=False)
    decisions = [decide(outcome, known(doubts=doubts), now=NOW, chance=0) for doubts in (0, 1, 90)]
    waits = [QUARANTINE_BASE, QUARANTINE_BASE * 2, QUARANTINE_DELAY]
    assert decisions == [Quarantine(NOW + wait, "app_disabled") for wait in waits]


# When a good answer is renewed


def saved(
    expires_at: datetime | None, *, last_lifetime: timedelta | None = None, chance: float = 0
) -> datetime:
    outcome = Refreshed(TokenAnswer(access_token=Secret("example"), expires_at=expires_at))
    decision = decide(outcome, known(last_lifetime=last_lifetime), now=NOW, chance=chance)
    assert isinstance(decision, Save)
    return decision.next_refresh_at


def test_a_token_of_an_hour_is_renewed_one_to_three_minutes_before_it_expires() -> None:
    expires_at = NOW + timedelta(hours=1)
    assert saved(expires_at, chance=0) == expires_at - timedelta(seconds=60)
    assert saved(expires_at, chance=0.999) > expires_at - timedelta(seconds=180)


@pytest.mark.parametrize("expires_at", [NOW, NOW - timedelta(days=1), datetime.min.replace(tzinfo=UTC)])
def test_a_token_that_arrives_expired_does_not_become_a_busy_loop(expires_at: datetime) -> None:
    assert saved(expires_at) == NOW + ONE_SECOND


def test_an_untold_lifetime_is_taken_to_be_the_last_one_learned() -> None:
    told = saved(NOW + timedelta(hours=2), chance=0.25)
    assert saved(None, last_lifetime=timedelta(hours=2), chance=0.25) == told


def test_a_learned_lifetime_is_not_believed_without_end() -> None:
    capped = saved(None, last_lifetime=LEARNED_LIFETIME_CAP)
    assert saved(None, last_lifetime=timedelta.max) == capped


@pytest.mark.parametrize("lifetime", [timedelta(0), timedelta(hours=-1), timedelta.min])
def test_a_token_that_was_imported_expired_teaches_no_lifetime(lifetime: timedelta) -> None:
    assert saved(None, last_lifetime=lifetime) == saved(None)


@given(chance=chances)
def test_an_unknown_lifetime_is_never_taken_to_mean_for_ever(chance: float) -> None:
    moment = saved(None, chance=chance)
    assert UNKNOWN_LIFETIME_INTERVAL * 0.75 <= moment - NOW <= UNKNOWN_LIFETIME_INTERVAL


def test_what_is_said_to_have_no_end_is_remembered_until_something_else_is_said() -> None:
    never = Refreshed(TokenAnswer(Secret("example"), never_expires=True))
    silent = Refreshed(TokenAnswer(Secret("example")))
    for outcome, what_we_know in (
        (never, known()),
        (never, known(last_lifetime=timedelta(hours=2))),
        (silent, replace(known(), learned_lifetime=NEVER_EXPIRES)),
    ):
        decision = decide(outcome, what_we_know, now=NOW, chance=0)
        assert isinstance(decision, Save)
        assert (decision.expires_at, decision.learned_lifetime) == (None, NEVER_EXPIRES)
        assert decision.probing
    # A life of two hours that came after the word is the newer one.
    what_we_know = replace(known(last_lifetime=timedelta(hours=2)), learned_lifetime=NEVER_EXPIRES)
    decision = decide(silent, what_we_know, now=NOW, chance=0)
    assert isinstance(decision, Save)
    assert decision.expires_at == NOW + timedelta(hours=2)


@pytest.mark.parametrize("chance", [0.0, 0.5, 0.999])
def test_a_provider_that_gives_the_same_token_until_it_ends_is_asked_once_before_and_then_at_its_end(
    chance: float,
) -> None:
    life = timedelta(hours=2)
    now, obtained_at, end = NOW, NOW, NOW + life
    asked = []
    while now <= end:
        holds = replace(known(last_lifetime=end - obtained_at), expires_at=end)
        answer = TokenAnswer(Secret("the same"), expires_at=end)
        decision = decide(Refreshed(answer), holds, now=now, chance=chance)
        assert isinstance(decision, Save)
        asked.append(decision.next_refresh_at)
        obtained_at, now = now, decision.next_refresh_at
        if now == end:
            break
    assert len(asked) == 2
    assert timedelta(seconds=60) <= end - asked[0] <= timedelta(seconds=180)
    assert asked[1] == end


def test_a_short_token_that_was_asked_for_twice_is_renewed_in_time() -> None:
    """It ends when the one before did, for both were issued in one moment."""
    holds = replace(known(last_lifetime=timedelta(seconds=60)), expires_at=NOW + timedelta(seconds=60))
    answer = TokenAnswer(Secret("another"), expires_at=NOW + timedelta(seconds=62))
    decision = decide(Refreshed(answer), holds, now=NOW + timedelta(seconds=2), chance=0.5)
    assert isinstance(decision, Save)
    assert decision.next_refresh_at < NOW + timedelta(seconds=50)
