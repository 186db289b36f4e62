"""Accounts from lines into the database: created whole, re-authenticated, and never damaged by an old file."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from sqlalchemy import Engine, text

from store import rejections, schedule, settlement, transitions
from store.import_admission import UNKNOWN_PROVIDER
from store.import_judgement import REJECTED, ROTATED, SPENT
from store.import_rules import ProviderRules
from store.import_source import CHUNK_LINES, BadLine, ImportFormat, read_chunks
from store.imports import Importer, Tally
from store.keys import Vault
from tests.support.builders import (
    ACTOR,
    HOUR,
    State,
    answer,
    begin_attempt,
    claim,
    column,
    deferral,
    history_of,
    job_of,
    make_account,
    make_app,
    make_due,
    now,
    rejection,
    start,
    state_of,
    told_about,
)
from tests.support.incidents import Place, place_of, provoke, set_apart
from tests.support.racing import in_background, race, wait_until_blocked
from tokenfleet.errors import UserError
from tokenfleet.jobs import AccountId, AppId
from tokenfleet.tokens import Margins
from tokenfleet_client.contract import AccountStatus

CREATED = "integrated_account:created"
REACTIVATED = "integrated_account:reactivated"
EARLIEST, LATEST = timedelta(seconds=180), timedelta(seconds=60)


def needs_subdomain(variables: Mapping[str, str]) -> str | None:
    return None if "subdomain" in variables else "needs the variable subdomain"


RULES = {
    "acme": ProviderRules(Margins(EARLIEST, LATEST), lambda _variables: None),
    "tenanted": ProviderRules(Margins(EARLIEST, LATEST), needs_subdomain),
}


def rules_of(name: str) -> ProviderRules:
    if name not in RULES:
        raise UserError(f"there is no provider {name!r}: did you mean acme?")
    return RULES[name]


@dataclass(frozen=True, slots=True)
class Done:
    """What became of all lines of an import."""

    tally: Tally
    bad: tuple[BadLine, ...]

    @property
    def reason(self) -> str:
        """The reason of the only bad line."""
        [bad] = self.bad
        return bad.reason


class Desk:
    """Imports lines into one test's database, and looks at what they left there."""

    def __init__(self, engine: Engine, vault: Vault) -> None:
        self.engine = engine
        self.vault = vault
        self.app_id = make_app(engine, vault, provider="acme", name="default")

    def importer(self, *, dry_run: bool = False) -> Importer:
        return Importer(self.engine, self.vault, rules_of, actor="operator:ada", dry_run=dry_run)

    def bring(self, *lines: Mapping[str, Any], importer: Importer | None = None) -> Done:
        """Import ``lines`` as one file."""
        stream = io.BytesIO("\n".join(map(json.dumps, lines)).encode())
        tally, bad = Tally(), list[BadLine]()
        importer = importer or self.importer()
        for report in importer.run(
            read_chunks(stream, ImportFormat.JSON_LINES, now=now(), rules_of=rules_of)
        ):
            tally.add(report.tally)
            bad += report.bad
        return Done(tally, tuple(bad))

    def account(self, external_id: str = "customer-1") -> AccountId:
        [account_id] = column(
            self.engine, "SELECT id FROM tokenfleet.accounts WHERE external_id = :name", name=external_id
        )
        return AccountId(account_id)

    def state(self, external_id: str = "customer-1") -> State:
        return state_of(self.engine, self.vault, self.account(external_id))

    def one(self, statement: str, **parameters: object) -> Any:
        [value] = column(self.engine, statement, **parameters)
        return value

    def count(self, table: str) -> int:
        counted: int = self.one(f"SELECT count(*) FROM tokenfleet.{table}")
        return counted

    def rotate(self, external_id: str = "customer-1") -> None:
        """Let a worker refresh an account: it gets the tokens of the next generation."""
        account_id = self.account(external_id)
        make_due(self.engine, account_id)
        [app_id] = column(self.engine, "SELECT app_id FROM tokenfleet.accounts WHERE id = :id", id=account_id)
        attempt = begin_attempt(self.engine, AppId(app_id), account_id)
        saved = answer(self.vault, account_id, epoch=attempt.epoch, generation=attempt.generation)
        with self.engine.begin() as connection:
            connecting = attempt.status is AccountStatus.CONNECTING
            result = settlement.save_refreshed(
                connection, [replace(saved, activates=connecting)], actor=ACTOR
            )
        assert account_id in result.saved

    def end(self, external_id: str = "customer-1") -> None:
        """Let the provider reject an account's grant."""
        account_id = self.account(external_id)
        make_due(self.engine, account_id)
        [app_id] = column(self.engine, "SELECT app_id FROM tokenfleet.accounts WHERE id = :id", id=account_id)
        attempt = begin_attempt(self.engine, AppId(app_id), account_id)
        word = rejection(account_id, epoch=attempt.epoch, generation=attempt.generation)
        with self.engine.begin() as connection:
            assert rejections.reject(connection, [word], actor=ACTOR).flipped == {account_id}

    def pause(self, external_id: str = "customer-1") -> None:
        with self.engine.begin() as connection:
            assert transitions.pause(connection, [self.account(external_id)], actor=ACTOR, reason=None)

    def everything(self) -> list[Any]:
        """Return every row that an import could touch, to compare before and after."""
        tables = ("accounts", "token_sets", "refresh_schedule", "account_events", "outbox")
        return [
            sorted(column(self.engine, f"SELECT to_jsonb(t)::text FROM tokenfleet.{table} t"))
            for table in tables
        ]


