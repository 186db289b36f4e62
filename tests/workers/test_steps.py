"""Steps behind a good answer: the new refresh token is saved first, readers keep theirs, then get the fresh one."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from store import settlement
from store.answers import Part, SavedTokens
from store.journal import Journal
from store.keys import Vault
from tests.support import builders
from tests.support.fleet import eventually
from tests.support.scripted_server import Asked
from tests.workers.grants_stage import Stage, stage_of
from tokenfleet.jobs import AccountId
from tokenfleet.settings import Settings

STEPS = """
[[steps]]
endpoint = "$URL/user"
parameters = { ticket = "{access_token}" }
answer = { access_token = "user_token", expires_in = "life" }

[[steps]]
endpoint = "$URL/service"
body = "none"
headers = { Authorization = "XBL {access_token}" }
answer = { access_token = "service_token", expires_in = "life" }
"""


@pytest.fixture
def stage(engine: Engine, vault: Vault, settings: Settings, tmp_path: Path) -> Iterator[Stage]:
    with stage_of(engine, vault, settings, tmp_path / "providers") as stage:
        yield stage


def connect(stage: Stage) -> AccountId:
    """An account of a provider that rotates, whose readers have a token of two steps."""
    app = stage.provider("steps", 'endpoint = "$URL/token"', STEPS, rotation="always")
    numbers = iter(range(2, 100))

    def rotate(_: Asked) -> tuple[int, dict[str, Any]]:
        number = next(numbers)
        return 200, {
            "access_token": f"ticket-{number}",
            "refresh_token": f"refresh-{number}",
            "expires_in": 60,
        }

    stage.server.answers["/token"] = rotate
    stage.server.always("/user", 200, user_token="user", life=60)
    stage.server.always("/service", 200, service_token="for readers", life=5000)
    return stage.account(app, access_token="readers have", refresh_token="refresh-1")


def test_the_token_of_the_last_step_is_what_readers_get(stage: Stage) -> None:
    account = connect(stage)
    with stage.worker() as worker:
        stage.visit(worker, account)
    state = stage.state(account)
    assert (state.access_token, state.refresh_token, state.generation) == ("for readers", "refresh-2", 3)
    assert (state.claimed_until, state.attempts, state.unanswered) == (None, 0, 0)
    [user], [service] = stage.server.asked_at("/user"), stage.server.asked_at("/service")
    assert user.parameters == {"ticket": "ticket-2"}
    assert service.headers["authorization"] == "XBL user"
    life = stage.seconds(account, "expires_at")
    assert life is not None
    assert 4900 < life <= 5000
    assert stage.history(account) == ["steps.begun", "refresh.succeeded"]


def test_a_step_that_fails_costs_no_refresh_token_and_is_backed_off_from(stage: Stage) -> None:
    account = connect(stage)
    stage.server.always("/service", 400, error="invalid_grant")
    with stage.worker() as worker:
        for attempts, generation in ((1, 2), (2, 3), (3, 4)):
            stage.visit(worker, account)
            state = stage.state(account)
            # What readers have lives on; the next attempt presents the newest refresh token.
            assert (state.access_token, state.refresh_token) == ("readers have", f"refresh-{generation}")
            assert (state.status, state.attempts, state.quarantined) == ("active", attempts, attempts == 3)
            assert state.claimed_until is None
        stage.server.always("/service", 200, service_token="for readers", life=5000)
        stage.visit(worker, account)
    state = stage.state(account)
    assert (state.access_token, state.refresh_token, state.attempts) == ("for readers", "refresh-5", 0)
    presented = [each.parameters["refresh_token"] for each in stage.server.asked_at("/token")]
    assert presented == ["refresh-1", "refresh-2", "refresh-3", "refresh-4"]
    assert stage.told(account) == []


def test_a_worker_that_dies_between_two_steps_leaves_the_new_refresh_token_and_a_token_to_read(
    stage: Stage,
) -> None:
    """Frozen in the middle of a step, and never heard of again."""
    account = connect(stage)
    asked, gate = threading.Event(), threading.Event()

    def hold(_: Asked) -> tuple[int, dict[str, Any]]:
        asked.set()
        gate.wait(20)
        return 200, {"service_token": "too late", "life": 5000}

    stage.server.answers["/service"] = hold
    with stage.worker() as frozen, stage.worker() as other:
        builders.make_due(stage.engine, account)
        app_id = stage.app_of(account)
        done = frozen.submit(builders.job_of(app_id, builders.claim(stage.engine, app_id)))
        assert asked.wait(20)
        state = stage.state(account)
        assert (state.access_token, state.refresh_token) == ("readers have", "refresh-2")
        stage.server.always("/service", 200, service_token="for readers", life=5000)
        builders.let_claims_expire(stage.engine)
        stage.visit(other, account)
        gate.set()
        done.result(20)
    state = stage.state(account)
    # What the frozen one brought replaces nobody's tokens.
    assert (state.access_token, state.refresh_token) == ("for readers", "refresh-3")
    presented = [each.parameters["refresh_token"] for each in stage.server.asked_at("/token")]
    assert presented == ["refresh-1", "refresh-2"]
    assert builders.column(stage.engine, "SELECT count(*) FROM tokenfleet.token_candidates") == [0]


def test_both_parts_in_a_dead_workers_journal_are_written_in_order_and_once(
    stage: Stage, vault: Vault
) -> None:
    account = connect(stage)
    app_id = stage.app_of(account)
    builders.make_due(stage.engine, account)
    attempt = builders.begin_attempt(stage.engine, app_id, account)
    parts = [
        _part(vault, account, attempt.epoch, generation, part)
        for generation, part in ((1, Part.FIRST), (2, Part.SECOND))
    ]
    journal = Journal(stage.settings.journal_dir, "dead")
    for each in parts:
        journal.append(each)
    journal.close()
    with stage.worker():
        eventually(lambda: stage.state(account).generation == 3, what="the journal is adopted")
    with stage.engine.begin() as connection:
        again = settlement.save_refreshed(connection, parts, actor="test")
    assert (again.saved, again.candidates) == (frozenset(), frozenset())
    assert stage.state(account).access_token == "access-3"


def test_who_takes_over_in_the_middle_of_steps_knows_that_no_answer_is_missing(
    stage: Stage, vault: Vault
) -> None:
    """Or a rejection would be called a lost rotation, of a token that was never presented."""
    account = connect(stage)
    app_id = stage.app_of(account)
    builders.make_due(stage.engine, account)
    dead = builders.begin_attempt(stage.engine, app_id, account)
    with stage.engine.begin() as connection:
        first = _part(vault, account, dead.epoch, 1, Part.FIRST)
        settlement.save_refreshed(connection, [first], actor="test")
    builders.make_due(stage.engine, account)
    # The one after that may have presented it: its answer may be missing.
    for unanswered in (0, 1):
        builders.let_claims_expire(stage.engine)
        attempt = builders.begin_attempt(stage.engine, app_id, account)
        assert (attempt.is_unsettled, attempt.unanswered) == (True, unanswered)


def test_a_second_part_is_saved_over_its_own_first_part_only(stage: Stage, vault: Vault) -> None:
    """Another answer has won the race and stands at the very generation."""
    account = connect(stage)
    app_id = stage.app_of(account)
    builders.make_due(stage.engine, account)
    late = builders.begin_attempt(stage.engine, app_id, account)
    builders.let_claims_expire(stage.engine)
    winner = builders.begin_attempt(stage.engine, app_id, account)
    won = builders.answer(vault, account, epoch=winner.epoch, generation=1, refresh_token="the winner's")
    parts = [
        _part(vault, account, late.epoch, generation, part)
        for generation, part in ((1, Part.FIRST), (2, Part.SECOND))
    ]
    with stage.engine.begin() as connection:
        alone = settlement.save_refreshed(connection, parts[1:], actor="test")
        assert (alone.saved, alone.candidates) == (frozenset(), frozenset())
        settlement.save_refreshed(connection, [won], actor="test")
        result = settlement.save_refreshed(connection, parts, actor="test")
    assert stage.state(account).refresh_token == "the winner's"
    # The first part may be the only live successor; the second is worth nothing without it.
    assert result.candidates == {account}
    assert builders.column(stage.engine, "SELECT generation FROM tokenfleet.token_candidates") == [2]


def test_a_second_part_is_dropped_once_its_successor_may_have_presented_the_refresh_token(
    stage: Stage, vault: Vault
) -> None:
    """A worker that was frozen in its steps wakes up while the next one waits for its answer."""
    account = connect(stage)
    app_id = stage.app_of(account)
    builders.make_due(stage.engine, account)
    frozen = builders.begin_attempt(stage.engine, app_id, account)
    first, second = (
        _part(vault, account, frozen.epoch, generation, part)
        for generation, part in ((1, Part.FIRST), (2, Part.SECOND))
    )
    with stage.engine.begin() as connection:
        settlement.save_refreshed(connection, [first], actor="frozen")
    builders.make_due(stage.engine, account)
    builders.let_claims_expire(stage.engine)
    successor = builders.begin_attempt(stage.engine, app_id, account)
    assert successor.generation == 2
    answer = builders.answer(
        vault, account, epoch=successor.epoch, generation=2, refresh_token="the only live one"
    )
    with stage.engine.begin() as connection:
        woken = settlement.save_refreshed(connection, [second], actor="frozen")
        taken = settlement.save_refreshed(connection, [answer], actor="test")
    assert (woken.saved, woken.candidates) == (frozenset(), frozenset())
    # What it presented is spent: nobody presents that once more.
    assert taken.saved == {account}
    assert not taken.candidates
    assert stage.state(account).refresh_token == "the only live one"


def _part(vault: Vault, account: AccountId, epoch: int, generation: int, part: Part) -> SavedTokens:
    return replace(builders.answer(vault, account, epoch=epoch, generation=generation), part=part)
