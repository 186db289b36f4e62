"""HashiCorp Vault's Transit engine as its API documents it, on loopback: the part that wraps keys.

It encrypts for real (AES-256-GCM with associated data and key versions), checks the token, the path and the versions
that are allowed, and can be sealed, or go away and come back on the same port.
"""

from __future__ import annotations

import base64
import json
import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from types import TracebackType
from typing import Any, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

TOKEN = "a-token-for-tests"


class _Refused(Exception):
    def __init__(self, status: int, *errors: str) -> None:
        super().__init__(*errors)
        self.status = status


class VaultServer:
    """One Transit engine mounted at ``transit``. ``asked`` is the ledger: method and path."""

    def __init__(self, *names: str) -> None:
        self.keys: dict[str, list[bytes]] = {name: [os.urandom(32)] for name in names}
        self.min_decryption_version = 1
        self.token = TOKEN
        self.sealed = False
        self.asked: list[tuple[str, str]] = []
        self._port = 0
        self._server: ThreadingHTTPServer | None = None

    def __enter__(self) -> Self:
        self.come()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.go()

    def come(self) -> None:
        """Listen, on the same port as before."""
        vault = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                self.reply(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def do_GET(self) -> None:
                self.reply({})

            def reply(self, given: dict[str, str]) -> None:
                vault.asked.append((self.command, self.path))
                try:
                    token = self.headers.get("X-Vault-Token", "")
                    document: dict[str, Any] = {"data": vault.answer(self.command, self.path, token, given)}
                    status = 200
                except _Refused as refused:
                    status, document = refused.status, {"errors": list(refused.args)}
                content = json.dumps(document).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: Any) -> None:
                """Tests print nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), Handler)
        self._port = self._server.server_port
        Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def go(self) -> None:
        """Stop listening: who asks now is refused the connection."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def address(self, key_id: str, name: str) -> str:
        """Return how a key list names one of its keys."""
        return f"{key_id}:vault+http://127.0.0.1:{self._port}/transit/{name}"

    def rotate(self, name: str) -> None:
        """Make a new version of a key."""
        self.keys[name].append(os.urandom(32))

    def answer(self, method: str, path: str, token: str, given: dict[str, str]) -> dict[str, Any]:
        """Return the ``data`` of an answer."""
        if self.sealed:
            raise _Refused(503, "Vault is sealed")
        parts = path.split("/")
        if token != self.token or parts[:3] != ["", "v1", "transit"] or len(parts) != 5:
            raise _Refused(403, "permission denied")
        operation, name = parts[3:]
        versions = self.keys.get(name)
        if (method, operation) == ("GET", "keys"):
            if versions is None:
                raise _Refused(404)
            return {"name": name, "type": "aes256-gcm96", "latest_version": len(versions)}
        if versions is None:
            raise _Refused(400, "encryption key not found")
        bound = base64.b64decode(given.get("associated_data", ""))
        if operation == "encrypt":
            sealed = self._seal(versions, base64.b64decode(given["plaintext"], validate=True), bound)
            return {"ciphertext": sealed, "key_version": len(versions)}
        if operation == "decrypt":
            opened = self._open(versions, given["ciphertext"], bound)
            return {"plaintext": base64.b64encode(opened).decode()}
        if operation == "rewrap":
            opened = self._open(versions, given["ciphertext"], bound)
            return {"ciphertext": self._seal(versions, opened, bound), "key_version": len(versions)}
        raise _Refused(404)

    def _seal(self, versions: list[bytes], plaintext: bytes, bound: bytes) -> str:
        nonce = os.urandom(12)
        sealed = nonce + AESGCM(versions[-1]).encrypt(nonce, plaintext, bound)
        return f"vault:v{len(versions)}:{base64.b64encode(sealed).decode()}"

    def _open(self, versions: list[bytes], ciphertext: str, bound: bytes) -> bytes:
        prefix, version, body = ciphertext.split(":")
        number = int(version.removeprefix("v"))
        if prefix != "vault" or not 1 <= number <= len(versions):
            raise _Refused(400, "invalid ciphertext: no prefix")
        if number < self.min_decryption_version:
            raise _Refused(400, "ciphertext or signature version is disallowed by policy (too old)")
        sealed = base64.b64decode(body, validate=True)
        try:
            return AESGCM(versions[number - 1]).decrypt(sealed[:12], sealed[12:], bound)
        except InvalidTag:
            raise _Refused(400, "cipher: message authentication failed") from None