@pytest.fixture
def desk(engine: Engine, vault: Vault) -> Desk:
    return Desk(engine, vault)


def line(external_id: str = "customer-1", **fields: Any) -> dict[str, Any]:
    least = {"provider": "acme", "external_id": external_id, "refresh_token": f"imported-{external_id}"}
    return {**least, **fields}


def whole(external_id: str = "customer-1", **fields: Any) -> dict[str, Any]:
    """Return a line that also has an access token, for another hour."""
    usual = {
        "access_token": f"granted-{external_id}",
        "token_type": "Bearer",
        "scope": "read",
        "expires_in": 3600,
    }
    return line(external_id, **{**usual, **fields})


def in_about(moment: datetime | None, earliest: timedelta, latest: timedelta) -> bool:
    slack = timedelta(seconds=20)
    return moment is not None and now() + earliest - slack <= moment <= now() + latest + slack


# New accounts


def test_a_new_account_with_an_access_token_is_active_and_due_before_it_expires(desk: Desk) -> None:
    assert desk.bring(whole()).tally == Tally(created=1)
    state = desk.state()
    assert state.status is AccountStatus.ACTIVE
    assert (state.generation, state.claim_epoch, state.started_epoch) == (1, 0, 0)
    assert (state.access_token, state.scope) == ("granted-customer-1", "read")
    assert state.refresh_token == "imported-customer-1"
    assert in_about(state.next_refresh_at, HOUR - EARLIEST, HOUR - LATEST)


def test_a_new_account_without_an_access_token_is_connecting_and_due_at_once(desk: Desk) -> None:
    desk.bring(line(expires_in=3600))
    state = desk.state()
    assert state.status is AccountStatus.CONNECTING
    assert state.access_token is None
    assert in_about(state.next_refresh_at, timedelta(0), timedelta(0))
    assert desk.one("SELECT expires_at FROM tokenfleet.token_sets") is None
    assert [claimed.account_id for claimed in claim(desk.engine, desk.app_id)] == [desk.account()]


def test_a_new_account_has_its_history_and_its_event(desk: Desk) -> None:
    importer = desk.importer()
    desk.bring(whole(tenant="tenant-1"), importer=importer)
    with desk.engine.connect() as connection:
        row = connection.execute(text("SELECT * FROM tokenfleet.account_events")).one()
    assert (row.kind, row.generation, row.actor, row.status_from, row.status_to) == (
        "account.imported",
        1,
        "operator:ada",
        None,
        "active",
    )
    assert row.job_id == importer.import_id
    assert told_about(desk.engine, desk.account()) == [CREATED]
    assert desk.one("SELECT payload FROM tokenfleet.outbox") == {
        "id": desk.account(),
        "integration_name": "acme",
        "external_id": "customer-1",
        "tenant": "tenant-1",
        "environment": "production",
        "status": "active",
        "last_error": None,
    }


def test_the_event_of_a_new_account_has_the_shape_of_every_other_event(desk: Desk) -> None:
    desk.bring(line())
    desk.end()
    created, ended = column(desk.engine, "SELECT payload FROM tokenfleet.outbox ORDER BY sequence")
    assert created.keys() == ended.keys()


