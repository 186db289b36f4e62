"""Counts of openings on their way to Postgres, what protects them there, and the spikes found in them."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any, Final

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError

from store import audit, unsealing_spikes, unsealings
from store.engine import make_engine
from store.keys import Vault, open_vault
from store.unsealing_spikes import Look
from store.unsealings import Tally
from tests.support.builders import column
from tests.support.racing import race
from tests.support.unsealings import let_pass, remember, report
from tokenfleet.settings import Settings
from tokenfleet_client.envelope import access_token_binding, refresh_token_binding
from tokenfleet_client.unsealings import Purpose

PLACE: Final = access_token_binding(1, 1)
DAY: Final = timedelta(days=1)
MINUTE: Final = timedelta(minutes=1)


class Clock:
    now = 6_000.0

    def __call__(self) -> float:
        return self.now


def opened(vault: Vault, times: int, purpose: Purpose = Purpose.REFRESH) -> None:
    sealed = vault.access.seal("example", PLACE)
    for _ in range(times):
        vault.access.open(sealed, PLACE, purpose)


def write(engine: Engine, tally: Tally) -> None:
    batch = tally.collect()
    with engine.begin() as connection:
        tally.add(connection, batch)
    tally.settle(batch)


def counts(engine: Engine) -> dict[tuple[str, str], int]:
    with engine.connect() as connection:
        rows = connection.execute(
            text("SELECT purpose, caller, sum(opened) AS opened FROM tokenfleet.unsealings GROUP BY 1, 2")
        )
        return {(row.purpose, row.caller): row.opened for row in rows}


def look(engine: Engine) -> Look:
    with engine.begin() as connection:
        found = unsealing_spikes.look(connection)
    assert found is not None
    return found


def refused(engine: Engine, statement: str) -> str | None:
    with engine.connect() as connection, pytest.raises(DBAPIError) as error:
        connection.execute(text(statement))
    state: str | None = getattr(error.value.orig, "sqlstate", None)
    return state


def test_the_database_knows_exactly_these_purposes(engine: Engine) -> None:
    condition = column(
        engine, "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conname = 'ck_unsealings_purpose'"
    )[0]
    assert set(condition.split("'")[1::2]) == {purpose.value for purpose in Purpose}


def test_counts_are_added_up_by_minute_purpose_and_caller_and_written_once(
    engine: Engine, vault: Vault
) -> None:
    clock, told = Clock(), list[tuple[Purpose, int]]()
    tally = Tally(vault, "worker-1", told=lambda purpose, number: told.append((purpose, number)), clock=clock)
    opened(vault, 3)
    vault.refresh.open(
        vault.refresh.seal("r", refresh_token_binding(1, 1)), refresh_token_binding(1, 1), Purpose.REFRESH
    )
    write(engine, tally)
    opened(vault, 2, Purpose.PROBE)
    opened(vault, 1)
    write(engine, tally)
    write(engine, tally)
    assert counts(engine) == {("refresh", "worker-1"): 5, ("probe", "worker-1"): 2}
    assert sum(number for _, number in told) == 7
    assert column(
        engine, "SELECT DISTINCT database_role = session_user::text FROM tokenfleet.unsealings"
    ) == [True]


def test_counts_that_postgres_did_not_take_wait_for_the_minute_they_belong_to(
    engine: Engine, vault: Vault
) -> None:
    """After an outage they must not look like a spike."""
    clock = Clock()
    tally = Tally(vault, "worker-1", clock=clock)
    for _ in range(90):
        opened(vault, 1)
        tally.collect()
        clock.now += 60
    batch = tally.collect()
    with engine.connect() as connection:
        tally.add(connection, batch)
        connection.rollback()
    write(engine, tally)
    assert counts(engine) == {("refresh", "worker-1"): 90}
    in_one_minute = column(engine, "SELECT opened FROM tokenfleet.unsealings ORDER BY minute")
    # What waited for more than an hour is put there; the rest is where it belongs.
    assert in_one_minute[0] > 25
    assert set(in_one_minute[1:]) <= {1, 2}
    assert len(in_one_minute) > 50


def test_two_commands_of_one_operator_add_to_the_same_rows(engine: Engine, settings: Settings) -> None:
    def command() -> None:
        with (
            unsealings.counting_for(engine, "operator:ada", lost=lambda _: None),
            engine.begin() as connection,
        ):
            vault = open_vault(connection, settings)
            opened(vault, 2, Purpose.IMPORT)
            opened(vault, 1, Purpose.INSPECT)

    race([command] * 4)
    assert counts(engine) == {("import", "operator:ada"): 8, ("inspect", "operator:ada"): 4}


def test_a_command_that_fails_has_opened_all_the_same(engine: Engine, settings: Settings) -> None:
    def command() -> None:
        with (
            unsealings.counting_for(engine, "operator:ada", lost=lambda _: None),
            engine.begin() as connection,
        ):
            opened(open_vault(connection, settings), 2, Purpose.EXPORT)
            raise ZeroDivisionError

    with engine.begin() as connection:
        open_vault(connection, settings)
    with pytest.raises(ZeroDivisionError):
        command()
    assert counts(engine) == {("export", "operator:ada"): 2}


def test_what_postgres_does_not_take_of_a_command_is_told(engine: Engine, settings: Settings) -> None:
    lost: list[int] = []
    with unsealings.counting_for(engine, "operator:ada", lost=lost.append):
        with engine.begin() as connection:
            opened(open_vault(connection, settings), 2, Purpose.EXPORT)
        with engine.begin() as connection:
            connection.execute(text("ALTER TABLE tokenfleet.unsealings RENAME TO away"))
    assert lost == [2]


def test_no_count_is_lowered_moved_or_deleted_before_its_time(engine: Engine, vault: Vault) -> None:
    tally = Tally(vault, "worker-1")
    opened(vault, 5)
    write(engine, tally)
    remember(engine, Purpose.READ, {8 * DAY: 1, 6 * DAY: 1})
    for change in (
        "SET opened = opened - 1",
        "SET caller = 'nobody'",
        "SET minute = minute - interval '1 day'",
        "SET purpose = 'verify'",
        "SET database_role = 'somebody'",
    ):
        assert refused(engine, f"UPDATE tokenfleet.unsealings {change}") == "42501", change
    assert refused(engine, "DELETE FROM tokenfleet.unsealings WHERE purpose = 'refresh'") == "42501"
    assert refused(engine, "TRUNCATE tokenfleet.unsealings") == "42501"
    # What is raised days later was not opened then: it would make the theft of tonight usual.
    raised = (
        "UPDATE tokenfleet.unsealings SET opened = opened + 1000 WHERE minute < now() - interval '5 days'"
    )
    assert refused(engine, raised) == "42501"
    with engine.begin() as connection:
        connection.execute(
            text("""
                INSERT INTO tokenfleet.unsealings (minute, purpose, caller, database_role, opened)
                VALUES (now() - interval '9 days', 'read', 'forger', 'somebody', 10),
                       (now() + interval '9 days', 'read', 'forger', 'somebody', 10)
            """)
        )
    forged = column(
        engine,
        "SELECT minute BETWEEN now() - interval '62 minutes' AND now() AND database_role = session_user::text "
        "FROM tokenfleet.unsealings WHERE caller = 'forger'",
    )
    assert forged == [True, True]


def test_what_is_past_retention_is_deleted_and_a_week_is_kept_whatever_the_setting(
    engine: Engine,
) -> None:
    remember(engine, Purpose.READ, {9 * DAY: 1, 7.5 * DAY: 1, DAY: 1, timedelta(): 1})
    with engine.begin() as connection:
        assert unsealing_spikes.prune(connection, retention=30 * DAY) == 0
        assert unsealing_spikes.prune(connection, retention=DAY) == 1
    assert counts(engine) == {("read", "w"): 3}


def test_a_reader_adds_what_it_opened(engine: Engine) -> None:
    for number in (3, 4):
        report(engine, "billing api, pod 7", number)
    assert counts(engine) == {("read", "billing api, pod 7"): 7}


@pytest.mark.parametrize(
    ("caller", "purpose", "number"),
    [
        (None, "read", 1),
        ("", "read", 1),
        (" x", "read", 1),
        ("x" * 101, "read", 1),
        ("a\nb", "read", 1),
        ("a\x1b[31m", "read", 1),
        ("x", "refresh", 1),
        ("x", None, 1),
        ("x", "read", 0),
        ("x", "read", -5),
        ("x", "read", None),
    ],
)
def test_a_readers_nonsense_is_refused_in_one_sentence(
    engine: Engine, caller: str | None, purpose: str | None, number: int | None
) -> None:
    with pytest.raises(DBAPIError, match="must be") as error:
        report(engine, caller, number, purpose)
    assert getattr(error.value.orig, "sqlstate", None) == "22023"
    assert counts(engine) == {}


def test_a_reader_that_invents_a_name_for_every_call_fills_no_table(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(
            text(
                "SELECT tokenfleet_v1.report_unsealings('pod-' || n, 'read', 1) FROM generate_series(1, 1200) n"
            )
        )
    found = counts(engine)
    assert sum(found.values()) == 1200
    # Twice as many when the minute ends in the middle.
    assert len(found) <= 2_002
    assert len(found) == 1_001 or len(column(engine, "SELECT DISTINCT minute FROM tokenfleet.unsealings")) > 1


@pytest.fixture
def reader(engine: Engine, database_url: str) -> Iterator[Engine]:
    """An engine that connects as a role which may call the function and nothing else."""
    name = f"reader_{make_url(database_url).database}"
    with engine.begin() as connection:
        connection.execute(text(f"CREATE ROLE {name} LOGIN PASSWORD 'reader'"))
        connection.execute(text(f"GRANT USAGE ON SCHEMA tokenfleet_v1 TO {name}"))
    url = make_url(database_url).set(username=name, password="reader")
    found = make_engine(url.render_as_string(hide_password=False), application_name="reader")
    yield found
    found.dispose()
    with engine.begin() as connection:
        connection.execute(text(f"DROP OWNED BY {name}"))
        connection.execute(text(f"DROP ROLE {name}"))


def test_a_reader_may_add_when_it_is_granted_that_under_its_own_role_and_neither_read_nor_write(
    engine: Engine, reader: Engine
) -> None:
    with pytest.raises(DBAPIError, match="permission denied for function"):
        report(reader, "billing", 1)
    role = reader.url.username
    with engine.begin() as connection:
        connection.execute(
            text(f"GRANT EXECUTE ON FUNCTION tokenfleet_v1.report_unsealings(text, text, integer) TO {role}")
        )
        # Neither a table of the reader's own nor its search path takes the place of ours.
        connection.execute(text(f"CREATE SCHEMA {role} AUTHORIZATION {role}"))
    with reader.begin() as connection:
        connection.execute(
            text(f"""
                CREATE FUNCTION {role}.date_trunc(text, timestamptz) RETURNS timestamptz LANGUAGE plpgsql
                AS $$ BEGIN RAISE 'run with the rights of the owner'; END $$
            """)
        )
        connection.execute(text(f"SET search_path = {role}, pg_catalog"))
        connection.execute(text("SELECT tokenfleet_v1.report_unsealings('billing', 'read', 5)"))
    assert column(engine, "SELECT database_role || ' ' || opened FROM tokenfleet.unsealings") == [f"{role} 5"]
    for statement in (
        "SELECT * FROM tokenfleet.unsealings",
        "UPDATE tokenfleet.unsealings SET opened = 1",
        "DELETE FROM tokenfleet.unsealings",
        "INSERT INTO tokenfleet.unsealings (minute, purpose, caller, opened) VALUES (now(), 'read', 'x', 1)",
    ):
        assert refused(reader, statement) == "42501", statement


def test_a_reader_that_takes_everything_is_one_spike_from_its_beginning_to_its_end(engine: Engine) -> None:
    usual = {days * DAY + 3 * MINUTE: 1_000 for days in range(1, 8)}
    remember(engine, Purpose.READ, usual)
    remember(engine, Purpose.READ, {MINUTE: 900})
    assert look(engine).lasting == []

    report(engine, "thief", 50_000)
    found = look(engine)
    (spike,) = found.began
    assert (spike.purpose, spike.caller, spike.opened, spike.expected) == ("read", "thief", 50_900, 3_000)
    assert found.lasting == [spike]
    report(engine, "thief", 100)
    again = look(engine)
    assert (again.began, again.over, again.lasting[0].opened) == ([], [], 51_000)

    let_pass(engine, 20 * MINUTE)
    report(engine, "thief", 2_000)
    assert [each.id for each in look(engine).lasting] == [spike.id], (
        "it ends at half, so that it does not flicker"
    )
    let_pass(engine, 20 * MINUTE)
    report(engine, "thief", 1_500)
    over = look(engine)
    assert ([each.id for each in over.over], over.lasting, over.began) == ([spike.id], [], [])
    assert look(engine).over == []


def work(engine: Engine, kind: str, times: int) -> None:
    with engine.begin() as connection:
        connection.execute(
            text("""
                INSERT INTO tokenfleet.account_events (account_id, kind, actor)
                SELECT n, :kind, 'w' FROM generate_series(1, :times) n
            """),
            {"kind": kind, "times": times},
        )


def test_what_workers_open_is_held_against_what_they_refreshed(engine: Engine) -> None:
    remember(engine, Purpose.REFRESH, {MINUTE: 3_000})
    remember(engine, Purpose.APP_SECRET, {MINUTE: 700})
    work(engine, "refresh.succeeded", 900)
    work(engine, "refresh.unavailable", 100)
    assert look(engine).began == [], "an outage that is caught up with, on the first day"
    remember(engine, Purpose.REFRESH, {2 * MINUTE: 5_000}, caller="w-2")
    (spike,) = look(engine).began
    assert (spike.purpose, spike.caller, spike.expected) == ("refresh", "w-2", 4_500)


def test_a_rotation_on_record_is_no_spike_and_one_that_nobody_ordered_is(engine: Engine) -> None:
    remember(engine, Purpose.REFRESH, {30 * DAY: 1})
    remember(engine, Purpose.RESEALING, {MINUTE: 100_000})
    with engine.begin() as connection:
        by = audit.Operator("operator:ada", "host")
        audit.record(connection, by, audit.Action.KEYS_ROTATE, [audit.Entry("keys")], reason=None)
    assert look(engine).began == []
    remember(engine, Purpose.IMPORT, {MINUTE: 100_000})
    assert [each.purpose for each in look(engine).began] == ["import"]


def test_a_job_of_every_night_is_usual_from_its_second_night_on(engine: Engine) -> None:
    nights: dict[timedelta, Any] = {days * DAY + 2 * MINUTE: 40_000 for days in (1, 2)}
    remember(engine, Purpose.READ, nights)
    remember(engine, Purpose.READ, {5 * MINUTE: 60_000})
    assert look(engine).began == []


def test_an_operator_who_is_at_work_keeps_nobody_from_looking(engine: Engine) -> None:
    with engine.begin() as working, engine.begin() as looking:
        audit.record(
            working,
            audit.Operator("operator:pat", "box"),
            audit.Action.KEYS_ROTATE,
            [audit.Entry("keys")],
            reason=None,
        )
        assert unsealing_spikes.look(looking) is not None


def test_schedulers_that_look_at_once_tell_one_spike_once(engine: Engine) -> None:
    remember(engine, Purpose.READ, {30 * DAY: 1})
    remember(engine, Purpose.READ, {MINUTE: 50_000})

    def once() -> int:
        with engine.begin() as connection:
            found = unsealing_spikes.look(connection)
        return 0 if found is None else len(found.began)

    assert sum(race([once] * 4)) == 1
    assert column(engine, "SELECT count(*) FROM tokenfleet.unsealing_spikes") == [1]
