"""Ending grants: the provider is told, the tokens are forgotten, and no refresh comes in between (RFC 7009)."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any, cast
from unittest.mock import Mock
from urllib.parse import urlencode
from urllib.request import urlopen

from sqlalchemy import text

from providers import Registry, load_registry
from store import revocations, settlement, transitions
from store.journal import Journal
from store.revocations import Begun, RevocationMade
from tests.support.builders import answer, deferral, let_claims_expire, start
from tests.support.fleet import Fleet, eventually
from tokenfleet.jobs import AccountId
from workers.pacing import NotNow
from workers.revoke import Revoker

ACTOR = "operator:ada"


def revoke(fleet: Fleet, *ids: AccountId, untold: bool = False) -> Begun:
    """Revoke accounts, as the command does."""
    with fleet.engine.begin() as connection:
        return revocations.begin(
            connection,
            ids,
            untold=ids if untold else (),
            showing_access=(),
            code="local_only",
            actor=ACTOR,
            reason="contract ended",
        )


def held(fleet: Fleet, account_id: AccountId) -> dict[str, Any]:
    """Return what the database still holds of an account."""
    with fleet.engine.connect() as connection:
        row = connection.execute(
            text("""
                SELECT a.status, t.access_token IS NOT NULL AS access, t.refresh_token IS NOT NULL AS refresh,
                       (SELECT count(*) FROM tokenfleet.token_candidates c WHERE c.account_id = a.id) AS candidates,
                       s.next_refresh_at IS NOT NULL AS due
                FROM tokenfleet.accounts a JOIN tokenfleet.token_sets t ON t.account_id = a.id
                JOIN tokenfleet.refresh_schedule s ON s.account_id = a.id WHERE a.id = :id
            """),
            {"id": account_id},
        ).one()
    return dict(row._mapping)


FORGOTTEN = {"status": "revoked", "access": False, "refresh": False, "candidates": 0, "due": False}


def living(fleet: Fleet) -> set[str]:
    """Return the subjects whose grants live at the server."""
    return {tokens.subject for tokens in fleet.server.live() if tokens.alive}


def sweep(fleet: Fleet) -> frozenset[AccountId]:
    with fleet.engine.begin() as connection:
        return revocations.sweep(connection, actor="scheduler")


def test_a_revoked_account_ends_at_the_provider_and_leaves_no_token_here(fleet: Fleet) -> None:
    gone, stays = fleet.connect("gone", "stays")
    begun = revoke(fleet, gone)
    assert begun == Begun(frozenset({gone}), frozenset({gone}), frozenset())
    with fleet.worker() as worker:
        worker.run(fleet.claim())
    assert living(fleet) == {"stays"}
    assert held(fleet, gone) == FORGOTTEN
    assert fleet.row(stays).generation == 2
    assert fleet.events(gone) == ["account.revoked", "revocation.confirmed"]
    assert fleet.told(gone) == ["integrated_account:revoked"]
    assert fleet.server.ledger().refreshes == 1, "the grant that was ended was refreshed"
    assert revoke(fleet, gone) == Begun(frozenset(), frozenset(), frozenset())
    assert fleet.told(gone) == ["integrated_account:revoked"]
    assert fleet.claim() == []


def test_a_refresh_under_way_is_waited_for_and_what_it_brings_is_revoked(fleet: Fleet) -> None:
    [account_id] = fleet.connect("gone")
    with fleet.worker() as worker:
        with fleet.server.hold():
            refresh = worker.submit(fleet.claim()[0])
            fleet.server.wait_for_held(1)
            assert revoke(fleet, account_id).asked == {account_id}
            assert fleet.claim() == [], "somebody else would ask while a refresh is under way"
            assert sweep(fleet) == frozenset()
            assert fleet.claim() == []
        refresh.result(30)
        assert (held(fleet, account_id)["refresh"], living(fleet)) == (True, {"gone"})
        worker.run(fleet.claim())
    assert living(fleet) == set()
    assert held(fleet, account_id) == FORGOTTEN
    assert fleet.events(account_id) == ["account.revoked", "refresh.succeeded", "revocation.confirmed"]
    assert fleet.told(account_id) == ["integrated_account:revoked"]
    assert fleet.server.ledger().presented_twice == 0


def test_a_refresh_that_ends_without_an_answer_leaves_its_account_to_the_sweep(fleet: Fleet) -> None:
    [account_id] = fleet.connect("gone")
    [attempt] = start(fleet.engine, fleet.claim()[0])
    revoke(fleet, account_id)
    with fleet.engine.begin() as connection:
        settlement.defer(connection, [deferral(attempt)], actor="worker")
    assert fleet.claim() == []
    sweep(fleet)
    with fleet.worker() as worker:
        worker.run(fleet.claim())
    assert (living(fleet), held(fleet, account_id)) == (set(), FORGOTTEN)


def test_an_answer_that_comes_after_the_tokens_were_forgotten_is_stored_nowhere(fleet: Fleet) -> None:
    [account_id] = fleet.connect("gone")
    with fleet.worker() as worker:
        with fleet.server.hold():
            refresh = worker.submit(fleet.claim()[0])
            fleet.server.wait_for_held(1)
            assert revoke(fleet, account_id, untold=True).forgotten == {account_id}
        refresh.result(30)
    assert held(fleet, account_id) == FORGOTTEN
    assert fleet.events(account_id) == ["account.revoked", "revocation.forgotten", "refresh.dropped"]
    assert fleet.claim() == []


def test_what_a_dead_worker_has_in_its_journal_is_what_is_revoked(fleet: Fleet) -> None:
    """It had the successor and wrote it nowhere else. The spent token would say nothing to a provider."""
    [account_id] = fleet.connect("gone")
    assert len(start(fleet.engine, fleet.claim()[0])) == 1
    let_claims_expire(fleet.engine)
    journal = Journal(fleet.settings.journal_dir, "sibling")
    successor = _refresh(fleet, fleet.row(account_id).refresh_token)
    journal.append(answer(fleet.vault, account_id, epoch=1, generation=1, refresh_token=successor))
    revoke(fleet, account_id)
    with fleet.worker() as worker:
        worker.run(fleet.claim())
        eventually(lambda: "refresh.succeeded" in fleet.events(account_id))
        assert living(fleet) == {"gone"}
        worker.run(fleet.claim())
    journal.close()
    assert (living(fleet), held(fleet, account_id)) == (set(), FORGOTTEN)
    ledger = fleet.server.ledger()
    assert (ledger.refreshes, ledger.presented_twice) == (1, 0)


def test_a_provider_that_does_not_answer_is_asked_again_and_readers_are_done_at_once(fleet: Fleet) -> None:
    [account_id] = fleet.connect("gone")
    fleet.registry = _with_revocation(fleet, "http://127.0.0.1:9/revoke")
    revoke(fleet, account_id)
    assert fleet.column("SELECT status FROM tokenfleet_v1.access_tokens") == ["revoked"]
    with fleet.worker() as worker:
        worker.run(fleet.claim())
    assert held(fleet, account_id) == FORGOTTEN | {"refresh": True, "due": True}, "a reader finds none"
    assert (living(fleet), fleet.claim()) == ({"gone"}, [])
    fleet.registry = _with_revocation(fleet, f"{fleet.server.url}/revoke")
    assert revoke(fleet, account_id) == Begun(frozenset(), frozenset({account_id}), frozenset())
    with fleet.worker() as worker:
        worker.run(fleet.claim())
    assert (living(fleet), held(fleet, account_id)) == (set(), FORGOTTEN)
    assert fleet.events(account_id) == ["account.revoked", "revocation.unanswered", "revocation.confirmed"]
    assert fleet.told(account_id) == ["integrated_account:revoked"]


def test_what_nobody_confirms_is_forgotten_after_a_week(fleet: Fleet) -> None:
    [account_id] = fleet.connect("gone")
    fleet.registry = _with_revocation(fleet, f"{fleet.server.url}/nowhere")
    revoke(fleet, account_id)
    with fleet.worker() as worker:
        worker.run(fleet.claim())
    assert fleet.events(account_id) == ["account.revoked", "revocation.refused"]
    assert sweep(fleet) == frozenset()
    with fleet.engine.begin() as connection:
        connection.execute(
            text("UPDATE tokenfleet.accounts SET status_changed_at = now() - interval '7 days 1 minute'")
        )
    assert sweep(fleet) == {account_id}
    assert held(fleet, account_id) == FORGOTTEN
    assert fleet.events(account_id)[-1] == "revocation.forgotten"
    assert sweep(fleet) == frozenset()


def test_a_paused_account_is_ended_and_new_tokens_begin_it_anew(fleet: Fleet) -> None:
    [account_id] = fleet.connect("gone")
    with fleet.engine.begin() as connection:
        transitions.pause(connection, [account_id], actor=ACTOR, reason=None)
    revoke(fleet, account_id)
    with fleet.worker() as worker:
        worker.run(fleet.claim())
    assert (living(fleet), held(fleet, account_id)) == (set(), FORGOTTEN)


def test_revocations_let_refreshes_go_first(fleet: Fleet) -> None:
    [gone] = fleet.connect("gone")
    revoke(fleet, gone)
    [stays] = fleet.connect("stays")
    [job] = fleet.claim(count=1)
    assert [account_id for account_id, _ in job.accounts] == [stays], "it was due later"


def test_tokens_that_came_in_while_the_provider_was_asked_are_revoked_next(fleet: Fleet) -> None:
    """They are from a worker whose claim had run out. What the provider confirmed was not about them."""
    [account_id] = fleet.connect("gone")
    assert len(start(fleet.engine, fleet.claim()[0])) == 1
    let_claims_expire(fleet.engine)
    revoke(fleet, account_id)
    [asking] = start(fleet.engine, fleet.claim()[0])
    late = answer(fleet.vault, account_id, epoch=1, generation=1)
    made = RevocationMade(
        account_id, asking.epoch, asking.generation, revocations.CONFIRMED, "http_200", None, late.job_id, 5
    )
    with fleet.engine.begin() as connection:
        assert settlement.save_refreshed(connection, [late], actor="frozen").saved == {account_id}
        for _ in range(2):
            revocations.settle(connection, [made], actor="worker")
    assert held(fleet, account_id) == FORGOTTEN | {"access": True, "refresh": True, "due": True}
    [job] = fleet.claim()
    assert job.accounts[0][0] == account_id


def _with_revocation(fleet: Fleet, endpoint: str) -> Registry:
    """Return the fleet's definition with another revocation endpoint."""
    file = Path(fleet.registry.get("sandbox").origin)
    definition = file.read_text()
    head, table, tail = definition.partition("[revoke]\n")
    rest = tail.partition("\n")[2]
    file.write_text(f"{head}{table}endpoint = {json.dumps(endpoint)}\n{rest}")
    return load_registry(file.parent, allow_http=True)


def _refresh(fleet: Fleet, refresh_token: str) -> str:
    """Refresh as a worker would whose answer nobody has yet; returns the new refresh token."""
    config = fleet.server.config
    form = {
        "grant_type": "refresh_token",
        "refresh_token": refresh_token,
        "client_id": config.client_id,
        "client_secret": config.client_secret.reveal(),
    }
    with urlopen(fleet.server.token_endpoint, urlencode(form).encode(), timeout=10) as response:
        return str(json.load(response)["refresh_token"])


def test_a_visit_while_postgres_is_away_is_no_fault_and_asks_nobody() -> None:
    class Away:
        def connect(self) -> None:
            raise ConnectionRefusedError

    nobody = cast(Any, None)
    revoker = Revoker(cast(Any, Away()), nobody, nobody, nobody)
    asking, attempt = Mock(), Mock(access_token=None, refresh_token=None)
    ended = asyncio.run(revoker.visit(asking, attempt))
    assert isinstance(ended, NotNow)
    asking.provider.revocation_request.assert_not_called()