def test_what_describes_an_account_is_stored(desk: Desk) -> None:
    make_app(desk.engine, desk.vault, provider="acme", environment="staging", name="eu")
    described: dict[str, Any] = {
        "tenant": "tenant-1",
        "environment": "staging",
        "app": "eu",
        "variables": {"subdomain": "acme", "umlaut": "\N{LATIN SMALL LETTER U WITH DIAERESIS}"},
        "metadata": {"plan": "pro", "seats": 12, "tags": ["a", None, 1.5]},
    }
    desk.bring(whole(refresh_token_expires_at="2031-01-01T00:00:00Z", **described))
    with desk.engine.connect() as connection:
        row = connection.execute(
            text("""
                SELECT a.*, t.token_type, t.refresh_token_expires_at, o.name AS app
                FROM tokenfleet.accounts a JOIN tokenfleet.token_sets t ON t.account_id = a.id
                JOIN tokenfleet.oauth_apps o ON o.id = a.app_id
            """)
        ).one()
    assert {name: getattr(row, name) for name in described} == described
    assert row.token_type == "Bearer"
    assert row.refresh_token_expires_at == datetime(2031, 1, 1, tzinfo=UTC)


def test_expires_in_counts_from_the_databases_clock(desk: Desk) -> None:
    desk.bring(whole(expires_in=7200))
    lifetime = desk.one("SELECT expires_at - obtained_at FROM tokenfleet.token_sets")
    age = desk.one("SELECT now() - obtained_at FROM tokenfleet.token_sets")
    assert lifetime == timedelta(seconds=7200)
    assert timedelta(0) <= age < timedelta(seconds=20)


def test_expires_at_wins_over_expires_in(desk: Desk) -> None:
    desk.bring(whole(expires_at="2030-01-01T00:00:00Z", expires_in=60))
    assert desk.one("SELECT expires_at FROM tokenfleet.token_sets") == datetime(2030, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    "expiry", [{"expires_at": "2020-01-01T00:00:00Z"}, {"expires_in": 0}, {"expires_in": None}]
)
def test_an_expired_or_absent_expiry_is_due_at_once(desk: Desk, expiry: dict[str, Any]) -> None:
    desk.bring(whole(**expiry))
    state = desk.state()
    assert state.status is AccountStatus.ACTIVE
    assert in_about(state.next_refresh_at, timedelta(0), timedelta(0))


def test_accounts_that_expire_together_are_not_due_together(desk: Desk) -> None:
    desk.bring(*(whole(f"c{number}", expires_at="2030-01-01T00:00:00Z") for number in range(50)))
    moments = column(desk.engine, "SELECT next_refresh_at FROM tokenfleet.refresh_schedule")
    assert max(moments) - min(moments) > timedelta(seconds=60)


def test_every_token_is_sealed(desk: Desk) -> None:
    desk.bring(whole())
    rows = str(desk.everything())
    for token in ("imported-customer-1", "granted-customer-1"):
        assert token not in rows
        assert token.encode().hex() not in rows


def test_an_import_wakes_the_schedulers_when_it_commits(desk: Desk) -> None:
    url = desk.engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(url, autocommit=True) as listener:
        listener.execute(f"LISTEN {schedule.WAKE_CHANNEL}")
        desk.bring(line())
        assert [note.channel for note in listener.notifies(timeout=10, stop_after=1)] == [
            schedule.WAKE_CHANNEL
        ]


def test_thousands_of_accounts_come_in_over_several_chunks(desk: Desk) -> None:
    total = CHUNK_LINES * 2 + 5
    done = desk.bring(*(whole(f"c{number}") for number in range(total)), whole("c0"))
    assert done.tally == Tally(created=total, bad=1)
    assert done.reason == "is about the same account as line 1: keep one of them"
    for table in ("accounts", "token_sets", "refresh_schedule", "account_events", "outbox"):
        assert desk.count(table) == total


# Bad lines


def test_bad_lines_are_reported_in_order_and_the_good_ones_go_in(desk: Desk) -> None:
    lines = [line("a"), line("b", expires_in=-1), line("c", provider="other"), line("d", app="eu"), line("e")]
    done = desk.bring(*lines)
    assert done.tally == Tally(created=2, bad=3)
    assert [bad.number for bad in done.bad] == [2, 3, 4]
    assert set(column(desk.engine, "SELECT external_id FROM tokenfleet.accounts")) == {"a", "e"}


def test_an_unknown_provider_is_told_with_those_that_are_meant(desk: Desk) -> None:
    assert desk.bring(line(provider="acmee")).reason == "there is no provider 'acmee': did you mean acme?"


