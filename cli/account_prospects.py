"""What an operator has to expect of a command that was done: the sentence after ``paused`` or ``resumed``.

Pure: the account is as it stood just before, under the lock under which it was acted on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cli.output import dated, duration, moment, relative
from tokenfleet.policy import ROTATION_LOST

if TYPE_CHECKING:
    from store.details import AccountDetail

REJECTED = frozenset({"invalid_grant", ROTATION_LOST})
"""What a paused account's last error says when the provider has rejected its grant."""


def after_pause(account: AccountDetail) -> str:
    """Return what is to be said of an account that was running and is paused now."""
    schedule, token, now = account.schedule, account.token, account.database_now
    under_way = (
        schedule is not None
        and schedule.claimed_until is not None
        and schedule.claimed_until > now
        and schedule.started_epoch == schedule.claim_epoch
    )
    said = "paused; nobody asks about it any more"
    if under_way:
        said = (
            "paused; a request is under way, whose answer is still saved, and after that nobody asks about it"
        )
    if (
        token is not None
        and token.refresh_token_expires_at is not None
        and token.refresh_token_expires_at > now
    ):
        said += (
            f". Its refresh token ends at {dated(token.refresh_token_expires_at, now)}: resumed after that, it needs a "
            "new sign-in"
        )
    return said


def already_paused(account: AccountDetail, reason: str | None) -> str:
    """Return what is to be said of an account that was paused before. Its first reason stays."""
    since = relative(account.status_changed_at, account.database_now)
    because = f" ({account.status_reason})" if account.status_reason else ""
    said = f"it was paused already, {since}{because}"
    if reason is not None and reason != account.status_reason:
        said += "; that stays as it is: resume it first to give another reason"
    return said


def elsewhere(account: AccountDetail) -> str:
    """Return what is to be said of an account that was exported, and that nobody here may refresh."""
    return (
        f"it was {account.status_reason}: who refreshes it there and here ends its grant; import it from there "
        "(docs/leaving.md), or resume it with --exported if nobody refreshes it there, or ever will"
    )


def after_resume(account: AccountDetail) -> str:
    """Return what is to be said of an account that was paused and is active now."""
    app, token, schedule, now = account.app, account.token, account.schedule, account.database_now
    said = f"resumed; {_when(account)}"
    if schedule is not None and schedule.last_error is not None and schedule.last_error in REJECTED:
        said += (
            f". The provider rejected its grant before ({schedule.last_error}): saying so again, it makes the customer "
            "sign in"
        )
    elif (
        token is not None
        and token.refresh_token_expires_at is not None
        and token.refresh_token_expires_at <= now
    ):
        said += (
            f". Its refresh token ended at {dated(token.refresh_token_expires_at, now)}: most likely the customer has "
            "to sign in again"
        )
    elif (
        token is not None
        and token.expires_at is not None
        and token.expires_at <= now
        and app.held_since is None
    ):
        said += (
            f". Until then readers have none that works: it expired {duration(now - token.expires_at)} ago"
        )
    return said


def _when(account: AccountDetail) -> str:
    app, now = account.app, account.database_now
    if app.held_since is not None:
        return (
            f"but its app is on hold ({app.held_code}): nobody is asked until 'tokenfleet apps set "
            f"{account.provider} …' mends the registration"
        )
    if app.paused_until is not None and app.paused_until > now:
        return f"but the provider asked us to wait until {moment(app.paused_until)}, and it is refreshed then"
    return "it is refreshed at once"
