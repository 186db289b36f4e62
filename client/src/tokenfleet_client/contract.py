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

REQUEST_REFRESH: Final = "request_refresh"
"""Function ``(account_id bigint, min_validity interval)``: ask for a token that lives that long. See
:class:`Answer`."""

REPORT_UNAUTHORIZED: Final = "report_unauthorized"
"""Function ``(account_id bigint, generation bigint)``: an API answered 401 to the token of that generation."""

REPORT_UNSEALINGS: Final = "report_unsealings"
"""Function ``(caller text, purpose text, opened integer)``: how many sealed values a reader opened since it
last said so."""

REFRESHED_CHANNEL: Final = "tokenfleet_v1_refreshed"
"""``NOTIFY`` on it, payload ``<account id> <generation>``, tells who asked for a refresh that it is there."""


class Answer(StrEnum):
    """What the two functions say of a request, in their column ``answer``. No row at all: there is no such account."""

    FRESH = "fresh"
    """The token lives for as long as was asked, or is newer than the one reported: read it."""
    REQUESTED = "requested"
    """A refresh is on its way, by this request or an earlier one: wait for a higher generation."""
    WAITING = "waiting"
    """The fleet is kept from asking: the provider fails, limits or holds. It tries again at ``retry_at``."""
    UNREACHABLE = "unreachable"
    """A new token would not live for that long either: the provider's tokens are shorter."""
    REFUSED = "refused"
    """Nobody asks for this account; ``status`` says why."""


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