def test_a_token_in_the_place_of_the_provider_is_not_told(desk: Desk) -> None:
    assert desk.bring(line(provider="1//0aB3aB3aB3aB3aB3")).reason == UNKNOWN_PROVIDER


def test_a_missing_app_is_told_with_the_command_that_registers_it(desk: Desk) -> None:
    reason = desk.bring(line(environment="staging")).reason
    assert reason == (
        "no app default is registered for acme in environment staging: run 'tokenfleet apps set acme "
        "--environment staging --name default'"
    )
    assert "(registered: default)" in desk.bring(line(app="eu")).reason
    assert "aB3" not in desk.bring(line(app="1//0aB3aB3aB3", environment="1//0aB3aB3aB3")).reason


def test_variables_may_come_from_the_account_or_from_its_app(desk: Desk) -> None:
    make_app(desk.engine, desk.vault, provider="tenanted", name="default")
    make_app(desk.engine, desk.vault, provider="tenanted", name="fixed", variables={"subdomain": "all"})
    done = desk.bring(
        line("a", provider="tenanted"),
        line("b", provider="tenanted", variables={"subdomain": "acme"}),
        line("c", provider="tenanted", app="fixed"),
    )
    assert done.tally == Tally(created=2, bad=1)
    assert done.bad == (BadLine(1, "needs the variable subdomain"),)


def test_a_known_account_keeps_the_variables_that_its_new_line_leaves_out(desk: Desk) -> None:
    make_app(desk.engine, desk.vault, provider="tenanted", name="default")
    desk.bring(line(provider="tenanted", variables={"subdomain": "acme"}))
    assert desk.bring(line(provider="tenanted", refresh_token="second")).tally == Tally(reauthenticated=1)
    assert desk.state().variables == {"subdomain": "acme"}
    assert desk.bring(line(provider="tenanted", variables={})).reason == "needs the variable subdomain"


def test_a_line_that_postgres_refuses_takes_no_other_with_it(desk: Desk) -> None:
    with desk.engine.begin() as connection:
        connection.execute(
            text("ALTER TABLE tokenfleet.accounts ADD CONSTRAINT odd CHECK (external_id NOT LIKE 'odd%')")
        )
    done = desk.bring(*(line(f"c{number}" if number % 10 else f"odd-{number}") for number in range(1, 31)))
    assert done.tally == Tally(created=27, bad=3)
    assert done.bad == tuple(
        BadLine(number, "is refused by Postgres (CheckViolation)") for number in (10, 20, 30)
    )


def test_a_failing_postgres_ends_the_import_with_one_sentence(desk: Desk) -> None:
    with desk.engine.begin() as connection:
        connection.execute(text("ALTER TABLE tokenfleet.outbox RENAME TO elsewhere"))
    with pytest.raises(UserError, match=r"Postgres failed \(UndefinedTable\) at lines 1 to 2, none of which"):
        desk.bring(line("a"), line("b"))
    assert desk.count("accounts") == 0


def test_a_dry_run_judges_everything_and_writes_nothing(desk: Desk) -> None:
    desk.bring(line("known"), line("again"))
    desk.end("again")
    before = desk.everything()
    lines = [line("known"), line("new"), line("again", refresh_token="second"), line("bad", app="eu")]
    done = desk.bring(*lines, importer=desk.importer(dry_run=True))
    assert done.tally == Tally(created=1, reauthenticated=1, reactivated=1, unchanged=1, bad=1)
    assert desk.everything() == before


# The same file again


def test_the_same_file_twice_changes_nothing(desk: Desk) -> None:
    lines = [whole("a", tenant="tenant-1", metadata={"plan": "pro"}), line("b")]
    desk.bring(*lines)
    before = desk.everything()
    assert desk.bring(*lines).tally == Tally(unchanged=2)
    assert desk.everything() == before


def test_an_old_file_never_overwrites_a_rotated_token(desk: Desk) -> None:
    desk.bring(whole())
    desk.rotate()
    before = desk.everything()
    assert desk.bring(whole()).tally == Tally(unchanged=1)
    assert desk.everything() == before
    assert desk.state().refresh_token == "refresh-2"


def test_a_file_from_before_the_last_sign_in_is_still_recognised(desk: Desk) -> None:
    files = [whole(refresh_token=f"sign-in-{number}") for number in range(5)]
    for file in files:
        desk.bring(file)
    assert desk.bring(files[0]).tally == Tally(unchanged=1)
    assert desk.state().refresh_token == "sign-in-4"


