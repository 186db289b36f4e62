"""``accounts refresh|pause|resume``: what was asked for is done, and each account gets an answer."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import Engine

from cli.account_results import MANY
from store import apps, rejections, settlement
from store.engine import make_engine
from store.keys import Vault
from store.schedule import Attempt
from tests.cli.conftest import Shell
from tests.providers.definitions import toml
from tests.support.builders import (
    ACTOR,
    answer,
    claim,
    column,
    deferral,
    history_of,
    job_of,
    make_account,
    make_app,
    now,
    rejection,
    start,
    state_of,
)
from tests.support.fleet import eventually
from tokenfleet.jobs import AppId
from tokenfleet.settings import Settings
from tokenfleet_client.contract import AccountStatus

HOUR = timedelta(hours=1)


@pytest.fixture
def app(engine: Engine, vault: Vault) -> AppId:
    """An app of the provider ``acme``."""
    return make_app(engine, vault, name="default")


@pytest.fixture
def beside() -> Iterator[ThreadPoolExecutor]:
    """A thread that plays the fleet while a command waits."""
    with ThreadPoolExecutor(1) as executor:
        yield executor


def _next_attempt(engine: Engine, app: AppId) -> Attempt:
    """Wait until an account is due, then claim and start it."""
    begun: list[Attempt] = []

    def is_begun() -> bool:
        begun.extend(start(engine, job_of(app, claim(engine, app))))
        return bool(begun)

    eventually(is_begun)
    return begun[0]


def _succeed(engine: Engine, vault: Vault, app: AppId) -> None:
    attempt = _next_attempt(engine, app)
    with engine.begin() as connection:
        refreshed = answer(vault, attempt.account_id, epoch=attempt.epoch, generation=attempt.generation)
        settlement.save_refreshed(connection, [refreshed], actor=ACTOR)


def _be_rejected(engine: Engine, app: AppId) -> None:
    attempt = _next_attempt(engine, app)
    with engine.begin() as connection:
        refused = rejection(attempt.account_id, epoch=attempt.epoch, generation=attempt.generation)
        rejections.reject(connection, [refused], actor=ACTOR)


def test_refresh_makes_an_account_due_now_and_lifts_a_quarantine(
    tokenfleet: Shell, engine: Engine, vault: Vault, app: AppId
) -> None:
    account_id = make_account(engine, vault, app)
    with engine.begin() as connection:
        settlement.defer(
            connection, [deferral(_next_attempt(engine, app), quarantined=True, wait=HOUR)], actor=ACTOR
        )
    ran = tokenfleet("accounts", "refresh", str(account_id))
    assert ran.exit_code == 0
    state = state_of(engine, vault, account_id)
    assert state.next_refresh_at is not None
    assert state.next_refresh_at <= now()
    assert not state.quarantined


def test_refresh_says_when_no_scheduler_is_there_to_do_it(
    tokenfleet: Shell, engine: Engine, vault: Vault, app: AppId, settings: Settings
) -> None:
    account_id = str(make_account(engine, vault, app))
    assert "No scheduler is connected" in tokenfleet("accounts", "refresh", account_id).stderr
    scheduler = make_engine(settings.database_url, application_name="tokenfleet scheduler host-1")
    with scheduler.connect():
        assert tokenfleet("accounts", "refresh", account_id).stderr == ""
    scheduler.dispose()


def test_refresh_waits_until_the_new_tokens_are_in(
    tokenfleet: Shell, engine: Engine, vault: Vault, app: AppId, beside: ThreadPoolExecutor
) -> None:
    account_id = make_account(engine, vault, app, due_in=HOUR, external_id="c-1")
    fleet = beside.submit(_succeed, engine, vault, app)
    ran = tokenfleet("accounts", "refresh", "acme/c-1", "--wait", "20", "--json")
    fleet.result()
    assert ran.exit_code == 0
    [result] = ran.document
    assert result["outcome"] == "refreshed"
    assert (result["account"], result["account_id"]) == ("acme/c-1", account_id)
    assert "generation 2" in result["message"]


def test_waiting_ends_at_once_when_the_grant_turns_out_to_be_gone(
    tokenfleet: Shell, engine: Engine, vault: Vault, app: AppId, beside: ThreadPoolExecutor
) -> None:
    account_id = str(make_account(engine, vault, app, due_in=HOUR))
    fleet = beside.submit(_be_rejected, engine, app)
    ran = tokenfleet("accounts", "refresh", account_id, "--wait", "20")
    fleet.result()
    assert ran.exit_code == 1
    assert f"{account_id}: it became needs_reauth" in ran.stderr


def test_waiting_has_an_end(tokenfleet: Shell, engine: Engine, vault: Vault, app: AppId) -> None:
    account_id = str(make_account(engine, vault, app))
    ran = tokenfleet("accounts", "refresh", account_id, "--wait", "0", "--json")
    assert ran.exit_code == 1
    assert ran.document[0]["outcome"] == "waiting"


def test_a_refresh_that_has_to_wait_for_its_app_says_so(
    tokenfleet: Shell, engine: Engine, vault: Vault, app: AppId
) -> None:
    account_id = str(make_account(engine, vault, app))
    with engine.begin() as connection:
        apps.pause_until(connection, [app], [now() + HOUR])
    assert "asked us to wait until" in tokenfleet("accounts", "refresh", account_id).stdout
    with engine.begin() as connection:
        apps.hold(connection, app, "invalid_client", generation=1, probe_after=HOUR)
    ran = tokenfleet("accounts", "refresh", account_id)
    assert ran.exit_code == 0
    assert "on hold (invalid_client)" in ran.stdout


@pytest.mark.parametrize(
    ("status", "advice"),
    [
        (AccountStatus.NEEDS_REAUTH, "tokenfleet accounts import"),
        (AccountStatus.REVOKED, "tokenfleet accounts import"),
        (AccountStatus.PAUSED, "tokenfleet accounts resume"),
    ],
)
def test_an_account_that_is_not_refreshed_is_refused_with_advice(
    tokenfleet: Shell, engine: Engine, vault: Vault, app: AppId, status: AccountStatus, advice: str
) -> None:
    account_id = str(make_account(engine, vault, app, status=status))
    ran = tokenfleet("accounts", "refresh", account_id)
    assert ran.exit_code == 1
    [line] = ran.stderr.splitlines()
    assert advice in line


def test_a_key_is_tried_out_instead_of_refreshed_and_what_cannot_be_is_said(
    tokenfleet: Shell, engine: Engine, vault: Vault, tmp_path: Path
) -> None:
    probe = '[probe]\nendpoint = "https://api.example.com/me"\nalive_status = 200'
    for name, extra in (("probed", probe), ("silent", "")):
        definition = toml(extra, refresh='grant = "none"').replace('name = "example"', f'name = "{name}"', 1)
        (tmp_path / f"{name}.toml").write_text(definition)
    ids = [
        make_account(engine, vault, make_app(engine, vault, provider=name), due_in=HOUR)
        for name in ("probed", "silent")
    ]
    ran = tokenfleet(
        "accounts",
        "refresh",
        *map(str, ids),
        "--wait",
        "60",
        "--json",
        TOKENFLEET_PROVIDERS_DIR=str(tmp_path),
    )
    assert ran.exit_code == 1
    probed, silent = ran.document
    assert (probed["outcome"], silent["outcome"]) == ("probing", "refused")
    assert "tried out now" in probed["message"]
    assert "has no probe" in silent["message"]
    due = [state_of(engine, vault, account_id).next_refresh_at for account_id in ids]
    assert due[0] is not None
    assert due[1] is not None
    assert due[0] <= now() < due[1]


def test_pausing_and_resuming_leave_their_author_and_reason_in_the_history(
    tokenfleet: Shell, engine: Engine, vault: Vault, app: AppId
) -> None:
    account_id = make_account(engine, vault, app)
    paused = tokenfleet("accounts", "pause", str(account_id), "--reason", "ticket 17", LOGNAME="mona")
    assert paused.exit_code == 0
    state = state_of(engine, vault, account_id)
    assert (state.status, state.status_reason) == (AccountStatus.PAUSED, "ticket 17")
    assert state.next_refresh_at is None
    assert tokenfleet("accounts", "resume", str(account_id)).exit_code == 0
    state = state_of(engine, vault, account_id)
    assert state.status is AccountStatus.ACTIVE
    assert state.next_refresh_at is not None
    assert history_of(engine, account_id) == ["account.paused", "account.resumed"]
    actors = column(engine, "SELECT actor FROM tokenfleet.account_events ORDER BY at")
    assert actors[0] == "operator:mona"


def test_what_is_as_wanted_already_is_no_failure(
    tokenfleet: Shell, engine: Engine, vault: Vault, app: AppId
) -> None:
    running = make_account(engine, vault, app)
    paused = make_account(engine, vault, app, status=AccountStatus.PAUSED)
    for command, account_id in (("pause", paused), ("resume", running)):
        ran = tokenfleet("accounts", command, str(account_id), "--json")
        assert ran.exit_code == 0
        assert ran.document[0]["outcome"] == "unchanged"


def test_a_dead_grant_is_neither_paused_nor_resumed(
    tokenfleet: Shell, engine: Engine, vault: Vault, app: AppId
) -> None:
    account_id = make_account(engine, vault, app, status=AccountStatus.NEEDS_REAUTH)
    for command in ("pause", "resume"):
        ran = tokenfleet("accounts", command, str(account_id))
        assert ran.exit_code == 1
        assert "only new tokens help" in ran.stderr
    assert state_of(engine, vault, account_id).status is AccountStatus.NEEDS_REAUTH


def test_one_bad_reference_does_not_keep_the_others_from_being_done(
    tokenfleet: Shell, engine: Engine, vault: Vault, app: AppId
) -> None:
    account_id = make_account(engine, vault, app)
    ran = tokenfleet("accounts", "pause", str(account_id), "4711", "acme/nobody", "--json")
    assert ran.exit_code == 1
    assert [result["outcome"] for result in ran.document] == ["paused", "not_found", "not_found"]


def test_ids_may_come_on_standard_input(tokenfleet: Shell, engine: Engine, vault: Vault, app: AppId) -> None:
    made = [make_account(engine, vault, app) for _ in range(MANY + 1)]
    lines = "\n".join(map(str, [*made, "", made[0]]))
    ran = tokenfleet("accounts", "pause", "-", stdin=lines)
    assert ran.exit_code == 0
    assert ran.stdout == f"{MANY + 1} accounts paused\n"


def test_a_line_that_names_no_account_stops_before_anything_is_done(
    tokenfleet: Shell, engine: Engine, vault: Vault, app: AppId
) -> None:
    account_id = make_account(engine, vault, app)
    ran = tokenfleet("accounts", "pause", "-", stdin=f"{account_id}\nnonsense\n")
    assert ran.exit_code == 2
    assert "'nonsense'" in ran.stderr
    assert state_of(engine, vault, account_id).status is AccountStatus.ACTIVE


def test_no_account_at_all_is_a_usage_error(tokenfleet: Shell) -> None:
    assert tokenfleet("accounts", "refresh").exit_code == 2
