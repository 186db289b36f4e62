"""Counting what is due within the hour, and letting some of it be due sooner."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

import pytest
from sqlalchemy import Engine, text

from store import coming_hour
from store.coming_hour import BUCKET, Shift
from store.keys import Vault
from tests.support.builders import claim, column, make_account, make_app, make_due
from tokenfleet.jobs import AccountId, AppId

MINUTE: Final = timedelta(minutes=1)


def at(engine: Engine) -> datetime:
    """The moment that the count begins at: now, by the database's clock."""
    [now] = column(engine, "SELECT now()")
    assert isinstance(now, datetime)
    return now


def due_moments(engine: Engine, *account_ids: AccountId) -> list[datetime]:
    return [
        moment
        for account_id in account_ids
        for moment in column(
            engine,
            "SELECT next_refresh_at FROM tokenfleet.refresh_schedule WHERE account_id = :id",
            id=account_id,
        )
    ]


def put(engine: Engine, account_id: AccountId, moment: datetime) -> AccountId:
    with engine.begin() as connection:
        connection.execute(
            text("UPDATE tokenfleet.refresh_schedule SET next_refresh_at = :moment WHERE account_id = :id"),
            {"moment": moment, "id": account_id},
        )
    return account_id


def count(
    engine: Engine, app: AppId, start: datetime, window: timedelta | None = None
) -> list[tuple[int, int, int]]:
    with engine.begin() as connection:
        visits = coming_hour.count_visits(connection, app, start=start, window=window)
    return sorted((each.due, each.earliest, each.accounts) for each in visits)


def move(engine: Engine, app: AppId, start: datetime, *shifts: Shift, window: timedelta | None = None) -> int:
    with engine.begin() as connection:
        return coming_hour.move(connection, app, shifts, start=start, window=window)


def test_visits_are_counted_by_ten_seconds_for_an_hour_and_the_late_apart(
    engine: Engine, vault: Vault
) -> None:
    app, other = make_app(engine, vault), make_app(engine, vault)
    start = at(engine)
    for seconds in (-3600, 3, 10, 19.9, 3599, 3600):
        put(engine, make_account(engine, vault, app), start + timedelta(seconds=seconds))
    make_account(engine, vault, other)
    make_account(engine, vault, app, due_in=None)
    assert count(engine, app, start) == [(-1, -1, 1), (0, 0, 1), (1, 0, 2), (359, 0, 1)]


def test_whom_a_worker_is_asking_is_not_counted(engine: Engine, vault: Vault) -> None:
    app = make_app(engine, vault)
    make_account(engine, vault, app)
    claim(engine, app)
    assert count(engine, app, at(engine)) == []


@pytest.mark.parametrize(
    "trouble",
    [
        "attempts = 1",
        "failing_since = now()",
        "quarantined = true",
        "probing = true",
        "unanswered = 1",
        "incident_id = 1",
        "claimed_until = now() - interval '1 second'",
    ],
)
def test_who_waits_for_a_reason_is_counted_and_never_moved(
    engine: Engine, vault: Vault, trouble: str
) -> None:
    app = make_app(engine, vault)
    start = at(engine)
    troubled = put(engine, make_account(engine, vault, app), start + MINUTE)
    with engine.begin() as connection:
        connection.execute(text(f"UPDATE tokenfleet.refresh_schedule SET {trouble}"))
    assert count(engine, app, start) == [(6, 6, 1)]
    assert move(engine, app, start, Shift(6, 6, 0, 1), Shift(6, 0, 0, 1)) == 0
    assert due_moments(engine, troubled) == [start + MINUTE]


def test_an_account_that_is_claimed_meanwhile_is_left_alone(engine: Engine, vault: Vault) -> None:
    app = make_app(engine, vault)
    start = at(engine)
    account_id = put(engine, make_account(engine, vault, app), start + MINUTE)
    assert count(engine, app, start) == [(6, 0, 1)]
    make_due(engine, account_id)
    [claimed] = claim(engine, app)
    assert move(engine, app, start, Shift(6, 0, 0, 1)) == 0
    assert claimed.account_id == account_id


def test_an_account_that_somebody_has_locked_is_not_waited_for(engine: Engine, vault: Vault) -> None:
    app = make_app(engine, vault)
    start = at(engine)
    locked, free = (
        put(engine, make_account(engine, vault, app), start + MINUTE + timedelta(seconds=second))
        for second in (1, 2)
    )
    with engine.begin() as connection:
        connection.execute(
            text("SELECT 1 FROM tokenfleet.refresh_schedule WHERE account_id = :id FOR UPDATE"),
            {"id": locked},
        )
        assert move(engine, app, start, Shift(6, 0, 1, 1)) == 1
    assert due_moments(engine, locked) == [start + timedelta(seconds=61)]
    assert due_moments(engine, free) < [start + 2 * BUCKET]


