"""The hot statements use the indexes they name: read from Postgres' own plans, on 100,000 accounts.

Each statement is taken as it is really sent, and planned twice: with its values, and without them as a prepared
statement is planned after a few executions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final

import pytest
from sqlalchemy import Connection, Engine, event, text

from store import (
    candidates,
    claiming,
    coming_hour,
    history,
    incidents,
    migrate,
    parking,
    provider_health,
    rejections,
    revocations,
    schedule,
    settlement,
    story,
    transitions,
)
from store.answers import Part
from store.claiming import Allowance
from store.coming_hour import Shift
from store.details import details
from store.incidents import Resolution
from store.keys import Vault
from tests.support.builders import (
    ACTOR,
    CLAIM,
    answer,
    empty_database,
    make_app,
    make_many_accounts,
    rejection,
    values,
)
from tokenfleet.account import Trigger
from tokenfleet.jobs import AccountId, AppId, Epoch, RefreshJob
from tokenfleet_client.envelope import DataKeys, Ring

ACCOUNTS: Final = 100_000
BATCH: Final = 100
TODAY: Final = date(2026, 3, 10)
HISTORY_DAYS: Final = 4
BIG_TABLES: Final = frozenset({"refresh_schedule", "token_sets", "accounts"})
FULL_PARTITIONS: Final = frozenset(f"account_events_202603{day}" for day in range(10, 10 + HISTORY_DAYS))


@dataclass(frozen=True, slots=True)
class Big:
    """A database of 100,000 accounts of two apps, a twentieth of them due, with a history of four days."""

    engine: Engine
    vault: Vault
    apps: tuple[AppId, AppId]
    ids: tuple[AccountId, ...]

    @property
    def job(self) -> RefreshJob:
        return RefreshJob("job", self.apps[0], tuple((each, Epoch(1)) for each in self.ids))


@pytest.fixture(scope="module")
def big(servers: dict[str, str]) -> Iterator[Big]:
    with empty_database(servers) as engine:
        migrate.upgrade(engine)
        keys = {ring: DataKeys(ring, {1: bytes(range(32))}, 1) for ring in Ring}
        vault = Vault(keys[Ring.ACCESS], keys[Ring.REFRESH])
        with engine.begin() as connection:
            history.maintain_partitions(connection, today=TODAY, retention_days=30)
            connection.execute(
                text("""
                    INSERT INTO tokenfleet.account_events (account_id, at, kind, epoch, actor)
                    SELECT n % 100000 + 1,
                           CAST(:day AS timestamptz) + interval '1 day' * :days * n / 200000,
                           'refresh.succeeded', n / 100000 + 1, 'test'
                    FROM generate_series(0, 199999) AS n
                """),
                {"day": datetime(TODAY.year, TODAY.month, TODAY.day, tzinfo=UTC), "days": HISTORY_DAYS},
            )
        first, second = make_app(engine, vault), make_app(engine, vault)
        for app_id in (first, second):
            half_an_hour = timedelta(minutes=30)
            make_many_accounts(
                engine, app_id, ACCOUNTS // 2, due_from=-half_an_hour / 10, due_to=half_an_hour * 2
            )
        with engine.connect() as connection:
            # Scattered over the table, as the accounts of a batch are.
            found = values(
                connection,
                "SELECT account_id FROM tokenfleet.refresh_schedule WHERE app_id = :app_id "
                "ORDER BY md5(account_id::text) LIMIT :count",
                app_id=first,
                count=BATCH,
            )
        yield Big(engine, vault, (first, second), tuple(AccountId(each) for each in found))


def claim(connection: Connection, big: Big) -> None:
    allowances = [Allowance(app_id, BATCH, 2000) for app_id in big.apps]
    claims = claiming.claim_due(connection, allowances, claim=CLAIM)
    assert [len(each) for each in claims.values()] == [BATCH, BATCH]


def start(connection: Connection, big: Big) -> None:
    epochs = "UPDATE tokenfleet.refresh_schedule SET claim_epoch = 1, claimed_until = now() + interval '1 h'"
    connection.execute(
        text(f"{epochs}, next_refresh_at = now() WHERE account_id = ANY (CAST(:ids AS bigint[]))"),
        {"ids": [*big.ids]},
    )
    attempts = schedule.start(connection, big.job, claim=CLAIM)
    assert len(attempts) == BATCH


def start_of_paused_accounts(connection: Connection, big: Big) -> None:
    transitions.pause(connection, big.ids, actor=ACTOR, reason=None)
    epochs = "UPDATE tokenfleet.refresh_schedule SET claim_epoch = 1, claimed_until = now() + interval '1 h'"
    connection.execute(text(f"{epochs} WHERE account_id = ANY (CAST(:ids AS bigint[]))"), {"ids": [*big.ids]})
    assert schedule.start(connection, big.job, claim=CLAIM) == []


def give_back(connection: Connection, big: Big) -> None:
    schedule.release(connection, big.job)
    schedule.postpone(connection, big.job, wait=CLAIM)
    schedule.request_refresh(connection, big.ids)


def save(connection: Connection, big: Big) -> None:
    answers = [answer(big.vault, each, epoch=9, generation=1, activates=True) for each in big.ids]
    assert len(settlement.save_refreshed(connection, answers, actor=ACTOR).saved) == BATCH


def save_late_and_repeated_answers(connection: Connection, big: Big) -> None:
    half = BATCH // 2
    known = [answer(big.vault, each, epoch=1, generation=0) for each in big.ids[:half]]
    late = [answer(big.vault, each, epoch=10**9, generation=0) for each in big.ids[half:]]
    long_ago = datetime(TODAY.year, TODAY.month, TODAY.day, tzinfo=UTC)
    answers = [replace(each, obtained_at=long_ago) for each in known + late]
    result = settlement.save_refreshed(connection, answers, actor=ACTOR)
    assert (len(result.repeated), len(result.candidates)) == (half, half)


def save_what_steps_brought(connection: Connection, big: Big) -> None:
    connection.execute(
        text("UPDATE tokenfleet.token_sets SET epoch = 9 WHERE account_id = ANY (CAST(:ids AS bigint[]))"),
        {"ids": [*big.ids]},
    )
    connection.execute(
        text(
            "UPDATE tokenfleet.refresh_schedule SET claim_epoch = 9, started_epoch = 9 "
            "WHERE account_id = ANY (CAST(:ids AS bigint[]))"
        ),
        {"ids": [*big.ids]},
    )
    answers = [replace(answer(big.vault, each, epoch=9, generation=1), part=Part.SECOND) for each in big.ids]
    assert len(settlement.save_refreshed(connection, answers, actor=ACTOR).saved) == BATCH


def revoke(connection: Connection, big: Big) -> None:
    begun = revocations.begin(
        connection,
        big.ids,
        untold=big.ids[:3],
        showing_access=(),
        code="local_only",
        actor=ACTOR,
        reason=None,
    )
    assert (len(begun.asked), len(begun.forgotten)) == (BATCH - 3, 3)
    made = [
        revocations.RevocationMade(
            account_id=each,
            epoch=Epoch(1),
            generation=1,
            kind=revocations.CONFIRMED,
            code="http_200",
            next_refresh_at=None,
            job_id=answer(big.vault, each, epoch=1, generation=1).job_id,
            duration_ms=1,
        )
        for each in big.ids[3:]
    ]
    revocations.sweep(connection, actor=ACTOR)
    revocations.settle(connection, made, actor=ACTOR)
    news = revocations.news(connection, big.ids, since=datetime.now(UTC) - timedelta(hours=1))
    assert len(news) == BATCH


def reject(connection: Connection, big: Big) -> None:
    told = [rejection(each, epoch=1, generation=1) for each in big.ids[:3]]
    assert len(rejections.reject(connection, told, actor=ACTOR).flipped) == 3


def set_apart_and_give_back(connection: Connection, big: Big) -> None:
    told = [rejection(each, epoch=1, generation=1) for each in big.ids]
    connection.execute(
        text("UPDATE tokenfleet.oauth_apps SET rejections_since = now(), rejection_limit = 20")
    )
    [opened] = rejections.reject(connection, told, actor=ACTOR).opened
    chosen = parking.choose_samples(connection, opened.incident_id, count=3)
    assert parking.claim_samples(connection, opened.incident_id, chosen, claim=CLAIM)
    assert incidents.members(connection, [opened.incident_id])[opened.incident_id].parked == BATCH
    for resolution in (Resolution.RECOVERED, Resolution.CONFIRMED):
        resolved = incidents.resolve(connection, opened.incident_id, resolution, actor=ACTOR)
        parking.settle(connection, replace(resolved or opened, resolution=resolution), actor=ACTOR)


def look_for_candidates(connection: Connection, big: Big) -> None:
    late = [answer(big.vault, each, epoch=10**9, generation=0) for each in big.ids]
    assert len(settlement.save_refreshed(connection, late, actor=ACTOR).candidates) == BATCH
    connection.execute(
        text("UPDATE tokenfleet.token_sets SET epoch = 1 WHERE account_id = :id"), {"id": big.ids[0]}
    )
    [found] = candidates.of_account(connection, big.ids[0])
    promotion = candidates.Promotion(
        account_id=big.ids[0],
        epoch=Epoch(0),
        generation=1,
        candidate_id=found.candidate_id,
        access_token=found.access_token,
        refresh_token=found.access_token,
        code="invalid_grant",
        job_id=None,
        duration_ms=None,
    )
    assert candidates.promote(connection, [promotion], actor=ACTOR) == {big.ids[0]}
    assert candidates.deposed(connection) == []
    candidates.prune(connection)
    schedule.moved_since(connection, dict.fromkeys(big.ids, 1))


def defer(connection: Connection, big: Big) -> None:
    settlement.defer(
        connection,
        [
            settlement.Deferral(
                account_id=each,
                epoch=Epoch(1),
                generation=1,
                next_refresh_at=datetime.now(UTC),
                code="http_503",
                kind="refresh.unavailable",
                counts=True,
                answer_lost=False,
                quarantined=False,
                job_id=answer(big.vault, each, epoch=1, generation=1).job_id,
                duration_ms=1,
            )
            for each in big.ids
        ],
        actor=ACTOR,
    )


def pause_and_resume(connection: Connection, big: Big) -> None:
    assert len(transitions.pause(connection, big.ids, actor=ACTOR, reason=None)) == BATCH
    assert len(transitions.resume(connection, big.ids, actor=ACTOR)) == BATCH
    transitions.apply(connection, Trigger.REVOKED, big.ids, actor=ACTOR, reason=None)
    transitions.reschedule(connection, dict.fromkeys(big.ids, datetime.now(UTC)))


def read_history(connection: Connection, big: Big) -> None:
    assert history.of_account(connection, AccountId(7), limit=20)


def read_the_story_of_a_lost_grant(connection: Connection, big: Big) -> None:
    lost = big.ids[0]
    transitions.apply(connection, Trigger.GRANT_REJECTED, [lost], actor=ACTOR, reason="invalid_grant")
    assert story.read_story(connection, details(connection, {lost})[lost], limit=10_000).beside == 0


def read_the_health_of_all(connection: Connection, big: Big) -> None:
    _, found = provider_health.read_health(connection, window=timedelta(minutes=10), provider=None)
    assert sum(each.accounts for each in found) == ACCOUNTS


def let_some_be_due_sooner(connection: Connection, big: Big) -> None:
    start = connection.execute(text("SELECT now()")).scalar_one()
    shifts = [Shift(180, 0, 3, 20), Shift(180, 0, 7, 20), Shift(200, 0, 7, 20)]
    assert coming_hour.move(connection, big.apps[0], shifts, start=start) == 60


def let_some_be_due_sooner_within_a_window(connection: Connection, big: Big) -> None:
    start = connection.execute(text("SELECT now()")).scalar_one()
    window = timedelta(hours=2)
    assert coming_hour.move(connection, big.apps[0], [Shift(180, 0, 3, 20)], start=start, window=window) == 20


def count_the_coming_hour(connection: Connection, big: Big) -> None:
    """As if most of the hour were over: of an app with half of all accounts, reading the table is quicker."""
    start = connection.execute(text("SELECT now() - interval '58 min'")).scalar_one()
    assert coming_hour.count_visits(connection, big.apps[0], start=start)
    assert coming_hour.count_visits(connection, big.apps[0], start=start, window=timedelta(hours=2))


CALLS: Final[tuple[Callable[[Connection, Big], None], ...]] = (
    claim,
    start,
    start_of_paused_accounts,
    give_back,
    save,
    save_late_and_repeated_answers,
    save_what_steps_brought,
    revoke,
    reject,
    set_apart_and_give_back,
    look_for_candidates,
    defer,
    pause_and_resume,
    read_history,
    read_the_story_of_a_lost_grant,
    let_some_be_due_sooner,
    let_some_be_due_sooner_within_a_window,
)


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__.replace("_", "-"))
def test_no_statement_reads_a_whole_table(big: Big, call: Callable[[Connection, Big], None]) -> None:
    for statement, parameters in sent_by(big, call):
        for plan in plans(big.engine, statement, parameters):
            scanned = {node.get("Relation Name") for node in nodes(plan) if node["Node Type"] == "Seq Scan"}
            assert scanned & BIG_TABLES == set(), statement
            assert scanned & FULL_PARTITIONS == set(), statement


def test_the_health_of_all_apps_is_read_by_indexes(big: Big) -> None:
    """The history under the planner's settings that it sets for itself, the accounts without them."""
    with big.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM (ANALYZE) tokenfleet.accounts"))
    used: set[str] = set()
    for statement, sent in sent_by(big, read_the_health_of_all):
        parameters = {**sent}
        with big.engine.connect() as connection:
            if "account_events" in statement:
                connection.execute(provider_health.PLANNING)
                # Ten minutes of a day that has rows.
                ago = datetime.now(UTC) - datetime(TODAY.year, TODAY.month, TODAY.day, 12, tzinfo=UTC)
                parameters |= {"begin": ago, "end": ago - timedelta(minutes=10)}
            [plan] = connection.exec_driver_sql(f"EXPLAIN (FORMAT JSON) {statement}", parameters).scalar_one()
        for node in nodes(plan["Plan"]):
            table = node.get("Relation Name")
            assert node["Node Type"] != "Seq Scan" or table not in BIG_TABLES | FULL_PARTITIONS, statement
            # By when it was, not by account: rows of ten minutes are scattered over an index of accounts.
            assert table not in FULL_PARTITIONS or "Index" not in node["Node Type"], statement
            used.add(node.get("Index Name", node["Node Type"]))
    assert {"ix_accounts_app_id", "ix_accounts_troubled", "ix_refresh_schedule_due"} <= used
    assert any(name.startswith("account_events_2026") and name.endswith("_at_idx") for name in used)


