"""Connections: what a process is told before it works, and which errors mean that Postgres is away."""

from __future__ import annotations

import asyncio
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial

import pytest
from sqlalchemy import Connection, Engine, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError

from store import engine as engines
from store.engine import (
    check_ready,
    database_now,
    is_about_the_data,
    is_contention,
    is_outage,
    make_async_engine,
    make_engine,
)
from tests.support.builders import column, now
from tests.support.racing import in_background, race, wait_until_blocked
from tokenfleet.errors import UserError

SKEW = timedelta(minutes=5)


@contextmanager
def engine_at(url: str) -> Iterator[Engine]:
    engine = make_engine(url, application_name="test")
    try:
        yield engine
    finally:
        engine.dispose()


def refusal(engine: Engine, *, local_time: float | None = None) -> str:
    """The one sentence that ``check_ready`` says."""
    with pytest.raises(UserError) as refused:
        check_ready(engine, max_clock_skew=SKEW, local_time=local_time)
    message = str(refused.value)
    assert "\n" not in message
    return message


# Before a process works


def test_a_database_that_is_ready_is_ready(engine: Engine) -> None:
    check_ready(engine, max_clock_skew=SKEW)


def test_a_server_that_does_not_answer_is_named_without_its_password(database_url: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        url = make_url(database_url).set(host="127.0.0.1", port=port, password="planted-password")
        with engine_at(url.render_as_string(hide_password=False)) as engine:
            message = refusal(engine)

    assert f"127.0.0.1:{port}" in message
    assert "does not answer" in message
    assert "start it, or correct TOKENFLEET_DATABASE_URL" in message
    assert "planted" not in message


def test_a_database_that_does_not_exist_is_one_sentence(database_url: str) -> None:
    url = make_url(database_url).set(database="tokenfleet_absent")
    with engine_at(url.render_as_string(hide_password=False)) as engine:
        assert 'database "tokenfleet_absent" does not exist' in refusal(engine)


def test_a_database_without_a_schema_says_which_command_makes_it(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("DROP SCHEMA tokenfleet CASCADE"))

    message = refusal(engine)
    assert "has no Tokenfleet schema" in message
    assert "run 'tokenfleet db upgrade'" in message


def test_a_schema_whose_first_migration_was_interrupted_counts_as_none(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM tokenfleet.alembic_version"))

    assert "has no Tokenfleet schema" in refusal(engine)


def test_a_schema_of_another_release_is_named(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("UPDATE tokenfleet.alembic_version SET version_num = '0000'"))

    assert "is at schema 0000, not" in refusal(engine)


def test_a_role_that_may_not_read_the_schema_is_one_sentence(engine: Engine, database_url: str) -> None:
    role = f"tokenfleet_stranger_{uuid.uuid4().hex[:8]}"
    with engine.begin() as connection:
        connection.execute(text(f"CREATE ROLE {role} LOGIN PASSWORD 'not-a-secret'"))
    url = make_url(database_url).set(username=role, password="not-a-secret")
    try:
        with engine_at(url.render_as_string(hide_password=False)) as stranger:
            message = refusal(stranger)
    finally:
        with engine.begin() as connection:
            connection.execute(text(f"DROP ROLE {role}"))

    assert "permission denied for schema tokenfleet" in message
    assert role in message
    assert "not-a-secret" not in message


@pytest.mark.parametrize(("hours", "side"), [(1, "ahead of"), (-1, "behind")])
def test_a_clock_an_hour_off_is_one_sentence_that_says_which_way(
    engine: Engine, hours: int, side: str
) -> None:
    message = refusal(engine, local_time=time.time() + 3600 * hours)

    assert f"clock is 3600 s {side} the database's" in message
    assert "synchronise the clocks" in message


def test_a_clock_within_the_limit_is_fine(engine: Engine) -> None:
    check_ready(engine, max_clock_skew=SKEW, local_time=time.time() - 290)


# Sessions


def test_a_session_names_its_process_and_does_not_wait_for_ever(engine: Engine) -> None:
    with engine.connect() as connection:
        shown = {
            name: connection.execute(text(f"SHOW {name}")).scalar_one()
            for name in (
                "application_name",
                "statement_timeout",
                "lock_timeout",
                "timezone",
                "transaction_isolation",
            )
        }
        assert abs(database_now(connection) - now()) < timedelta(seconds=5)

    assert shown == {
        "application_name": "test",
        "statement_timeout": "30s",
        "lock_timeout": "10s",
        "timezone": "UTC",
        "transaction_isolation": "read committed",
    }


def test_the_asynchronous_engine_has_the_same_sessions(database_url: str) -> None:
    async def ask() -> tuple[str, str, str]:
        engine = make_async_engine(database_url, application_name="loop", pool_size=1)
        async with engine.connect() as connection:
            names = ("application_name", "lock_timeout", "transaction_isolation")
            first, second, third = [
                (await connection.execute(text(f"SHOW {name}"))).scalar_one() for name in names
            ]
        await engine.dispose()
        return first, second, third

    assert asyncio.run(ask()) == ("loop", "10s", "read committed")


def test_an_error_of_the_database_shows_no_parameter(engine: Engine) -> None:
    with pytest.raises(DBAPIError) as failed, engine.begin() as connection:
        connection.execute(text("SELECT CAST(:token AS int)"), {"token": "planted-token"})

    assert "planted" not in str(failed.value).replace(str(failed.value.orig), "")
    assert failed.value.hide_parameters


# What counts as an outage


def failing(engine: Engine, act: Callable[[Connection], object]) -> DBAPIError:
    with pytest.raises(DBAPIError) as failed, engine.begin() as connection:
        act(connection)
    return failed.value


def test_a_session_that_the_server_ends_is_an_outage(engine: Engine) -> None:
    def end(connection: Connection) -> None:
        connection.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))

    assert is_outage(failing(engine, end))


