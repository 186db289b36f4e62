"""``audit list|export``, and that every command which changes something is in it."""

from __future__ import annotations

import ast
import json
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import click
import pytest
from sqlalchemy import Connection, Engine, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError

from cli.main import root
from store import audit, migrate
from store.audit import Action
from store.engine import SCHEMA_REVISION
from store.keys import Vault
from tests.cli.conftest import Shell
from tests.support.builders import column, empty_database, make_account, make_app, park
from tests.support.racing import PATIENCE_SECONDS, in_background, wait_until_blocked
from tokenfleet_client.contract import AccountStatus

ROOT: Final = Path(__file__).resolve().parent.parent.parent
READING: Final[Mapping[str, Sequence[str]]] = {
    "accounts.list": (),
    "accounts.show": ("1",),
    "accounts.history": ("1",),
    "apps.list": (),
    "apps.show": ("google",),
    "audit.export": (),
    "audit.list": (),
    "audit.unsealings": (),
    "db.check": (),
    "doctor": (),
    "incidents.list": (),
    "incidents.show": ("1",),
    "keys.retire": ("no-such-key",),
    "keys.status": (),
    "providers.health": (),
    "providers.list": (),
    "providers.schema": (),
    "providers.show": ("google",),
    "providers.unknowns": (),
    "status": (),
    "webhooks.deliveries": (),
    "webhooks.list": (),
}
"""Commands that read a fleet's database, with arguments that make them do it."""
APART: Final = frozenset(
    "demo keys.generate keys.recipient providers.test providers.validate sandbox scheduler up worker".split()
)
"""These touch no database of a fleet, or are the fleet."""
CHANGES: Final = "UPDATE tokenfleet.audit_log SET reason = 'x'", "DELETE FROM tokenfleet.audit_log"


def _commands(group: click.Group, prefix: str = "") -> dict[str, click.Command]:
    context = click.Context(group)
    found: dict[str, click.Command] = {}
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        path = f"{prefix}{name}"
        found |= _commands(command, f"{path}.") if isinstance(command, click.Group) else {path: command}
    return found


def test_a_command_only_reads_or_its_action_has_a_name_and_takes_a_reason() -> None:
    """Whoever adds a command decides here which of the two it is."""
    commands = _commands(root)
    assert commands.keys() - READING.keys() - APART == {action.value for action in Action}
    silent = [
        action.value
        for action in Action
        if not any("--reason" in parameter.opts for parameter in commands[action.value].params)
    ]
    assert silent == []


def test_every_action_is_recorded_by_somebody() -> None:
    used = {
        node.attr
        for folder in ("cli", "store")
        for path in (ROOT / folder).glob("*.py")
        if "Action." in (source := path.read_text())
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute) and ast.unparse(node.value).endswith("Action")
    }
    assert {action.name for action in Action} - used == set()


def test_a_command_that_leaves_no_row_changes_nothing(
    tokenfleet: Shell, engine: Engine, vault: Vault, database_url: str
) -> None:
    """Proved by Postgres: every one of them works on a database that refuses to be written to."""
    app = make_app(engine, vault, provider="google", name="default")
    account = make_account(engine, vault, app)
    assert tokenfleet("webhooks", "add", "https://example.com/hook").exit_code == 0
    with engine.begin() as connection:
        park(connection, app, account)
        name = make_url(database_url).database
        connection.execute(text(f"ALTER DATABASE {name} SET default_transaction_read_only = on"))
    refused = tokenfleet("webhooks", "disable", "1")
    assert "read-only" in refused.stderr
    for command, arguments in READING.items():
        ran = tokenfleet(*command.split("."), *arguments)
        assert ran.exit_code in {0, 1}, (command, ran.stderr)
        assert "read-only" not in ran.stdout + ran.stderr, command


