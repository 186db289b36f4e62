"""Visits that present no refresh token, on real Postgres and real HTTP; the sandbox's ledger is the judge."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import Engine

from cli.accounts_import import compose_rules
from sandbox.config import SandboxConfig
from sandbox.faults import FaultKind, FaultRule
from sandbox.selection import Stage
from sandbox.server import SandboxServer
from store import schedule
from store.import_source import ImportFormat, read_chunks
from store.imports import Importer
from store.keys import Vault
from tests.support.fleet import Fleet, eventually
from tests.workers.probing_stage import Clock, fleet_of, plan_of, server_of, visit_now
from tokenfleet.jobs import AccountId
from tokenfleet.settings import Settings

DAY = timedelta(days=1)
LONG = SandboxConfig(access_lifetime_seconds=30 * 86_400)
"""Tokens that nobody would refresh for weeks."""
NEVER = {f"access_seconds = {LONG.access_lifetime_seconds}": "access_never_expires = true"}
UNKNOWN = {f"access_seconds = {LONG.access_lifetime_seconds}": ""}


class Scene:
    """Fleets of one test, each at a sandbox of its own."""

    def __init__(self, engine: Engine, vault: Vault, settings: Settings, directory: Path) -> None:
        self._parts = (engine, vault, settings)
        self._directory = directory

    def fleet(self, server: SandboxServer, changes: dict[str, str] | None = None) -> Fleet:
        return fleet_of(*self._parts, server, self._directory / "providers", changes)


@pytest.fixture
def scene(engine: Engine, vault: Vault, settings: Settings, tmp_path: Path) -> Scene:
    return Scene(engine, vault, settings, tmp_path)


def probes(server: SandboxServer, subject: str = "customer") -> int:
    return server.subject(subject).api_requests


def refreshes(server: SandboxServer, subject: str = "customer") -> int:
    return server.subject(subject).presented


def test_a_living_token_is_probed_and_nothing_changes(scene: Scene) -> None:
    with server_of(LONG) as server:
        fleet = scene.fleet(server)
        [account_id] = fleet.connect("customer")
        before = fleet.row(account_id)
        with fleet.worker() as worker:
            worker.run(visit_now(fleet, account_id, probing=True))
        row = fleet.row(account_id)
        assert (probes(server), refreshes(server)) == (1, 0)
        assert (row.generation, row.access_token, row.status, row.attempts, row.last_error) == (
            before.generation,
            before.access_token,
            "active",
            0,
            None,
        )
        assert not row.claimed
        assert fleet.events(account_id) == ["probe.alive"]
        assert fleet.column(
            "SELECT alive_at > now() - interval '1 minute' FROM tokenfleet.refresh_schedule"
        ) == [True]
        probing, seconds = plan_of(fleet, account_id)
        assert probing
        assert 0.75 * 21_600 - 60 < seconds <= 21_600


def test_a_revoked_account_is_found_before_its_token_expires_and_given_up_by_the_refresh_alone(
    scene: Scene,
) -> None:
    with server_of(LONG) as server:
        fleet = scene.fleet(server)
        [account_id] = fleet.connect("customer")
        server.revoke("customer")
        with fleet.worker() as worker, server.hold(stage=Stage.BEFORE_DECIDING):
            done = worker.submit(visit_now(fleet, account_id, probing=True)[0])
            server.wait_for_held(1)
            # The probe has said that the token is dead. That alone tells nobody anything.
            assert (fleet.row(account_id).status, fleet.told(account_id)) == ("active", [])
        done.result(20)
        eventually(lambda: fleet.row(account_id).status == "needs_reauth")
        assert (probes(server), refreshes(server)) == (1, 1)
        assert fleet.told(account_id) == ["integrated_account:authentication_error"]
        assert fleet.events(account_id) == ["probe.dead", "account.grant_rejected"]
        assert fleet.row(account_id).expires_in is not None
        assert server.ledger().presented_twice == 0


def test_a_dead_token_with_a_living_grant_leads_to_new_tokens_in_the_same_attempt(scene: Scene) -> None:
    clock = Clock()
    with server_of(LONG, clock) as server:
        fleet = scene.fleet(server)
        [account_id] = fleet.connect("customer")
        clock.ahead = LONG.access_lifetime_seconds + 1
        with fleet.worker() as worker:
            worker.run(visit_now(fleet, account_id, probing=True))
        row = fleet.row(account_id)
        assert (row.generation, row.status, row.claimed) == (2, "active", False)
        assert (probes(server), refreshes(server), server.ledger().presented_twice) == (1, 1, 0)
        assert fleet.events(account_id) == ["probe.dead", "refresh.succeeded"]
        assert not fleet.strays()


@pytest.mark.parametrize(
    "kind",
    [FaultKind.STATUS_500, FaultKind.HTML_403, FaultKind.STATUS_429_RETRY_AFTER, FaultKind.RESET_BEFORE],
)
def test_a_probe_without_a_clear_word_changes_nothing(scene: Scene, kind: FaultKind) -> None:
    with server_of(LONG) as server:
        fleet = scene.fleet(server)
        [account_id] = fleet.connect("customer")
        before = fleet.row(account_id)
        server.add_faults(FaultRule(kind=kind, endpoint="userinfo"))
        with fleet.worker() as worker:
            worker.run(visit_now(fleet, account_id, probing=True))
        row = fleet.row(account_id)
        assert (row.generation, row.status, row.attempts, row.last_error) == (
            before.generation,
            "active",
            0,
            None,
        )
        assert (probes(server), refreshes(server)) == (1, 0)
        assert fleet.events(account_id) == ["probe.unclear"]
        assert fleet.told(account_id) == []
        assert fleet.current_app().paused_until is None
        assert plan_of(fleet, account_id)[0]


def test_a_probe_that_hangs_is_bounded_and_the_refresh_comes_in_its_time(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.probing.PROBE_TIMEOUT_SECONDS", 0.3)
    with server_of(LONG) as server:
        fleet = scene.fleet(server)
        [account_id] = fleet.connect("customer")
        server.add_faults(FaultRule(kind=FaultKind.HANG, endpoint="userinfo"))
        with fleet.worker() as worker:
            # A refresh is due within the hour: before any probe would be.
            worker.run(visit_now(fleet, account_id, probing=True, expires_at=timedelta(hours=1)))
            assert fleet.events(account_id) == ["probe.unclear"]
            probing, seconds = plan_of(fleet, account_id)
            assert not probing
            assert 3600 - 180 - 5 <= seconds <= 3600 - 60
            # Due for a probe and for a refresh: it is a refresh.
            worker.run(
                visit_now(
                    fleet, account_id, probing=True, expires_at=timedelta(seconds=150), obtained_at=-DAY
                )
            )
        assert (probes(server), refreshes(server)) == (1, 1)
        assert fleet.row(account_id).generation == 2


def test_a_refresh_that_somebody_asks_for_while_a_probe_hangs_is_not_lost(scene: Scene) -> None:
    with server_of(LONG) as server:
        fleet = scene.fleet(server)
        [account_id] = fleet.connect("customer")
        with fleet.worker() as worker:
            with server.hold(stage=Stage.API_REQUEST):
                done = worker.submit(visit_now(fleet, account_id, probing=True)[0])
                server.wait_for_held(1)
                with fleet.engine.begin() as connection:
                    schedule.request_refresh(connection, [account_id])
            done.result(20)
            assert not fleet.row(account_id).claimed
            probing, seconds = plan_of(fleet, account_id)
            assert not probing
            assert seconds <= 0
            worker.run(fleet.claim())
        assert fleet.row(account_id).generation == 2


def test_tokens_that_came_in_during_a_probe_are_not_renewed_for_the_old_one_s_death(scene: Scene) -> None:
    """The claim is ours still, but the generation is not the one that was read (G2)."""
    clock = Clock()
    with server_of(LONG, clock) as server:
        fleet = scene.fleet(server)
        [account_id] = fleet.connect("customer")
        with fleet.worker() as worker:
            with server.hold(stage=Stage.API_REQUEST):
                done = worker.submit(visit_now(fleet, account_id, probing=True)[0])
                server.wait_for_held(1)
                clock.ahead = LONG.access_lifetime_seconds + 1
                with fleet.engine.begin() as connection:
                    connection.exec_driver_sql("UPDATE tokenfleet.token_sets SET generation = generation + 1")
            done.result(20)
        assert (probes(server), refreshes(server)) == (1, 0)
        assert fleet.column("SELECT claimed_until FROM tokenfleet.refresh_schedule") == [None]


def test_a_worker_that_dies_between_a_dead_probe_and_the_refresh_leaves_a_refresh_to_do(scene: Scene) -> None:
    """Killed with its request on the way, to a server that has not acted on it."""
    clock = Clock()
    with server_of(LONG, clock) as server:
        fleet = scene.fleet(server)
        [account_id] = fleet.connect("customer")
        clock.ahead = LONG.access_lifetime_seconds + 1
        with fleet.worker() as worker, server.hold(stage=Stage.BEFORE_DECIDING):
            done = worker.submit(visit_now(fleet, account_id, probing=True)[0])
            server.wait_for_held(1)
            probing, seconds = plan_of(fleet, account_id)
            assert not probing
            assert seconds <= 0
        done.result(20)


def test_an_account_is_kept_alive_whose_refresh_token_dies_sooner_than_its_access_token(scene: Scene) -> None:
    clock = Clock()
    config = SandboxConfig(refresh_idle_lifetime_seconds=60, access_lifetime_seconds=3600)
    with server_of(config, clock) as server:
        fleet = scene.fleet(server)
        [account_id] = fleet.connect("customer")
        with fleet.worker() as worker:
            for generation in range(2, 6):
                worker.run(visit_now(fleet, account_id))
                assert fleet.row(account_id).generation == generation
                probing, seconds = plan_of(fleet, account_id)
                assert not probing
                assert 35 <= seconds <= 51
                clock.ahead += seconds
        assert fleet.row(account_id).status == "active"
        assert server.ledger().accounts_alive == 1


def test_a_token_that_never_expires_is_probed_and_not_renewed_for_nothing(scene: Scene) -> None:
    with server_of(LONG) as server:
        server.add_faults(FaultRule(kind=FaultKind.MISSING_EXPIRES_IN))
        fleet = scene.fleet(server, NEVER)
        [account_id] = fleet.connect("customer")
        with fleet.worker() as worker:
            worker.run(visit_now(fleet, account_id))
            assert fleet.row(account_id).expires_in is None
            assert plan_of(fleet, account_id)[0]
            worker.run(visit_now(fleet, account_id))
            worker.run(visit_now(fleet, account_id))
        assert (probes(server), refreshes(server)) == (2, 1)
        assert plan_of(fleet, account_id)[1] > 4 * 3600


def test_the_lifetime_of_tokens_that_do_not_say_is_learned_from_a_death(scene: Scene) -> None:
    clock = Clock()
    with server_of(LONG, clock) as server:
        server.add_faults(FaultRule(kind=FaultKind.MISSING_EXPIRES_IN))
        fleet = scene.fleet(server, UNKNOWN)
        [account_id] = fleet.connect("customer")
        minutes = timedelta(minutes=1)
        with fleet.worker() as worker:
            worker.run(visit_now(fleet, account_id, expires_at=None))
            probing, seconds = plan_of(fleet, account_id)
            assert probing
            assert seconds <= 1800
            assert fleet.row(account_id).expires_in is None
            clock.ahead = LONG.access_lifetime_seconds + 1
            worker.run(visit_now(fleet, account_id, obtained_at=-90 * minutes, alive_at=-30 * minutes))
            row = fleet.row(account_id)
            assert row.generation == 3
            assert row.expires_in is not None
            assert 3590 <= row.expires_in <= 3601
            probing, seconds = plan_of(fleet, account_id)
            assert not probing
            assert seconds <= 3600 - 60
            # And it is remembered, also when the guess has become the last known life.
            worker.run(visit_now(fleet, account_id))
        expires_in = fleet.row(account_id).expires_in
        assert expires_in is not None
        assert 3590 <= expires_in <= 3601


def test_a_token_of_unknown_lifetime_that_no_probe_can_tell_of_is_renewed(scene: Scene) -> None:
    """The API refuses everybody: without a clear word nothing else would keep the token fresh."""
    with server_of(LONG) as server:
        server.add_faults(FaultRule(kind=FaultKind.HTML_403, endpoint="userinfo"))
        fleet = scene.fleet(server, UNKNOWN)
        [account_id] = fleet.connect("customer")
        with fleet.worker() as worker:
            worker.run(visit_now(fleet, account_id, probing=True, expires_at=None))
        probing, seconds = plan_of(fleet, account_id)
        assert not probing
        assert 20 * 60 <= seconds <= 30 * 60
        assert refreshes(server) == 0


def test_a_provider_that_refuses_early_refreshes_is_never_asked_early(scene: Scene) -> None:
    config = SandboxConfig(access_lifetime_seconds=3600, earliest_refresh_seconds=100)
    clock = Clock()
    with server_of(config, clock) as server:
        fleet = scene.fleet(server)
        [account_id] = fleet.connect("customer")
        with fleet.worker() as worker:
            worker.run(visit_now(fleet, account_id))
            assert fleet.events(account_id) == ["visit.too_early"]
            probing, seconds = plan_of(fleet, account_id)
            assert not probing
            assert 3600 - 101 <= seconds <= 3600 - 59
            assert (refreshes(server), fleet.row(account_id).attempts) == (0, 0)
            # In its window it is asked, and answers.
            clock.ahead = 3510
            worker.run(visit_now(fleet, account_id, expires_at=timedelta(seconds=90)))
        assert fleet.row(account_id).generation == 2
        assert server.ledger().rejected == 0


def test_a_dead_token_has_ended_early_and_may_be_renewed_before_the_window(scene: Scene) -> None:
    config = SandboxConfig(access_lifetime_seconds=86_400, earliest_refresh_seconds=100)
    clock = Clock()
    with server_of(config, clock) as server:
        fleet = scene.fleet(server)
        [account_id] = fleet.connect("customer")
        clock.ahead = 86_401
        with fleet.worker() as worker:
            worker.run(visit_now(fleet, account_id, probing=True))
        assert fleet.row(account_id).generation == 2
        assert server.ledger().rejected == 0


def test_the_end_of_a_grant_is_announced_once_and_again_after_a_new_sign_in(scene: Scene) -> None:
    config = SandboxConfig(refresh_absolute_lifetime_seconds=100 * 86_400)
    upcoming = "integrated_account:reauth_upcoming"
    with server_of(config) as server:
        fleet = scene.fleet(server)
        [account_id] = fleet.connect("customer")
        with fleet.worker() as worker:
            worker.run(visit_now(fleet, account_id, granted_at=-92 * DAY))
            assert fleet.told(account_id) == []
            for _ in range(2):
                worker.run(visit_now(fleet, account_id, granted_at=-94 * DAY))
                assert fleet.told(account_id) == [upcoming]
            sign_in(fleet, account_id)
            worker.run(visit_now(fleet, account_id))
            assert fleet.told(account_id) == [upcoming]
            worker.run(visit_now(fleet, account_id, granted_at=-99 * DAY))
        assert fleet.told(account_id) == [upcoming, upcoming]
        [ends_at] = fleet.column(
            "SELECT (payload ->> 'ends_at')::timestamptz - now() < interval '6 days 1 minute' "
            "FROM tokenfleet.outbox ORDER BY sequence LIMIT 1"
        )
        assert ends_at


def test_the_end_is_announced_by_a_visit_of_its_own_when_no_refresh_comes_before_it(scene: Scene) -> None:
    config = SandboxConfig(
        access_lifetime_seconds=LONG.access_lifetime_seconds,
        refresh_absolute_lifetime_seconds=100 * 86_400,
    )
    with server_of(config) as server:
        fleet = scene.fleet(server, NEVER)
        [account_id] = fleet.connect("customer")
        with fleet.worker() as worker:
            worker.run(visit_now(fleet, account_id, probing=True, granted_at=-94 * DAY))
        assert fleet.told(account_id) == ["integrated_account:reauth_upcoming"]
        assert refreshes(server) == 0
        assert fleet.row(account_id).status == "active"


def test_a_held_app_is_tried_out_with_a_refresh_and_not_with_a_probe(scene: Scene) -> None:
    with server_of(LONG) as server:
        fleet = scene.fleet(server)
        [account_id] = fleet.connect("customer")
        with fleet.engine.begin() as connection:
            connection.exec_driver_sql(
                "UPDATE tokenfleet.oauth_apps SET held_since = now(), held_code = 'invalid_client'"
            )
        with fleet.worker() as worker:
            worker.run(visit_now(fleet, account_id, probing=True))
        assert (probes(server), refreshes(server)) == (0, 1)
        assert fleet.current_app().held_since is None


def test_an_expired_token_whose_provider_does_not_answer_is_told_once_until_it_is_fresh(scene: Scene) -> None:
    failing = "integrated_account:refresh_failing"
    with server_of() as server:
        fleet = scene.fleet(server)
        [account_id] = fleet.connect("customer")
        server.add_faults(FaultRule(kind=FaultKind.STATUS_500))
        with fleet.worker() as worker:
            worker.run(visit_now(fleet, account_id))
            assert fleet.told(account_id) == []
            for _ in range(2):
                worker.run(visit_now(fleet, account_id, expires_at=timedelta(seconds=-1)))
                assert fleet.told(account_id) == [failing]
            server.clear_faults()
            worker.run(visit_now(fleet, account_id))
            assert fleet.row(account_id).generation == 2
            server.add_faults(FaultRule(kind=FaultKind.STATUS_500))
            worker.run(visit_now(fleet, account_id, expires_at=timedelta(seconds=-1)))
        assert fleet.told(account_id) == [failing, failing]
        assert fleet.row(account_id).status == "active"


def sign_in(fleet: Fleet, account_id: AccountId) -> None:
    """Import a new grant of the same customer."""
    [grant] = fleet.server.issue("customer")
    assert grant.tokens.refresh_token is not None
    line = {
        "provider": "sandbox",
        "external_id": "customer",
        "refresh_token": grant.tokens.refresh_token.reveal(),
        "access_token": grant.tokens.access_token.reveal(),
        "expires_in": grant.tokens.expires_in,
    }
    chunks = read_chunks(
        io.BytesIO(json.dumps(line).encode()),
        ImportFormat.JSON_LINES,
        now=datetime.now(UTC),
        rules_of=compose_rules(fleet.registry),
    )
    importer = Importer(fleet.engine, fleet.vault, compose_rules(fleet.registry), actor="test", dry_run=False)
    assert [report.bad for report in importer.run(chunks)] == [()]
    assert fleet.events(account_id).count("account.imported") == 1
