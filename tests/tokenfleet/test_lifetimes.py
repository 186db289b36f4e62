"""The plan of visits: what holds of every definition, every account and every draw of chance."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tokenfleet.learning import LEARNED_LIFETIME_FLOOR, learned_lifetime, refresh_token_end
from tokenfleet.lifetimes import (
    KEEPALIVE_EARLIEST,
    KEEPALIVE_LATEST,
    LONGEST_REST,
    SOONEST,
    UNKNOWN_LIFETIME_INTERVAL,
    Holding,
    Lifetimes,
    Purpose,
    announced_end,
    first_visit,
    must_present,
    next_visit,
    refresh_opens,
    visit_after_unclear_probe,
    warning_period,
)
from tokenfleet.outcome import OutcomeUnknown, TokenAnswer
from tokenfleet.policy import Known, Replay, decide
from tokenfleet.tokens import Margins
from tokenfleet_client.secret import Secret

NOW = datetime(2026, 3, 10, 12, tzinfo=UTC)
SECOND, HOUR, DAY = timedelta(seconds=1), timedelta(hours=1), timedelta(days=1)
ROUNDING = timedelta(microseconds=10)
MARGINS = Margins()


def durations(longest: timedelta = 800 * DAY) -> st.SearchStrategy[timedelta]:
    return st.timedeltas(min_value=SECOND, max_value=longest)


chances = st.floats(min_value=0, max_value=1, exclude_max=True)
ages = st.timedeltas(min_value=timedelta(0), max_value=30 * DAY)
any_lifetimes = st.builds(
    Lifetimes,
    access_never_expires=st.booleans(),
    earliest_refresh=st.none() | durations(),
    minimum_age=st.none() | durations(),
    refresh_idle=st.none() | durations(),
    refresh_absolute=st.none() | durations(),
    probe_every=st.none() | durations(),
)


@st.composite
def holdings(draw: st.DrawFn) -> Holding:
    obtained_at = NOW - draw(ages)
    lives = draw(st.none() | durations())
    ends = draw(st.none() | st.timedeltas(min_value=-30 * DAY, max_value=800 * DAY))
    return Holding(
        obtained_at=obtained_at,
        expires_at=None if lives is None else obtained_at + lives,
        granted_at=draw(st.none() | st.just(obtained_at) | ages.map(lambda age: obtained_at - age)),
        refresh_token_expires_at=None if ends is None else obtained_at + ends,
        end_is_fixed=draw(st.booleans()),
        told=draw(st.booleans()),
        never_expires=draw(st.booleans()),
    )


def holding(lives: timedelta | None = HOUR) -> Holding:
    return Holding(NOW, None if lives is None else NOW + lives, granted_at=NOW)


@given(holdings(), any_lifetimes, chances)
def test_a_visit_is_never_sooner_than_a_second_from_now(
    held: Holding, lifetimes: Lifetimes, chance: float
) -> None:
    visit = next_visit(held, lifetimes, MARGINS, now=NOW, chance=chance)
    assert visit.at >= NOW + SOONEST
    later = visit_after_unclear_probe(held, lifetimes, MARGINS, now=NOW, chance=chance)
    assert later.at >= NOW + SOONEST


@given(holdings(), any_lifetimes, chances)
def test_a_token_is_visited_before_its_latest_margin_whatever_else_there_is_to_do(
    held: Holding, lifetimes: Lifetimes, chance: float
) -> None:
    assume(held.expires_at is not None)
    assert held.expires_at is not None
    opens = refresh_opens(held.obtained_at, held.expires_at, lifetimes)
    _, latest = MARGINS.for_lifetime(held.expires_at - held.obtained_at)
    due = max(held.expires_at - latest, opens or NOW, NOW + SOONEST)
    visit = next_visit(held, lifetimes, MARGINS, now=NOW, chance=chance)
    assert visit.at <= due + ROUNDING


@given(holdings(), any_lifetimes, chances)
def test_no_refresh_token_is_presented_before_the_window_opens(
    held: Holding, lifetimes: Lifetimes, chance: float
) -> None:
    opens = refresh_opens(held.obtained_at, held.expires_at, lifetimes)
    visit = next_visit(held, lifetimes, MARGINS, now=NOW, chance=chance)
    if visit.presents and opens is not None:
        assert visit.at >= opens
    if must_present(held, lifetimes, MARGINS, now=NOW):
        assert opens is None or opens <= NOW


@given(holdings(), any_lifetimes, chances)
def test_a_visit_that_takes_place_when_a_refresh_is_overdue_is_one(
    held: Holding, lifetimes: Lifetimes, chance: float
) -> None:
    """So a probe that was planned, and comes late, cannot make the refresh late (G1)."""
    visit = next_visit(held, lifetimes, MARGINS, now=NOW, chance=chance)
    assume(held.expires_at is not None)
    assert held.expires_at is not None
    late = max(held.expires_at, visit.at)
    assert must_present(held, lifetimes, MARGINS, now=late)


@given(
    idle=durations().filter(lambda idle: idle > 20 * SECOND), chance=chances, lives=st.none() | durations()
)
def test_a_refresh_token_is_used_in_the_last_third_of_its_idle_limit_at_the_latest(
    idle: timedelta, chance: float, lives: timedelta | None
) -> None:
    lifetimes = Lifetimes(refresh_idle=idle, access_never_expires=lives is None)
    visit = next_visit(holding(lives), lifetimes, MARGINS, now=NOW, chance=chance)
    assert visit.presents
    assert visit.at - NOW <= idle * KEEPALIVE_LATEST + ROUNDING
    if visit.purpose is Purpose.KEEPALIVE:
        assert visit.at - NOW >= idle * KEEPALIVE_EARLIEST - ROUNDING


@given(held=holdings(), lifetimes=any_lifetimes)
def test_an_end_is_announced_in_its_last_week_or_fifth_and_once(held: Holding, lifetimes: Lifetimes) -> None:
    end = announced_end(held, lifetimes, now=NOW)
    if end is not None:
        assert not held.told
        assert end - NOW <= timedelta(days=7) + ROUNDING
        assert announced_end(replace(held, told=True), lifetimes, now=NOW) is None


def test_an_unknown_lifetime_is_probed_every_half_hour_or_else_renewed() -> None:
    unknown = holding(None)
    probed = next_visit(unknown, Lifetimes(probe_every=6 * HOUR), MARGINS, now=NOW, chance=0.5)
    renewed = next_visit(unknown, Lifetimes(), MARGINS, now=NOW, chance=0.5)
    assert (probed.purpose, renewed.purpose) == (Purpose.PROBE, Purpose.REFRESH)
    assert max(probed.at, renewed.at) <= NOW + UNKNOWN_LIFETIME_INTERVAL
    often = next_visit(unknown, Lifetimes(probe_every=60 * SECOND), MARGINS, now=NOW, chance=0.5)
    assert often.at <= NOW + 60 * SECOND


def test_an_unknown_lifetime_that_a_probe_cannot_tell_is_renewed_and_not_sooner_than_without_probes() -> None:
    visit = visit_after_unclear_probe(
        holding(None), Lifetimes(probe_every=HOUR), MARGINS, now=NOW, chance=0.5
    )
    assert visit.purpose is Purpose.REFRESH
    assert visit.at - NOW >= UNKNOWN_LIFETIME_INTERVAL * 0.75


def test_a_token_that_is_renewed_soon_is_not_probed() -> None:
    lifetimes = Lifetimes(probe_every=HOUR)
    assert next_visit(holding(HOUR), lifetimes, MARGINS, now=NOW, chance=0.5).purpose is Purpose.REFRESH
    assert next_visit(holding(DAY), lifetimes, MARGINS, now=NOW, chance=0.5).purpose is Purpose.PROBE


def test_a_token_that_never_expires_is_only_kept_alive_and_probed() -> None:
    never = Lifetimes(access_never_expires=True)
    rest = next_visit(holding(None), never, MARGINS, now=NOW, chance=0.5)
    assert (rest.at, rest.presents) == (NOW + LONGEST_REST, False)
    probed = next_visit(holding(None), replace(never, probe_every=HOUR), MARGINS, now=NOW, chance=0.5)
    assert probed.purpose is Purpose.PROBE
    kept = next_visit(holding(None), replace(never, refresh_idle=HOUR), MARGINS, now=NOW, chance=0.5)
    assert kept.purpose is Purpose.KEEPALIVE


@pytest.mark.parametrize(
    ("life", "ahead"),
    [(365 * DAY, timedelta(days=7)), (10 * DAY, timedelta(days=2)), (HOUR, timedelta(minutes=12))],
)
def test_the_warning_comes_a_week_ahead_or_in_the_last_fifth_of_a_short_life(
    life: timedelta, ahead: timedelta
) -> None:
    assert warning_period(life) == ahead
    lifetimes = Lifetimes(access_never_expires=True, refresh_absolute=life)
    visit = next_visit(holding(None), lifetimes, MARGINS, now=NOW, chance=0.5)
    assert (visit.purpose, visit.at, visit.presents) == (Purpose.WARNING, NOW + life - ahead, False)
    assert announced_end(holding(None), lifetimes, now=visit.at - SECOND) is None
    assert announced_end(holding(None), lifetimes, now=visit.at) == NOW + life


@pytest.mark.parametrize(
    ("moved", "restated", "lifetimes", "fixed"),
    [
        (HOUR, True, Lifetimes(), False),
        (timedelta(0), True, Lifetimes(), True),
        (timedelta(0), False, Lifetimes(), True),
        (timedelta(0), False, Lifetimes(refresh_idle=DAY), False),
    ],
    ids=["sliding", "fixed", "kept", "kept idle limit"],
)
def test_an_end_that_use_does_not_move_is_fixed(
    moved: timedelta, restated: bool, lifetimes: Lifetimes, fixed: bool
) -> None:
    before = NOW + 10 * DAY
    answer = TokenAnswer(Secret("access"), refresh_token_expires_at=before + moved if restated else None)
    end = refresh_token_end(answer, Secret("refresh"), before, elapsed=HOUR, lifetimes=lifetimes)
    assert end == (before + moved, fixed)
    hasty = refresh_token_end(answer, Secret("refresh"), before, elapsed=SECOND, lifetimes=lifetimes)
    assert hasty == (before + moved, False)


def test_a_sliding_end_is_kept_alive_and_a_fixed_one_is_announced() -> None:
    """An old grant with a refresh token of one day: its last fifth would be weeks."""
    stated = replace(holding(None), granted_at=NOW - 100 * DAY, refresh_token_expires_at=NOW + DAY)
    lifetimes = Lifetimes(access_never_expires=True)
    assert announced_end(stated, lifetimes, now=NOW) is None
    assert next_visit(stated, lifetimes, MARGINS, now=NOW, chance=0.5).purpose is Purpose.KEEPALIVE
    assert announced_end(replace(stated, end_is_fixed=True), lifetimes, now=NOW) == NOW + DAY


@given(age=durations(), seen=st.none() | durations())
def test_a_death_teaches_no_longer_life_than_was_seen(age: timedelta, seen: timedelta | None) -> None:
    alive_at = None if seen is None else NOW - age + min(seen, age)
    lived = learned_lifetime(NOW - age, alive_at, now=NOW)
    assert lived <= max(age, LEARNED_LIFETIME_FLOOR)
    assert lived >= LEARNED_LIFETIME_FLOOR
    if seen is not None and seen <= age:
        assert lived == max(seen, LEARNED_LIFETIME_FLOOR)


@pytest.mark.parametrize("lives", [None, timedelta(0), -HOUR])
def test_an_imported_token_of_unknown_age_or_none_is_renewed_at_once(lives: timedelta | None) -> None:
    for has_access_token in (True, False):
        visit = first_visit(
            holding(lives), Lifetimes(), MARGINS, has_access_token=has_access_token, now=NOW, chance=0.5
        )
        assert (visit.at, visit.purpose) == (NOW, Purpose.REFRESH)


def test_an_imported_token_that_never_expires_is_not_renewed_for_nothing() -> None:
    lifetimes = Lifetimes(access_never_expires=True, probe_every=HOUR)
    visit = first_visit(holding(None), lifetimes, MARGINS, has_access_token=True, now=NOW, chance=0.5)
    assert visit.purpose is Purpose.PROBE


@pytest.mark.parametrize(
    ("max_live", "lost", "replays"), [(None, 9, True), (3, 1, True), (3, 2, False), (1, 0, False)]
)
def test_a_token_is_not_replayed_beyond_what_the_provider_keeps_alive(
    max_live: int | None, lost: int, replays: bool
) -> None:
    """Each presentation whose answer was lost may have left a successor, and the oldest dies for one too many."""
    known = Known(attempts=0, unanswered=lost, replayed=False, margins=MARGINS, max_live=max_live)
    decision = decide(OutcomeUnknown("timeout"), known, now=NOW, chance=0.5)
    assert isinstance(decision, Replay) is replays


@given(
    obtained=st.timedeltas(timedelta(0), 10 * DAY),
    lives=durations(90 * DAY).filter(lambda lives: lives > 2 * HOUR),
    chance=chances,
)
def test_a_token_that_has_to_be_of_age_is_renewed_between_that_and_its_end(
    obtained: timedelta, lives: timedelta, chance: float
) -> None:
    """Also one that was imported shortly before its end, whose age nobody knows."""
    lifetimes = Lifetimes(minimum_age=DAY)
    held = Holding(NOW, NOW + lives, granted_at=NOW)
    visit = next_visit(held, lifetimes, MARGINS, now=NOW, chance=chance)
    assert visit.purpose is Purpose.REFRESH
    assert visit.at >= NOW + min(DAY, lives - 60 * SECOND)
    assert visit.at < NOW + lives
    assert not must_present(held, lifetimes, MARGINS, now=visit.at - SECOND) or lives > DAY


def test_the_later_of_two_bounds_counts() -> None:
    both = Lifetimes(minimum_age=DAY, earliest_refresh=HOUR)
    assert refresh_opens(NOW, NOW + 2 * DAY, both) == NOW + 2 * DAY - HOUR
    assert refresh_opens(NOW, NOW + DAY + 60 * SECOND, both) == NOW + DAY
    assert refresh_opens(NOW, None, both) == NOW + DAY
    assert refresh_opens(NOW, None, Lifetimes(earliest_refresh=HOUR)) is None


def test_a_token_that_is_said_to_have_no_end_is_probed_and_not_renewed_for_nothing() -> None:
    endless = replace(holding(None), never_expires=True)
    probed = next_visit(endless, Lifetimes(probe_every=6 * HOUR), MARGINS, now=NOW, chance=0.999)
    assert (probed.purpose, probed.at > NOW + 5 * HOUR) == (Purpose.PROBE, True)
    assert next_visit(endless, Lifetimes(), MARGINS, now=NOW, chance=0.5).at == NOW + LONGEST_REST
    unclear = visit_after_unclear_probe(endless, Lifetimes(probe_every=HOUR), MARGINS, now=NOW, chance=0.5)
    assert unclear.purpose is Purpose.PROBE
