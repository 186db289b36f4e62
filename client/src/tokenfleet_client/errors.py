"""Errors of the published language.

TokenfleetError
 ├── EnvelopeError          a sealed value cannot be opened
 │    └── UnknownKey        ... because this process does not hold its key
 ├── KeyMaterialError       a configured key is malformed
 ├── KeyServiceUnavailable  the service that unwraps data keys is away, or does not let us in
 └── WebhookError           a webhook is not to be believed
"""

from __future__ import annotations


class TokenfleetError(Exception):
    """Root of every error that Tokenfleet raises on purpose."""


class EnvelopeError(TokenfleetError):
    """The sealed value is truncated, was moved to another place, or was altered.

    The caller must not use the row; a worker quarantines the account and raises an alarm.
    """


class UnknownKey(EnvelopeError):
    """The sealed value names a key that this process does not hold."""

    def __init__(self, key_id: int) -> None:
        super().__init__(f"data key {key_id} is not in this process's key ring")
        self.key_id = key_id


class KeyMaterialError(TokenfleetError):
    """A key-encryption key is not 32 bytes of base64, or its id is malformed."""


class KeyServiceUnavailable(TokenfleetError):
    """A key service does not answer, or refuses this process: nothing is known of the key, and nothing is damaged.

    What was unwrapped before goes on; the caller tries again later.
    """


class WebhookError(TokenfleetError):
    """A webhook was altered, is too old or too new, or was signed by somebody else: it must not be acted upon."""
