"""When a token is due, and what an answer leaves of what we had."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenfleet.outcome import TokenAnswer
from tokenfleet.tokens import EARLIEST_MARGIN, LATEST_MARGIN, Margins, TokenSet, merge, refresh_due
from tokenfleet_client.secret import Secret

NOW: Final = datetime(2026, 1, 15, 12, tzinfo=UTC)
PROMISED: Final = timedelta(seconds=30)
"""What readers are promised to have left (G1)."""
ROUNDING: Final = timedelta(microseconds=2)

lifetimes = st.timedeltas(timedelta(seconds=1), timedelta(days=365))
chances = st.floats(min_value=0, max_value=1, exclude_max=True)
any_margins = st.builds(
    Margins,
    earliest=st.timedeltas(timedelta(0), timedelta(days=30)),
    latest=st.timedeltas(timedelta(0), timedelta(days=30)),
)


def due(lifetime: timedelta, *, chance: float, margins: Margins | None = None) -> datetime:
    return refresh_due(NOW + lifetime, now=NOW, margins=margins or Margins(), chance=chance)


# When a token is due


@given(lifetime=lifetimes, chance=chances)
def test_a_token_is_never_due_later_than_its_latest_margin(lifetime: timedelta, chance: float) -> None:
    latest = min(LATEST_MARGIN, lifetime * 2 / 3)
    assert due(lifetime, chance=chance) <= NOW + lifetime - latest + ROUNDING


@given(lifetime=lifetimes, chance=chances)
def test_a_token_is_never_due_earlier_than_its_earliest_margin(lifetime: timedelta, chance: float) -> None:
    earliest = min(EARLIEST_MARGIN, lifetime * 4 / 5)
    moment = due(lifetime, chance=chance)
    assert moment >= NOW + lifetime - earliest - ROUNDING
    assert moment >= NOW


@given(lifetime=st.timedeltas(timedelta(seconds=45), timedelta(days=365)), chance=chances)
def test_a_token_of_45_seconds_or_more_is_due_before_readers_lose_their_30(
    lifetime: timedelta, chance: float
) -> None:
    assert NOW + lifetime - due(lifetime, chance=chance) >= PROMISED - ROUNDING


@given(chance=chances)
def test_a_token_of_a_minute_is_due_40_to_48_seconds_before_it_expires(chance: float) -> None:
    margin = timedelta(minutes=1) - (due(timedelta(minutes=1), chance=chance) - NOW)
    assert timedelta(seconds=40) - ROUNDING <= margin <= timedelta(seconds=48) + ROUNDING


@given(lifetime=lifetimes, chance=chances, margins=any_margins)
def test_margins_of_a_definition_are_kept_or_scaled_down_for_short_lives(
    lifetime: timedelta, chance: float, margins: Margins
) -> None:
    moment = due(lifetime, chance=chance, margins=margins)
    assert NOW <= moment <= NOW + lifetime - min(margins.latest, lifetime * 2 / 3) + ROUNDING


@given(lifetime=lifetimes, margins=any_margins)
def test_the_earliest_margin_is_never_the_smaller_one(lifetime: timedelta, margins: Margins) -> None:
    earliest, latest = margins.for_lifetime(lifetime)
    assert timedelta(0) <= latest <= earliest <= max(lifetime, latest)


@pytest.mark.parametrize("seconds", [60, 300, 3600, 86_400])
def test_tokens_issued_together_are_not_renewed_together(seconds: int) -> None:
    lifetime = timedelta(seconds=seconds)
    earliest, latest = Margins().for_lifetime(lifetime)
    moments = sorted(due(lifetime, chance=step / 1000) for step in range(1000))
    gaps = [later - sooner for sooner, later in itertools.pairwise(moments)]
    assert moments[-1] - moments[0] >= (earliest - latest) * 0.99
    assert max(gaps) <= (earliest - latest) / 500
    assert len(set(moments)) == 1000


@given(lateness=st.timedeltas(timedelta(0), timedelta(days=10_000)), chance=chances)
def test_an_expired_token_is_due_now(lateness: timedelta, chance: float) -> None:
    assert due(-lateness, chance=chance) == NOW


# What an answer leaves of what we had

secrets = st.text(min_size=1, max_size=10).map(Secret)
expiries = st.datetimes(timezones=st.just(UTC))
answers = st.builds(
    TokenAnswer,
    access_token=secrets,
    token_type=st.none() | st.just("Bearer"),
    expires_at=st.none() | expiries,
    refresh_token=st.none() | secrets,
    refresh_token_expires_at=st.none() | expiries,
    scope=st.none() | st.text(max_size=10),
    variables=st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=2),
)


def merged(answer: TokenAnswer, *, expires_at: datetime | None = None, scope: str | None = None) -> TokenSet:
    return merge(answer, refresh_token=Secret("old"), refresh_token_expires_at=expires_at, scope=scope)


@given(answer=answers, held=st.none() | secrets, expires_at=st.none() | expiries, scope=st.none() | st.text())
def test_merging_takes_what_the_answer_says_and_keeps_the_rest(
    answer: TokenAnswer, held: Secret | None, expires_at: datetime | None, scope: str | None
) -> None:
    tokens = merge(answer, refresh_token=held, refresh_token_expires_at=expires_at, scope=scope)
    assert tokens.access_token == answer.access_token
    assert tokens.expires_at == answer.expires_at
    assert tokens.refresh_token == (answer.refresh_token or held)
    assert tokens.scope == (scope if answer.scope is None else answer.scope)
    assert tokens.variables == answer.variables


@given(answer=answers)
def test_merging_never_loses_a_refresh_token(answer: TokenAnswer) -> None:
    assert merged(answer).refresh_token


def test_an_answer_without_a_refresh_token_keeps_the_old_one_and_its_expiry() -> None:
    tokens = merged(TokenAnswer(access_token=Secret("new")), expires_at=NOW)
    assert tokens.refresh_token == Secret("old")
    assert tokens.refresh_token_expires_at == NOW


def test_an_empty_refresh_token_is_no_refresh_token() -> None:
    answer = TokenAnswer(access_token=Secret("new"), refresh_token=Secret(""))
    assert merged(answer).refresh_token == Secret("old")


def test_a_rotated_refresh_token_replaces_the_old_one_and_its_expiry() -> None:
    answer = TokenAnswer(access_token=Secret("new"), refresh_token=Secret("successor"))
    tokens = merged(answer, expires_at=NOW)
    assert tokens.refresh_token == Secret("successor")
    assert tokens.refresh_token_expires_at is None


def test_an_answer_may_state_a_new_expiry_for_the_refresh_token_it_did_not_rotate() -> None:
    later = NOW + timedelta(days=90)
    answer = TokenAnswer(access_token=Secret("new"), refresh_token_expires_at=later)
    assert merged(answer, expires_at=NOW).refresh_token_expires_at == later


def test_an_omitted_scope_means_that_it_did_not_change() -> None:
    assert merged(TokenAnswer(access_token=Secret("new")), scope="read write").scope == "read write"
    narrowed = TokenAnswer(access_token=Secret("new"), scope="read")
    assert merged(narrowed, scope="read write").scope == "read"


def test_a_token_set_prints_no_token() -> None:
    tokens = merged(TokenAnswer(access_token=Secret("planted-1"), refresh_token=Secret("planted-2")))
    assert "planted" not in repr(tokens)
