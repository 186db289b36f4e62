"""Masked by default: no command, whatever it is asked and however it fails, shows a secret (G6).

Secrets of every kind are planted, then every command of the tree is run: as it should be, with ``--json``, with
``--help``, with a mistake, with a database that does not answer and with settings that cannot be read. A command that
is added has to be added to :data:`COMMANDS`. What processes write, and their ``/metrics`` and ``/healthz`` while they
work, is looked through by ``tests/system/test_secrets.py``.
"""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import click
import pytest
from sqlalchemy import Engine, text
from sqlalchemy.engine import make_url

import tokenfleet_client
from cli.main import root
from store import apps
from store.import_line import ConnectAnswer, parse_json
from store.keys import Vault
from tests.cli.conftest import Ran, Shell
from tests.providers.definitions import toml
from tests.support.builders import answer, begin_attempt, make_due, now, park
from tests.support.pem import certificate_pem, ec_key, private_pem, rsa_key
from tests.support.sentinels import leaks
from tokenfleet.health import Health, HealthServer
from tokenfleet.jobs import AccountId
from tokenfleet.key_services.vault_transit import VaultAccess
from tokenfleet.sealed_files import Identity
from tokenfleet.settings import Settings
from tokenfleet_client.envelope import KeyEncryptionKey
from tokenfleet_client.secret import Secret
from workers.credentials import open_credentials

Path_ = tuple[str, ...]

ACCESS_TOKEN: Final = "sentinel-of-an-access-token"
REFRESH_TOKEN: Final = "sentinel-of-a-refresh-token"
CLIENT_SECRET: Final = "sentinel-of-a-client-secret"
SPARE_SECRET: Final = "sentinel-of-a-spare-client-secret"
PASSWORD: Final = "sentinel-of-a-password"
VAULT_TOKEN: Final = "sentinel-of-a-vault-token"

SHOWN_ONCE: Final[Mapping[Path_, str]] = {
    ("webhooks", "add"): "the receiver needs the secret that was made for it, and nobody else has it",
    ("webhooks", "rotate-secret"): "the receiver needs the new secret, and nobody else has it",
}
"""The commands that print a secret, once, when it is made; each leaves a row in the audit log. ``accounts export --to``
gives tokens away sealed. ``keys generate`` and ``keys recipient`` write keys to files of mode 0600 and print none; they
know no database, and leave no row."""

LONG_RUNNING: Final = {("demo",), ("up",), ("sandbox",), ("scheduler",), ("worker",)}
"""Run until they are stopped: here they are only asked for help and called wrongly."""

COMMANDS: Final[Mapping[Path_, tuple[str, ...]]] = {
    ("db", "upgrade"): ("",),
    ("db", "check"): ("",),
    ("keys", "generate"): (
        "--output {dir}/new.json --readers {dir}/readers.json",
        "--add --output {dir}/new.json",
    ),
    ("keys", "recipient"): ("--identity {dir}/identity.txt", "--identity {dir}/identity.txt"),
    ("keys", "status"): ("",),
    ("keys", "rotate"): ("--wait 0 --rate 0",),
    ("keys", "retire"): ("none",),
    ("providers", "list"): ("exa",),
    ("providers", "show"): ("example",),
    ("providers", "schema"): ("",),
    ("providers", "test"): ("none",),
    ("providers", "unknowns"): ("example",),
    ("providers", "validate"): ("{dir}/providers",),
    ("providers", "health"): ("plain",),
    ("apps", "set"): (
        "example --client-id c --client-secret-file {dir}/key.pem --client-certificate {dir}/client.pem",
        "plain --client-id c --client-secret-file {dir}/secret --keep-previous",
        # Mistakes that people make with secrets: in the place of a file, and the wrong file.
        "example --client-id c --client-secret-file {dir}/secret",
        "example --client-id c --client-secret-file {dir}/key.pem --client-certificate {dir}/key.pem",
        "example --client-id c --client-secret-file {dir}/tokens.jsonl",
    ),
    ("apps", "export"): ("--all --to {recipient} --output {dir}/apps", "--provider plain --to {recipient}"),
    ("apps", "import"): (
        "{dir}/apps --identity {dir}/identity.txt --replace",
        "{dir}/tokens.jsonl --identity {dir}/identity.txt",
        "{dir}/apps --identity {dir}/key.pem",
    ),
    ("apps", "list"): ("",),
    ("apps", "show"): ("plain", "example"),
    ("apps", "remove"): ("plain",),
    ("accounts", "import"): (
        "{dir}/tokens.jsonl",
        "{dir}/tokens.jsonl --dry-run --errors {dir}/errors.jsonl",
        "{dir}/tokens.jsonl --format csv",
        "{dir}/mistakes.jsonl",
        "{dir}/identity.txt",
        "{dir}/client.pem",
        "{dir}/tokens.jsonl --identity {dir}/identity.txt",
        "{dir}/sealed --identity {dir}/new.json",
    ),
    ("accounts", "list"): ("", "--status active"),
    ("accounts", "show"): ("1", "plain/customer-1"),
    ("accounts", "history"): ("1", "1 --full"),
    ("accounts", "export"): (
        "",
        "--masked --output {dir}/masked",
        "3 --to {recipient} --output {dir}/sealed",
        "2 --to {recipient} --keep-running",
        "--to AGE-SECRET-KEY-1NOTHING --all",
    ),
    ("accounts", "refresh"): ("1",),
    ("accounts", "pause"): ("1",),
    ("accounts", "resume"): ("1",),
    ("accounts", "revoke"): ("2 --yes --wait 0",),
    ("webhooks", "add"): (
        "http://127.0.0.1:1/hook",
        f"http://user:{PASSWORD}@127.0.0.1:1/hook",
    ),
    ("webhooks", "list"): ("",),
    ("webhooks", "test"): ("1",),
    ("webhooks", "deliveries"): ("", "--attempts"),
    ("webhooks", "replay"): ("--endpoint 1 --since 2026-01-01T00:00:00Z",),
    ("webhooks", "rotate-secret"): ("1",),
    ("webhooks", "disable"): ("1",),
    ("webhooks", "enable"): ("1",),
    ("webhooks", "remove"): ("1",),
    ("incidents", "list"): ("", "--all"),
    ("incidents", "show"): ("1",),
    ("incidents", "resolve"): ("1 --dismiss",),
    ("audit", "list"): ("",),
    ("audit", "export"): ("", "--output {dir}/audit.jsonl"),
    ("audit", "unsealings"): ("", "--export"),
    ("status",): ("",),
    ("doctor",): ("",),
}
"""What is run, in this order. What a command makes of it is another test's to judge: here it is what is printed."""

