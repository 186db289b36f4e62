"""History: partitions come and go without ever holding up the fleet, and nothing is refused or kept too long."""

from __future__ import annotations

import time
from datetime import UTC, date, datetime, timedelta
from functools import partial

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError

from store import history
from store.engine import is_about_the_data, is_contention
from store.keys import Vault
from tests.support.builders import begin_attempt, column, make_account, make_app
from tests.support.racing import in_background, race, wait_until_blocked
from tokenfleet.jobs import AccountId

DAY = timedelta(days=1)
TODAY = date(2026, 3, 10)


def maintain(engine: Engine, today: date = TODAY, *, retention_days: int = 30) -> list[str]:
    with engine.begin() as connection:
        return history.maintain_partitions(connection, today=today, retention_days=retention_days)


def write(engine: Engine, moment: date, *, account_id: int = 1, kind: str = "refresh.succeeded") -> None:
    with engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO tokenfleet.account_events (account_id, at, kind, actor) "
                "VALUES (:account_id, :at, :kind, 'test')"
            ),
            {
                "account_id": account_id,
                "at": datetime(moment.year, moment.month, moment.day, 12, tzinfo=UTC),
                "kind": kind,
            },
        )


def partition_of(engine: Engine, moment: date) -> list[str]:
    """Where the rows of a day are."""
    return column(
        engine,
        "SELECT DISTINCT c.relname FROM tokenfleet.account_events e JOIN pg_class c ON c.oid = e.tableoid "
        "WHERE e.at >= :day AND e.at < :next",
        day=datetime(moment.year, moment.month, moment.day, tzinfo=UTC),
        next=datetime(moment.year, moment.month, moment.day, tzinfo=UTC) + DAY,
    )


def partitions(engine: Engine) -> set[str]:
    return set(
        column(
            engine,
            "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid "
            "WHERE i.inhparent = 'tokenfleet.account_events'::regclass",
        )
    )


# Partitions


def test_partitions_for_today_and_the_coming_days_are_made_once(engine: Engine) -> None:
    done = maintain(engine)

    assert done == [f"created account_events_202603{day}" for day in range(10, 18)]
    assert maintain(engine) == []
    assert maintain(engine, TODAY + DAY) == ["created account_events_20260318"]


def test_a_row_goes_to_the_partition_of_its_utc_day(engine: Engine) -> None:
    maintain(engine)
    write(engine, TODAY)

    assert partition_of(engine, TODAY) == ["account_events_20260310"]
    assert history.utc_date(datetime(2026, 3, 10, 23, 30, tzinfo=UTC)) == TODAY
    new_york = datetime.fromisoformat("2026-03-09T21:00:00-04:00")
    assert history.utc_date(new_york) == TODAY


def test_the_bounds_are_utc_whatever_zone_the_session_is_in(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("SET LOCAL timezone = 'Pacific/Auckland'"))
        history.maintain_partitions(connection, today=TODAY, retention_days=30)
    with engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO tokenfleet.account_events (account_id, at, kind, actor) VALUES "
                "(1, '2026-03-10T00:00:00Z', 'first', 'test'), (1, '2026-03-10T23:59:59.999999Z', 'last', 'test')"
            )
        )

    assert column(engine, "SELECT kind FROM tokenfleet.account_events_20260310 ORDER BY at") == [
        "first",
        "last",
    ]


def test_a_new_partition_has_the_indexes_of_the_table(engine: Engine) -> None:
    maintain(engine)

    attached = column(
        engine,
        "SELECT p.relname FROM pg_inherits i JOIN pg_class p ON p.oid = i.inhparent "
        "JOIN pg_index x ON x.indexrelid = i.inhrelid "
        "WHERE x.indrelid = 'tokenfleet.account_events_20260312'::regclass ORDER BY p.relname",
    )
    assert attached == ["ix_account_events_account_id", "ix_account_events_at"]