def test_only_the_last_sixteen_sign_ins_are_remembered(desk: Desk) -> None:
    for number in range(20):
        desk.bring(line(refresh_token=f"sign-in-{number}"))
    assert desk.one("SELECT cardinality(imported_fingerprints) FROM tokenfleet.accounts") == 16
    assert desk.bring(line(refresh_token="sign-in-4")).tally == Tally(unchanged=1)
    assert desk.bring(line(refresh_token="sign-in-3")).tally == Tally(reauthenticated=1)


def test_the_stored_token_is_recognised_even_if_it_was_never_imported(desk: Desk) -> None:
    account_id = make_account(desk.engine, desk.vault, desk.app_id, external_id="made", refresh_token="held")
    assert desk.bring(whole("made", refresh_token="held")).tally == Tally(unchanged=1)
    assert state_of(desk.engine, desk.vault, account_id).generation == 1
    desk.rotate("made")
    assert desk.bring(whole("made", refresh_token="held")).tally == Tally(unchanged=1)
    assert desk.state("made").refresh_token == "refresh-2"


@pytest.mark.parametrize("rotated", [False, True])
def test_a_spent_token_does_not_revive_an_account_that_needs_a_sign_in(desk: Desk, rotated: bool) -> None:
    desk.bring(whole())
    if rotated:
        desk.rotate()
    desk.end()
    before = desk.everything()
    done = desk.bring(whole())
    assert done.tally == Tally(bad=1)
    assert done.reason == SPENT.format(credential="refresh token")
    assert desk.everything() == before


def test_a_spent_token_does_not_revive_a_revoked_account(desk: Desk) -> None:
    desk.bring(whole())
    with desk.engine.begin() as connection:
        connection.execute(text("UPDATE tokenfleet.accounts SET status = 'revoked'"))
        connection.execute(text("UPDATE tokenfleet.token_sets SET refresh_token = NULL, access_token = NULL"))
    assert desk.bring(whole()).reason == SPENT.format(credential="refresh token")
    assert desk.bring(whole(refresh_token="second")).tally == Tally(reauthenticated=1, reactivated=1)
    assert desk.state().status is AccountStatus.ACTIVE


def test_a_rejected_token_that_was_never_imported_does_not_revive_an_account(desk: Desk) -> None:
    make_account(desk.engine, desk.vault, desk.app_id, external_id="made", refresh_token="held")
    desk.end("made")
    assert desk.bring(whole("made", refresh_token="held")).reason == REJECTED.format(
        credential="refresh token"
    )


# Re-authentication


def test_new_tokens_make_an_account_active_again_and_say_so(desk: Desk) -> None:
    desk.bring(whole())
    desk.end()
    done = desk.bring(whole(refresh_token="second", access_token="access-second"))
    assert done.tally == Tally(reauthenticated=1, reactivated=1)
    state = desk.state()
    assert (state.status, state.status_reason) == (AccountStatus.ACTIVE, None)
    assert (state.generation, state.access_token, state.refresh_token) == (2, "access-second", "second")
    assert in_about(state.next_refresh_at, HOUR - EARLIEST, HOUR - LATEST)
    assert told_about(desk.engine, desk.account())[-1] == REACTIVATED
    assert {"account.imported", "account.reconnected"} <= set(history_of(desk.engine, desk.account())[-2:])


def test_new_tokens_for_an_active_account_replace_the_old_ones_quietly(desk: Desk) -> None:
    desk.bring(whole())
    assert desk.bring(whole(refresh_token="second")).tally == Tally(reauthenticated=1)
    assert (desk.state().generation, desk.state().refresh_token) == (2, "second")
    assert told_about(desk.engine, desk.account()) == [CREATED]
    assert history_of(desk.engine, desk.account()) == ["account.imported", "account.imported"]


def test_new_tokens_put_an_account_in_trouble_back_on_the_schedule(desk: Desk) -> None:
    desk.bring(line())
    attempt = begin_attempt(desk.engine, desk.app_id, desk.account())
    with desk.engine.begin() as connection:
        settlement.defer(connection, [deferral(attempt, quarantined=True, answer_lost=True)], actor=ACTOR)
    assert desk.state().failing_since is not None
    desk.bring(whole(refresh_token="second"))
    state = desk.state()
    assert (state.attempts, state.unanswered, state.failing_since) == (0, 0, None)
    assert (state.last_error, state.quarantined, state.claimed_until) == (None, False, None)


