"""Two fleets and one sandbox: accounts leave one, arrive at the other, come back, and no token is presented twice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from sandbox.config import SandboxConfig
from sandbox.server import SandboxServer
from store import apps, keys
from store.engine import make_engine
from tests.cli.conftest import Shell
from tests.support.databases import cloned_database
from tests.support.fleet import Fleet
from tokenfleet.jobs import AccountId
from tokenfleet.settings import Settings
from tokenfleet_client.envelope import KeyEncryptionKey
from tokenfleet_client.secret import Secret
from workers.credentials import open_credentials

SUBJECTS = ("customer-1", "customer-2", "customer-3")


@contextmanager
def founded(server: SandboxServer, url: str, redis_url: str, home: Path) -> Iterator[tuple[Fleet, Shell]]:
    """Yield a fleet of its own: database, keys, provider definition, and the shell of its operator."""
    home.mkdir(mode=0o700)
    (home / "keys.json").touch(mode=0o600)
    rings = {ring: [KeyEncryptionKey.generate(home.name).export()] for ring in ("access", "refresh")}
    (home / "keys.json").write_text(json.dumps(rings))
    environ = {
        "PATH": os.environ.get("PATH", ""),
        "TOKENFLEET_DATABASE_URL": url,
        "TOKENFLEET_REDIS_URL": redis_url,
        "TOKENFLEET_HOME": str(home),
        "TOKENFLEET_PROVIDERS_DIR": str(home / "providers"),
        "TOKENFLEET_ALLOW_HTTP_PROVIDERS": "true",
    }
    (home / "providers").mkdir()
    settings = Settings.from_environ(environ)
    engine = make_engine(settings.database_url, application_name="test")
    with engine.begin() as connection:
        vault = keys.open_vault(connection, settings)
    yield Fleet(engine, vault, settings, server, home / "providers"), Shell(environ)
    engine.dispose()


@pytest.fixture
def two(
    servers: Mapping[str, str], template: str, redis_url: str, tmp_path: Path
) -> Iterator[tuple[tuple[Fleet, Shell], tuple[Fleet, Shell]]]:
    """Two fleets whose customers are at one strict sandbox: rotation always, no grace, reuse ends the grant."""
    with (
        SandboxServer(SandboxConfig()) as server,
        cloned_database(servers, template) as one,
        cloned_database(servers, template) as other,
        founded(server, one, redis_url, tmp_path / "here") as here,
        founded(server, other, redis_url, tmp_path / "there") as there,
    ):
        yield here, there


def refresh_all(fleet: Fleet) -> int:
    """Refresh whoever this fleet may ask about; returns how many it asked about."""
    ids = [AccountId(each) for each in fleet.column("SELECT id FROM tokenfleet.accounts")]
    fleet.make_due(*ids)
    jobs = fleet.claim()
    with fleet.worker() as worker:
        worker.run(jobs)
    return sum(len(job.accounts) for job in jobs)


def statuses(fleet: Fleet) -> set[str]:
    return set(fleet.column("SELECT status FROM tokenfleet.accounts"))


def test_accounts_move_to_another_fleet_and_back_and_nobody_signs_in_again(
    two: tuple[tuple[Fleet, Shell], tuple[Fleet, Shell]], tmp_path: Path
) -> None:
    (here, here_shell), (there, there_shell) = two
    here.connect(*SUBJECTS)
    assert refresh_all(here) == 3

    asked = there_shell("keys", "recipient")
    recipient = asked.stdout.strip()
    assert recipient.startswith("age1")
    moved = tmp_path / "moved.jsonl.age"
    left = here_shell("accounts", "export", "--all", "--to", recipient, "--output", str(moved))
    assert left.exit_code == 0, left.stderr
    assert f"3 accounts sealed to {recipient} in {moved}, and paused here." in left.stderr
    assert left.stdout == ""
    assert moved.stat().st_mode & 0o777 == 0o600
    assert b"customer-1" not in moved.read_bytes()
    opened = (
        "SELECT sum(opened) FROM tokenfleet.unsealings WHERE purpose = 'export' AND caller LIKE 'operator:%'"
    )
    assert here.column(opened) == [6]
    # Nobody here asks any more, however late it gets.
    assert refresh_all(here) == 0
    assert statuses(here) == {"paused"}

    identity = str(Path(there_shell.environ["TOKENFLEET_HOME"], "identity.txt"))
    arrived = there_shell("accounts", "import", str(moved), "--identity", identity)
    assert (arrived.exit_code, "3 created" in arrived.stdout) == (0, True), arrived
    assert statuses(there) == {"active"}
    # The tokens that arrived are live at the server, access tokens too.
    assert there.strays() == []
    assert refresh_all(there) == 3
    assert there.strays() == []
    # The same file again starts nobody and changes nothing.
    again = there_shell("accounts", "import", str(moved), "--identity", identity)
    assert "3 unchanged" in again.stdout

    home = here_shell("keys", "recipient").stdout.strip()
    back = tmp_path / "back.jsonl.age"
    assert there_shell("accounts", "export", "--all", "--to", home, "-o", str(back)).exit_code == 0
    identity = str(Path(here_shell.environ["TOKENFLEET_HOME"], "identity.txt"))
    returned = here_shell("accounts", "import", str(back), "--identity", identity)
    assert "3 re-authenticated" in returned.stdout, returned
    assert refresh_all(here) == 3
    assert refresh_all(there) == 0
    assert (statuses(here), statuses(there)) == ({"active"}, {"paused"})
    ledger = here.server.ledger()
    assert (ledger.refreshes, ledger.rejected, ledger.presented_twice) == (9, 0, 0)
    assert here.strays() == []
    for fleet in (here, there):
        assert "authentication_error" not in str(fleet.column("SELECT event_type FROM tokenfleet.outbox"))


def test_an_account_whose_answer_is_on_its_way_is_waited_for(
    two: tuple[tuple[Fleet, Shell], tuple[Fleet, Shell]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here, shell), (there, there_shell) = two
    [account_id] = here.connect("customer-1")
    recipient = there_shell("keys", "recipient").stdout.strip()
    words = ("accounts", "export", "--all", "--to", recipient)
    first, second = str(tmp_path / "first"), str(tmp_path / "second")
    with here.worker() as worker, ExitStack() as held:
        held.enter_context(here.server.hold())
        asking = worker.submit(here.claim()[0])
        here.server.wait_for_held(1)
        ran = shell(*words, "-o", first, "--wait", "0")
        assert ran.exit_code == 1
        assert (
            f"account {account_id} (sandbox/customer-1) stays: its provider is being asked just now"
            in ran.stderr
        )
        assert not Path(first).exists()

        def answer_meanwhile(_seconds: float) -> None:
            held.close()
            asking.result(20)

        monkeypatch.setattr("cli.departures.time.sleep", answer_meanwhile)
        assert shell(*words, "-o", second).exit_code == 0
    identity = str(Path(there_shell.environ["TOKENFLEET_HOME"], "identity.txt"))
    assert "1 created" in there_shell("accounts", "import", second, "--identity", identity).stdout
    assert refresh_all(there) == 1
    ledger = here.server.ledger()
    assert (ledger.refreshes, ledger.rejected, ledger.presented_twice) == (2, 0, 0)


def test_apps_move_with_their_secrets_and_replace_nothing_unasked(
    two: tuple[tuple[Fleet, Shell], tuple[Fleet, Shell]], tmp_path: Path
) -> None:
    (here, shell), (there, there_shell) = two
    own, secret = tmp_path / "own.secret", "of-customer-1"
    own.write_text(secret)
    set_own = "apps set sandbox --account customer-1 --client-id theirs --client-secret-file"
    assert shell(*set_own.split(), str(own)).exit_code == 0
    recipient, file = there_shell("keys", "recipient").stdout.strip(), tmp_path / "apps.age"
    identity = str(Path(there_shell.environ["TOKENFLEET_HOME"], "identity.txt"))
    assert shell("apps", "export", "--all", "--to", recipient, "-o", str(file)).exit_code == 0
    assert secret.encode() not in file.read_bytes()

    arrived = there_shell("apps", "import", str(file), "--identity", identity)
    assert "1 app registered, 1 registered already (--replace replaces them)." in arrived.stdout
    with there.engine.connect() as connection:
        app = apps.find(connection, "sandbox", "production", "account:customer-1")
    assert app is not None
    credentials = open_credentials(there.vault, app)
    assert (credentials.client_id, credentials.client_secret) == ("theirs", Secret(secret))
    assert (
        "2 apps registered."
        in there_shell("apps", "import", str(file), "--identity", identity, "--replace").stdout
    )

    # Another client under that name, with accounts that only it can refresh, stays.
    there.connect("customer-2")
    renamed = "apps set sandbox --client-id other --client-secret-file"
    assert shell(*renamed.split(), str(own)).exit_code == 0
    assert (
        shell("apps", "export", "--provider", "sandbox", "--to", recipient, "-o", f"{file}2").exit_code == 0
    )
    kept = there_shell("apps", "import", f"{file}2", "--identity", identity, "--replace")
    assert (kept.exit_code, "is another client here, and 1 account cannot be" in kept.stderr) == (1, True)
    actions = [fleet.column("SELECT action FROM tokenfleet.audit_log ORDER BY id") for fleet in (here, there)]
    assert actions[0].count("apps.export") == 4
    assert actions[1] == ["apps.import"] * 4


@pytest.fixture
def shell(fleet_here: tuple[Fleet, Shell]) -> Shell:
    return fleet_here[1]


@pytest.fixture
def fleet_here(
    servers: Mapping[str, str], database_url: str, redis_url: str, tmp_path: Path
) -> Iterator[tuple[Fleet, Shell]]:
    """One fleet with two accounts, at a sandbox that is never asked."""
    with (
        SandboxServer(SandboxConfig()) as server,
        founded(server, database_url, redis_url, tmp_path / "here") as (fleet, shell),
    ):
        fleet.connect("customer-1", "customer-2")
        yield fleet, shell


def test_masked_is_the_default_and_changes_nothing(fleet_here: tuple[Fleet, Shell], tmp_path: Path) -> None:
    fleet, shell = fleet_here
    plain = shell("accounts", "export")
    assert (
        shell(
            "accounts", "export", "--masked", "--provider", "sandbox", "--output", str(tmp_path / "f")
        ).stdout
        == ""
    )
    assert (tmp_path / "f").read_text() == plain.stdout
    first = json.loads(plain.stdout.splitlines()[0])
    assert (first["external_id"], first["has_refresh_token"], first["app"]) == ("customer-1", True, "default")
    held = [getattr(fleet.row(AccountId(1)), name) for name in ("access_token", "refresh_token")]
    assert not [token for token in held if token in plain.stdout + plain.stderr]
    assert "2 accounts written, masked: no token is in it." in plain.stderr
    assert fleet.column("SELECT count(*) FROM tokenfleet.audit_log") == [0]
    assert statuses(fleet) == {"active"}


def test_a_sealed_export_is_written_whole_or_not_at_all(
    fleet_here: tuple[Fleet, Shell], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, shell = fleet_here
    recipient = shell("keys", "recipient").stdout.strip()
    words = ("accounts", "export", "--to", recipient, "--all", "--output", str(tmp_path / "f"))

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", fail)
        broken = shell(*words)
    assert broken.exit_code == 1
    assert (
        "No file was finished, and 2 accounts paused here already: run the same command again, to the same recipient; "
        "or refresh them here again: 'tokenfleet accounts resume --exported'." in broken.stderr
    )
    assert "cannot be written (No space left on device)" in broken.stderr
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == []
    assert shell(*words).exit_code == 0
    assert "exists and is never overwritten" in shell(*words).stderr


def test_who_stops_reading_a_sealed_export_is_told_of_in_one_sentence(
    fleet_here: tuple[Fleet, Shell],
) -> None:
    fleet, shell = fleet_here
    recipient = shell("keys", "recipient").stdout.strip()
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as nobody_reads:
        ran = subprocess.run(
            [sys.executable, "-m", "cli", "accounts", "export", "--all", "--to", recipient],
            stdout=nobody_reads,
            stderr=subprocess.PIPE,
            env=shell.environ,
            text=True,
            timeout=60,
            check=False,
        )
    said = ran.stderr.splitlines()
    assert (ran.returncode, len(said)) == (1, 2), ran.stderr
    assert said[0].startswith("No file was finished, and 2 accounts paused here already")
    assert said[1] == "tokenfleet: who reads this command's output ended before it was whole"
    assert statuses(fleet) == {"paused"}


def test_an_interrupted_export_says_who_may_be_paused(
    fleet_here: tuple[Fleet, Shell], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet, shell = fleet_here
    recipient = shell("keys", "recipient").stdout.strip()
    words = ("accounts", "export", "--all", "--to", recipient, "-o", str(tmp_path / "f"))

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("store.export.Exporter.take", interrupt)
        during = shell(*words)
    with monkeypatch.context() as patched:
        patched.setattr("store.export_selection.pages", interrupt)
        before = shell(*words)
    assert (during.exit_code, before.exit_code) == (130, 130)
    assert "No file was finished, and up to 2 accounts paused here already" in during.stderr
    assert "No file was finished, and nobody was paused." in before.stderr
    assert statuses(fleet) == {"active"}


def test_an_export_of_nobody_fails_and_names_no_file(fleet_here: tuple[Fleet, Shell], tmp_path: Path) -> None:
    _, shell = fleet_here
    recipient, file = shell("keys", "recipient").stdout.strip(), tmp_path / "f"
    ran = shell("accounts", "export", "--tenant", "none", "--to", recipient, "-o", str(file))
    assert (ran.exit_code, ran.stderr) == (1, "tokenfleet: no account matches: nothing was written\n")
    assert not file.exists()


def test_a_wrong_key_or_half_a_file_imports_nothing(fleet_here: tuple[Fleet, Shell], tmp_path: Path) -> None:
    fleet, shell = fleet_here
    recipient = shell("keys", "recipient").stdout.strip()
    file, other = tmp_path / "f", str(tmp_path / "other.txt")
    assert (
        shell("accounts", "export", "1", "--to", recipient, "-o", str(file), "--keep-running").exit_code == 0
    )
    shell("keys", "recipient", "--identity", other)
    wrong = shell("accounts", "import", str(file), "--identity", other)
    assert wrong.exit_code == 2
    assert (
        f"it is sealed to another recipient's key than the one in {other}; nothing was imported"
        in wrong.stderr
    )
    unsaid = shell("accounts", "import", str(file))
    assert (unsaid.exit_code, "it is sealed: say --identity FILE" in unsaid.stderr) == (2, True)
    file.write_bytes(file.read_bytes()[:-1])
    own = str(Path(shell.environ["TOKENFLEET_HOME"], "identity.txt"))
    cut = shell("accounts", "import", str(file), "--identity", own)
    assert (cut.exit_code, "it is cut off or damaged: have it sent again" in cut.stderr) == (2, True)
    assert fleet.column("SELECT count(*) FROM tokenfleet.accounts") == [2]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--to", "age1x", "--all"], "this is no recipient"),
        (["--to", "{recipient}"], "--to takes accounts away from this fleet"),
        (["--to", "{recipient}", "--masked", "--all"], "--masked and --to exclude each other"),
        (["--keep-running"], "--keep-running goes with --to"),
        (["acme/1", "--tenant", "t"], "Name accounts, or say which ones by options"),
        (["nonsense"], "neither an account id nor PROVIDER/EXTERNAL_ID"),
        (["sandbox/none"], "there is no account sandbox/none"),
        (["--to", "{recipient}", "--all", "-o", "{here}"], "exists and is never overwritten"),
        (
            ["--to", "{recipient}", "--all", "-o", "{here}/none/f"],
            "cannot be written (No such file or directory)",
        ),
    ],
)
def test_a_mistake_is_one_sentence_and_pauses_nobody(
    fleet_here: tuple[Fleet, Shell], words: list[str], reason: str, tmp_path: Path
) -> None:
    fleet, shell = fleet_here
    recipient = shell("keys", "recipient").stdout.strip()
    ran = shell("accounts", "export", *(word.format(recipient=recipient, here=tmp_path) for word in words))
    assert ran.exit_code == (1 if "there is no account" in reason else 2)
    assert reason in ran.stderr
    assert statuses(fleet) == {"active"}


def test_a_backup_says_of_nobody_that_it_is_refreshed_who_is_paused(
    fleet_here: tuple[Fleet, Shell], tmp_path: Path
) -> None:
    fleet, shell = fleet_here
    recipient = shell("keys", "recipient").stdout.strip()
    assert shell("accounts", "pause", "1").exit_code == 0
    ran = shell("accounts", "export", "1", "--to", recipient, "--keep-running", "-o", str(tmp_path / "f"))
    assert (ran.exit_code, "stay here as they are, and those that are active" in ran.stderr) == (0, True)
    assert "keep running" not in ran.stderr
    assert statuses(fleet) == {"active", "paused"}


def test_what_was_exported_is_neither_resumed_nor_revoked_by_mistake(
    fleet_here: tuple[Fleet, Shell], tmp_path: Path
) -> None:
    fleet, shell = fleet_here
    recipient = shell("keys", "recipient").stdout.strip()
    words = ("accounts", "export", "1", "2", "--to", recipient, "-o", str(tmp_path / "f"))
    assert shell(*words, "--reason", "t-204 moves").exit_code == 0
    history = shell("accounts", "history", "1").stdout
    assert "kept_running: no" in history
    assert "reason: t-204 moves" in history
    assert "kept_running: no" in shell("audit", "list").stdout
    resumed = shell("accounts", "resume", "1")
    assert (resumed.exit_code, f"it was exported to {recipient}: who refreshes" in resumed.stderr) == (
        1,
        True,
    )
    asked = shell("accounts", "refresh", "1")
    assert (asked.exit_code, "resume it with --exported if nobody" in asked.stderr) == (1, True)
    assert asked.stderr == resumed.stderr
    for look in ("show", "history"):
        seen = shell("accounts", look, "1").stdout
        assert f"exported to {recipient}" in seen
        assert "brings it back" in seen
        assert "accounts resume" not in seen
    short = f"exported to {recipient[:8]}…{recipient[-6:]}"
    listed = shell("accounts", "list").stdout
    assert (listed.count(short), listed.count(recipient)) == (2, 0)
    assert recipient in shell("accounts", "list", "--json").stdout
    revoked = shell("accounts", "revoke", "1", "--yes")
    assert (revoked.exit_code, "ending its grant would end it there too" in revoked.stderr) == (1, True)
    assert statuses(fleet) == {"paused"}
    assert shell("accounts", "resume", "1", "--exported").exit_code == 0
    assert shell("accounts", "revoke", "2", "--yes", "--local-only").exit_code == 0
    assert statuses(fleet) == {"active", "revoked"}
    told = fleet.column("SELECT action || ' ' || target FROM tokenfleet.audit_log ORDER BY id")
    assert [each.split(" ")[0] for each in told] == ["accounts.export", "accounts.resume", "accounts.revoke"]


def test_the_identity_is_for_its_owner_alone_and_is_made_once(shell: Shell) -> None:
    made = shell("keys", "recipient")
    path = Path(shell.environ["TOKENFLEET_HOME"], "identity.txt")
    assert path.stat().st_mode & 0o777 == 0o600
    assert "AGE-SECRET-KEY" not in made.stdout + made.stderr
    again = shell("keys", "recipient")
    assert (again.stdout, again.stderr) == (made.stdout, "")
    path.chmod(0o644)
    assert "can be read by others" in shell("keys", "recipient").stderr
