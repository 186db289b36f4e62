"""The readers' guide keeps its word: its Python blocks run, one after another, against a database and an API."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

import tokenfleet_client
from store.keys import Vault
from tests.support.api_server import Api
from tests.support.builders import make_account, make_app
from tokenfleet_client import KeyEncryptionKey, TokenUnavailable
from tokenfleet_client.contract import AccountStatus
from tokenfleet_client.reading import TIMEOUT

GUIDE = (Path(__file__).parent.parent.parent / "docs" / "reading-tokens.md").read_text()
[IN_PYTHON] = re.findall(r"^## In Python\n(.*?)(?=^## |\Z)", GUIDE, re.DOTALL | re.MULTILINE)
BLOCKS: list[str] = re.findall(r"```python\n(.*?)```", IN_PYTHON, re.DOTALL)


def test_the_blocks_run_from_the_first_token_to_the_last_refusal(
    engine: Engine,
    vault: Vault,
    readable: str,
    keys: list[KeyEncryptionKey],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("READER_DATABASE_URL", readable)
    monkeypatch.setenv("TOKENFLEET_ACCESS_KEYS", keys[0].export())
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    app = make_app(engine, vault)
    asked: list[tuple[str, datetime | None]] = []
    with Api("access-1") as api:
        make_account(
            engine,
            vault,
            app,
            external_id="customer-17",
            tenant="tenant-3",
            variables={"instance_url": api.url},
        )
        make_account(engine, vault, app, external_id="customer-18", status=AccountStatus.NEEDS_REAUTH)
        make_account(engine, vault, app, external_id="customer-19", expires_in=timedelta(seconds=-1))
        names: dict[str, Any] = {
            "ask_to_sign_in_again": lambda account: asked.append((account, None)),
            "try_again": lambda account, at: asked.append((account, at)),
        }
        for block in BLOCKS:
            exec(compile(block, "docs/reading-tokens.md", "exec"), names)
        monkeypatch.setattr(names["tokens"], "_timeout", timedelta(seconds=0.1))
        found = [names["token_for"](f"customer-{number}") for number in (17, 18, 19, 20)]
        names["tokens"].close()

    assert names["headers"] == {"Authorization": "Bearer access-1"}
    assert api.tokens == ["Bearer access-1"] * 3
    assert found == ["Bearer access-1", None, None, None]
    assert asked == [("customer-18", None), ("customer-19", None)]
    printed = capsys.readouterr().out
    assert "customer-17" in printed
    assert "there is no account 'customer-20'" in printed
    assert "access-1" not in printed


def test_the_table_has_every_refusal_and_the_text_every_other_error_of_reading() -> None:
    table = set(re.findall(r"^\| `(\w+)`", IN_PYTHON, re.MULTILINE))
    assert table == {kind.__name__ for kind in TokenUnavailable.__subclasses__()}
    for name in re.findall(r"`(\w+(?:Error|Unavailable|Client|Wrapper))`", IN_PYTHON):
        assert name in tokenfleet_client.__all__, name
    assert timedelta(seconds=10) == TIMEOUT