FAIL: Final = {
    ("keys", "retire"),
    ("providers", "test"),
    ("providers", "health"),
    ("apps", "remove"),
    ("webhooks", "test"),
    ("status",),
    ("doctor",),
}
"""Those that have nothing good to say: no process of this fleet runs, its receiver is away, its keys are in use."""


def leaves() -> Iterator[tuple[Path_, click.Command]]:
    """Yield every command that is no group, with the words that call it."""

    def walk(
        command: click.Command, context: click.Context, path: Path_
    ) -> Iterator[tuple[Path_, click.Command]]:
        if not isinstance(command, click.Group):
            yield path, command
            return
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from walk(below, click.Context(below, info_name=name, parent=context), (*path, name))

    return walk(root, click.Context(root), ())


def test_every_command_is_looked_at() -> None:
    assert {path for path, _ in leaves()} == COMMANDS.keys() | LONG_RUNNING
    assert SHOWN_ONCE.keys() <= COMMANDS.keys()


@dataclass
class Planted:
    """A fleet full of secrets. ``printed`` is what commands have shown, by what was asked."""

    shell: Shell
    directory: Path
    recipient: str
    sentinels: dict[str, str]
    printed: dict[str, bytes] = field(default_factory=dict)

    def run(self, *words: str, **environ: str) -> Ran:
        ran = self.shell(*words, **environ)
        assert ran.exit_code in {0, 1, 2}, (words, ran)
        place = f"{' '.join(words)} {' '.join(environ)} ({len(self.printed)})"
        self.printed[place] = ran.stdout.encode(errors="surrogateescape") + ran.stderr.encode()
        return ran


def body(pem: str) -> str:
    """Return a line out of the middle of a private key."""
    return pem.split("PRIVATE KEY-----")[1].split("\n")[3]