def test_a_message_about_the_old_tokens_starts_nothing(desk: Desk) -> None:
    desk.bring(line())
    job = job_of(desk.app_id, claim(desk.engine, desk.app_id))
    desk.bring(line(refresh_token="second"))
    assert start(desk.engine, job) == []
    [again] = start(desk.engine, job_of(desk.app_id, claim(desk.engine, desk.app_id)))
    assert again.generation == 2


@pytest.mark.parametrize("word", ["answer", "rejection", "failure"])
def test_a_late_word_on_the_old_tokens_changes_nothing_of_the_new_ones(desk: Desk, word: str) -> None:
    desk.bring(line())
    attempt = begin_attempt(desk.engine, desk.app_id, desk.account())
    desk.bring(whole(refresh_token="second"))
    before = desk.state()
    with desk.engine.begin() as connection:
        if word == "answer":
            late = answer(desk.vault, desk.account(), epoch=attempt.epoch, generation=attempt.generation)
            assert settlement.save_refreshed(connection, [late], actor=ACTOR).candidates == {desk.account()}
        elif word == "rejection":
            no = rejection(desk.account(), epoch=attempt.epoch, generation=attempt.generation)
            assert not rejections.reject(connection, [no], actor=ACTOR).flipped
        else:
            settlement.defer(connection, [deferral(attempt)], actor=ACTOR)
    assert desk.state() == before


def test_a_paused_account_gets_its_tokens_and_stays_paused(desk: Desk) -> None:
    desk.bring(whole())
    desk.pause()
    assert desk.bring(whole(refresh_token="second")).tally == Tally(reauthenticated=1, paused=1)
    state = desk.state()
    assert (state.status, state.refresh_token, state.next_refresh_at) == (
        AccountStatus.PAUSED,
        "second",
        None,
    )


def test_a_connecting_account_stays_so_until_it_has_an_access_token(desk: Desk) -> None:
    desk.bring(line())
    desk.bring(line(refresh_token="second"))
    assert desk.state().status is AccountStatus.CONNECTING
    desk.bring(whole(refresh_token="third"))
    assert desk.state().status is AccountStatus.ACTIVE
    assert told_about(desk.engine, desk.account()) == [CREATED]


def test_readers_of_a_healthy_account_keep_its_access_token_until_the_first_refresh(desk: Desk) -> None:
    desk.bring(whole())
    desk.bring(line(refresh_token="second"))
    state = desk.state()
    assert (state.status, state.generation) == (AccountStatus.ACTIVE, 2)
    assert (state.access_token, state.refresh_token, state.scope) == ("granted-customer-1", "second", "read")
    assert in_about(state.next_refresh_at, timedelta(0), timedelta(0))
    assert desk.one("SELECT expires_at > now() FROM tokenfleet.token_sets") is True


def test_the_access_token_of_an_ended_account_does_not_outlive_it(desk: Desk) -> None:
    desk.bring(whole())
    desk.end()
    desk.bring(line(refresh_token="second"))
    state = desk.state()
    assert (state.status, state.access_token) == (AccountStatus.ACTIVE, None)
    assert desk.one("SELECT expires_at FROM tokenfleet.token_sets") is None


def test_the_new_line_wins_over_what_an_answer_once_told(desk: Desk) -> None:
    desk.bring(whole(variables={"instance": "a"}))
    with desk.engine.begin() as connection:
        captured = json.dumps({"instance": "b", "region": "eu"})
        connection.execute(text("UPDATE tokenfleet.token_sets SET variables = :v"), {"v": captured})
    desk.bring(whole(refresh_token="second", variables={"instance": "c"}))
    assert desk.state().variables == {"instance": "c", "region": "eu"}


def test_an_account_whose_token_cannot_be_opened_is_healed_by_a_new_one(desk: Desk) -> None:
    desk.bring(whole())
    with desk.engine.begin() as connection:
        connection.execute(
            text("UPDATE tokenfleet.token_sets SET refresh_token = 'damaged', access_token = NULL")
        )
    assert desk.bring(whole(refresh_token="second")).tally == Tally(reauthenticated=1)
    assert desk.state().refresh_token == "second"


# Descriptions


