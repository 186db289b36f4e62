"""What is said to who gets no token: which error, and in which words."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from tokenfleet_client.contract import AccountStatus, Answer
from tokenfleet_client.errors import (
    Connecting,
    NeedsReauth,
    Paused,
    Revoked,
    StaleToken,
    TokenUnavailable,
    UnknownAccount,
)
from tokenfleet_client.queries import Reply, TokenRow
from tokenfleet_client.tokens import Account, AccountRef


def refuse(status: str, reason: str | None, account: AccountRef) -> None:
    """Return for an account that the fleet refreshes; raise the kind of error that its status stands for."""
    why = f" ({reason})" if reason else ""
    if status == AccountStatus.NEEDS_REAUTH:
        raise NeedsReauth(
            f"{name_of(account)} needs re-authentication{why}: ask the customer to sign in again",
            reason=reason,
        )
    if status == AccountStatus.PAUSED:
        raise Paused(
            f"{name_of(account)} was paused{why}: skip it until an operator resumes it", reason=reason
        )
    if status == AccountStatus.REVOKED:
        raise Revoked(f"{name_of(account)} was revoked{why}: stop using it", reason=reason)


def late(
    row: TokenRow, reply: Reply | None, account: AccountRef, min_validity: timedelta, newer_than: int
) -> TokenUnavailable:
    """Return the error for a token that did not come in time."""
    if row.status == AccountStatus.CONNECTING:
        return Connecting(f"{name_of(account)} is still connecting: try again soon")
    last_error = row.last_error or (reply.last_error if reply else None)
    retry_at = utc(reply.retry_at) if reply else None
    was_reported = newer_than >= row.generation
    facts = [
        f"no newer token than generation {newer_than} of {name_of(account)} came in time"
        if was_reported
        else f"no token of {name_of(account)} that lives for {min_validity} came in time"
    ]
    if row.failing_since is not None:
        facts.append(f"its refresh fails since {utc(row.failing_since):%Y-%m-%d %H:%M:%SZ}")
    if reply is not None and reply.answer == Answer.REFUSED:
        facts.append(f"the fleet does not refresh it now ({reply.status_reason or 'no reason given'})")
    if last_error is not None:
        facts.append(f"last error {last_error}")
    if was_reported and row.failing_since is None and last_error is None:
        # A probe that finds the token alive leaves no other mark that a reader sees.
        facts.append(
            "if it was just renewed or found to work, its scopes are too small for what the API was asked"
        )
    facts.append("try again" if retry_at is None else f"try again at {retry_at:%Y-%m-%d %H:%M:%SZ}")
    return StaleToken(
        "; ".join(facts),
        expires_at=utc(row.expires_at),
        failing_since=utc(row.failing_since),
        last_error=last_error,
        retry_at=retry_at,
    )


def unknown(account: AccountRef) -> UnknownAccount:
    """Return the error for an account that is not seen here."""
    return UnknownAccount(
        f"there is no {name_of(account)} here: is it another tenant's, or in another environment?"
    )


def name_of(account: AccountRef) -> str:
    """Return what an account is called in a message."""
    if isinstance(account, Account):
        return f"account {account.external_id!r} of {account.provider} ({account.environment})"
    return f"account {account}"


def utc(moment: datetime | None) -> datetime | None:
    """Return ``moment`` in UTC, whatever zone the connection is set to."""
    return None if moment is None else moment.astimezone(UTC)
