"""Names that readers in any language bind to. Changing one is a new contract version.

The schema carries the version in its name, so an incompatible successor can stand beside it while readers
move over. Migrations import nothing of ours and spell the names once more; ``tests/client/test_contract.py``
compares the two on a real database.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

CONTRACT_VERSION: Final = 1

APPLICATION_SCHEMA: Final = "tokenfleet"
"""Schema of the application's own tables. Readers never touch it."""

CONTRACT_SCHEMA: Final = f"tokenfleet_v{CONTRACT_VERSION}"
"""Schema that readers are granted."""

ACCESS_TOKENS_VIEW: Final = "access_tokens"
"""One row per account: identity, status, sealed access token, expiry, generation."""

ACCESS_KEYS_VIEW: Final = "access_keys"
"""Wrapped data keys of the access ring; useless without a key-encryption key."""


class AccountStatus(StrEnum):
    """Where an account stands. ``tokenfleet.account`` holds the legal moves between these."""

    CONNECTING = "connecting"
    """Known, but no refresh has succeeded and no usable access token is held yet."""
    ACTIVE = "active"
    """The fleet keeps its access token fresh."""
    NEEDS_REAUTH = "needs_reauth"
    """The provider definitely rejected the grant; only the customer can mend it."""
    PAUSED = "paused"
    """An operator told the fleet to leave it alone."""
    REVOKED = "revoked"
    """Deliberately ended; its tokens are forgotten."""
