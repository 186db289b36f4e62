"""The rules of a reader, without any I/O: what it asks, how long it waits, and how it refuses."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from tests.support.reading_stage import NOW, Stage
from tokenfleet_client import (
    Account,
    Connecting,
    ContractError,
    DatabaseUnavailable,
    MinValidityUnreachable,
    NeedsReauth,
    Paused,
    Revoked,
    StaleToken,
    TokenUnavailable,
    UnknownAccount,
    UnknownKey,
)
from tokenfleet_client.contract import Answer

DEAD = psycopg.errors.AdminShutdown("terminating connection")


@pytest.fixture
def stage() -> Stage:
    return Stage()


def test_a_fresh_token_costs_one_question_and_the_keys_are_loaded_once(stage: Stage) -> None:
    assert stage.obtain() == "access-1"
    assert stage.steps == ["read", "keys"]
    assert stage.obtain() == "access-1"
    assert stage.steps == ["read", "keys", "read"]


@pytest.mark.parametrize("account", [7, Account("acme", "c-7")])
def test_what_was_read_is_held_under_its_id_and_its_names(stage: Stage, account: Account | int) -> None:
    stage.obtain(account=account)

    for name in (7, Account("acme", "c-7")):
        token = stage.reader.held(name, timedelta(seconds=30))
        assert token is not None
        assert token.value.reveal() == "access-1"
    assert stage.reader.held(Account("acme", "c-7", "sandbox"), timedelta(seconds=30)) is None


def test_a_token_that_lives_too_short_is_refreshed_and_waited_for(stage: Stage) -> None:
    stage.hold(1, lives=10)
    stage.after(0.3, lambda: stage.hold(2))

    assert stage.obtain() == "access-2"
    assert [step for step in stage.steps if step != "read"] == ["ask", "keys"]
    assert stage.now < 1000.6


def test_pauses_between_looks_grow_up_to_a_second(stage: Stage) -> None:
    stage.hold(1, lives=10)
    stage.after(8.0, lambda: stage.hold(2))

    stage.obtain()

    assert stage.waited[0] <= 0.03
    assert stage.waited == sorted(stage.waited)
    assert max(stage.waited) == 1.0
    assert len(stage.waited) < 25


def test_what_the_fleet_says_ends_a_pause(stage: Stage) -> None:
    stage.hold(1, lives=10)
    stage.after(5.0, lambda: stage.hold(2), heard=True)

    assert stage.obtain() == "access-2"
    assert stage.now == pytest.approx(1005.0)


def test_how_long_a_token_lives_is_the_databases_word_and_not_seen_by_the_readers_clock(stage: Stage) -> None:
    stage.alter(expires_at=datetime(2000, 1, 1, tzinfo=UTC))
    assert stage.obtain() == "access-1"
    assert stage.reader.held(7, timedelta(minutes=4)) is not None

    stage.hold(2, lives=10)
    stage.alter(expires_at=datetime(2100, 1, 1, tzinfo=UTC))
    stage.reader.cache.drop(7, 2)
    with pytest.raises(StaleToken):
        stage.obtain()


@pytest.mark.parametrize(
    ("status", "kind"),
    [("needs_reauth", NeedsReauth), ("paused", Paused), ("revoked", Revoked)],
)
def test_an_account_that_nobody_refreshes_is_refused_at_once_though_its_token_may_still_live(
    stage: Stage, status: str, kind: type[TokenUnavailable]
) -> None:
    stage.alter(status=status, status_reason="because")

    with pytest.raises(kind, match="because") as refusal:
        stage.obtain()
    assert stage.steps == ["read"]
    assert getattr(refusal.value, "reason", None) == "because"


def test_an_account_that_ends_while_it_is_waited_for_is_refused_then(stage: Stage) -> None:
    stage.hold(1, lives=10)
    stage.after(2.0, lambda: stage.alter(status="needs_reauth"), heard=True)

    with pytest.raises(NeedsReauth):
        stage.obtain()
    assert stage.now == pytest.approx(1002.0)


def test_an_account_that_is_not_there_is_unknown_and_its_names_are_told(stage: Stage) -> None:
    stage.row = None

    with pytest.raises(UnknownAccount, match=r"'nobody' of acme \(sandbox\)"):
        stage.obtain(account=Account("acme", "nobody", "sandbox"))


def test_a_connecting_account_is_waited_for_and_then_said_to_be_connecting(stage: Stage) -> None:
    stage.hold(0, status="connecting")
    stage.alter(access_token=None)
    with pytest.raises(Connecting):
        stage.obtain(timeout=timedelta(seconds=1))
    assert stage.now == pytest.approx(1001.0)

    stage.after(0.5, lambda: stage.hold(1))
    assert stage.obtain() == "access-1"


def test_a_fleet_that_does_nothing_is_waited_for_as_long_as_was_said_and_no_longer(stage: Stage) -> None:
    stage.hold(1, lives=10)

    with pytest.raises(StaleToken, match="try again") as refusal:
        stage.obtain(timeout=timedelta(seconds=4))
    assert stage.now == pytest.approx(1004.0)
    assert refusal.value.expires_at == NOW + timedelta(seconds=10)


def test_a_provider_that_fails_is_not_waited_for_beyond_the_timeout_but_told_at_once(stage: Stage) -> None:
    stage.hold(1, lives=10)
    failing_since = datetime.fromisoformat("2026-11-21T11:00:00Z")
    stage.alter(failing_since=failing_since, last_error="http_503")
    stage.answer, stage.retry_in = Answer.WAITING, 60.0

    with pytest.raises(StaleToken, match=r"fails since 2026-11-21 11:00:00Z.*http_503") as refusal:
        stage.obtain()
    assert stage.waited == []
    assert refusal.value.failing_since == failing_since
    assert refusal.value.last_error == "http_503"
    assert refusal.value.retry_at == NOW + timedelta(seconds=60)


def test_a_provider_that_is_asked_again_in_time_is_waited_for(stage: Stage) -> None:
    stage.hold(1, lives=10)
    stage.answer, stage.retry_in = Answer.WAITING, 3.0
    stage.after(3.2, lambda: stage.hold(2))

    assert stage.obtain() == "access-2"


def test_a_refresh_that_failed_meanwhile_is_told_without_waiting_for_the_end(stage: Stage) -> None:
    stage.hold(1, lives=10)

    def fail() -> None:
        stage.alter(failing_since=NOW, last_error="http_503")
        stage.answer, stage.retry_in = Answer.WAITING, 600.0

    stage.after(1.0, fail)
    with pytest.raises(StaleToken, match="http_503"):
        stage.obtain()
    assert stage.now < 1003.0


def test_a_fleet_that_refuses_an_active_account_says_why(stage: Stage) -> None:
    stage.hold(1, lives=10)
    stage.alter(status_reason="parked")
    stage.answer = Answer.REFUSED

    with pytest.raises(StaleToken, match="parked"):
        stage.obtain()
    assert stage.waited == []


def test_a_validity_that_the_provider_does_not_give_is_refused_at_once(stage: Stage) -> None:
    stage.answer = Answer.UNREACHABLE

    with pytest.raises(MinValidityUnreachable) as refusal:
        stage.obtain(min_validity=timedelta(hours=2))
    assert stage.waited == []
    assert refusal.value.expires_at == NOW + timedelta(hours=1)


def test_a_token_without_an_end_is_good_for_any_validity_and_read_again_after_five_minutes(
    stage: Stage,
) -> None:
    stage.hold(1, lives=None)
    assert stage.obtain(min_validity=timedelta(days=9)) == "access-1"

    stage.now += 299
    assert stage.reader.held(7, timedelta(days=9)) is not None
    stage.now += 2
    assert stage.reader.held(7, timedelta(days=9)) is None
    assert stage.reader.held(7, timedelta(days=9)) is not None, "one caller reads it again, the others go on"


def test_an_account_that_was_paused_is_refused_to_all_as_soon_as_one_has_read_it(stage: Stage) -> None:
    stage.obtain()
    stage.alter(status="paused")
    stage.now += 301

    with pytest.raises(Paused):
        stage.obtain()
    assert stage.reader.held(7, timedelta(seconds=30)) is None


def test_a_refused_generation_is_reported_and_only_a_newer_one_returned(stage: Stage) -> None:
    stage.after(0.4, lambda: stage.hold(2))

    assert stage.obtain(newer_than=1) == "access-2"
    assert [step for step in stage.steps if step != "read"] == ["report", "keys"]


def test_a_report_of_a_token_that_seems_well_points_at_its_scopes(stage: Stage) -> None:
    stage.answer, stage.retry_in = Answer.WAITING, 60.0
    with pytest.raises(StaleToken, match="its scopes are too small"):
        stage.obtain(newer_than=1)

    stage.alter(last_error="http_500")
    with pytest.raises(StaleToken) as failing:
        stage.obtain(newer_than=1)
    assert "scopes" not in str(failing.value)


def test_a_generation_that_was_replaced_already_is_not_reported(stage: Stage) -> None:
    stage.hold(5)

    assert stage.obtain(newer_than=4) == "access-5"
    assert stage.steps == ["read", "keys"]


def test_nobody_waits_for_a_fleet_that_says_the_refused_token_is_fine(stage: Stage) -> None:
    stage.answer = Answer.FRESH

    with pytest.raises(StaleToken, match="no newer token than generation 1"):
        stage.obtain(newer_than=1)
    assert stage.waited == []


def test_a_connection_that_died_idle_is_replaced_without_a_pause(stage: Stage) -> None:
    exchange = stage.reader.obtain(stage.need())
    next(exchange)

    again = exchange.throw(DEAD)

    assert again == next(stage.reader.obtain(stage.need()))


def test_a_database_that_comes_back_within_the_timeout_is_not_noticed_but_by_waiting(stage: Stage) -> None:
    stage.away_until = stage.now + 4.0

    assert stage.obtain() == "access-1"
    assert max(stage.waited) <= 1.0


def test_a_database_that_stays_away_is_refused_at_the_timeout(stage: Stage) -> None:
    stage.away_until = stage.now + 3600

    with pytest.raises(DatabaseUnavailable, match="connection refused"):
        stage.obtain(timeout=timedelta(seconds=5))
    assert 1003.9 < stage.now <= 1005.0


def test_who_holds_a_token_that_still_lives_gets_it_while_the_database_is_away(stage: Stage) -> None:
    stage.hold(1, lives=40)
    stage.obtain()
    stage.now += 20
    stage.away_until = stage.now + 3600

    began = stage.now
    assert stage.obtain() == "access-1"
    assert stage.now - began <= 1.0, "a holder does not wait long"
    asked = len(stage.steps)
    assert stage.obtain() == "access-1"
    assert len(stage.steps) == asked, "and the next one not at all"

    stage.now = began + 20
    with pytest.raises(DatabaseUnavailable):
        stage.obtain()


def test_a_refused_token_is_not_what_one_goes_on_with_while_the_database_is_away(stage: Stage) -> None:
    stage.obtain()
    stage.away_until = stage.now + 3600

    with pytest.raises(DatabaseUnavailable):
        stage.obtain(newer_than=1)


def test_a_database_without_the_contract_is_an_operators_matter_and_told_at_once(stage: Stage) -> None:
    stage.hold(1, lives=10)
    stage.refused = psycopg.errors.UndefinedFunction("function tokenfleet_v1.request_refresh does not exist")

    with pytest.raises(ContractError, match="tokenfleet db upgrade"):
        stage.obtain()
    assert stage.waited == []


def test_a_replica_cannot_be_asked_for_a_refresh_and_says_so(stage: Stage) -> None:
    stage.hold(1, lives=10)
    stage.refused = psycopg.errors.ReadOnlySqlTransaction("cannot execute UPDATE in a read-only transaction")

    with pytest.raises(ContractError, match="read-only"):
        stage.obtain()


def test_a_key_that_appears_while_reading_is_loaded(stage: Stage) -> None:
    stage.obtain()
    stage.data_keys[2], stage.key_id = bytes([2]) * 32, 2
    stage.hold(2)

    assert stage.obtain() == "access-2"
    assert stage.steps.count("keys") == 2


def test_a_value_under_a_key_that_nobody_has_loads_the_keys_once_a_second_at_most(stage: Stage) -> None:
    stage.obtain()
    stage.data_keys[9], stage.key_id = bytes([9]) * 32, 9
    stage.hold(2)
    del stage.data_keys[9]
    stage.key_id = 1

    began = stage.now
    for _ in range(5):
        with pytest.raises(UnknownKey):
            stage.obtain()
    assert stage.steps.count("keys") == 6
    assert stage.now - began == pytest.approx(4.0)


def test_what_was_opened_is_told_in_one_batch_and_counted_from_nothing_then(stage: Stage) -> None:
    for _ in range(3):
        stage.obtain()
    stage.perform(stage.reader.tell_unsealings())
    stage.perform(stage.reader.tell_unsealings())

    assert stage.told == [("billing", "read", 3)]


def test_a_batch_that_met_no_database_is_told_later(stage: Stage) -> None:
    stage.obtain()
    stage.away_until = stage.now + 1
    stage.perform(stage.reader.tell_unsealings())
    assert stage.reader.unsealings.untold == 1

    stage.now += 2
    stage.perform(stage.reader.tell_unsealings())
    assert stage.told == [("billing", "read", 1)]


def test_a_database_that_does_not_want_to_know_is_left_alone_for_ten_minutes(stage: Stage) -> None:
    stage.refused = psycopg.errors.UndefinedFunction(
        "function tokenfleet_v1.report_unsealings does not exist"
    )
    for _ in range(3):
        assert stage.obtain() == "access-1"
        stage.perform(stage.reader.tell_unsealings())
    assert stage.steps.count("told") == 1

    stage.refused = None
    stage.now += 601
    stage.obtain()
    stage.perform(stage.reader.tell_unsealings())
    assert stage.told == [("billing", "read", 1)]


def test_a_token_says_what_its_call_needs_and_not_its_value(stage: Stage) -> None:
    token = stage.perform(stage.reader.obtain(stage.need()))

    assert token.variables == {"instance_url": "https://c-7.example"}
    assert token.account == Account("acme", "c-7")
    assert token.authorization() == "Bearer access-1"
    assert token.authorization("Example-token") == "Example-token access-1"
    assert "access-1" not in repr(token) + str(token)


def test_a_token_that_is_bound_to_a_key_is_not_put_into_a_header(stage: Stage) -> None:
    stage.alter(token_type="DPoP")
    token = stage.perform(stage.reader.obtain(stage.need()))

    with pytest.raises(ValueError, match="proof"):
        token.authorization()


def test_an_account_is_an_id_or_its_names_and_nothing_else(stage: Stage) -> None:
    with pytest.raises(TypeError, match="Account"):
        stage.obtain(account="c-7")
