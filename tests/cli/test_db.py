"""``db upgrade`` and ``db check``."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.engine import make_url

from tests.cli.conftest import Shell
from tests.support.builders import column


@pytest.fixture
def empty(servers: dict[str, str]) -> Iterator[str]:
    """URL of a database that nothing was ever done to."""
    name = f"tokenfleet_empty_{uuid.uuid4().hex[:12]}"
    url = make_url(servers["TOKENFLEET_DATABASE_URL"])
    admin = create_engine(url, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    yield url.set(database=name).render_as_string(hide_password=False)
    with admin.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    admin.dispose()


def test_upgrade_makes_a_database_ready_and_may_be_repeated(tokenfleet: Shell, empty: str) -> None:
    assert tokenfleet("db", "check", TOKENFLEET_DATABASE_URL=empty).exit_code == 1
    first = tokenfleet("db", "upgrade", TOKENFLEET_DATABASE_URL=empty)
    assert first.exit_code == 0
    assert "now at" in first.stdout
    assert "data keys of both rings open" in first.stdout
    second = tokenfleet("db", "upgrade", TOKENFLEET_DATABASE_URL=empty)
    assert "already at" in second.stdout
    checked = tokenfleet("db", "check", "--json", TOKENFLEET_DATABASE_URL=empty)
    assert checked.exit_code == 0
    assert checked.document["ready"] is True
    assert checked.document["revision"] == checked.document["wanted"]


def test_upgrade_makes_history_partitions_and_the_first_data_keys(tokenfleet: Shell, engine: Engine) -> None:
    assert tokenfleet("db", "upgrade").exit_code == 0
    assert sorted(column(engine, "SELECT ring FROM tokenfleet.data_keys")) == ["access", "refresh"]
    partitions = column(
        engine, "SELECT relname FROM pg_class WHERE relname ~ '^account_events_[0-9]+$' AND relkind = 'r'"
    )
    assert len(partitions) >= 7


def test_upgrade_without_keys_says_how_to_make_them(tokenfleet: Shell, environ: dict[str, str]) -> None:
    ran = tokenfleet("db", "upgrade", TOKENFLEET_HOME=environ["TOKENFLEET_HOME"] + "/elsewhere")
    assert ran.exit_code == 0
    assert "tokenfleet keys generate" in ran.stdout


def test_upgrade_with_foreign_keys_fails_in_one_sentence(tokenfleet: Shell, tmp_path: object) -> None:
    assert tokenfleet("db", "upgrade").exit_code == 0
    foreign = f"{tmp_path}/foreign.json"
    assert tokenfleet("keys", "generate", "--output", foreign).exit_code == 0
    ran = tokenfleet("db", "upgrade", TOKENFLEET_KEYS_FILE=foreign)
    assert ran.exit_code == 1
    [line] = ran.stderr.splitlines()
    assert "TOKENFLEET_KEYS_FILE" in line


def test_check_names_a_missing_schema(tokenfleet: Shell, empty: str) -> None:
    ran = tokenfleet("db", "check", "--json", TOKENFLEET_DATABASE_URL=empty)
    assert ran.exit_code == 1
    assert ran.document["revision"] is None
    assert "tokenfleet db upgrade" in ran.document["problem"]


def test_check_names_a_database_that_does_not_answer(tokenfleet: Shell) -> None:
    ran = tokenfleet("db", "check", TOKENFLEET_DATABASE_URL="postgresql://somebody@127.0.0.1:1/nowhere")
    assert ran.exit_code == 1
    assert "does not answer" in ran.stderr
    assert "ready" in ran.stdout


def test_check_fails_when_the_clocks_disagree_too_much(tokenfleet: Shell) -> None:
    ran = tokenfleet("db", "check", "--json", TOKENFLEET_MAX_CLOCK_SKEW_SECONDS="0.0000001")
    assert ran.exit_code == 1
    assert "clock" in ran.document["problem"]
    assert abs(ran.document["clock_skew_seconds"]) < 5