def test_days_past_retention_are_dropped_and_the_others_kept(engine: Engine) -> None:
    maintain(engine)
    write(engine, TODAY)

    done = maintain(engine, TODAY + 33 * DAY, retention_days=30)

    assert [each for each in done if each.startswith("dropped")] == [
        f"dropped account_events_202603{day}" for day in (10, 11, 12)
    ]
    assert "account_events_20260313" in partitions(engine)
    assert column(engine, "SELECT count(*) FROM tokenfleet.account_events") == [0]


def test_a_partition_that_an_operator_made_is_never_dropped(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(
            text(
                "CREATE TABLE tokenfleet.account_events_archive_2019 PARTITION OF tokenfleet.account_events "
                "FOR VALUES FROM ('2019-01-01Z') TO ('2020-01-01Z')"
            )
        )
    maintain(engine)

    assert "account_events_archive_2019" in partitions(engine)


def test_many_that_keep_house_at_once_do_it_once(engine: Engine) -> None:
    done = race([partial(maintain, engine)] * 8)

    assert sorted(name for each in done for name in each) == [
        f"created account_events_202603{day}" for day in range(10, 18)
    ]


def test_another_process_that_keeps_house_is_not_waited_for(engine: Engine) -> None:
    with engine.begin() as other:
        history.maintain_partitions(other, today=TODAY, retention_days=30)
        assert maintain(engine, TODAY) == []


# The default partition


def test_rows_of_a_day_without_a_partition_are_not_refused_and_do_not_stop_the_housekeeping(
    engine: Engine,
) -> None:
    write(engine, TODAY + DAY)

    done = maintain(engine)

    assert partition_of(engine, TODAY + DAY) == ["account_events_default"]
    assert "created account_events_20260311" not in done
    assert len(done) == 7
    write(engine, TODAY + DAY)
    write(engine, TODAY + 2 * DAY)
    assert partition_of(engine, TODAY + 2 * DAY) == ["account_events_20260312"]


def test_rows_in_the_default_partition_are_forgotten_after_retention_too(engine: Engine) -> None:
    write(engine, TODAY - 31 * DAY)
    write(engine, TODAY - 30 * DAY)
    write(engine, TODAY)

    done = maintain(engine, retention_days=30)

    assert "deleted 1 rows of account_events_default" in done
    assert column(engine, "SELECT count(*) FROM tokenfleet.account_events") == [2]


def test_old_rows_are_forgotten_a_bounded_number_at_a_time(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "DEFAULT_ROWS_AT_ONCE", 3)
    for _ in range(5):
        write(engine, TODAY - 60 * DAY)

    done = [maintain(engine)[-1], *maintain(engine), *maintain(engine)]

    assert done == ["deleted 3 rows of account_events_default", "deleted 2 rows of account_events_default"]


# In the way of nobody


def test_a_long_reader_delays_the_housekeeping_and_not_the_fleet(engine: Engine, vault: Vault) -> None:
    """A dump reads every table for an hour; new partitions wait for the next round, answers do not wait."""
    app_id = make_app(engine, vault)
    account_id = make_account(engine, vault, app_id)
    with engine.connect() as dump:
        dump.execute(text("SELECT count(*) FROM tokenfleet.account_events"))

        began = time.monotonic()
        with engine.begin() as connection:
            patience = connection.execute(text("SHOW lock_timeout")).scalar_one()
            assert history.maintain_partitions(connection, today=TODAY, retention_days=30) == []
            assert connection.execute(text("SHOW lock_timeout")).scalar_one() == patience
            # The transaction it is part of goes on.
            assert connection.execute(text("SELECT 1")).scalar_one() == 1
        assert time.monotonic() - began < 5
        begin_attempt(engine, app_id, account_id)
        write(engine, TODAY)
        dump.rollback()

    assert len(maintain(engine)) == 7


def test_new_partitions_are_made_beside_a_writer_that_is_not_finished(engine: Engine) -> None:
    maintain(engine)
    with engine.begin() as writer:
        writer.execute(
            text(
                "INSERT INTO tokenfleet.account_events (account_id, at, kind, actor) "
                "VALUES (1, '2026-03-10T12:00:00Z', 'refresh.succeeded', 'test')"
            )
        )
        assert maintain(engine, TODAY + DAY) == ["created account_events_20260318"]


# Reading


def test_the_story_of_an_account_is_told_newest_first_over_all_partitions(engine: Engine) -> None:
    maintain(engine)
    for days, kind in ((-40, "account.imported"), (0, "refresh.succeeded"), (2, "account.paused")):
        write(engine, TODAY + days * DAY, account_id=7, kind=kind)
    write(engine, TODAY, account_id=8)

    with engine.connect() as connection:
        rows = history.of_account(connection, AccountId(7), limit=2)
        everything = history.of_account(connection, AccountId(7), limit=100)

    assert [row.kind for row in rows] == ["account.paused", "refresh.succeeded"]
    assert [row.kind for row in everything] == ["account.paused", "refresh.succeeded", "account.imported"]
    assert (everything[0].actor, everything[0].detail, everything[0].job_id) == ("test", None, None)


def test_a_row_that_meets_a_partition_in_the_making_is_written_again_and_not_refused(engine: Engine) -> None:
    """Postgres checks it against the default partition, which has just ceased to take its day."""
    with engine.begin() as maker:
        history.maintain_partitions(maker, today=TODAY, retention_days=30)
        writing = in_background(lambda: write(engine, TODAY))
        wait_until_blocked(engine)
    with pytest.raises(DBAPIError) as met:
        writing.result(20)
    assert is_contention(met.value)
    assert not is_about_the_data(met.value)
    write(engine, TODAY)
    assert partition_of(engine, TODAY) == ["account_events_20260310"]


def test_a_fleet_at_work_makes_no_partition_of_a_day_that_may_begin_meanwhile(engine: Engine) -> None:
    with engine.begin() as connection:
        created = history.maintain_partitions(connection, today=TODAY, retention_days=30, soonest=2)
    assert created[0] == "created account_events_20260312"


def test_the_rows_of_some_days_are_estimated_without_those_of_others(engine: Engine) -> None:
    """What is usual is sampled from a day: the part that is read must not shrink with each day that is kept."""
    maintain(engine)
    for ahead, rows in enumerate((7, 5, 3)):
        for _ in range(rows):
            write(engine, TODAY + ahead * DAY)
    noon = datetime(TODAY.year, TODAY.month, TODAY.day, 12, tzinfo=UTC)
    with engine.begin() as connection:
        assert history.estimated_rows(connection, noon, noon + 2 * DAY) == 0
        connection.execute(text("ANALYZE tokenfleet.account_events"))
        assert history.estimated_rows(connection, noon, noon) == 7
        assert history.estimated_rows(connection, noon + DAY, noon + 2 * DAY) == 8


def test_years_end_a_leap_day_and_weeks_without_a_scheduler_leave_what_is_kept_and_nothing_else(
    engine: Engine,
) -> None:
    def names(first: date, count: int) -> set[str]:
        return {f"account_events_{first + n * DAY:%Y%m%d}" for n in range(count)}

    default = {"account_events_default"}
    before_new_year, leap = date(2027, 12, 28), date(2028, 2, 27)
    maintain(engine, before_new_year)
    assert partitions(engine) == names(before_new_year, 8) | default
    maintain(engine, date(2028, 1, 3), retention_days=5)
    assert partitions(engine) == names(date(2027, 12, 29), 13) | default
    # Nobody keeps house for seven weeks; the fleet goes on.
    for day in (date(2028, 1, 20), date(2028, 2, 26), leap + DAY, leap + 2 * DAY):
        write(engine, day)
    maintain(engine, leap, retention_days=30)
    # The two days that have rows stay in the default partition.
    assert partitions(engine) == names(leap, 8) - names(leap + DAY, 2) | default
    days = "SELECT CAST(at AS date) FROM tokenfleet.account_events ORDER BY at"
    assert column(engine, days) == [date(2028, 2, 26), date(2028, 2, 28), date(2028, 2, 29)]
    maintain(engine, date(2028, 3, 31), retention_days=31)
    assert partitions(engine) == names(date(2028, 3, 1), 5) | names(date(2028, 3, 31), 8) | default
    assert column(engine, days) == [date(2028, 2, 29)]
