"""Errors of the published language.

TokenfleetError
 ├── TokenUnavailable            there is no token to be had; its kinds say what to do
 │    ├── UnknownAccount         no such account is seen here: correct the id, or the role's tenant
 │    ├── NeedsReauth            the customer has to sign in again: ask them
 │    ├── Paused                 an operator told the fleet to leave it alone: wait until it is resumed
 │    ├── Revoked                the connection was ended on purpose: stop using it
 │    ├── Connecting             the first refresh has not succeeded yet: try again soon
 │    ├── StaleToken             the fleet or the provider is late: try again, at ``retry_at`` if that is known
 │    ├── MinValidityUnreachable the provider's tokens do not live that long: ask for less
 │    └── DatabaseUnavailable    the database does not answer: try again soon
 ├── ContractError               the database is not one that this role can read tokens from: an operator's matter
 ├── EnvelopeError               a sealed value cannot be opened
 │    └── UnknownKey             ... because this process does not hold its key
 ├── KeyMaterialError            a configured key is malformed
 ├── KeyServiceUnavailable       the service that unwraps data keys is away, or does not let us in
 └── WebhookError                a webhook is not to be believed
"""

from __future__ import annotations

from datetime import datetime


class TokenfleetError(Exception):
    """Root of every error that Tokenfleet raises on purpose."""


class TokenUnavailable(TokenfleetError):
    """There is no token to be had now. One of its kinds is raised, which tells what to do."""


class UnknownAccount(TokenUnavailable):
    """No such account is seen here: it does not exist, or belongs to a tenant that this role may not read.

    Correct the id; asking again changes nothing.
    """


class NeedsReauth(TokenUnavailable):
    """The provider has definitely rejected the grant: ask the customer to sign in again.

    ``reason`` is the fleet's code for it, such as ``invalid_grant``.
    """

    def __init__(self, message: str, *, reason: str | None = None) -> None:
        super().__init__(message)
        self.reason = reason


class Paused(TokenUnavailable):
    """An operator told the fleet to leave the account alone: skip it until they resume it."""

    def __init__(self, message: str, *, reason: str | None = None) -> None:
        super().__init__(message)
        self.reason = reason


class Revoked(TokenUnavailable):
    """The connection was ended on purpose, and its tokens are forgotten: stop using it."""

    def __init__(self, message: str, *, reason: str | None = None) -> None:
        super().__init__(message)
        self.reason = reason


class Connecting(TokenUnavailable):
    """The account is known, and its first refresh has not succeeded yet: try again soon."""


class StaleToken(TokenUnavailable):
    """No token that lives long enough came in time: the provider fails or limits, or the fleet does not run.

    The account itself is well. Try again, at ``retry_at`` if that is known; a token that lives shorter may be there,
    so asking for less ``min_validity`` may succeed.
    """

    def __init__(
        self,
        message: str,
        *,
        expires_at: datetime | None = None,
        failing_since: datetime | None = None,
        last_error: str | None = None,
        retry_at: datetime | None = None,
    ) -> None:
        super().__init__(message)
        self.expires_at = expires_at
        """When the token there is expires, or has expired."""
        self.failing_since = failing_since
        """Since when the provider has not renewed it, though asked; None when it has not failed."""
        self.last_error = last_error
        """The fleet's code for what the provider said last, such as ``http_503``."""
        self.retry_at = retry_at
        """When the fleet asks again, by the database's clock."""


class MinValidityUnreachable(TokenUnavailable):
    """A new token would not live that long either: ask for less ``min_validity``.

    ``expires_at`` is the present one's.
    """

    def __init__(self, message: str, *, expires_at: datetime | None = None) -> None:
        super().__init__(message)
        self.expires_at = expires_at


class DatabaseUnavailable(TokenUnavailable):
    """The database did not answer in time, and no token is held that is still valid: try again soon."""


class ContractError(TokenfleetError):
    """The database holds no contract of this version, or does not let this role use it.

    An operator upgrades the database, or grants the role what ``deploy/postgres/reader.sql`` grants.
    """


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
