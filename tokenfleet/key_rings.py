"""The key-encryption keys of this installation, from a file or the environment.

Promise: a key file that others can read, a malformed key, two keys of one name and one key in both rings are
told in a sentence each; no sentence repeats a key.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from pydantic import BaseModel, Field, ValidationError

from tokenfleet_client.envelope import KeyEncryptionKey, Ring
from tokenfleet_client.errors import KeyMaterialError


@dataclass(frozen=True, slots=True)
class KeyRing:
    """Key-encryption keys of one ring; ``primary`` wraps new data keys, the others only unwrap."""

    ring: Ring
    keys: Mapping[str, KeyEncryptionKey] = field(default_factory=dict)
    primary: KeyEncryptionKey | None = None

    @classmethod
    def of(cls, ring: Ring, keys: list[KeyEncryptionKey]) -> Self:
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
    rings = {ring: KeyRing.of(ring, _parse_keys(ring, texts[ring], problems)) for ring in Ring}
    access, refresh = (
        {key.export().partition(":")[2]: key.key_id for key in rings[ring].keys.values()} for ring in Ring
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


def _parse_keys(ring: Ring, texts: list[str], problems: list[str]) -> list[KeyEncryptionKey]:
    keys: list[KeyEncryptionKey] = []
    for text in texts:
        try:
            keys.append(KeyEncryptionKey.parse(text))
        except KeyMaterialError as error:
            problems.append(f"{ring.value} key ring: {error}")
    # The newer one wraps, and the other one would be found in its place when it is time to unwrap.
    problems.extend(
        f"{ring.value} key ring: {count} keys are named {key_id!r}: rename or remove all but one"
        for key_id, count in Counter(key.key_id for key in keys).items()
        if count > 1
    )
    return keys
