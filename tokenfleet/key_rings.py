"""The key-encryption keys of this installation, from a file or the environment, or by name in a key service.

Promise: a key file that others can read, a malformed key, two keys of one name and one key in both rings are
told in a sentence each; no sentence repeats a key.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from pydantic import BaseModel, Field, ValidationError

from tokenfleet.key_services import aws_kms, vault_transit
from tokenfleet.key_services.aws_kms import AwsKmsKey
from tokenfleet.key_services.vault_transit import VaultAccess, VaultTransitKey
from tokenfleet_client.envelope import KeyEncryptionKey, KeyWrapper, Ring, check_key_id
from tokenfleet_client.errors import KeyMaterialError
from tokenfleet_client.secret import Secret


@dataclass(frozen=True, slots=True)
class KeyRing:
    """Key-encryption keys of one ring; ``primary`` wraps new data keys, the others only unwrap."""

    ring: Ring
    keys: Mapping[str, KeyWrapper] = field(default_factory=dict)
    primary: KeyWrapper | None = None

    @classmethod
    def of(cls, ring: Ring, keys: Sequence[KeyWrapper]) -> Self:
        """Return a ring whose first key is primary."""
        return cls(ring, {key.key_id: key for key in keys}, keys[0] if keys else None)


class _KeysFile(BaseModel):
    """What ``tokenfleet keys generate`` writes: of each ring the keys, the one that wraps first."""

    access: list[str] = Field(default_factory=list)
    refresh: list[str] = Field(default_factory=list)


def read_key_rings(environ: Mapping[str, str], path: Path, problems: list[str]) -> tuple[KeyRing, KeyRing]:
    """Return the access and the refresh ring: from the environment, else from the file at ``path``.

    Appends one sentence to ``problems`` for each mistake.
    """
    texts: dict[Ring, list[str]] = {Ring.ACCESS: [], Ring.REFRESH: []}
    if path.exists():
        _read_keys_file(path, texts, problems)
    elif environ.get("TOKENFLEET_KEYS_FILE"):
        problems.append(
            f"TOKENFLEET_KEYS_FILE is {path}, which does not exist: make it with 'tokenfleet keys generate'"
        )
    for ring in Ring:
        value = environ.get(f"TOKENFLEET_{ring.name}_KEYS")
        if value:
            texts[ring] = value.split(",")
    vault = _vault_access(environ)
    rings = {ring: KeyRing.of(ring, _parse_keys(ring, texts[ring], vault, problems)) for ring in Ring}
    access, refresh = (
        {material: key_id for key_id, _, material in (text.strip().partition(":") for text in texts[ring])}
        for ring in Ring
    )
    problems.extend(
        f"key {access[shared]!r} of the access ring is also in the refresh ring, so readers could open refresh "
        "tokens: give each ring keys of its own ('tokenfleet keys generate')"
        for shared in access.keys() & refresh.keys()
    )
    return rings[Ring.ACCESS], rings[Ring.REFRESH]


def _read_keys_file(path: Path, texts: dict[Ring, list[str]], problems: list[str]) -> None:
    try:
        if path.stat().st_mode & 0o077:
            problems.append(f"{path} can be read by others: run 'chmod 600 {path}'")
        content = _KeysFile.model_validate_json(path.read_bytes())
        texts |= {Ring.ACCESS: content.access, Ring.REFRESH: content.refresh}
    except (OSError, ValidationError):
        problems.append(
            f"{path} is not a readable key file (JSON with the lists 'access' and 'refresh'): restore it "
            "from your backup, or make a new one with 'tokenfleet keys generate' for a new installation"
        )


def _vault_access(environ: Mapping[str, str]) -> VaultAccess:
    token, token_file = environ.get("TOKENFLEET_VAULT_TOKEN"), environ.get("TOKENFLEET_VAULT_TOKEN_FILE")
    ca_file = environ.get("TOKENFLEET_VAULT_CA_FILE")
    return VaultAccess(
        token=Secret(token) if token else None,
        token_file=Path(token_file) if token_file else None,
        namespace=environ.get("TOKENFLEET_VAULT_NAMESPACE") or None,
        ca_file=Path(ca_file) if ca_file else None,
    )


def _parse_key(text: str, vault: VaultAccess) -> KeyWrapper:
    """Read ``id:base64`` or ``id:scheme://…``. Raises :class:`KeyMaterialError`."""
    key_id, _, address = text.strip().partition(":")
    scheme, separator, _ = address.partition("://")
    if not separator:
        return KeyEncryptionKey.parse(text)
    check_key_id(key_id)
    if scheme in vault_transit.SCHEMES:
        return VaultTransitKey.parse(key_id, address, vault)
    if scheme == aws_kms.SCHEME:
        return AwsKmsKey.parse(key_id, address)
    known = ", ".join(f"{each}://" for each in (*vault_transit.SCHEMES, aws_kms.SCHEME))
    raise KeyMaterialError(f"key {key_id!r} is in a key service that is not known: there are {known}")


def _parse_keys(ring: Ring, texts: list[str], vault: VaultAccess, problems: list[str]) -> list[KeyWrapper]:
    keys: list[KeyWrapper] = []
    for text in texts:
        try:
            keys.append(_parse_key(text, vault))
        except KeyMaterialError as error:
            problems.append(f"{ring.value} key ring: {error}")
    # The newer one wraps, and the other one would be found in its place when it is time to unwrap.
    problems.extend(
        f"{ring.value} key ring: {count} keys are named {key_id!r}: rename or remove all but one"
        for key_id, count in Counter(key.key_id for key in keys).items()
        if count > 1
    )
    return keys
