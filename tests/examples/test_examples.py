"""The examples in other languages open what the vectors say and nothing else, and read a token as the guide says."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import pytest
from sqlalchemy import Engine, text

from embedded.binaries import find_postgres
from store import settlement
from store.keys import Vault
from tests.support.builders import ACTOR, answer, begin_attempt, make_account, make_app
from tests.support.fleet import eventually
from tokenfleet.jobs import AccountId, AppId
from tokenfleet_client.contract import AccountStatus

ROOT: Final = Path(__file__).parent.parent.parent
VECTORS: Final = ROOT / "tests" / "vectors" / "envelope.json"
NODE: Final = ROOT / "examples" / "node"
RUBY: Final = ROOT / "examples" / "ruby"
SECONDS: Final = 30

needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
needs_ruby = pytest.mark.skipif(shutil.which("ruby") is None, reason="ruby is not installed")
needs_pg = pytest.mark.skipif(
    not (NODE / "node_modules" / "pg").exists(), reason="'npm ci' was not run in examples/node"
)

OPENERS: Final = [
    pytest.param(["node", "open_vectors.mjs"], marks=needs_node, id="node"),
    pytest.param(["ruby", "open_vectors.rb"], marks=needs_ruby, id="ruby"),
]
READERS: Final = [
    pytest.param(["node", str(NODE / "get-token.mjs")], marks=[needs_node, needs_pg], id="node"),
    pytest.param(["ruby", str(RUBY / "get_token.rb")], marks=needs_ruby, id="ruby"),
]


@pytest.fixture
def app_id(engine: Engine, vault: Vault) -> AppId:
    return make_app(engine, vault)


@pytest.fixture
def reader_environ(environ: Mapping[str, str], database_url: str) -> dict[str, str]:
    """What the examples read: the database's URL, the keys of the access ring, and where psql is."""
    rings = json.loads((Path(environ["TOKENFLEET_HOME"]) / "keys.json").read_text())
    here = find_postgres().bin_dir
    return {
        "PATH": os.pathsep.join([str(here), os.environ["PATH"]]),
        "DATABASE_URL": database_url.replace("postgresql+psycopg:", "postgresql:"),
        "TOKENFLEET_ACCESS_KEYS": ",".join(rings["access"]),
    }


@pytest.mark.parametrize("command", OPENERS)
def test_an_example_opens_the_vectors_of_the_access_ring_and_refuses_all_others(command: list[str]) -> None:
    vectors: dict[str, Any] = json.loads(VECTORS.read_text(encoding="utf-8"))
    expected = {each["name"]: each["plaintext"] for each in vectors["sealed"] if each["ring"] == "access"}
    refused = [each for each in vectors["sealed"] if each["ring"] != "access"] + vectors["refused"]

    opened = subprocess.run(
        [command[0], str(Path(__file__).parent / command[1]), str(VECTORS)],
        capture_output=True,
        check=True,
        timeout=SECONDS,
    )

    assert json.loads(opened.stdout) == expected | {each["name"]: None for each in refused}


def test_the_example_of_the_page_about_the_format_is_one_of_the_vectors() -> None:
    vectors: dict[str, Any] = json.loads(VECTORS.read_text(encoding="utf-8"))
    [sealed] = [each for each in vectors["sealed"] if each["name"] == "an access token"]
    [key] = [each for each in vectors["data_keys"] if each["data_key_id"] == sealed["data_key_id"]]
    page = (ROOT / "docs" / "envelope.md").read_text()

    shown = re.findall(
        r"^\| .* \| `([^`]+)`(?: \(text\))? \|$", page.partition("### An example")[2], re.MULTILINE
    )

    assert vectors["key_encryption_keys"]["access"] in page
    assert shown == [
        key["wrapped"],
        key["associated_data"],
        key["data_key"],
        sealed["envelope"],
        sealed["associated_data"],
        sealed["plaintext"],
    ]


@pytest.mark.parametrize("command", READERS)
def test_an_example_prints_a_token_that_is_fresh(
    command: list[str], reader_environ: dict[str, str], engine: Engine, vault: Vault, app_id: AppId
) -> None:
    make_account(engine, vault, app_id, external_id="customer-17", access_token="the access token")

    asked = _ask(command, reader_environ, "customer-17")

    assert asked.communicate(timeout=SECONDS) == ("the access token", "")
    assert asked.returncode == 0


@pytest.mark.parametrize("command", READERS)
def test_an_example_asks_for_a_refresh_and_prints_the_new_token(
    command: list[str], reader_environ: dict[str, str], engine: Engine, vault: Vault, app_id: AppId
) -> None:
    account_id = make_account(
        engine,
        vault,
        app_id,
        external_id="customer-18",
        expires_in=timedelta(seconds=5),
        due_in=timedelta(hours=1),
    )

    asked = _ask(command, reader_environ, "customer-18")
    eventually(lambda: _is_due(engine, account_id), what="the example has asked for a refresh")
    attempt = begin_attempt(engine, app_id, account_id)
    with engine.begin() as connection:
        settlement.save_refreshed(
            connection, [answer(vault, account_id, epoch=attempt.epoch, generation=1)], actor=ACTOR
        )

    assert asked.communicate(timeout=SECONDS) == ("access-2", "")


@pytest.mark.parametrize("command", READERS)
@pytest.mark.parametrize("status", [AccountStatus.NEEDS_REAUTH, AccountStatus.PAUSED])
def test_an_example_says_why_there_is_no_token_and_shows_none(
    command: list[str],
    reader_environ: dict[str, str],
    engine: Engine,
    vault: Vault,
    app_id: AppId,
    status: AccountStatus,
) -> None:
    make_account(engine, vault, app_id, external_id="customer-19", status=status)

    asked = _ask(command, reader_environ, "customer-19")
    printed, said = asked.communicate(timeout=SECONDS)

    assert (printed, asked.returncode) == ("", 1)
    assert status.value in said


@pytest.mark.parametrize("command", READERS)
def test_an_example_that_lacks_a_key_names_it_and_one_without_arguments_says_how_it_is_used(
    command: list[str], reader_environ: dict[str, str], engine: Engine, vault: Vault, app_id: AppId
) -> None:
    make_account(engine, vault, app_id, external_id="customer-20")
    needed = reader_environ["TOKENFLEET_ACCESS_KEYS"].partition(":")[0]
    another = "another:" + base64.b64encode(bytes(32)).decode()

    said = []
    for keys in (another, f"{needed}:{another.partition(':')[2]}", f"{needed}:short"):
        asked = _ask(command, reader_environ | {"TOKENFLEET_ACCESS_KEYS": keys}, "customer-20")
        printed, words = asked.communicate(timeout=SECONDS)
        assert (printed, asked.returncode, words.count("\n")) == ("", 1, 1), words
        said.append(words)
    usage = subprocess.run(
        command, env=reader_environ, capture_output=True, text=True, timeout=SECONDS, check=False
    )

    assert f"key-encryption key {needed} is not held" in said[0]
    assert "was altered" in said[1]
    assert "id:base64 of 32 bytes" in said[2]
    assert (usage.returncode, usage.stderr.count("\n")) == (2, 1)


def _ask(command: list[str], environ: dict[str, str], external_id: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*command, "acme", external_id],
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _is_due(engine: Engine, account_id: AccountId) -> bool:
    with engine.connect() as connection:
        statement = text(
            "SELECT next_refresh_at <= now() FROM tokenfleet.refresh_schedule WHERE account_id = :id"
        )
        return bool(connection.execute(statement, {"id": account_id}).scalar_one())