def test_only_who_is_due_in_the_bucket_is_moved(engine: Engine, vault: Vault) -> None:
    """The others are left where they are, though there is room for more than are found."""
    app, other = make_app(engine, vault), make_app(engine, vault)
    start = at(engine)
    accounts = [(app, 69), (app, 70), (app, 59), (other, 65)]
    ids = [put(engine, make_account(engine, vault, of), start + timedelta(seconds=s)) for of, s in accounts]
    assert move(engine, app, start, Shift(6, 0, 2, 9)) == 1
    assert [moment >= start + timedelta(seconds=59) for moment in due_moments(engine, *ids)] == [
        False, True, True, True,
    ]  # fmt: skip


def test_the_moved_are_spread_over_their_buckets_in_the_order_they_were_due(
    engine: Engine, vault: Vault
) -> None:
    app = make_app(engine, vault)
    start = at(engine)
    ids = [
        put(engine, make_account(engine, vault, app), start + MINUTE + timedelta(seconds=second))
        for second in range(6)
    ]
    assert move(engine, app, start, Shift(6, 0, 4, 2), Shift(6, 0, 1, 2)) == 4
    seconds = [(moment - start).total_seconds() for moment in due_moments(engine, *ids)]
    # Two into each of the two buckets; those who were due last stay.
    assert seconds == [12.5, 17.5, 42.5, 47.5, 64, 65]
    assert count(engine, app, start) == [(1, 0, 2), (4, 0, 2), (6, 0, 2)]


def test_nobody_is_asked_before_the_provider_takes_a_refresh(engine: Engine, vault: Vault) -> None:
    """Of tokens that expire in an hour the provider takes a refresh in the last ten minutes only."""
    app = make_app(engine, vault)
    start = at(engine)
    window = timedelta(minutes=10)
    bound, free = make_account(engine, vault, app), make_account(engine, vault, app)
    unknown = make_account(engine, vault, app, expires_in=None)
    for account_id in (bound, free, unknown):
        put(engine, account_id, start + timedelta(minutes=58))
    with engine.begin() as connection:
        for account_id, expires_in in ((bound, 60), (free, 5)):
            connection.execute(
                text("UPDATE tokenfleet.token_sets SET expires_at = :at WHERE account_id = :id"),
                {"at": start + timedelta(minutes=expires_in), "id": account_id},
            )
    fifty_minutes = 301
    assert count(engine, app, start, window) == [(348, 0, 1), (348, fifty_minutes, 1), (348, 348, 1)]
    assert move(engine, app, start, Shift(348, 0, 7, 3), window=window) == 1
    assert move(engine, app, start, Shift(348, fifty_minutes, 301, 3), window=window) == 1
    assert [moment < start + window for moment in due_moments(engine, bound, free, unknown)] == [
        False,
        True,
        False,
    ]
    assert due_moments(engine, bound)[0] >= start + timedelta(minutes=50)


def test_portions_hold_so_many_accounts_and_the_soonest_come_first() -> None:
    shifts = [Shift(9, 0, 3, 7), Shift(8, 0, 1, 5)]
    portions = list(coming_hour.in_portions(shifts, size=4))
    assert portions == [
        [Shift(8, 0, 1, 4)],
        [Shift(8, 0, 1, 1), Shift(9, 0, 3, 3)],
        [Shift(9, 0, 3, 4)],
    ]


def test_one_scheduler_at_a_time_takes_the_turn(engine: Engine) -> None:
    with engine.begin() as one, engine.begin() as other:
        assert coming_hour.take_turn(one)
        assert not coming_hour.take_turn(other)
    with engine.begin() as other:
        assert coming_hour.take_turn(other)


def test_an_app_is_outdated_until_its_slack_is_kept(engine: Engine, vault: Vault) -> None:
    app, unpaced = make_app(engine, vault), make_app(engine, vault)
    with engine.begin() as connection:
        assert coming_hour.outdated(connection, every=MINUTE) == {app: None, unpaced: None}
        coming_hour.keep_slack(connection, [(app, -0.25), (unpaced, None)])
    with engine.begin() as connection:
        assert coming_hour.outdated(connection, every=MINUTE) == {}
        assert coming_hour.outdated(connection, every=timedelta(0)) == {app: -0.25, unpaced: None}
