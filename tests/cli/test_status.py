"""``status``: one screen that tells the truth, whatever is broken."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

from redis.asyncio import Redis
from sqlalchemy import Engine, text

from cli.status_view import SHOWN_FINDINGS
from providers import load_registry
from store import apps, coming_hour
from store.circuits import Circuits
from store.journal import Journal
from store.keys import Vault
from tests.cli.conftest import Shell
from tests.support.builders import answer, make_account, make_app, now, park
from tokenfleet.circuit import Report
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
    assert "acme/production/default: held since" in screen
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


def test_a_circuit_that_is_not_closed_is_told_by_every_command(
    tokenfleet: Shell, engine: Engine, vault: Vault, settings: Settings
) -> None:
    app = make_app(engine, vault, provider=load_registry().names()[0])
    make_app(engine, vault, name="well")
    account_id = make_account(engine, vault, app)

    async def fail() -> None:
        async with Redis.from_url(settings.redis_url) as redis:
            await Circuits(redis).report({app: Report(answers=20, outages=20)})

    asyncio.run(fail())
    told = "circuit is open: the provider does not answer; one account tries at"
    for words in (("status",), ("doctor",), ("apps", "list"), ("accounts", "show", str(account_id))):
        assert tokenfleet(*words).stdout.count(told) == 1
    [circuit] = tokenfleet("status", "--json").document["circuits"]
    assert (circuit["app_id"], circuit["state"]) == (app, "open")


def test_redis_that_is_away_is_a_problem_beside_the_numbers(
    tokenfleet: Shell, engine: Engine, vault: Vault
) -> None:
    make_app(engine, vault)
    ran = tokenfleet("status", "--json", TOKENFLEET_REDIS_URL="redis://127.0.0.1:1/0")
    assert ran.exit_code == 1
    assert ran.document["fleet"] is not None
    assert ran.document["circuits"] is None
    [problem] = ran.document["problems"]
    assert "no worker starts, and no job reaches one" in problem
    # One judgement: doctor says the same of it, and calls it fatal.
    checks = tokenfleet("doctor", "--json", TOKENFLEET_REDIS_URL="redis://127.0.0.1:1/0").document["checks"]
    assert {"name": "redis", "verdict": "fatal", "message": problem} in checks


def test_a_broker_of_its_own_that_is_away_is_a_problem(tokenfleet: Shell, vault: Vault) -> None:
    ran = tokenfleet("status", "--json", TOKENFLEET_BROKER_URL="redis://127.0.0.1:1/0")
    assert ran.exit_code == 1
    [problem] = ran.document["problems"]
    assert problem.startswith("the broker at redis://127.0.0.1:1/0 does not answer")


def test_what_stands_between_an_app_and_its_provider_is_told_the_worst_first(
    tokenfleet: Shell, engine: Engine, vault: Vault
) -> None:
    paused, crowded = make_app(engine, vault, name="paused"), make_app(engine, vault, name="crowded")
    doubted = make_app(engine, vault, name="doubted")
    parked, flipped = (
        make_account(engine, vault, doubted, status=AccountStatus(status))
        for status in ("active", "needs_reauth")
    )
    with engine.begin() as connection:
        apps.pause_until(connection, [paused], [now() + timedelta(minutes=5)])
        coming_hour.keep_slack(connection, [(crowded, -0.5), (paused, 0.3), (doubted, None)])
        park(connection, doubted, parked, flipped)
    screen = tokenfleet("status").stdout
    lines = [line for line in screen.splitlines() if line.startswith("acme/production/")]
    assert [line.split(" ")[:2] for line in lines] == [
        ["acme/production/doubted:", "incident"],
        ["acme/production/crowded:", "overbooked:"],
        ["acme/production/paused:", "paused"],
    ]
    assert "1 account parked, 1 told to sign in before that" in lines[0]
    assert "150 % of the rate" in lines[1]
    load = {app["name"]: app for app in tokenfleet("status", "--json").document["fleet"]["apps"]}
    assert [each["kind"] for each in load["doubted"]["incidents"]] == ["mass_rejection"]
    assert (load["crowded"]["slack"], load["doubted"]["slack"]) == (-0.5, None)


def test_more_trouble_than_a_screen_holds_is_counted(tokenfleet: Shell, engine: Engine, vault: Vault) -> None:
    held = [make_app(engine, vault) for _ in range(SHOWN_FINDINGS + 2)]
    with engine.begin() as connection:
        apps.pause_until(connection, held, [now() + timedelta(hours=1)] * len(held))
    screen = tokenfleet("status").stdout
    assert screen.count("paused until") == SHOWN_FINDINGS
    assert "and 2 more: 'tokenfleet apps list' shows them" in screen


def test_what_is_left_of_the_scarcest_rate_is_a_line_while_it_is_enough(
    tokenfleet: Shell, engine: Engine, vault: Vault
) -> None:
    one, other = make_app(engine, vault, name="one"), make_app(engine, vault, name="other")
    with engine.begin() as connection:
        coming_hour.keep_slack(connection, [(one, 0.417), (other, 0.9)])
    assert (
        "Rate: at least 41 % of it is left in the coming hour (acme/production/one)"
        in tokenfleet("status").stdout
    )


def test_a_forecast_that_nobody_renews_is_not_believed(
    tokenfleet: Shell, engine: Engine, vault: Vault
) -> None:
    app = make_app(engine, vault)
    with engine.begin() as connection:
        coming_hour.keep_slack(connection, [(app, -1.0)])
        connection.execute(
            text("UPDATE tokenfleet.oauth_apps SET budget_slack_at = budget_slack_at - interval '6 minutes'")
        )
    assert "overbooked" not in tokenfleet("status").stdout


def test_suspects_and_visits_that_only_probe_are_told_apart(
    tokenfleet: Shell, engine: Engine, vault: Vault
) -> None:
    app = make_app(engine, vault)
    make_account(engine, vault, app)
    make_account(engine, vault, app)
    with engine.begin() as connection:
        connection.execute(
            text(
                "UPDATE tokenfleet.refresh_schedule SET probing = true, doubts = 1, failing_since = now(), "
                "attempts = 1, last_error = 'http_400' WHERE account_id = (SELECT min(id) FROM tokenfleet.accounts)"
            )
        )
    screen = tokenfleet("status").stdout
    assert "; 1 visit only to probe a token" in screen
    assert "; 1 suspect" in screen


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