def test_a_claim_finds_due_accounts_by_the_index_for_it(big: Big) -> None:
    [(statement, parameters)] = sent_by(big, claim)
    for plan in plans(big.engine, statement, parameters):
        used = {node.get("Index Name") for node in nodes(plan)}
        assert {"ix_refresh_schedule_due", "pk_refresh_schedule"} <= used


def test_the_coming_hour_is_counted_by_the_index_of_due_accounts(big: Big) -> None:
    for statement, parameters in sent_by(big, count_the_coming_hour):
        # It is always planned for its values.
        plan = next(plans(big.engine, statement, parameters))
        used = {node.get("Index Name") for node in nodes(plan)}
        assert "ix_refresh_schedule_due" in used
        assert "Seq Scan" not in {node["Node Type"] for node in nodes(plan)}


def test_the_moved_are_found_by_the_index_of_due_accounts(big: Big) -> None:
    [(statement, parameters)] = sent_by(big, let_some_be_due_sooner)
    for plan in plans(big.engine, statement, parameters):
        used = {node.get("Index Name") for node in nodes(plan)}
        assert {"ix_refresh_schedule_due", "pk_refresh_schedule"} <= used


def test_a_claim_reads_its_window_and_not_all_that_is_due(big: Big) -> None:
    """5,000 accounts of each app are due; a window of 200 must not cost more because of them."""

    def claim_a_little(connection: Connection, big: Big) -> None:
        claiming.claim_due(connection, [Allowance(big.apps[0], 50, 200)], claim=CLAIM)

    [(statement, parameters)] = sent_by(big, claim_a_little)
    with big.engine.connect() as connection:
        [plan] = connection.exec_driver_sql(
            f"EXPLAIN (ANALYZE, TIMING OFF, FORMAT JSON) {statement}", parameters
        ).scalar_one()
        connection.rollback()
    read = max(node["Actual Rows"] * node["Actual Loops"] for node in nodes(plan["Plan"]))
    assert read <= 200