def test_a_line_with_the_known_token_updates_what_describes_the_account(desk: Desk) -> None:
    desk.bring(whole(tenant="tenant-1", metadata={"plan": "free"}))
    before = desk.state()
    done = desk.bring(whole(tenant="tenant-2", metadata={"plan": "pro"}))
    assert done.tally == Tally(updated=1)
    assert desk.one("SELECT tenant FROM tokenfleet.accounts") == "tenant-2"
    assert desk.one("SELECT metadata FROM tokenfleet.accounts") == {"plan": "pro"}
    assert desk.state() == before
    assert desk.one("SELECT detail FROM tokenfleet.account_events WHERE kind = 'account.described'") == {
        "changed": ["tenant", "metadata"]
    }


def test_what_a_line_leaves_out_stays_as_it_is(desk: Desk) -> None:
    desk.bring(whole(tenant="tenant-1", metadata={"plan": "free"}, variables={"region": "eu"}))
    desk.bring(whole(refresh_token="second"))
    row = desk.one("SELECT to_jsonb(a) FROM tokenfleet.accounts a")
    assert (row["tenant"], row["metadata"], row["variables"]) == (
        "tenant-1",
        {"plan": "free"},
        {"region": "eu"},
    )


def test_a_corrected_variable_lets_a_failing_account_try_at_once(desk: Desk) -> None:
    desk.bring(line("failing"), line("well"))
    attempts = start(desk.engine, job_of(desk.app_id, claim(desk.engine, desk.app_id)))
    [failing] = [each for each in attempts if each.account_id == desk.account("failing")]
    with desk.engine.begin() as connection:
        settlement.defer(connection, [deferral(failing, quarantined=True, wait=HOUR)], actor=ACTOR)
    assert desk.bring(line("failing", variables={"region": "eu"})).tally == Tally(updated=1)
    state = desk.state("failing")
    assert not state.quarantined
    assert in_about(state.next_refresh_at, timedelta(0), timedelta(0))


# Corrections


def test_a_token_imported_under_the_wrong_app_may_be_imported_under_the_right_one(desk: Desk) -> None:
    other = make_app(desk.engine, desk.vault, provider="acme", name="eu")
    desk.bring(whole())
    desk.end()
    done = desk.bring(whole(app="eu"))
    assert done.tally == Tally(reauthenticated=1, reactivated=1)
    assert desk.one("SELECT app_id FROM tokenfleet.accounts") == other
    assert desk.one("SELECT app_id FROM tokenfleet.refresh_schedule") == other
    assert desk.state().generation == 2


def test_a_token_that_one_app_has_rotated_is_not_given_to_another(desk: Desk) -> None:
    make_app(desk.engine, desk.vault, provider="acme", name="eu")
    desk.bring(whole())
    desk.rotate()
    assert desk.bring(whole(app="eu")).reason == ROTATED.format(credential="refresh token")
    assert desk.state().refresh_token == "refresh-2"


def test_a_line_that_names_no_app_leaves_an_account_with_its_own(desk: Desk) -> None:
    other = make_app(desk.engine, desk.vault, provider="acme", name="eu")
    desk.bring(whole(app="eu"))
    assert desk.bring(whole()).tally == Tally(unchanged=1)
    desk.bring(whole(refresh_token="second"))
    assert desk.one("SELECT app_id FROM tokenfleet.refresh_schedule") == other


def test_a_token_rejected_for_a_wrong_variable_may_be_imported_with_the_right_one(desk: Desk) -> None:
    desk.bring(whole(variables={"region": "us"}))
    desk.end()
    assert desk.bring(whole(variables={"region": "us"})).reason == SPENT.format(credential="refresh token")
    assert desk.bring(whole(variables={"region": "eu"})).tally == Tally(reauthenticated=1, reactivated=1)


# Beside others


def test_two_imports_of_one_file_at_once_create_every_account_once(desk: Desk) -> None:
    lines = [whole(f"c{number}") for number in range(300)]
    results = race([lambda: desk.bring(*lines), lambda: desk.bring(*reversed(lines))])
    assert [done.tally.bad for done in results] == [0, 0]
    assert sum(done.tally.created for done in results) == 300
    assert sum(done.tally.unchanged for done in results) == 300
    assert desk.count("outbox") == 300


def test_two_sign_ins_of_one_account_at_once_both_count(desk: Desk) -> None:
    desk.bring(whole())
    race([_bringing(desk, whole(refresh_token=token)) for token in ("second", "third")])
    assert desk.state().generation == 3
    assert desk.state().refresh_token in {"second", "third"}


