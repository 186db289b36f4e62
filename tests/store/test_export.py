"""Leaving: an account's tokens are read in the transaction that pauses it, or it stays (G2)."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, text

from store import data_keys, keys, rejections, settlement, transitions
from store.audit import AuditFilter, Operator, read_newest
from store.export import Exporter, LeftOut
from store.export_selection import ExportFilter, masked, pages
from store.import_line import fingerprint
from store.import_rules import ProviderRules
from store.import_source import ImportFormat, read_chunks
from store.imports import Importer, Tally
from store.keys import Vault
from tests.support.builders import (
    ACTOR,
    HOUR,
    answer,
    begin_attempt,
    claim,
    column,
    deferral,
    history_of,
    job_of,
    let_claims_expire,
    make_account,
    make_app,
    make_due,
    now,
    park,
    rejection,
    start,
    state_of,
)
from tests.support.racing import in_background, wait_until_blocked
from tokenfleet.jobs import AccountId, AppId
from tokenfleet.settings import Settings
from tokenfleet.tokens import Margins
from tokenfleet_client.contract import AccountStatus
from tokenfleet_client.secret import Secret
from tokenfleet_client.unsealings import Purpose

HERE, THERE = "age1here", "age1there"
BY = Operator("operator:pat", "box")
RULES = ProviderRules(Margins(timedelta(seconds=180), timedelta(seconds=60)), lambda _variables: None)


@dataclass
class Desk:
    """Exports and imports in one database."""

    engine: Engine
    vault: Vault
    app: AppId
    last: list[bytes] = field(default_factory=list)

    def export(
        self, *ids: AccountId, to: str = THERE, keep_running: bool = False
    ) -> dict[AccountId, LeftOut]:
        """Export accounts; returns who stayed, and keeps the lines of those who went."""
        exporter = Exporter(
            self.engine,
            self.vault,
            lambda _: True,
            recipient=to,
            by=BY,
            keep_running=keep_running,
            reason="moving",
        )
        departure = exporter.take(ids)
        self.last = list(departure.lines)
        return dict(departure.left_out)

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.last]

    def bring(self, *lines: Mapping[str, Any]) -> tuple[Tally, list[str]]:
        """Import lines; returns what became of them, and the reasons of the bad ones."""
        content = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
        importer = Importer(self.engine, self.vault, lambda _: RULES, actor=ACTOR)
        tally, bad = Tally(), list[str]()
        for report in importer.run(
            read_chunks(io.BytesIO(content), ImportFormat.JSON_LINES, now=now(), rules_of=lambda _: RULES)
        ):
            tally.add(report.tally)
            bad += [line.reason for line in report.bad]
        return tally, bad

    def status(self, account_id: AccountId) -> tuple[AccountStatus, str | None]:
        state = state_of(self.engine, self.vault, account_id)
        return state.status, state.status_reason

    def forget(self) -> None:
        """Empty the database, as that of another fleet is; keys and apps stay."""
        with self.engine.begin() as connection:
            connection.execute(text("DELETE FROM tokenfleet.accounts"))


@pytest.fixture
def desk(engine: Engine, vault: Vault) -> Desk:
    return Desk(engine, vault, make_app(engine, vault, name="default"))


def account(desk: Desk, **fields: Any) -> AccountId:
    return make_account(desk.engine, desk.vault, desk.app, **fields)


GONE = (AccountStatus.PAUSED, f"exported to {THERE}")


def test_an_exported_account_is_paused_with_its_history_audit_and_unsealings(desk: Desk) -> None:
    for ring in (desk.vault.access, desk.vault.refresh):
        ring.openings.take()
    first, second = account(desk), account(desk)
    assert desk.export(first, second) == {}
    counted = [dict(ring.openings.take()) for ring in (desk.vault.access, desk.vault.refresh)]
    assert counted == [{Purpose.EXPORT: 2}] * 2
    assert [line["refresh_token"] for line in desk.lines()] == ["refresh-1", "refresh-1"]
    for account_id in (first, second):
        assert desk.status(account_id) == GONE
        assert state_of(desk.engine, desk.vault, account_id).next_refresh_at is None
        assert history_of(desk.engine, account_id) == ["account.paused", "account.exported"]
    assert claim(desk.engine, desk.app) == []
    with desk.engine.connect() as connection:
        [row] = read_newest(connection, AuditFilter(), limit=10)
    assert (row.action, row.actor, row.reason) == ("accounts.export", "operator:pat", "moving")
    assert row.detail == {"accounts": 2, "recipient": THERE, "kept_running": False}


def test_who_is_being_asked_stays_until_the_answer_is_saved(desk: Desk) -> None:
    account_id = account(desk)
    attempt = begin_attempt(desk.engine, desk.app, account_id)
    assert desk.export(account_id) == {account_id: LeftOut.STARTED}
    let_claims_expire(desk.engine)
    assert desk.export(account_id) == {account_id: LeftOut.STARTED}, "whoever asked may still have the answer"
    assert desk.status(account_id)[0] is AccountStatus.ACTIVE
    saved = answer(desk.vault, account_id, epoch=attempt.epoch, generation=1)
    with desk.engine.begin() as connection:
        settlement.save_refreshed(connection, [saved], actor=ACTOR)
    assert desk.export(account_id) == {}
    assert desk.lines()[0]["refresh_token"] == "refresh-2"


def test_a_claim_that_was_not_started_does_not_keep_an_account_and_starts_nothing_afterwards(
    desk: Desk,
) -> None:
    account_id = account(desk)
    claims = claim(desk.engine, desk.app)
    assert desk.export(account_id) == {}
    assert start(desk.engine, job_of(desk.app, claims)) == []
    assert state_of(desk.engine, desk.vault, account_id).claimed_until is None


def test_a_start_that_is_not_committed_is_waited_for(desk: Desk) -> None:
    account_id = account(desk)
    job = job_of(desk.app, claim(desk.engine, desk.app))
    from store import schedule

    with desk.engine.begin() as connection:
        [_] = schedule.start(connection, job, claim=timedelta(seconds=30))
        exporting = in_background(lambda: desk.export(account_id))
        wait_until_blocked(desk.engine)
    assert exporting.result(10) == {account_id: LeftOut.STARTED}


def test_an_attempt_that_meets_an_export_finds_the_account_paused(desk: Desk) -> None:
    account_id = account(desk)
    job = job_of(desk.app, claim(desk.engine, desk.app))
    with desk.engine.begin() as connection:
        exporter = Exporter(desk.engine, desk.vault, lambda _: True, recipient=THERE, by=BY)
        assert len(exporter._take(connection, [account_id]).lines) == 1
        starting = in_background(lambda: start(desk.engine, job))
        wait_until_blocked(desk.engine)
    assert starting.result(10) == []


def test_who_may_have_a_newer_answer_somewhere_stays(desk: Desk) -> None:
    lost, twice, apart, refused = (account(desk) for _ in range(4))
    claims = claim(desk.engine, desk.app)
    attempts = {each.account_id: each for each in start(desk.engine, job_of(desk.app, claims))}
    with desk.engine.begin() as connection:
        settlement.defer(connection, [deferral(attempts[lost], answer_lost=True)], actor=ACTOR)
        for epoch in (attempts[twice].epoch, attempts[twice].epoch + 1):
            late = answer(desk.vault, twice, epoch=epoch, generation=1)
            settlement.save_refreshed(connection, [late], actor=ACTOR)
        connection.execute(text("UPDATE tokenfleet.refresh_schedule SET claimed_until = NULL"))
        park(connection, desk.app, apart)
        settlement.quarantine(
            connection, refused, attempts[lost].epoch, code="answer_refused_22", actor=ACTOR
        )
    assert desk.export(lost, twice, apart, refused) == {
        lost: LeftOut.UNSURE,
        twice: LeftOut.UNSURE,
        apart: LeftOut.PARKED,
        refused: LeftOut.UNSURE,
    }
    assert desk.last == []
    assert column(desk.engine, "SELECT count(*) FROM tokenfleet.audit_log") == [0]


def test_who_has_no_token_that_works_and_who_cannot_be_opened_stays_as_it_is(desk: Desk) -> None:
    lost = account(desk)
    attempt = begin_attempt(desk.engine, desk.app, lost)
    dead = account(desk, status=AccountStatus.NEEDS_REAUTH)
    damaged = account(desk)
    with desk.engine.begin() as connection:
        rejections.reject(connection, [rejection(lost, epoch=attempt.epoch, generation=1)], actor=ACTOR)
        connection.execute(
            text("UPDATE tokenfleet.token_sets SET refresh_token = '\\x00' WHERE account_id = :id"),
            {"id": damaged},
        )
    assert desk.export(lost, dead, damaged) == {
        lost: LeftOut.ENDED,
        dead: LeftOut.ENDED,
        damaged: LeftOut.UNREADABLE,
    }
    assert column(desk.engine, "SELECT status FROM tokenfleet.accounts WHERE id = :id", id=damaged) == [
        "active"
    ]


def test_an_account_goes_to_one_recipient_as_often_as_needed_and_to_no_other(desk: Desk) -> None:
    account_id = account(desk)
    desk.export(account_id)
    first = desk.lines()
    assert desk.export(account_id, to=HERE) == {account_id: LeftOut.ELSEWHERE}
    assert desk.export(account_id) == {}
    assert [_timeless(line) for line in desk.lines()] == [_timeless(line) for line in first]


def test_an_account_that_an_operator_paused_leaves_and_arrives_paused(desk: Desk) -> None:
    account_id = account(desk, external_id="customer-1")
    with desk.engine.begin() as connection:
        transitions.pause(connection, [account_id], actor=ACTOR, reason="ticket 17")
    for _ in range(2):
        assert desk.export(account_id) == {}
        assert desk.lines()[0]["status"] == "paused"
    assert desk.status(account_id) == (AccountStatus.PAUSED, f"exported to {THERE}, paused before")
    desk.forget()
    assert desk.bring(*desk.lines()) == (Tally(created=1), [])
    [arrived] = column(desk.engine, "SELECT id FROM tokenfleet.accounts")
    assert desk.status(arrived) == (AccountStatus.PAUSED, None)
    assert state_of(desk.engine, desk.vault, arrived).next_refresh_at is None


def test_with_keep_running_the_account_goes_on_here(desk: Desk) -> None:
    account_id = account(desk)
    assert desk.export(account_id, keep_running=True) == {}
    assert len(desk.last) == 1
    assert desk.status(account_id) == (AccountStatus.ACTIVE, None)
    assert history_of(desk.engine, account_id) == ["account.exported"]
    assert len(claim(desk.engine, desk.app)) == 1
    assert "exported_at" not in desk.lines()[0]


def test_resuming_leaves_out_who_was_exported_unless_told_otherwise(desk: Desk) -> None:
    account_id = account(desk)
    desk.export(account_id)
    for exported, resumed in ((False, frozenset[AccountId]()), (True, frozenset({account_id}))):
        with desk.engine.begin() as connection:
            assert transitions.resume(connection, [account_id], actor=ACTOR, exported=exported) == resumed


def test_everything_that_is_known_of_an_account_arrives(desk: Desk) -> None:
    account_id = account(
        desk,
        external_id="customer-1",
        tenant="t-1",
        variables={"subdomain": "acme"},
        metadata={"plan": "pro", "n": [1, None]},
        scope="read write",
    )
    connecting = account(
        desk, external_id="customer-2", status=AccountStatus.CONNECTING, refresh_token="refresh-c"
    )
    with desk.engine.begin() as connection:
        connection.execute(
            text(
                "UPDATE tokenfleet.token_sets SET token_type = 'Bearer', variables = '{\"region\": \"eu\"}', "
                "learned_lifetime = '55 minutes', refresh_token_expires_at = now() + interval '9 days', "
                "obtained_at = now() - interval '10 minutes', generation = generation WHERE account_id = :id"
            ),
            {"id": account_id},
        )
        connection.execute(
            text(
                "UPDATE tokenfleet.accounts SET granted_at = now() - interval '30 days', "
                "imported_fingerprints = ARRAY[CAST(:one AS bytea), CAST(:two AS bytea)] WHERE id = :id"
            ),
            {"id": account_id, "one": bytes(range(16)), "two": bytes(range(1, 17))},
        )
    assert desk.export(account_id, connecting) == {}
    before = desk.lines()
    assert before[0]["fingerprints"] == [bytes(range(16)).hex(), bytes(range(1, 17)).hex()]
    assert {before[0]["status"], before[1]["status"]} == {"active", "connecting"}
    assert "access_token" not in before[1]

    desk.forget()
    assert desk.bring(*before) == (Tally(created=2), [])
    ids = column(desk.engine, "SELECT id FROM tokenfleet.accounts ORDER BY external_id")
    assert [desk.status(each)[0].value for each in ids] == ["active", "connecting"]
    assert desk.export(*ids) == {}
    after = desk.lines()
    # What is new is the moment, and that this very token was imported.
    assert [_timeless(line) for line in after] == [_timeless(line) for line in before]
    assert after[0]["fingerprints"][:2] == before[0]["fingerprints"]
    assert after[0]["exported_at"] > before[0]["exported_at"]


def refreshed(desk: Desk, account_id: AccountId) -> None:
    make_due(desk.engine, account_id)
    attempt = begin_attempt(desk.engine, desk.app, account_id)
    with desk.engine.begin() as connection:
        saved = answer(desk.vault, account_id, epoch=attempt.epoch, generation=attempt.generation)
        settlement.save_refreshed(connection, [saved], actor=ACTOR)


def _timeless(line: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in line.items() if name not in ("exported_at", "fingerprints")}


def test_a_list_from_before_the_move_brings_no_spent_token_back(desk: Desk) -> None:
    old = {"provider": "acme", "external_id": "customer-1", "refresh_token": "r-1", "access_token": "a-1"}
    assert desk.bring(old) == (Tally(created=1), [])
    [account_id] = column(desk.engine, "SELECT id FROM tokenfleet.accounts")
    refreshed(desk, account_id)
    desk.export(account_id)
    # Here the list is imported again, as every night: nobody starts.
    assert desk.bring(old) == (Tally(unchanged=1), [])
    assert desk.status(account_id) == GONE
    # And there, where only the export was ever imported.
    lines = desk.lines()
    desk.forget()
    desk.bring(*lines)
    assert desk.bring(old) == (Tally(unchanged=1), [])
    [arrived] = column(desk.engine, "SELECT id FROM tokenfleet.accounts")
    assert state_of(desk.engine, desk.vault, arrived).refresh_token == "refresh-2"


@pytest.mark.parametrize("token", ["refresh-1", "refresh-9"])
def test_an_account_comes_back_with_what_the_other_fleet_let_go_of_later(desk: Desk, token: str) -> None:
    account_id = account(desk, external_id="customer-1")
    desk.export(account_id)
    [line] = desk.lines()
    back = {**line, "refresh_token": token, "exported_at": (now() + timedelta(minutes=1)).isoformat()}
    assert desk.bring(back) == (Tally(reauthenticated=1), [])
    state = state_of(desk.engine, desk.vault, account_id)
    assert (state.status, state.status_reason, state.refresh_token) == (AccountStatus.ACTIVE, None, token)
    assert state.next_refresh_at is not None
    assert history_of(desk.engine, account_id)[-2:] == ["account.resumed", "account.imported"]
    # A second time it changes nothing.
    assert desk.bring(back) == (Tally(unchanged=1), [])


def test_an_account_that_was_paused_there_comes_back_paused_and_may_be_resumed(desk: Desk) -> None:
    account_id = account(desk, external_id="customer-1")
    desk.export(account_id)
    [line] = desk.lines()
    desk.bring({**line, "refresh_token": "refresh-9", "status": "paused", "exported_at": now().isoformat()})
    assert desk.status(account_id) == (AccountStatus.PAUSED, "paused where it comes from")
    with desk.engine.begin() as connection:
        assert transitions.resume(connection, [account_id], actor=ACTOR) == {account_id}


def test_a_file_from_before_the_account_left_brings_nothing_back(desk: Desk) -> None:
    account_id = account(desk, external_id="customer-1")
    desk.export(account_id)
    [line] = desk.lines()
    early = {**line, "refresh_token": "refresh-0", "exported_at": (now() - HOUR).isoformat()}
    tally, [reason] = desk.bring(early)
    assert (tally.bad, "this file was not made after that" in reason) == (1, True)
    state = state_of(desk.engine, desk.vault, account_id)
    assert (desk.status(account_id), state.refresh_token) == (GONE, "refresh-1")


def test_a_fleets_own_export_starts_nobody_there(desk: Desk) -> None:
    """Taken for the other fleet's, or imported in the wrong shell: the other one may have the account by now."""
    account_id = account(desk, external_id="customer-1")
    files = []
    for _ in range(2):
        desk.export(account_id)
        files += desk.lines()
    for file in files:
        assert desk.bring(file)[0].bad == 1
    # Nor does a backup that somebody made meanwhile of those that are away, or of those that go on there.
    desk.export(account_id, keep_running=True)
    assert desk.bring(*desk.lines()) == (Tally(unchanged=1), [])
    assert desk.status(account_id) == GONE
    assert claim(desk.engine, desk.app) == []