def sent_by(big: Big, call: Callable[[Connection, Big], None]) -> list[tuple[str, Mapping[str, Any]]]:
    """Run ``call``, take everything back, and return the statements of ours that it sent."""
    sent: list[tuple[str, Mapping[str, Any]]] = []

    def note(
        _c: object, _cursor: object, statement: str, parameters: Any, _context: object, _many: bool
    ) -> None:
        if parameters and "tokenfleet." in statement and "(ids)" not in statement:
            sent.append((statement, parameters))

    with big.engine.connect() as connection:
        event.listen(connection, "before_cursor_execute", note)
        call(connection, big)
        event.remove(connection, "before_cursor_execute", note)
        connection.rollback()
    assert sent
    return sent


def plans(engine: Engine, statement: str, parameters: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the plan for these values, and the one for any values."""
    names: list[str] = []

    def number(match: re.Match[str]) -> str:
        if match[1] not in names:
            names.append(match[1])
        return f"${names.index(match[1]) + 1}"

    generic = re.sub(r"%\((\w+)\)s", number, statement)
    with engine.connect() as connection:
        [plan] = connection.exec_driver_sql(f"EXPLAIN (FORMAT JSON) {statement}", parameters).scalar_one()
        yield plan["Plan"]
        [plan] = connection.exec_driver_sql(f"EXPLAIN (GENERIC_PLAN, FORMAT JSON) {generic}").scalar_one()
        yield plan["Plan"]


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from nodes(child)