@pytest.fixture
def planted(tokenfleet: Shell, engine: Engine, vault: Vault, tmp_path: Path) -> Planted:
    """Tokens, registrations, keys, passwords: of every kind one, and files that hold them."""
    (tmp_path / "providers").mkdir()
    signs = '[assertion]\nalgorithm = "RS256"\naudience = "https://auth.example.com"\n'
    of_bank = toml(signs, client='authentication = "private_key_jwt"\ncertificate = true')
    (tmp_path / "providers" / "example.toml").write_text(of_bank)
    (tmp_path / "providers" / "plain.toml").write_text(toml().replace('"example"', '"plain"'))
    key, certified = private_pem(rsa_key()), private_pem(ec_key())
    files = {
        "key.pem": key,
        "client.pem": certificate_pem(ec_key(), subject="acme", days=90) + certified,
        "secret": CLIENT_SECRET,
        "spare": SPARE_SECRET,
        "tokens.jsonl": "".join(
            json.dumps(
                {
                    "provider": "plain",
                    "external_id": f"customer-{number}",
                    "refresh_token": f"{REFRESH_TOKEN}-{number}",
                    "access_token": f"{ACCESS_TOKEN}-{number}",
                }
            )
            + "\n"
            for number in (1, 2, 3)
        ),
        "mistakes.jsonl": "\n".join(
            json.dumps(line)
            for line in (
                {"provider": "plain", "external_id": 5, "refresh_token": REFRESH_TOKEN},
                {"provider": REFRESH_TOKEN, "external_id": "a", "refresh_token": "b"},
                {"provider": "plain", "external_id": "a", REFRESH_TOKEN: "b"},
                {"provider": "plain", "external_id": "a", "refresh_token": [REFRESH_TOKEN]},
                {"provider": "plain", "external_id": "a", "app": ACCESS_TOKEN, "refresh_token": "b"},
                {"provider": "plain", "external_id": "a", "answer": {"access_token": ACCESS_TOKEN}},
            )
        ),
    }
    for name, content in files.items():
        (tmp_path / name).write_text(content)
        (tmp_path / name).chmod(0o600)
    home = Path(tokenfleet.environ["TOKENFLEET_HOME"])
    rings = json.loads((home / "keys.json").read_text())
    url = make_url(tokenfleet.environ["TOKENFLEET_DATABASE_URL"])
    # Roles may log in without it here, but it is in the URL all the same.
    tokenfleet.environ |= {
        "TOKENFLEET_DATABASE_URL": url.set(password=url.password or PASSWORD).render_as_string(
            hide_password=False
        ),
        "TOKENFLEET_BROKER_URL": f"amqp://user:{PASSWORD}@127.0.0.1:1//",
        "TOKENFLEET_VAULT_TOKEN": VAULT_TOKEN,
        "TOKENFLEET_PROVIDERS_DIR": str(tmp_path / "providers"),
        "TOKENFLEET_ALLOW_PRIVATE_WEBHOOKS": "true",
    }
    for file in ("spare", "secret"):
        words = f"apps set plain --client-id c --client-secret-file {tmp_path / file} --keep-previous"
        assert tokenfleet(*words.split()).exit_code == 0
    assert tokenfleet("accounts", "import", str(tmp_path / "tokens.jsonl")).exit_code == 0
    _fail_an_attempt(engine)
    made = tokenfleet("keys", "recipient", "--identity", str(tmp_path / "identity.txt"))
    identity = Identity.read(tmp_path / "identity.txt")
    sentinels = {
        "an access token": ACCESS_TOKEN,
        "a refresh token": REFRESH_TOKEN,
        "a client secret": CLIENT_SECRET,
        "a spare client secret": SPARE_SECRET,
        "a signing key": body(key),
        "the key of a client certificate": body(certified)[:20],
        "a password": PASSWORD,
        "the password of Postgres": urlsplit(str(url)).password or PASSWORD,
        "the token of a key service": VAULT_TOKEN,
        "an identity": identity.secret.reveal(),
        **{f"the {ring} key": keys[0].partition(":")[2] for ring, keys in rings.items()},
    }
    if url.password:
        sentinels["the password of Postgres"] = url.password
    return Planted(tokenfleet, tmp_path, made.stdout.strip(), sentinels)


def _fail_an_attempt(engine: Engine) -> None:
    """Let an account have something to tell in its history."""
    with engine.begin() as connection:
        connection.execute(
            text(
                "UPDATE tokenfleet.refresh_schedule SET failing_since = now(), last_error = 'invalid_request', "
                "attempts = 2 WHERE account_id = 1"
            )
        )
        app_id = connection.execute(text("SELECT app_id FROM tokenfleet.accounts WHERE id = 2")).scalar_one()
        park(connection, app_id)


