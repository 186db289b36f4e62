"""Tokens that tell their own place, so that the past costs no memory.

A token names its family and its number in it and carries a keyed digest (BLAKE2b, 160 bits) under a key
drawn at start, so it cannot be guessed and needs no table. That gives reuse detection an unlimited memory at
a fixed price: a genuine refresh token whose number is below the family's live one is spent, whether it was
spent a second or a million rotations ago. Keeping 16-byte fingerprints of 100,000 accounts over a day of
60-second tokens would have taken more than 10 GB.

Both kinds have a prefix of their own, so that a search of dumps and logs finds any token that leaked, and no
dots, so that nobody takes them for a JWT.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from dataclasses import dataclass
from typing import Final

from tokenfleet_client.secret import Secret

REFRESH_TOKEN_PREFIX: Final = "sandbox-rt-"
ACCESS_TOKEN_PREFIX: Final = "sandbox-at-"
KEY_BYTES: Final = 32
DIGEST_BYTES: Final = 20
LONGEST_TOKEN: Final = 200
"""No token of ours is longer; whatever is longer is not parsed."""


@dataclass(frozen=True, slots=True)
class RefreshTokenRef:
    """Which refresh token: the ``number``-th of a family, the first being 0."""

    family: int
    number: int


@dataclass(frozen=True, slots=True)
class AccessTokenRef:
    """Which access token: the ``number``-th of a family, good until ``expires_at`` (POSIX milliseconds)."""

    family: int
    number: int
    expires_at_ms: int


class Mint:
    """Writes tokens, and recognizes those it wrote. Nobody else can write them: the key stays here."""

    def __init__(self, key: bytes | None = None) -> None:
        """Use ``key`` (32 bytes), or draw one."""
        self._key = key or os.urandom(KEY_BYTES)

    def refresh_token(self, ref: RefreshTokenRef) -> Secret:
        """Return the token that ``ref`` names, always the same one."""
        return Secret(self._sealed(f"{REFRESH_TOKEN_PREFIX}{ref.family}_{ref.number}"))

    def access_token(self, ref: AccessTokenRef) -> Secret:
        """Return the token that ``ref`` names, always the same one."""
        return Secret(self._sealed(f"{ACCESS_TOKEN_PREFIX}{ref.family}_{ref.number}_{ref.expires_at_ms}"))

    def read_refresh_token(self, token: Secret) -> RefreshTokenRef | None:
        """Return which refresh token this is, or None when it is none of ours."""
        numbers = self._read(token.reveal(), REFRESH_TOKEN_PREFIX)
        return RefreshTokenRef(*numbers) if numbers is not None and len(numbers) == 2 else None

    def read_access_token(self, token: Secret) -> AccessTokenRef | None:
        """Return which access token this is, expired or not, or None when it is none of ours."""
        numbers = self._read(token.reveal(), ACCESS_TOKEN_PREFIX)
        return AccessTokenRef(*numbers) if numbers is not None and len(numbers) == 3 else None

    def _sealed(self, text: str) -> str:
        digest = hashlib.blake2b(text.encode(), key=self._key, digest_size=DIGEST_BYTES).hexdigest()
        return f"{text}_{digest}"

    def _read(self, token: str, prefix: str) -> list[int] | None:
        # The digest covers the text as it was written, so "07" for "7" is no second spelling of a token.
        if len(token) > LONGEST_TOKEN or not token.isascii() or not token.startswith(prefix):
            return None
        text, _, _ = token.rpartition("_")
        if not hmac.compare_digest(self._sealed(text), token):
            return None
        return [int(number) for number in text[len(prefix) :].split("_")]


def fingerprint(token: Secret) -> str:
    """Return the SHA-256 of ``token`` in hexadecimal: enough to compare, useless to present."""
    return hashlib.sha256(token.reveal().encode()).hexdigest()
