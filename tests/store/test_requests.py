"""What readers ask for in SQL: every answer against a model, what is written for it, and who is told."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.pool import NullPool

from store import claiming, rejections, returns, schedule, settlement, transitions, visits
from store.claiming import Allowance
from store.keys import Vault
from store.request_claims import claim_requested
from store.requests import RETRY_AFTER
from store.visits import Visited
from tests.support.builders import (
    ACTOR,
    CLAIM,
    HOUR,
    JOB_ID,
    answer,
    begin_attempt,
    claim,
    column,
    deferral,
    job_of,
    make_account,
    make_app,
    now,
    park,
    rejection,
    start,
)
from tokenfleet.guard import SILENT_AFTER
from tokenfleet.jobs import AccountId, AppId
from tokenfleet.lifetimes import Lifetimes, refresh_opens
from tokenfleet_client.contract import REFRESHED_CHANNEL, AccountStatus, Answer

MINUTE = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class Reply:
    """What one call answered."""

    answer: Answer
    status: str
    status_reason: str | None
    generation: int
    expires_at: datetime | None
    retry_at: datetime | None
    last_error: str | None


def ask(engine: Engine, account_id: int, min_validity: timedelta | None = MINUTE) -> Reply | None:
    return _call(engine, "request_refresh(:id, CAST(:detail AS interval))", account_id, min_validity)


def report(engine: Engine, account_id: int, generation: int | None) -> Reply | None:
    return _call(engine, "report_unauthorized(:id, CAST(:detail AS bigint))", account_id, generation)


def _call(engine: Engine, function: str, account_id: int, detail: object) -> Reply | None:
    with engine.begin() as connection:
        rows = connection.execute(
            text(f"SELECT * FROM tokenfleet_v1.{function}"), {"id": account_id, "detail": detail}
        ).all()
    assert len(rows) <= 1
    if not rows:
        return None
    return Reply(**dict(rows[0]._mapping) | {"answer": Answer(rows[0].answer)})


def execute(engine: Engine, statement: str, **parameters: object) -> None:
    with engine.begin() as connection:
        connection.execute(text(statement), parameters)


def marks(engine: Engine) -> list[AccountId]:
    return column(engine, "SELECT account_id FROM tokenfleet.refresh_schedule WHERE requested_at IS NOT NULL")


def version_of(engine: Engine, account_id: int) -> list[Any]:
    """Which transaction wrote the row last: whoever writes it changes this."""
    return column(
        engine,
        "SELECT xmin::text || ctid::text FROM tokenfleet.refresh_schedule WHERE account_id = :id",
        id=account_id,
    )


@contextmanager
def listening(engine: Engine, *channels: str) -> Iterator[list[str]]:
    """Yield what is told on these channels; complete once the block has ended."""
    heard: list[str] = []
    url = engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(url, autocommit=True) as connection:
        for channel in channels:
            connection.execute(f"LISTEN {channel}")
        yield heard
        connection.execute("SELECT 1")
        heard += [each.payload for each in connection.notifies(timeout=0.2)]


@pytest.fixture
def app(engine: Engine, vault: Vault) -> AppId:
    return make_app(engine, vault)


@pytest.fixture
def account(engine: Engine, vault: Vault, app: AppId) -> AccountId:
    """Active, its token good for an hour, due in 58 minutes."""
    return make_account(engine, vault, app, due_in=timedelta(minutes=58))


@dataclass(frozen=True, slots=True)
class Standing:
    """Where one account and its app stand; moments count from now."""

    status: AccountStatus
    has_token: bool
    expires_in: timedelta | None
    lifetime: timedelta | None
    due_in: timedelta | None
    is_claimed: bool
    is_requested: bool
    attempts: int
    doubts: int
    retry_in: timedelta | None
    is_quarantined: bool
    is_parked: bool
    is_probing: bool
    reported_ago: timedelta | None
    reports: int
    renews: bool | None
    probes: bool | None
    earliest_refresh: timedelta | None
    is_held: bool
    paused_for: timedelta | None
    rejections_in_row: int
    has_incident: bool


def seconds(*values: int) -> st.SearchStrategy[timedelta]:
    return st.sampled_from([timedelta(seconds=each) for each in values])


mostly_active = st.sampled_from([AccountStatus.ACTIVE] * 7 + list(AccountStatus))
rarely = st.sampled_from([False] * 6 + [True])
standings = st.builds(
    Standing,
    status=mostly_active,
    has_token=st.sampled_from([True, True, True, False]),
    expires_in=st.none() | seconds(-100, 20, 100, 1000, 3500),
    lifetime=st.none() | seconds(60, 120, 3600),
    due_in=st.sampled_from([timedelta(seconds=each) for each in (-60, -5, 7, 100, 3000)] * 2 + [None]),
    is_claimed=st.booleans(),
    is_requested=st.booleans(),
    attempts=st.sampled_from([0, 0, 0, 1, 5]),
    doubts=st.sampled_from([0, 0, 1]),
    retry_in=st.none() | seconds(-5, 5, 50),
    is_quarantined=rarely,
    is_parked=rarely,
    is_probing=st.booleans(),
    reported_ago=st.none() | seconds(30, 90, 1000, 100_000),
    reports=st.sampled_from([1, 2, 3, 20]),
    renews=st.sampled_from([None, True, True, False]),
    probes=st.sampled_from([None, True, False]),
    earliest_refresh=st.sampled_from([None, None, timedelta(seconds=300)]),
    is_held=rarely,
    paused_for=st.sampled_from([None, None, None, -MINUTE, MINUTE]),
    rejections_in_row=st.sampled_from([0, SILENT_AFTER - 1, SILENT_AFTER]),
    has_incident=rarely,
)


def put(engine: Engine, account: AccountId, app: AppId, it: Standing) -> None:
    """Make the account stand so."""
    execute(
        engine,
        """
        WITH moment AS (SELECT clock_timestamp() AS now), a AS (
            UPDATE tokenfleet.accounts SET status = :status WHERE id = :id
        ), t AS (
            UPDATE tokenfleet.token_sets
            SET access_token = CASE WHEN :has_token THEN CAST('a token' AS bytea) END,
                expires_at = now + CAST(:expires_in AS interval),
                obtained_at = COALESCE(now + CAST(:expires_in AS interval), now) - CAST(:life AS interval),
                epoch = CASE WHEN :knows THEN 1 ELSE 0 END
            FROM moment WHERE account_id = :id
        ), p AS (
            UPDATE tokenfleet.oauth_apps
            SET renews = CAST(:renews AS boolean), probes = CAST(:probes AS boolean),
                earliest_refresh = CAST(:earliest AS interval),
                held_since = CASE WHEN :is_held THEN now END, held_code = CASE WHEN :is_held THEN 'x' END,
                probe_at = now + interval '20 seconds', paused_until = now + CAST(:paused AS interval),
                rejections_in_row = :in_row
            FROM moment WHERE id = :app
        )
        UPDATE tokenfleet.refresh_schedule
        SET next_refresh_at = now + CAST(:due_in AS interval),
            claim_epoch = 1, claimed_until = CASE WHEN :is_claimed THEN now + interval '20 seconds' END,
            requested_at = CASE WHEN :is_requested THEN now - interval '1 second' END, attempts = :attempts,
            doubts = :doubts, retry_from = now + CAST(:retry_in AS interval), quarantined = :quarantined,
            incident_id = CASE WHEN :is_parked THEN 77 END, probing = :probing,
            reported_at = now - CAST(:reported_ago AS interval), reports = :reports
        FROM moment WHERE account_id = :id
        """,
        id=account,
        app=app,
        status=it.status.value,
        has_token=it.has_token,
        expires_in=it.expires_in,
        life=it.lifetime or HOUR,
        knows=it.lifetime is not None,
        renews=it.renews,
        probes=it.probes,
        earliest=it.earliest_refresh,
        is_held=it.is_held,
        paused=it.paused_for,
        in_row=it.rejections_in_row,
        due_in=it.due_in,
        is_claimed=it.is_claimed,
        is_requested=it.is_requested,
        attempts=it.attempts,
        doubts=it.doubts,
        retry_in=it.retry_in,
        quarantined=it.is_quarantined,
        is_parked=it.is_parked,
        probing=it.is_probing,
        reported_ago=it.reported_ago,
        reports=it.reports if it.reported_ago is not None else None,
    )
    execute(engine, "DELETE FROM tokenfleet.provider_incidents")
    if it.has_incident:
        execute(
            engine,
            "INSERT INTO tokenfleet.provider_incidents (app_id, kind, code) VALUES (:app, 'mass_rejection', 'x')",
            app=app,
        )


NOW = timedelta(0)


def expected(it: Standing, *, wanted: timedelta | None, refused: int | None) -> tuple[Answer, bool]:
    """Return the answer, and whether it is written down, of a reader that wants so long or was refused that generation.

    The rules once more, as a person would say them.
    """
    is_report = refused is not None
    if it.status not in {AccountStatus.ACTIVE, AccountStatus.CONNECTING}:
        return Answer.REFUSED, False
    if is_report and refused != 1:
        return Answer.FRESH, False
    if wanted is not None and it.has_token and (it.expires_in is None or it.expires_in > wanted):
        return Answer.FRESH, False
    if it.is_parked or it.due_in is None:
        return Answer.REFUSED, False
    renews = it.renews is not False
    if not renews and not (is_report and it.probes):
        return Answer.UNREACHABLE, False
    lifetime = it.lifetime if it.expires_in is not None else None
    if wanted is not None and lifetime is not None and lifetime - wanted < min(lifetime / 10, MINUTE):
        return Answer.UNREACHABLE, False
    if it.is_held or (it.paused_for or NOW) > NOW:
        return Answer.WAITING, False
    if (it.has_incident and it.rejections_in_row >= SILENT_AFTER) or it.is_quarantined:
        return Answer.WAITING, False
    lives = it.expires_in is None or it.expires_in > NOW
    probes = not renews or (is_report and bool(it.probes) and it.has_token and lives)
    is_due = it.due_in <= NOW
    if it.is_requested and is_due and (is_report or it.is_probing == probes):
        return Answer.REQUESTED, False
    opens = None
    if it.has_token and not it.attempts:
        moment = now()
        expires_at = None if it.expires_in is None else moment + it.expires_in
        opens = refresh_opens(moment, expires_at, Lifetimes(earliest_refresh=it.earliest_refresh))
        if opens is not None and opens > moment and not probes:
            return Answer.WAITING, False
    spacing = min(MINUTE * 2 ** min(it.reports - 1, 10), timedelta(hours=6))
    if is_report and it.reported_ago is not None and it.reported_ago < spacing:
        return Answer.WAITING, False
    allowed = it.due_in
    if it.retry_in is not None and not it.doubts:
        allowed = min(allowed, it.retry_in)
    if it.attempts and allowed > NOW:
        return Answer.WAITING, not it.is_requested or allowed < it.due_in
    return Answer.REQUESTED, not it.is_requested or not is_due or not is_report


@examples(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    it=standings,
    wanted=seconds(0, 30, 55, 110, 3000, 7200),
    refused=st.sampled_from([None, None, 0, 1, 1, 1, 2]),
)
def test_every_answer_is_the_one_of_the_rules_and_only_a_request_is_written(
    engine: Engine, app: AppId, account: AccountId, it: Standing, wanted: timedelta, refused: int | None
) -> None:
    put(engine, account, app, it)
    before = version_of(engine, account)
    reply = ask(engine, account, wanted) if refused is None else report(engine, account, refused)
    answer_due, is_written = expected(it, wanted=None if refused is not None else wanted, refused=refused)
    assert reply is not None
    assert (reply.answer, version_of(engine, account) != before) == (answer_due, is_written)
    assert (reply.status, reply.generation) == (it.status.value, 1)
    if reply.answer is Answer.REQUESTED:
        # It is due: nothing but the schedulers is waited for.
        assert column(
            engine,
            "SELECT next_refresh_at <= clock_timestamp() AND requested_at IS NOT NULL "
            "FROM tokenfleet.refresh_schedule",
        ) == [True]
        if refused is None and it.renews is not False:
            assert column(engine, "SELECT probing FROM tokenfleet.refresh_schedule") == [False]
    if is_written:
        # Asked once more, the same is answered and nothing is written.
        written = version_of(engine, account)
        again = ask(engine, account, wanted) if refused is None else report(engine, account, refused)
        assert again is not None
        assert again.answer is answer_due
        assert version_of(engine, account) == written


@pytest.mark.parametrize(
    ("life", "most"),
    [(HOUR, timedelta(minutes=59)), (MINUTE, timedelta(seconds=54)), (24 * HOUR, 24 * HOUR - MINUTE)],
)
def test_a_reader_can_ask_for_nearly_the_whole_life_of_a_token_and_for_no_more(
    engine: Engine, account: AccountId, life: timedelta, most: timedelta
) -> None:
    execute(
        engine,
        "UPDATE tokenfleet.token_sets SET epoch = 1, obtained_at = now() - CAST(:life AS interval) + interval '1 s', "
        "expires_at = now() + interval '1 s'",
        life=life,
    )
    answers = [ask(engine, account, most + timedelta(milliseconds=each)) for each in (200, -200)]
    assert [reply.answer for reply in answers if reply] == [Answer.UNREACHABLE, Answer.REQUESTED]
    # Of an imported token only the rest is known.
    execute(engine, "UPDATE tokenfleet.token_sets SET epoch = 0")
    reply = ask(engine, account, 100 * life)
    assert reply is not None
    assert reply.answer is Answer.REQUESTED


def test_there_is_no_answer_about_an_account_that_does_not_exist(engine: Engine, account: AccountId) -> None:
    assert ask(engine, account + 1) is None
    assert report(engine, account + 1, 1) is None


def test_odd_arguments_are_taken_for_what_they_can_mean(engine: Engine, account: AccountId) -> None:
    def answers(expression: str) -> list[Any]:
        return column(engine, f"SELECT answer FROM tokenfleet_v1.{expression}")

    assert answers(f"request_refresh({account})") == ["fresh"]
    assert answers(f"request_refresh({account}, NULL)") == ["fresh"]
    assert answers(f"request_refresh({account}, interval '-1 day')") == ["fresh"]
    assert answers(f"report_unauthorized({account}, NULL)") == ["fresh"]
    assert answers(f"request_refresh(account_id => {account}, min_validity => '1 minute')") == ["fresh"]
    assert answers(f"report_unauthorized(account_id => {account}, generation => 0)") == ["fresh"]
    assert answers("request_refresh(NULL)") == []
    assert marks(engine) == []


def test_a_thousand_fresh_answers_write_nothing(engine: Engine, account: AccountId) -> None:
    before = version_of(engine, account)
    with engine.connect() as connection:
        connection.execute(
            text(
                "SELECT count(r.answer) FROM generate_series(1, 1000), "
                "LATERAL tokenfleet_v1.request_refresh(:id + 0 * generate_series) r"
            ),
            {"id": account},
        )
        assert connection.execute(text("SELECT pg_current_xact_id_if_assigned()")).scalar_one() is None
    assert version_of(engine, account) == before


def test_of_callers_at_once_one_writes_and_all_are_told_that_it_is_on_its_way(
    engine: Engine, account: AccountId
) -> None:
    many = create_engine(engine.url, poolclass=NullPool)
    barrier = threading.Barrier(12)
    replies: list[str] = []

    def call() -> None:
        with many.connect() as connection:
            barrier.wait()
            replies.extend(
                connection.execute(
                    text("SELECT answer FROM tokenfleet_v1.request_refresh(:id, '2 h')"), {"id": account}
                ).scalars()
            )
            connection.commit()

    with listening(engine, schedule.WAKE_CHANNEL) as heard:
        callers = [threading.Thread(target=call) for _ in range(12)]
        for each in callers:
            each.start()
        for each in callers:
            each.join(20)
    assert replies == ["requested"] * 12
    [app_id] = column(engine, "SELECT app_id FROM tokenfleet.refresh_schedule")
    assert heard == [f"requested {app_id}"]


def test_a_reader_that_sleeps_in_its_transaction_keeps_up_no_other(
    engine: Engine, account: AccountId
) -> None:
    with engine.connect() as sleeper:
        ask_in = text("SELECT answer FROM tokenfleet_v1.request_refresh(:id, '2 h')")
        assert sleeper.execute(ask_in, {"id": account}).scalars().all() == ["requested"]
        with engine.begin() as other:
            other.execute(text("SET LOCAL lock_timeout = '1ms'"))
            assert other.execute(ask_in, {"id": account}).scalars().all() == ["requested"]


def test_a_request_goes_ahead_of_what_is_due_for_longer_but_takes_only_a_share(
    engine: Engine, vault: Vault, app: AppId
) -> None:
    due = [make_account(engine, vault, app, due_in=-HOUR) for _ in range(8)]
    wanted = [make_account(engine, vault, app, due_in=HOUR) for _ in range(6)]
    for each in wanted:
        ask(engine, each, 2 * HOUR)
    claims = claim(engine, app, window=8)
    assert [each.account_id for each in claims] == wanted[:2] + due[:6]
    assert [each.is_requested for each in claims] == [True] * 2 + [False] * 6
    # Between two ticks as well: the share is taken.
    with engine.begin() as connection:
        assert claim_requested(connection, [Allowance(app, 8, 8)], claim=CLAIM) == {}


def test_where_nobody_else_is_due_requests_have_the_whole_window(
    engine: Engine, vault: Vault, app: AppId
) -> None:
    wanted = [make_account(engine, vault, app, due_in=HOUR) for _ in range(6)]
    for each in wanted:
        ask(engine, each, 2 * HOUR)
    assert [each.account_id for each in claim(engine, app, window=5)] == wanted[:5]


def test_who_was_due_before_he_was_asked_for_keeps_his_place_among_those(
    engine: Engine, vault: Vault, app: AppId
) -> None:
    """Behind a storm of accounts that readers have brought forward, being wanted must not make anybody late."""
    storm = [make_account(engine, vault, app, due_in=HOUR) for _ in range(6)]
    for each in storm:
        ask(engine, each, 2 * HOUR)
    due = [make_account(engine, vault, app, expires_in=MINUTE / 2, due_in=timedelta(0)) for _ in range(8)]
    for each in due[:4]:
        ask(engine, each)
    claims = claim(engine, app, window=8)
    assert [each.account_id for each in claims] == storm[:2] + due[:4] + due[4:6]


def test_of_a_window_of_one_requests_have_their_share_and_the_due_ones_theirs(
    engine: Engine, vault: Vault, app: AppId
) -> None:
    due, wanted = make_account(engine, vault, app), make_account(engine, vault, app, due_in=HOUR)
    ask(engine, wanted, 2 * HOUR)
    first = []
    for turn in range(8):
        with engine.begin() as connection:
            allowances = [Allowance(app, 1, 1, turn)]
            [made] = claiming.claim_due(connection, allowances, claim=timedelta(0))[app]
        first.append(made.account_id)
    assert first == 2 * [due, due, due, wanted]


def test_what_nobody_took_on_demand_says_so_with_its_next_claim(
    engine: Engine, app: AppId, account: AccountId
) -> None:
    ask(engine, account, 2 * HOUR)
    for is_untaken in (False, True):
        with engine.begin() as connection:
            [made] = claim_requested(connection, [Allowance(app, 100, 100)], claim=timedelta(0))[app]
        assert (made.account_id, made.is_requested, made.is_untaken) == (account, True, is_untaken)


@pytest.mark.parametrize("is_started", [False, True])
def test_who_is_put_off_for_the_pace_stays_on_demand_and_once_only(
    engine: Engine, app: AppId, account: AccountId, is_started: bool
) -> None:
    ask(engine, account, 2 * HOUR)
    untaken = []
    for number in range(3):
        with engine.begin() as connection:
            [made] = claim_requested(connection, [Allowance(app, 100, 100)], claim=CLAIM)[app]
        untaken.append(made.is_untaken)
        if number == 0 and is_started:
            start(engine, job_of(app, [made]))
            with engine.begin() as connection:
                returns.give_back(connection, [(account, made.epoch, 5.0)])
        elif number == 0:
            with engine.begin() as connection:
                schedule.postpone(connection, job_of(app, [made]), wait=timedelta(seconds=5))
        execute(engine, "UPDATE tokenfleet.refresh_schedule SET claimed_until = now() - interval '1 ms'")
    # The second claim nobody looked at: there may be no worker any more that knows the queue.
    assert untaken == [False, False, True]


class TestTold:
    """Who waits is told once it is over, however it ended; nobody is told of what nobody asked for."""

    def heard_of(self, engine: Engine, settle: Any) -> list[str]:
        with listening(engine, REFRESHED_CHANNEL) as heard, engine.begin() as connection:
            settle(connection)
        return heard

    @pytest.mark.parametrize("is_asked", [True, False])
    def test_a_success(self, engine: Engine, vault: Vault, app: AppId, is_asked: bool) -> None:
        account = make_account(engine, vault, app)
        if is_asked:
            ask(engine, account, 2 * HOUR)
        attempt = begin_attempt(engine, app, account)
        assert attempt.is_requested is is_asked
        saved = answer(vault, account, epoch=attempt.epoch, generation=1)
        heard = self.heard_of(engine, lambda c: settlement.save_refreshed(c, [saved], actor=ACTOR))
        assert heard == ([f"{account} 2"] if is_asked else [])
        assert marks(engine) == []
        # A second time, as when a commit's outcome was unknown, nobody is told.
        assert self.heard_of(engine, lambda c: settlement.save_refreshed(c, [saved], actor=ACTOR)) == []

    @pytest.mark.parametrize("is_asked", [True, False])
    def test_a_failure_and_a_rejection(
        self, engine: Engine, vault: Vault, app: AppId, is_asked: bool
    ) -> None:
        failing, ended, apart = (make_account(engine, vault, app) for _ in range(3))
        for each in (failing, ended, apart) if is_asked else ():
            ask(engine, each, 2 * HOUR)
        attempts = {each.account_id: each for each in start(engine, job_of(app, claim(engine, app)))}
        heard = self.heard_of(
            engine, lambda c: settlement.defer(c, [deferral(attempts[failing])], actor=ACTOR)
        )
        word = rejection(ended, epoch=attempts[ended].epoch, generation=1)
        heard += self.heard_of(engine, lambda c: rejections.reject(c, [word], actor=ACTOR))
        with engine.begin() as connection:
            incident = park(connection, app, apart)
        execute(
            engine, "UPDATE tokenfleet.refresh_schedule SET next_refresh_at = now() WHERE incident_id > 0"
        )
        word = rejection(apart, epoch=attempts[apart].epoch, generation=1)
        heard += self.heard_of(engine, lambda c: rejections.reject(c, [word], actor=ACTOR))
        assert heard == ([f"{each} 1" for each in (failing, ended, apart)] if is_asked else [])
        assert marks(engine) == []
        replies = [ask(engine, each, 2 * HOUR) for each in (failing, ended, apart)]
        assert incident
        assert [(each.answer, each.status_reason, each.last_error) for each in replies if each] == [
            (Answer.WAITING, None, "http_503"),
            (Answer.REFUSED, "invalid_grant", None),
            (Answer.REFUSED, "parked", "invalid_grant"),
        ]

    def test_an_operator_who_pauses(self, engine: Engine, account: AccountId) -> None:
        ask(engine, account, 2 * HOUR)
        heard = self.heard_of(engine, lambda c: transitions.pause(c, [account], actor=ACTOR, reason="audit"))
        assert heard == [f"{account} 1"]
        reply = ask(engine, account)
        assert reply is not None
        assert (reply.answer, reply.status, reply.status_reason) == (Answer.REFUSED, "paused", "audit")

    def test_a_probe_but_not_one_during_which_a_refresh_was_asked_for(
        self, engine: Engine, account: AccountId, app: AppId
    ) -> None:
        execute(engine, "UPDATE tokenfleet.oauth_apps SET probes = true")
        reported = report(engine, account, 1)
        assert reported is not None
        assert reported.answer is Answer.REQUESTED
        attempt = begin_attempt(engine, app, account)
        assert attempt.probing
        visited = Visited(
            account_id=account,
            epoch=attempt.epoch,
            generation=1,
            next_refresh_at=now() + HOUR,
            probing=False,
            was_probing=True,
            kind="probe.alive",
            code=None,
            alive_at=now(),
            grant_ends_at=None,
            job_id=JOB_ID,
            duration_ms=1,
        )
        ask(engine, account, 2 * HOUR)
        assert self.heard_of(engine, lambda c: visits.settle(c, [visited], actor=ACTOR)) == []
        assert marks(engine) == [account]
        attempt = begin_attempt(engine, app, account)
        assert not attempt.probing
        visited = replace(visited, epoch=attempt.epoch, was_probing=False)
        assert self.heard_of(engine, lambda c: visits.settle(c, [visited], actor=ACTOR)) == [f"{account} 1"]


def test_a_reader_brings_a_failed_attempt_forward_and_no_further_than_ten_seconds_after_it(
    engine: Engine, vault: Vault, app: AppId
) -> None:
    account = make_account(engine, vault, app, expires_in=-MINUTE)
    attempt = begin_attempt(engine, app, account)
    with engine.begin() as connection:
        settlement.defer(connection, [deferral(attempt, wait=timedelta(minutes=5))], actor=ACTOR)
    failed_at = now()
    replies = [reply for reply in (ask(engine, account) for _ in range(5)) if reply is not None]
    assert [reply.answer for reply in replies] == [Answer.WAITING] * 5
    [due] = column(engine, "SELECT next_refresh_at FROM tokenfleet.refresh_schedule")
    assert {reply.retry_at for reply in replies} == {due}
    assert abs(due - failed_at - RETRY_AFTER) < timedelta(seconds=3)


@pytest.mark.parametrize("kind", ["refresh.throttled", "refresh.undescribed", "refresh.unknown"])
def test_what_a_provider_has_put_off_is_not_brought_forward(
    engine: Engine, vault: Vault, app: AppId, kind: str
) -> None:
    account = make_account(engine, vault, app, expires_in=-MINUTE)
    failure = deferral(begin_attempt(engine, app, account), kind=kind, wait=timedelta(minutes=5))
    with engine.begin() as connection:
        settlement.defer(connection, [failure], actor=ACTOR)
    reply = ask(engine, account)
    assert reply is not None
    assert (reply.answer, reply.retry_at) == (Answer.WAITING, failure.next_refresh_at)


def test_reports_of_one_account_are_heeded_at_intervals_that_double_up_to_six_hours(
    engine: Engine, vault: Vault, app: AppId, account: AccountId
) -> None:
    """A caller with too small a scope is told 401 for every token there is."""
    execute(engine, "UPDATE tokenfleet.accounts SET status = 'active'")
    intervals = []
    for generation in range(1, 13):
        reply = report(engine, account, generation)
        assert reply is not None
        assert reply.answer is Answer.REQUESTED, generation
        attempt = begin_attempt(engine, app, account)
        with engine.begin() as connection:
            saved = answer(vault, account, epoch=attempt.epoch, generation=generation)
            settlement.save_refreshed(connection, [saved], actor=ACTOR)
        reply = report(engine, account, generation + 1)
        assert reply is not None
        assert reply.retry_at is not None
        assert reply.answer is Answer.WAITING
        intervals.append(round((reply.retry_at - now()) / MINUTE))
        execute(
            engine,
            "UPDATE tokenfleet.refresh_schedule SET reported_at = reported_at - make_interval(mins => :all)",
            all=intervals[-1],
        )
    assert intervals == [1, 2, 4, 8, 16, 32, 64, 128, 256, 360, 360, 360]
    execute(engine, "UPDATE tokenfleet.refresh_schedule SET reported_at = now() - interval '25 h'")
    reply = report(engine, account, 13)
    assert reply is not None
    assert reply.answer is Answer.REQUESTED
    assert column(engine, "SELECT reports FROM tokenfleet.refresh_schedule") == [1]


def test_no_scheduled_refresh_touches_the_index_of_requests_and_claims_stay_heap_only(
    engine: Engine, vault: Vault, app: AppId
) -> None:
    accounts = [make_account(engine, vault, app) for _ in range(20)]
    for generation in range(1, 4):
        execute(engine, "UPDATE tokenfleet.refresh_schedule SET next_refresh_at = now() - interval '1 s'")
        attempts = start(engine, job_of(app, claim(engine, app)))
        saved = [answer(vault, each.account_id, epoch=each.epoch, generation=generation) for each in attempts]
        with engine.begin() as connection:
            assert len(settlement.save_refreshed(connection, saved, actor=ACTOR).saved) == len(accounts)
    # Nothing but the page that every index begins with.
    size = "SELECT pg_relation_size('tokenfleet.ix_refresh_schedule_requested')::int / 8192"
    assert column(engine, size) == [1]
    execute(engine, "UPDATE tokenfleet.refresh_schedule SET next_refresh_at = now() - interval '1 s'")
    updates = text("SELECT n_tup_hot_upd FROM pg_stat_xact_user_tables WHERE relname = 'refresh_schedule'")
    with engine.connect() as connection:
        before = connection.execute(updates).scalar_one()
        made = claiming.claim_due(connection, [Allowance(app, 100, 100)], claim=CLAIM)[app]
        assert connection.execute(updates).scalar_one() - before == len(made) == len(accounts)
    report(engine, accounts[0], 4)
    assert column(engine, size) == [2]
