"""``audit list|export``, and that every command which changes something is in it."""

from __future__ import annotations

import json
import socket
from typing import Final

import click
import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError

from cli.main import root
from store.audit import Action
from store.keys import Vault
from tests.cli.conftest import Shell
from tests.support.builders import column, make_account, make_app, park
from tokenfleet_client.contract import AccountStatus

UNRECORDED: Final = frozenset(
    # These read.
    "accounts.list accounts.show accounts.history apps.list apps.show audit.export audit.list db.check doctor "
    "audit.unsealings incidents.list incidents.show keys.retire keys.status "
    "providers.list providers.show providers.schema providers.health "
    "providers.test "
    "providers.unknowns providers.validate status webhooks.deliveries webhooks.list "
    # These touch no database of a fleet, or are the fleet.
    "demo keys.generate sandbox scheduler up worker".split()
)
CHANGES: Final = "UPDATE tokenfleet.audit_log SET reason = 'x'", "DELETE FROM tokenfleet.audit_log"


def _commands(group: click.Group, prefix: str = "") -> set[str]:
    context = click.Context(group)
    found: set[str] = set()
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        path = f"{prefix}{name}"
        found |= _commands(command, f"{path}.") if isinstance(command, click.Group) else {path}
    return found


def test_a_command_only_reads_or_its_action_has_a_name() -> None:
    """Whoever adds a command decides here which of the two it is."""
    assert _commands(root) - UNRECORDED == {action.value for action in Action}


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