def test_a_token_that_left_in_a_file_is_no_new_sign_in_when_the_move_was_called_off(desk: Desk) -> None:
    account_id = account(desk, external_id="customer-1")
    desk.export(account_id)
    [line] = desk.lines()
    with desk.engine.begin() as connection:
        transitions.resume(connection, [account_id], actor=ACTOR, exported=True)
    refreshed(desk, account_id)
    assert desk.bring(line) == (Tally(unchanged=1), [])
    assert state_of(desk.engine, desk.vault, account_id).refresh_token == "refresh-2"


def test_what_was_imported_at_the_other_fleet_is_known_here_when_the_account_comes_back(desk: Desk) -> None:
    account_id = account(desk, external_id="customer-1")
    desk.export(account_id)
    [line] = desk.lines()
    signed_in_there = fingerprint(Secret("refresh-8")).hex()
    desk.bring(
        {
            **line,
            "refresh_token": "refresh-9",
            "exported_at": now().isoformat(),
            "fingerprints": [signed_in_there],
        }
    )
    list_of_there = {"provider": "acme", "external_id": "customer-1", "refresh_token": "refresh-8"}
    assert desk.bring(list_of_there) == (Tally(unchanged=1), [])
    assert state_of(desk.engine, desk.vault, account_id).refresh_token == "refresh-9"


