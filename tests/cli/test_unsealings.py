"""``audit unsealings``: who opened what, and that commands count what they open."""

from __future__ import annotations

import json
from datetime import timedelta

from sqlalchemy import Engine, text

from store import unsealing_spikes
from store.keys import Vault
from tests.cli.conftest import Shell
from tests.support.unsealings import remember, report
from tokenfleet_client.unsealings import Purpose

DAY = timedelta(days=1)
MINUTE = timedelta(minutes=1)


def test_what_a_command_opens_is_on_record_under_its_operators_name(
    tokenfleet: Shell, engine: Engine, vault: Vault
) -> None:
    line = json.dumps(
        {"provider": "google", "external_id": "c-1", "refresh_token": "r-1", "access_token": "a-1"}
    )
    words = ("apps", "set", "google", "--client-id", "id", "--client-secret-file", "-")
    assert tokenfleet(*words, stdin="secret").exit_code == 0
    assert tokenfleet("accounts", "import", "-", stdin=line).exit_code == 0
    newer = line.replace("r-1", "r-2")
    assert tokenfleet("accounts", "import", "-", stdin=newer).exit_code == 0

    callers = tokenfleet("audit", "unsealings", "--json").document["callers"]

    assert {each["purpose"] for each in callers} <= {"import", "inspect"}
    (imported,) = [each for each in callers if each["purpose"] == "import"]
    assert imported["caller"].startswith("operator:")
    assert imported["opened"] >= 1


def test_it_adds_up_by_purpose_and_caller_and_chooses(tokenfleet: Shell, engine: Engine) -> None:
    remember(engine, Purpose.REFRESH, {MINUTE: 40, 60 * MINUTE: 60, 25 * 60 * MINUTE: 5}, caller="host-1-aa")
    remember(engine, Purpose.EXPORT, {MINUTE: 7}, caller="operator:ada")
    report(engine, "billing", 20)

    ran = tokenfleet("audit", "unsealings")
    assert ran.exit_code == 0
    for words in ("host-1-aa", "operator:ada", "billing", "export", "Nothing is unusual."):
        assert words in ran.stdout

    def opened(*words: str) -> dict[str, int]:
        document = tokenfleet("audit", "unsealings", *words, "--json").document
        return {each["caller"]: each["opened"] for each in document["callers"]}

    assert opened() == {"host-1-aa": 100, "billing": 20, "operator:ada": 7}
    assert opened("--since", "2020-01-01T00:00:00Z")["host-1-aa"] == 105
    assert opened("--purpose", "export") == {"operator:ada": 7}
    assert opened("--caller", "operator:") == {"operator:ada": 7}

    lines = tokenfleet("audit", "unsealings", "--export", "--since", "2020-01-01T00:00:00Z")
    rows = [json.loads(line) for line in lines.stdout.splitlines()]
    assert [row["opened"] for row in rows[:2]] == [5, 60]
    assert sum(row["opened"] for row in rows) == 132
    assert lines.stderr == "5 counts written.\n"


def test_a_spike_is_named_here_in_status_and_by_the_doctor_while_it_lasts(
    tokenfleet: Shell, engine: Engine, vault: Vault
) -> None:
    remember(engine, Purpose.READ, {days * DAY: 100 for days in range(1, 8)}, caller="billing")
    report(engine, "thief", 50_000)
    with engine.begin() as connection:
        unsealing_spikes.look(connection)

    ran = tokenfleet("audit", "unsealings")
    assert ran.exit_code == 1
    assert "SPIKE" in ran.stdout
    assert "50,000 openings for read within 10 minutes" in " ".join(ran.stdout.split())
    assert "most of them by thief" in " ".join(ran.stdout.split())
    assert "most of them by thief" in " ".join(tokenfleet("status").stdout.split())
    assert tokenfleet("status", "--json").document["unsealing_spikes"][0]["purpose"] == "read"
    checks = tokenfleet("doctor", "--json").document["checks"]
    (check,) = [each for each in checks if each["name"] == "unsealings"]
    assert check["verdict"] == "warning"
    assert "'tokenfleet audit unsealings'" in check["message"]

    with engine.begin() as connection:
        connection.execute(text("UPDATE tokenfleet.unsealing_spikes SET ended_at = now()"))
    assert tokenfleet("audit", "unsealings").exit_code == 0
    assert "thief" not in tokenfleet("status").stdout


def test_wrong_words_get_one_sentence(tokenfleet: Shell, engine: Engine) -> None:
    for words in (
        ("--since", "2999-01-01T00:00:00Z"),
        ("--purpose", "spying"),
        ("--export", "--json"),
    ):
        ran = tokenfleet("audit", "unsealings", *words)
        assert ran.exit_code == 2
        assert "Traceback" not in ran.stderr
    assert "Nothing was opened." in tokenfleet("audit", "unsealings").stdout
