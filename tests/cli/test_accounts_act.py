"""``accounts refresh|pause|resume``: what was asked for is done, and each account gets an answer."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from cli.account_results import MANY
from store import apps, rejections, settlement, transitions
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
    told_about,
)
from tests.support.fleet import eventually
from tests.support.racing import wait_until_blocked
from tokenfleet.account import Trigger
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


def test_the_answer_to_a_request_that_a_pause_met_is_saved_and_nobody_is_told(
    tokenfleet: Shell, engine: Engine, vault: Vault, app: AppId
) -> None:
    account_id = make_account(engine, vault, app)
    attempt = _next_attempt(engine, app)
    ran = tokenfleet("accounts", "pause", str(account_id))
    assert "paused; a request is under way, whose answer is still saved" in ran.stdout
    with engine.begin() as connection:
        refreshed = answer(vault, account_id, epoch=attempt.epoch, generation=attempt.generation)
        settlement.save_refreshed(connection, [refreshed], actor=ACTOR)
    state = state_of(engine, vault, account_id)
    assert (state.status, state.generation, state.next_refresh_at) == (AccountStatus.PAUSED, 2, None)
    assert told_about(engine, account_id) == []


def test_a_grant_that_dies_while_its_account_is_paused_is_told_when_it_is_resumed_and_dead_still(
    tokenfleet: Shell, engine: Engine, vault: Vault, app: AppId
) -> None:
    account_id = make_account(engine, vault, app)
    attempt = _next_attempt(engine, app)
    assert tokenfleet("accounts", "pause", str(account_id)).exit_code == 0
    word = rejection(account_id, epoch=attempt.epoch, generation=attempt.generation)
    for _ in range(2):
        with engine.begin() as connection:
            rejections.reject(connection, [word], actor=ACTOR)
    state = state_of(engine, vault, account_id)
    assert (state.status, state.last_error, state.next_refresh_at) == (
        AccountStatus.PAUSED,
        "invalid_grant",
        None,
    )
    assert history_of(engine, account_id) == ["account.paused", "refresh.grant_rejected"]
    assert told_about(engine, account_id) == []

    ran = tokenfleet("accounts", "resume", str(account_id))
    assert "The provider rejected its grant before (invalid_grant)" in ran.stdout
    _be_rejected(engine, app)
    assert state_of(engine, vault, account_id).status is AccountStatus.NEEDS_REAUTH
    assert told_about(engine, account_id) == ["integrated_account:authentication_error"]


def test_a_second_pause_says_that_the_first_reason_stays(
    tokenfleet: Shell, engine: Engine, vault: Vault, app: AppId
) -> None:
    account_id = make_account(engine, vault, app)
    tokenfleet("accounts", "pause", str(account_id), "--reason", "ticket 17")
    again = tokenfleet("accounts", "pause", str(account_id), "--reason", "ticket 18")
    assert again.exit_code == 0
    assert "it was paused already" in again.stdout
    assert "(ticket 17); that stays as it is" in again.stdout
    assert state_of(engine, vault, account_id).status_reason == "ticket 17"


def test_resume_says_what_stands_in_the_way_and_lifts_a_quarantine(
    tokenfleet: Shell, engine: Engine, vault: Vault, app: AppId
) -> None:
    ids = [make_account(engine, vault, app, expires_in=-HOUR, due_in=None) for _ in range(2)]
    over, young = ids
    with engine.begin() as connection:
        connection.execute(
            text(
                "UPDATE tokenfleet.token_sets SET refresh_token_expires_at = now() + make_interval(hours => :hours) "
                "WHERE account_id = :id"
            ),
            [{"id": over, "hours": -2}, {"id": young, "hours": 2}],
        )
        connection.execute(text("UPDATE tokenfleet.refresh_schedule SET quarantined = true"))
    paused = tokenfleet("accounts", "pause", *map(str, ids)).stdout.splitlines()
    assert ["Its refresh token ends at" in line for line in paused] == [False, True]

    ran = tokenfleet("accounts", "resume", *map(str, ids))
    first, second = ran.stdout.splitlines()
    assert "most likely the customer has to sign in again" in first
    assert "resumed; it is refreshed at once. Until then readers have none that works: it expired" in second
    assert "No scheduler is connected" in ran.stderr
    assert not state_of(engine, vault, over).quarantined

    tokenfleet("accounts", "pause", str(young))
    with engine.begin() as connection:
        apps.hold(connection, app, "invalid_client", generation=1, probe_after=HOUR)
    assert "but its app is on hold (invalid_client)" in tokenfleet("accounts", "resume", str(young)).stdout


def test_what_is_said_of_an_account_is_true_of_it_at_the_moment_of_the_command(
    tokenfleet: Shell, engine: Engine, vault: Vault, app: AppId, beside: ThreadPoolExecutor
) -> None:
    account_id = make_account(engine, vault, app)
    with engine.begin() as worker:
        transitions.lock(worker, [account_id])
        command = beside.submit(tokenfleet, "accounts", "pause", str(account_id))
        wait_until_blocked(engine)
        transitions.apply(worker, Trigger.GRANT_REJECTED, [account_id], actor=ACTOR, reason="invalid_grant")
    ran = command.result()
    assert ran.exit_code == 1
    assert "it became needs_reauth" in ran.stderr


def test_a_command_that_meets_a_deadlock_gives_way_and_does_it_again(
    tokenfleet: Shell, engine: Engine, vault: Vault, app: AppId, beside: ThreadPoolExecutor
) -> None:
    first, second = (make_account(engine, vault, app) for _ in range(2))
    with engine.begin() as other:
        # The command waits first, so it is the one that finds the deadlock.
        other.execute(text("SET LOCAL deadlock_timeout = '1min'"))
        transitions.lock(other, [second])
        command = beside.submit(tokenfleet, "accounts", "pause", str(first), str(second))
        wait_until_blocked(engine)
        transitions.lock(other, [first])
    ran = command.result()
    assert ran.exit_code == 0, ran.stderr
    assert history_of(engine, first) == history_of(engine, second) == ["account.paused"]


def test_new_tokens_leave_a_paused_account_paused_and_the_import_says_so(
    tokenfleet: Shell, engine: Engine, vault: Vault, app: AppId, tmp_path: Path
) -> None:
    (tmp_path / "acme.toml").write_text(toml().replace('"example"', '"acme"', 1))
    account_id = make_account(engine, vault, app, external_id="c-1", status=AccountStatus.PAUSED)
    line = '{"provider": "acme", "external_id": "c-1", "refresh_token": "anew", "access_token": "a", "expires_in": 9}'
    ran = tokenfleet("accounts", "import", "-", stdin=line, TOKENFLEET_PROVIDERS_DIR=str(tmp_path))
    assert "1 re-authenticated (1 paused still)" in ran.stderr + ran.stdout
    state = state_of(engine, vault, account_id)
    assert (state.status, state.refresh_token, state.next_refresh_at) == (AccountStatus.PAUSED, "anew", None)
    assert told_about(engine, account_id) == []


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