def test_a_paused_account_whose_worker_died_is_not_waited_for(desk: Desk) -> None:
    account_id = account(desk)
    begin_attempt(desk.engine, desk.app, account_id)
    with desk.engine.begin() as connection:
        transitions.pause(connection, [account_id], actor=ACTOR, reason=None)
    assert desk.export(account_id) == {account_id: LeftOut.STARTED}
    let_claims_expire(desk.engine)
    assert desk.export(account_id) == {account_id: LeftOut.UNSURE}, "nobody takes it up before it is resumed"


def test_a_token_that_was_brought_once_and_is_spent_here_is_not_brought_again(desk: Desk) -> None:
    account_id = account(desk, external_id="customer-1")
    desk.export(account_id)
    [line] = desk.lines()
    back = {**line, "refresh_token": "refresh-9"}
    assert desk.bring({**back, "exported_at": now().isoformat()}) == (Tally(reauthenticated=1), [])
    refreshed(desk, account_id)
    desk.export(account_id)
    # The other fleet never imported that, and exports what it has had all the time once more.
    late = {**back, "exported_at": (now() + timedelta(minutes=1)).isoformat()}
    assert desk.bring(late) == (Tally(unchanged=1), [])
    assert desk.status(account_id) == GONE


def test_an_import_that_keys_were_rotated_under_replaces_nothing_that_it_cannot_compare(
    desk: Desk, settings: Settings
) -> None:
    account_id = account(desk, external_id="customer-1")
    for ring in (settings.access_ring, settings.refresh_ring):
        key_id = data_keys.announce(desk.engine, ring)
        with desk.engine.begin() as connection:
            data_keys.promote(connection, ring.ring, key_id)
    with desk.engine.begin() as connection:
        younger = Desk(desk.engine, keys.open_vault(connection, settings), desk.app)
    refreshed(younger, account_id)
    same = {"provider": "acme", "external_id": "customer-1", "refresh_token": "refresh-2"}
    tally, [reason] = desk.bring(same)
    assert (tally.bad, "keys were rotated since this import began" in reason) == (1, True)
    assert younger.bring(same) == (Tally(unchanged=1), [])
    # A key that is gone for good keeps nobody from a new sign-in.
    with desk.engine.begin() as connection:
        connection.execute(
            text(
                "UPDATE tokenfleet.token_sets SET refresh_token = overlay(refresh_token placing '\\x00000000' from 2)"
            )
        )
    assert younger.bring({**same, "refresh_token": "refresh-9"}) == (Tally(reauthenticated=1), [])


