"""Values that are computed for each request: digests, keyed digests, encodings, moments and nonces.

Invariant: text in, text out; what depends on the moment takes it as a parameter. Digests are over UTF-8.
"""

from __future__ import annotations

import hmac
import secrets
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Mapping
from datetime import datetime
from hashlib import sha256
from typing import Final, assert_never

from providers.spec_requests import Computed
from providers.templates import VariableRule, text_template

RANDOM_BYTES: Final = 16


class Computation:
    """One computed value of a definition. Immutable; safe in any thread."""

    __slots__ = ("_encoding", "_key", "_kind", "_of", "_unit", "names", "needs_now")

    def __init__(self, computed: Computed, rules: Mapping[str, VariableRule]) -> None:
        """Compile ``computed``, which has passed ``providers.contradictions``."""
        self._kind = computed.kind
        self._of = text_template(computed.of or "", rules)
        self._key = text_template(computed.key or "", rules)
        self._encoding = computed.encoding
        self._unit = computed.unit
        self.names = self._of.names | self._key.names
        """What it is computed from."""
        self.needs_now = computed.kind == "timestamp"

    def value(self, values: Mapping[str, str], now: datetime | None) -> str:
        """Return it for one request at ``now``, which only a timestamp needs.

        Raises :class:`UnicodeEncodeError` for text that has no UTF-8.
        """
        match self._kind:
            case "sha256":
                return self._encoded(sha256(self._of.expand(values).encode()).digest())
            case "hmac_sha256":
                key, message = self._key.expand(values).encode(), self._of.expand(values).encode()
                return self._encoded(hmac.digest(key, message, "sha256"))
            case "base64":
                data = self._of.expand(values).encode()
                return base64url(data) if self._encoding == "base64url" else b64encode(data).decode("ascii")
            case "timestamp":
                assert now is not None
                return str(int(now.timestamp() * (1000 if self._unit == "milliseconds" else 1)))
            case "random":
                return self._encoded(secrets.token_bytes(RANDOM_BYTES))
            case _:
                assert_never(self._kind)

    def _encoded(self, data: bytes) -> str:
        if self._encoding == "hex":
            return data.hex()
        if self._encoding == "upper_hex":
            return data.hex().upper()
        return base64url(data) if self._encoding == "base64url" else b64encode(data).decode("ascii")


def base64url(data: bytes) -> str:
    """Return ``data`` as base64url without padding (RFC 7515 section 2)."""
    return urlsafe_b64encode(data).rstrip(b"=").decode("ascii")
