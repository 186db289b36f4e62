"""A rotated refresh token is saved, whatever else is odd about the answer that brought it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from providers import load_registry
from sandbox.definition import definition_toml
from tests.support.altering_proxy import Alter, AlteringProxy, unaltered
from tests.support.fleet import Fleet
from tokenfleet.jobs import AccountId


@pytest.fixture
def proxy(fleet: Fleet, tmp_path: Path) -> Iterator[AlteringProxy]:
    """The only way to the sandbox that the fleet knows."""
    with AlteringProxy(fleet.server.url) as proxy:
        definition = tmp_path / "providers" / "sandbox.toml"
        definition.write_text(definition_toml(proxy.url, fleet.server.config))
        fleet.registry = load_registry(tmp_path / "providers", allow_http=True)
        yield proxy


def holds_the_live_refresh_token(fleet: Fleet, account_id: AccountId) -> bool:
    digest = hashlib.sha256(fleet.row(account_id).refresh_token.encode()).hexdigest()
    return digest in {tokens.refresh_token_sha256 for tokens in fleet.server.live()}


def with_(**members: Any) -> Alter:
    """Replace members of the answer; None leaves one out."""

    def alter(document: dict[str, Any]) -> bytes:
        kept = {name: value for name, value in (document | members).items() if value is not None}
        return json.dumps(kept).encode()

    return alter


def raw(text: str) -> Alter:
    """Write the tokens into ``text``, which is no ordinary JSON."""

    def alter(document: dict[str, Any]) -> bytes:
        return text.replace("AT", document["access_token"]).replace("RT", document["refresh_token"]).encode()

    return alter


ODD = {
    "no lifetime": with_(expires_in=None),
    "a negative lifetime": with_(expires_in=-1),
    "an endless lifetime": raw('{"access_token": "AT", "refresh_token": "RT", "expires_in": 1e400}'),
    "a lifetime that is no number": raw('{"access_token": "AT", "refresh_token": "RT", "expires_in": NaN}'),
    "a boolean lifetime": with_(expires_in=True),
    "another token type": with_(token_type="mac"),
    "a token type that is none": with_(token_type={"is": "bearer"}),
    "a scope with a NUL": with_(scope="a\0b"),
    "half a character": with_(note="\ud800", scope="a \udfff"),
    "garbage": with_(garbage=[{"x": [None] * 100}] * 100, **{"": "", "\0": "\0"}),
    "something behind it": raw('{"access_token": "AT", "refresh_token": "RT"}<!-- cache -->'),
    "a refresh token twice, then empty": raw('{"access_token": "AT", "refresh_token": "RT", "refresh_token": ""}'),
    "a form": raw("access_token=AT&refresh_token=RT"),
    "UTF-16": lambda document: json.dumps(document).encode("utf-16"),
}  # fmt: skip


def test_an_odd_answer_costs_its_oddity_and_no_token(fleet: Fleet, proxy: AlteringProxy) -> None:
    with fleet.worker() as worker:
        for about, alter in ODD.items():
            [account_id] = fleet.connect(about)
            proxy.alter = alter
            worker.run(fleet.claim())
            row = fleet.row(account_id)
            assert (row.generation, row.attempts, row.status) == (2, 0, "active"), about
            assert row.next_refresh_in is not None
            assert 0 < row.next_refresh_in < 3600, about
        assert fleet.strays() == []
        proxy.alter = unaltered
        fleet.make_due(*fleet.column("SELECT id FROM tokenfleet.accounts"))
        worker.run(fleet.claim())
    assert set(fleet.generations().values()) == {3}
    assert fleet.strays() == []
    ledger = fleet.server.ledger()
    assert (ledger.presented_twice, ledger.rejected, ledger.families_revoked) == (0, 0, 0), ledger.violations


WITHOUT_ACCESS_TOKEN = {
    "none": with_(access_token=None),
    "an empty one": with_(access_token=""),
    "a number": with_(access_token=5),
    "half a character": with_(access_token="at\ud800"),
    "one that ends its header": with_(access_token="at\r\nX-Evil: 1"),
    "an error beside it": with_(error="invalid_grant"),
}


def test_a_successor_without_a_usable_access_token_is_saved_beside_the_old_one(
    fleet: Fleet, proxy: AlteringProxy, capfd: pytest.CaptureFixture[str]
) -> None:
    """The provider has rotated. To forget that would be to present a spent token next, which revokes the family."""
    with fleet.worker() as worker:
        for about, alter in WITHOUT_ACCESS_TOKEN.items():
            [account_id] = fleet.connect(about)
            before = fleet.row(account_id)
            proxy.alter = alter
            worker.run(fleet.claim())
            row = fleet.row(account_id)
            assert (row.generation, row.status) == (2, "active"), about
            assert row.refresh_token != before.refresh_token, about
            assert row.access_token == before.access_token, about
            assert holds_the_live_refresh_token(fleet, account_id), about
            assert row.expires_in is not None
            assert row.next_refresh_in is not None
            assert 40 < row.next_refresh_in < 80, "it is asked again soon, and not in a loop"
            assert before.expires_in is not None
            assert row.expires_in < before.expires_in
        assert capfd.readouterr().out.count("access_token_missing") == len(WITHOUT_ACCESS_TOKEN)
        proxy.alter = unaltered
        fleet.make_due(*fleet.column("SELECT id FROM tokenfleet.accounts"))
        worker.run(fleet.claim())
    assert fleet.strays() == []
    ledger = fleet.server.ledger()
    assert (ledger.presented_twice, ledger.rejected, ledger.families_revoked) == (0, 0, 0), ledger.violations


def test_an_error_that_echoes_the_refresh_token_is_no_new_one(fleet: Fleet, proxy: AlteringProxy) -> None:
    [account_id] = fleet.connect("customer")
    token = fleet.row(account_id).refresh_token
    proxy.alter = lambda _: json.dumps({"ok": False, "refresh_token": token}).encode()
    with fleet.worker() as worker:
        worker.run(fleet.claim())
    row = fleet.row(account_id)
    assert (row.generation, row.attempts, row.status, row.last_error) == (1, 1, "active", "http_200")