def test_one_sign_in_imported_twice_at_once_counts_once(desk: Desk) -> None:
    desk.bring(whole())
    desk.end()
    results = race([_bringing(desk, whole(refresh_token="second"))] * 2)
    totals = Tally()
    for done in results:
        totals.add(done.tally)
    assert totals == Tally(reauthenticated=1, reactivated=1, unchanged=1)
    assert told_about(desk.engine, desk.account()).count(REACTIVATED) == 1


def test_an_import_that_meets_a_worker_waits_and_builds_on_what_the_worker_wrote(desk: Desk) -> None:
    desk.bring(line())
    attempt = begin_attempt(desk.engine, desk.app_id, desk.account())
    saved = answer(desk.vault, desk.account(), epoch=attempt.epoch, generation=1, activates=True)
    with desk.engine.connect() as connection:
        settlement.save_refreshed(connection, [saved], actor=ACTOR)
        importing = in_background(_bringing(desk, whole(refresh_token="second")))
        wait_until_blocked(desk.engine)
        connection.commit()
    assert importing.result(20).tally == Tally(reauthenticated=1)
    assert (desk.state().generation, desk.state().refresh_token) == (3, "second")


def test_a_pause_that_meets_an_import_wins(desk: Desk) -> None:
    desk.bring(whole())
    with desk.engine.connect() as connection:
        transitions.pause(connection, [desk.account()], actor=ACTOR, reason=None)
        importing = in_background(_bringing(desk, whole(refresh_token="second")))
        wait_until_blocked(desk.engine)
        connection.commit()
    importing.result(20)
    assert (desk.state().status, desk.state().next_refresh_at) == (AccountStatus.PAUSED, None)


@pytest.mark.parametrize(
    "mishap",
    ["RAISE EXCEPTION USING ERRCODE = 'deadlock_detected'", "PERFORM pg_terminate_backend(pg_backend_pid())"],
)
def test_a_chunk_that_meets_a_mishap_is_written_again(desk: Desk, mishap: str) -> None:
    with desk.engine.begin() as connection:
        # A sequence is no part of the transaction that fails, so only the first try meets it.
        connection.execute(text("CREATE SEQUENCE tokenfleet.tries"))
        connection.execute(
            text(f"""
                CREATE FUNCTION tokenfleet.stumble() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                    IF nextval('tokenfleet.tries') = 1 THEN {mishap}; END IF; RETURN NULL; END $$
            """)
        )
        connection.execute(
            text(
                "CREATE TRIGGER stumble AFTER INSERT ON tokenfleet.token_sets "
                "FOR EACH STATEMENT EXECUTE FUNCTION tokenfleet.stumble()"
            )
        )
    assert desk.bring(whole("a"), whole("b")).tally == Tally(created=2)
    assert desk.one("SELECT last_value FROM tokenfleet.tries") == 2
    assert desk.count("outbox") == 2


def test_an_account_that_exists_already_is_found_by_its_index(desk: Desk) -> None:
    desk.bring(*(line(f"c{number}") for number in range(CHUNK_LINES)))
    with desk.engine.connect() as connection:
        connection.execute(text("ANALYZE tokenfleet.accounts"))
        plan = "\n".join(
            connection.execute(
                text("""
                    EXPLAIN SELECT a.id FROM tokenfleet.accounts a
                    WHERE a.provider = 'acme' AND a.environment = 'production'
                        AND a.external_id = ANY (CAST(:names AS text[]))
                """),
                {"names": [f"c{number}" for number in range(20)]},
            ).scalars()
        )
    assert "uq_accounts_provider" in plan


def _bringing(desk: Desk, *lines: Mapping[str, Any]) -> Callable[[], Done]:
    return lambda: desk.bring(*lines)


def test_new_tokens_for_a_parked_account_take_it_out_of_the_incident(desk: Desk) -> None:
    desk.bring(*(whole(f"customer-{number}") for number in range(21)))
    incident_id = provoke(desk.engine, [desk.account(f"customer-{number}") for number in range(21)])
    signed_in = desk.account("customer-3")

    desk.bring(whole("customer-3", access_token="new-access", refresh_token="new-refresh"))

    assert signed_in not in set_apart(desk.engine, incident_id)
    assert place_of(desk.engine, signed_in) == Place(is_due=False, is_scheduled=True, incident_id=None)
    assert len(set_apart(desk.engine, incident_id)) == 20
