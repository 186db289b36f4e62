"""A key-encryption key in HashiCorp Vault's Transit engine (or OpenBao's), asked over its HTTP API.

Written ``id:vault://host[:port]/mount/key`` in the key list, ``vault+http`` where an agent on this machine speaks plain
HTTP. What is wrapped is Vault's own ciphertext (``vault:v3:…``), bound to ring and data key id as associated data,
which Vault knows since 1.13 for its AEAD key types.

Promise: what Vault says of a ciphertext is an :class:`EnvelopeError`, everything else (away, sealed, standby, token
refused) is :class:`KeyServiceUnavailable` in one sentence; no sentence repeats a token or key.
"""

from __future__ import annotations

import base64
import ipaddress
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import urlsplit

from tokenfleet_client.envelope import Ring, not_wrapped_by, wrapping_data
from tokenfleet_client.errors import EnvelopeError, KeyMaterialError, KeyServiceUnavailable
from tokenfleet_client.secret import Secret

SCHEMES: Final = ("vault", "vault+http")
TIMEOUT_SECONDS: Final = 5.0
_PATH: Final = re.compile(r"/(?P<mount>[A-Za-z0-9._/-]+)/(?P<key>[A-Za-z0-9._-]+)")
_NO_SUCH_KEY: Final = "encryption key not found"
"""How Vault and OpenBao say so, with status 400 and nothing else to tell it by."""
_CIPHERTEXT: Final = re.compile(r"vault:v(?P<version>[0-9]+):[A-Za-z0-9+/=]+")


@dataclass(frozen=True, slots=True)
class VaultAccess:
    """How this process is let in. ``token_file`` is read at every call, for an agent renews it; it goes before
    ``token``. With neither, an agent on the way adds its own."""

    token: Secret | None = field(default=None, repr=False)
    token_file: Path | None = None
    namespace: str | None = None
    ca_file: Path | None = None


