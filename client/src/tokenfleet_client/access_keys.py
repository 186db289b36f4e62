"""The keys that open access tokens: where they are configured, and which of the fleet's data keys they have opened.

Promise: only the access ring is read, even from a file that holds the other one as well. No message repeats a key.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from tokenfleet_client.envelope import DataKeys, KeyEncryptionKey, KeyWrapper, Ring, WrappedKey, unwrap_ring
from tokenfleet_client.errors import EnvelopeError, KeyMaterialError
from tokenfleet_client.unsealings import Openings

KEYS_VARIABLE: Final = "TOKENFLEET_ACCESS_KEYS"
FILE_VARIABLE: Final = "TOKENFLEET_KEYS_FILE"
RELOAD_SECONDS: Final = 1.0
"""A value under an unknown key loads the data keys anew, for they rotate; a damaged one must not do so all the time."""


def keys_from_environ(environ: Mapping[str, str]) -> list[KeyEncryptionKey]:
    """Return the key-encryption keys in ``TOKENFLEET_ACCESS_KEYS``, or else in the file ``TOKENFLEET_KEYS_FILE``.

    The variable holds ``id:base64``, several with commas between them; the file is JSON with a list ``access`` of
    these. Raises :class:`KeyMaterialError` when there are none, or one is malformed or in a key service.
    """
    texts = [text for text in environ.get(KEYS_VARIABLE, "").split(",") if text.strip()]
    path = environ.get(FILE_VARIABLE)
    if not texts and path:
        texts = _read_file(Path(path))
    if not texts:
        raise KeyMaterialError(
            f"there is no key to open access tokens with: set {KEYS_VARIABLE} or {FILE_VARIABLE}, or give keys="
        )
    for text in texts:
        key_id, _, address = text.strip().partition(":")
        if "://" in address:
            raise KeyMaterialError(
                f"key-encryption key {key_id[:32]!r} is in a key service: give an object that unwraps with it as keys="
            )
    return [KeyEncryptionKey.parse(text) for text in texts]


def _read_file(path: Path) -> list[str]:
    try:
        content = json.loads(path.read_bytes())
        texts = content["access"]
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise TypeError
    except (OSError, ValueError, KeyError, TypeError):
        raise KeyMaterialError(
            f"{FILE_VARIABLE} is {path}, which is not a readable key file: JSON with the list 'access'"
        ) from None
    return texts


class AccessKeys:
    """The data keys that were unwrapped so far."""

    def __init__(self, keys: Iterable[KeyWrapper]) -> None:
        self._wrappers = {key.key_id: key for key in keys}
        self._ring: DataKeys | None = None
        self._may_load_at = 0.0

    def __repr__(self) -> str:
        return f"AccessKeys({self._ring!r})"

    def start_anew(self) -> None:
        """Count openings anew, as a forked child does."""
        if self._ring is not None:
            self._ring.openings = Openings()

    def can_open(self, envelope: bytes) -> bool:
        """Answer whether loading the keys again would not help: the key is held, or the value is no envelope."""
        return self._ring is not None and self._ring.holds_key_of(envelope)

    @property
    def ring(self) -> DataKeys:
        """The keys. Raises :class:`EnvelopeError` before they were loaded."""
        if self._ring is None:
            raise EnvelopeError("the data keys were not loaded")
        return self._ring

    def seconds_until_loading(self, now: float) -> float:
        """Return how long to wait before the keys may be loaded again."""
        return max(0.0, self._may_load_at - now)

    def begin_loading(self, now: float) -> None:
        """Note that the keys are being loaded: nobody else does so meanwhile, nor soon after unless it helped."""
        self._may_load_at = now + RELOAD_SECONDS

    def loading_helped(self) -> None:
        """Let them be loaded again as soon as there is a reason."""
        self._may_load_at = 0.0

    def unwrap(self, rows: Iterable[tuple[int, str, bytes, bool]]) -> None:
        """Take the rows of the view ``access_keys``. May ask a key service, and so block.

        Raises :class:`EnvelopeError` when the key that wraps them is not configured, and
        :class:`KeyServiceUnavailable`.
        """
        wrapped = [
            WrappedKey(data_key_id, Ring.ACCESS, kek_id, bytes(sealed), is_primary)
            for data_key_id, kek_id, sealed, is_primary in rows
        ]
        self._ring = unwrap_ring(Ring.ACCESS, wrapped, self._wrappers, self._ring)
