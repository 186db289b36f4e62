"""Accounts without refresh tokens: what is presented for them, what is kept, and who says that they are dead."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from store.keys import Vault
from tests.support.builders import column
from tests.workers.grants_stage import Stage, stage_of
from tokenfleet.jobs import AccountId
from tokenfleet.settings import Settings
from workers.probing import Prober

FAILED = "integrated_account:authentication_error"
PROBE = '[probe]\nendpoint = "$URL/me"\nalive_status = 200'


@pytest.fixture
def stage(engine: Engine, vault: Vault, settings: Settings, tmp_path: Path) -> Iterator[Stage]:
    with stage_of(engine, vault, settings, tmp_path / "providers") as stage:
        yield stage


def test_each_grant_presents_what_its_account_has_and_what_is_absent_stays_absent(stage: Stage) -> None:
    stage.server.always("/token", 200, access_token="new", expires_in=7200, refresh_token="nobody asked")
    endpoint = 'endpoint = "$URL/token"'
    client = stage.account(stage.provider("client", f'{endpoint}\ngrant = "client_credentials"'))
    exchange = stage.provider(
        "exchange", f'{endpoint}\ngrant = "token_exchange"\nparameters.subject_token_type = "x"'
    )
    subject = stage.account(exchange, refresh_token="the-subject-token")
    itself = stage.account(
        stage.provider("itself", f'{endpoint}\ngrant = "access_token"'), access_token="long-lived"
    )
    lost = stage.account(stage.provider("lost", f'{endpoint}\ngrant = "access_token"'))
    with stage.worker() as worker:
        stage.visit(worker, client, subject, itself, lost)
        assert stage.state(lost).last_error == "access_token_missing"
        assert len(stage.server.asked) == 3
        stage.visit(worker, itself)
    presented = [each.parameters for each in stage.server.asked]
    assert sum(each.get("grant_type") == "client_credentials" for each in presented) == 1
    assert sum(each.get("subject_token") == "the-subject-token" for each in presented) == 1
    # What an answer brings is presented next.
    assert [each["access_token"] for each in presented if "access_token" in each] == ["long-lived", "new"]
    for account_id, refresh_token in ((client, None), (subject, "the-subject-token"), (itself, None)):
        state = stage.state(account_id)
        assert (state.status, state.access_token, state.refresh_token) == ("active", "new", refresh_token)
        assert state.attempts == 0
    assert not any("nobody asked" in each.values() for each in presented)


def test_a_rejected_access_token_is_a_rejected_grant_and_no_lost_rotation(stage: Stage) -> None:
    stage.server.always("/token", 400, error="invalid_grant")
    account = stage.account(
        stage.provider("itself", 'endpoint = "$URL/token"\ngrant = "access_token"'), access_token="spent"
    )
    stage.execute("UPDATE tokenfleet.refresh_schedule SET unanswered = 2 WHERE account_id = :id", account)
    with stage.worker() as worker:
        stage.visit(worker, account)
    assert (stage.state(account).status_reason, stage.told(account)) == ("invalid_grant", [FAILED])


def test_a_success_that_leaves_our_access_token_gives_it_another_life(stage: Stage) -> None:
    stage.server.always("/token", 200, refresh_token="refresh-2")
    app = stage.provider(
        "keeps",
        'endpoint = "$URL/token"',
        "[answer]\nkeeps_access_token = true\n[lifetimes]\naccess_seconds = 5000",
        rotation="always",
    )
    account = stage.account(app, access_token="ours", refresh_token="refresh-1")
    nothing_to_keep = stage.account(app, refresh_token="refresh-1")
    with stage.worker() as worker:
        stage.visit(worker, account, nothing_to_keep)
    state = stage.state(account)
    assert (state.generation, state.access_token, state.refresh_token) == (2, "ours", "refresh-2")
    life = stage.seconds(account, "expires_at")
    assert life is not None
    assert 4900 < life <= 5000
    assert stage.history(account) == ["refresh.succeeded"]
    # The successor is saved, and nobody is told that there is a token.
    other = stage.state(nothing_to_keep)
    assert (other.status, other.refresh_token) == ("connecting", "refresh-2")


def test_a_key_is_given_up_by_the_third_dead_probe_in_a_row_and_told_once(stage: Stage) -> None:
    app = stage.provider("keys", 'grant = "none"', PROBE)
    key = stage.account(app, access_token="key", expires_in=None)
    with stage.worker() as worker:
        for status, doubts in ((401, 1), (401, 2), (500, 2), (200, 0), (401, 1), (401, 2)):
            stage.server.always("/me", status)
            _half_an_hour_passes(stage, key)
            stage.visit(worker, key)
            [now] = column(stage.engine, "SELECT doubts FROM tokenfleet.refresh_schedule")
            assert (now, stage.state(key).status, stage.told(key)) == (doubts, "active", [])
            due = stage.seconds(key, "next_refresh_at")
            assert due is not None
            assert (40 < due < 800) == (doubts > 0)
        # Somebody asks too soon after the second word: that is no third one.
        stage.execute(
            "UPDATE tokenfleet.refresh_schedule SET failing_since = now() WHERE account_id = :id", key
        )
        stage.visit(worker, key)
        assert (stage.state(key).status, stage.told(key)) == ("active", [])
        _half_an_hour_passes(stage, key)
        stage.visit(worker, key)
        state = stage.state(key)
        assert (state.status, state.status_reason, state.next_refresh_at) == (
            "needs_reauth",
            "http_401",
            None,
        )
        assert stage.told(key) == [FAILED]
    assert len(stage.server.asked) == 8
    assert {each.headers["authorization"] for each in stage.server.asked} == {"Bearer key"}
    assert stage.history(key).count("probe.dead") == 5


def test_faults_of_ours_are_no_words_against_a_key(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    app = stage.provider("keys", 'grant = "none"', PROBE)
    key = stage.account(app, access_token="key", expires_in=None)
    stage.server.always("/me", 401)

    async def fault(*_: object) -> None:
        raise RuntimeError("a fault of ours")

    with stage.worker() as worker:
        with monkeypatch.context() as broken:
            broken.setattr(Prober, "visit", fault)
            for _ in range(3):
                stage.visit(worker, key)
        _half_an_hour_passes(stage, key)
        stage.visit(worker, key)
    assert (stage.state(key).status, stage.told(key)) == ("active", [])
    assert column(stage.engine, "SELECT doubts FROM tokenfleet.refresh_schedule") == [1]


def test_a_refused_app_is_no_word_against_its_keys(stage: Stage) -> None:
    """The probe shows the app's own key too, and a bare status does not say whose is meant."""
    shown = PROBE + '\nauthorization = "OAuth key={client_id}, token={access_token}"'
    app = stage.provider("keys", 'grant = "none"', shown)
    one, other = (stage.account(app, access_token=key, expires_in=None) for key in ("one", "other"))

    def who_is_dead(*dead: str) -> None:
        stage.server.answers["/me"] = lambda asked: (
            401 if any(f"token={key}" in asked.headers["authorization"] for key in dead) else 200,
            {},
        )

    with stage.worker() as worker:
        for dead, visited in ((("one", "other"), (one, other)), (("one",), (other, one))):
            who_is_dead(*dead)
            for _ in range(4):
                for key in visited:
                    _half_an_hour_passes(stage, key)
                    if stage.state(key).next_refresh_at is not None:
                        stage.visit(worker, key)
            if "other" in dead:
                assert (stage.told(one), stage.told(other)) == ([], [])
                assert set(column(stage.engine, "SELECT doubts FROM tokenfleet.refresh_schedule")) == {1}
    # The app works, for the other one.
    assert (stage.state(one).status, stage.state(other).status) == ("needs_reauth", "active")


def _half_an_hour_passes(stage: Stage, account_id: AccountId) -> None:
    stage.execute(
        "UPDATE tokenfleet.refresh_schedule SET failing_since = failing_since - interval '30 minutes' "
        "WHERE account_id = :id",
        account_id,
    )


def test_a_key_that_nobody_can_probe_is_never_called_dead_and_its_end_is_told(stage: Stage) -> None:
    app = stage.provider("keys", 'grant = "none"')
    forever = stage.account(app, access_token="key", expires_in=None)
    ended = stage.account(app, access_token="key")
    stage.execute(
        "UPDATE tokenfleet.token_sets SET expires_at = now() - interval '1 hour' WHERE account_id = :id",
        ended,
    )
    with stage.worker() as worker:
        for _ in range(2):
            stage.visit(worker, forever, ended)
    assert stage.server.asked == []
    for account_id, told in ((forever, []), (ended, ["integrated_account:reauth_upcoming"])):
        state = stage.state(account_id)
        assert (state.status, state.last_error, state.claimed_until) == ("active", None, None)
        assert stage.told(account_id) == told
        due = stage.seconds(account_id, "next_refresh_at")
        assert due is not None
        assert due > 29 * 86_400
