"""``doctor``: every problem with what to do about it, and no follow-up problems."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, text

from providers import load_registry
from store import apps, coming_hour, settlement
from store.keys import Vault
from tests.cli.conftest import Ran, Shell
from tests.support.builders import ACTOR, begin_attempt, deferral, make_account, make_app, now, park

PROVIDER = load_registry().names()[0]


def _checks(ran: Ran, name: str) -> list[dict[str, Any]]:
    return [check for check in ran.document["checks"] if check["name"] == name]


def _verdict(ran: Ran, name: str) -> str:
    [check] = _checks(ran, name)
    return str(check["verdict"])


def test_a_good_installation_is_healthy(tokenfleet: Shell, engine: Engine, vault: Vault) -> None:
    make_app(engine, vault, provider=PROVIDER)
    ran = tokenfleet("doctor", "--json")
    assert ran.exit_code == 0
    assert ran.document["healthy"] is True
    good = ("settings", "redis", "broker", "journal", "providers", "postgres", "clock", "access keys")
    assert {name: _verdict(ran, name) for name in good} == dict.fromkeys(good, "ok")
    # Nothing runs here, which is worth knowing and not fatal.
    assert (_verdict(ran, "schedulers"), _verdict(ran, "workers")) == ("warning", "warning")


def test_wrong_settings_are_listed_and_nothing_else_is_guessed(tokenfleet: Shell) -> None:
    ran = tokenfleet("doctor", "--json", TOKENFLEET_TICK_SECONDS="x", TOKENFLEET_LEASE_SECONDS="1")
    assert ran.exit_code == 1
    assert len(_checks(ran, "settings")) >= 1
    assert all(check["verdict"] == "fatal" for check in _checks(ran, "settings"))
    assert _verdict(ran, "everything else") == "skipped"


def test_without_postgres_what_needs_it_is_skipped(tokenfleet: Shell) -> None:
    ran = tokenfleet("doctor", TOKENFLEET_DATABASE_URL="postgresql://x:hush@127.0.0.1:1/x")
    assert ran.exit_code == 1
    assert "   fatal  postgres: " in ran.stdout
    assert " skipped  " in ran.stdout
    assert "hush" not in ran.stdout


def test_without_redis_both_redis_and_its_broker_are_fatal(tokenfleet: Shell) -> None:
    ran = tokenfleet("doctor", "--json", TOKENFLEET_REDIS_URL="redis://127.0.0.1:1/0")
    assert ran.exit_code == 1
    assert (_verdict(ran, "redis"), _verdict(ran, "broker")) == ("fatal", "fatal")
    assert _verdict(ran, "postgres") == "ok"


def test_a_clock_that_is_off_is_fatal_and_nothing_else_is(tokenfleet: Shell, vault: Vault) -> None:
    ran = tokenfleet("doctor", "--json", TOKENFLEET_MAX_CLOCK_SKEW_SECONDS="0.0000001")
    fatal = [check["name"] for check in ran.document["checks"] if check["verdict"] == "fatal"]
    assert fatal == ["clock"]


def test_a_journal_that_cannot_be_written_is_fatal(tokenfleet: Shell) -> None:
    ran = tokenfleet("doctor", "--json", TOKENFLEET_JOURNAL_DIR="/proc/self/journal")
    assert _verdict(ran, "journal") == "fatal"


def test_keys_of_another_installation_are_fatal(tokenfleet: Shell, vault: Vault, tmp_path: Path) -> None:
    foreign = str(tmp_path / "foreign.json")
    tokenfleet("keys", "generate", "--output", foreign)
    ran = tokenfleet("doctor", "--json", TOKENFLEET_KEYS_FILE=foreign)
    assert (_verdict(ran, "access keys"), _verdict(ran, "refresh keys")) == ("fatal", "fatal")


def test_a_definition_with_a_typo_is_fatal_and_the_rest_is_looked_at(
    tokenfleet: Shell, tmp_path: Path
) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (own / "typo.toml").write_text("nme = 'typo'\n")
    ran = tokenfleet("doctor", "--json", TOKENFLEET_PROVIDERS_DIR=str(own))
    assert ran.exit_code == 1
    assert any("nme is not a known key" in check["message"] for check in _checks(ran, "providers"))
    assert _verdict(ran, "postgres") == "ok"


def test_a_held_app_and_one_without_definition_are_fatal(
    tokenfleet: Shell, engine: Engine, vault: Vault
) -> None:
    held = make_app(engine, vault, provider=PROVIDER, name="held")
    make_app(engine, vault, provider="unheard_of", name="orphan")
    with engine.begin() as connection:
        apps.hold(connection, held, "invalid_client", generation=1, probe_after=timedelta(seconds=30))
    ran = tokenfleet("doctor", "--json")
    assert ran.exit_code == 1
    messages = [check["message"] for check in _checks(ran, "apps")]
    assert any(f"{PROVIDER}/production/held: held since" in message for message in messages)
    assert any("unheard_of/production/orphan has no provider definition" in message for message in messages)


def test_accounts_in_quarantine_are_worth_a_warning(tokenfleet: Shell, engine: Engine, vault: Vault) -> None:
    app = make_app(engine, vault, provider=PROVIDER)
    attempt = begin_attempt(engine, app, make_account(engine, vault, app))
    with engine.begin() as connection:
        settlement.defer(connection, [deferral(attempt, quarantined=True)], actor=ACTOR)
    [check] = _checks(tokenfleet("doctor", "--json"), "accounts")
    assert check["verdict"] == "warning"
    assert "accounts refresh" in check["message"]


def test_what_stands_between_an_app_and_its_provider_is_a_warning(
    tokenfleet: Shell, engine: Engine, vault: Vault
) -> None:
    app = make_app(engine, vault, provider=PROVIDER, name="crowded")
    account_id = make_account(engine, vault, app)
    with engine.begin() as connection:
        apps.pause_until(connection, [app], [now() + timedelta(hours=1)])
        coming_hour.keep_slack(connection, [(app, -0.25)])
        park(connection, app, account_id)
        connection.execute(
            text("UPDATE tokenfleet.refresh_schedule SET doubts = 1, failing_since = now(), attempts = 1")
        )
    ran = tokenfleet("doctor", "--json")
    assert ran.exit_code == 0
    found = _checks(ran, "apps")
    assert {check["verdict"] for check in found} == {"warning"}
    told = [check["message"].removeprefix(f"{PROVIDER}/production/crowded: ").split()[0] for check in found]
    assert told == ["incident", "overbooked:", "paused"]
    assert "providers unknowns" in _checks(ran, "accounts")[0]["message"]
