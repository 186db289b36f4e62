"""The whole path with an authorization server that this project did not write (``tests/support``).

Customers connect by the server's own flow, an operator writes a definition and imports what came of it, the
fleet keeps the tokens fresh, and a reader that holds the access ring alone uses them at that server.
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import psycopg
import pytest

from tests.support.fleet import eventually
from tests.support.foreign_server import (
    CLIENT_ID,
    CLIENT_SECRET,
    PROVIDER,
    REDIRECT_URI,
    SCOPE,
    ForeignServer,
)
from tests.support.processes import SCHEDULER, WORKER, processes
from tokenfleet.settings import Settings
from tokenfleet_client import KeyEncryptionKey, Ring, WrappedKey, access_token_binding, unwrap_ring

LIFETIME = 6
LIFETIMES = 3
CUSTOMERS = ("ada", "barbara", "grace", "hedy", "margaret")


@pytest.fixture
def server() -> Iterator[ForeignServer]:
    with ForeignServer(lifetime_seconds=LIFETIME) as server:
        yield server


def sign_in(browser: httpx.Client, server: ForeignServer, customer: str) -> dict[str, Any]:
    """Connect one customer: authorization code grant with PKCE (RFC 7636); return the token response."""
    verifier, state = secrets.token_urlsafe(48), secrets.token_urlsafe(16)
    digest = hashlib.sha256(verifier.encode()).digest()
    asked = {
        "response_type": "code",
        "client_id": CLIENT_ID,
        "redirect_uri": REDIRECT_URI,
        "scope": SCOPE,
        "state": state,
        "code_challenge": base64.urlsafe_b64encode(digest).decode().rstrip("="),
        "code_challenge_method": "S256",
    }
    page = browser.get(f"{server.url}/authorize", params=asked)
    assert page.status_code == 200, page.text
    consented = browser.post(f"{server.url}/authorize", params=asked, data={"username": customer})
    assert consented.status_code == 302, consented.text
    location = urlsplit(consented.headers["Location"])
    assert f"{location.scheme}://{location.netloc}{location.path}" == REDIRECT_URI
    returned = parse_qs(location.query)
    assert returned["state"] == [state]
    answer = browser.post(
        f"{server.url}/token",
        auth=(CLIENT_ID, CLIENT_SECRET.reveal()),
        data={
            "grant_type": "authorization_code",
            "code": returned["code"][0],
            "redirect_uri": REDIRECT_URI,
            "code_verifier": verifier,
        },
    )
    assert answer.status_code == 200, answer.text
    response: dict[str, Any] = answer.json()
    return response


def command(environ: dict[str, str], *words: str, given: str) -> str:
    """Run a ``tokenfleet`` command with ``given`` on its standard input; return what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "cli", *words],
        env=environ,
        input=given,
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


class Reader:
    """A service that reads tokens as the documentation says: the contract's views and the access ring."""

    def __init__(self, database: psycopg.Connection[Any], keys_file: Path) -> None:
        kek = KeyEncryptionKey.parse(json.loads(keys_file.read_text())["access"][0])
        rows = database.execute(
            "SELECT data_key_id, kek_id, wrapped, is_primary FROM tokenfleet_v1.access_keys"
        )
        wrapped = [WrappedKey(key, Ring.ACCESS, kek_id, data, primary) for key, kek_id, data, primary in rows]
        self._keys = unwrap_ring(Ring.ACCESS, wrapped, {kek.key_id: kek})
        self._database = database

    def tokens(self) -> dict[str, str]:
        """Return the access token of every customer."""
        rows = self._database.execute(
            "SELECT external_id, account_id, access_token, generation FROM tokenfleet_v1.access_tokens "
            "WHERE provider = %s AND status = 'active'",
            [PROVIDER],
        )
        return {
            customer: self._keys.open(sealed, access_token_binding(account_id, generation))
            for customer, account_id, sealed, generation in rows
        }


def test_the_fleet_keeps_accounts_of_a_foreign_server_fresh(
    server: ForeignServer, environ: dict[str, str], settings: Settings, tmp_path: Path
) -> None:
    Path(environ["TOKENFLEET_PROVIDERS_DIR"], "foreign.toml").write_text(server.definition())
    registered = ("apps", "set", PROVIDER, "--client-id", CLIENT_ID, "--client-secret-file", "-")
    command(environ, *registered, given=CLIENT_SECRET.reveal())
    with (
        processes(environ, tmp_path) as run,
        httpx.Client(trust_env=False) as http,
        psycopg.connect(settings.database_url.replace("+psycopg", ""), autocommit=True) as database,
    ):
        run.fleet(SCHEDULER, WORKER)
        lines = [
            json.dumps(
                {"provider": PROVIDER, "external_id": customer}
                | {name: value for name, value in sign_in(http, server, customer).items() if value}
            )
            for customer in CUSTOMERS
        ]
        command(environ, "accounts", "import", "-", given="\n".join(lines))
        reader = Reader(database, settings.home / "keys.json")
        used: dict[str, set[str]] = {customer: set() for customer in CUSTOMERS}
        ends = time.monotonic() + LIFETIMES * LIFETIME
        while time.monotonic() < ends:
            for customer, token in reader.tokens().items():
                answer = http.get(f"{server.url}/me", headers={"Authorization": f"Bearer {token}"})
                assert (answer.status_code, answer.text) == (200, answer.text), customer
                assert answer.json() == {"sub": customer}
                used[customer].add(token)
            time.sleep(0.1)
        eventually(lambda: set(reader.tokens()) == set(CUSTOMERS))
        run.end()
    assert set(server.presented) == set(server.accepted) == {1}, "no refresh token was presented twice"
    for customer in CUSTOMERS:
        assert server.rotations(customer) >= 2 * LIFETIMES
        assert len(used[customer]) >= 2 * LIFETIMES