def test_a_session_that_was_ended_while_idle_is_an_outage(engine: Engine) -> None:
    def end(connection: Connection) -> None:
        pid = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
        with engine.begin() as other:
            other.execute(text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": pid})
        connection.execute(text("SELECT 1"))

    assert is_outage(failing(engine, end))


def test_a_session_that_idled_too_long_in_its_transaction_is_an_outage(engine: Engine) -> None:
    def idle(connection: Connection) -> None:
        connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = '20ms'"))
        pid = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
        deadline = time.monotonic() + 20
        while column(engine, "SELECT 1 FROM pg_stat_activity WHERE pid = :pid", pid=pid):
            assert time.monotonic() < deadline
        connection.execute(text("SELECT 1"))

    assert is_outage(failing(engine, idle))


def test_a_server_that_is_not_there_is_an_outage(database_url: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = make_url(database_url).set(host="127.0.0.1", port=taken.getsockname()[1])
        with engine_at(url.render_as_string(hide_password=False)) as engine:
            assert is_outage(failing(engine, lambda connection: None))


def test_a_statement_that_takes_too_long_is_an_outage(engine: Engine) -> None:
    def wait(connection: Connection) -> None:
        connection.execute(text("SET LOCAL statement_timeout = '10ms'"))
        connection.execute(text("SELECT pg_sleep(10)"))

    assert is_outage(failing(engine, wait))


def test_a_lock_that_is_not_to_be_had_is_an_outage(engine: Engine) -> None:
    def want(connection: Connection) -> None:
        connection.execute(text("SET LOCAL lock_timeout = '10ms'"))
        connection.execute(text("LOCK TABLE tokenfleet.oauth_apps"))

    with engine.begin() as holder:
        holder.execute(text("LOCK TABLE tokenfleet.oauth_apps"))
        assert is_outage(failing(engine, want))


def test_a_deadlock_is_an_outage_for_its_victim_and_the_other_goes_on(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE pair (id int PRIMARY KEY, n int)"))
        connection.execute(text("INSERT INTO pair VALUES (1, 0), (2, 0)"))

    def touch(first: int, second: int) -> DBAPIError | None:
        try:
            with engine.begin() as connection:
                connection.execute(text("SET LOCAL deadlock_timeout = '10ms'"))
                connection.execute(text("UPDATE pair SET n = n + 1 WHERE id = :id"), {"id": first})
                barrier()
                connection.execute(text("UPDATE pair SET n = n + 1 WHERE id = :id"), {"id": second})
        except DBAPIError as error:
            return error
        return None

    arrived: list[None] = []

    def barrier() -> None:
        arrived.append(None)
        deadline = time.monotonic() + 20
        while len(arrived) < 2:
            assert time.monotonic() < deadline

    outcomes = race([partial(touch, 1, 2), partial(touch, 2, 1)])

    [victim] = [error for error in outcomes if error is not None]
    assert is_outage(victim)


def test_a_database_that_only_reads_is_an_outage(engine: Engine) -> None:
    """So it is after a failover, until the connections go to the new primary."""

    def write(connection: Connection) -> None:
        connection.execute(text("SET TRANSACTION READ ONLY"))
        connection.execute(text("DELETE FROM tokenfleet.outbox"))

    assert is_outage(failing(engine, write))


def test_a_serialization_failure_is_an_outage(engine: Engine) -> None:
    with engine.connect().execution_options(isolation_level="REPEATABLE READ") as late:
        late.execute(text("SELECT 1 FROM tokenfleet.oauth_apps"))
        with engine.begin() as connection:
            connection.execute(
                text(
                    "INSERT INTO tokenfleet.oauth_apps (provider, environment, name, client_id) "
                    "VALUES ('acme', 'production', 'default', 'client-1')"
                )
            )
        late.rollback()
        late.execute(text("SELECT 1 FROM tokenfleet.oauth_apps"))
        with engine.begin() as connection:
            connection.execute(text("UPDATE tokenfleet.oauth_apps SET client_id = 'client-2'"))
        with pytest.raises(DBAPIError) as failed:
            late.execute(text("UPDATE tokenfleet.oauth_apps SET client_id = 'client-3'"))
    assert is_outage(failed.value)


def test_a_wait_for_somebody_elses_lock_is_contention_and_a_lost_server_is_not(engine: Engine) -> None:
    def want(connection: Connection) -> None:
        connection.execute(text("SET LOCAL lock_timeout = '10ms'"))
        connection.execute(text("LOCK TABLE tokenfleet.oauth_apps"))

    def end(connection: Connection) -> None:
        connection.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))

    with engine.begin() as holder:
        holder.execute(text("LOCK TABLE tokenfleet.oauth_apps"))
        assert is_contention(failing(engine, want))
    assert not is_contention(failing(engine, end))


@pytest.mark.parametrize(
    ("statement", "about_the_data"),
    [("SELECT CAST('word' AS int)", True), ("SELECT 3000000000::int", True), ("SELEKT 1", False)],
)
def test_values_that_postgres_would_refuse_again_are_told_from_statements(
    engine: Engine, statement: str, about_the_data: bool
) -> None:
    error = failing(engine, lambda connection: connection.exec_driver_sql(statement))
    assert is_about_the_data(error) is about_the_data


WRONG_STATEMENTS = {
    "text that is no number": "SELECT CAST('word' AS int)",
    "a number that does not fit": "SELECT 3000000000::int",
    "a zero byte in JSON": """SELECT '{"a": "\\u0000"}'::jsonb""",
    "a column that is not there": "SELECT nothing FROM tokenfleet.accounts",
    "a table that is not there": "SELECT 1 FROM tokenfleet.nothing",
    "a missing value": "INSERT INTO tokenfleet.outbox (event_type, payload) VALUES (NULL, '{}')",
    "a broken check": "INSERT INTO tokenfleet.data_keys (ring, kek_id, wrapped, is_primary) "
    "VALUES ('other', 'k', '', false)",
    "a division by zero": "SELECT 1 / 0",
    "a syntax error": "SELEKT 1",
}


@pytest.mark.parametrize("statement", WRONG_STATEMENTS.values(), ids=WRONG_STATEMENTS.keys())
def test_a_wrong_statement_or_value_is_no_outage(engine: Engine, statement: str) -> None:
    def execute(connection: Connection) -> None:
        connection.exec_driver_sql(statement)

    assert not is_outage(failing(engine, execute))


def test_a_value_that_the_driver_refuses_is_no_outage(engine: Engine) -> None:
    def send(connection: Connection) -> None:
        connection.execute(text("SELECT CAST(:value AS text)"), {"value": "zero \x00 byte"})

    assert not is_outage(failing(engine, send))


def test_waiting_for_a_lock_ends_by_itself(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "LOCK_TIMEOUT_MS", 200)
    with engine_at(engine.url.render_as_string(hide_password=False)) as impatient:

        def want() -> DBAPIError:
            return failing(impatient, lambda c: c.execute(text("LOCK TABLE tokenfleet.oauth_apps")))

        with engine.begin() as holder:
            holder.execute(text("LOCK TABLE tokenfleet.oauth_apps"))
            waiting = in_background(want)
            wait_until_blocked(engine)
            assert is_outage(waiting.result(20))