def test_an_export_has_what_was_being_written_as_it_began_and_says_where_the_next_one_goes_on(
    tokenfleet: Shell, engine: Engine
) -> None:
    by = audit.Operator("operator:ada", "host")

    def act(connection: Connection, target: str) -> None:
        audit.record(connection, by, Action.ACCOUNTS_PAUSE, [audit.Entry(target)], reason=None)

    with engine.begin() as slow:
        act(slow, "first")
        with engine.begin() as quick:
            act(quick, "second")
        # A reader that goes by ids now has 2, and would never look for 1 again.
        exporting = in_background(lambda: tokenfleet("audit", "export"))
        wait_until_blocked(engine)
    exported = exporting.result(PATIENCE_SECONDS)
    assert [json.loads(line)["target"] for line in exported.stdout.splitlines()] == ["first", "second"]
    with engine.begin() as connection:
        act(connection, "third")
    since = exported.stderr.split()[-1]
    rest = tokenfleet("audit", "export", "--since", since)
    assert [json.loads(line)["target"] for line in rest.stdout.splitlines()] == ["third"]


def test_a_step_of_the_schema_and_its_row_are_one_transaction(
    tokenfleet: Shell, servers: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("the disk is full")

    with empty_database(servers) as empty:
        url = empty.url.render_as_string(hide_password=False)
        migrate.upgrade(empty, "0006")
        with monkeypatch.context() as patch:
            patch.setattr(audit, "record", fail)
            with pytest.raises(RuntimeError, match="disk"):
                tokenfleet("db", "upgrade", TOKENFLEET_DATABASE_URL=url)
        assert column(empty, "SELECT version_num FROM tokenfleet.alembic_version") == ["0006"]
        ran = tokenfleet("db", "upgrade", "--reason", "release 9", TOKENFLEET_DATABASE_URL=url)
        assert ran.exit_code == 0
        assert tokenfleet("db", "upgrade", TOKENFLEET_DATABASE_URL=url).exit_code == 0
        rows = tokenfleet("audit", "list", "--json", TOKENFLEET_DATABASE_URL=url).document
    steps = [(row["detail"]["before"], row["detail"]["after"], row["reason"]) for row in reversed(rows)]
    assert steps[0][0] == "0006"
    assert [before for before, _, _ in steps[1:]] == [after for _, after, _ in steps[:-1]]
    assert (steps[-1][1], {reason for _, _, reason in steps}) == (SCHEMA_REVISION, {"release 9"})


def test_each_action_is_on_record_with_who_did_it_why_and_from_where(
    tokenfleet: Shell, engine: Engine, vault: Vault
) -> None:
    app = make_app(engine, vault, name="default")
    ids = [str(make_account(engine, vault, app)) for _ in range(3)]
    dead = str(make_account(engine, vault, app, status=AccountStatus.NEEDS_REAUTH))
    with engine.begin() as connection:
        incident = park(connection, app)
    why = ("--reason", "ticket 17")
    assert tokenfleet("accounts", "pause", ids[0], ids[1], *why).exit_code == 0
    assert tokenfleet("accounts", "resume", ids[0], *why).exit_code == 0
    assert tokenfleet("accounts", "refresh", ids[2], dead, *why).exit_code == 1
    revoked = tokenfleet("accounts", "revoke", ids[1], "--yes", "--local-only", "--wait", "0", *why)
    assert revoked.exit_code == 0
    assert tokenfleet("incidents", "resolve", str(incident), "--dismiss", *why).exit_code == 0
    added = tokenfleet("webhooks", "add", "https://example.com/hook", "--json", *why).document
    endpoint = str(added["endpoint_id"])
    secret = tokenfleet("webhooks", "rotate-secret", endpoint, "--json", *why).document["secret"]
    for word in ("disable", "enable", "remove"):
        assert tokenfleet("webhooks", word, endpoint, *why).exit_code == 0
    set_app = ("apps", "set", "google", "--name", "new", "--client-id", "me", "--client-secret-file", "-")
    assert tokenfleet(*set_app, *why, stdin="planted-secret\n").exit_code == 0
    assert tokenfleet("apps", "remove", "google", "--name", "new", *why).exit_code == 0
    line = {"provider": "google", "external_id": "c", "refresh_token": "planted-token", "app": "new"}
    tokenfleet(*set_app, stdin="planted-secret\n")
    assert tokenfleet("accounts", "import", "-", *why, stdin=json.dumps(line)).exit_code == 0

    exported = tokenfleet("audit", "export")

    rows = [json.loads(each) for each in exported.stdout.splitlines()]
    assert [(row["action"], row["target"]) for row in rows if row["reason"] == "ticket 17"][:-1] == [
        ("accounts.pause", f"account/{ids[0]}"),
        ("accounts.pause", f"account/{ids[1]}"),
        ("accounts.resume", f"account/{ids[0]}"),
        # Not the one that could not be refreshed.
        ("accounts.refresh", f"account/{ids[2]}"),
        ("accounts.revoke", f"account/{ids[1]}"),
        ("incidents.resolve", f"incident/{incident}"),
        ("webhooks.add", f"endpoint/{endpoint}"),
        ("webhooks.rotate-secret", f"endpoint/{endpoint}"),
        ("webhooks.disable", f"endpoint/{endpoint}"),
        ("webhooks.enable", f"endpoint/{endpoint}"),
        ("webhooks.remove", f"endpoint/{endpoint}"),
        ("apps.set", "app/google/production/new"),
        ("apps.remove", "app/google/production/new"),
    ]
    assert rows[-1]["action"] == "accounts.import"
    assert rows[-1]["detail"] == {"created": 1, "reauthenticated": 0, "updated": 0}
    assert {row["host"] for row in rows} == {socket.gethostname()}
    assert all(row["actor"].startswith("operator:") for row in rows)
    assert not any(each in exported.stdout for each in ("planted", secret, added["secret"]))
    since = rows[-1]["at"]
    [last] = tokenfleet("audit", "list", "--since", since, "--json").document
    assert last["action"] == "accounts.import"
    before = tokenfleet("audit", "list", "--until", since, "--action", "apps.remove", "--json").document
    assert [row["target"] for row in before] == ["app/google/production/new"]
    assert tokenfleet("audit", "list", "--action", "apps.sett").exit_code == 2


def test_what_is_rolled_back_is_not_on_record(tokenfleet: Shell, engine: Engine, vault: Vault) -> None:
    account = str(make_account(engine, vault, make_app(engine, vault)))
    with engine.begin() as connection:
        connection.execute(
            text("ALTER TABLE tokenfleet.audit_log ADD CONSTRAINT ck_disk_full CHECK (host = 'x')")
        )
    with pytest.raises(DBAPIError):
        tokenfleet("accounts", "pause", account)
    assert column(engine, "SELECT status FROM tokenfleet.accounts") == ["active"]
    assert column(engine, "SELECT count(*) FROM tokenfleet.audit_log") == [0]


@pytest.mark.parametrize("statement", [*CHANGES, "TRUNCATE tokenfleet.audit_log"])
def test_nobody_changes_a_row_not_even_a_superuser(
    tokenfleet: Shell, engine: Engine, vault: Vault, statement: str
) -> None:
    tokenfleet("accounts", "pause", str(make_account(engine, vault, make_app(engine, vault))))
    for preparation in ("SELECT 1", "SET LOCAL session_replication_role = replica"):
        with engine.connect() as connection:
            connection.execute(text(preparation))
            with pytest.raises(DBAPIError, match="append-only"):
                connection.execute(text(statement))
    assert column(engine, "SELECT count(*) FROM tokenfleet.audit_log WHERE reason IS NULL") == [1]


def test_a_row_cannot_lie_about_when_and_over_which_role(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(
            text("""
                INSERT INTO tokenfleet.audit_log (at, actor, host, action, target, database_role, client_address)
                VALUES ('2020-01-01Z', 'a', 'h', 'x', 't', 'somebody', '192.0.2.1')
            """)
        )
    [row] = column(
        engine,
        "SELECT (at > now() - interval '1 hour', database_role = session_user, "
        "client_address IS DISTINCT FROM '192.0.2.1') = (true, true, true) FROM tokenfleet.audit_log",
    )
    assert row is True


@pytest.mark.parametrize("words", [("accounts", "pause", "1", "--reason"), ("audit", "list", "--target")])
def test_bytes_that_are_no_text_are_bad_input(
    tokenfleet: Shell, engine: Engine, vault: Vault, words: Sequence[str]
) -> None:
    make_account(engine, vault, make_app(engine, vault))
    ran = tokenfleet(*words, b"caf\xe9".decode("utf-8", "surrogateescape"))
    assert (ran.exit_code, "not UTF-8" in ran.stderr) == (2, True)
