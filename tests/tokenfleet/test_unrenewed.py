"""Access tokens that are never renewed: never presented, probed, announced, and given up by three words in a row."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tokenfleet.test_lifetimes import any_lifetimes, chances, holdings
from tokenfleet.dead_probes import CONFIRMED_AFTER, weigh_dead_probe
from tokenfleet.lifetimes import (
    LONGEST_REST,
    SOONEST,
    Holding,
    Lifetimes,
    Purpose,
    announced_end,
    first_visit,
    must_present,
    next_visit,
    visit_after_unclear_probe,
)
from tokenfleet.policy import Known, RequireReauth, RetryLater, doubt_delay
from tokenfleet.tokens import Margins

NOW = datetime(2026, 3, 10, 12, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
MARGINS = Margins()
PROBED = Lifetimes(renews=False, probe_every=6 * HOUR)

unrenewed = any_lifetimes.map(lambda lifetimes: replace(lifetimes, renews=False))


def key(lives: timedelta | None = None, *, granted: timedelta = timedelta(0)) -> Holding:
    return Holding(NOW, None if lives is None else NOW + lives, granted_at=NOW - granted)


@given(holdings(), unrenewed, chances, st.booleans())
def test_nothing_is_ever_presented_for_a_token_that_is_not_renewed(
    held: Holding, lifetimes: Lifetimes, chance: float, has_access_token: bool
) -> None:
    visits = [
        next_visit(held, lifetimes, MARGINS, now=NOW, chance=chance),
        visit_after_unclear_probe(held, lifetimes, MARGINS, now=NOW, chance=chance),
        first_visit(held, lifetimes, MARGINS, has_access_token=has_access_token, now=NOW, chance=chance),
    ]
    assert not any(visit.presents for visit in visits)
    assert all(NOW <= visit.at <= NOW + LONGEST_REST for visit in visits)
    assert not must_present(held, lifetimes, MARGINS, now=NOW + 1000 * DAY)


def test_a_key_is_probed_as_often_as_its_definition_says_although_nobody_knows_its_end() -> None:
    visit = next_visit(key(), PROBED, MARGINS, now=NOW, chance=0.999)
    assert visit.purpose is Purpose.PROBE
    assert 4 * HOUR < visit.at - NOW <= 6 * HOUR
    assert first_visit(key(), PROBED, MARGINS, has_access_token=True, now=NOW, chance=0.5).at == NOW


def test_a_key_without_a_probe_is_left_in_peace() -> None:
    for lives in (None, -HOUR):
        visit = next_visit(key(lives, granted=DAY), Lifetimes(renews=False), MARGINS, now=NOW, chance=0.5)
        told = replace(key(lives, granted=DAY), told=True)
        rest = next_visit(told, Lifetimes(renews=False), MARGINS, now=NOW, chance=0.5)
        assert rest.at == NOW + LONGEST_REST
        assert (visit.at == NOW + SOONEST) == (lives is not None)


def test_a_known_end_is_announced_once_and_probed_when_it_comes() -> None:
    held = key(20 * DAY)
    lifetimes = Lifetimes(renews=False)
    visit = next_visit(held, lifetimes, MARGINS, now=NOW, chance=0.5)
    assert (visit.purpose, visit.at) == (Purpose.WARNING, NOW + 16 * DAY)
    assert announced_end(held, lifetimes, now=visit.at - timedelta(seconds=1)) is None
    assert announced_end(held, lifetimes, now=visit.at) == held.expires_at
    told = replace(held, told=True)
    assert announced_end(told, lifetimes, now=visit.at) is None
    almost = NOW + 20 * DAY - HOUR
    assert next_visit(told, PROBED, MARGINS, now=almost, chance=0.5).at == held.expires_at


def known(doubts: int) -> Known:
    return Known(attempts=doubts, unanswered=0, replayed=False, margins=MARGINS, rotates=False, doubts=doubts)


@given(chance=chances)
def test_the_third_word_in_a_row_is_the_providers_definite_one(chance: float) -> None:
    for doubts, delay in enumerate(CONFIRMED_AFTER):
        decision = weigh_dead_probe("http_401", known(doubts), now=NOW, chance=chance)
        assert isinstance(decision, RetryLater)
        assert (decision.code, decision.in_doubt, decision.answer_lost) == ("http_401", True, False)
        assert delay * 0.75 <= decision.at - NOW <= delay * 1.25
    decision = weigh_dead_probe("http_401", known(len(CONFIRMED_AFTER)), now=NOW, chance=chance)
    assert decision == RequireReauth("http_401", "http_401")


@given(chance=chances)
def test_words_in_one_bad_hour_are_one_word_however_often_somebody_asks(chance: float) -> None:
    began = NOW - timedelta(seconds=40)
    for doubts, apart in ((1, timedelta(minutes=10)), (2, timedelta(minutes=130))):
        again = weigh_dead_probe("http_401", known(doubts), now=NOW, chance=chance, failing_since=began)
        assert isinstance(again, RetryLater)
        assert (again.in_doubt, again.counts) == (False, False)
        assert NOW < again.at <= began + apart * 1.25
        told = weigh_dead_probe("http_401", known(doubts), now=again.at, chance=chance, failing_since=began)
        assert (
            isinstance(told, RequireReauth) if doubts == 2 else isinstance(told, RetryLater) and told.in_doubt
        )


@pytest.mark.parametrize("doubts", [0, 1, 2, 10**6])
def test_every_doubt_has_a_wait(doubts: int) -> None:
    assert timedelta(seconds=45) <= doubt_delay(doubts, 0.0) <= doubt_delay(doubts, 0.999) <= HOUR