def test_no_command_shows_a_secret_but_those_that_make_one_for_somebody(
    planted: Planted, engine: Engine
) -> None:
    commands, failed = dict(leaves()), list[Path_]()
    away = f"postgresql://user:{PASSWORD}@127.0.0.1:1/none"
    unreadable = f"postgresql://user:{PASSWORD}@host:port/none"
    for path, calls in (*COMMANDS.items(), *((path, ("",)) for path in sorted(LONG_RUNNING))):
        planted.run(*path, "--help")
        assert planted.run(*path, "--nonsense").exit_code == 2
        has_json = any(option.name == "as_json" for option in commands[path].params)
        for number, call in enumerate(calls):
            words = (*path, *call.format(dir=planted.directory, recipient=planted.recipient).split())
            if path in LONG_RUNNING:
                if path in {("scheduler",), ("worker",)}:
                    assert planted.run(*words, TOKENFLEET_DATABASE_URL=unreadable).exit_code == 1
                continue
            done = planted.run(*words)
            if number == 0 and done.exit_code:
                failed.append(path)
            if has_json:
                planted.run(*words, "--json")
            if number == 0:
                planted.run(
                    *words,
                    TOKENFLEET_DATABASE_URL=away,
                    TOKENFLEET_REDIS_URL=f"redis://:{PASSWORD}@127.0.0.1:1",
                )
                planted.run(
                    *words, TOKENFLEET_DATABASE_URL=unreadable, TOKENFLEET_REFRESH_KEYS=f"key:{PASSWORD}"
                )
    assert set(failed) <= FAIL, "what does not run shows nothing: mend the call"
    planted.printed["files that were made to be read"] = b"".join(
        (planted.directory / name).read_bytes()
        for name in ("masked", "errors.jsonl", "audit.jsonl", "sealed", "apps")
    )
    made = {
        f"a secret of {place}": secret
        for place, shown in planted.printed.items()
        if place.startswith(tuple(" ".join(path) for path in SHOWN_ONCE))
        for secret in re.findall(r"whsec_[A-Za-z0-9+/=]+", shown.decode())
    }
    written = re.findall(r'"[^":]+:([^"]+)"', (planted.directory / "new.json").read_text())
    planted.sentinels |= {f"a new key {number}": key for number, key in enumerate(written)}
    assert len(written) == 4
    assert leaks(planted.sentinels, planted.printed) == []

    # A secret is shown by the call that made it, and by none that came later.
    assert len(made) == 4
    for name, secret in made.items():
        shown_by = [place for place, shown in planted.printed.items() if secret.encode() in shown]
        assert [f"a secret of {place}" for place in shown_by] == [name]
    with engine.connect() as connection:
        recorded = connection.execute(
            text(
                "SELECT action, count(*) AS times FROM tokenfleet.audit_log "
                "WHERE action IN ('webhooks.add', 'webhooks.rotate-secret', 'accounts.export') GROUP BY 1"
            )
        ).all()
        assert {row.action: row.times for row in recorded} == {
            "webhooks.add": 2,
            "webhooks.rotate-secret": 2,
            "accounts.export": 2,
        }


def test_nothing_that_holds_a_secret_shows_it_when_it_is_printed(
    planted: Planted, engine: Engine, vault: Vault
) -> None:
    settings = Settings.from_environ(planted.shell.environ)
    make_due(engine, AccountId(1))
    with engine.connect() as connection:
        app = apps.find(connection, "plain", "production", "default")
    assert app is not None
    attempt = begin_attempt(engine, app.app_id, AccountId(1))
    line = parse_json((planted.directory / "tokens.jsonl").read_bytes().splitlines()[0], now=now())
    ring = next(iter(settings.refresh_ring.keys.values()))
    holders = {
        "settings": settings,
        "shown settings": settings.shown() if hasattr(settings, "shown") else "",
        "vault": vault,
        "ring": settings.refresh_ring,
        "key": ring,
        "app": app,
        "attempt": attempt,
        "answer": answer(vault, AccountId(1), epoch=1, generation=1, refresh_token=REFRESH_TOKEN),
        "line": line,
        "connect answer": ConnectAnswer({"access_token": ACCESS_TOKEN}),
        "identity": Identity.read(planted.directory / "identity.txt"),
        "credentials": open_credentials(vault, app),
        "key service": VaultAccess(token=Secret(VAULT_TOKEN), token_file=None, namespace=None, ca_file=None),
        "secret": Secret(REFRESH_TOKEN),
    }
    printed = {name: f"{holder!r} {holder} {[holder]}".encode() for name, holder in holders.items()}
    assert leaks(planted.sentinels, printed) == []


def test_metrics_and_health_show_no_secret(planted: Planted) -> None:
    planted.run(
        "accounts", "export", "--all", "--to", planted.recipient, "--output", str(planted.directory / "f")
    )
    server = HealthServer("127.0.0.1", 0, lambda: Health(hampering=("Redis does not answer",)))
    try:
        shown = {
            path: urllib.request.urlopen(f"http://127.0.0.1:{server.port}{path}").read()
            for path in ("/metrics", "/healthz")
        }
    finally:
        server.stop()
    assert b"tokenfleet_incidents_open" in shown["/metrics"]
    assert leaks(planted.sentinels, shown) == []


def test_public_names_of_the_client_print_no_key() -> None:
    key = KeyEncryptionKey.generate("key-1")
    material = key.export().partition(":")[2]
    wrapped = tokenfleet_client.WrappedKey(
        1, tokenfleet_client.Ring.ACCESS, "key-1", key.wrap(bytes(32), tokenfleet_client.Ring.ACCESS, 1), True
    )
    opened = tokenfleet_client.unwrap_ring(tokenfleet_client.Ring.ACCESS, [wrapped], {"key-1": key})
    for holder in (key, wrapped, opened):
        assert (
            leaks(
                {"the key": material, "the data key": bytes(32).hex()},
                {"it": f"{holder!r} {holder}".encode()},
            )
            == []
        )
