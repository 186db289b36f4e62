"""A process that cannot do its work does not start: one sentence that says what to do, exit code 1."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import pytest

from tests.support.fleet import Fleet
from tests.support.processes import PLAIN_WORKER, SCHEDULER, START_SECONDS, WORKER, Processes
from tokenfleet_client.envelope import KeyEncryptionKey

NOBODY_LISTENS = "127.0.0.1:1"
UNREACHABLE_POSTGRES = f"postgresql://nobody@{NOBODY_LISTENS}/none"
UNREACHABLE_REDIS = f"redis://{NOBODY_LISTENS}/0"


@pytest.fixture
def refused(
    fleet: Fleet, run: Processes, servers: dict[str, str], tmp_path: Path
) -> dict[str, dict[str, str]]:
    """Settings that no process can work with, by what is wrong with them."""
    other_keys = tmp_path / "other-keys.json"
    other_keys.touch(mode=0o600)
    other_keys.write_text(
        json.dumps({ring: [KeyEncryptionKey.generate("test").export()] for ring in ("access", "refresh")})
    )
    no_directory = tmp_path / "journal-file"
    no_directory.touch()
    mistaken = tmp_path / "mistaken"
    mistaken.mkdir()
    (mistaken / "crm.toml").write_text('name = "crm"\nclient = 7\n')
    return {
        "Postgres is away": {"database_url": UNREACHABLE_POSTGRES},
        "no schema": {"database_url": servers["TOKENFLEET_DATABASE_URL"]},
        "Redis is away": {"redis_url": UNREACHABLE_REDIS},
        "another installation's keys": {"keys_file": str(other_keys)},
        "no journal": {"journal_dir": str(no_directory)},
        "clocks apart": {"max_clock_skew_seconds": "0.000001"},
        "a definition with mistakes": {"providers_dir": str(mistaken)},
        "a port in use": {"metrics_port": fleet.server.url.rpartition(":")[2]},
        "no Postgres named": {"database_url": ""},
    }


SENTENCES: Final = {
    "Postgres is away": f"Postgres at {UNREACHABLE_POSTGRES} does not answer",
    "no schema": "has no Tokenfleet schema: run 'tokenfleet db upgrade'",
    "Redis is away": f"Redis at {UNREACHABLE_REDIS} does not answer",
    "another installation's keys": "point TOKENFLEET_KEYS_FILE at the key file this database was set up with",
    "no journal": "cannot be written (Not a directory)",
    "clocks apart": "synchronise the clocks",
    "a definition with mistakes": "crm.toml",
    "a port in use": "set another TOKENFLEET_METRICS_PORT",
    "no Postgres named": "TOKENFLEET_DATABASE_URL is not set",
}


@pytest.mark.parametrize(
    ("words", "wrongs"),
    [
        (
            WORKER,
            (
                "Postgres is away",
                "no schema",
                "Redis is away",
                "another installation's keys",
                "no journal",
                "clocks apart",
                "a port in use",
            ),
        ),
        (PLAIN_WORKER, ("Redis is away", "no Postgres named")),
        (
            SCHEDULER,
            (
                "Postgres is away",
                "no schema",
                "clocks apart",
                "a definition with mistakes",
                "no Postgres named",
            ),
        ),
    ],
    ids=["tokenfleet worker", "celery worker", "tokenfleet scheduler"],
)
def test_a_process_that_cannot_work_says_why_and_ends(
    refused: dict[str, dict[str, str]], run: Processes, words: tuple[str, ...], wrongs: tuple[str, ...]
) -> None:
    members = {wrong: run.start(*words, **refused[wrong]) for wrong in wrongs}
    for wrong, member in members.items():
        # So many starts at once are the longest thing here.
        assert member.wait(START_SECONDS) == 1, (wrong, member.text())
        assert SENTENCES[wrong] in member.text(), wrong
        assert "Traceback" not in member.text(), wrong


def test_a_scheduler_without_a_broker_says_so_and_ends(run: Processes) -> None:
    scheduler = run.start(*SCHEDULER, broker_url=UNREACHABLE_REDIS)
    assert scheduler.wait() == 1
    assert "the broker does not answer: start it, or correct TOKENFLEET_BROKER_URL" in scheduler.text()
    assert "Traceback" not in scheduler.text()