def test_tokens_of_another_client_are_refused(desk: Desk) -> None:
    account_id = account(desk, external_id="customer-1")
    desk.export(account_id)
    [line] = desk.lines()
    assert line["client_id"] == "client-1"
    desk.forget()
    tally, [reason] = desk.bring({**line, "client_id": "client-2"})
    assert tally.created == 0
    assert "issued to another client than the one that the app 'default' registers" in reason
    assert desk.bring(line) == (Tally(created=1), [])


def test_what_is_masked_holds_no_token_and_opens_nothing(desk: Desk) -> None:
    ids = [account(desk, tenant="t-1"), account(desk, status=AccountStatus.CONNECTING)]
    with desk.engine.begin() as connection:
        connection.execute(text("UPDATE tokenfleet.token_sets SET refresh_token = '\\x00'"))
        found = masked(connection, ids)
    assert [each.has_access_token for each in found] == [True, False]
    assert all(each.has_refresh_token for each in found)
    assert not any(isinstance(getattr(each, name), bytes) for each in found for name in each.__slots__)


def test_pages_hold_whom_the_filter_means_once_each(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, vault: Vault
) -> None:
    monkeypatch.setattr("store.export_selection.PAGE", 2)
    ids = [account(desk, tenant="t-1") for _ in range(5)]
    other = make_account(desk.engine, vault, make_app(desk.engine, vault, name="other"))

    def wanted(**fields: Any) -> list[AccountId]:
        return [each for page in pages(desk.engine, ExportFilter(**fields)) for each in page]

    assert wanted() == [*ids, other]
    assert wanted(tenant="t-1") == wanted(app="default") == ids
    assert wanted(app="other", provider="acme", environment="production") == [other]
    assert wanted(status=AccountStatus.PAUSED) == wanted(provider="none") == wanted(environment="none") == []
