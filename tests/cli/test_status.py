"""``status``: one screen that tells the truth, whatever is broken."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

from sqlalchemy import Engine

from store import apps
from store.journal import Journal
from store.keys import Vault
from tests.cli.conftest import Shell
from tests.support.builders import answer, make_account, make_app
from tokenfleet.settings import Settings
from tokenfleet_client.contract import AccountStatus


def test_a_fleet_in_trouble_shows_all_of_it(tokenfleet: Shell, engine: Engine, vault: Vault) -> None:
    app = make_app(engine, vault, name="default")
    make_account(engine, vault, app, expires_in=timedelta(minutes=-2))
    make_account(engine, vault, app, status=AccountStatus.NEEDS_REAUTH)
    with engine.begin() as connection:
        apps.hold(connection, app, "invalid_client", generation=1, probe_after=timedelta(seconds=30))
    screen = tokenfleet("status").stdout
    assert "no scheduler" in screen
    assert "at least 1 active account with an expired token, the first for 2 min" in screen
    assert "Held: acme/production/default" in screen
    assert "invalid_client" in screen
    document = tokenfleet("status", "--json").document
    assert document["fleet"]["expiry"]["expired"] == 1
    assert {each["status"]: each["accounts"] for each in document["fleet"]["counts"]} == {
        "active": 1,
        "needs_reauth": 1,
    }
    assert document["problems"] == []


def test_a_fresh_installation_is_calm(tokenfleet: Shell, vault: Vault) -> None:
    ran = tokenfleet("status")
    assert ran.exit_code == 0
    assert "Postgres, its schema, the keys and Redis are fine." in ran.stdout


def test_without_postgres_it_says_so_and_still_looks_at_the_rest(tokenfleet: Shell) -> None:
    ran = tokenfleet("status", "--json", TOKENFLEET_DATABASE_URL="postgresql://x@127.0.0.1:1/x")
    assert ran.exit_code == 1
    assert ran.document["fleet"] is None
    [problem] = ran.document["problems"]
    assert "does not answer" in problem


def test_redis_that_is_away_is_a_problem_beside_the_numbers(tokenfleet: Shell, vault: Vault) -> None:
    ran = tokenfleet("status", "--json", TOKENFLEET_REDIS_URL="redis://127.0.0.1:1/0")
    assert ran.exit_code == 0
    assert ran.document["fleet"] is not None
    assert any("Redis" in problem for problem in ran.document["problems"])


def test_keys_of_another_installation_are_a_problem(tokenfleet: Shell, vault: Vault, tmp_path: Path) -> None:
    foreign = str(tmp_path / "foreign.json")
    tokenfleet("keys", "generate", "--output", foreign)
    problems = tokenfleet("status", "--json", TOKENFLEET_KEYS_FILE=foreign).document["problems"]
    assert len(problems) == 2
    assert all("TOKENFLEET_KEYS_FILE" in problem for problem in problems)


def test_the_journal_of_a_dead_worker_is_told_from_that_of_a_living_one(
    tokenfleet: Shell, engine: Engine, vault: Vault, settings: Settings
) -> None:
    account_id = make_account(engine, vault, make_app(engine, vault))
    journal = Journal(settings.journal_dir, "worker-1")
    journal.append(answer(vault, account_id, epoch=1, generation=1))
    [living] = tokenfleet("status", "--json").document["journals"]
    assert (living["name"], living["abandoned"]) == ("worker-1", False)
    # What is not settled stays on disk, and nobody holds it any more.
    journal.close()
    [dead] = tokenfleet("status", "--json").document["journals"]
    assert (dead["abandoned"], dead["bytes"]) == (True, living["bytes"])
    assert "Journal of a dead worker: worker-1" in tokenfleet("status").stdout


def test_watching_prints_a_document_a_line_again_and_again(environ: dict[str, str]) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "cli", "status", "--watch", "--every", "0.5", "--json"],
        env=environ,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        documents = [json.loads(process.stdout.readline()) for _ in range(2)]
        process.kill()
    first, second = (document["fleet"]["at"] for document in documents)
    assert first < second


def test_watching_in_a_pipe_has_no_control_codes(environ: dict[str, str]) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "cli", "status", "--watch"], env=environ, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        screen = b"".join(process.stdout.readline() for _ in range(6))
        process.kill()
    assert b"\x1b" not in screen
    assert b"provider" in screen