@dataclass(frozen=True, slots=True)
class VaultTransitKey:
    """One key of one Transit engine."""

    key_id: str
    origin: str
    mount: str
    name: str
    access: VaultAccess

    @classmethod
    def parse(cls, key_id: str, url: str, access: VaultAccess) -> Self:
        """Read ``vault://host[:port]/mount/key``. Raises :class:`KeyMaterialError`."""
        try:
            parts = urlsplit(url)
            host, port = parts.hostname or "", parts.port
        except ValueError:
            raise KeyMaterialError(f"key {key_id!r} has an address that cannot be read") from None
        path = _PATH.fullmatch(parts.path)
        if not host or path is None or parts.query or parts.fragment or "@" in parts.netloc:
            raise KeyMaterialError(
                f"key {key_id!r} must be written {key_id}:vault://host:8200/mount/key, without a token: that goes "
                "into TOKENFLEET_VAULT_TOKEN_FILE or TOKENFLEET_VAULT_TOKEN"
            )
        if parts.scheme == "vault+http" and not _is_loopback(host):
            raise KeyMaterialError(
                f"key {key_id!r} would send data keys and the Vault token over plain HTTP to {host}: write vault:// "
                "for HTTPS; vault+http:// is for an agent on this machine"
            )
        scheme = "http" if parts.scheme == "vault+http" else "https"
        shown = f"[{host}]" if ":" in host else host
        origin = f"{scheme}://{shown}" + (f":{port}" if port is not None else "")
        return cls(key_id, origin, path["mount"], path["key"], access)

    def wrap(self, data_key: bytes, ring: Ring, data_key_id: int) -> bytes:
        """Return Vault's ciphertext of ``data_key``. Raises :class:`KeyServiceUnavailable`."""
        answer = self._ask(
            "POST",
            "encrypt",
            {"plaintext": _encoded(data_key), "associated_data": _encoded(wrapping_data(ring, data_key_id))},
        )
        ciphertext = None if answer is None else answer.get("ciphertext")
        if not isinstance(ciphertext, str) or not _CIPHERTEXT.fullmatch(ciphertext):
            raise self._unavailable("did not wrap the data key: is its type aes256-gcm96?")
        return ciphertext.encode()

    def unwrap(self, wrapped: bytes, ring: Ring, data_key_id: int) -> bytes:
        """Return the data key. Raises :class:`EnvelopeError` and :class:`KeyServiceUnavailable`."""
        if not _CIPHERTEXT.fullmatch(wrapped.decode("ascii", "replace")):
            raise not_wrapped_by(self.key_id, ring, data_key_id)
        answer = self._ask(
            "POST",
            "decrypt",
            {"ciphertext": wrapped.decode(), "associated_data": _encoded(wrapping_data(ring, data_key_id))},
        )
        if answer is None:
            raise not_wrapped_by(self.key_id, ring, data_key_id)
        try:
            return base64.b64decode(answer["plaintext"], validate=True)
        except (KeyError, TypeError, ValueError):
            raise self._unavailable("answered without the data key") from None

    def is_outdated(self, wrapped: bytes) -> bool:
        """Answer whether Vault has a newer version of the key. Raises :class:`KeyServiceUnavailable`.

        A token that may not read the key's versions cannot tell, and answers False.
        """
        found = _CIPHERTEXT.fullmatch(wrapped.decode("ascii", "replace"))
        if found is None:
            raise EnvelopeError(f"what key {self.key_id!r} is to have wrapped is none of Vault's ciphertexts")
        answer = self._ask("GET", "keys", None, may_be_forbidden=True)
        latest = None if answer is None else answer.get("latest_version")
        return isinstance(latest, int) and int(found["version"]) < latest

    def _ask(
        self, method: str, operation: str, document: dict[str, str] | None, *, may_be_forbidden: bool = False
    ) -> dict[str, Any] | None:
        """Return the ``data`` of Vault's answer; None when it refuses what it was given (status 400)."""
        import httpx

        headers = {"X-Vault-Request": "true"}
        if (token := self._token()) is not None:
            headers["X-Vault-Token"] = token.reveal()
        if self.access.namespace:
            headers["X-Vault-Namespace"] = self.access.namespace
        url = f"{self.origin}/v1/{self.mount}/{operation}/{self.name}"
        try:
            # Without the proxies of the environment: a data key is in the answer.
            with httpx.Client(verify=self._trusted(), timeout=TIMEOUT_SECONDS, trust_env=False) as client:
                answer = client.request(method, url, headers=headers, json=document)
                content = answer.json() if answer.content else {}
        except httpx.HTTPError as error:
            raise self._unavailable(f"does not answer ({type(error).__name__})") from error
        except ValueError as error:
            raise self._unavailable("answers with something other than JSON: is there a Vault?") from error
        if answer.status_code == 400:
            if isinstance(content, dict) and _NO_SUCH_KEY in (content.get("errors") or ()):
                # Deleted, or another Vault: nothing was said of the ciphertext.
                raise self._unavailable(f"knows no key {self.name!r} below {self.mount!r}")
            return None
        if answer.status_code == 403:
            if may_be_forbidden:
                return None
            raise self._unavailable(
                f"refuses this process's token for {operation} (403): give it a policy with 'update' on "
                f"{self.mount}/encrypt/{self.name} and {self.mount}/decrypt/{self.name}, or renew it"
            )
        if answer.status_code == 404:
            raise self._unavailable(f"knows no key {self.name!r} below {self.mount!r} (404)")
        data = content.get("data") if isinstance(content, dict) else None
        if answer.status_code != 200 or not isinstance(data, dict):
            raise self._unavailable(f"answers with status {answer.status_code}: is it sealed or a standby?")
        return data

    def _token(self) -> Secret | None:
        if self.access.token_file is None:
            return self.access.token
        try:
            return Secret(self.access.token_file.read_text().strip())
        except (OSError, UnicodeDecodeError) as error:
            raise self._unavailable(
                f"cannot be asked: the token file {self.access.token_file} cannot be read"
            ) from error

    def _trusted(self) -> Any:
        import ssl

        if self.origin.startswith("http://"):
            # An agent on this machine: no TLS, whose certificates would take a tenth of a second to load.
            return False
        try:
            return ssl.create_default_context(cafile=self.access.ca_file)
        except OSError as error:
            raise self._unavailable(
                f"cannot be asked: {self.access.ca_file} holds no certificates that can be read"
            ) from error

    def _unavailable(self, what: str) -> KeyServiceUnavailable:
        return KeyServiceUnavailable(f"Vault at {self.origin}, which keeps key {self.key_id!r}, {what}")


def _encoded(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
